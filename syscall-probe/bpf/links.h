/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Changes of network devices.
 */
#pragma once

#include "maps.h"

#define KEEP_NONE 0

/* A filter on a netlink socket that listens to RTNLGRP_LINK. It runs in the call that changes a device, where the message is handed
   over; that there was one is all that matters. */
SEC("socket")
int on_link(struct __sk_buff *message)
{
	struct wide *all = wide_slot();

	(void)message;
	if (all)
		move(&all->links);
	return KEEP_NONE;
}
