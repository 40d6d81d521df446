/* A libcuda.so.1 without a GPU, for what lies between Python and the driver: our probe, pycuda and
 * cuda-bindings. Device memory is host memory. Stricter than the real one: copies and kernels happen
 * when somebody waits for them, each thread has its own stack of contexts, every call but the first
 * few needs one on it, and nothing may run on the default stream. fake_live() counts what was made
 * and not given back. Of the environment: FAKE_CUDA_GPUS, FAKE_CUDA_INIT (what cuInit gives).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400, NOT_FOUND = 500
};
enum { POISON = 0xFF, LIMIT = 1 << 30, DEEPEST = 16 };

typedef struct Work {
    struct Work *next;
    void *target;
    const void *source; /* NULL: a kernel, which multiplies `count` floats by `factor` */
    size_t size;
    int count;
    float factor;
} Work;

typedef struct { Work *first; uint64_t put, done; } Stream;
typedef struct { Stream *stream; uint64_t end; } Event;

static int the_context, the_module, the_function;
static _Atomic int live, retained; /* counted by threads that do not hold the GIL */
static _Thread_local void *stack[DEEPEST];
static _Thread_local int depth;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define NEEDS_CONTEXT \
    if (!depth || !retained) return INVALID_CONTEXT

int fake_live(void) { return live; }
int fake_retained(void) { return retained; }
int fake_depth(void) { return depth; }

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : number("FAKE_CUDA_INIT", SUCCESS); }
int cuDriverGetVersion(int *version) { *version = 12060; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = number("FAKE_CUDA_GPUS", 1); return SUCCESS; }
int cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Fake %d", device);
    return SUCCESS;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? 1 : 0;
    return device < 0 ? INVALID_VALUE : SUCCESS;
}
int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
            : code == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
            : code == 100             ? "CUDA_ERROR_NO_DEVICE"
                                      : "CUDA_ERROR_OTHER";
    return SUCCESS;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : "another error";
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (device) return INVALID_VALUE;
    ++retained;
    *context = &the_context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (device || !retained) return INVALID_CONTEXT;
    --retained;
    return SUCCESS;
}
int cuCtxPushCurrent_v2(void *context) {
    if (context != &the_context || !retained || depth == DEEPEST) return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}
int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return SUCCESS;
}
int cuCtxGetCurrent(void **context) {
    *context = depth ? stack[depth - 1] : NULL;
    return SUCCESS;
}

static void run_to(Stream *stream, uint64_t end) {
    pthread_mutex_lock(&lock);
    while (stream->done < end) {
        Work *work = stream->first;
        if (work->source) {
            memcpy(work->target, work->source, work->size);
        } else {
            float *values = work->target;
            for (int i = 0; i < work->count; ++i) values[i] *= work->factor;
        }
        stream->first = work->next;
        ++stream->done;
        free(work);
    }
    pthread_mutex_unlock(&lock);
}
static int put(Stream *stream, Work work) {
    NEEDS_CONTEXT;
    if (!stream) return INVALID_HANDLE;
    Work *copy = malloc(sizeof *copy);
    *copy = work;
    copy->next = NULL;
    pthread_mutex_lock(&lock);
    Work **last = &stream->first;
    while (*last) last = &(*last)->next;
    *last = copy;
    ++stream->put;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuStreamCreate(Stream **stream, unsigned flags) {
    NEEDS_CONTEXT;
    if (flags != 1) return INVALID_VALUE; /* non-blocking */
    *stream = calloc(1, sizeof **stream);
    ++live;
    return SUCCESS;
}
int cuStreamSynchronize(Stream *stream) {
    NEEDS_CONTEXT;
    run_to(stream, stream->put);
    return SUCCESS;
}
int cuStreamDestroy_v2(Stream *stream) {
    NEEDS_CONTEXT;
    free(stream);
    --live;
    return SUCCESS;
}
int cuEventCreate(Event **event, unsigned flags) {
    NEEDS_CONTEXT;
    if (flags != 2) return INVALID_VALUE; /* without timing */
    *event = calloc(1, sizeof **event);
    ++live;
    return SUCCESS;
}
int cuEventRecord(Event *event, Stream *stream) {
    NEEDS_CONTEXT;
    if (!stream) return INVALID_HANDLE;
    event->stream = stream;
    event->end = stream->put;
    return SUCCESS;
}
int cuEventSynchronize(Event *event) {
    NEEDS_CONTEXT;
    if (event->stream) run_to(event->stream, event->end);
    return SUCCESS;
}
int cuEventDestroy_v2(Event *event) {
    NEEDS_CONTEXT;
    free(event);
    --live;
    return SUCCESS;
}

static int allocate(void **memory, size_t size) {
    NEEDS_CONTEXT;
    if (!size) return INVALID_VALUE;
    if (size > LIMIT) return OUT_OF_MEMORY;
    if (posix_memalign(memory, 256, size)) return OUT_OF_MEMORY;
    memset(*memory, POISON, size);
    ++live;
    return SUCCESS;
}
static int release(void *memory) {
    NEEDS_CONTEXT;
    free(memory);
    --live;
    return SUCCESS;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) { return allocate((void **)address, size); }
int cuMemFree_v2(uint64_t address) { return release((void *)address); }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    return flags ? INVALID_VALUE : allocate(memory, size);
}
int cuMemFreeHost(void *memory) { return release(memory); }
int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t size, Stream *stream) {
    return put(stream, (Work){.target = (void *)target, .source = source, .size = size});
}
int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t size, Stream *stream) {
    int code = put(stream, (Work){.target = target, .source = (void *)source, .size = size});
    if (code == SUCCESS) memset(target, POISON, size);
    return code;
}

int cuModuleLoadData(void **module, const void *image) {
    NEEDS_CONTEXT;
    if (strcmp(image, "fake module")) return INVALID_IMAGE;
    *module = &the_module;
    ++live;
    return SUCCESS;
}
int cuModuleLoadDataEx(
    void **module, const void *image, unsigned count, const int *options, void **values) {
    for (unsigned i = 0; i < count; ++i) /* sizes of the logs: nothing was written */
        if (options[i] == 4 || options[i] == 6) values[i] = NULL;
    return cuModuleLoadData(module, image);
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    NEEDS_CONTEXT;
    if (module != &the_module || strcmp(name, "multiply")) return NOT_FOUND;
    *function = &the_function;
    return SUCCESS;
}
int cuModuleUnload(void *module) {
    NEEDS_CONTEXT;
    if (module != &the_module) return INVALID_HANDLE;
    --live;
    return SUCCESS;
}
int cuFuncSetBlockShape(void *function, int x, int y, int z) { /* of old; pycuda still calls it */
    NEEDS_CONTEXT;
    return function == &the_function && x && y && z ? SUCCESS : INVALID_HANDLE;
}
/* multiply(float *values, float factor, int count), once for a whole grid */
int cuLaunchKernel(
    void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, Stream *stream, void **parameters, void **extra) {
    if (function != &the_function || shared) return INVALID_HANDLE;
    if (gx != 3 || gy != 2 || gz != 1 || bx != 32 || by != 8 || bz != 1) return INVALID_VALUE;
    Work work = {0};
    if (parameters) {
        work.target = *(void **)parameters[0];
        work.factor = *(float *)parameters[1];
        work.count = *(int *)parameters[2];
    } else { /* extra: 1, buffer, 2, its size, 0 */
        char *buffer = extra[1];
        if (extra[0] != (void *)1 || extra[2] != (void *)2 || *(size_t *)extra[3] != 16)
            return INVALID_VALUE;
        memcpy(&work.target, buffer, 8);
        memcpy(&work.factor, buffer + 8, 4);
        memcpy(&work.count, buffer + 12, 4);
    }
    return put(stream, work);
}

/* How cuda-bindings finds functions: by a name without its version. */
int cuGetProcAddress_v2(
    const char *name, void **function, int version, uint64_t flags, int *status) {
    char versioned[128];
    (void)version, (void)flags;
    snprintf(versioned, sizeof versioned, "%s_v2", name);
    Dl_info self;
    dladdr((void *)&cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = dlsym(library, versioned);
    if (!*function) *function = dlsym(library, name);
    if (status) *status = *function ? 0 : 1;
    return SUCCESS;
}
