// The scheduler of a block's threads, and the C interface: KERNEL(name) defines a function of that
// name, which runs the blocks of a launch.
namespace emulation {

// The state of a warp once none of its threads can continue alone.
enum class Warp : u8 { Runs, AtBarrier, Ended };

// Describes where a thread is, for an error about threads that do not meet.
static void describe(char (&text)[96], u32 n) {
    const Thread& thread = block.thread[n];
    if (thread.state == State::Ended) {
        snprintf(text, sizeof text, "thread %u has ended", n);
    } else {
        snprintf(text, sizeof text, "thread %u waits for %s at line %u", n,
                 MEETINGS[(u32)thread.meeting], thread.line);
    }
}

static void report_divergence(const char* who, u32 a, u32 b) {
    char first[96];
    char second[96];
    describe(first, a);
    describe(second, b);
    const auto line = [](u32 n) {
        return block.thread[n].state == State::Ended ? 0 : block.thread[n].line;
    };
    report(line(a), line(b), "threads of one %s diverge: %s, %s", who, first, second);
}

static bool are_together(const Thread& a, const Thread& b) {
    return a.state == b.state &&
           (a.state != State::Waits || (a.meeting == b.meeting && a.line == b.line));
}

// Runs every thread of a warp until it waits. Then does the operation that they all wait for, if it
// concerns the warp alone.
static Warp step(u32 warp) {
    u32 order[WARP];
    fill_order(order, WARP);
    for (u32 n = 0; n < WARP && !block.failed; n++) {
        block.current = block.thread + warp * WARP + order[n];
        if (current().state != State::Runs) {
            continue;
        }
        switch_fiber(block.scheduler, current().fiber);
        if (!block.failed && !is_poison(current().stack, 16)) {
            report(0, 0, "thread %u: a stack of %llu bytes is too small", current().index,
                   STACK_BYTES);
        }
    }
    if (block.failed) {
        return Warp::Ended;
    }
    Thread* lane = block.thread + warp * WARP;
    for (u32 n = 1; n < WARP; n++) {
        if (!are_together(lane[0], lane[n])) {
            report_divergence("warp", warp * WARP, warp * WARP + n);
            return Warp::Ended;
        }
    }
    if (lane[0].state == State::Ended) {
        return Warp::Ended;
    }
    if (lane[0].meeting == Meeting::Barrier || lane[0].meeting == Meeting::BarrierAny) {
        return Warp::AtBarrier;
    }
    do_together(lane);
    for (u32 n = 0; n < WARP; n++) {
        lane[n].state = State::Runs;
    }
    return Warp::Runs;
}

// Runs all warps until each one is at a barrier or has ended. In a fixed order, each warp runs as
// far as it can before the next one starts; warps cannot get farther apart. In a shuffled order,
// any of them makes the next step.
static void run_to_barrier() {
    const u32 warps = block.threads / WARP;
    u32 left[MAX_THREADS / WARP];
    u32 count = warps;
    fill_order(left, warps);
    while (count > 0 && !block.failed) {
        const u32 n = block.launch->order == SHUFFLED ? random_below(count) : 0;
        if (step(left[n]) != Warp::Runs) {
            memmove(left + n, left + n + 1, (count - n - 1) * sizeof left[0]);
            count--;
        }
    }
}

// The entry point of every fiber.
static void thread_entry() {
    block.kernel(*block.params);
    if (current().copy_count > 0) {
        report(0, 0, "thread %u ends with copies under way", current().index);
    }
    current().state = State::Ended;
    leave();
}

static void run_block(u8* stacks) {
    Launch& launch = *block.launch;
    poison(launch.memory, 2 * CANARY_BYTES + launch.shared_bytes);
    for (u32 n = 0; n < block.threads; n++) {
        Thread& thread = block.thread[n];
        thread.stack = stacks + n * STACK_BYTES;
        thread.index = n;
        thread.tx = n % launch.threads_x;
        thread.ty = n / launch.threads_x;
        thread.state = State::Runs;
        thread.open_group = 0;
        thread.copy_count = 0;
        poison(thread.stack, 16);
        make_fiber(thread.fiber, thread.stack, STACK_BYTES, thread_entry);
    }
    for (;;) {
        run_to_barrier();
        if (block.failed) {
            return;
        }
        u32 any = 0;
        for (u32 n = 0; n < block.threads; n++) {
            if (!are_together(block.thread[0], block.thread[n])) {
                report_divergence("block", 0, n);
                return;
            }
            any |= block.thread[n].x[0];
        }
        if (block.thread[0].state == State::Ended) {
            break;
        }
        for (u32 n = 0; n < block.threads; n++) {
            block.thread[n].x[0] = any;
            block.thread[n].state = State::Runs;
        }
    }
    if (!is_poison(launch.memory, CANARY_BYTES)) {
        report(0, 0, "memory before shared memory was written");
    } else if (!is_poison(block.shared + launch.shared_bytes, CANARY_BYTES)) {
        report(0, 0, "memory after the %u bytes of shared memory was written", launch.shared_bytes);
    }
}

// Runs the blocks of a launch. Returns 0, or 1 and a message in launch->error.
static int run(Launch* launch, const Params* params, void (*kernel)(const Params&)) {
    block.launch = launch;
    block.params = params;
    block.kernel = kernel;
    block.index = 0;
    block.threads = launch->threads_x * launch->threads_y;
    block.failed = false;
    block.random = launch->seed;
    block.shared = launch->memory + CANARY_BYTES;
    const u64 before_stacks = 2 * CANARY_BYTES + (launch->shared_bytes + 15) / 16 * 16;
    if (block.threads == 0 || block.threads > MAX_THREADS || block.threads % WARP != 0) {
        report(0, 0, "%u threads: a block has 1 to %u whole warps", block.threads,
               MAX_THREADS / WARP);
    } else if (launch->memory_bytes < before_stacks + block.threads * STACK_BYTES) {
        report(0, 0, "not enough memory for %u bytes of shared memory and %u stacks",
               launch->shared_bytes, block.threads);
    }
    for (u64 n = 0; n < launch->block_count && !block.failed; n++) {
        block.index = launch->blocks[n];
        run_block(launch->memory + before_stacks);
    }
    return block.failed;
}

} // namespace emulation

// Whether change number n that tests put into a kernel source is on. Numbers start at 1.
DEVICE bool is_mutant(u32 n) { return emulation::block.launch->mutant == n; }

#define KERNEL(name)                                                                              \
    static void emulated_kernel(const Params& params);                                            \
    extern "C" int name(emulation::Launch* launch, const Params* params) {                        \
        return emulation::run(launch, params, emulated_kernel);                                   \
    }                                                                                             \
    static void emulated_kernel(const Params& params)
