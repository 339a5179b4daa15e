// Fibers: threads of control with stacks of their own, which hand over to each other by name. On x86-64 the switch is written by hand,
// elsewhere (or with -DHEADFIRST_UCONTEXT) it is the C library's, which makes two system calls each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if !defined(__x86_64__) && !defined(HEADFIRST_UCONTEXT)
#define HEADFIRST_UCONTEXT
#endif
#ifdef HEADFIRST_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

constexpr std::size_t PAGE = 4096;
constexpr std::size_t STACK_BYTES = 64 * 1024; // its guard page included

// A stack's first byte is at a multiple of STACK_BYTES, and it ends at `top`, somewhere in its last page.
struct Stack {
    char *top = nullptr;

    explicit operator bool() const { return top != nullptr; }
    // The lowest byte that may be used.
    char *bottom() const {
        const auto last = reinterpret_cast<std::uintptr_t>(top) - 1;
        return reinterpret_cast<char *>(last / STACK_BYTES * STACK_BYTES + PAGE);
    }
    std::size_t bytes() const { return std::size_t(top - bottom()); }
};

// The stacks of one OS thread: made in slabs, used again, never given back before the thread ends.
class Stacks {
  public:
    Stacks() = default;
    Stacks(const Stacks &) = delete;
    ~Stacks();
    // None if there is no memory.
    Stack take();
    void give_back(Stack stack) { free.push_back(stack); }

  private:
    bool grow();
    std::vector<void *> slabs;
    std::vector<Stack> free;
    std::size_t made = 0;
};

// A place where control can go on: a fiber that handed over, or the OS thread's own stack.
struct Context {
#ifdef HEADFIRST_UCONTEXT
    ucontext_t registers;
#else
    void *stack_pointer = nullptr;
#endif
#ifdef __SANITIZE_ADDRESS__
    void *bottom = nullptr;
    std::size_t bytes = 0;
    void *fake_stack = nullptr;
#endif
    // The OS thread's own.
    static Context here();
    // Becomes a fiber that will begin with `entry`, which never returns.
    void begin(Stack stack, void (*entry)());
    // The fiber's stack is `stack` from now on.
    void moved_to([[maybe_unused]] Stack stack) {
#ifdef __SANITIZE_ADDRESS__
        bottom = stack.bottom();
        bytes = stack.bytes();
        fake_stack = nullptr;
#endif
    }
};

#ifdef HEADFIRST_UCONTEXT
inline void switch_registers(Context &from, Context &to) { swapcontext(&from.registers, &to.registers); }
#else
extern "C" void headfirst_emulator_switch(void **from, void *to) __attribute__((visibility("hidden")));
inline void switch_registers(Context &from, Context &to) { headfirst_emulator_switch(&from.stack_pointer, to.stack_pointer); }
#endif

// Goes on with `to`; comes back when somebody hands over to `from`.
inline void hand_over(Context &from, Context &to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#endif
    switch_registers(from, to);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Each fiber's entry calls this first.
inline void arrived() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

} // namespace emulator
