// A block in flight: one fiber per CUDA thread, all on the OS thread that began it.
//
// A thread runs until it waits in a barrier or a warp primitive, or ends; then it hands over to the next thread that can go on. When the
// last one arrives at a barrier, all can go on, in the order that the launch asked for; so can the lanes of a warp, before any other
// thread. When nobody can, the block is over, or waits for other blocks in grid_barrier, or is in a deadlock, which `diagnose` puts into
// words.
//
// Measured on a 2.x GHz server core that other work shared: see the numbers in emulator.cpp.
#pragma once

#include "device.h"
#include "fiber.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

constexpr int MAX_THREADS = 1024;
constexpr std::size_t GUARD_BYTES = 1024; // before and behind the shared memory

enum Order { FORWARD = 0, REVERSED = 1, SHUFFLED = 2 };

// SplitMix64.
struct Random {
    std::uint64_t state;
    explicit Random(std::uint64_t seed) : state(seed) {}
    std::uint64_t next() {
        std::uint64_t bits = state += 0x9e3779b97f4a7c15u;
        bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
        return bits ^ bits >> 31;
    }
    std::uint64_t below(std::uint64_t bound) { return next() % bound; }
};

// What all blocks of a launch have in common.
struct Shape {
    const Kernel *kernel;
    Slot slots[MAX_ARGUMENTS];
    uint3 grid, block;
    unsigned shared_bytes;
    bool cooperative;
    Order order;
    std::uint64_t seed;

    int threads() const { return int(block.x * block.y * block.z); }
};

enum class State : std::uint8_t { Runs, Barrier, GridBarrier, Warp, Ended };

// A CUDA thread, in one cache line: all of them are gone through at every barrier.
struct alignas(64) Fiber {
    Context context;
    Stack stack; // none before it begins
    uint3 index;
    State state;
    // Of the warp primitive that it waits in. `value` is what the lane brings, then what it takes away.
    Primitive primitive;
    std::uint8_t source;
    unsigned mask;
    std::uint64_t value;
    Site site; // where it waits
};

// The copies of one thread that are under way.
struct Copies {
    struct Copy {
        unsigned char *to;
        int bytes;
        int group;
        unsigned char data[16];
    };
    std::vector<Copy> copies;
    int groups = 0; // committed ones; a copy that is not committed is of group `groups`
};

class Block {
  public:
    enum class Outcome { Ended, WaitsForGrid, Failed };

    Block();
    Block(const Block &) = delete;
    ~Block();

    // Prepares for block `index` of a launch; `number` is its place in the grid. Gives false if there is no memory.
    bool begin(const Shape &shape, uint3 index, std::uint64_t number, Stacks &stacks);
    // Runs until all threads have ended or all wait in grid_barrier.
    Outcome go_on();
    // Gives back the stacks of threads that will not go on.
    void abandon();
    // Whether it arrived somewhere since this was last asked: others may be waiting for that.
    bool take_arrival() { return std::exchange(has_arrived, false); }
    // After WaitsForGrid: have the other blocks arrived?
    bool grid_barrier_is_open() const { return int(__atomic_load_n(grid_state, __ATOMIC_ACQUIRE) - grid_target) >= 0; }
    // "kernel k, block (0, 0, 0)"
    std::string name() const;
    // After WaitsForGrid: which barrier, and what its counter lacks.
    std::string awaited() const;
    // After Failed: why.
    const std::string &error() const { return text; }

    // Called by the running thread.
    void barrier(State kind, Site site);
    void grid_barrier(unsigned *state, unsigned blocks, Site site);
    void grid_arrive(unsigned *state, Site site);
    void grid_wait(unsigned *state, unsigned count, Site site);
    std::uint64_t warp(Primitive primitive, unsigned mask, std::uint64_t value, int source, Site site);
    void copy_async(void *shared, const void *global, int bytes, int available);
    void copy_async_commit();
    void copy_async_wait(int groups);
    // Text, numbers, sites: why.
    template <typename... Parts> [[noreturn]] void fail(Parts... parts);
    int lane() const { return number_of(*running) % warpSize; }

  private:
    int number_of(const Fiber &fiber) const { return int(&fiber - fibers.get()); }
    void set_shape(const Shape &shape);
    void sort_warps();
    void shuffle();
    bool set_memory();
    bool memory_is_intact();

    void wake_all();
    Fiber &take_ready();
    void next();
    bool start(Fiber &fiber);
    void leave(Outcome how);
    static void run_threads();

    void meet(int first, unsigned mask, Primitive primitive);
    void check_meeting(State kind, Site site);
    void fail_in_deadlock();
    std::string diagnose() const;
    std::string whereabouts(const Fiber &fiber) const;

    const Shape *shape = nullptr;
    Stacks *stacks = nullptr;
    uint3 index{};
    int threads = 0;
    std::unique_ptr<Fiber[]> fibers;
    Fiber *running = nullptr;
    Context home; // go_on's
    Outcome outcome = Outcome::Ended;
    int ended = 0;
    std::string text;

    // Threads that can go on, the next one last. A thread is in it at most once.
    std::uint16_t ready[MAX_THREADS];
    int ready_count = 0;
    // All threads, and those of each warp, as `ready` wants them: the first to run comes last.
    std::uint16_t sequence[MAX_THREADS];
    std::uint16_t warp_sequence[MAX_THREADS];
    uint3 dimensions{}; // that `sequence` and the fibers' indices were made for, with `order`
    Order order = FORWARD;
    Random random{0};

    // The barrier at which threads wait.
    int arrived_count = 0;
    State meeting_kind = State::Barrier;
    Site meeting{};
    unsigned *grid_state = nullptr;
    unsigned grid_blocks = 0, grid_target = 0; // grid_wait: no blocks, the target is given
    bool has_arrived = false;

    // The lanes of each warp that wait in a primitive.
    unsigned waiting[MAX_THREADS / warpSize] = {};

    std::vector<Copies> copies; // of each thread, if there were any

    unsigned char *memory = nullptr; // guard zone, shared memory, guard zone
    std::size_t memory_bytes = 0;
};

} // namespace emulator
