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

SEC("iter/task_file")
int dump_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_record record = {};
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
	if (record.family != AF_INET && record.family != AF_INET6)
		return 0;
	record.tgid = task->tgid;
	record.fd = ctx->fd;
	record.start = task->group_leader->start_boottime;
	record.inode = file->f_inode->i_ino;
	record.cookie = bpf_get_socket_cookie(sk);
	/* Less the one of the iterator itself, which shows the file. */
	record.file_refs = references(file) - 1;
	record.netns = sk->__sk_common.skc_net.net->ns.inum;
	record.type = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type);
	record.protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	record.state = sk->__sk_common.skc_state;
	if (task->files->count.counter > task->signal->nr_threads)
		record.flags |= RECORD_SHARED_TABLE;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_ipv6only))
		record.flags |= RECORD_IPV6_ONLY;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuse) ||
	    BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport))
		record.flags |= RECORD_REUSE;
	record.local_port = sk->__sk_common.skc_num;
	record.remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	if (record.family == AF_INET) {
		*(u32 *)record.local = sk->__sk_common.skc_rcv_saddr;
		*(u32 *)record.remote = sk->__sk_common.skc_daddr;
	} else {
		bpf_probe_read_kernel(record.local, sizeof(record.local), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(record.remote, sizeof(record.remote), &sk->__sk_common.skc_v6_daddr);
	}
	/* A record that does not fit is shown again in the next buffer: records arrive whole. */
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
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
