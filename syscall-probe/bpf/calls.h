/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * System calls that change what a process is made of, whose it is, or who holds a socket.
 *
 * A generation moved at the end of the call alone would be late: another thread can use a mapping, and another process
 * a descriptor, before the call returns. So a watched call counts as *in flight* from its start to its end, and while
 * it is nothing derived from the process may be used or kept.
 *
 * Seen here and not as single tracepoint/syscalls/NAME programs: those cost the same on every system call and miss
 * 32-bit calls (int 0x80).
 */
#pragma once

#include "images.h"
#include "maps.h"

#define PROT_READ 1
#define PROT_EXEC 4
#define SHM_EXEC 0100000
#define SHM_REMAP 040000
#define MREMAP_FIXED 2
#define READ_IMPLIES_EXEC 0x0400000
#define MAP_FIXED 0x10
#define PR_SET_MM 35
#define TS_COMPAT 2		   /* arch/x86/include/asm/thread_info.h: the call came by a 32-bit entry */
#define X32_SYSCALL_BIT 0x40000000
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17
#define AF_XDP 44
#define SOCK_PACKET 10		   /* with AF_INET: what AF_PACKET was before Linux 2.2, and the kernel still makes it */
#define SOCK_TYPE_MASK 0xf
#define SOCK_BINDPORT_LOCK 8	   /* include/net/sock.h: the port was asked for by bind(), not chosen by the kernel */
/* Numbers without the size field, as the kernel's own switch compares them. */
#define IOC_SIZE_MASK 0x3fff0000u
#define SECCOMP_NOTIF_ADDFD 0x40002103u
#define BINDER_WRITE_READ 0xc0006201u
#define SOCKETCALL_SOCKET 1
#define SOCKETCALL_CONNECT 3
#define SOCKETCALL_ACCEPT 5
#define SOCKETCALL_SENDMSG 16
#define SOCKETCALL_ACCEPT4 18
#define SOCKETCALL_SENDMMSG 20
#define IPC_SHMAT 21
#define IPC_SHMDT 22
#define PTRACE_TRACEME 0
#define PTRACE_ATTACH 16
#define PTRACE_SEIZE 0x4206

/* What a watched call does; kept with the slot it was counted in while it is in flight. */
#define IN_FLIGHT_SLOT 0x0000ffffu
#define IN_FLIGHT_PROCESS 0x00010000u  /* changes or gives away what the calling process holds */
#define IN_FLIGHT_MAPPING 0x00020000u  /* may map something executable */
#define IN_FLIGHT_IMAGE 0x00100000u    /* changes what the calling process is made of */
#define IN_FLIGHT_SHED 0x00200000u     /* ... by taking something away */
#define IN_FLIGHT_WIDE 0x00040000u     /* may change processes other than the caller */
#define IN_FLIGHT_UNSEEN 0x00080000u   /* what follows needs no further call: never trust the process again */
#define IN_FLIGHT_TRACER 0x00400000u   /* may begin to trace another process */
#define IN_FLIGHT_EXEC 0x00800000u     /* may make the process another program */
#define IN_FLIGHT_USER 0x01000000u     /* may make the process another user's */
#define CHANGES_STANDING (IN_FLIGHT_USER | IN_FLIGHT_EXEC)
_Static_assert(IN_FLIGHT_SLOT == PROCESS_SLOTS - 1, "a slot fits its field");

/* A library has four or five mappings side by side. */
#define MAPPINGS_LOOKED_AT 8

struct unmapped {
	unsigned long end; /* of the mapping that was found */
	bool executable;
};

static long look_at_mapping(struct task_struct *task, struct vm_area_struct *mapping, struct unmapped *found)
{
	found->end = mapping->vm_end;
	found->executable = mapping->vm_flags & VM_EXEC;
	return 0;
}

/* Processes that share the address space (clone(CLONE_VM), vfork) change with the caller, and nothing here knows which they
   are. Threads that live, not all that /proc counts: that includes a first thread that has ended. A reader of /proc/PID/maps
   also counts as a user for a moment: then the wide generation moves for nothing. */
static __always_inline u32 of_whoever_shares(struct task_struct *task)
{
	return BPF_CORE_READ(task, mm, mm_users.counter) > threads_of(task) ? IN_FLIGHT_WIDE : 0;
}

static __always_inline u32 sheds_something(struct task_struct *task)
{
	return IN_FLIGHT_IMAGE | IN_FLIGHT_SHED | of_whoever_shares(task);
}

/* Whether something executable goes when these addresses are unmapped, mapped anew or no longer executable. What cannot
   be told (another thread holds the lock of the mappings, there is a hole, there are many) counts as if it did: that
   costs a look at the process. */
static __always_inline u32 sheds_executable(struct task_struct *task, unsigned long start, unsigned long length)
{
	struct unmapped found = {};
	unsigned long end = start + length;

	if (!BPF_CORE_READ(task, mm) || end < start)
		return 0;
	for (int i = 0; i < MAPPINGS_LOOKED_AT; i++) {
		if (bpf_find_vma(task, start, look_at_mapping, &found, 0) || found.executable)
			break;
		if (found.end >= end)
			return 0;
		start = found.end;
	}
	return sheds_something(task);
}

static __always_inline u32 maps_executable(struct task_struct *task, unsigned long prot)
{
	if (prot & PROT_EXEC)
		goto mapping;
	if ((prot & PROT_READ) && (task->personality & READ_IMPLIES_EXEC))
		goto mapping;
	return 0;
mapping:
	return IN_FLIGHT_IMAGE | IN_FLIGHT_MAPPING | of_whoever_shares(task);
}

/* Takes the place of what is mapped there, and may be executable itself. */
static __always_inline u32 maps(struct task_struct *task, unsigned long start, unsigned long length, unsigned long prot,
				unsigned long flags)
{
	return maps_executable(task, prot) | (flags & MAP_FIXED ? sheds_executable(task, start, length) : 0);
}

static __always_inline u32 protects(struct task_struct *task, unsigned long start, unsigned long length,
				    unsigned long prot)
{
	return prot & PROT_EXEC ? maps_executable(task, prot)
				: maps_executable(task, prot) | sheds_executable(task, start, length);
}

static __always_inline u32 attaches_executable(struct task_struct *task, unsigned long flags)
{
	return maps_executable(task, flags & SHM_EXEC ? PROT_EXEC : PROT_READ) |
	       (flags & SHM_REMAP ? sheds_something(task) : 0);
}

/* What is moved is gone where it was, and so is what was there where it goes. */
static __always_inline u32 moves_mapping(struct task_struct *task, unsigned long from, unsigned long length,
					 unsigned long flags)
{
	return flags & MREMAP_FIXED ? sheds_something(task) : sheds_executable(task, from, length);
}

static __always_inline u32 sets_break(struct task_struct *task, unsigned long to)
{
	unsigned long from = BPF_CORE_READ(task, mm) ? BPF_CORE_READ(task, mm, brk) : 0;

	/* A heap that grows is executable where everything readable is. */
	return to ? maps_executable(task, PROT_READ) | (to < from ? sheds_executable(task, to, from - to) : 0) : 0;
}

static __always_inline struct file *file_of(struct task_struct *task, u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	struct file *file = 0;

	if (fd >= BPF_CORE_READ(table, max_fds) || bpf_probe_read_kernel(&file, sizeof(file), files + fd))
		return 0;
	return file;
}

static __always_inline struct sock *socket_in(struct file *file)
{
	struct socket *socket;

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	/* Null for a socket's path opened with O_PATH; reading through null gives null. */
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

static __always_inline struct sock *socket_of(struct task_struct *task, u32 fd)
{
	return socket_in(file_of(task, fd));
}

/* References of an open file, the reader's own included. Since 6.13 they are stored less one. Not inlined: what a kernel
   lacks must stay behind the question whether it has it, and the compiler moves it out of loops. */
static __noinline u64 references(struct file *file)
{
	struct file___with_ref *with_ref = (void *)file;
	struct file___with_count *with_count = (void *)file;

	if (bpf_core_field_exists(with_ref->f_ref))
		return BPF_CORE_READ(with_ref, f_ref.refcnt.counter) + 1;
	return BPF_CORE_READ(with_count, f_count.counter);
}

/* Who got a socket from accept() is to it what a maker is to others, if nobody else can hold it yet: its open file has
   one reference, this descriptor's. The generations are read first: whoever passes it on afterwards moves them. The
   kernel gave the socket its cookie at the end of the handshake (on_socket_op). */
static __always_inline void note_accepted(struct task_struct *task, long fd)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process_slot *slot = process_slot(tgid);
	struct created_socket accepted = {};
	struct wide *all = wide_slot();
	struct file *file;
	struct sock *sk;
	u64 cookie;

	if (fd < 0 || !slot || !all)
		return;
	accepted.creator = tgid;
	accepted.creator_start = start_of(task);
	accepted.process_generation = *(volatile u64 *)&slot->generation;
	accepted.wide_generation = *(volatile u64 *)&all->generation;
	accepted.lost_writers = *(volatile u64 *)&all->lost_writers;
	if (BPF_CORE_READ(task, files, count.counter) > threads_of(task))
		accepted.flags |= CREATED_SHARED_TABLE;
	file = file_of(task, fd);
	sk = socket_in(file);
	if (!sk || references(file) != 1)
		return;
	accepted.flags |= kind_of(sk);
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (cookie)
		bpf_map_update_elem(&sockets, &cookie, &accepted, BPF_NOEXIST);
}

/* Only AF_UNIX sockets carry descriptors (the kernel's __scm_send). Whether this message does is in user memory,
   where another thread can change it after we look: every message counts. */
static __always_inline u32 passes_descriptors(struct task_struct *task, u32 fd)
{
	struct sock *sk = socket_of(task, fd);

	return sk && BPF_CORE_READ(sk, __sk_common.skc_family) == AF_UNIX ? IN_FLIGHT_PROCESS : 0;
}

/* connect(AF_UNSPEC) on a datagram socket gives a port chosen by the kernel back, with no hook of its own and the
   socket still open. The address is in user memory: every connect() of a datagram socket that has such a port
   counts. A fresh one (DNS look-ups) has none yet. */
static __always_inline u32 gives_up_port(struct task_struct *task, u32 fd)
{
	struct sock *sk = socket_of(task, fd);
	u16 family;

	if (!sk || BPF_CORE_READ_BITFIELD_PROBED(sk, sk_type) != SOCK_DGRAM)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (!BPF_CORE_READ(sk, __sk_common.skc_num))
		return 0;
	if (BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		return 0;
	return IN_FLIGHT_PROCESS;
}

/* A seccomp supervisor installs a descriptor of its own in its target; binder sends descriptors like a Unix socket. */
static __always_inline u32 installs_descriptors(u32 command)
{
	command &= ~IOC_SIZE_MASK;
	return command == SECCOMP_NOTIF_ADDFD || command == BINDER_WRITE_READ ? IN_FLIGHT_PROCESS : 0;
}

/* Who begins to trace can do nothing with that before its call ends, so it is early enough to tell then. Whom it traces
   is a number in a pid namespace, of a thread: it is not looked up, every process counts as changed. */
static __always_inline u32 begins_to_trace(unsigned long request)
{
	if (request == PTRACE_TRACEME)
		return IN_FLIGHT_IMAGE;
	return request == PTRACE_ATTACH || request == PTRACE_SEIZE ? IN_FLIGHT_TRACER : 0;
}

/* Numbers from arch/x86/entry/syscalls/syscall_64.tbl; 512 and up are x32's own, to be had with and (before 5.4)
   without its bit. */
static __always_inline u32 changes_64(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	switch (nr) {
	case 9: /* mmap */
		return maps(task, regs->di, regs->si, regs->dx, regs->r10);
	case 10:  /* mprotect */
	case 329: /* pkey_mprotect */
		return protects(task, regs->di, regs->si, regs->dx);
	case 11: /* munmap */
		return sheds_executable(task, regs->di, regs->si);
	case 12: /* brk */
		return sets_break(task, regs->di);
	case 25: /* mremap */
		return moves_mapping(task, regs->di, regs->si, regs->r10);
	case 207: /* io_destroy: unmaps whatever is where the kernel put its ring */
		return sheds_something(task);
	case 59:  /* execve: the new program's mappings come long before sched_process_exec tells of it */
	case 322: /* execveat */
	case 520: /* execve of x32 */
	case 545: /* execveat of x32 */
		return IN_FLIGHT_IMAGE | IN_FLIGHT_SHED | IN_FLIGHT_EXEC;
	case 105: case 106: /* setuid, setgid */
	case 113: case 114: /* setreuid, setregid */
	case 117: case 119: /* setresuid, setresgid */
	case 122: case 123: /* setfsuid, setfsgid */
		return IN_FLIGHT_USER;
	case 67: /* shmdt: how long the segment is nobody says */
		return sheds_something(task);
	case 30: /* shmat */
		return attaches_executable(task, regs->dx);
	case 134: /* uselib */
		return maps_executable(task, PROT_EXEC);
	case 157: /* prctl */
		return (u32)regs->di == PR_SET_MM ? maps_executable(task, PROT_EXEC) : 0;
	case 101: /* ptrace */
	case 521: /* x32 ptrace */
		return begins_to_trace(regs->di);
	case 46:  /* sendmsg */
	case 307: /* sendmmsg */
	case 518: /* x32 sendmsg */
	case 538: /* x32 sendmmsg */
		return passes_descriptors(task, regs->di);
	case 42: /* connect */
		return gives_up_port(task, regs->di);
	case 16:  /* ioctl */
	case 514: /* x32 ioctl */
		return installs_descriptors(regs->si);
	case 425: /* io_uring_setup */
	case 426: /* io_uring_enter */
	case 427: /* io_uring_register */
		return IN_FLIGHT_UNSEEN;
	case 438: /* pidfd_getfd */
		return IN_FLIGHT_PROCESS | IN_FLIGHT_WIDE;
	}
	return 0;
}

/* Numbers from arch/x86/entry/syscalls/syscall_32.tbl. */
static __always_inline u32 changes_32(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	u32 call = regs->bx;

	switch (nr) {
	case 11:  /* execve */
	case 358: /* execveat */
		return IN_FLIGHT_IMAGE | IN_FLIGHT_SHED | IN_FLIGHT_EXEC;
	case 23: case 46: case 213: case 214:	/* setuid, setgid; each once with 16 bits, once with 32 */
	case 70: case 71: case 203: case 204:	/* setreuid, setregid */
	case 164: case 170: case 208: case 210: /* setresuid, setresgid */
	case 138: case 139: case 215: case 216: /* setfsuid, setfsgid */
		return IN_FLIGHT_USER;
	case 90: /* mmap: its arguments are in user memory */
		return maps_executable(task, PROT_EXEC) | IN_FLIGHT_SHED;
	case 86: /* uselib */
		return maps_executable(task, PROT_EXEC);
	case 192: /* mmap2 */
		return maps(task, call, regs->cx, regs->dx, regs->si);
	case 125: /* mprotect */
	case 380: /* pkey_mprotect */
		return protects(task, call, regs->cx, regs->dx);
	case 91: /* munmap */
		return sheds_executable(task, call, regs->cx);
	case 45: /* brk */
		return sets_break(task, call);
	case 163: /* mremap */
		return moves_mapping(task, call, regs->cx, regs->si);
	case 246: /* io_destroy */
		return sheds_something(task);
	case 398: /* shmdt */
		return sheds_something(task);
	case 397: /* shmat */
		return attaches_executable(task, regs->dx);
	case 117: /* ipc: the version is in the upper half */
		if ((call & 0xffff) == IPC_SHMDT)
			return sheds_something(task);
		return (call & 0xffff) == IPC_SHMAT ? maps_executable(task, PROT_EXEC) | sheds_something(task) : 0;
	case 172: /* prctl */
		return call == PR_SET_MM ? maps_executable(task, PROT_EXEC) : 0;
	case 26: /* ptrace */
		return begins_to_trace(call);
	case 370: /* sendmsg */
	case 345: /* sendmmsg */
		return passes_descriptors(task, call);
	case 362: /* connect */
		return gives_up_port(task, call);
	case 102: /* socketcall: the descriptor is in user memory */
		if (call == SOCKETCALL_CONNECT || call == SOCKETCALL_SENDMSG || call == SOCKETCALL_SENDMMSG)
			return IN_FLIGHT_PROCESS;
		return 0;
	case 54: /* ioctl */
		return installs_descriptors(regs->cx);
	case 425: /* io_uring_setup */
	case 426: /* io_uring_enter */
	case 427: /* io_uring_register */
		return IN_FLIGHT_UNSEEN;
	case 438: /* pidfd_getfd */
		return IN_FLIGHT_PROCESS | IN_FLIGHT_WIDE;
	}
	return 0;
}

/* The numbers of both tables. It runs on every system call of the machine, so it looks at the number and at nothing
   else; which table the number is from is found out for the few that pass. */
static __always_inline bool watched(u32 nr)
{
	switch (nr) {
	case 9: case 10: case 11: case 12: case 16: case 23: case 25: case 26: case 30: case 42: case 45: case 46:
	case 54: case 59: case 67: case 70: case 71: case 86: case 90: case 91: case 101: case 102: case 105: case 106:
	case 113: case 114: case 117: case 119: case 122: case 123: case 125: case 134: case 138: case 139: case 157:
	case 163: case 164: case 170: case 172: case 192: case 203: case 204: case 207: case 208: case 210: case 213:
	case 214: case 215: case 216: case 246: case 307: case 322: case 329: case 345: case 358: case 362: case 370:
	case 380: case 397: case 398: case 425: case 426: case 427: case 438: case 514: case 518: case 520: case 521:
	case 538: case 545:
		return 1;
	}
	return 0;
}

static __always_inline u32 changes(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	return task->thread_info.status & TS_COMPAT ? changes_32(task, regs, nr) : changes_64(task, regs, nr);
}

static __always_inline void begin(u32 what)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 note = (thread >> 32 & IN_FLIGHT_SLOT) | what;
	struct process_slot *slot = process_slot(thread >> 32);
	struct wide *all = wide_slot();

	if (!slot || !all)
		return;
	if (what & IN_FLIGHT_UNSEEN) {
		distrust_process(thread >> 32, UNRELIABLE_HOLDER);
		return;
	}
	/* Whoever sees the new program's mappings, which come before on_exec, sees that what was made by now is a former
	   program's. If the call fails, its packets are in doubt for a moment for nothing. */
	if (what & IN_FLIGHT_EXEC)
		begin_program(slot);
	/* Without a note the end of the call would not be counted, so neither is its start. A note that is already
	   there was left by a call whose end was missed: it cannot happen, and if it does the count is no longer to
	   be believed. A wide call without a note cannot be awaited; then everything that is derived while it runs
	   must be distrusted, which only the table of 65536 running calls can cause. */
	if (bpf_map_update_elem(&in_flight_threads, &thread, &note, BPF_NOEXIST)) {
		if (what & (IN_FLIGHT_WIDE | IN_FLIGHT_TRACER)) {
			__sync_fetch_and_add(&all->in_flight, 1);
			move(&all->generation);
		}
		distrust_process(thread >> 32, UNRELIABLE_HOLDER | UNRELIABLE_IMAGE);
		return;
	}
	if (what & IN_FLIGHT_PROCESS) {
		__sync_fetch_and_add(&slot->in_flight, 1);
		move(&slot->generation);
	}
	if (what & IN_FLIGHT_IMAGE) {
		__sync_fetch_and_add(&slot->image_in_flight, 1);
		if (what & IN_FLIGHT_SHED)
			move(&slot->shed_generation);
		move(&slot->image_generation);
	}
	if (what & CHANGES_STANDING) {
		__sync_fetch_and_add(&slot->standing_in_flight, 1);
		move_standing(slot);
	}
	if (what & IN_FLIGHT_WIDE) {
		__sync_fetch_and_add(&all->in_flight, 1);
		move(&all->generation);
	}
}

/* The end of a call has two steps, and what it changed is told between them. Generations move before the counts fall: who
   sees nothing in flight sees the new generation too. And what was told came before: a child that is forked when
   nothing is in flight begins with all that its parent is made of. */
static __always_inline void move_at_end(u32 note)
{
	struct process_slot *slot = process_slot(note & IN_FLIGHT_SLOT);
	struct wide *all = wide_slot();

	if (!slot || !all)
		return;
	if (note & IN_FLIGHT_TRACER)
		__sync_fetch_and_add(&all->tracers, 1);
	if (note & IN_FLIGHT_WIDE)
		move(&all->generation);
	if (note & IN_FLIGHT_PROCESS)
		move(&slot->generation);
	if (note & CHANGES_STANDING)
		move_standing(slot);
	if (note & IN_FLIGHT_SHED)
		move(&slot->shed_generation);
	if (note & IN_FLIGHT_IMAGE)
		move(&slot->image_generation);
}

static __always_inline void count_end(u64 thread, u32 note)
{
	struct process_slot *slot = process_slot(note & IN_FLIGHT_SLOT);
	struct wide *all = wide_slot();

	if (!slot || !all)
		return;
	if (note & IN_FLIGHT_WIDE)
		__sync_fetch_and_add(&all->in_flight, -1);
	if (note & IN_FLIGHT_PROCESS)
		__sync_fetch_and_add(&slot->in_flight, -1);
	if (note & IN_FLIGHT_IMAGE)
		__sync_fetch_and_add(&slot->image_in_flight, -1);
	if (note & CHANGES_STANDING)
		__sync_fetch_and_add(&slot->standing_in_flight, -1);
	bpf_map_delete_elem(&in_flight_threads, &thread);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_sys_enter, struct pt_regs *regs, long id)
{
	u32 nr = (u32)id & ~X32_SYSCALL_BIT;
	u32 what;

	if (!watched(nr))
		return 0;
	what = changes(bpf_get_current_task_btf(), regs, nr);
	if (what)
		begin(what);
	return 0;
}

static __always_inline bool accepts(struct task_struct *task, struct pt_regs *regs, u32 nr)
{
	if (!(task->thread_info.status & TS_COMPAT))
		return nr == 43 || nr == 288; /* accept, accept4 */
	if (nr == 102)
		return regs->bx == SOCKETCALL_ACCEPT || regs->bx == SOCKETCALL_ACCEPT4;
	return nr == 364; /* accept4 */
}

static __always_inline bool is_exec(struct task_struct *task, u32 nr)
{
	if (task->thread_info.status & TS_COMPAT)
		return nr == 11 || nr == 358;
	return nr == 59 || nr == 322 || nr == 520 || nr == 545;
}

/* What a call that has ended made of the process. */
static __always_inline void tell_call(struct task_struct *task, struct pt_regs *regs, u32 nr, u32 note, long ret)
{
	u32 shared = !!(note & IN_FLIGHT_WIDE);

	/* What fails may have been done in part; not so an exec that returns, nor a mapping in a free place. */
	if ((unsigned long)ret >= -4095UL)
		tell_change(is_exec(task, nr) || (nr == 9 && !(note & IN_FLIGHT_SHED)) ? CHANGE_NOTHING : CHANGE_UNCLEAR,
			    task, shared);
	else if ((note & IN_FLIGHT_SHED) || (task->thread_info.status & TS_COMPAT))
		tell_change(CHANGE_UNCLEAR, task, shared);
	else if (nr == 9) /* mmap */
		tell_mapped(task, ret, 0, shared);
	else if (nr == 10 || nr == 329) /* mprotect, pkey_mprotect */
		tell_mapped(task, regs->di, regs->di + regs->si, shared);
	else
		tell_change(CHANGE_UNCLEAR, task, shared);
}

/* What event a call that ends has to be told by if it made a socket that passes beside netfilter, which no cgroup hook
   sees; else 0. The arguments of socketcall are in user memory, so there the new descriptor tells. */
static __always_inline u32 bypass_socket_made(struct task_struct *task, struct pt_regs *regs, u32 nr, long fd)
{
	bool is_32 = task->thread_info.status & TS_COMPAT;
	u32 family, type;

	if (fd < 0)
		return 0;
	if (nr == 41 && !is_32) {
		family = regs->di;
		type = regs->si;
	} else if (nr == 359 && is_32) {
		family = regs->bx;
		type = regs->cx;
	} else if (nr == 102 && is_32 && regs->bx == SOCKETCALL_SOCKET) {
		family = BPF_CORE_READ(socket_of(task, fd), __sk_common.skc_family);
		type = 0;
	} else {
		return 0;
	}
	if (family == AF_XDP)
		return EVENT_XDP_SOCKET;
	if (family == AF_PACKET || (family == AF_INET && (type & SOCK_TYPE_MASK) == SOCK_PACKET))
		return EVENT_PACKET_SOCKET;
	return 0;
}

/* What ends is what was noted at the start: descriptors and registers may be others by now. */
SEC("tp_btf/sys_exit")
int BPF_PROG(on_sys_exit, struct pt_regs *regs, long ret)
{
	u32 nr = (u32)regs->orig_ax & ~X32_SYSCALL_BIT;
	struct task_struct *task;
	u64 thread;
	u32 *found, note;

	if (nr == 43 || nr == 102 || nr == 288 || nr == 364) {
		task = bpf_get_current_task_btf();
		if (accepts(task, regs, nr))
			note_accepted(task, ret);
	}
	if (nr == 41 || nr == 102 || nr == 359) {
		task = bpf_get_current_task_btf();
		u32 kind = bypass_socket_made(task, regs, nr, ret);

		if (kind)
			tell(kind, task->tgid, start_of(task), BPF_CORE_READ(task, nsproxy, net_ns, ns.inum));
	}
	if (!watched(nr))
		return 0;
	thread = bpf_get_current_pid_tgid();
	found = bpf_map_lookup_elem(&in_flight_threads, &thread);
	if (!found)
		return 0;
	note = *found;
	move_at_end(note);
	if (note & IN_FLIGHT_IMAGE)
		tell_call(bpf_get_current_task_btf(), regs, nr, note, ret);
	count_end(thread, note);
	return 0;
}

/*
 * Run once over all threads, after the two programs above were attached: a call that began before them is not counted
 * in flight, and a ring that was set up, or a descriptor table that was shared, before them is not known. All make their
 * process one not to be trusted. The
 * registers of a thread that is in user mode are those of its last call; such a process is distrusted for nothing.
 */
SEC("iter/task")
int distrust_running(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct files_struct *files;
	struct pt_regs *regs;
	u32 nr, what;

	if (!task || !BPF_CORE_READ(task, mm))
		return 0;
	files = BPF_CORE_READ(task, files);
	/* Who shared a descriptor table before on_fork was there. */
	if (task->io_uring || files != BPF_CORE_READ(task, group_leader, files) ||
	    BPF_CORE_READ(files, count.counter) != threads_of(task))
		distrust_process(task->tgid, UNRELIABLE_HOLDER);
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	nr = (u32)regs->orig_ax & ~X32_SYSCALL_BIT;
	if (!watched(nr))
		return 0;
	/* What takes away leaves the process seeming to be made of more than it is, not of less. */
	what = changes(task, regs, nr);
	if (what & (IN_FLIGHT_PROCESS | IN_FLIGHT_UNSEEN))
		distrust_process(task->tgid, UNRELIABLE_HOLDER);
	if (what & (IN_FLIGHT_MAPPING | IN_FLIGHT_USER))
		distrust_process(task->tgid, UNRELIABLE_IMAGE);
	return 0;
}
