// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The eBPF programs of app-fw, one object. README.md says for each why it is there and why it sits where it does.
 */
#include "kernel.h"

#include "maps.h"

#include "cache.h"
#include "calls.h"
#include "files.h"
#include "holders.h"
#include "links.h"
#include "processes.h"
#include "senders.h"
#include "sockets.h"

char license_text[] SEC("license") = "Dual BSD/GPL";
