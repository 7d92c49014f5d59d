/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * /dev/fido_arena: memory of this guest that it grants read-only to any number of other guests.
 *
 * One arena per open file: FIDO_ARENA_CREATE, then mmap of all of it from offset 0 (MAP_SHARED), then FIDO_ARENA_GRANT
 * for each reader, whose references any guest maps with the stock gntdev driver. Closing the file (and unmapping) takes
 * the arena back from all readers. Pages that a reader still maps then stay allocated until it lets go.
 *
 * All structures have the same layout for 32 and 64 bits. Reserved fields must be zero.
 */
#ifndef FIDO_ARENA_H
#define FIDO_ARENA_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FIDO_ARENA_VERSION 1
#define FIDO_ARENA_PAGE_BYTES 4096
/* More readers than this of one arena are refused (EMFILE). */
#define FIDO_ARENA_MAX_READERS 256

/*
 * Allocates zeroed pages. Once per open file.
 *
 * EPROTO: another version; EINVAL: no pages, or a reserved field; EFBIG: beyond the parameter max_arena_pages; ENOSPC:
 * beyond the parameter max_pages, all arenas of this guest together; EEXIST: done before; ENOMEM.
 */
struct fido_arena_create {
	__u32 version; /* FIDO_ARENA_VERSION */
	__u32 reserved;
	__u64 pages;
};

/*
 * Grants all pages, read-only, to a domain, which need not exist yet, and tells the references in the order of the
 * pages. All or nothing.
 *
 * ENODATA: no arena; EINVAL: a reserved domain or field, or a count that is not that of the pages; EEXIST: granted to it
 * already; EMFILE: too many readers; ENOSPC: this guest's grant table is full; EFAULT, EINTR, ENOMEM.
 */
struct fido_arena_grant {
	__u16 domain;
	__u16 reserved[3];
	__u64 count; /* room in refs, in entries: the number of pages */
	__u64 refs;  /* address of __u32[count], written */
};

/*
 * Takes the arena back from a domain. What it has mapped it can read until it unmaps (Xen has no way to force it); the
 * references are freed then.
 *
 * ENODATA: no arena; EINVAL: a reserved field; ENOENT: not granted to it.
 */
struct fido_arena_revoke {
	__u16 domain;
	__u16 reserved[3];
	__u64 mapped; /* written: pages that it still maps */
};

/*
 * Tells the frame numbers of pages, by which a privileged domain can map them without grants.
 *
 * ENODATA: no arena; EINVAL: outside of it; EFAULT.
 */
struct fido_arena_frames {
	__u64 first;
	__u64 count;
	__u64 frames; /* address of __u64[count], written */
};

#define FIDO_ARENA_CREATE _IOW(0xFD, 0, struct fido_arena_create)
#define FIDO_ARENA_GRANT _IOW(0xFD, 1, struct fido_arena_grant)
#define FIDO_ARENA_REVOKE _IOWR(0xFD, 2, struct fido_arena_revoke)
#define FIDO_ARENA_FRAMES _IOW(0xFD, 3, struct fido_arena_frames)

#endif
