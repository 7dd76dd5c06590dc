/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What processes are made of, told as it changes: what /proc says of a process that lives is told of one that has ended.
 */
#pragma once

#include "maps.h"

#define VM_EXEC 4
#define I_CTIME_QUERIED 0x80000000u
#define SECOND 1000000000ULL

struct mapped {
	unsigned long end;
	u32 executable;
	u32 known; /* `object` is a file, with its times */
	u32 news;  /* nobody has looked at it yet */
	u32 padding;
	struct object object;
};

static long look_at_object(struct task_struct *task, struct vm_area_struct *mapping, struct mapped *mapped)
{
	struct file *file = BPF_CORE_READ(mapping, vm_file);
	struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : 0;
	struct inode___with_seconds *times = (struct inode___with_seconds *)inode;
	struct file_slot *slot;
	u32 index;

	(void)task;
	mapped->end = BPF_CORE_READ(mapping, vm_end);
	mapped->executable = !!(BPF_CORE_READ(mapping, vm_flags) & VM_EXEC);
	if (!inode) {
		/* Memory without a file is no object. */
		mapped->known = !file;
		return 0;
	}
	mapped->object.inode = BPF_CORE_READ(inode, i_ino);
	index = mapped->object.inode & (FILE_SLOTS - 1);
	slot = bpf_map_lookup_elem(&file_slots, &index);
	if (!slot || !bpf_core_field_exists(times->i_mtime_sec))
		return 0;
	mapped->news = !*(volatile u32 *)&slot->watched;
	mapped->object.file_generation = *(volatile u32 *)&slot->generation;
	mapped->object.device = BPF_CORE_READ(inode, i_sb, s_dev);
	mapped->object.magic = BPF_CORE_READ(inode, i_sb, s_magic);
	mapped->object.size = BPF_CORE_READ(inode, i_size);
	mapped->object.mtime = BPF_CORE_READ(times, i_mtime_sec) * SECOND + BPF_CORE_READ(times, i_mtime_nsec);
	mapped->object.ctime = BPF_CORE_READ(times, i_ctime_sec) * SECOND +
			       (BPF_CORE_READ(times, i_ctime_nsec) & ~I_CTIME_QUERIED);
	mapped->known = 1;
	return 0;
}

/* Whoever wants to know takes what is there; nobody is woken for each of the forty libraries of a program, unless it may
   have to be hashed. */
static __always_inline void submit(struct change *change)
{
	bool wake = (change->flags & CHANGE_NEWS) || bpf_ringbuf_query(&image_changes, BPF_RB_AVAIL_DATA) > CHANGE_BYTES / 4;

	bpf_ringbuf_submit(change, wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline struct change *new_change(u32 kind, struct task_struct *task)
{
	struct process_slot *slot = process_slot(task->tgid);
	struct wide *all = wide_slot();
	struct change *change;

	if (!all)
		return 0;
	/* Who sees the count and has not got so many has to wait for the rest. */
	__sync_fetch_and_add(&all->changes, 1);
	change = bpf_ringbuf_reserve(&image_changes, sizeof(*change), 0);
	if (!change) {
		__sync_fetch_and_add(&all->lost_changes, 1);
		return 0;
	}
	__builtin_memset(change, 0, sizeof(*change));
	change->kind = kind;
	change->tgid = task->tgid;
	change->start = start_of(task);
	change->image_generation = slot ? *(volatile u64 *)&slot->image_generation : 0;
	return change;
}

static __always_inline void tell_change(u32 kind, struct task_struct *task, u32 shared)
{
	struct change *change = new_change(kind, task);

	if (!change)
		return;
	change->flags = shared ? CHANGE_SHARED : 0;
	submit(change);
}

/* What is mapped at an address, up to another, if that is one mapping. */
static __always_inline void tell_mapped(struct task_struct *task, unsigned long start, unsigned long end, u32 shared)
{
	struct mapped mapped = {};
	struct change *change;

	if (bpf_find_vma(task, start, look_at_object, &mapped, 0) || !mapped.known || mapped.end < end) {
		tell_change(CHANGE_UNCLEAR, task, shared);
		return;
	}
	if (!mapped.executable || !mapped.object.inode) {
		tell_change(CHANGE_NOTHING, task, shared);
		return;
	}
	change = new_change(CHANGE_OBJECT, task);
	if (!change)
		return;
	change->flags = shared ? CHANGE_SHARED : 0;
	if (mapped.news)
		change->flags |= CHANGE_NEWS;
	change->object = mapped.object;
	submit(change);
}

static __always_inline void tell_object(u32 kind, struct task_struct *task, const struct mapped *mapped)
{
	struct change *change = new_change(kind, task);

	if (!change)
		return;
	if (mapped->news)
		change->flags |= CHANGE_NEWS;
	change->object = mapped->object;
	submit(change);
}

#define AT_NULL 0
#define AT_BASE 7
#define AUXILIARY 24 /* entries of the auxiliary vector that are looked at */

/* Where the loader is; 0: there is none, or it chose its own place. */
static __always_inline unsigned long loader_of(struct task_struct *task)
{
	const unsigned long *vector = (const unsigned long *)&BPF_CORE_READ(task, mm)->saved_auxv;
	unsigned long entry[2];

	for (int i = 0; i < AUXILIARY; i++) {
		if (bpf_probe_read_kernel(entry, sizeof(entry), vector + i * 2) || entry[0] == AT_NULL)
			return 0;
		if (entry[0] == AT_BASE)
			return entry[1];
	}
	return 0;
}

/* A new program is made of its own file and its loader's: the program is where its code begins, the loader where the
   kernel put it. Where it starts to run is for the loader's author to say, so that alone tells nothing. A program
   without a loader cannot be told from one whose loader chose its own place: it is left to a look. */
static __always_inline void tell_program(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	struct mapped program = {}, loader = {}, running = {};
	unsigned long base = loader_of(task);

	if (!base || bpf_find_vma(task, BPF_CORE_READ(task, mm, start_code), look_at_object, &program, 0) ||
	    bpf_find_vma(task, base, look_at_object, &loader, 0) ||
	    bpf_find_vma(task, regs->ip, look_at_object, &running, 0) || !program.known || !program.executable ||
	    !program.object.inode || !loader.known || !loader.object.inode ||
	    running.object.inode != loader.object.inode || running.object.device != loader.object.device) {
		tell_change(CHANGE_UNCLEAR, task, 0);
		return;
	}
	tell_object(CHANGE_PROGRAM, task, &program);
	tell_object(CHANGE_OBJECT, task, &loader);
}

static __always_inline void tell_fork(struct task_struct *parent, struct task_struct *child)
{
	struct process_slot *slot = process_slot(parent->tgid);
	struct wide *all = wide_slot();
	bool changing = !slot || !all || *(volatile s32 *)&slot->image_in_flight || *(volatile s32 *)&all->in_flight;
	struct change *change = new_change(changing ? CHANGE_UNCLEAR : CHANGE_FORK, child);

	if (!change)
		return;
	change->parent = parent->tgid;
	change->parent_start = start_of(parent);
	change->flags = BPF_CORE_READ(parent, mm) == BPF_CORE_READ(child, mm) ? CHANGE_SHARED : 0;
	submit(change);
}

/* A mapping of a file. */
struct mapping_record {
	u64 start;
	u32 written; /* nonzero: somebody has the file open for writing, or mapped so */
	u32 padding;
	struct object object;
};
_Static_assert(sizeof(struct mapping_record) == 64, "mirrored in src/layout.rs");

/* The files themselves: where an overlay shows a file, what is mapped is the one below. */
SEC("iter/task_vma")
int dump_mappings(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *vma = ctx->vma;
	struct mapping_record record = {};
	struct mapped mapped = {};

	if (!ctx->task || !vma)
		return 0;
	look_at_object(0, vma, &mapped);
	if (!mapped.known || !mapped.object.inode)
		return 0;
	record.start = vma->vm_start;
	record.written = BPF_CORE_READ(vma, vm_file, f_inode, i_writecount.counter) > 0;
	record.object = mapped.object;
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
