// Copies from global to shared memory that a thread starts without waiting for them (cp.async, compute capability 8.0 and later).
//
//   copy_async(shared, global)              16 bytes, past the first-level cache; copy_async<4>, copy_async<8>: fewer, through it
//   copy_async(shared, global, available)   of them the first `available` (0 or more) are read, the others become 0
//   copy_async_commit()                     what this thread started since its last commit is a group
//   copy_async_wait<N>()                    until at most the N youngest of this thread's groups are under way
//
// Both addresses are multiples of the number of bytes. A thread that waited sees its own copies; those of the others it sees after a
// barrier that stands behind their waits. Between copy and wait the destination holds nothing that may be read: in the emulator NaN, until the
// wait brings the values, so that a missing wait and a copy into memory that is still in use both show.
#pragma once

#include "common.cuh"

#ifdef HEADFIRST_EMULATOR

template <int BYTES = 16> DEVICE void copy_async(void *shared, const void *global, int available = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    emulator::copy_async(shared, global, BYTES, available);
}

DEVICE void copy_async_commit() { emulator::copy_async_commit(); }

template <int N> DEVICE void copy_async_wait() { emulator::copy_async_wait(N); }

#else

template <int BYTES = 16> DEVICE void copy_async(void *shared, const void *global, int available = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16);
    const unsigned to = unsigned(__cvta_generic_to_shared(shared));
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(available) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(available) : "memory");
    }
}

DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#endif
