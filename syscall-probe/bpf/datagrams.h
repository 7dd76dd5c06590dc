/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Datagrams that several calls put together (MSG_MORE, UDP_CORK). Whoever sends one at last sends what others have put into
 * it: another holder of the socket, or the program that the sender was before.
 */
#pragma once

#include "calls.h"
#include "maps.h"
#include "writers.h"

/* What was begun is sent, or goes with the socket. */
static __always_inline void forget_unfinished(u64 cookie)
{
	struct wide *all = wide_slot();

	if (all && *(volatile u64 *)&all->unfinished && !bpf_map_delete_elem(&unfinished, &cookie))
		__sync_fetch_and_add(&all->unfinished, -1);
}

static __always_inline bool is_udp(u16 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

/* A message went through a Unix socket. Where that was not seen when the call began, because another thread has put the socket in the
   place of another file meanwhile, it may have carried descriptors all the same. */
static __always_inline void note_message(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	u32 nr = (u32)regs->orig_ax & ~X32_SYSCALL_BIT, *note;
	u64 thread = bpf_get_current_pid_tgid();

	if (task->thread_info.status & TS_COMPAT ? nr != 345 && nr != 370 : nr != 46 && nr != 307 && nr != 518 && nr != 538)
		return;
	note = bpf_map_lookup_elem(&in_flight_threads, &thread);
	if (!note || !(*note & IN_FLIGHT_PROCESS))
		move_process(task->tgid);
}

/* After each call that sends, and while the caller still holds the socket: that it did, where nothing else tells; and who has put
   data into a datagram that is not sent yet. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(on_sent, struct sock *sk)
{
	u16 protocol = BPF_CORE_READ_BITFIELD(sk, sk_protocol), family = sk->__sk_common.skc_family;
	struct net *net;
	struct task_struct *task;
	struct beginner caller = {}, *known;
	struct process_slot *slot;
	struct wide *all;
	bool is_begun;
	u64 cookie;

	if (family == AF_UNIX)
		note_message(bpf_get_current_task_btf());
	if (protocol == IPPROTO_TCP || (family != AF_INET && family != AF_INET6) ||
	    BPF_CORE_READ_BITFIELD(sk, sk_type) == SOCK_STREAM)
		return 0;
	task = bpf_get_current_task_btf();
	/* In the daemon's the senders of packets are known (senders.h). */
	net = sk->__sk_common.skc_net.net;
	if (net->ns.inum != own_netns)
		note_writer(sk);
	is_begun = is_udp(protocol) ? BPF_CORE_READ((struct udp_sock *)sk, pending) : BPF_CORE_READ(sk, sk_write_queue.qlen);
	if (!is_begun) {
		forget_unfinished(BPF_CORE_READ(sk, __sk_common.skc_cookie.counter));
		return 0;
	}
	slot = process_slot(task->tgid);
	all = wide_slot();
	cookie = bpf_get_socket_cookie(sk);
	if (!slot || !all)
		return 0;
	caller.tgid = task->tgid;
	caller.start = start_of(task);
	caller.exec_generation = *(volatile u64 *)&slot->exec_generation;
	known = bpf_map_lookup_elem(&unfinished, &cookie);
	if (!known)
		__sync_fetch_and_add(bpf_map_update_elem(&unfinished, &cookie, &caller, BPF_NOEXIST) ? &all->lost_unfinished
											     : &all->unfinished,
				     1);
	else if (known->tgid != caller.tgid || known->start != caller.start ||
		 known->exec_generation != caller.exec_generation)
		known->mixed = 1;
	return 0;
}

/* The descriptor that a call sends through; -1: it has none, or it is in user memory. */
static __always_inline long sends_through(struct task_struct *task, struct pt_regs *regs)
{
	u32 nr = (u32)regs->orig_ax & ~X32_SYSCALL_BIT;

	if (task->thread_info.status & TS_COMPAT)
		switch (nr) {
		case 4: case 146: case 345: case 366: case 369: case 370: /* write, writev, sendmmsg, setsockopt, sendto, sendmsg */
		case 187: case 239: /* sendfile, sendfile64 */
			return (u32)regs->bx;
		case 313: /* splice */
			return (u32)regs->dx;
		default:
			return -1;
		}
	switch (nr) {
	case 1: case 20: case 44: case 46: case 54: case 307: /* write, writev, sendto, sendmsg, setsockopt, sendmmsg */
	case 516: case 518: case 538: case 541:		       /* x32 writev, sendmsg, sendmmsg, setsockopt */
	case 40: case 328:				       /* sendfile, pwritev2 */
		return (u32)regs->di;
	case 275: /* splice */
		return (u32)regs->dx;
	}
	return -1;
}

/* Whether a datagram that the current call sends was, or may have been, begun by somebody else, or by a former program of the
   caller. In UDP the socket tells while it is being sent that it was begun, whether or not that was seen. */
static __always_inline bool finishes_anothers(struct task_struct *task, u64 exec_generation)
{
	long descriptor = sends_through(task, (struct pt_regs *)bpf_task_pt_regs(task));
	struct wide *all = wide_slot();
	struct beginner *known;
	bool foreign;
	struct sock *sk;
	u16 protocol;
	u64 cookie;

	if (!all)
		return 1;
	sk = descriptor < 0 ? 0 : socket_of(task, descriptor);
	/* io_uring, io_submit, socketcall: which socket it is cannot be told. */
	if (!sk)
		return *(volatile u64 *)&all->unfinished || *(volatile u64 *)&all->lost_unfinished;
	protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol);
	if (protocol == IPPROTO_TCP || (is_udp(protocol) && !BPF_CORE_READ((struct udp_sock *)sk, pending)))
		return 0;
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	known = bpf_map_lookup_elem(&unfinished, &cookie);
	if (!known)
		return is_udp(protocol) || *(volatile u64 *)&all->lost_unfinished;
	foreign = known->mixed || known->tgid != (u32)task->tgid || known->start != start_of(task) ||
		      known->exec_generation != exec_generation;
	/* setsockopt() also sends it, and no more is heard of it then. */
	if (is_udp(protocol))
		forget_unfinished(cookie);
	return foreign;
}
