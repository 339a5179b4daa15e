#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>

namespace emulator {

constexpr std::size_t SLAB_STACKS = 64;
constexpr std::size_t SLAB_BYTES = (SLAB_STACKS + 1) * STACK_BYTES; // one more, for the alignment

Stacks::~Stacks() {
    for (void *slab : slabs) munmap(slab, SLAB_BYTES);
}

bool Stacks::grow() {
    void *slab = mmap(nullptr, SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) return false;
    slabs.push_back(slab);
    auto address = (reinterpret_cast<std::uintptr_t>(slab) + STACK_BYTES - 1) / STACK_BYTES * STACK_BYTES;
    for (std::size_t i = 0; i < SLAB_STACKS; ++i, address += STACK_BYTES) {
        char *stack = reinterpret_cast<char *>(address);
        // A guard page splits the mapping, and a process has about 65,000: stacks beyond that do without.
        (void)mprotect(stack, PAGE, PROT_NONE);
        // Fibers run the same code at the same depth. If their stacks ended at the same offset, all of them would share a few sets of
        // the first-level cache; so each ends 5 cache lines below the one before, modulo a page.
        const std::size_t shift = made++ * 320 % PAGE;
        free.push_back({stack + STACK_BYTES - shift});
    }
    return true;
}

Stack Stacks::take() {
    if (free.empty() && !grow()) return {};
    const Stack stack = free.back();
    free.pop_back();
#ifdef __SANITIZE_ADDRESS__
    // The frames of a fiber that was abandoned in an error left their marks.
    __asan_unpoison_memory_region(stack.bottom(), stack.bytes());
#endif
    return stack;
}

#ifndef HEADFIRST_UCONTEXT

// System V ABI: a call preserves rbx, rbp, r12 to r15 and the stack pointer; the control words of the floating-point units are never
// changed here. All fibers that wait were suspended by this one return address, so the processor predicts the return.
asm(R"(
    .text
    .p2align 4
    .globl headfirst_emulator_switch
    .hidden headfirst_emulator_switch
    .type headfirst_emulator_switch, @function
headfirst_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size headfirst_emulator_switch, . - headfirst_emulator_switch
)");

void Context::begin(Stack stack, void (*entry)()) {
    // As if `entry` had been called: a return address (never used) at the top, with the stack pointer 8 below a multiple of 16.
    auto *top = reinterpret_cast<void **>(reinterpret_cast<std::uintptr_t>(stack.top) & ~std::uintptr_t{15});
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
    moved_to(stack);
}

#else

void Context::begin(Stack stack, void (*entry)()) {
    getcontext(&registers);
    registers.uc_stack.ss_sp = stack.bottom();
    registers.uc_stack.ss_size = stack.bytes();
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
    moved_to(stack);
}

#endif

#ifdef __SANITIZE_ADDRESS__

Context Context::here() {
    Context context;
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &context.bottom, &context.bytes);
        pthread_attr_destroy(&attributes);
    }
    return context;
}

#else

Context Context::here() { return {}; }

#endif

} // namespace emulator
