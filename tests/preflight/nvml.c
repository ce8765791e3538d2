/* A stand-in for the driver's libnvidia-ml.so.1: FAKE_GPUS GPUs of compute capability FAKE_MAJOR.6.
   With FAKE_LOST set, the driver is there and its GPU has fallen off the bus. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "Unknown Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_GPUS"); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return getenv("FAKE_LOST") ? 15 : 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "NVIDIA A10G", length); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = number("FAKE_MAJOR");
    *minor = 6;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *info) { /* total, free, used */
    info[0] = (24ull - (uintptr_t)device) << 30;
    return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "550.54.15", length); return 0; }
