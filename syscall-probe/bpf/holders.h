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
static __always_inline void show_socket(struct seq_file *seq, struct task_struct *task, struct file *file,
					struct sock *sk, u32 fd, u32 unlike, u64 cookie)
{
	struct files_struct *table = BPF_CORE_READ(task, files), *leaders = BPF_CORE_READ(task, group_leader, files);
	struct socket_record record = {};

	record.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (!table || (record.family != AF_INET && record.family != AF_INET6))
		return;
	record.tgid = task->tgid;
	record.fd = fd;
	record.start = start_of(task);
	record.inode = BPF_CORE_READ(file, f_inode, i_ino);
	record.cookie = cookie;
	record.file_refs = references(file) - unlike;
	record.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	record.type = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type);
	record.protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	record.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	/* If the first thread has ended, each of the others shows what they hold together. */
	if (BPF_CORE_READ(table, count.counter) > threads_of(task) || !leaders)
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
	bpf_seq_write(seq, &record, sizeof(record));
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
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) != ANON_INODE_FS_MAGIC)
		return 0;
	bpf_probe_read_kernel_str(found, sizeof(found), BPF_CORE_READ(file, f_path.dentry, d_name.name));
	for (u32 i = 0; i < sizeof(name); i++)
		if (found[i] != name[i])
			return 0;
	return BPF_CORE_READ(file, private_data);
}

/* Sockets in a ring's own table (direct descriptors) are in no other. Whoever holds the ring holds them. */
static __always_inline void show_ring(struct seq_file *seq, struct task_struct *task, struct io_ring_ctx *ring)
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
			show_socket(seq, task, file, sk, NO_DESCRIPTOR, 0, cookie);
	}
}

SEC("iter/task_file")
int dump_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct io_ring_ctx *ring;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket) {
		ring = ring_of(file);
		if (ring)
			show_ring(ctx->meta->seq, task, ring);
		return 0;
	}
	sk = socket->sk;
	/* The iterator itself, which shows the file, has a reference of it. */
	if (sk)
		show_socket(ctx->meta->seq, task, file, sk, ctx->fd, 1, bpf_get_socket_cookie(sk));
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
	record.start = start_of(task);
	record.inode = BPF_CORE_READ(file, f_inode, i_ino);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}

/*
 * Who holds one socket. The two programs above look at every open file of a process; where only one file is asked for,
 * it is enough to find that once, and to compare the pointers in the descriptor tables with it.
 */

/* What on_find_socket is asked by, after an Ethernet header that nobody reads. Addresses and ports in network order. */
struct socket_ends {
	u64 cookie;
	u16 family;
	u16 protocol;
	u16 local_port;
	u16 remote_port;
	u8 local[16]; /* IPv4 in the first four bytes */
	u8 remote[16];
};
_Static_assert(sizeof(struct socket_ends) == 48, "mirrored in src/layout.rs");
#define ETHERNET_HEADER 14

#define POINTERS 128 /* of a descriptor table that are read at once */

/* The open file that a thread asks about, and room for what its search reads: the stack is too small. Key: id of the
   thread, which runs both programs. */
struct sought_file {
	u64 file;
	u64 pointers[POINTERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, struct sought_file);
} sought_files SEC(".maps");

/* What a thread that asks for the first time begins with. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct sought_file);
} nothing_sought SEC(".maps");

static __always_inline struct bpf_sock *socket_at(struct __sk_buff *question, const struct socket_ends *ends)
{
	struct bpf_sock_tuple tuple = {};
	u32 size;

	/* A tuple is that of an arriving packet. */
	if (ends->family == AF_INET) {
		tuple.ipv4.saddr = *(u32 *)ends->remote;
		tuple.ipv4.daddr = *(u32 *)ends->local;
		tuple.ipv4.sport = ends->remote_port;
		tuple.ipv4.dport = ends->local_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, ends->remote, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, ends->local, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = ends->remote_port;
		tuple.ipv6.dport = ends->local_port;
		size = sizeof(tuple.ipv6);
	}
	if (ends->protocol == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(question, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(question, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* Never attached: run by its asker, in the network namespace of the socket. Returns 1 if the file is found. */
SEC("classifier")
int on_find_socket(struct __sk_buff *question)
{
	u32 thread = (u32)bpf_get_current_pid_tgid(), zero = 0;
	struct sought_file *sought, *nothing;
	struct socket_ends ends;
	struct bpf_sock *found;
	struct sock *sk = 0;
	u64 file = 0;

	if (bpf_skb_load_bytes(question, ETHERNET_HEADER, &ends, sizeof(ends)))
		return 0;
	found = socket_at(question, &ends);
	if (!found)
		return 0;
	/* The verifier lets nobody past the fields of a bpf_sock; the address alone is the kernel's socket. */
	bpf_probe_read_kernel(&sk, sizeof(sk), &found);
	if ((u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) == ends.cookie)
		file = (u64)BPF_CORE_READ(sk, sk_socket, file);
	bpf_sk_release(found);
	if (!file)
		return 0;
	nothing = bpf_map_lookup_elem(&nothing_sought, &zero);
	if (nothing)
		bpf_map_update_elem(&sought_files, &thread, nothing, BPF_NOEXIST);
	sought = bpf_map_lookup_elem(&sought_files, &thread);
	if (!sought)
		return 0;
	sought->file = file;
	return 1;
}

#define MAX_FILES (1u << 20)

struct table_look {
	struct seq_file *seq;
	struct task_struct *task;
	struct sought_file *sought;
	u64 entries; /* address of the table */
	u32 count;   /* of its entries */
};

static long look_at_descriptors(u32 index, struct table_look *look)
{
	struct sought_file *sought = look->sought;
	struct file *file = (struct file *)sought->file;
	u32 first = index * POINTERS, count = look->count - first;
	struct sock *sk;
	u64 cookie;

	if (first >= look->count)
		return 1;
	if (count > POINTERS)
		count = POINTERS;
	if (bpf_probe_read_kernel(sought->pointers, count * sizeof(u64), (void *)(look->entries + first * sizeof(u64))))
		return 0;
	for (u32 i = 0; i < POINTERS && i < count; i++) {
		if (sought->pointers[i] != (u64)file)
			continue;
		/* The memory may be another file's by now: what is shown is what it is now. */
		sk = socket_in(file);
		cookie = sk ? (u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) : 0;
		if (cookie)
			show_socket(look->seq, look->task, file, sk, first + i, 0, cookie);
	}
	return 0;
}

SEC("iter/task")
int dump_holders(struct bpf_iter__task *ctx)
{
	u32 thread = (u32)bpf_get_current_pid_tgid();
	struct task_struct *task = ctx->task;
	struct table_look look = {};
	struct files_struct *files;
	struct fdtable *table;

	if (!task)
		return 0;
	files = BPF_CORE_READ(task, files);
	if (!files || (task != BPF_CORE_READ(task, group_leader) && files == BPF_CORE_READ(task, group_leader, files)))
		return 0;
	look.sought = bpf_map_lookup_elem(&sought_files, &thread);
	if (!look.sought)
		return 0;
	look.seq = ctx->meta->seq;
	look.task = task;
	table = BPF_CORE_READ(files, fdt);
	look.entries = (u64)BPF_CORE_READ(table, fd);
	look.count = BPF_CORE_READ(table, max_fds);
	bpf_loop(MAX_FILES / POINTERS, look_at_descriptors, &look, 0);
	return 0;
}
