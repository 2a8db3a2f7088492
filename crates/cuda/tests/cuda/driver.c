// Replaces NVIDIA's driver in tests. Device memory is host memory, work is done when it is
// enqueued, and a launch writes a line to the file FAKE_LOG. The types are those of cuda.h, and
// every function that the crate calls is here.
//
// Settings: FAKE_VERSION, FAKE_DEVICES (how many), FAKE_MEMORY (most bytes of one allocation) and
// FAKE_FAIL (the error that every wait returns).
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Address;
enum {
    SUCCESS = 0,
    INVALID = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    BAD_IMAGE = 200,
    INVALID_CONTEXT = 201,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
};

static long setting(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}

static void write_log(const char* line) {
    FILE* log = fopen(getenv("FAKE_LOG"), "a");
    fprintf(log, "%s\n", line);
    fclose(log);
}

Result cuInit(unsigned flags) { return setting("FAKE_DEVICES", 2) > 0 ? SUCCESS : NO_DEVICE; }
Result cuDriverGetVersion(int* version) {
    return *version = setting("FAKE_VERSION", 12040), SUCCESS;
}
Result cuGetErrorName(Result error, const char** name) { return *name = "FAKE", SUCCESS; }
Result cuGetErrorString(Result error, const char** text) {
    return *text = "an error of the fake driver", SUCCESS;
}

Result cuDeviceGetCount(int* count) { return *count = setting("FAKE_DEVICES", 2), SUCCESS; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
Result cuDeviceGetName(char* name, int size, int device) {
    return snprintf(name, size, "Fake %d", device), SUCCESS;
}
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 1ul << 30, SUCCESS; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 75: return *value = 8, SUCCESS;        // major
    case 76: return *value = 6, SUCCESS;        // minor
    case 8: return *value = 48 << 10, SUCCESS;  // shared memory per block
    case 97: return *value = 99 << 10, SUCCESS; // shared memory per block that opts in
    case 16: return *value = 10, SUCCESS;       // multiprocessors
    case 115: return *value = 1, SUCCESS;       // memory pools
    default: return *value = 0, SUCCESS;
    }
}

// A capture into a graph. It starts on one stream. A stream that waits for an event of the capture
// joins it, and has to be waited for in turn before the capture ends. At most one capture is open.
struct Capture {
    int unjoined, invalid, ended;
};
struct Stream {
    struct Capture* capture;
    int unjoined;
};
struct Event {
    int recorded;
    struct Stream* stream;
    struct Capture* capture;
};
static struct Capture* open_capture;

// Some calls are not allowed while a stream is captured, and they invalidate the capture.
static Result refused_in_capture(void) {
    return open_capture ? (open_capture->invalid = 1, CAPTURE_UNSUPPORTED) : SUCCESS;
}

// A context is a device's number plus 1. Each thread has a current one.
static _Thread_local void* current;
Result cuDevicePrimaryCtxRetain(void** context, int device) {
    return *context = (void*)(size_t)(device + 1), SUCCESS;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
Result cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }
Result cuCtxSynchronize(void) {
    Result refused = refused_in_capture();
    return refused ? refused : setting("FAKE_FAIL", SUCCESS);
}

// NULL is the default stream, and the handle 2 is the stream of the calling thread.
static struct Stream* named(void* handle) {
    static _Thread_local struct Stream of_thread;
    return handle == (void*)2 ? &of_thread : handle;
}
static struct Capture* capture_of(const struct Stream* stream) {
    return stream && stream->capture && !stream->capture->ended ? stream->capture : NULL;
}

Result cuStreamCreate(void** stream, unsigned flags) {
    return *stream = calloc(1, sizeof(struct Stream)), SUCCESS;
}
Result cuStreamDestroy_v2(void* stream) {
    if (capture_of(stream)) {
        capture_of(stream)->invalid = 1;
    }
    return free(stream), SUCCESS;
}
Result cuStreamSynchronize(void* stream) {
    return capture_of(named(stream)) ? refused_in_capture() : setting("FAKE_FAIL", SUCCESS);
}
Result cuStreamWaitEvent(void* handle, struct Event* event, unsigned flags) {
    struct Stream* stream = named(handle);
    struct Capture* capture = capture_of(stream);
    if (!event->recorded) {
        return SUCCESS;
    }
    if (capture && event->capture != capture) {
        return capture->invalid = 1, CAPTURE_ISOLATION;
    }
    if (!event->capture) {
        return SUCCESS;
    }
    if (!stream || event->capture->ended) {
        return CAPTURED_EVENT;
    }
    if (!capture) {
        stream->capture = event->capture;
        stream->unjoined = 1;
        event->capture->unjoined++;
    } else if (event->stream->unjoined) {
        event->stream->unjoined = 0;
        capture->unjoined--;
    }
    return SUCCESS;
}
Result cuStreamIsCapturing(void* stream, int* status) {
    return *status = capture_of(named(stream)) ? 1 : 0, SUCCESS;
}
Result cuStreamBeginCapture_v2(void* handle, int mode) {
    struct Stream* stream = named(handle);
    // The default stream cannot be captured.
    if (!stream || open_capture) {
        return CAPTURE_UNSUPPORTED;
    }
    return stream->capture = open_capture = calloc(1, sizeof(struct Capture)), SUCCESS;
}
Result cuStreamEndCapture(void* handle, void** graph) {
    struct Capture* capture = capture_of(named(handle));
    open_capture = NULL;
    capture->ended = 1;
    *graph = capture;
    return capture->invalid ? CAPTURE_INVALIDATED : capture->unjoined ? CAPTURE_UNJOINED : SUCCESS;
}
Result cuGraphInstantiateWithFlags(void** run, void* graph, unsigned long long flags) {
    return *run = graph, SUCCESS;
}
Result cuGraphExecDestroy(void* run) { return SUCCESS; }
Result cuGraphDestroy(void* graph) { return SUCCESS; }

Result cuEventCreate(void** event, unsigned flags) {
    return *event = calloc(1, sizeof(struct Event)), SUCCESS;
}
Result cuEventDestroy_v2(void* event) { return free(event), SUCCESS; }
Result cuEventRecord(struct Event* event, void* stream) {
    if (!current || !event) {
        return INVALID_CONTEXT;
    }
    event->recorded = 1;
    event->stream = named(stream);
    event->capture = capture_of(event->stream);
    return write_log("recorded"), SUCCESS;
}
Result cuEventSynchronize(void* event) { return setting("FAKE_FAIL", SUCCESS); }
Result cuEventElapsedTime(float* ms, void* start, void* end) { return *ms = 1.5f, SUCCESS; }

static Result allocate(Address* address, size_t bytes) {
    if (!current || bytes == 0) {
        return current ? INVALID : INVALID_CONTEXT;
    }
    if (bytes > (size_t)setting("FAKE_MEMORY", 1l << 30)) {
        return OUT_OF_MEMORY;
    }
    return *address = (Address)aligned_alloc(256, (bytes + 255) / 256 * 256), SUCCESS;
}
Result cuMemAlloc_v2(Address* address, size_t bytes) {
    Result refused = refused_in_capture();
    return refused ? refused : allocate(address, bytes);
}
Result cuMemFree_v2(Address address) {
    Result refused = refused_in_capture();
    return refused ? refused : (free((void*)address), SUCCESS);
}
Result cuMemAllocAsync(Address* address, size_t bytes, void* stream) {
    return allocate(address, bytes);
}
Result cuMemFreeAsync(Address address, void* stream) { return free((void*)address), SUCCESS; }
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    return memcpy((void*)to, from, bytes), SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    return memcpy(to, (void*)from, bytes), SUCCESS;
}

// A module is a copy of its image, which starts as the fake compiler's code does. A function is its
// name and the dynamic shared memory that it opted in to.
struct Function {
    char name[64];
    unsigned shared;
};
Result cuModuleLoadData(void** module, const void* image) {
    if (!current || strncmp(image, "\x7f" "FAKE", 5) != 0) {
        return BAD_IMAGE;
    }
    return *module = strdup(image), SUCCESS;
}
Result cuModuleUnload(void* module) { return free(module), write_log("unloaded"), SUCCESS; }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
    struct Function* made = calloc(1, sizeof *made);
    made->shared = 48 << 10;
    return strncpy(made->name, name, sizeof made->name - 1), *function = made, SUCCESS;
}
Result cuFuncSetAttribute(struct Function* function, int attribute, int value) {
    char line[100];
    switch (attribute) {
    case 8: return function->shared = value, SUCCESS;
    case 9: // the preferred share of shared memory, in percent
        snprintf(line, sizeof line, "carveout %s %d", function->name, value);
        return write_log(line), SUCCESS;
    default: return INVALID;
    }
}

#ifndef INCOMPLETE
// The first fields of `CudaParams`.
struct Params {
    const float *q, *k, *v, *mask;
    const int* kv_lens;
    float *out, *lse, *scores;
    unsigned long long q_strides[4], k_strides[4], v_strides[4], out_strides[4], mask_strides[4];
    unsigned long long score_stride, bh_begin;
    unsigned lse_rows, seq_q, seq_kv, heads, group, row_begin, row_end;
};

// Serves f32 and scores of zero only: every output is the mean of the first column of the values.
static void flash(const struct Params* p) {
    for (unsigned i = p->row_begin; i < p->row_end; i++) {
        float sum = 0;
        for (unsigned j = 0; j < p->seq_kv; j++) {
            sum += p->v[j * p->v_strides[2]];
        }
        p->out[i * p->out_strides[2]] = sum / p->seq_kv;
    }
}

Result cuLaunchKernel(const struct Function* kernel, unsigned gx, unsigned gy, unsigned gz,
                      unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                      struct Params** parameters, void** extra) {
    if (!current || shared > kernel->shared || gy * gz * bz != 1 || gx * bx * by == 0 ||
        bx * by > 1024 || extra) {
        return INVALID;
    }
    if (strcmp(kernel->name, "flash_forward") == 0) {
        flash(parameters[0]);
    }
    char line[200];
    void* scores = parameters[0]->scores;
    snprintf(line, sizeof line, "launched %s %u scores %p", kernel->name, gx, scores);
    return write_log(line), SUCCESS;
}
#endif
