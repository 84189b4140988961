"""Memory that a process keeps, rather than give it back to the kernel after every training step."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt`, from its malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Keep what is freed for the next allocation: activations are freed and allocated again in every step.

    glibc returns large blocks to the kernel, which has to clear each page when it is asked for again. Without glibc
    nothing happens. It holds for the whole process, so only commands call this.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)
        libc.mallopt(M_MMAP_MAX, 0)
