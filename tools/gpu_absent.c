/* Stands in for CUDA where there is no GPU: one H100 is said to be there, which computes nothing (tools/gpu_kernels.py).
 * Its memory is the host's, whatever it is asked to do is done at once, and a kernel is refused (tools/gpu_emulated.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Code; /* 0 is success, 801 "not supported" */

Code cudaGetDeviceCount(int *count) { *count = 1; return 0; }
Code cudaGetDevice(int *device) { *device = 0; return 0; }
Code cudaSetDevice(int device) { return 0; }
Code cudaGetLastError(void) { return 0; }
Code cudaPeekAtLastError(void) { return 0; }
Code cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
Code cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
Code cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Code cuInit(unsigned flags) { return 0; }
Code cuDeviceGetCount(int *count) { *count = 1; return 0; }
Code cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }

Code cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
    memset(of, 0, sizeof(*of));
    strcpy(of->name, "NVIDIA H100 80GB HBM3");
    of->major = 9;
    of->multiProcessorCount = 132;
    of->totalGlobalMem = 80ull << 30;
    of->warpSize = 32;
    of->maxThreadsPerBlock = 1024;
    of->maxThreadsPerMultiProcessor = 2048;
    of->regsPerBlock = of->regsPerMultiprocessor = 65536;
    of->sharedMemPerBlock = 49152;
    of->sharedMemPerBlockOptin = 232448;
    of->sharedMemPerMultiprocessor = 233472;
    of->l2CacheSize = 50 << 20;
    return 0;
}

static Code refuse(void) { return 801; }

Code cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *status) {
    void *found = dlsym(RTLD_DEFAULT, name);
    *function = found ? found : (void *)refuse;
    return 0;
}

Code cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                      int *status) {
    if (status) *status = 0;
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}

/* Memory: what is handed out or locked in place is noted, so that torch knows the one from the other. */

enum { HOST = 1, DEVICE = 2, MOST = 4096 };
static struct { uintptr_t from, to; int kind; } known[MOST];
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
static const size_t total = 80ull << 30, most_at_once = 2ull << 30;

static int note(const void *at, size_t bytes, int kind) {
    int place = 0;
    pthread_mutex_lock(&alone);
    while (place < MOST && known[place].kind) place++;
    if (place < MOST) {
        known[place].from = (uintptr_t)at;
        known[place].to = (uintptr_t)at + bytes;
        known[place].kind = kind;
    }
    pthread_mutex_unlock(&alone);
    return place < MOST && at ? 0 : 2;
}

static int kind_of(const void *at, int forget) {
    int kind = 0;
    pthread_mutex_lock(&alone);
    for (int place = 0; place < MOST && !kind; place++)
        if (known[place].kind && known[place].from <= (uintptr_t)at && (uintptr_t)at < known[place].to) {
            kind = known[place].kind;
            if (forget) known[place].kind = 0;
        }
    pthread_mutex_unlock(&alone);
    return kind;
}

static Code take(void **at, size_t bytes, int kind) {
    *at = bytes > most_at_once ? 0 : aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (*at) memset(*at, 0x7f, bytes); /* nothing is zero by chance */
    return *at ? note(*at, bytes, kind) : 2;
}

static Code give(void *at) {
    if (at && kind_of(at, 1)) free(at);
    return 0;
}

Code cudaMalloc(void **at, size_t bytes) { return take(at, bytes, DEVICE); }
Code cudaFree(void *at) { return give(at); }
Code cudaHostAlloc(void **at, size_t bytes, unsigned flags) { return take(at, bytes, HOST); }
Code cudaFreeHost(void *at) { return give(at); }
Code cudaHostRegister(void *at, size_t bytes, unsigned flags) { return note(at, bytes, HOST); }
Code cudaHostUnregister(void *at) { kind_of(at, 1); return 0; }
Code cudaMemGetInfo(size_t *left, size_t *all) { *left = *all = total; return 0; }
Code cudaPointerGetAttributes(struct cudaPointerAttributes *of, const void *at) {
    memset(of, 0, sizeof(*of));
    of->type = kind_of(at, 0);
    return 0;
}

Code cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { memmove(to, from, bytes); return 0; }
Code cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) { memmove(to, from, bytes); return 0; }
Code cudaMemsetAsync(void *at, int value, size_t bytes, void *stream) { memset(at, value, bytes); return 0; }

/* Work: there is none that is not done yet. */

Code cudaLaunchKernel(const void *kernel) { return refuse(); }
Code cudaFuncGetAttributes(void *of, const void *kernel) { return refuse(); }
Code cudaDeviceSynchronize(void) { return 0; }
Code cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    static intptr_t last = 4096;
    *stream = (void *)(last += 16);
    return 0;
}
Code cudaStreamSynchronize(void *stream) { return 0; }
Code cudaStreamQuery(void *stream) { return 0; }
Code cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return 0; }
Code cudaStreamGetCaptureInfo(void *stream, int *status) { *status = 0; return 0; }
Code cudaThreadExchangeStreamCaptureMode(int *mode) { return 0; }
Code cudaEventCreateWithFlags(void **event, unsigned flags) { *event = malloc(1); return 0; }
Code cudaEventDestroy(void *event) { free(event); return 0; }
Code cudaEventRecord(void *event, void *stream) { return 0; }
Code cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) { return 0; }
Code cudaEventQuery(void *event) { return 0; }
Code cudaEventSynchronize(void *event) { return 0; }
Code cudaEventElapsedTime(float *milliseconds, void *from, void *to) { *milliseconds = 1; return 0; }
