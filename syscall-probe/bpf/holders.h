/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who holds which socket: one record per open descriptor of an IPv4 or IPv6 socket, of all processes or of one.
 */
#pragma once

#include "calls.h"

/* An open descriptor of a socket that passes beside netfilter. */
struct bypass_record {
	u32 tgid;
	u32 netns; /* inode number of the network namespace */
	u64 start; /* start_boottime of the thread group leader, ns */
	u64 inode; /* in sockfs, as in /proc/PID/fd */
	u16 family;
	u16 padding[3];
};
_Static_assert(sizeof(struct bypass_record) == 32, "mirrored in src/layout.rs");

struct socket_record {
	u32 tgid;
	u32 fd;
	u64 start; /* start_boottime of the thread group leader, ns */
	u64 inode; /* in sockfs, as in /proc/PID/fd */
	u64 cookie;
	u64 file_refs;
	u32 netns; /* inode number of the network namespace */
	u16 family;
	u16 type;
	u16 protocol;
	u8 state;
	u8 flags;	 /* RECORD_* */
	u16 local_port;	 /* host order */
	u16 remote_port; /* host order */
	u8 local[16];	 /* network order; IPv4 in the first four bytes */
	u8 remote[16];
};
_Static_assert(sizeof(struct socket_record) == 88, "mirrored in src/layout.rs");
#define RECORD_SHARED_TABLE 1u
#define RECORD_IPV6_ONLY 2u
#define RECORD_REUSE 4u

/* `unlike`: references that are no holder's. */
static __always_inline void show_socket(struct bpf_iter__task_file *ctx, struct file *file, struct sock *sk, u32 fd,
					u32 unlike, u64 cookie)
{
	struct task_struct *task = ctx->task;
	struct socket_record record = {};

	record.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (!task || (record.family != AF_INET && record.family != AF_INET6))
		return;
	record.tgid = task->tgid;
	record.fd = fd;
	record.start = task->group_leader->start_boottime;
	record.inode = BPF_CORE_READ(file, f_inode, i_ino);
	record.cookie = cookie;
	record.file_refs = references(file) - unlike;
	record.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	record.type = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type);
	record.protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	record.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (task->files->count.counter > task->signal->live.counter)
		record.flags |= RECORD_SHARED_TABLE;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only))
		record.flags |= RECORD_IPV6_ONLY;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuse) ||
	    BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport))
		record.flags |= RECORD_REUSE;
	record.local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	record.remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (record.family == AF_INET) {
		*(u32 *)record.local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(u32 *)record.remote = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else {
		bpf_probe_read_kernel(record.local, sizeof(record.local), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(record.remote, sizeof(record.remote), &sk->__sk_common.skc_v6_daddr);
	}
	/* A record that does not fit is shown again in the next buffer: records arrive whole. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
}

#define ANON_INODE_FS_MAGIC 0x09041934
#define SOCKFS_MAGIC 0x534f434b
#define RING_FLAGS 7UL
#define RING_FILES 128 /* of a ring that are looked at; what holds others is not known */
#define NO_DESCRIPTOR 0xffffffffu

/* The ring behind a file, if that is one: nobody but the kernel makes files of this file system. */
static __always_inline struct io_ring_ctx *ring_of(struct file *file)
{
	const char name[] = "[io_uring]";
	char found[sizeof(name)] = {};

	/* Of each open file of the machine: no call of a helper here. */
	if (file->f_inode->i_sb->s_magic != ANON_INODE_FS_MAGIC)
		return 0;
	bpf_probe_read_kernel_str(found, sizeof(found), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	for (u32 i = 0; i < sizeof(name); i++)
		if (found[i] != name[i])
			return 0;
	return BPF_CORE_READ(file, private_data);
}

/* Sockets in a ring's own table (direct descriptors) are in no other. Whoever holds the ring holds them. */
static __always_inline void show_ring(struct bpf_iter__task_file *ctx, struct io_ring_ctx *ring)
{
	struct io_rsrc_node **nodes, *node;
	struct socket *socket;
	struct file *file;
	struct sock *sk;
	u32 count;
	u64 cookie;

	if (!bpf_core_field_exists(ring->file_table.data.nodes))
		return;
	count = BPF_CORE_READ(ring, file_table.data.nr);
	nodes = BPF_CORE_READ(ring, file_table.data.nodes);
	for (u32 i = 0; i < RING_FILES && i < count; i++) {
		node = 0;
		if (bpf_probe_read_kernel(&node, sizeof(node), nodes + i) || !node)
			continue;
		file = (struct file *)(BPF_CORE_READ(node, file_ptr) & ~RING_FLAGS);
		if (!file || BPF_CORE_READ(file, f_inode, i_sb, s_magic) != SOCKFS_MAGIC)
			continue;
		socket = BPF_CORE_READ(file, private_data);
		sk = BPF_CORE_READ(socket, sk);
		cookie = sk ? (u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) : 0;
		if (cookie)
			show_socket(ctx, file, sk, NO_DESCRIPTOR, 0, cookie);
	}
}

SEC("iter/task_file")
int dump_sockets(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct io_ring_ctx *ring;
	struct socket *socket;
	struct sock *sk;

	if (!ctx->task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket) {
		ring = ring_of(file);
		if (ring)
			show_ring(ctx, ring);
		return 0;
	}
	sk = socket->sk;
	/* The iterator itself, which shows the file, has a reference of it. */
	if (sk)
		show_socket(ctx, file, sk, ctx->fd, 1, bpf_get_socket_cookie(sk));
	return 0;
}

/* A program apart: who looks for the holders of a flow need not be shown these. */
SEC("iter/task_file")
int dump_bypass_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct bypass_record record = {};
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	record.family = sk->__sk_common.skc_family;
	if (record.family != AF_PACKET && record.family != AF_XDP)
		return 0;
	record.tgid = task->tgid;
	record.netns = sk->__sk_common.skc_net.net->ns.inum;
	record.start = task->group_leader->start_boottime;
	record.inode = file->f_inode->i_ino;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
