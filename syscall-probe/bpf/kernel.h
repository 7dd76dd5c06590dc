/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The kernel types the programs touch, and of each type only the fields they touch.
 *
 * Offsets are not taken from here: `preserve_access_index` makes clang emit a CO-RE relocation for every access, and
 * the loader resolves it against the running kernel's BTF. A full vmlinux.h would add 130,000 lines and say no more.
 */
#pragma once

#include <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;
typedef _Bool bool;

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_UDPLITE 136

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* x86-64 names. A 32-bit call uses bx, cx, dx, si, di, bp for its arguments, a 64-bit call di, si, dx, r10, r8, r9. */
struct pt_regs {
	unsigned long r10, r8, bx, cx, dx, si, di, orig_ax, ip;
};

struct thread_info {
	u32 status;
};

struct atomic {
	int counter;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct atomic count;
	struct fdtable *fdt;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

struct nsproxy {
	struct net *net_ns;
};

struct mm_struct {
	struct atomic mm_users;
	unsigned long start_code;
	unsigned long brk;
	unsigned long saved_auxv[2];
};

struct file;

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_flags;
	struct file *vm_file;
};

struct signal_struct {
	struct atomic live;
};

struct io_uring_task;

/* Ids as the initial user namespace has them. */
struct cred {
	struct {
		u32 val;
	} euid, egid;
};

struct kernfs_node {
	u64 id; /* never given again */
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* of version 2 */
};

struct task_struct {
	struct thread_info thread_info;
	struct mm_struct *mm;
	unsigned int ptrace; /* 0: the thread is not traced */
	unsigned int personality;
	int pid;
	int tgid;
	struct task_struct *group_leader;
	u64 start_boottime;
	struct files_struct *files;
	struct nsproxy *nsproxy;
	const struct cred *real_cred; /* its own, whomever it acts for at the moment */
	struct css_set *cgroups;
	struct io_uring_task *io_uring;
	struct signal_struct *signal;
};

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
};

struct inode {
	u16 i_mode;
	unsigned long i_ino;
	struct super_block *i_sb;
	s64 i_size;
	struct atomic i_writecount; /* above 0: open for writing so often */
};

/* Since 6.11. Since 6.13 the highest bit of i_ctime_nsec says that somebody has asked for the time (I_CTIME_QUERIED). */
struct inode___with_seconds {
	s64 i_mtime_sec;
	s64 i_ctime_sec;
	u32 i_mtime_nsec;
	u32 i_ctime_nsec;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

struct file {
	void *private_data;
	struct inode *f_inode;
	struct path f_path;
};

/* A ring's own table of files, since 6.13. */
struct io_rsrc_node {
	unsigned long file_ptr; /* with flags in its low bits */
};

struct io_rsrc_data {
	unsigned int nr;
	struct io_rsrc_node **nodes;
};

struct io_file_table {
	struct io_rsrc_data data;
};

struct io_ring_ctx {
	struct io_file_table file_table;
};

/* Since 6.13: references of a file, stored as their number minus one. */
struct file___with_ref {
	struct {
		struct {
			s64 counter;
		} refcnt;
	} f_ref;
};

/* Before 6.13: references of a file, stored as they are. */
struct file___with_count {
	struct {
		s64 counter;
	} f_count;
};

struct in6_addr {
	u8 bytes[16];
};

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u16 skc_dport;
	u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_reuse : 4;
	unsigned char skc_reuseport : 1;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if; /* 0: none */
	struct {
		struct net *net;
	} skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	struct {
		s64 counter;
	} skc_cookie;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket; /* 0: no process holds it */
	struct {
		u32 qlen;
	} sk_write_queue;
	u8 sk_userlocks; /* a bit field before 6.x: read it with BPF_CORE_READ_BITFIELD_PROBED */
	u16 sk_protocol;
	u16 sk_type;
};

struct socket {
	struct file *file;
	struct sock *sk;
};

struct inet_sock {
	u16 inet_sport;
};

struct tcp_fastopen_request;

struct tcp_sock {
	struct tcp_fastopen_request *fastopen_req; /* data that go with the SYN */
};

struct udp_sock {
	int pending; /* 0, or the family of a datagram that is begun and not sent */
};

/* What the context of a cgroup/setsockopt program is. */
struct bpf_sockopt_kern {
	struct sock *sk;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

#pragma clang attribute pop
