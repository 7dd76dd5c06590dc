/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Files whose size or times change.
 */
#pragma once

#include "maps.h"

/* The first thing __mark_inode_dirty() does, whatever the file system, in the call that changes the inode. The
   generation moves whether the slot is watched or not: the add is also the barrier between the inode's new times and
   the look at `watched`, so that a daemon which marks the slot first and looks at the file afterwards misses
   neither. */
SEC("tp_btf/writeback_mark_inode_dirty")
int BPF_PROG(on_inode_dirty, struct inode *inode)
{
	u32 index = inode->i_ino & (FILE_SLOTS - 1);
	struct file_slot *slot = bpf_map_lookup_elem(&file_slots, &index);
	struct wide *all;

	if (!slot)
		return 0;
	__sync_fetch_and_add(&slot->generation, 1);
	if (!*(volatile u32 *)&slot->watched)
		return 0;
	all = wide_slot();
	if (all)
		move(&all->file_epoch);
	return 0;
}
