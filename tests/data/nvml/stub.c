/* A driver library without a driver: what NVML's calls answer is read from the environment, one number for each card.
   STUB_CARDS, STUB_LOST (cards that cannot be reached), STUB_ECC, STUB_PENDING, STUB_BROKEN, STUB_SLOW (a mask), STUB_XID,
   STUB_OLD (a card that supports none of the health calls). Function names and layouts: NVML API reference. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, NOT_SUPPORTED = 3, TIMEOUT = 10, LOST = 15 };

static long of(const char *name, long card) {
    const char *text = getenv(name);
    for (long at = 0; text && *text; at++) {
        long value = strtol(text, (char **)&text, 0);
        if (at == card) return value;
        if (*text == ',') text++;
    }
    return 0;
}

static long card(void *handle) { return (long)handle - 1; }
static int told[64];

int nvmlInitWithFlags(unsigned flags) { return of("STUB_CARDS", 0) ? OK : 9; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return "an error of the stub"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "570.86.15"); return OK; }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12080; return OK; }
int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) { *major = 9; *minor = 0; return OK; }
int nvmlDeviceGetMinorNumber(void *handle, unsigned *number) { *number = card(handle); return OK; }
int nvmlDeviceGetNumGpuCores(void *handle, unsigned *count) { *count = 16896; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *power) { *power = 700000; return OK; }
int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *then) { return NOT_SUPPORTED; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = of("STUB_CARDS", 0); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)(long)(index + 1);
    return of("STUB_LOST", index) ? LOST : OK;
}
int nvmlDeviceGetName(void *handle, char *out, unsigned size) { snprintf(out, size, "NVIDIA H200"); return OK; }
int nvmlDeviceGetUUID(void *handle, char *out, unsigned size) {
    snprintf(out, size, "GPU-00000000-0000-4000-8000-%012ld", card(handle));
    return OK;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = 150754820096ULL; memory[2] = 1000000ULL * (card(handle) + 1); memory[1] = memory[0] - memory[2];
    return OK;
}
int nvmlDeviceGetPciInfo_v3(void *handle, char *info) {
    memset(info, 0, 68);
    snprintf(info + 36, 32, "00000000:%02lX:00.0", 10 + card(handle));
    return OK;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *heat) { *heat = 30 + card(handle); return OK; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *power) { *power = 76520; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *power) { *power = 700000; return OK; }
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *load) { load[0] = 42; load[1] = 7; return OK; }
int nvmlDeviceGetTotalEccErrors(void *handle, int kind, int counter, unsigned long long *count) {
    *count = kind == 1 && counter == 0 ? of("STUB_ECC", card(handle)) : 12345; /* uncorrected, volatile */
    return of("STUB_OLD", card(handle)) ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetRemappedRows(void *handle, unsigned *corr, unsigned *unc, unsigned *pending, unsigned *failure) {
    *corr = 0; *unc = 1; *pending = of("STUB_PENDING", card(handle)); *failure = of("STUB_BROKEN", card(handle));
    return of("STUB_OLD", card(handle)) ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *mask) {
    *mask = of("STUB_SLOW", card(handle));
    return of("STUB_OLD", card(handle)) ? NOT_SUPPORTED : OK;
}
int nvmlEventSetCreate(void **set) { *set = (void *)1; return OK; }
int nvmlEventSetFree(void *set) { return OK; }
int nvmlDeviceRegisterEvents(void *handle, unsigned long long kinds, void *set) { return kinds == 8 ? OK : 2; }

struct event { void *device; unsigned long long kind, data; unsigned gpu, compute; };

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned limit) {
    for (long index = 0; index < of("STUB_CARDS", 0); index++)
        if (of("STUB_XID", index) && !told[index]) {
            told[index] = 1;
            *event = (struct event){(void *)(index + 1), 8, of("STUB_XID", index), 0, 0};
            return OK;
        }
    return TIMEOUT;
}
