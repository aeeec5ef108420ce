"""Memory that a function takes while it runs, as Linux counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")
_MMAP_THRESHOLD = -3  # of mallopt


def peak(function: Callable[[], Any], repeats: int = 5) -> int:
    """Bytes at the peak of a few calls beyond those held before.

    Example:
        >>> peak(lambda: b"x" * 50_000_000) > 40_000_000
        True

    From the first call on, the process gives every freed tensor back to the system at once, so that
    the next one is seen: it is a little slower for it.

    Args:
        function: already warm, so that what it keeps between calls is not counted.
        repeats: number of calls.

    Raises:
        OSError: outside Linux.
    """
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)
    libc.malloc_trim(0)
    (_PROCESS / "clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    for _ in range(repeats):
        function()
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes that the process holds now, `"VmRSS"`, or held at its peak, `"VmHWM"`."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
