/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Verdicts that stay in the kernel for as long as everything they were derived from is unchanged.
 *
 * iptables runs these programs (-m bpf) on packets that would be queued. The daemon writes an answer with the generations it was
 * derived from; here they are compared with what they are now. A packet that finds no such answer does not match, and goes to
 * the queue.
 */
#pragma once

#include "sockets.h"
#include "maps.h"

#define CACHE_SLOTS 131072 /* answers, in buckets */
#define CACHE_WAYS 4
#define CACHE_COUNTERS 65536

#define OUTPUT 0
#define INPUT 1
#define FORWARD 2
#define CHAINS 3

#define ACCEPTED 1
#define DROPPED 2

/* What an answer is an answer for, the widest first. `struct flow_key` holds what it names, and nothing else. */
enum kind {
	ANY_PACKET, /* of the chain and the protocol */
	OF_MAKER,   /* of sockets that one process made, and that nobody else can hold; the process is in source[0] */
	OF_MAKER_TO, /* likewise, to one destination */
	TO,	    /* to one destination, whoever sends */
	OF_FLOW,
	KINDS,
};

/* What has to stand still beside the machine. */
#define ON_OWNERS 1u /* the port at our end, and the process slots of the owners */
#define ON_MAKER 2u  /* the process slot of the owner, but for what it holds: its sockets tell that */
#define ON_SENDER 4u /* a system call of the owner sends the packet */
#define ON_CENSUS 8u /* no raw socket comes or goes */
#define ON_USER 16u  /* the thread that calls is of this user and group, and nobody traces it */
#define UNTOLD 32u   /* not one of these: somebody wants to be told of each such packet, and cannot be for now */
#define OTHERS_SHIFT 8 /* how many owners there are beside the first */
#define OTHERS 4u

#define TICK 10000000ull /* ns */

/* All numbers in host order, but addresses. An IPv4 address is in the first word. */
struct flow_key {
	u32 source[4];
	u32 destination[4];
	u16 source_port;
	u16 destination_port;
	u8 protocol;
	u8 version; /* of IP: 4 or 6 */
	u8 chain;
	u8 kind;
	u32 in_device; /* 0: it came in by none. A port of a bridge rather than the bridge */
	u32 out_device;
};
_Static_assert(sizeof(struct flow_key) == 48, "mirrored in src/layout.rs");

/* Generations never fall: while a sum of several is the same, each of them is. */
struct answer {
	u64 sequence; /* odd: it is being written */
	struct flow_key key;
	u32 verdict; /* 0: there is none */
	u32 depends; /* ON_*, and the number of others */
	u64 machine; /* control.epoch + wide.generation + file_epoch + tracers + links, and raw_sockets ON_CENSUS */
	u64 process; /* of all owners: image_generation + shed_generation + standing_generation, and generation ON_OWNERS */
	u64 port;    /* of the port at our end */
	u64 start;   /* of the owner: start_boottime of the thread group leader, in TICKs, as /proc tells it */
	u32 others[OTHERS]; /* tgids */
	u32 owner; /* tgid */
	u32 uid;   /* effective */
	u32 gid;
	u32 counter; /* index in cache_counters */
	u64 expires; /* CLOCK_MONOTONIC, ns; 0: never */
};
_Static_assert(sizeof(struct answer) == 136, "mirrored in src/layout.rs");

/* Written by the daemon. */
struct cache_control {
	u64 epoch; /* moves with the rules, and with all else that answers are derived from and the kernel does not see */
	u64 lease; /* CLOCK_MONOTONIC, ns: until then the daemon is alive */
	u64 secret; /* mixed into hashes, so that nobody chooses what shares a bucket */
	u32 daemon; /* its tgid */
	u32 padding;
	u32 kinds[CHAINS][2]; /* which kinds of answers there may be, for TCP and UDP: 1 << kind */
};
_Static_assert(sizeof(struct cache_control) == 56, "mirrored in src/layout.rs");

struct cache_counter {
	u64 packets;
	u64 bytes;
};

/* Why a packet went to the queue. */
enum miss {
	MISS_LEASE,    /* the daemon is not there, or has not been heard of */
	MISS_KIND,     /* neither TCP nor UDP in one piece with plain headers */
	MISS_PLACE,    /* of another network namespace, or its devices are not known */
	MISS_UNKNOWN,  /* no answer for such a packet */
	MISS_MACHINE,  /* the rules, a watched file, a device, or something unattributed has changed */
	MISS_PORT,     /* some socket has taken or given up the port */
	MISS_PROCESS,  /* the owner has changed, or is just changing */
	MISS_SENDER,   /* another sends it, or it cannot be said who does */
	MISSES,
};

struct cache_counts {
	u64 accepted;
	u64 dropped;
	u64 untold; /* of these */
	u64 misses[MISSES];
};
_Static_assert(sizeof(struct cache_counts) == 88, "mirrored in src/layout.rs");

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
	__uint(max_entries, CHAINS);
	__type(key, u32);
	__type(value, struct cache_counts);
} cache_counts SEC(".maps");

/* Index: `doors`. Pinned beside them; each daemon puts its own programs here. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CHAINS * 2);
	__type(key, u32);
	__type(value, u32);
} cache_programs SEC(".maps");

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

struct skb_ext {
	u8 offset[1]; /* of each extension, in eight bytes; 0: there is none */
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	int skb_iif; /* 0: it was made here */
	unsigned long _skb_refdst;
	u8 ip_summed : 2;
	u8 active_extensions;
	struct skb_ext *extensions;
};

/* Since 6.7. */
struct nf_bridge_info___with_index {
	int physinif;
};

/* Before 6.7. */
struct nf_bridge_info___with_device {
	struct net_device *physindev;
};

enum skb_ext_id {
	SKB_EXT_BRIDGE_NF,
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
	struct ipv4_header ip;
	u32 start, length;
	u8 next[14]; /* TCP's up to the offset of its data. Even an empty datagram and its header have 28 bytes */

	if (bpf_skb_load_bytes(ctx, 0, &ip, sizeof(ip)))
		return 0;
	if (ip.version_length >> 4 == 4) {
		start = (ip.version_length & 15) * 4;
		length = bpf_ntohs(ip.length);
		if (start < sizeof(ip) || ip.fragment & bpf_htons(FRAGMENT))
			return 0;
		key->version = 4;
		key->protocol = ip.protocol;
		key->source[0] = ip.source;
		key->destination[0] = ip.destination;
	} else if (ip.version_length >> 4 == 6) {
		struct ipv6_header ip6;

		if (bpf_skb_load_bytes(ctx, 0, &ip6, sizeof(ip6)))
			return 0;
		start = sizeof(ip6);
		length = bpf_ntohs(ip6.length) + sizeof(ip6);
		key->version = 6;
		key->protocol = ip6.next;
		for (int i = 0; i < 4; i++) {
			key->source[i] = ip6.source[i];
			key->destination[i] = ip6.destination[i];
		}
	} else {
		return 0;
	}
	if (length != ctx->len)
		return 0;
	if (key->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(ctx, start, next, sizeof(next)) || (next[12] >> 4) * 4 < TCP_HEADER ||
		    start + (next[12] >> 4) * 4 > length)
			return 0;
	} else if (key->protocol != IPPROTO_UDP || bpf_skb_load_bytes(ctx, start, next, UDP_HEADER) ||
		   (u32)(next[4] << 8 | next[5]) != length - start) {
		return 0;
	}
	key->source_port = next[0] << 8 | next[1];
	key->destination_port = next[2] << 8 | next[3];
	return 1;
}

/* The port of a bridge by which a packet came that passes it, or 0. */
static __always_inline u32 bridge_port(struct sk_buff *packet)
{
	u32 id = bpf_core_enum_value(enum skb_ext_id, SKB_EXT_BRIDGE_NF);
	struct skb_ext *extensions;
	struct net_device *device;
	void *info;
	u8 offset;

	if (!bpf_core_enum_value_exists(enum skb_ext_id, SKB_EXT_BRIDGE_NF) ||
	    !(BPF_CORE_READ(packet, active_extensions) & 1 << id))
		return 0;
	extensions = BPF_CORE_READ(packet, extensions);
	if (bpf_probe_read_kernel(&offset, sizeof(offset), (u8 *)extensions + bpf_core_field_offset(extensions->offset) + id))
		return 0;
	info = (u8 *)extensions + offset * 8;
	if (bpf_core_field_exists(struct nf_bridge_info___with_index, physinif))
		return BPF_CORE_READ((struct nf_bridge_info___with_index *)info, physinif);
	device = BPF_CORE_READ((struct nf_bridge_info___with_device *)info, physindev);
	return device ? BPF_CORE_READ(device, ifindex) : 0;
}

#define LOOPBACK_INDEX 1 /* in every namespace */

/* Where it passes; false if that is not the daemon's namespace. What is routed through it is told by both devices: what is made
   here has no first, and the route of what stays here leads to the loopback device. */
static __always_inline bool read_place(struct __sk_buff *ctx, struct flow_key *key)
{
	struct sk_buff *packet = (struct sk_buff *)ctx;
	struct dst_entry *route = (struct dst_entry *)(BPF_CORE_READ(packet, _skb_refdst) & DST_POINTER);
	struct net_device *out = route ? BPF_CORE_READ(route, dev) : 0;
	u32 in = BPF_CORE_READ(packet, skb_iif);

	if (!out || BPF_CORE_READ(out, nd_net.net, ns.inum) != own_netns)
		return 0;
	key->out_device = BPF_CORE_READ(out, ifindex);
	if (in || key->chain != OUTPUT) {
		/* At these hooks it is still with the device by which it came. */
		struct net_device *device = BPF_CORE_READ(packet, dev);
		u32 port = bridge_port(packet);

		if (!device || BPF_CORE_READ(device, nd_net.net, ns.inum) != own_netns)
			return 0;
		key->in_device = port ? port : BPF_CORE_READ(device, ifindex);
		if (key->chain == INPUT && key->out_device == LOOPBACK_INDEX)
			key->out_device = 0;
	}
	return 1;
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

/* The call that is running is the owner's, as whom the answer was for. */
static __always_inline bool is_called_by(const volatile struct answer *answer)
{
	const struct cred *cred;
	struct task_struct *task;

	if ((u32)(bpf_get_current_pid_tgid() >> 32) != answer->owner)
		return 0;
	if (!(answer->depends & ON_USER))
		return 1;
	/* That the process is in another control group moves its standing. */
	task = (struct task_struct *)bpf_get_current_task();
	cred = BPF_CORE_READ(task, real_cred);
	return !BPF_CORE_READ(task, ptrace) && BPF_CORE_READ(cred, euid.val) == answer->uid &&
	       BPF_CORE_READ(cred, egid.val) == answer->gid;
}

/* Somebody holds the socket, and the datagram was begun in the call that sends it. */
static __always_inline bool sends_whole(struct __sk_buff *ctx)
{
	struct sock *sk = BPF_CORE_READ((struct sk_buff *)ctx, sk);

	return sk && BPF_CORE_READ(sk, sk_socket, file) && !BPF_CORE_READ((struct udp_sock *)sk, pending);
}

/* A raw socket that writes TCP's headers itself fills in the checksum, which TCP leaves to the device. */
static __always_inline bool is_tcps_own(struct __sk_buff *ctx)
{
	return BPF_CORE_READ_BITFIELD_PROBED((struct sk_buff *)ctx, ip_summed) == CHECKSUM_PARTIAL;
}

#define TCP_TIME_WAIT 6
#define TCP_NEW_SYN_RECV 12

/* Has `made` say who made the packet's socket, if nobody else can hold it. 0, or why not. */
static __always_inline int find_maker(struct __sk_buff *ctx, const struct flow_key *key, struct created_socket *made)
{
	u32 kind = key->protocol == IPPROTO_TCP ? CREATED_TCP : CREATED_UDP;
	const volatile struct wide *all = wide_slot();
	const volatile struct process_slot *slot;
	struct created_socket *known;
	struct bpf_sock *sk = ctx->sk;
	u64 cookie;

	if (!sk || !all)
		return MISS_SENDER;
	/* Two with the same ends may be bound to different devices. */
	if (sk->bound_dev_if || sk->state == TCP_TIME_WAIT || sk->state == TCP_NEW_SYN_RECV || sk->state == TCP_LISTEN)
		return MISS_SENDER;
	cookie = bpf_get_socket_cookie(ctx);
	known = bpf_map_lookup_elem(&sockets, &cookie);
	if (!known)
		return MISS_UNKNOWN;
	*made = *known;
	/* If a UDP socket does not share its port, no other has it, whatever its address. TCP's are told apart by their ends. */
	if ((made->flags & ~(kind == CREATED_TCP ? CREATED_SHARING : 0)) != kind)
		return MISS_SENDER;
	slot = process_slot(made->creator);
	if (!slot || all->in_flight || slot->in_flight || slot->unreliable_holders ||
	    slot->generation != made->process_generation || all->generation != made->wide_generation)
		return MISS_PROCESS;
	return 0;
}

/* The processes that an answer is about stand still, and it is theirs. 0, or why not. */
static __always_inline int moved(const volatile struct answer *answer)
{
	u32 depends = answer->depends, others = depends >> OTHERS_SHIFT & 7;
	u64 sum = 0;

	for (u32 i = 0; i <= OTHERS; i++) {
		const volatile struct process_slot *slot;

		if (i > others)
			break;
		slot = process_slot(i ? answer->others[(i - 1) & (OTHERS - 1)] : answer->owner);
		/* Before the generations: whatever came to be while none of these calls ran has moved them. */
		if (!slot || slot->in_flight || slot->image_in_flight || slot->standing_in_flight ||
		    slot->unreliable_holders || slot->unreliable_images)
			return MISS_PROCESS;
		sum += slot->image_generation + slot->shed_generation + slot->standing_generation;
		if (depends & ON_OWNERS)
			sum += slot->generation;
	}
	return sum == answer->process ? 0 : MISS_PROCESS;
}

/* 0, or why not. */
static __always_inline int stale(struct __sk_buff *ctx, const struct flow_key *key, const volatile struct answer *answer,
				 u64 epoch, const struct created_socket *made)
{
	const volatile struct wide *all = wide_slot();
	u32 depends = answer->depends;
	u64 machine;
	int miss;

	if (!all || all->in_flight)
		return MISS_MACHINE;
	machine = epoch + all->generation + all->file_epoch + all->tracers + all->links;
	if (depends & ON_CENSUS)
		machine += all->raw_sockets;
	if (machine != answer->machine)
		return MISS_MACHINE;
	if (depends & ON_OWNERS) {
		u32 port = key->chain == INPUT ? key->destination_port : key->source_port;
		const volatile u64 *generation = bpf_map_lookup_elem(&port_generations, &port);

		if (!generation || *generation != answer->port)
			return MISS_PORT;
	} else if (!(depends & ON_MAKER)) {
		return 0;
	} else if (made->creator_start / TICK != answer->start) {
		return MISS_PROCESS;
	}
	miss = moved(answer);
	if (miss)
		return miss;
	if (depends & ON_SENDER && !is_called_by(answer))
		return MISS_SENDER;
	/* The packet's own socket was found, and nobody but its maker ever had it: what is in it is its maker's. */
	if (depends & ON_MAKER)
		return 0;
	if (depends & ON_SENDER)
		return sends_whole(ctx) ? 0 : MISS_SENDER;
	if (key->chain == INPUT || depends & ON_CENSUS)
		return 0;
	return key->protocol == IPPROTO_TCP && is_tcps_own(ctx) ? 0 : MISS_SENDER;
}

struct question {
	struct flow_key key; /* of OF_FLOW */
	struct created_socket made;
	u64 now;
	u64 epoch;
	u64 secret;
	u32 kinds;
	u32 verdict;
};

#define HIT 0x10000	  /* and the index of the counter */
#define HIT_UNTOLD 0x20000 /* besides */
#define OTHER_VERDICT (-1)
#define BY_MAKER (1u << OF_MAKER | 1u << OF_MAKER_TO)

/* The answer of one kind: HIT, or why there is none. */
static __noinline int look_up(struct __sk_buff *ctx, struct question *question, u32 kind)
{
	struct flow_key key = {};
	int miss = MISS_UNKNOWN;
	u32 bucket;

	key.protocol = question->key.protocol;
	key.chain = question->key.chain;
	key.kind = kind;
	if (kind == OF_FLOW) {
		key = question->key;
		key.kind = kind;
	} else if (kind == OF_MAKER_TO || kind == TO) {
		for (u32 i = 0; i < 4; i++)
			key.destination[i] = question->key.destination[i];
		key.destination_port = question->key.destination_port;
		key.version = question->key.version;
		key.in_device = question->key.in_device;
		key.out_device = question->key.out_device;
	}
	if (kind == OF_MAKER || kind == OF_MAKER_TO)
		key.source[0] = question->made.creator;
	bucket = bucket_of(&key, question->secret);
	for (u32 way = 0; way < CACHE_WAYS; way++) {
		u32 index = bucket + way, verdict, hit;
		const volatile struct answer *answer = bpf_map_lookup_elem(&answers, &index);
		u64 sequence;

		if (!answer)
			break;
		sequence = answer->sequence;
		verdict = answer->verdict;
		if (sequence & 1 || !verdict || !same(&key, &answer->key))
			continue;
		if (answer->expires && question->now >= answer->expires)
			continue;
		hit = HIT | (answer->counter & (CACHE_COUNTERS - 1)) | (answer->depends & UNTOLD ? HIT_UNTOLD : 0);
		miss = stale(ctx, &question->key, answer, question->epoch, &question->made);
		/* Loads are in order on x86; the compiler is told to keep them so. */
		if (!miss && answer->sequence == sequence)
			return verdict == question->verdict ? (int)hit : OTHER_VERDICT;
		break;
	}
	return miss;
}

/* As HIT, or why the packet goes to the queue. */
static __always_inline int judge(struct __sk_buff *ctx, u8 chain, u32 verdict)
{
	struct question question = { .key = { .chain = chain }, .now = bpf_ktime_get_coarse_ns(), .verdict = verdict };
	u32 zero = 0;
	const volatile struct cache_control *control = bpf_map_lookup_elem(&cache_control, &zero);
	int miss = MISS_UNKNOWN, without_maker;

	/* The lease is looked at first: while it holds, what is read after was kept true. */
	if (!control || chain >= CHAINS || question.now >= control->lease)
		return MISS_LEASE;
	question.epoch = control->epoch;
	question.secret = control->secret;
	if (!read_headers(ctx, &question.key))
		return MISS_KIND;
	question.kinds = control->kinds[chain][question.key.protocol == IPPROTO_UDP];
	/* First what most packets find, for which it does not matter where they pass: a socket that is known by its maker is of the
	   daemon's namespace. */
	if (question.kinds & BY_MAKER) {
		without_maker = find_maker(ctx, &question.key, &question.made);
		if (without_maker) {
			question.kinds &= ~BY_MAKER;
			miss = without_maker;
		} else if (question.kinds & 1 << OF_MAKER) {
			int found = look_up(ctx, &question, OF_MAKER);

			if (found >= HIT || found == OTHER_VERDICT)
				return found;
			question.kinds &= ~(1 << OF_MAKER);
			miss = found;
		}
	}
	if (!read_place(ctx, &question.key))
		return MISS_PLACE;
	for (u32 kind = 0; kind < KINDS; kind++) {
		int found;

		if (!(question.kinds & 1 << kind))
			continue;
		found = look_up(ctx, &question, kind);
		if (found >= HIT || found == OTHER_VERDICT)
			return found;
		/* Why an answer does not hold tells more than that there is none of some kind. */
		if (found != MISS_UNKNOWN)
			miss = found;
	}
	return miss;
}

static __always_inline int judged(struct __sk_buff *ctx, u8 chain, u32 verdict)
{
	int found = judge(ctx, chain, verdict);
	struct cache_counts *counts;
	u32 which = chain;

	counts = bpf_map_lookup_elem(&cache_counts, &which);
	if (!counts)
		return 0;
	if (found >= HIT) {
		u32 index = found & (CACHE_COUNTERS - 1);
		struct cache_counter *counter = bpf_map_lookup_elem(&cache_counters, &index);

		if (counter && index) {
			__sync_fetch_and_add(&counter->packets, 1);
			__sync_fetch_and_add(&counter->bytes, (u64)ctx->len);
		}
		__sync_fetch_and_add(verdict == ACCEPTED ? &counts->accepted : &counts->dropped, 1);
		if (found & HIT_UNTOLD)
			__sync_fetch_and_add(&counts->untold, 1);
		return 1;
	}
	/* Both programs see a packet that misses. */
	if (verdict == ACCEPTED && found >= 0 && found < MISSES)
		__sync_fetch_and_add(&counts->misses[found], 1);
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

/* iptables knows the doors, which outlive the daemon; behind them are the programs of the daemon that runs, or nothing. */
#define PROGRAM(name, chain, verdict)                                                                                           \
	SEC("socket")                                                                                                           \
	int name(struct __sk_buff *ctx)                                                                                         \
	{                                                                                                                       \
		return judged(ctx, chain, verdict);                                                                             \
	}                                                                                                                       \
	SEC("socket")                                                                                                           \
	int name##_door(struct __sk_buff *ctx)                                                                                  \
	{                                                                                                                       \
		bpf_tail_call(ctx, &cache_programs, chain * 2 + verdict - 1);                                                   \
		return 0;                                                                                                       \
	}

PROGRAM(accept_output, OUTPUT, ACCEPTED)
PROGRAM(drop_output, OUTPUT, DROPPED)
PROGRAM(accept_input, INPUT, ACCEPTED)
PROGRAM(drop_input, INPUT, DROPPED)
PROGRAM(accept_forward, FORWARD, ACCEPTED)
PROGRAM(drop_forward, FORWARD, DROPPED)
