#include "block.h"

#include <algorithm>
#include <cstdlib>

// Every OS thread runs one block at a time.
#define LOCAL __thread __attribute__((tls_model("initial-exec")))
LOCAL uint3 threadIdx;
LOCAL uint3 blockIdx;
LOCAL uint3 blockDim;
LOCAL uint3 gridDim;

namespace emulator {

LOCAL unsigned char *shared_memory;
static LOCAL Block *block;

// A guard zone. NaN in f32 and in bf16, so that a stray read shows; not all ones, so that a stray -1 shows too.
struct Guard {
    unsigned char bytes[GUARD_BYTES];
    constexpr Guard() : bytes() {
        for (std::size_t i = 0; i < GUARD_BYTES; ++i) bytes[i] = i % 2 ? 0xff : 0xc5;
    }
};
constexpr Guard GUARD;
constexpr std::size_t ALIGNMENT = 128;

// The dialect, for the running block.

void barrier(Site site) { block->barrier(State::Barrier, site); }

void grid_barrier(unsigned *state, unsigned blocks, Site site) { block->grid_barrier(state, blocks, site); }

void grid_arrive(unsigned *state, Site site) { block->grid_arrive(state, site); }

void grid_wait(unsigned *state, unsigned count, Site site) { block->grid_wait(state, count, site); }

std::uint64_t warp(Primitive primitive, unsigned mask, std::uint64_t value, int source, Site site) {
    return block->warp(primitive, mask, value, source, site);
}

int lane() { return block->lane(); }

void copy_async(void *shared, const void *global, int bytes, int available) { block->copy_async(shared, global, bytes, available); }

void copy_async_commit() { block->copy_async_commit(); }

void copy_async_wait(int groups) { block->copy_async_wait(groups); }

// Names for errors.

static std::string text_of(Site site) {
    const char *slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

static std::string text_of(uint3 index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

static std::string text_of(int number) { return std::to_string(number); }

static std::string text_of(const char *text) { return text; }

static std::string text_of(Primitive primitive) {
    switch (primitive) {
    case Primitive::SyncWarp: return "__syncwarp";
    case Primitive::Ballot: return "__ballot_sync";
    case Primitive::Any: return "__any_sync";
    case Primitive::All: return "__all_sync";
    case Primitive::Shuffle: return "__shfl_sync";
    case Primitive::ShuffleUp: return "__shfl_up_sync";
    case Primitive::ShuffleDown: return "__shfl_down_sync";
    case Primitive::ShuffleXor: return "__shfl_xor_sync";
    }
    return "?";
}

// Ends the launch. Its caller's stack is abandoned, so what is on it must need no destructor.
template <typename... Parts> [[noreturn, gnu::cold]] void Block::fail(Parts... parts) {
    text = name() + ", thread " + text_of(running->index) + ": ";
    ((text += text_of(parts)), ...);
    leave(Outcome::Failed);
    std::abort(); // not reached
}

void fail(const char *reason, Site site) { block->fail(reason, " at ", site); }

std::string Block::name() const { return std::string("kernel ") + shape->kernel->name + ", block " + text_of(index); }

std::string Block::awaited() const {
    return "grid_barrier at " + text_of(meeting) + " for its counter to reach " + std::to_string(grid_target) + ", it is at " +
           std::to_string(__atomic_load_n(grid_state, __ATOMIC_ACQUIRE));
}

// Before a block runs.

Block::Block() : fibers(new Fiber[MAX_THREADS]), home(Context::here()) {}

Block::~Block() {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(memory, memory_bytes);
#endif
    std::free(memory);
}

bool Block::begin(const Shape &launch, uint3 place, std::uint64_t number, Stacks &all_stacks) {
    shape = &launch;
    stacks = &all_stacks;
    index = place;
    set_shape(launch);
    ended = 0;
    random = Random(launch.seed ^ (number + 1) * 0xd1342543de82ef95u);
    std::memset(waiting, 0, sizeof waiting);
    copies.clear();
    text.clear();
    wake_all();
    return set_memory();
}

// Blocks of one launch after the other have the same shape mostly, so what follows from it alone is kept.
void Block::set_shape(const Shape &launch) {
    const uint3 now = launch.block;
    const bool same = now.x == dimensions.x && now.y == dimensions.y && now.z == dimensions.z && launch.order == order;
    // A shuffle begins with what is left of the one before: the same seed would not give the same order again.
    if (same && order != SHUFFLED) return;
    dimensions = now;
    order = launch.order;
    threads = launch.threads();
    for (int thread = 0; thread < threads; ++thread) {
        const unsigned number = unsigned(thread);
        fibers[thread].index = {number % now.x, number / now.x % now.y, number / now.x / now.y};
        sequence[thread] = std::uint16_t(order == REVERSED ? thread : threads - 1 - thread);
    }
    sort_warps();
}

void Block::sort_warps() {
    int filled[MAX_THREADS / warpSize] = {};
    for (int i = 0; i < threads; ++i) {
        const int warp = sequence[i] / warpSize;
        warp_sequence[warp * warpSize + filled[warp]++] = sequence[i];
    }
}

void Block::shuffle() {
    for (int i = threads - 1; i > 0; --i) std::swap(sequence[i], sequence[random.below(std::uint64_t(i) + 1)]);
    sort_warps();
}

bool Block::set_memory() {
    const std::size_t bytes = shape->shared_bytes;
    const std::size_t needed = (GUARD_BYTES + bytes + GUARD_BYTES + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(memory, memory_bytes);
#endif
    if (needed > memory_bytes) {
        std::free(memory);
        memory = static_cast<unsigned char *>(std::aligned_alloc(ALIGNMENT, needed));
        memory_bytes = memory ? needed : 0;
        if (!memory) return false;
    }
    std::memcpy(memory, GUARD.bytes, GUARD_BYTES);
    std::memcpy(memory + GUARD_BYTES + bytes, GUARD.bytes, GUARD_BYTES);
    std::memset(memory + GUARD_BYTES, 0xff, bytes);
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(memory, GUARD_BYTES);
    __asan_poison_memory_region(memory + GUARD_BYTES + bytes, memory_bytes - GUARD_BYTES - bytes);
#endif
    return true;
}

bool Block::memory_is_intact() {
    const std::size_t bytes = shape->shared_bytes;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(memory, memory_bytes);
#endif
    const unsigned char *before = memory, *behind = memory + GUARD_BYTES + bytes;
    const bool intact_before = std::memcmp(before, GUARD.bytes, GUARD_BYTES) == 0;
    if (intact_before && std::memcmp(behind, GUARD.bytes, GUARD_BYTES) == 0) return true;
    const unsigned char *zone = intact_before ? behind : before;
    const auto first = std::mismatch(zone, zone + GUARD_BYTES, GUARD.bytes).first;
    text = name() + ": wrote outside its " + std::to_string(bytes) + " bytes of shared memory, at byte " +
           std::to_string(first - (memory + GUARD_BYTES));
    return false;
}

// A block runs.

Block::Outcome Block::go_on() {
    block = this;
    blockIdx = index;
    blockDim = shape->block;
    gridDim = shape->grid;
    shared_memory = memory + GUARD_BYTES;
    if (ready_count == 0) wake_all(); // from grid_barrier
    Fiber &first = take_ready();
    if (!first.stack && !start(first)) return Outcome::Failed;
    hand_over(home, first.context);
    if (outcome == Outcome::Ended) {
        // The others have passed theirs on.
        stacks->give_back(std::exchange(running->stack, {}));
        if (!memory_is_intact()) outcome = Outcome::Failed;
    }
    return outcome;
}

void Block::abandon() {
    for (int thread = 0; thread < threads; ++thread) {
        Stack &stack = fibers[thread].stack;
        if (stack) stacks->give_back(stack);
        stack = {};
    }
}

void Block::wake_all() {
    if (order == SHUFFLED) shuffle();
    std::memcpy(ready, sequence, std::size_t(threads) * sizeof ready[0]);
    ready_count = threads;
    arrived_count = 0;
}

// Makes the next thread the running one; it is not switched to yet.
inline Fiber &Block::take_ready() {
    Fiber &fiber = fibers[ready[--ready_count]];
    fiber.state = State::Runs;
    running = &fiber;
    threadIdx = fiber.index;
    return fiber;
}

// Small, since its stack frame lies on every fiber's stack.
inline void Block::next() {
    if (ready_count == 0) [[unlikely]] fail_in_deadlock();
    Fiber &from = *running;
    Fiber &to = take_ready();
    if (&to == &from) return;
    if (!to.stack && !start(to)) [[unlikely]] leave(Outcome::Failed);
    hand_over(from.context, to.context);
}

bool Block::start(Fiber &fiber) {
    fiber.stack = stacks->take();
    if (fiber.stack) fiber.context.begin(fiber.stack, run_threads);
    else text = name() + ": no memory for its threads' stacks";
    return bool(fiber.stack);
}

void Block::leave(Outcome how) {
    outcome = how;
    hand_over(running->context, home);
}

// What runs on every stack: a thread, and then threads that have not begun, so that a kernel without barriers needs one stack only.
void Block::run_threads() {
    arrived();
    for (;;) {
        Block &self = *block;
        self.shape->kernel->call(self.shape->slots);
        Fiber &from = *self.running;
        from.state = State::Ended;
        self.ended += 1;
        if (self.ready_count == 0) {
            if (self.ended < self.threads) self.fail_in_deadlock();
            self.leave(Outcome::Ended);
        }
        Fiber &to = self.take_ready();
        const Stack stack = std::exchange(from.stack, {});
        if (to.stack) {
            self.stacks->give_back(stack); // nobody takes it before the switch
            hand_over(from.context, to.context);
        }
        to.stack = stack;
        to.context.moved_to(stack);
    }
}

// Also from a thread that has ended.
[[gnu::cold]] void Block::fail_in_deadlock() {
    text = diagnose();
    leave(Outcome::Failed);
}

// Waiting.

void Block::barrier(State kind, Site site) {
    Fiber &me = *running;
    me.state = kind;
    me.site = site;
    if (arrived_count == 0) {
        meeting = site;
        meeting_kind = kind;
    } else if (site.line != meeting.line || site.file != meeting.file || kind != meeting_kind) [[unlikely]] {
        check_meeting(kind, site);
    }
    if (++arrived_count == threads) {
        if (kind == State::GridBarrier) {
            if (grid_blocks > 0) {
                // As in common.cuh.
                const unsigned arrived = __atomic_fetch_add(grid_state, 1, __ATOMIC_ACQ_REL);
                grid_target = arrived / grid_blocks * grid_blocks + grid_blocks;
                has_arrived = true;
            } else if (!shape->cooperative && !grid_barrier_is_open()) {
                fail("grid_wait at ", site, " for blocks that may not run, in a launch that is not cooperative");
            }
            return leave(Outcome::WaitsForGrid);
        }
        wake_all();
    }
    next();
}

// The name of a file may lie at two places.
[[gnu::cold]] void Block::check_meeting(State kind, Site site) {
    if (site.line == meeting.line && std::strcmp(site.file, meeting.file) == 0 && kind == meeting_kind) return;
    fail("waits at the barrier at ", site, " while others wait at the one at ", meeting);
}

void Block::grid_barrier(unsigned *state, unsigned blocks, Site site) {
    if (!shape->cooperative) fail("grid_barrier at ", site, " in a launch that is not cooperative");
    if (blocks == 0) fail("grid_barrier at ", site, " of 0 blocks");
    if (arrived_count == 0) {
        grid_state = state;
        grid_blocks = blocks;
    } else if (state != grid_state || blocks != grid_blocks) {
        fail("grid_barrier at ", site, " with another state or number of blocks than the threads before");
    }
    barrier(State::GridBarrier, site);
}

void Block::grid_arrive(unsigned *state, Site site) {
    barrier(State::Barrier, site);
    if (number_of(*running) != 0) return;
    __atomic_fetch_add(state, 1, __ATOMIC_ACQ_REL);
    has_arrived = true;
}

void Block::grid_wait(unsigned *state, unsigned count, Site site) {
    if (arrived_count == 0) {
        grid_state = state;
        grid_blocks = 0;
        grid_target = count;
    } else if (state != grid_state || count != grid_target) {
        fail("grid_wait at ", site, " for another state or number of arrivals than the threads before");
    }
    barrier(State::GridBarrier, site);
}

std::uint64_t Block::warp(Primitive primitive, unsigned mask, std::uint64_t value, int source, Site site) {
    Fiber &me = *running;
    const int number = number_of(me), first = number / warpSize * warpSize;
    const unsigned bit = 1u << (number - first);
    if (!(mask & bit)) [[unlikely]] fail("is not in the mask that it gives to ", primitive, " at ", site);
    me.state = State::Warp;
    me.primitive = primitive;
    me.site = site;
    me.value = value;
    me.mask = mask;
    me.source = std::uint8_t(source);
    unsigned &lanes = waiting[first / warpSize];
    lanes |= bit;
    bool all = (lanes & mask) == mask;
    for (unsigned rest = all ? mask : 0; rest; rest &= rest - 1) {
        const Fiber &lane = fibers[first + __builtin_ctz(rest)];
        all = all && lane.primitive == primitive && lane.mask == mask;
    }
    if (all) {
        lanes &= ~mask;
        meet(first, mask, primitive);
    }
    next();
    return me.value;
}

// All lanes of `mask` have arrived: each gets its result before any goes on.
void Block::meet(int first, unsigned mask, Primitive primitive) {
    std::uint64_t results[warpSize];
    std::uint64_t votes = 0;
    const bool shuffles = primitive >= Primitive::Shuffle;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        const Fiber &fiber = fibers[first + lane];
        if (!shuffles) {
            votes |= std::uint64_t(fiber.value != 0) << lane;
            continue;
        }
        if (!(mask >> fiber.source & 1)) [[unlikely]] {
            fail(primitive, " at ", fiber.site, ": lane ", lane, " reads lane ", int(fiber.source), ", which is not in the mask");
        }
        results[lane] = fibers[first + fiber.source].value;
    }
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        fibers[first + lane].value = shuffles ? results[lane] : votes;
    }
    const int count = threads - first < warpSize ? threads - first : warpSize;
    for (int i = 0; i < count; ++i) {
        const int thread = warp_sequence[first + i];
        if (mask >> (thread - first) & 1) ready[ready_count++] = std::uint16_t(thread);
    }
}

// The copies read at once and write as late as they may.
void Block::copy_async(void *shared, const void *global, int bytes, int available) {
    auto *to = static_cast<unsigned char *>(shared);
    const unsigned char *first = memory + GUARD_BYTES;
    if (to < first || to + bytes > first + shape->shared_bytes) fail("copy_async to a place outside the block's shared memory");
    const auto places = reinterpret_cast<std::uintptr_t>(to) | (available > 0 ? reinterpret_cast<std::uintptr_t>(global) : 0);
    if (places % unsigned(bytes) != 0) fail("copy_async of an address that is no multiple of ", bytes);
    if (available < 0 || available > bytes) fail("copy_async of ", available, " of ", bytes, " bytes");
    if (copies.empty()) copies.resize(std::size_t(threads));
    Copies &mine = copies[std::size_t(number_of(*running))];
    Copies::Copy copy{to, bytes, mine.groups, {}};
    std::memcpy(copy.data, global, std::size_t(available));
    mine.copies.push_back(copy);
    std::memset(to, 0xff, std::size_t(bytes));
}

void Block::copy_async_commit() {
    if (!copies.empty()) copies[std::size_t(number_of(*running))].groups += 1;
}

void Block::copy_async_wait(int groups) {
    if (copies.empty()) return;
    Copies &mine = copies[std::size_t(number_of(*running))];
    auto copy = mine.copies.begin();
    for (; copy != mine.copies.end() && copy->group < mine.groups - groups; ++copy) {
        std::memcpy(copy->to, copy->data, std::size_t(copy->bytes));
    }
    mine.copies.erase(mine.copies.begin(), copy);
}

// Why nobody can go on. A lane that waits in vain is named first: it may be what the barrier waits for.
std::string Block::diagnose() const {
    for (int thread = 0; thread < threads; ++thread) {
        const Fiber &fiber = fibers[thread];
        if (fiber.state != State::Warp) continue;
        const int first = thread / warpSize * warpSize;
        for (unsigned rest = fiber.mask; rest; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest), other = first + lane;
            const bool exists = other < threads;
            if (exists) {
                const Fiber &missing = fibers[other];
                if (missing.state == State::Warp && missing.primitive == fiber.primitive && missing.mask == fiber.mask) continue;
            }
            return name() + ", thread " + text_of(fiber.index) + ": waits in " + text_of(fiber.primitive) + " at " + text_of(fiber.site) +
                   " for lane " + std::to_string(lane) + " of its warp, which " +
                   (exists ? whereabouts(fibers[other]) : "does not exist: the block has " + text_of(threads) + " threads");
        }
    }
    return name() + ": " + std::to_string(arrived_count) + " of " + std::to_string(threads) + " threads wait at the barrier at " +
           text_of(meeting) + ", " + std::to_string(threads - arrived_count) + " ended without reaching it";
}

std::string Block::whereabouts(const Fiber &fiber) const {
    switch (fiber.state) {
    case State::Ended: return "has ended";
    case State::Barrier:
    case State::GridBarrier: return "waits at the barrier at " + text_of(fiber.site);
    case State::Warp: return "waits in " + text_of(fiber.primitive) + " at " + text_of(fiber.site);
    default: return "is elsewhere";
    }
}

} // namespace emulator
