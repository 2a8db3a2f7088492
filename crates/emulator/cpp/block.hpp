// The one block that runs: its shared memory, and its threads as fibers. A fiber runs until it has
// to wait for others.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct Params;

namespace emulation {

constexpr u32 WARP = 32;
constexpr u32 MAX_THREADS = 1024;
constexpr u64 STACK_BYTES = 64 << 10;
// Lies before and after shared memory. A write there is a mistake of the kernel.
constexpr u64 CANARY_BYTES = 4 << 10;
// Memory that no thread has written: NaN as f32, as f16 and as bf16.
constexpr u16 POISON = 0x7FE5;

// The order of threads that are all able to run.
enum Order : u32 { FORWARD = 0, REVERSE = 1, SHUFFLED = 2 };

struct Allocation {
    u64 start;
    u64 end;
};

// A launch. `Launch` in src/kernel.rs has the same fields.
struct Launch {
    const u32* blocks;        // indices of the blocks, in the order in which they run
    u64 block_count;
    u8* memory;               // shared memory and stacks, aligned to 4096
    u64 memory_bytes;
    const Allocation* global; // the memory that copies may read
    u64 global_count;
    u64 seed;                 // of the shuffled order
    char* error;              // receives a message that ends with 0
    u64 error_bytes;
    u32 error_lines[2];       // receives the lines of the kernel source that caused it; 0: none
    u32 threads_x;
    u32 threads_y;
    u32 shared_bytes;
    u32 order;
    u32 bf16;                 // whether tensor cores multiply bf16 rather than f16
    u32 mutant;               // the mutant of the kernel source that runs; 0: none
    u32 sum_products;         // 16-bit products that tensor cores add per truncated step; 0: rounded
    u32 sum_extra_bits;       // bits that such a step keeps below those of an f32
};

enum class State : u8 { Runs, Waits, Ended };

// Where threads wait: for all threads of the block (the first two), or of the warp.
enum class Meeting : u8 {
    Barrier,
    BarrierAny,
    ShuffleXor,
    Shuffle,
    Any,
    WarpBarrier,
    LoadMatrix,
    LoadMatrixTransposed,
    MultiplyAdd,
    MultiplyAddHalf,
    MultiplyAddTf32,
};

static const char* const MEETINGS[] = {
    "barrier",
    "barrier_any",
    "shuffle_xor",
    "shuffle",
    "warp_any",
    "warp_barrier",
    "load_matrix4",
    "load_matrix4_transposed",
    "multiply_add_16x8x16",
    "multiply_add_16x8x8",
    "multiply_add_tf32",
};

struct Thread {
    Fiber fiber;
    u8* stack;
    u32 index;         // in the block
    u32 tx;
    u32 ty;
    State state;
    Meeting meeting;
    u32 line;          // of the kernel source where it waits
    u32 x[10];         // inputs to the meeting, then its results
    const u8* pointer; // another input
    u32 open_group;    // of copies under way: see copy.hpp
    u32 copy_count;
};

struct Block {
    Launch* launch;
    const Params* params;
    void (*kernel)(const Params&);
    u32 index;
    u32 threads;
    Thread* current; // the thread that runs
    bool failed;
    u64 random;
    u8* shared;
    Fiber scheduler;
    Thread thread[MAX_THREADS];
};

// There is only one: the launches of a library run one after the other.
static Block block;

static Thread& current() { return *block.current; }

// Reports an error. Only the first one counts.
__attribute__((format(printf, 3, 4)))
static void report(u32 line, u32 other_line, const char* format, ...) {
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

// Returns to the scheduler, which never resumes a thread that made a mistake.
static void leave() { switch_fiber(current().fiber, block.scheduler); }

// Waits until all threads of the warp, or of the block, reach the same meeting.
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

// Whether `bytes` bytes at `pointer` lie in shared memory, with the alignment that an instruction
// needs that accesses them at once. Otherwise reports an error.
static bool are_shared(const void* pointer, u32 bytes, u32 line, const char* what) {
    const u8* from = (const u8*)pointer;
    const u32 size = block.launch->shared_bytes;
    const u32 thread = block.current->index;
    const i64 at = from - block.shared;
    if (from < block.shared || from + bytes > block.shared + size) {
        report(line, 0, "thread %u: %s outside shared memory, at byte %lld of %u", thread, what, at,
               size);
    } else if ((u64)from % bytes != 0) {
        report(line, 0, "thread %u: %s at byte %lld of shared memory, not a multiple of %u", thread,
               what, at, bytes);
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

DEVICE void barrier(u32 line = __builtin_LINE()) {
    emulation::meet(emulation::Meeting::Barrier, line);
}

DEVICE bool barrier_any(bool mine, u32 line = __builtin_LINE()) {
    emulation::current().x[0] = mine;
    return emulation::meet(emulation::Meeting::BarrierAny, line).x[0] != 0;
}
