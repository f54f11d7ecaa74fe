/* Stands in for CUDA where there is no GPU: one H100 is said to be there, which computes nothing (tools/gpu_kernels.py). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <driver_types.h>
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
