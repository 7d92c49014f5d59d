// SPDX-License-Identifier: GPL-2.0
/*
 * fido_arena: memory of this guest that it grants read-only to any number of other guests. fido_arena.h says what user
 * space sees.
 *
 * Who holds what:
 *   - an open file has at most one struct fido_pages and a list of readers, all under its mutex;
 *   - struct fido_pages is reference counted: by its file, and by every reader, present or leaving. Only when the last
 *     of them is gone are the pages freed, so no page is reused while a grant for it exists;
 *   - user mappings hold the file, and each page on its own: when release runs there are none;
 *   - a reader from whom the arena is taken back leaves: grants that it does not use end at once; for those that it has
 *     mapped it goes to the reaper's list, under fido_leaving_lock, and the reaper tries again until all have ended.
 *   - open files hold the module, so when it is removed there are leaving readers only. What they still map is handed
 *     to the kernel's own list of deferred grants, each with its page.
 *
 * Lock order: a file's mutex, then fido_leaving_lock. Grants survive neither migration nor save and restore of the
 * guest (nor do those of any frontend); the owner has to be started again then.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <xen/grant_table.h>
#include <xen/interface/xen.h>
#include <xen/page.h>
#include <xen/xen.h>

#include "fido_arena.h"

/* How many pages are worked on before others get the processor, and how many numbers are copied at once. */
#define FIDO_BATCH 512

static ulong max_arena_pages = 1UL << 18;
module_param(max_arena_pages, ulong, 0644);
MODULE_PARM_DESC(max_arena_pages, "The most pages of one arena (default 262144: 1 GiB)");

static ulong max_pages;
module_param(max_pages, ulong, 0644);
MODULE_PARM_DESC(max_pages, "The most pages of all arenas together (default: three quarters of the memory)");

static bool unprivileged;
module_param(unprivileged, bool, 0644);
MODULE_PARM_DESC(unprivileged, "Let whoever can open the device use it, without CAP_SYS_ADMIN (default: no)");

static uint reap_ms = 100;
module_param(reap_ms, uint, 0644);
MODULE_PARM_DESC(reap_ms, "Milliseconds between two looks at pages that a reader still maps (default 100)");

/* Read-only, for those who look for leaks: pages allocated, and grants that wait for a reader to let go. */
static atomic_long_t fido_pages_now = ATOMIC_LONG_INIT(0);
static atomic_long_t fido_leaving_now = ATOMIC_LONG_INIT(0);

static int fido_get_counter(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(param->arg));
}

static const struct kernel_param_ops fido_counter_ops = { .get = fido_get_counter };
module_param_cb(pages_now, &fido_counter_ops, &fido_pages_now, 0444);
MODULE_PARM_DESC(pages_now, "Pages allocated now (read-only)");
module_param_cb(leaving_now, &fido_counter_ops, &fido_leaving_now, 0444);
MODULE_PARM_DESC(leaving_now, "Grants taken back that a reader still uses (read-only)");

struct fido_pages {
	struct kref kref;
	unsigned long count;
	struct page *page[];
};

struct fido_grant {
	grant_ref_t ref;
	u32 page; /* its index */
};

struct fido_reader {
	struct list_head list;
	struct fido_pages *pages;
	domid_t domain;
	unsigned long count; /* grants that have not ended; they come first in the array */
	struct fido_grant *grant;
};

struct fido_file {
	struct mutex lock; /* all below */
	struct fido_pages *pages;
	struct list_head readers;
	unsigned int readers_count;
};

static LIST_HEAD(fido_leaving);
static DEFINE_MUTEX(fido_leaving_lock);
static void fido_reap(struct work_struct *work);
static DECLARE_DELAYED_WORK(fido_reaper, fido_reap);

/* ---- pages ---- */

static void fido_pages_free(struct kref *kref)
{
	struct fido_pages *pages = container_of(kref, struct fido_pages, kref);
	unsigned long i;

	for (i = 0; i < pages->count; i++) {
		put_page(pages->page[i]);
		if (i % FIDO_BATCH == FIDO_BATCH - 1)
			cond_resched();
	}
	atomic_long_sub(pages->count, &fido_pages_now);
	kvfree(pages);
}

static void fido_pages_put(struct fido_pages *pages)
{
	kref_put(&pages->kref, fido_pages_free);
}

/* Counts pages before they are allocated, so that two at once cannot both be the last to fit. */
static bool fido_charge(unsigned long count)
{
	long now = atomic_long_add_return(count, &fido_pages_now);

	if (now > 0 && (unsigned long)now <= READ_ONCE(max_pages))
		return true;
	atomic_long_sub(count, &fido_pages_now);
	return false;
}

static struct fido_pages *fido_pages_alloc(unsigned long count)
{
	struct fido_pages *pages;

	if (!fido_charge(count))
		return ERR_PTR(-ENOSPC);
	pages = kvzalloc(struct_size(pages, page, count), GFP_KERNEL_ACCOUNT);
	if (!pages) {
		atomic_long_sub(count, &fido_pages_now);
		return ERR_PTR(-ENOMEM);
	}
	kref_init(&pages->kref);
	for (pages->count = 0; pages->count < count; pages->count++) {
		/* Rather fail than have somebody killed for it. */
		struct page *page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);

		if (!page || fatal_signal_pending(current)) {
			if (page)
				put_page(page);
			/* What fido_pages_free will not take off. */
			atomic_long_sub(count - pages->count, &fido_pages_now);
			fido_pages_put(pages);
			return ERR_PTR(page ? -EINTR : -ENOMEM);
		}
		pages->page[pages->count] = page;
		if (pages->count % FIDO_BATCH == FIDO_BATCH - 1)
			cond_resched();
	}
	return pages;
}

/* ---- readers ---- */

/* Ends what can be ended of a reader's grants and moves the others to the front. */
static void fido_end_grants(struct fido_reader *reader)
{
	unsigned long i, left = 0;

	for (i = 0; i < reader->count; i++) {
		if (!gnttab_try_end_foreign_access(reader->grant[i].ref))
			reader->grant[left++] = reader->grant[i];
		if (i % FIDO_BATCH == FIDO_BATCH - 1)
			cond_resched();
	}
	reader->count = left;
}

static void fido_reader_free(struct fido_reader *reader)
{
	fido_pages_put(reader->pages);
	kvfree(reader->grant);
	kfree(reader);
}

static void fido_wake_reaper(void)
{
	queue_delayed_work(system_long_wq, &fido_reaper, msecs_to_jiffies(max(READ_ONCE(reap_ms), 1u)));
}

/* Takes the arena back from a reader that is on no list. Frees it, now or later. Returns how many pages it maps. */
static unsigned long fido_leave(struct fido_reader *reader)
{
	unsigned long left;

	fido_end_grants(reader);
	left = reader->count;
	if (!left) {
		fido_reader_free(reader);
		return 0;
	}
	atomic_long_add(left, &fido_leaving_now);
	mutex_lock(&fido_leaving_lock);
	list_add_tail(&reader->list, &fido_leaving);
	mutex_unlock(&fido_leaving_lock);
	fido_wake_reaper();
	return left;
}

static void fido_reap(struct work_struct *work)
{
	struct fido_reader *reader, *next;
	LIST_HEAD(now);
	bool again;

	mutex_lock(&fido_leaving_lock);
	list_splice_init(&fido_leaving, &now);
	mutex_unlock(&fido_leaving_lock);
	list_for_each_entry_safe(reader, next, &now, list) {
		unsigned long before = reader->count;

		fido_end_grants(reader);
		atomic_long_sub(before - reader->count, &fido_leaving_now);
		if (!reader->count) {
			list_del(&reader->list);
			fido_reader_free(reader);
		}
	}
	mutex_lock(&fido_leaving_lock);
	list_splice(&now, &fido_leaving);
	again = !list_empty(&fido_leaving);
	mutex_unlock(&fido_leaving_lock);
	if (again)
		fido_wake_reaper();
}

static struct fido_reader *fido_find_reader(struct fido_file *file, domid_t domain)
{
	struct fido_reader *reader;

	list_for_each_entry(reader, &file->readers, list)
		if (reader->domain == domain)
			return reader;
	return NULL;
}

/* A reader with all pages granted to it, or an error, with none. */
static struct fido_reader *fido_grant_pages(struct fido_pages *pages, domid_t domain)
{
	struct fido_reader *reader = kzalloc(sizeof(*reader), GFP_KERNEL_ACCOUNT);
	int ref = 0;

	if (!reader)
		return ERR_PTR(-ENOMEM);
	reader->grant = kvmalloc_array(pages->count, sizeof(*reader->grant), GFP_KERNEL_ACCOUNT);
	if (!reader->grant) {
		kfree(reader);
		return ERR_PTR(-ENOMEM);
	}
	kref_get(&pages->kref);
	reader->pages = pages;
	reader->domain = domain;
	while (reader->count < pages->count) {
		unsigned long i = reader->count;

		ref = gnttab_grant_foreign_access(domain, xen_page_to_gfn(pages->page[i]), 1);
		if (ref < 0)
			break;
		reader->grant[i] = (struct fido_grant){ .ref = ref, .page = i };
		reader->count++;
		if (i % FIDO_BATCH == FIDO_BATCH - 1) {
			cond_resched();
			if (fatal_signal_pending(current)) {
				ref = -EINTR;
				break;
			}
		}
	}
	if (ref < 0) {
		/* The domain may have guessed a reference and mapped it already. */
		fido_leave(reader);
		return ERR_PTR(ref);
	}
	return reader;
}

static int fido_tell_refs(const struct fido_reader *reader, u32 __user *to)
{
	u32 *refs = kmalloc_array(FIDO_BATCH, sizeof(*refs), GFP_KERNEL);
	unsigned long done = 0;
	int err = 0;

	if (!refs)
		return -ENOMEM;
	while (done < reader->count && !err) {
		unsigned long i, count = min(reader->count - done, (unsigned long)FIDO_BATCH);

		for (i = 0; i < count; i++)
			refs[i] = reader->grant[done + i].ref;
		if (copy_to_user(to + done, refs, count * sizeof(*refs)))
			err = -EFAULT;
		done += count;
		cond_resched();
	}
	kfree(refs);
	return err;
}

/* ---- what user space asks for; the file's mutex is held ---- */

static long fido_create(struct fido_file *file, void __user *arg)
{
	struct fido_arena_create create;
	struct fido_pages *pages;

	if (copy_from_user(&create, arg, sizeof(create)))
		return -EFAULT;
	if (create.version != FIDO_ARENA_VERSION)
		return -EPROTO;
	if (!create.pages || create.reserved)
		return -EINVAL;
	/* Indexes are 32 bits, and user mappings count in unsigned long. */
	if (create.pages > READ_ONCE(max_arena_pages) || create.pages > INT_MAX)
		return -EFBIG;
	if (file->pages)
		return -EEXIST;
	pages = fido_pages_alloc(create.pages);
	if (IS_ERR(pages))
		return PTR_ERR(pages);
	/* Pairs with the load in fido_mmap: the pages are all there before they can be seen. */
	smp_store_release(&file->pages, pages);
	return 0;
}

static long fido_grant(struct fido_file *file, void __user *arg)
{
	struct fido_arena_grant grant;
	struct fido_reader *reader;
	int err;

	if (copy_from_user(&grant, arg, sizeof(grant)))
		return -EFAULT;
	if (!file->pages)
		return -ENODATA;
	if (grant.domain >= DOMID_FIRST_RESERVED || memchr_inv(grant.reserved, 0, sizeof(grant.reserved)) ||
	    grant.count != file->pages->count)
		return -EINVAL;
	if (fido_find_reader(file, grant.domain))
		return -EEXIST;
	if (file->readers_count >= FIDO_ARENA_MAX_READERS)
		return -EMFILE;
	reader = fido_grant_pages(file->pages, grant.domain);
	if (IS_ERR(reader))
		return PTR_ERR(reader);
	err = fido_tell_refs(reader, u64_to_user_ptr(grant.refs));
	if (err) {
		fido_leave(reader);
		return err;
	}
	list_add_tail(&reader->list, &file->readers);
	file->readers_count++;
	return 0;
}

static long fido_revoke(struct fido_file *file, void __user *arg)
{
	struct fido_arena_revoke revoke;
	struct fido_reader *reader;

	if (copy_from_user(&revoke, arg, sizeof(revoke)))
		return -EFAULT;
	if (!file->pages)
		return -ENODATA;
	if (memchr_inv(revoke.reserved, 0, sizeof(revoke.reserved)))
		return -EINVAL;
	reader = fido_find_reader(file, revoke.domain);
	if (!reader)
		return -ENOENT;
	list_del(&reader->list);
	file->readers_count--;
	revoke.mapped = fido_leave(reader);
	return copy_to_user(arg, &revoke, sizeof(revoke)) ? -EFAULT : 0;
}

static long fido_frames(struct fido_file *file, void __user *arg)
{
	struct fido_arena_frames ask;
	u64 __user *to;
	u64 i, end;

	if (copy_from_user(&ask, arg, sizeof(ask)))
		return -EFAULT;
	if (!file->pages)
		return -ENODATA;
	if (check_add_overflow(ask.first, ask.count, &end) || end > file->pages->count)
		return -EINVAL;
	to = u64_to_user_ptr(ask.frames);
	for (i = 0; i < ask.count; i++) {
		if (put_user((u64)xen_page_to_gfn(file->pages->page[ask.first + i]), to + i))
			return -EFAULT;
		if (i % FIDO_BATCH == FIDO_BATCH - 1) {
			cond_resched();
			if (fatal_signal_pending(current))
				return -EINTR;
		}
	}
	return 0;
}

/* ---- the device ---- */

static long fido_ioctl(struct file *filp, unsigned int command, unsigned long arg)
{
	struct fido_file *file = filp->private_data;
	void __user *argument = (void __user *)arg;
	long result;

	if (mutex_lock_killable(&file->lock))
		return -EINTR;
	switch (command) {
	case FIDO_ARENA_CREATE:
		result = fido_create(file, argument);
		break;
	case FIDO_ARENA_GRANT:
		result = fido_grant(file, argument);
		break;
	case FIDO_ARENA_REVOKE:
		result = fido_revoke(file, argument);
		break;
	case FIDO_ARENA_FRAMES:
		result = fido_frames(file, argument);
		break;
	default:
		result = -ENOTTY;
	}
	mutex_unlock(&file->lock);
	return result;
}

static int fido_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct fido_file *file = filp->private_data;
	struct fido_pages *pages;

	/*
	 * The caller holds the mmap lock, which copies to and from user space take while the file's mutex is held: so no
	 * mutex here. The pointer is set once (release: fido_create), and what it points to lives as long as the file,
	 * which this mapping holds.
	 */
	pages = smp_load_acquire(&file->pages);
	if (!pages)
		return -ENODATA;
	if (!(vma->vm_flags & VM_SHARED) || vma->vm_pgoff || vma_pages(vma) != pages->count)
		return -EINVAL;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND);
#else
	vma->vm_flags |= VM_DONTCOPY | VM_DONTEXPAND;
#endif
	/* Takes a reference to each page. */
	return vm_map_pages(vma, pages->page, pages->count);
}

static int fido_open(struct inode *inode, struct file *filp)
{
	struct fido_file *file;

	if (!READ_ONCE(unprivileged) && !capable(CAP_SYS_ADMIN))
		return -EPERM;
	file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	mutex_init(&file->lock);
	INIT_LIST_HEAD(&file->readers);
	filp->private_data = file;
	return 0;
}

static int fido_release(struct inode *inode, struct file *filp)
{
	struct fido_file *file = filp->private_data;
	struct fido_reader *reader, *next;

	list_for_each_entry_safe(reader, next, &file->readers, list) {
		list_del(&reader->list);
		fido_leave(reader);
	}
	if (file->pages)
		fido_pages_put(file->pages);
	mutex_destroy(&file->lock);
	kfree(file);
	return 0;
}

static const struct file_operations fido_fops = {
	.owner = THIS_MODULE,
	.open = fido_open,
	.release = fido_release,
	.unlocked_ioctl = fido_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = fido_mmap,
	.llseek = noop_llseek,
};

static struct miscdevice fido_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "fido_arena",
	.fops = &fido_fops,
	.mode = 0600,
};

static int __init fido_init(void)
{
	int err;

	BUILD_BUG_ON(PAGE_SIZE != XEN_PAGE_SIZE || PAGE_SIZE != FIDO_ARENA_PAGE_BYTES);
	if (!xen_domain()) {
		pr_err("this is no Xen guest\n");
		return -ENODEV;
	}
	if (!max_pages)
		max_pages = totalram_pages() / 4 * 3;
	err = misc_register(&fido_device);
	if (err)
		pr_err("the device cannot be registered: %d\n", err);
	return err;
}

/* Hands what readers still map to the kernel's own list of deferred grants, each with its page. */
static void __exit fido_exit(void)
{
	struct fido_reader *reader, *next;
	unsigned long i;

	misc_deregister(&fido_device);
	/* No file is open, so nobody adds to the list or wakes the reaper but itself. */
	cancel_delayed_work_sync(&fido_reaper);
	list_for_each_entry_safe(reader, next, &fido_leaving, list) {
		list_del(&reader->list);
		for (i = 0; i < reader->count; i++) {
			struct page *page = reader->pages->page[reader->grant[i].page];

			/* The kernel drops this reference when the grant has ended. */
			get_page(page);
			gnttab_end_foreign_access(reader->grant[i].ref, page);
		}
		fido_reader_free(reader);
	}
}

module_init(fido_init);
module_exit(fido_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The Fido developers");
MODULE_DESCRIPTION("Memory of a Xen guest, granted read-only to any number of other guests");
MODULE_VERSION("1");
