// One block at a time: its shared memory, and its threads as fibers that run until they wait for each other.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct Params;

namespace emulation {

constexpr u32 WARP = 32;
constexpr u32 MAX_THREADS = 1024;
constexpr u64 STACK_BYTES = 64 << 10;
// In front of shared memory and behind it. What is written there was meant for elsewhere.
constexpr u64 CANARY_BYTES = 4 << 10;
// Memory that nobody wrote: NaN as f32, as f16 and as bf16.
constexpr u16 POISON = 0x7FE5;

// In which order threads that could all run do run.
enum Order : u32 { FORWARD = 0, REVERSE = 1, SHUFFLED = 2 };

struct Allocation {
    u64 begin;
    u64 end;
};

// A launch, or some blocks of one: the other half is `Launch` in src/emulator/library.rs.
struct Launch {
    const u32* blocks;          // indices of blocks, in the order in which they run
    u64 block_count;
    u8* memory;                 // shared memory and stacks, aligned to 4096
    u64 memory_bytes;
    const Allocation* global;   // what copies may read
    u64 global_count;
    u64 seed;                   // of the shuffled order
    char* error;                // receives text that ends with 0
    u64 error_bytes;
    u32 error_lines[2];         // receives lines of the kernel's text that the error is about; 0: none
    u32 threads_x;
    u32 threads_y;
    u32 shared_bytes;
    u32 order;
    u32 bf16;                   // what tensor cores multiply: bf16, else f16
    u32 mutant;                 // which of a text's mutants runs; 0: none
};

enum class State : u8 { Runs, Waits, Ended };

// What threads wait for: all of a block (the first two), or all of a warp.
enum class Meeting : u8 { Barrier, BarrierAny, ShuffleXor, Shuffle, Any, LoadMatrix, LoadMatrixTransposed, MultiplyAdd, MultiplyAddHalf };

static const char* const MEETINGS[] = {"barrier", "barrier_any", "shuffle_xor", "shuffle", "warp_any", "load_matrix4", "load_matrix4_transposed",
                                       "multiply_add_16x8x16", "multiply_add_16x8x8"};

struct Thread {
    Fiber fiber;
    u8* stack;
    u32 index;           // in the block
    u32 tx;
    u32 ty;
    State state;
    Meeting meeting;
    u32 line;            // of the kernel's text, where it waits
    u32 x[10];           // what it brings to the meeting and takes from it
    const u8* pointer;
    u32 open_group;      // copies that are under way: see copy.hpp
    u32 copy_count;
};

struct Block {
    Launch* launch;
    const Params* params;
    void (*kernel)(const Params&);
    u32 index;
    u32 threads;
    Thread* current;     // the one that runs
    bool failed;
    u64 random;
    u8* shared;
    Fiber scheduler;
    Thread thread[MAX_THREADS];
};

// Of the one block that runs: launches of a library follow each other.
static Block block;

static Thread& current() { return *block.current; }

// Of several errors the first one counts.
__attribute__((format(printf, 3, 4))) static void report(u32 line, u32 other_line, const char* format, ...) {
    if (block.failed) {
        return;
    }
    block.failed = true;
    Launch& launch = *block.launch;
    launch.error_lines[0] = line;
    launch.error_lines[1] = other_line;
    const int length = snprintf(launch.error, launch.error_bytes, "block %u: ", block.index);
    va_list values;
    va_start(values, format);
    vsnprintf(launch.error + length, launch.error_bytes - (u64)length, format, values);
    va_end(values);
}

// Gives the processor back. A thread that made a mistake is never taken up again.
static void leave() { switch_fiber(current().fiber, block.scheduler); }

// Waits until all threads of the warp, or of the block, are at the same meeting.
static Thread& meet(Meeting meeting, u32 line) {
    Thread& thread = current();
    thread.state = State::Waits;
    thread.meeting = meeting;
    thread.line = line;
    leave();
    return thread;
}

static void poison(void* to, u64 bytes) {
    for (u64 n = 0; n < bytes / 2; n++) {
        ((u16*)to)[n] = POISON;
    }
}

static bool is_poison(const u8* from, u64 bytes) {
    for (u64 n = 0; n < bytes / 2; n++) {
        if (((const u16*)from)[n] != POISON) {
            return false;
        }
    }
    return true;
}

// Whether so many bytes of shared memory begin there, aligned as instructions that move them at once ask for.
static bool are_shared(const void* pointer, u32 bytes, u32 line, const char* what) {
    const u8* from = (const u8*)pointer;
    if (from < block.shared || from + bytes > block.shared + block.launch->shared_bytes) {
        report(line, 0, "thread %u: %s outside of shared memory, at byte %lld of %u", block.current->index, what, (long long)(from - block.shared),
               block.launch->shared_bytes);
    } else if ((u64)from % bytes != 0) {
        report(line, 0, "thread %u: %s at byte %lld of shared memory, which is no multiple of %u", block.current->index, what,
               (long long)(from - block.shared), bytes);
    }
    return !block.failed;
}

static u32 random_below(u32 n) {
    // SplitMix64
    u64 x = block.random += 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return (u32)(((x ^ x >> 31) >> 32) * n >> 32);
}

static void fill_order(u32* order, u32 count) {
    for (u32 n = 0; n < count; n++) {
        order[n] = block.launch->order == REVERSE ? count - 1 - n : n;
    }
    if (block.launch->order == SHUFFLED) {
        for (u32 n = count; n > 1; n--) {
            const u32 other = random_below(n);
            const u32 kept = order[n - 1];
            order[n - 1] = order[other];
            order[other] = kept;
        }
    }
}

} // namespace emulation

DEVICE u32 block_index() { return emulation::block.index; }
DEVICE u32 thread_x() { return emulation::current().tx; }
DEVICE u32 thread_y() { return emulation::current().ty; }
DEVICE u8* shared_memory() { return emulation::block.shared; }

DEVICE void barrier(u32 line = __builtin_LINE()) { emulation::meet(emulation::Meeting::Barrier, line); }

DEVICE bool barrier_any(bool mine, u32 line = __builtin_LINE()) {
    emulation::current().x[0] = mine;
    return emulation::meet(emulation::Meeting::BarrierAny, line).x[0] != 0;
}
