/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who has put data into a socket.
 */
#pragma once

#include "maps.h"

static __always_inline void add_writer(struct writers *known, u32 tgid, u64 start, u64 wrote)
{
	u32 at;

	for (u32 i = 0; i < WRITERS; i++)
		if (known->writers[i].tgid == tgid && known->writers[i].start == start)
			return;
	if (*(volatile u32 *)&known->count > WRITERS)
		return;
	at = __sync_fetch_and_add(&known->count, 1);
	if (at >= WRITERS)
		return;
	known->writers[at].start = start;
	known->writers[at].wrote = wrote;
	__sync_lock_test_and_set(&known->writers[at].tgid, tgid);
}

/* The current process writes into the socket. Its maker too is noted: it may pass the socket on, and end. */
static __always_inline void note_writer(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u64 cookie = bpf_get_socket_cookie(sk), start, wrote;
	u32 tgid = task->tgid;
	struct process_slot *slot = process_slot(tgid);
	struct writers *known, first = {};
	struct wide *all;

	if (!cookie || !slot)
		return;
	/* A thread of the kernel writes for somebody: whose data a socket map or a file system puts into a socket that a process
	   made nobody can tell. The kernel's own sockets have no open file. */
	if (!BPF_CORE_READ(task, mm) && !BPF_CORE_READ(sk, sk_socket, file))
		return;
	start = start_of(task);
	wrote = *(volatile u64 *)&slot->exec_generation;
	known = bpf_map_lookup_elem(&writers, &cookie);
	if (!BPF_CORE_READ(task, mm) && known) {
		known->count = WRITERS + 1;
		return;
	}
	if (!known) {
		first.count = BPF_CORE_READ(task, mm) ? 1 : WRITERS + 1;
		first.writers[0].tgid = tgid;
		first.writers[0].start = start;
		first.writers[0].wrote = wrote;
		if (!bpf_map_update_elem(&writers, &cookie, &first, BPF_NOEXIST))
			return;
		/* Another was quicker, or there is no room. */
		known = bpf_map_lookup_elem(&writers, &cookie);
	}
	if (known)
		add_writer(known, tgid, start, wrote);
	else if ((all = wide_slot()))
		__sync_fetch_and_add(&all->lost_writers, 1);
}
