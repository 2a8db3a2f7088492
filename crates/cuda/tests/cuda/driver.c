// Stands for NVIDIA's driver where there is none: device memory is memory, work is done when it is enqueued, and a launch is a line in the file
// FAKE_LOG. It knows the types of cuda.h, and has all functions that the crate calls.
//
// FAKE_VERSION, FAKE_DEVICES, FAKE_MEMORY (bytes that one allocation may have) and FAKE_FAIL (an error that every wait returns) change what it is.
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

static void tell(const char* line) {
    FILE* log = fopen(getenv("FAKE_LOG"), "a");
    fprintf(log, "%s\n", line);
    fclose(log);
}

Result cuInit(unsigned flags) { return setting("FAKE_DEVICES", 2) > 0 ? SUCCESS : NO_DEVICE; }
Result cuDriverGetVersion(int* version) { return *version = setting("FAKE_VERSION", 12040), SUCCESS; }
Result cuGetErrorName(Result error, const char** name) { return *name = "FAKE", SUCCESS; }
Result cuGetErrorString(Result error, const char** text) { return *text = "as the fake was told", SUCCESS; }

Result cuDeviceGetCount(int* count) { return *count = setting("FAKE_DEVICES", 2), SUCCESS; }
Result cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
Result cuDeviceGetName(char* name, int room, int device) { return snprintf(name, room, "Fake %d", device), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t* bytes, int device) { return *bytes = 1ul << 30, SUCCESS; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
    case 75: return *value = 8, SUCCESS;             // major
    case 76: return *value = 6, SUCCESS;             // minor
    case 8: return *value = 48 << 10, SUCCESS;       // shared memory of a block
    case 97: return *value = 99 << 10, SUCCESS;      // where it opts in
    case 16: return *value = 10, SUCCESS;            // multiprocessors
    default: return *value = 0, SUCCESS;
    }
}

// A context is a device's number plus 1. Each thread has a current one.
static _Thread_local void* current;
Result cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)(size_t)(device + 1), SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
Result cuCtxGetCurrent(void** context) { return *context = current, SUCCESS; }
Result cuCtxSetCurrent(void* context) { return current = context, SUCCESS; }
Result cuCtxSynchronize(void) { return setting("FAKE_FAIL", SUCCESS); }

// A capture must not wait for the world outside. Who waits for it becomes part of it, and has to be waited for before it ends.
struct Stream {
    int captured; // 1: by itself, 2: because it waited, 3: and was waited for in its turn
    int spoiled;
};
struct Event {
    int recorded;
    struct Stream* captured;
};
static int parted;
static int is_captured(const struct Stream* stream) { return stream && stream->captured; }

Result cuStreamCreate(void** stream, unsigned flags) { return *stream = calloc(1, sizeof(struct Stream)), SUCCESS; }
Result cuStreamDestroy_v2(void* stream) { return free(stream), SUCCESS; }
Result cuStreamSynchronize(struct Stream* stream) { return is_captured(stream) ? CAPTURE_UNSUPPORTED : setting("FAKE_FAIL", SUCCESS); }
Result cuStreamWaitEvent(struct Stream* stream, struct Event* event, unsigned flags) {
    if (!event->recorded) {
        return SUCCESS;
    }
    if (is_captured(stream) && !event->captured) {
        return stream->spoiled = 1, CAPTURE_ISOLATION;
    }
    if (!event->captured) {
        return SUCCESS;
    }
    if (!stream) {
        return CAPTURED_EVENT;
    }
    if (!is_captured(stream)) {
        stream->captured = 2;
        parted++;
    } else if (event->captured->captured == 2) {
        event->captured->captured = 3;
        parted--;
    }
    return SUCCESS;
}
Result cuStreamIsCapturing(struct Stream* stream, int* status) { return *status = is_captured(stream) ? 1 : 0, SUCCESS; }
// The stream without a name cannot be captured.
Result cuStreamBeginCapture_v2(struct Stream* stream, int mode) {
    return stream && !stream->captured ? (stream->captured = 1, SUCCESS) : CAPTURE_UNSUPPORTED;
}
Result cuStreamEndCapture(struct Stream* stream, void** graph) {
    stream->captured = 0;
    return *graph = stream, stream->spoiled ? CAPTURE_INVALIDATED : (parted ? CAPTURE_UNJOINED : SUCCESS);
}
Result cuGraphInstantiateWithFlags(void** run, void* graph, unsigned long long flags) { return *run = graph, SUCCESS; }
Result cuGraphExecDestroy(void* run) { return SUCCESS; }
Result cuGraphDestroy(void* graph) { return SUCCESS; }

Result cuEventCreate(void** event, unsigned flags) { return *event = calloc(1, sizeof(struct Event)), SUCCESS; }
Result cuEventDestroy_v2(void* event) { return free(event), SUCCESS; }
Result cuEventRecord(struct Event* event, struct Stream* stream) {
    if (!current || !event) {
        return INVALID_CONTEXT;
    }
    event->recorded = 1;
    event->captured = is_captured(stream) ? stream : NULL;
    return tell("recorded"), SUCCESS;
}
Result cuEventSynchronize(void* event) { return setting("FAKE_FAIL", SUCCESS); }
Result cuEventElapsedTime(float* ms, void* begin, void* end) { return *ms = 1.5f, SUCCESS; }

Result cuMemAlloc_v2(Address* address, size_t bytes) {
    if (!current || bytes == 0) {
        return current ? INVALID : INVALID_CONTEXT;
    }
    if (bytes > (size_t)setting("FAKE_MEMORY", 1l << 30)) {
        return OUT_OF_MEMORY;
    }
    return *address = (Address)aligned_alloc(256, (bytes + 255) / 256 * 256), SUCCESS;
}
Result cuMemFree_v2(Address address) { return free((void*)address), SUCCESS; }
Result cuMemAllocAsync(Address* address, size_t bytes, void* stream) { return cuMemAlloc_v2(address, bytes); }
Result cuMemFreeAsync(Address address, void* stream) { return cuMemFree_v2(address); }
Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    return memcpy((void*)to, from, bytes), SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    return memcpy(to, (void*)from, bytes), SUCCESS;
}

// A module is a copy of its image, which begins as the fake compiler's does; a function is its own name and what it opted in to.
struct Function {
    char name[64];
    unsigned shared;
};
Result cuModuleLoadData(void** module, const void* image) {
    return current && strncmp(image, "\x7f" "FAKE", 5) == 0 ? (*module = strdup(image), SUCCESS) : BAD_IMAGE;
}
Result cuModuleUnload(void* module) { return free(module), tell("unloaded"), SUCCESS; }
Result cuModuleGetFunction(void** function, void* module, const char* name) {
    struct Function* made = calloc(1, sizeof *made);
    made->shared = 48 << 10;
    return strncpy(made->name, name, sizeof made->name - 1), *function = made, SUCCESS;
}
Result cuFuncSetAttribute(void* function, int attribute, int value) {
    return attribute == 8 ? (((struct Function*)function)->shared = value, SUCCESS) : INVALID;
}

#ifndef INCOMPLETE
// The begin of `CudaParams`.
struct Params {
    const float *q, *k, *v, *mask;
    const int* kv_lens;
    float *out, *lse, *scores;
    unsigned long long q_strides[4], k_strides[4], v_strides[4], out_strides[4], mask_strides[4], score_stride, bh_begin;
    unsigned lse_rows, seq_q, seq_kv, heads, group, row_begin, row_end;
};

// Only f32, with scores of zero: every output is the mean of the values, of which the fake takes the first column.
static void flash(const struct Params* p) {
    for (unsigned i = p->row_begin; i < p->row_end; i++) {
        float sum = 0;
        for (unsigned j = 0; j < p->seq_kv; j++) {
            sum += p->v[j * p->v_strides[2]];
        }
        p->out[i * p->out_strides[2]] = sum / p->seq_kv;
    }
}

Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                      void** parameters, void** extra) {
    const struct Function* kernel = function;
    if (!current || shared > kernel->shared || gy * gz * bz != 1 || gx * bx * by == 0 || bx * by > 1024 || extra) {
        return INVALID;
    }
    if (strcmp(kernel->name, "flash_forward") == 0) {
        flash(parameters[0]);
    }
    char line[200];
    snprintf(line, sizeof line, "launched %s %u scores %p", kernel->name, gx, (void*)((struct Params*)parameters[0])->scores);
    tell(line);
    return SUCCESS;
}
#endif
