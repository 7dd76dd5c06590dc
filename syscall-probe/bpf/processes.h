/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Processes that begin, become another program, and end.
 */
#pragma once

#include "cache.h"
#include "calls.h"

/* What made an image unreliable was of the former address space. */
static __always_inline void trust_new_image(u32 tgid)
{
	struct process_slot *slot = process_slot(tgid);
	u32 *known = bpf_map_lookup_elem(&distrusted, &tgid);

	if (slot && known && (__sync_fetch_and_and(known, ~UNRELIABLE_IMAGE) & UNRELIABLE_IMAGE))
		__sync_fetch_and_add(&slot->unreliable_images, -1);
}

/* The slot is trusted again; of this process nothing is known, nor who else holds what it held. */
static __always_inline void forget_distrust(struct task_struct *task)
{
	u32 tgid = task->tgid;
	struct process_slot *slot = process_slot(tgid);
	u32 *known = bpf_map_lookup_elem(&distrusted, &tgid), what;

	if (!slot || !known)
		return;
	what = *(volatile u32 *)known;
	if (what & UNRELIABLE_HOLDER) {
		/* Not what the end of a process alone is. */
		move(&slot->generation);
		move(&slot->generation);
	}
	if (what & UNRELIABLE_IMAGE) {
		move(&slot->shed_generation);
		move(&slot->image_generation);
		tell_change(CHANGE_UNCLEAR, task, 0);
	}
	if (bpf_map_delete_elem(&distrusted, &tgid))
		return;
	if (what & UNRELIABLE_HOLDER)
		__sync_fetch_and_add(&slot->unreliable_holders, -1);
	if (what & UNRELIABLE_IMAGE)
		__sync_fetch_and_add(&slot->unreliable_images, -1);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int former_pid)
{
	struct process_slot *slot = process_slot(task->tgid);
	u64 former = (u64)task->tgid << 32 | (u32)former_pid;
	u32 *note = bpf_map_lookup_elem(&in_flight_threads, &former);

	if (slot)
		begin_program(slot);
	move_image(task->tgid);
	/* The program may have been one that makes its caller another user. */
	if (slot)
		move_standing(slot);
	/* Here ends what the call changes. And a thread that was not the leader has got the leader's id: nothing would find
	   its call by its end. */
	if (note)
		move_at_end(*note);
	tell_program(task);
	if (note)
		count_end(former, *note);
	trust_new_image(task->tgid);
	tell(EVENT_EXEC, task->tgid, start_of(task), 0);
	return 0;
}

/* Before the child runs for the first time: it holds the parent's sockets from here on. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_slot *slot = process_slot(parent->tgid), *childs = process_slot(child->tgid);

	if (parent->tgid == child->tgid)
		return 0;
	/* One descriptor table for two processes (clone(CLONE_FILES)): what either opens the other holds, without
	   any call of its own. */
	if (BPF_CORE_READ(parent, files) == BPF_CORE_READ(child, files)) {
		distrust_process(parent->tgid, UNRELIABLE_HOLDER);
		distrust_process(child->tgid, UNRELIABLE_HOLDER);
	} else {
		move_process(parent->tgid);
		move_process(child->tgid);
	}
	move_image(child->tgid);
	/* Who had the slot before was another's. What the child holds was made by its like: no mark. */
	if (childs)
		move(&childs->standing_generation);
	/* What a call of the parent maps when it goes on is the child's too, and the call counts as the parent's alone. */
	if (BPF_CORE_READ(parent, mm) == BPF_CORE_READ(child, mm) && slot && *(volatile s32 *)&slot->image_in_flight)
		distrust_process(child->tgid, UNRELIABLE_IMAGE);
	tell_fork(parent, child);
	return 0;
}

/* Somebody has put a process, or one of its threads, into another control group. That is done by now, and the call of who does it
   goes on. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_cgroup_attach, struct cgroup *to, const char *path, struct task_struct *task, bool whole)
{
	struct process_slot *slot = process_slot(task->tgid);

	if (!slot)
		return 0;
	move_standing(slot);
	/* Not what the end of a process alone is. */
	move(&slot->generation);
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
	if (threads_of(task) > 0)
		return 0;
	end_cache(task->tgid);
	move_process(task->tgid);
	forget_distrust(task);
	tell_change(CHANGE_END, task, 0);
	return 0;
}
