"""How a long-running process gives freed memory back, and how it keeps garbage collection short."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

from pocketvlm.system.limits import address_limit

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_ARENA_MAX = -8
_LARGE = 1 << 17  # bytes; glibc's initial threshold


def return_large_blocks() -> None:
    """Make the allocator return blocks of 128 KiB and more to the system as soon as they are freed.

    glibc raises that limit by itself, to the size of the largest block that was freed (M_MMAP_THRESHOLD in
    mallopt(3)). Pictures then lie between small long-lived objects, in the heaps of all threads that ever read one, and
    the holes that they leave add up. Does nothing with other C libraries.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def share_one_heap() -> None:
    """Let all threads allocate from one heap, where addresses are limited.

    glibc reserves 64 MiB of addresses for the heap of each thread (M_ARENA_MAX in mallopt(3)).
    """
    if sys.platform == "linux" and address_limit() is not None:
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def return_free_blocks() -> None:
    """Return the memory that is free within the heaps to the system, once (malloc_trim(3)).

    For processes whose allocator is not ours to configure: loading a model and cutting a picture leave large holes,
    which do not fit what the encoder allocates next.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # only glibc has it
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def freeze_garbage_collector() -> None:
    """Exclude all present objects from garbage collection.

    For a process of our own, once it is ready: a full collection takes 40 ms for 60,000 objects, in which all answers
    pause.
    """
    gc.collect()
    gc.freeze()
