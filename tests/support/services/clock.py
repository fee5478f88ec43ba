"""A clock of the machine that is wrong: a library that shifts what processes which preload it are told of the time."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

__all__ = ["Clock", "compiler"]

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) {
    static volatile long *seconds;
    if (!seconds) {
        const char *path = getenv("SHIFT_FILE");
        int file = path ? open(path, O_RDONLY) : -1;
        if (file < 0) return 0;
        seconds = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
        if (seconds == MAP_FAILED) { seconds = 0; return 0; }
    }
    return *seconds;
}
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += shift();
    return answer;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec; now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (out) *out = exact.tv_sec;
    return exact.tv_sec;
}
"""


def compiler() -> str:
    """Where gcc is; empty where there is none."""
    return shutil.which("gcc") or ""


class Clock:
    """The library and its file in `folder`; right until it is `set`."""

    def __init__(self, folder: Path) -> None:
        source, self.library, self.file = folder / "shift.c", folder / "shift.so", folder / "shift"
        source.write_text(SOURCE)
        self.file.write_bytes(bytes(8))
        subprocess.run([compiler(), "-shared", "-fPIC", "-o", self.library, source, "-ldl"], check=True)

    @property
    def variables(self) -> dict[str, str]:
        """Of the processes that are to believe it, and of all that they start."""
        return {"LD_PRELOAD": str(self.library), "SHIFT_FILE": str(self.file)}

    def set(self, seconds: int) -> None:
        """So many seconds ahead of the truth, from now on."""
        with open(self.file, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
            shared[:] = struct.pack("q", seconds)
