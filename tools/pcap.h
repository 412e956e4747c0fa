/*
 * Packet captures: the files of tcpdump and its like, pcap (micro- and nanoseconds, both byte orders) and pcapng, read here without
 * libpcap: a header of 16 bytes a packet is less than a dependency, and what is wrong is told with its offset.
 */
#ifndef NEAR_TOOLS_PCAP_H
#define NEAR_TOOLS_PCAP_H

#include "source.h"
#include "streams.h"

/* Whether a file that begins so is one. */
bool pcap_begins(const unsigned char *bytes, size_t size);
/* All packets; `n` bytes of the source are in `first` already.  False after complaining. */
bool pcap_read(struct source *source, const void *first, size_t n, struct streams *streams);

#endif
