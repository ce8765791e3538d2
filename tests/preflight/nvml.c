/* A stand-in for the driver's libnvidia-ml.so.1, for NVIDIA's own Python binding to load. tests/preflight/cards.py says
   what it answers, by the environment. A GPU's handle is its index + 1, a slice's 100 times that + its index + 1. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, LIBRARY_NOT_FOUND = 12,
       GPU_IS_LOST = 15 };

static const char *text(const char *name) { const char *found = getenv(name); return found ? found : ""; }
static long number(const char *name) { return atol(text(name)); }
static int is_slice(void *device) { return (uintptr_t)device > 100; }

int nvmlInitWithFlags(unsigned flags) { return *text("FAKE_DRIVER") ? OK : DRIVER_NOT_LOADED; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Unknown Error"; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    strncpy(version, text("FAKE_DRIVER"), length);
    return OK;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = number("FAKE_CUDA");
    return *version ? OK : LIBRARY_NOT_FOUND;
}
int nvmlDeviceGetCount_v2(unsigned *count) { *count = number("FAKE_COUNT"); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return *text("FAKE_LOST") ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *current = *pending = number("FAKE_MIG") == 1;
    return *text("FAKE_MIG") ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **slice) {
    *slice = (void *)(100 * (uintptr_t)device + index + 1);
    return index % 2 && index / 2 < number("FAKE_SLICES") ? OK : NOT_FOUND; /* with gaps: others have what is between */
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "%s-%03d-of-this-test", is_slice(device) ? "MIG" : "GPU", (int)(uintptr_t)device);
    return OK;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    snprintf(name, length, "%s%s", text("FAKE_NAME"), is_slice(device) ? text("FAKE_PROFILE") : "");
    return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    return sscanf(text("FAKE_CAPABILITY"), "%d.%d", major, minor) == 2 ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *info) { /* total, free, used */
    info[0] = (unsigned long long)number("FAKE_MIB") << 20;
    return number("FAKE_MIG") == 1 && !is_slice(device) ? NO_PERMISSION : OK; /* a pod's user is no administrator */
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned counter, unsigned long long *count) {
    *count = kind == 1 && counter == 0 ? number("FAKE_ERRORS") : 0;
    return *text("FAKE_ERRORS") ? OK : NOT_SUPPORTED;
}
