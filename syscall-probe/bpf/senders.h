/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who was running when a packet was queued.
 *
 * A filter on the netlink socket that serves a queue runs where the packet is handed over: in the system call that sent
 * it, if a system call did. It sees the message, which names queue and packet, and the sender as the current task.
 */
#pragma once

#include "datagrams.h"
#include "maps.h"

#define KEEP_ALL 0xffffffffu
/* struct nlmsghdr, struct nfgenmsg with the queue's number in its last two bytes, and the first attribute:
   NFQA_PACKET_HDR with the packet's id in front (linux/netfilter/nfnetlink_queue.h). */
#define AT_MESSAGE_TYPE 4
#define AT_QUEUE 18
#define AT_ATTRIBUTE_TYPE 22
#define AT_PACKET 24
#define PACKET_MESSAGE 0x300
#define ATTRIBUTE_PACKET_HDR 1

SEC("socket")
int on_queued(struct __sk_buff *message)
{
	struct task_struct *task = bpf_get_current_task_btf();
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process_slot *slot = process_slot(tgid);
	struct wide *all = wide_slot();
	struct sender *sender;
	u16 type, attribute, queue;
	u32 packet, index;

	if (!slot || !all || bpf_skb_load_bytes(message, AT_MESSAGE_TYPE, &type, sizeof(type)) || type != PACKET_MESSAGE ||
	    bpf_skb_load_bytes(message, AT_ATTRIBUTE_TYPE, &attribute, sizeof(attribute)) ||
	    attribute != ATTRIBUTE_PACKET_HDR || bpf_skb_load_bytes(message, AT_QUEUE, &queue, sizeof(queue)) ||
	    bpf_skb_load_bytes(message, AT_PACKET, &packet, sizeof(packet)))
		return KEEP_ALL;
	packet = bpf_ntohl(packet);
	queue = bpf_ntohs(queue);
	index = (queue % SENDER_QUEUES) * SENDER_SLOTS + packet % SENDER_SLOTS;
	sender = bpf_map_lookup_elem(&senders, &index);
	if (!sender)
		return KEEP_ALL;
	/* The queue is locked: nobody else writes for it. Its reader is told of the packet only after this. */
	sender->packet = packet;
	sender->queue = queue;
	sender->tgid = tgid;
	sender->flags = task->ptrace ? SENDER_TRACED : 0;
	if (!*(volatile u32 *)&slot->unreliable_images && !*(volatile s32 *)&slot->image_in_flight)
		sender->flags |= SENDER_SETTLED;
	sender->start = start_of(task);
	sender->image_generation = *(volatile u64 *)&slot->image_generation;
	sender->shed_generation = *(volatile u64 *)&slot->shed_generation;
	if (BPF_CORE_READ(task, mm) && BPF_CORE_READ(task, mm, mm_users.counter) > threads_of(task))
		sender->flags |= SENDER_SHARED;
	if (BPF_CORE_READ(task, mm) && finishes_anothers(task, *(volatile u64 *)&slot->exec_generation))
		sender->flags |= SENDER_FINISHED;
	sender->uid = BPF_CORE_READ(task, real_cred, euid.val);
	sender->gid = BPF_CORE_READ(task, real_cred, egid.val);
	sender->cgroup = BPF_CORE_READ(task, group_leader, cgroups, dfl_cgrp, kn, id);
	sender->wide_generation = *(volatile u64 *)&all->generation;
	sender->links = *(volatile u64 *)&all->links;
	sender->raw_sockets = *(volatile u64 *)&all->raw_sockets;
	return KEEP_ALL;
}
