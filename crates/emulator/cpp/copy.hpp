// Asynchronous copies to shared memory (cp.async). A GPU may do a copy at any time between its
// start and the wait for it. The emulation takes the worst time: the destination becomes NaN when
// the copy starts, and is written when the thread that started the copy waits for it.
namespace emulation {

constexpr u32 MAX_COPIES = 256;

struct Copy {
    u8* to;
    const u8* from;
    u32 size;
    u32 bytes; // read from the source; zeros follow
    u32 group;
};

static Copy copies[MAX_THREADS][MAX_COPIES];

static bool is_readable(const u8* from, u32 bytes) {
    const Launch& launch = *block.launch;
    for (u64 n = 0; n < launch.global_count; n++) {
        if ((u64)from >= launch.global[n].start && (u64)from + bytes <= launch.global[n].end) {
            return true;
        }
    }
    return bytes == 0;
}

static void start_copy(void* shared, const void* global, u32 size, u32 bytes, u32 line) {
    Thread& thread = current();
    if (!are_shared(shared, size, line, "a copy")) {
        leave();
    }
    if ((u64)global % size != 0) {
        report(line, 0, "thread %u: a copy from an address that is not a multiple of %u",
               thread.index, size);
    } else if (bytes > size) {
        report(line, 0, "thread %u: a copy of %u bytes, of at most %u", thread.index, bytes, size);
    } else if (!is_readable((const u8*)global, bytes)) {
        report(line, 0, "thread %u: a copy from memory outside every tensor", thread.index);
    } else if (thread.copy_count == MAX_COPIES) {
        report(line, 0, "thread %u: more than %u copies under way", thread.index, MAX_COPIES);
    }
    if (block.failed) {
        leave();
    }
    poison(shared, size);
    copies[thread.index][thread.copy_count++] =
        Copy{(u8*)shared, (const u8*)global, size, bytes, thread.open_group};
}

// Does the copies of all closed groups except the last `latest`. Copies that no copy_commit has
// closed stay under way.
static void end_copies(u32 latest) {
    Thread& thread = current();
    Copy* copy = copies[thread.index];
    u32 left = 0;
    for (u32 n = 0; n < thread.copy_count; n++) {
        if (copy[n].group + latest < thread.open_group) {
            u8 x[16] = {};
            memcpy(x, copy[n].from, copy[n].bytes);
            memcpy(copy[n].to, x, copy[n].size);
        } else {
            copy[left++] = copy[n];
        }
    }
    thread.copy_count = left;
}

} // namespace emulation

DEVICE void copy16(void* shared, const void* global, u32 line = __builtin_LINE()) {
    emulation::start_copy(shared, global, 16, 16, line);
}
DEVICE void copy16_padded(void* shared, const void* global, u32 bytes,
                          u32 line = __builtin_LINE()) {
    emulation::start_copy(shared, global, 16, bytes, line);
}
DEVICE void copy4_padded(void* shared, const void* global, u32 bytes, u32 line = __builtin_LINE()) {
    emulation::start_copy(shared, global, 4, bytes, line);
}
DEVICE void copy_commit() { emulation::current().open_group++; }
template <int LATEST> DEVICE void copy_wait() { emulation::end_copies(LATEST); }
