/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the kernel side shares with the daemon: the arrays of generations, the socket table, the events. src/layout.rs
 * mirrors every value and asserts the same sizes.
 *
 * Arrays are indexed by a hash of the thing, never by the thing: they are bounded, cannot fill, and need no clean-up.
 * Two things that share a slot make each other's answers miss, which costs speed and never truth.
 */
#pragma once

#include "kernel.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* Inode number of the daemon's network namespace. */
const volatile u32 own_netns;

#define SOCK_STREAM 1
#define SOCK_DGRAM 2

#define PROCESS_SLOTS 65536
#define PORTS 65536
#define FILE_SLOTS 131072
#define SOCKETS 131072
#define WRITTEN_SOCKETS 131072
#define UNFINISHED_DATAGRAMS 16384
#define IN_FLIGHT_THREADS 65536
#define EVENT_BYTES (1 << 20)
#define CHANGE_BYTES (1 << 21)

/* Index: tgid (in the initial pid namespace) modulo PROCESS_SLOTS. */
struct process_slot {
	u64 generation;	     /* of what it holds, and of its coming and going */
	u64 exec_generation; /* the generation since which the process runs its program; 0: no exec was seen */
	u64 image_generation; /* of what it is made of */
	u64 shed_generation;  /* moves with it when something executable went */
	u64 standing_generation; /* of whose it is: user, group, control group */
	u64 standing_since;	 /* `generation` since which that is so; 0: no change was seen */
	s32 in_flight;	      /* calls that move `generation`, begun and not ended */
	s32 image_in_flight;  /* calls that move `image_generation` */
	/* Processes that can change without a call that we see, see `distrusted`. */
	u32 unreliable_holders;
	u32 unreliable_images;
	s32 standing_in_flight; /* calls that move `standing_generation` */
	u32 padding;
};
_Static_assert(sizeof(struct process_slot) == 72, "mirrored in src/layout.rs");
#define UNRELIABLE_HOLDER 1u
#define UNRELIABLE_IMAGE 2u

/* Index: inode number modulo FILE_SLOTS. */
struct file_slot {
	u32 watched; /* set by the daemon */
	u32 generation;
};
_Static_assert(sizeof(struct file_slot) == 8, "mirrored in src/layout.rs");

struct wide {
	u64 generation;	  /* moves when it cannot be said whose answers went stale */
	u64 file_epoch;	  /* moves with the generation of any watched file slot */
	u64 lost_events;  /* events for which the ring had no room */
	u64 raw_sockets;  /* moves when a SOCK_RAW socket is made or closed; answers about senders depend on it */
	u64 lost_writers; /* writers for which `writers` had no room */
	u64 changes;	  /* told of in the ring, or lost: counted before a place is asked for */
	u64 lost_changes; /* changes for which the ring had no room */
	u64 tracers;	  /* moves when somebody has begun to trace a process other than itself */
	u64 unfinished;	  /* entries of `unfinished` */
	u64 lost_unfinished; /* datagrams for which it had no room */
	u64 links;	  /* moves with every change of a network device of the daemon's namespace */
	s32 in_flight;	  /* calls in flight that may change any process */
	u32 padding;
};
_Static_assert(sizeof(struct wide) == 96, "mirrored in src/layout.rs");

/* Key: socket cookie. */
struct created_socket {
	u32 creator; /* tgid */
	u32 flags;   /* CREATED_* */
	u64 creator_start; /* start_boottime of the thread group leader, ns */
	u64 process_generation;
	u64 wide_generation;
	u64 lost_writers; /* as in struct wide: what was lost later may be this socket's */
};
_Static_assert(sizeof(struct created_socket) == 40, "mirrored in src/layout.rs");
#define CREATED_RAW 1u
#define CREATED_SHARED_TABLE 2u
#define CREATED_TCP 4u /* of TCP, in the daemon's network namespace */
#define CREATED_UDP 8u /* of UDP, there */
#define CREATED_SHARING 16u /* it may share its port with others */

/* The last TCP connection that was begun from a port, for as long as the port's generation is the one written here.
   Index: local port, host order. An IPv4 address is in the first word; addresses are in network order. */
struct connection {
	u64 port_generation; /* 0: never written, or being written */
	u64 netns_cookie;
	u64 cookie;
	struct created_socket maker; /* creator 0: not known */
	u32 local[4];
	u32 remote[4];
	u32 remote_port; /* host order */
	u32 version;	 /* of IP: 4 or 6 */
	u64 writer;	 /* 1 while somebody writes */
	u64 ambiguous;	 /* not of the connection: 1 if a TCP socket with this port was ever bound to a device, so that two may have
			    the same ends */
};
_Static_assert(sizeof(struct connection) == 120, "mirrored in src/layout.rs");

/* Processes that wrote into a TCP socket, or in other network namespaces than the daemon's sent through any. Key: the socket's
   cookie. */
#define WRITERS 4
struct writers {
	u32 count; /* more than WRITERS: the others are not known */
	u32 padding;
	struct writer {
		u32 tgid; /* 0: being written */
		u32 padding;
		u64 start; /* start_boottime of the thread group leader, ns */
		u64 wrote; /* its exec_generation when it first wrote */
	} writers[WRITERS];
};
_Static_assert(sizeof(struct writers) == 104, "mirrored in src/layout.rs");

/* Who was running when a packet was queued. Index: number of the queue modulo SENDER_QUEUES, times SENDER_SLOTS, plus the
   packet's id modulo SENDER_SLOTS, which is more than a queue may hold. */
struct sender {
	u32 packet; /* its id in the queue */
	u32 queue;
	u32 tgid;
	u32 flags; /* SENDER_* */
	u64 start;   /* start_boottime of the thread group leader, ns */
	u64 image_generation;
	u64 shed_generation;
	u64 raw_sockets;
	u64 wide_generation;
	u64 cgroup; /* of version 2, that of the process: its id */
	u32 uid;    /* effective, of the thread that ran */
	u32 gid;
	u64 links;
};
_Static_assert(sizeof(struct sender) == 80, "mirrored in src/layout.rs");
#define SENDER_SETTLED 1u /* nothing was changing what it is made of */
#define SENDER_TRACED 2u  /* the thread that ran is traced */
#define SENDER_SHARED 4u  /* others may have the same address space */
#define SENDER_FINISHED 8u /* the datagram was, or may have been, begun by somebody else, or by a former program */
#define SENDER_QUEUES 4
#define SENDER_SLOTS 32768

enum event_kind { EVENT_EXEC = 1, EVENT_PACKET_SOCKET = 2, EVENT_XDP_SOCKET = 3 };

struct event {
	u32 kind;
	u32 tgid;
	u64 start; /* start_boottime of the thread group leader, ns */
	u32 netns; /* EVENT_*_SOCKET: inode number of the network namespace */
	u32 padding;
};
_Static_assert(sizeof(struct event) == 24, "mirrored in src/layout.rs");

/* A mapped file, as it was when it was mapped. Times in nanoseconds. */
struct object {
	u64 inode;
	u64 size;
	u64 mtime;
	u64 ctime;
	u32 device;	     /* as the kernel writes it: 12 bits, 20 bits */
	u32 file_generation; /* of its slot, read before the rest */
	u64 magic;	     /* of its file system */
};

/* What became of what a process is made of. Who reads all of them knows what it was made of when it has ended. */
enum change_kind {
	CHANGE_PROGRAM = 1, /* it runs the object, and is made of nothing else */
	CHANGE_OBJECT = 2,  /* the object too */
	CHANGE_NOTHING = 3, /* only its generation moved */
	CHANGE_UNCLEAR = 4, /* it is made of something else */
	CHANGE_FORK = 5,    /* it begins, made of what another is made of */
	CHANGE_END = 6,	    /* it has ended */
};

struct change {
	u32 kind;
	u32 tgid;
	u64 start;	      /* start_boottime of the thread group leader, ns */
	u64 image_generation; /* after it */
	u64 parent_start;     /* fork */
	u32 parent;	      /* fork: tgid */
	u32 flags;	      /* CHANGE_* */
	struct object object;
};
_Static_assert(sizeof(struct change) == 88, "mirrored in src/layout.rs");
#define CHANGE_SHARED 1u /* others may have the same address space, and the same change */
#define CHANGE_NEWS 2u	 /* nobody has watched the object yet */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PROCESS_SLOTS);
	__type(key, u32);
	__type(value, struct process_slot);
} process_slots SEC(".maps");

/* Index: local port, host order. All protocols and network namespaces share it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PORTS);
	__type(key, u32);
	__type(value, u64);
} port_generations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SENDER_QUEUES * SENDER_SLOTS);
	__type(key, u32);
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, PORTS);
	__type(key, u32);
	__type(value, struct connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FILE_SLOTS);
	__type(key, u32);
	__type(value, struct file_slot);
} file_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct wide);
} wide SEC(".maps");

/* Least recently used entries make room: sockets that are gone need no release to be forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SOCKETS);
	__type(key, u64);
	__type(value, struct created_socket);
} sockets SEC(".maps");

/* Must not forget, so it can be full: see `lost_writers`. Its memory is there from the start: every connection needs an
   entry for a moment. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, WRITTEN_SOCKETS);
	__type(key, u64);
	__type(value, struct writers);
} writers SEC(".maps");

/* UNRELIABLE_* of a process, until it ends. Key: tgid. What does not fit is distrusted for good. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PROCESS_SLOTS);
	__type(key, u32);
	__type(value, u32);
} distrusted SEC(".maps");

/* Who put data into a datagram that is not sent yet (MSG_MORE, UDP_CORK). Key: socket cookie. */
struct beginner {
	u32 tgid;
	u32 mixed;  /* nonzero: others too */
	u64 start;  /* start_boottime of the thread group leader, ns */
	u64 exec_generation;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, UNFINISHED_DATAGRAMS);
	__type(key, u64);
	__type(value, struct beginner);
} unfinished SEC(".maps");

/* Key: pid_tgid of a thread in a watched call. Value: IN_FLIGHT_* and the slot that was counted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, IN_FLIGHT_THREADS);
	__type(key, u64);
	__type(value, u32);
} in_flight_threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENT_BYTES);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CHANGE_BYTES);
} image_changes SEC(".maps");

/* Read by probes where a pointer leads on: a walk through pointers that the verifier trusts costs it a search of all type names for
   each step on each path, together a second of every start. */
static __always_inline u64 start_of(const struct task_struct *task)
{
	return BPF_CORE_READ(task, group_leader, start_boottime);
}

/* CREATED_* of what a socket is. */
static __always_inline u32 kind_of(const struct sock *sk)
{
	u16 protocol = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_protocol), type = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type);

	if (BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum) != own_netns)
		return 0;
	if (protocol == IPPROTO_TCP && type == SOCK_STREAM)
		return CREATED_TCP;
	return protocol == IPPROTO_UDP && type == SOCK_DGRAM ? CREATED_UDP : 0;
}

/* How many of its threads have not ended. */
static __always_inline int threads_of(const struct task_struct *task)
{
	return BPF_CORE_READ(task, signal, live.counter);
}

/* A locked add is a full barrier on x86: what the kernel did before the hook is visible to whoever sees the new
   value. */
static __always_inline void move(u64 *generation)
{
	__sync_fetch_and_add(generation, 1);
}

static __always_inline struct wide *wide_slot(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&wide, &zero);
}

static __always_inline void move_wide(void)
{
	struct wide *all = wide_slot();

	if (all)
		move(&all->generation);
}

static __always_inline struct process_slot *process_slot(u32 tgid)
{
	u32 index = tgid & (PROCESS_SLOTS - 1);

	return bpf_map_lookup_elem(&process_slots, &index);
}

static __always_inline void move_process(u32 tgid)
{
	struct process_slot *slot = process_slot(tgid);

	if (slot)
		move(&slot->generation);
}

/* What the process made by now is the work of another program than what it makes from now on. The mark comes before the
   generation: who sees the new generation sees the mark too. */
static __always_inline void begin_program(struct process_slot *slot)
{
	*(volatile u64 *)&slot->exec_generation = *(volatile u64 *)&slot->generation + 1;
	move(&slot->generation);
}

/* Whose the process is has changed, or may have. What it made by now was perhaps somebody else's: the mark comes before the
   generations, as above. */
static __always_inline void move_standing(struct process_slot *slot)
{
	*(volatile u64 *)&slot->standing_since = *(volatile u64 *)&slot->generation + 1;
	move(&slot->generation);
	move(&slot->standing_generation);
}

/* It became another process, or another program. */
static __always_inline void move_image(u32 tgid)
{
	struct process_slot *slot = process_slot(tgid);

	if (!slot)
		return;
	move(&slot->shed_generation);
	move(&slot->image_generation);
}

/* The mark comes before the generations: who sees a new one sees the mark too. */
static __always_inline void distrust_process(u32 tgid, u32 what)
{
	struct process_slot *slot = process_slot(tgid);
	u32 *known = bpf_map_lookup_elem(&distrusted, &tgid), news = what;

	if (!slot)
		return;
	/* If another thread was quicker: what it has counted must not be counted twice, for its end is counted once. */
	if (!known && bpf_map_update_elem(&distrusted, &tgid, &what, BPF_NOEXIST))
		known = bpf_map_lookup_elem(&distrusted, &tgid);
	if (known)
		news &= ~__sync_fetch_and_or(known, what);
	if (news & UNRELIABLE_HOLDER)
		__sync_fetch_and_add(&slot->unreliable_holders, 1);
	if (news & UNRELIABLE_IMAGE)
		__sync_fetch_and_add(&slot->unreliable_images, 1);
	if (what & UNRELIABLE_HOLDER)
		move(&slot->generation);
	if (what & UNRELIABLE_IMAGE) {
		move(&slot->shed_generation);
		move(&slot->image_generation);
	}
}

/* Returns the new generation. */
static __always_inline u64 move_port(u16 port)
{
	u32 index = port;
	u64 *generation = bpf_map_lookup_elem(&port_generations, &index);

	return generation ? __sync_fetch_and_add(generation, 1) + 1 : 0;
}

static __always_inline void tell(u32 kind, u32 tgid, u64 start, u32 netns)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	struct wide *all;

	if (event) {
		event->kind = kind;
		event->tgid = tgid;
		event->start = start;
		event->netns = netns;
		event->padding = 0;
		bpf_ringbuf_submit(event, 0);
		return;
	}
	all = wide_slot();
	if (all)
		__sync_fetch_and_add(&all->lost_events, 1);
}
