"""What a process that lives long does with memory that was freed."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 1 << 17  # bytes; where glibc begins


def return_large_blocks() -> None:
    """From now on blocks of 128 KiB and more go back to the system as soon as they are freed.

    glibc raises that limit by itself, to the size of the largest block that was freed (M_MMAP_THRESHOLD in
    mallopt(3)). Then pictures lie between small things that stay, in the heaps of all threads that ever read one, and
    the holes that they leave add up. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def return_free_blocks() -> None:
    """What is free in the middle of the heaps goes back to the system, once (malloc_trim(3)).

    For a process that is not ours to change: loading a model and cutting a picture leave holes as large as they worked
    with, and what the encoder then takes does not fit them.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # glibc's alone
            ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


def freeze_garbage_collector() -> None:
    """What there is now is not looked at again by the garbage collector.

    For a process that is ours, when it is ready: a full collection takes 40 ms for 60,000 objects, and no answer goes
    on meanwhile.
    """
    gc.collect()
    gc.freeze()
