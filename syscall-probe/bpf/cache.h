/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Verdicts that stay in the kernel for as long as everything they were derived from is unchanged.
 *
 * iptables runs these programs (-m bpf) on packets that would be queued. The daemon writes an answer with the generations it was
 * derived from; here they are compared with what they are now. A packet that finds no such answer does not match, and goes to
 * the queue.
 */
#pragma once

#include "datagrams.h"
#include "maps.h"

#define CACHE_SLOTS 131072 /* answers, in buckets */
#define CACHE_WAYS 4
#define CACHE_COUNTERS 65536

#define OUTPUT 0
#define INPUT 1

#define ACCEPTED 1
#define DROPPED 2

/* Who is asked beside the flow. */
#define OF_OWNER 1u  /* the process slot of `owner` must stand still */
#define OF_SENDER 2u /* a system call of `owner` sends the packet */

/* All numbers in host order, but addresses. An IPv4 address is in the first word. */
struct flow_key {
	u32 source[4];
	u32 destination[4];
	u16 source_port;
	u16 destination_port;
	u8 protocol;
	u8 version; /* of IP: 4 or 6 */
	u8 chain;
	u8 padding;
	u32 in_device; /* 0: it came in by none */
	u32 out_device;
};
_Static_assert(sizeof(struct flow_key) == 48, "mirrored in src/layout.rs");

/* Generations never fall: while a sum of several is the same, each of them is. */
struct answer {
	u64 sequence; /* odd: it is being written */
	struct flow_key key;
	u32 verdict; /* 0: there is none */
	u32 depends; /* OF_* */
	u64 machine; /* control.epoch + wide.generation + file_epoch + tracers + links */
	u64 process; /* generation + image_generation + shed_generation + standing_generation of the owner */
	u64 port;    /* of the port at our end */
	u64 start;   /* of the owner: start_boottime of the thread group leader, ns */
	u64 cgroup;
	u32 owner; /* tgid */
	u32 uid;
	u32 gid;
	u32 counter; /* index in cache_counters */
	u64 expires; /* CLOCK_MONOTONIC, ns; 0: never */
};
_Static_assert(sizeof(struct answer) == 128, "mirrored in src/layout.rs");

/* Written by the daemon. */
struct cache_control {
	u64 epoch; /* moves with the rules, and with all else that answers are derived from and the kernel does not see */
	u64 lease; /* CLOCK_MONOTONIC, ns: until then the daemon is alive */
	u64 secret; /* mixed into hashes, so that nobody chooses what shares a bucket */
	u32 daemon; /* its tgid */
	u32 padding;
};
_Static_assert(sizeof(struct cache_control) == 32, "mirrored in src/layout.rs");

struct cache_counter {
	u64 packets;
	u64 bytes;
};

/* Why a packet went to the queue. */
enum miss {
	MISS_LEASE,    /* the daemon is not there, or has not been heard of */
	MISS_KIND,     /* neither TCP nor UDP in one piece with plain headers */
	MISS_PLACE,    /* of another network namespace, or its devices are not known */
	MISS_UNKNOWN,  /* no answer for such a flow */
	MISS_MACHINE,  /* the rules, a watched file, a device, or something unattributed has changed */
	MISS_PORT,     /* some socket has taken or given up the port */
	MISS_PROCESS,  /* the owner has changed, or is just changing */
	MISS_SENDER,   /* another sends it, or it cannot be said who does */
	MISSES,
};

struct cache_counts {
	u64 accepted;
	u64 dropped;
	u64 misses[MISSES];
};
_Static_assert(sizeof(struct cache_counts) == 80, "mirrored in src/layout.rs");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CACHE_SLOTS);
	__type(key, u32);
	__type(value, struct answer);
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cache_control);
} cache_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CACHE_COUNTERS);
	__type(key, u32);
	__type(value, struct cache_counter);
} cache_counters SEC(".maps");

/* Index: the chain. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct cache_counts);
} cache_counts SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net_device {
	int ifindex;
	struct {
		struct net *net;
	} nd_net;
};

struct dst_entry {
	struct net_device *dev;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	unsigned long _skb_refdst;
	u8 ip_summed : 2;
};

#pragma clang attribute pop

#define CHECKSUM_PARTIAL 3
#define DST_POINTER (~1ul)

struct ipv4_header {
	u8 version_length;
	u8 tos;
	u16 length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 source;
	u32 destination;
};

struct ipv6_header {
	u32 version;
	u16 length;
	u8 next;
	u8 hops;
	u32 source[4];
	u32 destination[4];
};

#define FRAGMENT 0x3fff /* offset, and whether more come */
#define UDP_HEADER 8
#define TCP_HEADER 20

/* What all of a packet's headers say; false if there is anything about them that the daemon should look at. */
static __always_inline bool read_headers(struct __sk_buff *ctx, struct flow_key *key)
{
	u8 first;
	u32 start, length;
	u16 ports[4]; /* the first eight bytes: of UDP that is all */

	if (bpf_skb_load_bytes(ctx, 0, &first, 1))
		return 0;
	if (first >> 4 == 4) {
		struct ipv4_header ip;

		if (bpf_skb_load_bytes(ctx, 0, &ip, sizeof(ip)))
			return 0;
		start = (ip.version_length & 15) * 4;
		length = bpf_ntohs(ip.length);
		if (start < sizeof(ip) || ip.fragment & bpf_htons(FRAGMENT))
			return 0;
		key->version = 4;
		key->protocol = ip.protocol;
		key->source[0] = ip.source;
		key->destination[0] = ip.destination;
	} else if (first >> 4 == 6) {
		struct ipv6_header ip;

		if (bpf_skb_load_bytes(ctx, 0, &ip, sizeof(ip)))
			return 0;
		start = sizeof(ip);
		length = bpf_ntohs(ip.length) + sizeof(ip);
		key->version = 6;
		key->protocol = ip.next;
		for (int i = 0; i < 4; i++) {
			key->source[i] = ip.source[i];
			key->destination[i] = ip.destination[i];
		}
	} else {
		return 0;
	}
	if (length != ctx->len || bpf_skb_load_bytes(ctx, start, ports, sizeof(ports)))
		return 0;
	if (key->protocol == IPPROTO_TCP) {
		u8 offset;

		if (bpf_skb_load_bytes(ctx, start + 12, &offset, 1) || (offset >> 4) * 4 < TCP_HEADER ||
		    start + (offset >> 4) * 4 > length)
			return 0;
	} else if (key->protocol != IPPROTO_UDP || bpf_ntohs(ports[2]) != length - start) {
		return 0;
	}
	key->source_port = bpf_ntohs(ports[0]);
	key->destination_port = bpf_ntohs(ports[1]);
	return 1;
}

/* Where it passes; false if that is not the daemon's namespace. */
static __always_inline bool read_place(struct __sk_buff *ctx, struct flow_key *key)
{
	struct sk_buff *packet = (struct sk_buff *)ctx;
	struct net_device *device;
	struct dst_entry *route;
	u32 index;

	if (key->chain == INPUT) {
		device = BPF_CORE_READ(packet, dev);
	} else {
		route = (struct dst_entry *)(BPF_CORE_READ(packet, _skb_refdst) & DST_POINTER);
		device = BPF_CORE_READ(route, dev);
	}
	if (!device || BPF_CORE_READ(device, nd_net.net, ns.inum) != own_netns)
		return 0;
	index = BPF_CORE_READ(device, ifindex);
	key->in_device = key->chain == INPUT ? index : 0;
	key->out_device = key->chain == INPUT ? 0 : index;
	return index != 0;
}

static __always_inline u64 mixed(u64 hash, u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32;
}

static __always_inline u32 bucket_of(const struct flow_key *key, u64 secret)
{
	const u64 *words = (const u64 *)key;
	u64 hash = secret;

	for (u32 i = 0; i < sizeof(*key) / sizeof(u64); i++)
		hash = mixed(hash, words[i]);
	return (u32)hash & (CACHE_SLOTS - 1) & ~(CACHE_WAYS - 1u);
}

static __always_inline bool same(const struct flow_key *one, const volatile struct flow_key *other)
{
	const u64 *a = (const u64 *)one;
	const volatile u64 *b = (const volatile u64 *)other;

	for (u32 i = 0; i < sizeof(*one) / sizeof(u64); i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* The call that is running sends it, and as whom the answer was for. */
static __always_inline bool is_sent_by(struct __sk_buff *ctx, const volatile struct answer *answer)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct sock *sk = BPF_CORE_READ((struct sk_buff *)ctx, sk);

	/* Somebody holds the socket, and it sends a datagram that was begun in this call. */
	if (!sk || !BPF_CORE_READ(sk, sk_socket, file) || BPF_CORE_READ((struct udp_sock *)sk, pending))
		return 0;
	return (u32)task->tgid == answer->owner && task->group_leader->start_boottime == answer->start && !task->ptrace &&
	       BPF_CORE_READ(task, real_cred, euid.val) == answer->uid &&
	       BPF_CORE_READ(task, real_cred, egid.val) == answer->gid &&
	       BPF_CORE_READ(task, group_leader, cgroups, dfl_cgrp, kn, id) == answer->cgroup;
}

/* 0, or why not. */
static __always_inline int stale(struct __sk_buff *ctx, const struct flow_key *key, const volatile struct answer *answer,
				 u64 epoch)
{
	u32 port = key->chain == INPUT ? key->destination_port : key->source_port;
	const volatile struct wide *all = wide_slot();
	const volatile struct process_slot *slot;
	const volatile u64 *generation;
	u32 depends = answer->depends;

	if (!all || all->in_flight ||
	    epoch + all->generation + all->file_epoch + all->tracers + all->links != answer->machine)
		return MISS_MACHINE;
	if (!(depends & OF_OWNER))
		return 0;
	generation = bpf_map_lookup_elem(&port_generations, &port);
	if (!generation || *generation != answer->port)
		return MISS_PORT;
	slot = process_slot(answer->owner);
	if (!slot || slot->in_flight || slot->image_in_flight || slot->standing_in_flight || slot->unreliable_holders ||
	    slot->unreliable_images ||
	    slot->generation + slot->image_generation + slot->shed_generation + slot->standing_generation != answer->process)
		return MISS_PROCESS;
	if (depends & OF_SENDER)
		return is_sent_by(ctx, answer) ? 0 : MISS_SENDER;
	/* A raw socket that writes TCP's headers itself fills in the checksum, which TCP leaves to the device. */
	if (key->chain == OUTPUT && (key->protocol != IPPROTO_TCP ||
				     BPF_CORE_READ_BITFIELD_PROBED((struct sk_buff *)ctx, ip_summed) != CHECKSUM_PARTIAL))
		return MISS_SENDER;
	return 0;
}

static __always_inline int judged(struct __sk_buff *ctx, u8 chain, u32 verdict)
{
	struct flow_key key = { .chain = chain };
	u32 zero = 0, which = chain, bucket;
	const volatile struct cache_control *control = bpf_map_lookup_elem(&cache_control, &zero);
	struct cache_counts *counts = bpf_map_lookup_elem(&cache_counts, &which);
	int miss = MISS_UNKNOWN;
	u64 epoch, now = bpf_ktime_get_ns();

	if (!control || !counts)
		return 0;
	epoch = control->epoch;
	if (now >= control->lease) {
		miss = MISS_LEASE;
		goto missed;
	}
	if (!read_headers(ctx, &key)) {
		miss = MISS_KIND;
		goto missed;
	}
	if (!read_place(ctx, &key)) {
		miss = MISS_PLACE;
		goto missed;
	}
	bucket = bucket_of(&key, control->secret);
	for (u32 way = 0; way < CACHE_WAYS; way++) {
		u32 index = bucket + way;
		const volatile struct answer *answer = bpf_map_lookup_elem(&answers, &index);
		struct cache_counter *counter;
		u64 sequence;

		if (!answer)
			break;
		sequence = answer->sequence;
		if (sequence & 1 || answer->verdict == 0 || !same(&key, &answer->key))
			continue;
		if (answer->expires && now >= answer->expires)
			break;
		if (answer->verdict != verdict)
			return 0;
		index = answer->counter;
		miss = stale(ctx, &key, answer, epoch);
		/* Loads are in order on x86; the compiler is told to keep them so. */
		if (miss || answer->sequence != sequence)
			goto missed;
		counter = bpf_map_lookup_elem(&cache_counters, &index);
		if (counter) {
			__sync_fetch_and_add(&counter->packets, 1);
			__sync_fetch_and_add(&counter->bytes, (u64)ctx->len);
		}
		__sync_fetch_and_add(verdict == ACCEPTED ? &counts->accepted : &counts->dropped, 1);
		return 1;
	}
missed:
	/* Both programs see a packet that misses. */
	if (verdict == ACCEPTED && miss >= 0 && miss < MISSES)
		__sync_fetch_and_add(&counts->misses[miss], 1);
	return 0;
}

/* The daemon has ended: nobody keeps the answers true any more. */
static __always_inline void end_cache(u32 tgid)
{
	u32 zero = 0;
	struct cache_control *control = bpf_map_lookup_elem(&cache_control, &zero);

	if (control && control->daemon == tgid)
		control->lease = 0;
}

SEC("socket")
int accept_output(struct __sk_buff *ctx)
{
	return judged(ctx, OUTPUT, ACCEPTED);
}

SEC("socket")
int drop_output(struct __sk_buff *ctx)
{
	return judged(ctx, OUTPUT, DROPPED);
}

SEC("socket")
int accept_input(struct __sk_buff *ctx)
{
	return judged(ctx, INPUT, ACCEPTED);
}

SEC("socket")
int drop_input(struct __sk_buff *ctx)
{
	return judged(ctx, INPUT, DROPPED);
}
