// A CUDA driver that launches nothing, for tests on machines without a GPU: as much of one as Triton's loader and
// launcher call. The environment variable STUB_FAILS names a function that returns an error.
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#define ANSWER(name) return fails(#name) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS

unsigned long stub_launches = 0;

static int fails(const char *name) {
    const char *failing = getenv("STUB_FAILS");
    return failing && !strcmp(failing, name);
}

CUresult cuInit(unsigned flags) { ANSWER(cuInit); }

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the stub";
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
    *device = index;
    ANSWER(cuDeviceGet);
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {  // Hopper's
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 << 10; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 << 10; break;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
        case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
        default: *value = 0;
    }
    ANSWER(cuDeviceGetAttribute);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)1;
    ANSWER(cuCtxGetCurrent);
}

CUresult cuCtxSetCurrent(CUcontext context) { ANSWER(cuCtxSetCurrent); }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)1;
    ANSWER(cuDevicePrimaryCtxRetain);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    *module = (CUmodule)1;
    ANSWER(cuModuleLoadData);
}

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)1;
    ANSWER(cuModuleGetFunction);
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
    ANSWER(cuFuncGetAttribute);
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ANSWER(cuFuncSetAttribute);
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { ANSWER(cuFuncSetCacheConfig); }

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
    stub_launches++;
    ANSWER(cuLaunchKernelEx);
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    *(CUdeviceptr *)data = pointer;
    ANSWER(cuPointerGetAttribute);
}

CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *config) {
    *count = 1;
    ANSWER(cuOccupancyMaxActiveClusters);
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 0;
    ANSWER(cuCtxGetLimit);
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { ANSWER(cuCtxSetLimit); }

CUresult cuCtxPushCurrent(CUcontext context) { ANSWER(cuCtxPushCurrent); }

CUresult cuCtxPopCurrent(CUcontext *context) { ANSWER(cuCtxPopCurrent); }
