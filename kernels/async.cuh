// Copies from global to shared memory that pass no register: a thread starts them, goes on, and waits when it needs what they bring.
//
// A thread's copies belong to groups, in the order of its copy_commit() calls; copy_wait<N>() waits until at most its N newest groups are
// under way. Other threads see the bytes after a barrier behind that. Both addresses are multiples of the size. Copies of 16 bytes read the
// second-level cache, where other multiprocessors write, and leave the first one alone. On the emulator a copy is over when it is started.
#pragma once

#include "common.cuh"

#ifndef HEADFIRST_EMULATOR

DEVICE void copy_async_16(void *shared, const void *global) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}

DEVICE void copy_async_4(void *shared, const void *global) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global) : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else

DEVICE void copy_async_16(void *shared, const void *global) {
    if (reinterpret_cast<std::uintptr_t>(shared) % 16 != 0 || reinterpret_cast<std::uintptr_t>(global) % 16 != 0) __trap();
    std::memcpy(shared, global, 16);
}

DEVICE void copy_async_4(void *shared, const void *global) { std::memcpy(shared, global, 4); }
DEVICE void copy_commit() {}
template <int N> DEVICE void copy_wait() {}

#endif
