// The emulator's half of the dialect in common.cuh: what nvcc knows by itself, in plain C++20. Kernels include common.cuh, not this file.
//
// A launch runs every thread of a block as a fiber on one OS thread (block.h), so a kernel's code runs as it stands, on real memory, with
// a debugger or AddressSanitizer if need be. What a GPU does at the same time happens here one thread after the other, in an order that
// the launch chooses: a kernel whose result depends on that order lacks a barrier. A misuse that would hang or go unnoticed on a GPU ends
// the launch with an error that names kernel, block and thread: a barrier or a warp primitive that some threads do not reach, a lane that
// reads from outside the mask, a write beside the shared memory, __trap().
//
// Not shown here: fences (every write is visible at once), bank conflicts, registers, speed. Waiting for memory in a loop hangs, since the
// thread that would write does not run meanwhile: wait in grid_barrier or grid_wait.
#pragma once

#include "intrinsics.h"
#include "vectors.h"

#include <utility>

#define DEVICE inline __attribute__((always_inline))

// A kernel is a template over a question that is never asked: its bound stands in the return type that the answer would have.
#define KERNEL(threads, blocks) template <bool asked> static emulator::Returns<asked, (threads), (blocks)>
// The constant has a linker's name, which finds two kernels of one name.
#define EXPORT(name)                               \
    extern const bool headfirst_emulator_has_##name; \
    const bool headfirst_emulator_has_##name = emulator::Export<decltype(&name<true>)>::add<&name<false>>(#name)
#define SHARED_MEMORY(type, name) type *const name = reinterpret_cast<type *>(emulator::shared_memory)

constexpr int warpSize = 32;

// Where the running fiber is in its launch. The initial-exec model makes each access one instruction.
#define HEADFIRST_FIBER_LOCAL extern __thread __attribute__((tls_model("initial-exec")))
HEADFIRST_FIBER_LOCAL uint3 threadIdx;
HEADFIRST_FIBER_LOCAL uint3 blockIdx;
HEADFIRST_FIBER_LOCAL uint3 blockDim;
HEADFIRST_FIBER_LOCAL uint3 gridDim;

namespace emulator {

HEADFIRST_FIBER_LOCAL unsigned char *shared_memory;

// A place in a kernel's source, for errors.
struct Site {
    const char *file;
    int line;
};

// What the lanes of a warp do together.
enum class Primitive : std::uint8_t { SyncWarp, Ballot, Any, All, Shuffle, ShuffleUp, ShuffleDown, ShuffleXor };

void barrier(Site site);
void grid_barrier(unsigned *state, unsigned blocks, Site site);
void grid_arrive(unsigned *state, Site site);
void grid_wait(unsigned *state, unsigned count, Site site);
// Waits for all lanes of `mask`. A shuffle gives the value of lane `source`, a vote the lanes whose value is not 0.
std::uint64_t warp(Primitive primitive, unsigned mask, std::uint64_t value, int source, Site site);
int lane();
// See async.cuh.
void copy_async(void *shared, const void *global, int bytes, int available);
void copy_async_commit();
void copy_async_wait(int groups);
[[noreturn]] void fail(const char *reason, Site site);

// Launch arguments: one slot each.
enum Kind { POINTER = 0, INTEGER = 1, FLOAT = 2 };
using Slot = std::uint64_t;
constexpr int MAX_ARGUMENTS = 64;

struct Argument {
    Kind kind;
    int size; // bytes
};

struct Kernel {
    const char *name;
    int threads; // the most a block may have
    int argument_count;
    const Argument *arguments;
    void (*call)(const Slot *slots);
};

bool add(const Kernel &kernel);

template <int THREADS> struct Bound {};

template <bool ASKED, int THREADS, int BLOCKS> struct ReturnType {
    static_assert(0 < THREADS && THREADS <= 1024, "a block has 1 to 1024 threads");
    static_assert(0 <= BLOCKS && BLOCKS <= 32, "a multiprocessor holds at most 32 blocks");
    using Type = void;
};
template <int THREADS, int BLOCKS> struct ReturnType<true, THREADS, BLOCKS> {
    using Type = Bound<THREADS>;
};
template <bool ASKED, int THREADS, int BLOCKS> using Returns = typename ReturnType<ASKED, THREADS, BLOCKS>::Type;

template <typename T> constexpr Argument describe() {
    constexpr bool integer = std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long long> ||
                             std::is_same_v<T, unsigned long long>;
    static_assert(std::is_pointer_v<T> || integer || std::is_same_v<T, float>,
                  "a kernel's arguments are pointers, int, unsigned, long long, unsigned long long or float");
    return {std::is_pointer_v<T> ? POINTER : integer ? INTEGER : FLOAT, int(sizeof(T))};
}

template <typename T> inline T read(const Slot &slot) {
    T value;
    std::memcpy(&value, &slot, sizeof value);
    return value;
}

template <typename Asked> struct Export;

template <int THREADS, typename... T> struct Export<Bound<THREADS> (*)(T...)> {
    static_assert(sizeof...(T) <= MAX_ARGUMENTS, "a kernel has at most 64 arguments");
    static constexpr Argument arguments[sizeof...(T) + 1] = {describe<T>()..., {}};

    template <void (*function)(T...)> static void call([[maybe_unused]] const Slot *slots) {
        [&]<std::size_t... I>(std::index_sequence<I...>) { function(read<T>(slots[I])...); }(std::index_sequence_for<T...>{});
    }

    template <void (*function)(T...)> static bool add(const char *name) {
        return emulator::add({name, THREADS, sizeof...(T), arguments, call<function>});
    }
};

} // namespace emulator

// The last two parameters of what follows are filled in by the compiler.
#define HEADFIRST_SITE int line = __builtin_LINE(), const char *file = __builtin_FILE()

DEVICE void barrier(HEADFIRST_SITE) { emulator::barrier({file, line}); }

DEVICE void grid_barrier(unsigned *state, unsigned blocks, HEADFIRST_SITE) { emulator::grid_barrier(state, blocks, {file, line}); }

DEVICE void grid_arrive(unsigned *state, HEADFIRST_SITE) { emulator::grid_arrive(state, {file, line}); }

DEVICE void grid_wait(unsigned *state, unsigned count, HEADFIRST_SITE) { emulator::grid_wait(state, count, {file, line}); }

[[noreturn]] DEVICE void __trap(HEADFIRST_SITE) { emulator::fail("__trap()", {file, line}); }

DEVICE void __syncwarp(unsigned mask = 0xffffffffu, HEADFIRST_SITE) {
    emulator::warp(emulator::Primitive::SyncWarp, mask, 0, 0, {file, line});
}

DEVICE unsigned __ballot_sync(unsigned mask, int predicate, HEADFIRST_SITE) {
    return unsigned(emulator::warp(emulator::Primitive::Ballot, mask, predicate != 0, 0, {file, line}));
}

DEVICE int __any_sync(unsigned mask, int predicate, HEADFIRST_SITE) {
    return emulator::warp(emulator::Primitive::Any, mask, predicate != 0, 0, {file, line}) != 0;
}

DEVICE int __all_sync(unsigned mask, int predicate, HEADFIRST_SITE) {
    return emulator::warp(emulator::Primitive::All, mask, predicate != 0, 0, {file, line}) == mask;
}

namespace emulator {

template <typename T> DEVICE T shuffle(Primitive primitive, unsigned mask, T value, int source, Site site) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = warp(primitive, mask, bits, source, site);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The rest of a `width`-wide segment behind its first lane; `width` is a power of two up to a warp.
DEVICE int inside(int width, Site site) {
    if (width < 1 || width > warpSize || (width & (width - 1)) != 0) fail("a shuffle's width is a power of two up to 32", site);
    return width - 1;
}

DEVICE void check_distance(unsigned distance, Site site) {
    if (distance >= unsigned(warpSize)) fail("a shuffle's distance is below 32", site);
}

} // namespace emulator

// PTX, shfl.sync: a lane whose source would lie outside its segment keeps its own value.
template <typename T> DEVICE T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, HEADFIRST_SITE) {
    const emulator::Site site{file, line};
    const int inside = emulator::inside(width, site);
    return emulator::shuffle(emulator::Primitive::Shuffle, mask, value, (emulator::lane() & ~inside) | (source & inside), site);
}

template <typename T> DEVICE T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize, HEADFIRST_SITE) {
    const emulator::Site site{file, line};
    const int inside = emulator::inside(width, site), lane = emulator::lane();
    emulator::check_distance(distance, site);
    const int source = lane - int(distance);
    return emulator::shuffle(emulator::Primitive::ShuffleUp, mask, value, source < (lane & ~inside) ? lane : source, site);
}

template <typename T> DEVICE T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize, HEADFIRST_SITE) {
    const emulator::Site site{file, line};
    const int inside = emulator::inside(width, site), lane = emulator::lane();
    emulator::check_distance(distance, site);
    const int source = lane + int(distance);
    return emulator::shuffle(emulator::Primitive::ShuffleDown, mask, value, source > (lane | inside) ? lane : source, site);
}

template <typename T> DEVICE T __shfl_xor_sync(unsigned mask, T value, int distance, int width = warpSize, HEADFIRST_SITE) {
    const emulator::Site site{file, line};
    const int inside = emulator::inside(width, site), lane = emulator::lane();
    emulator::check_distance(unsigned(distance), site);
    const int source = lane ^ distance;
    return emulator::shuffle(emulator::Primitive::ShuffleXor, mask, value, source > (lane | inside) ? lane : source, site);
}

#undef HEADFIRST_SITE
