/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Processes that begin, become another program, and end.
 */
#pragma once

#include "calls.h"

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int former_pid)
{
	struct process_slot *slot = process_slot(task->tgid);
	u64 former = (u64)task->tgid << 32 | (u32)former_pid;
	u32 *note = bpf_map_lookup_elem(&in_flight_threads, &former);

	/* The mark comes before the generation: who sees the new generation sees the mark too. Whatever the former
	   program made carries a generation below it. */
	if (slot) {
		*(volatile u64 *)&slot->exec_generation = *(volatile u64 *)&slot->generation + 1;
		move(&slot->generation);
	}
	move_image(task->tgid);
	/* Here ends what the call changes. And a thread that was not the leader has got the leader's id: nothing would find
	   its call by its end. */
	if (note)
		move_at_end(*note);
	tell_program(task);
	if (note)
		count_end(former, *note);
	tell(EVENT_EXEC, task->tgid, task->group_leader->start_boottime, 0);
	return 0;
}

/* Before the child runs for the first time: it holds the parent's sockets from here on. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_slot *slot = process_slot(parent->tgid);

	if (parent->tgid == child->tgid)
		return 0;
	/* One descriptor table for two processes (clone(CLONE_FILES)): what either opens the other holds, without
	   any call of its own. */
	if (parent->files == child->files) {
		distrust_process(parent->tgid, UNRELIABLE_HOLDER);
		distrust_process(child->tgid, UNRELIABLE_HOLDER);
	} else {
		move_process(parent->tgid);
		move_process(child->tgid);
	}
	move_image(child->tgid);
	/* What a call of the parent maps when it goes on is the child's too, and the call counts as the parent's alone. */
	if (parent->mm == child->mm && slot && *(volatile s32 *)&slot->image_in_flight)
		distrust_process(child->tgid, UNRELIABLE_IMAGE);
	tell_fork(parent, child);
	return 0;
}

/* The kernel runs this for every thread, after it has been taken off signal->live and before its descriptors are
   closed. `live` and not the tracepoint's own group_dead argument, which kernels before 6.16 do not have. Two last
   threads that end at once may both see none alive: then the event comes twice. */
SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 *note = bpf_map_lookup_elem(&in_flight_threads, &thread);

	/* A thread that the kernel ends inside a call (an oops) never comes to the end of it. */
	if (note) {
		move_at_end(*note);
		count_end(thread, *note);
	}
	if (task->signal->live.counter > 0)
		return 0;
	move_process(task->tgid);
	tell_change(CHANGE_END, task, 0);
	return 0;
}
