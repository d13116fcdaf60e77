"""Memory of the machine: how much there is, and what the process of a command has freed, kept for its next blocks.

glibc gives each freed block of 32 MB or more back to the system, and the next one arrives as pages that have to be
zeroed one by one. The activations of a ViT on the CPU are such blocks: a tenth of a training step goes into pages.
"""

import ctypes
import math
import os

# mallopt's parameters, from glibc's malloc.h, with the values that give nothing back
_MMAP_MAX, _NO_BLOCK_OF_ITS_OWN = -4, 0
_TRIM_THRESHOLD, _NEVER = -1, -1


def reuse_freed_memory() -> bool:
    """Have the process keep large blocks that it has freed, for the next ones; results are the same.

    It then keeps the memory of its widest moment until it ends, and so it is for programs, not for libraries: the
    commands call it, `import vjepa_hub` does not. Environment variables that set glibc's allocator are overruled.

    Returns:
        Whether the C library could be told; where it is not glibc, nothing changes.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  the name is glibc's own
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_MMAP_MAX, _NO_BLOCK_OF_ITS_OWN), (_TRIM_THRESHOLD, _NEVER))
    return all(library.mallopt(*setting) for setting in settings)


def machine_memory() -> float:
    """Bytes of memory of this machine; infinite where nothing tells."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory() -> float:
    """Bytes that programs can still take, what the system would give up for them included; infinite if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":", 1) for line in file)
        return 1024 * float(sizes["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError):
        return machine_memory()
