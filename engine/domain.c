// SPDX-License-Identifier: GPL-2.0-only
/*
 * domain.c - whose memory may be shared with whose
 *
 * Whether a page is shared can be told by who maps it: by the time that a write takes, by what
 * /proc says, by how many pages KSM_MERGE_RANGE has merged. So where pages of two owners met, one
 * could guess what the other's hold and see the guess confirmed. They do not: each user's memory
 * is a domain of its own, which is part of the key of both indexes. Zero pages are no secret;
 * they are the kernel's.
 *
 * Who registers memory decides, by his effective user id as the kernel knows it: two containers
 * that map the same id to different ones outside are two users.
 */
#include <linux/hashtable.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "../include/charge.h"
#include "../include/hash.h"
#include "../include/region.h"

static bool one_domain;
module_param(one_domain, bool, 0444);
MODULE_PARM_DESC(one_domain,
		 "share between all users, who can then find out what others' memory holds");

static DEFINE_SPINLOCK(domains_lock);
/* A host of containers may have thousands of users. */
static DEFINE_HASHTABLE(domains, 8);

static struct domain *find_locked(u32 id)
{
	struct domain *domain;

	lockdep_assert_held(&domains_lock);
	hash_for_each_possible(domains, domain, node, id) {
		if (domain->id == id) {
			refcount_inc(&domain->ref);
			return domain;
		}
	}
	return NULL;
}

static struct domain *find(u32 id)
{
	struct domain *domain;

	spin_lock(&domains_lock);
	domain = find_locked(id);
	spin_unlock(&domains_lock);
	return domain;
}

/**
 * domain_get() - the domain of a user
 * @owner: the user
 *
 * Shared pages outlive their domain, for as long as they are mapped. So its number is the user's,
 * and no other domain ever has it.
 *
 * Context: Process; memory is charged to its cgroup.
 * Return: the domain with a reference, or NULL if there is no memory.
 */
struct domain *domain_get(kuid_t owner)
{
	u32 id = one_domain ? 0 : __kuid_val(owner);
	struct domain *domain = find(id), *new;

	if (domain)
		return domain;
	new = kzalloc(sizeof(*new), GFP_TENANT);
	if (!new)
		return NULL;
	refcount_set(&new->ref, 1);
	new->id = id;
	new->zero = hash_page(ZERO_PAGE(0), id);
	new->zero_sample = hash_sample(ZERO_PAGE(0), id);
	new->tour.regions = RB_ROOT;
	new->tour.tree = TREE_DOMAIN;
	new->tour.looked = INITIAL_JIFFIES;
	spin_lock(&domains_lock);
	domain = find_locked(id);
	if (!domain)
		hash_add(domains, &new->node, id);
	spin_unlock(&domains_lock);
	if (!domain)
		return new;
	kfree(new);
	return domain;
}

/**
 * domain_put() - drop a reference to a domain
 * @domain: the domain
 *
 * Context: Any; regions_lock may be held.
 */
void domain_put(struct domain *domain)
{
	bool last;

	spin_lock(&domains_lock);
	last = refcount_dec_and_test(&domain->ref);
	if (last)
		hash_del(&domain->node);
	spin_unlock(&domains_lock);
	if (last) {
		samples_free(domain);
		kfree(domain);
	}
}
