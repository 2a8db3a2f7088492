// A fiber is a stack and the place in the code where it continues. A switch to another fiber is a
// call that returns somewhere else.
namespace emulation {

// The state of a fiber that does not run.
struct Fiber;
static void switch_fiber(Fiber& from, Fiber& to);

#if defined(__x86_64__) && !defined(FLASHTILE_EMULATION_UCONTEXT)

struct Fiber {
    void* stack_pointer;
};

// Pushes the registers that a callee must preserve in the System V calling convention, changes
// stacks, and pops them. Kernels do not change floating-point modes.
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

static void switch_fiber(Fiber& from, Fiber& to) {
    emulation_switch(&from.stack_pointer, to.stack_pointer);
}

// Makes a fiber that starts with `entry`, which never returns.
static void make_fiber(Fiber& fiber, u8* stack, u64 bytes, void (*entry)()) {
    // The stack as emulation_switch leaves it: six registers and a return address. When a function
    // starts, the stack pointer is 8 bytes off a multiple of 16.
    void** top = (void**)(stack + bytes - 16);
    top[0] = (void*)entry;
    top[1] = nullptr;
    for (u32 n = 1; n <= 6; n++) {
        top[-(int)n] = nullptr;
    }
    fiber.stack_pointer = top - 6;
}

#else

// Portable, with two system calls per switch.
} // namespace emulation
#include <ucontext.h>
namespace emulation {

struct Fiber {
    ucontext_t context;
};

static void switch_fiber(Fiber& from, Fiber& to) {
    swapcontext(&from.context, &to.context);
}

static void make_fiber(Fiber& fiber, u8* stack, u64 bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

#endif

} // namespace emulation
