/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Sockets that come into being, take a port, and give it up.
 *
 * A port's generation moves before the port can belong to another socket (release, close) and, where a socket can take
 * a port that others have (bind, SO_REUSEADDR, SO_REUSEPORT, listen, connect), before the taker's first packet.
 */
#pragma once

#include "datagrams.h"
#include "maps.h"
#include "writers.h"

#define TCP_SYN_SENT 2
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define SOCK_RAW 3
#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define SO_REUSEPORT 15
#define SO_BINDTODEVICE 25
#define SO_BINDTOIFINDEX 62
#define PAGE_SIZE 4096
#define ALLOW 1

SEC("cgroup/sock_create")
int on_sock_create(struct bpf_sock *ctx)
{
	u64 cookie = bpf_get_socket_cookie(ctx); /* makes the kernel give the socket one */
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process_slot *slot = process_slot(tgid);
	struct wide *all = wide_slot();
	struct created_socket socket = {};

	if (!slot || !all)
		return ALLOW;
	/* A raw socket can send packets of anybody's: whoever found a flow's owners without it has to look again. It has
	   a count of its own, for it changes nothing about who holds what. */
	if (ctx->type == SOCK_RAW) {
		__sync_fetch_and_add(&all->raw_sockets, 1);
		socket.flags |= CREATED_RAW;
	}
	if (BPF_CORE_READ(task, files, count.counter) > BPF_CORE_READ(task, signal, live.counter))
		socket.flags |= CREATED_SHARED_TABLE;
	socket.flags |= kind_of((struct sock *)ctx);
	socket.creator = tgid;
	socket.creator_start = BPF_CORE_READ(task, group_leader, start_boottime);
	socket.process_generation = *(volatile u64 *)&slot->generation;
	socket.wide_generation = *(volatile u64 *)&all->generation;
	socket.lost_writers = *(volatile u64 *)&all->lost_writers;
	bpf_map_update_elem(&sockets, &cookie, &socket, BPF_ANY);
	return ALLOW;
}

/* The last close, before the protocol lets go of the port. The verifier does not let this hook read bpf_sock's port
   fields, but the context is the kernel's socket, and the probing read is allowed. A raw socket's "port" is its
   protocol: it moves a port for nothing.
   Not for TCP: a connection that is closed keeps its ends, and sends for those who held it, until its state becomes
   closed, which on_tcp_state sees; a socket that was only bound frees a port that its next owner must bind. */
SEC("cgroup/sock_release")
int on_sock_release(struct bpf_sock *ctx)
{
	struct sock *sk = (struct sock *)ctx;
	struct wide *all;
	u64 cookie;

	/* What it has sent and nobody has looked at is nobody's to be seen any more. */
	if (ctx->type == SOCK_RAW && (all = wide_slot()))
		__sync_fetch_and_add(&all->raw_sockets, 1);
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		return ALLOW;
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	forget_unfinished(cookie);
	/* A packet of a socket that is not there is nobody's to be believed. */
	bpf_map_delete_elem(&writers, &cookie);
	move_port(BPF_CORE_READ(sk, __sk_common.skc_num));
	return ALLOW;
}

SEC("cgroup/post_bind4")
int on_post_bind4(struct bpf_sock *ctx)
{
	move_port(ctx->src_port);
	return ALLOW;
}

SEC("cgroup/post_bind6")
int on_post_bind6(struct bpf_sock *ctx)
{
	move_port(ctx->src_port);
	return ALLOW;
}

/* Notes what connects from a port. Of two that write at once (the port in two namespaces, or towards two peers) one
   gives way; what the other writes is believed only by those who see its tuple in it. */
static __always_inline void note_connection(struct bpf_sock_ops *ctx, u32 port, u64 generation)
{
	struct connection *connection = bpf_map_lookup_elem(&connections, &port);
	u64 cookie = bpf_get_socket_cookie(ctx);
	struct created_socket *maker;
	struct bpf_sock *sk = ctx->sk;

	if (!connection)
		return;
	if (sk && sk->bound_dev_if)
		connection->ambiguous = 1;
	if (__sync_val_compare_and_swap(&connection->writer, 0, 1) != 0)
		return;
	__sync_lock_test_and_set(&connection->port_generation, 0);
	connection->netns_cookie = bpf_get_netns_cookie(ctx);
	connection->cookie = cookie;
	connection->remote_port = bpf_ntohl(ctx->remote_port);
	/* An IPv6 socket that connects to a mapped address sends IPv4, and its IPv6 source is not set yet. */
	if (ctx->family == AF_INET6 &&
	    (ctx->remote_ip6[0] || ctx->remote_ip6[1] || ctx->remote_ip6[2] != bpf_htonl(0xffff))) {
		connection->version = 6;
		connection->local[0] = ctx->local_ip6[0];
		connection->local[1] = ctx->local_ip6[1];
		connection->local[2] = ctx->local_ip6[2];
		connection->local[3] = ctx->local_ip6[3];
		connection->remote[0] = ctx->remote_ip6[0];
		connection->remote[1] = ctx->remote_ip6[1];
		connection->remote[2] = ctx->remote_ip6[2];
		connection->remote[3] = ctx->remote_ip6[3];
	} else {
		connection->version = 4;
		connection->local[0] = ctx->local_ip4;
		connection->remote[0] = ctx->remote_ip4;
	}
	maker = bpf_map_lookup_elem(&sockets, &cookie);
	if (maker)
		connection->maker = *maker;
	else
		connection->maker.creator = 0;
	__sync_lock_test_and_set(&connection->port_generation, generation);
	__sync_lock_test_and_set(&connection->writer, 0);
}

/* A connection that is bound to a device, before or after it was begun, does not keep others from having the same ends; and a
   socket that allows others to have its port is not the only one that a packet may belong to. Noted before it is so. */
SEC("cgroup/setsockopt")
int on_set_option(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct connection *connection;
	struct created_socket *made;
	u64 cookie;
	u32 port;

	/* The kernel shows no more than a page, and before 6.5 takes a longer option, as iptables sets, for a mistake of this
	   program's unless that says to leave it alone. */
	if (ctx->optlen > PAGE_SIZE)
		ctx->optlen = 0;
	if (!sk || ctx->level != SOL_SOCKET)
		return ALLOW;
	if (ctx->optname == SO_REUSEADDR || ctx->optname == SO_REUSEPORT) {
		cookie = BPF_CORE_READ((struct bpf_sockopt_kern *)ctx, sk, __sk_common.skc_cookie.counter);
		made = bpf_map_lookup_elem(&sockets, &cookie);
		if (made)
			__sync_fetch_and_or(&made->flags, CREATED_SHARING);
		return ALLOW;
	}
	if (ctx->optname != SO_BINDTODEVICE && ctx->optname != SO_BINDTOIFINDEX)
		return ALLOW;
	port = sk->src_port;
	connection = bpf_map_lookup_elem(&connections, &port);
	if (connection)
		connection->ambiguous = 1;
	return ALLOW;
}

/* TCP has taken a port for connect() and is about to send the SYN; no bind hook runs for a port the kernel chose.
   A socket that comes out of a handshake gets its cookie here, by which note_accepted() knows it. */
SEC("sockops")
int on_socket_op(struct bpf_sock_ops *ctx)
{
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_get_socket_cookie(ctx);
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		note_connection(ctx, ctx->local_port, move_port(ctx->local_port));
	return ALLOW;
}

/* inet_num is already 0 in a socket that has been closed; inet_sport is not. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_tcp_state, struct sock *sk, int oldstate, int newstate)
{
	struct inet_sock *inet = (struct inet_sock *)sk;
	u64 cookie;

	/* Data that go with the SYN (fast open) do not pass on_tcp_write. */
	if (newstate == TCP_SYN_SENT && BPF_CORE_READ((struct tcp_sock *)sk, fastopen_req))
		note_writer(sk);
	if (newstate == TCP_CLOSE || newstate == TCP_LISTEN)
		move_port(bpf_ntohs(BPF_CORE_READ(inet, inet_sport)));
	/* Nothing leaves it any more. */
	if (newstate == TCP_CLOSE && (cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter)))
		bpf_map_delete_elem(&writers, &cookie);
	return 0;
}

/* Before data is queued in a TCP socket, which may send them long after: when the peer opens its window, or to repeat
   them. Who wrote may hold the socket no more by then, or be another program. */
SEC("tp_btf/tcp_sendmsg_locked")
int BPF_PROG(on_tcp_write, struct sock *sk)
{
	note_writer(sk);
	return 0;
}
