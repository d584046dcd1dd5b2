// SPDX-License-Identifier: GPL-2.0-only
/*
 * candidates.c - engine/chunk.c and engine/index.c, against a list that is gone over each time
 *
 * Random slots of random chunks, in three domains, become candidates, stop being some, ask for
 * others like themselves; windows grow, chunks and regions go, numbers are used again. The dumb twin
 * has an array with the state of each slot, and looks at all of it. There are 16 fingerprints, of
 * which four share a chain until the table has grown. All of this also happens between two steps of
 * that growing, and with allocations that fail.
 */
#include "unit.h"

#include "../../include/engine.h"
#include "../../include/index.h"
#include "../../include/region.h"
#include "../../include/shared.h"

#define DOMAINS		3
#define REGIONS		6
#define CHUNKS		3	/* of each region */
#define ROUNDS		40
#define STEPS		25000
/* So many of them become candidates unasked, so that no chain is cut short. */
#define FEW		48

/* What a slot should be. */
struct twin {
	struct chunk *chunk;
	unsigned int id, first, count;
	u8 state[CHUNK_SLOTS];
	u64 fingerprint[CHUNK_SLOTS];
	u16 seen[CHUNK_SLOTS];
};

static struct domain domains[DOMAINS];
static struct ksmdev_area area;
static struct mm_struct mm;
static struct region *regions[REGIONS];
static struct twin twins[REGIONS][CHUNKS];
static unsigned int candidates;
static unsigned long found_some, found_none, moved_on;
/* @moving: the table's work goes on. */
static bool few, moving;

void region_get(struct region *region)
{
	kref_get(&region->ref);
}

static void region_free(struct kref *ref)
{
	kfree(container_of(ref, struct region, ref));
}

void region_put(struct region *region)
{
	kref_put(&region->ref, region_free);
}

void shared_lost_mapper(void)
{
}

/* Which bucket of the smallest table it is in is said by the rest and by two of the upper bits. */
static u64 any_fingerprint(void)
{
	u32 any = unit_below(16);

	return fingerprint_of((any >> 1 & 1) | any >> 2 << 2, any & 1);
}

static unsigned long address(unsigned int c)
{
	return (c + 1) * CHUNK_SIZE;
}

static struct region *new_region(unsigned int r)
{
	unsigned int fails = unit_fails;
	struct region *region;

	unit_fails = 0;
	region = kzalloc(sizeof(*region), 0);
	unit_fails = fails;
	kref_init(&region->ref);
	region->area = &area;
	region->domain = &domains[r % DOMAINS];
	region->mm = &mm;
	region->start = address(0);
	region->end = address(CHUNKS);
	return region;
}

static void set_twin(struct twin *twin, unsigned int nr, enum slot_state state, u64 fingerprint)
{
	candidates += (state == SLOT_UNSHARED) - (twin->state[nr] == SLOT_UNSHARED);
	twin->state[nr] = state;
	twin->fingerprint[nr] = fingerprint;
}

static void forget_twin(struct twin *twin)
{
	for (unsigned int nr = 0; nr < CHUNK_SLOTS; nr++)
		set_twin(twin, nr, SLOT_NONE, 0);
	memset(twin->seen, 0, sizeof(twin->seen));
	CHECK(!twin->chunk || !index_chunk(twin->id), "its number still stands for it");
	twin->chunk = NULL;
	twin->count = 0;
}

/* The window that holds these two, and what it held. */
static void check_window(struct twin *twin, unsigned int low, unsigned int high)
{
	struct chunk *chunk = twin->chunk;

	CHECK(chunk_has_slot(chunk, low) && chunk_has_slot(chunk, high));
	CHECK(!twin->count || (chunk->first <= twin->first && chunk_has_slot(chunk, twin->first + twin->count - 1)));
	CHECK(!(chunk->count & (chunk->count - 1)) && !(chunk->first % chunk->count));
	twin->first = chunk->first;
	twin->count = chunk->count;
	for (unsigned int i = 0; i < twin->count; i++) {
		unsigned int nr = twin->first + i;

		CHECK(chunk_slot(chunk, nr)->state == twin->state[nr]);
		CHECK(chunk_fingerprint(chunk, nr) == twin->fingerprint[nr]);
		CHECK(*chunk_seen(chunk, nr) == twin->seen[nr]);
	}
}

static void make_or_grow(unsigned int r, unsigned int c)
{
	unsigned int low = unit_below(CHUNK_SLOTS), high = low + unit_below(32);
	struct twin *twin = &twins[r][c];
	struct chunk *chunk;

	high = min(high, (unsigned int)CHUNK_SLOTS - 1);
	if (!twin->chunk) {
		chunk = chunk_create(regions[r], address(c), low, high);
		if (IS_ERR(chunk)) {
			CHECK(unit_fails && PTR_ERR(chunk) == -ENOMEM, "%ld", PTR_ERR(chunk));
			return;
		}
		twin->chunk = chunk;
		twin->id = chunk->id;
		check_window(twin, low, high);
		CHECK(chunk_lookup(regions[r], address(c)) == chunk);
		CHECK(chunk_by_id(chunk->id) == chunk);
		chunk_put(chunk);
		chunk_put(chunk);
		chunk_put(chunk);
		return;
	}
	mutex_lock(&twin->chunk->lock);
	if (chunk_has_slot(twin->chunk, low) && chunk_has_slot(twin->chunk, high))
		low = high;
	else if (chunk_grow(twin->chunk, low, high))
		check_window(twin, low, high);
	else
		CHECK(unit_fails);
	mutex_unlock(&twin->chunk->lock);
}

/* Of some that are asked for again and again, where few may be candidates. */
static unsigned int any_slot(const struct twin *twin)
{
	return twin->first + unit_below(few ? min(twin->count, 8U) : twin->count);
}

static void change(struct twin *twin)
{
	enum slot_state state = unit_below(2) ? unit_below(SLOT_STATES) :
					       SLOT_STABLE + unit_below(2);
	unsigned int nr = any_slot(twin);
	u64 fingerprint = 0;

	if (few && candidates >= FEW && state == SLOT_UNSHARED)
		state = SLOT_NONE;
	if (state == SLOT_VOLATILE || state == SLOT_STABLE || state == SLOT_UNSHARED)
		fingerprint = any_fingerprint();
	mutex_lock(&twin->chunk->lock);
	if (unit_below(4))
		chunk_set(twin->chunk, nr, state, fingerprint);
	else
		chunk_remap(twin->chunk, nr, state = SLOT_NONE);
	twin->seen[nr] = unit_random();
	*chunk_seen(twin->chunk, nr) = twin->seen[nr];
	mutex_unlock(&twin->chunk->lock);
	set_twin(twin, nr, state, state == SLOT_NONE ? 0 : fingerprint);
}

/* Whose slot has a number, and is it a candidate like this one of another? */
static bool is_like(u32 number, const struct domain *domain, u64 fingerprint)
{
	for (unsigned int r = 0; r < REGIONS; r++)
		for (unsigned int c = 0; c < CHUNKS; c++) {
			const struct twin *twin = &twins[r][c];
			unsigned int nr = number % CHUNK_SLOTS;

			if (twin->chunk && twin->id == number / CHUNK_SLOTS)
				return regions[r]->domain == domain &&
				       twin->state[nr] == SLOT_UNSHARED &&
				       twin->fingerprint[nr] == fingerprint;
		}
	return false;
}

static unsigned int count_like(const struct domain *domain, u64 fingerprint)
{
	unsigned int n = 0;

	for (unsigned int r = 0; r < REGIONS; r++)
		for (unsigned int c = 0; c < CHUNKS && regions[r]->domain == domain; c++)
			for (unsigned int nr = 0; nr < CHUNK_SLOTS; nr++)
				n += twins[r][c].state[nr] == SLOT_UNSHARED &&
				     twins[r][c].fingerprint[nr] == fingerprint;
	return n;
}

static void ask(struct twin *twin, const struct domain *domain)
{
	unsigned int nr = any_slot(twin), n, like, most;
	u64 fingerprint = twin->fingerprint[nr];
	u32 numbers[INDEX_TRIES];
	bool is_one = twin->state[nr] == SLOT_UNSHARED;

	if (!is_one && twin->state[nr] != SLOT_STABLE)
		return;
	if (few && !is_one && candidates >= FEW + 12)
		return;
	like = count_like(domain, fingerprint) - is_one;
	most = like < INDEX_TRIES ? like : INDEX_TRIES;
	CHECK(chunk_has_fingerprint(twin->chunk, nr));
	n = index_find_like(domain, fingerprint, numbers);
	if (candidates <= FEW + 12)
		CHECK(n == min(like + is_one, (unsigned int)INDEX_TRIES));
	for (unsigned int i = 0; i < n; i++)
		CHECK(is_like(numbers[i], domain, fingerprint), "number %u", numbers[i]);
	mutex_lock(&twin->chunk->lock);
	n = chunk_candidates(twin->chunk, nr, numbers);
	mutex_unlock(&twin->chunk->lock);
	CHECK(n <= most, "found %u of %u", n, like);
	/* A long chain is not followed to its end. */
	if (candidates <= FEW + 12)
		CHECK(n == most, "found %u of %u", n, like);
	for (unsigned int i = 0; i < n; i++) {
		CHECK(numbers[i] != twin->chunk->id * CHUNK_SLOTS + nr, "it found itself");
		CHECK(is_like(numbers[i], domain, fingerprint), "number %u", numbers[i]);
		for (unsigned int j = 0; j < i; j++)
			CHECK(numbers[i] != numbers[j], "twice");
	}
	if (n)
		found_some++;
	else
		set_twin(twin, nr, SLOT_UNSHARED, fingerprint);
	found_none += !n;
}

static void forget(unsigned int r)
{
	struct region *region = regions[r];
	unsigned int c = unit_below(CHUNKS);

	if (unit_below(4)) {
		CHECK(region_forget(region, address(c), address(c + 1), KTIME_MAX) == address(c + 1));
		forget_twin(&twins[r][c]);
		return;
	}
	/* All of it; one like it may have its numbers. */
	region->dead = true;
	CHECK(region_forget(region, 0, ULONG_MAX, KTIME_MAX) == ULONG_MAX);
	for (c = 0; c < CHUNKS; c++)
		forget_twin(&twins[r][c]);
	region_put(region);
	regions[r] = new_region(r);
}

static void check_counters(void)
{
	long states[SLOT_STATES] = { 0 }, metadata = 0;

	for (unsigned int r = 0; r < REGIONS; r++)
		for (unsigned int c = 0; c < CHUNKS; c++) {
			const struct twin *twin = &twins[r][c];

			for (unsigned int i = 0; i < twin->count; i++)
				states[twin->state[twin->first + i] == SLOT_STABLE ?
				       SLOT_VOLATILE : twin->state[twin->first + i]]++;
			if (twin->chunk)
				metadata += sizeof(struct chunk) +
					    twin->count * (sizeof(struct slot) + sizeof(u16));
		}
	/* What is in no state is not counted. */
	for (unsigned int i = SLOT_NONE + 1; i < SLOT_STATES; i++)
		CHECK(atomic_long_read(&area.counters.slots[i]) == states[i], "state %u: %ld, %ld",
		      i, atomic_long_read(&area.counters.slots[i]), states[i]);
	CHECK(atomic_long_read(&area.counters.metadata) == metadata);
}

static void step(void)
{
	unsigned int r = unit_below(REGIONS), c = unit_below(CHUNKS);
	struct twin *twin = &twins[r][c];

	switch (unit_below(512)) {
	case 0:
		forget(r);
		break;
	case 1 ... 8:
		make_or_grow(r, c);
		break;
	case 9:
		unit_grace_period();
		break;
	case 10 ... 15:
		moving = true;
		unit_work();
		moving = false;
		break;
	case 16 ... 255:
		if (twin->chunk)
			ask(twin, regions[r]->domain);
		break;
	default:
		if (twin->chunk)
			change(twin);
	}
}

/* What others do between two steps of the table's work. */
static void meanwhile(void)
{
	if (!moving)
		return;
	moving = false;
	for (unsigned int i = unit_below(20); i; i--)
		step();
	moved_on++;
	moving = true;
}

/* From a small table on, to nothing that is left. */
static void round_of(unsigned int steps, unsigned int fails)
{
	long before = unit_allocated;

	for (unsigned int r = 0; r < REGIONS; r++)
		regions[r] = new_region(r);
	CHECK(!ksmdev_index_init());
	unit_fails = fails;
	unit_resched = meanwhile;
	for (unsigned int i = 0; i < steps; i++) {
		step();
		if (!(i % 1000))
			check_counters();
	}
	unit_resched = NULL;
	unit_fails = 0;
	for (unsigned int r = 0; r < REGIONS; r++) {
		region_forget(regions[r], 0, ULONG_MAX, KTIME_MAX);
		for (unsigned int c = 0; c < CHUNKS; c++)
			forget_twin(&twins[r][c]);
		region_put(regions[r]);
	}
	check_counters();
	unit_work();
	ksmdev_index_exit();
	unit_grace_period();
	for (unsigned int i = 0; i < DOMAINS; i++)
		CHECK(!atomic_read(&domains[i].chunks));
	CHECK(unit_allocated == before, "%ld allocations are left", unit_allocated - before);
}

static void run(unsigned int number, const char *name, bool few_candidates, unsigned int fails)
{
	few = few_candidates;
	found_some = 0;
	found_none = 0;
	moved_on = 0;
	for (unsigned int i = 0; i < ROUNDS; i++)
		round_of(STEPS, fails);
	CHECK(found_some > ROUNDS * STEPS / 50 && found_none > ROUNDS * STEPS / 1000 &&
	      moved_on > ROUNDS, "too little happened: %lu %lu %lu", found_some, found_none, moved_on);
	UNIT_OK(number, "%s: %lu times found, %lu times not, moved in %lu steps", name, found_some,
		found_none, moved_on);
}

int main(void)
{
	UNIT_PLAN(4);
	run(1, "few candidates", true, 0);
	run(2, "many candidates", false, 0);
	run(3, "few candidates, allocations fail", true, 5);
	run(4, "many candidates, allocations fail", false, 5);
	return 0;
}
