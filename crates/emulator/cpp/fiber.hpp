// A fiber is a stack and the place on it where to go on. Switching from one to another is a call that returns elsewhere.
namespace emulation {

// What is kept of a fiber that does not run.
struct Fiber;
static void switch_fiber(Fiber& from, Fiber& to);

#if defined(__x86_64__) && !defined(FLASHTILE_EMULATION_UCONTEXT)

struct Fiber {
    void* stack_pointer;
};

// Pushes what a callee must keep by the System V calling convention, changes stacks, and pops. Nobody changes the modes of floating point.
extern "C" void emulation_switch(void** from, void* to) asm("flashtile_emulation_switch");
asm(R"(
    .text
    .p2align 4
flashtile_emulation_switch:
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
)");

static void switch_fiber(Fiber& from, Fiber& to) { emulation_switch(&from.stack_pointer, to.stack_pointer); }

// Makes a fiber that begins with `entry`, which never returns.
static void make_fiber(Fiber& fiber, u8* stack, u64 bytes, void (*entry)()) {
    // As emulation_switch leaves it: six registers and an address to return to. At its entry a function finds the stack pointer 8 off a multiple of 16.
    void** top = (void**)(stack + bytes - 16);
    top[0] = (void*)entry;
    top[1] = nullptr;
    for (u32 n = 1; n <= 6; n++) {
        top[-(int)n] = nullptr;
    }
    fiber.stack_pointer = top - 6;
}

#else

// Portable, with two system calls a switch.
} // namespace emulation
#include <ucontext.h>
namespace emulation {

struct Fiber {
    ucontext_t context;
};

static void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

static void make_fiber(Fiber& fiber, u8* stack, u64 bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

#endif

} // namespace emulation
