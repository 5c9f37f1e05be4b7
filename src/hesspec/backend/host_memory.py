"""Memory of the host: what this process may still allocate, by system, control groups and limits, and what it uses."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["available_memory", "host_memory", "resident_memory", "virtual_memory"]

GROUPS: Final = Path("/sys/fs/cgroup")
PROCESS: Final = Path("/proc/self")
# Files of a group by version of its hierarchy: limits, usage, and the entries for file pages in the statistics, which
# the kernel reclaims before a limit is reached.
Group = tuple[tuple[str, ...], str, tuple[str, ...]]
SECOND: Final[Group] = (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
FIRST: Final[Group] = (
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def host_memory(groups: Path = GROUPS, process: Path = PROCESS) -> int:
    """Return the bytes that this process can still allocate.

    The minimum of the memory available in the system, the memory left below the limit of each control group of the
    process, version 1 and 2 (set by containers and schedulers), and the remaining address space (ulimit -v).

    Parameters
    ----------
    groups, process : Path
        Folders in which the kernel describes the control groups and this process.
    """
    left = [available_memory(), *_left_in_groups(groups, process)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left.append(limit - virtual_memory())
    return max(int(min(left)), 0)


def available_memory() -> int:
    """Return the bytes that the system can give to new work without swapping, as the kernel estimates them."""
    sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    return int(sizes["MemAvailable"].removesuffix("kB")) * 1024


def virtual_memory() -> int:
    """Return the bytes of the address space of this process."""
    return _size_of_process(0)


def resident_memory() -> int:
    """Return the bytes of this process that are in physical memory."""
    return _size_of_process(1)


def _size_of_process(field: int) -> int:
    pages = (PROCESS / "statm").read_text(encoding="ascii").split()
    return int(pages[field]) * resource.getpagesize()


def _left_in_groups(groups: Path, process: Path) -> Iterator[int]:
    """Memory left below each limit on the path from the group of this process to the root."""
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, files = groups, SECOND
        elif "memory" in controllers.split(","):
            root, files = groups / "memory", FIRST
        else:
            continue
        # In a container, the path may be that of the host, whose groups are not visible: its own group is the root.
        place = root / path.lstrip("/")
        for group in (place, *place.parents):
            if group.is_relative_to(root):
                yield from _left_in(group, *files)


def _left_in(group: Path, limits: tuple[str, ...], use: str, files: tuple[str, ...]) -> Iterator[int]:
    used = _number(group / use)
    if used is None:
        return
    statistics = dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))
    taken_back = sum(int(statistics.get(name, 0)) for name in files)
    for name in limits:
        limit = _number(group / name)
        if limit is not None:
            yield limit - max(used - taken_back, 0)


def _number(file: Path) -> int | None:
    """Return the number in a file of a group; None if there is none, or no limit."""
    text = next(iter(_lines(file)), "").strip()
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except OSError:  # no such group, or no control groups
        return []
