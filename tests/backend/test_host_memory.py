"""What may still be allocated: the least of what the system, control groups and the process's own limits leave."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from hesspec.backend import host_memory as module
from hesspec.backend import memory
from hesspec.backend.host_memory import available_memory, host_memory, resident_memory, virtual_memory

NO_LIMIT = "9223372036854771712"  # as version 1 writes it


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Function from the lines of /proc/self/cgroup and files of groups to what is left; the system has 1,000,000."""
    monkeypatch.setattr(module, "available_memory", lambda: 1_000_000)

    def left(lines: str, files: dict[str, str]) -> int:
        (tmp_path / "cgroup").write_text(lines)
        for name, content in files.items():
            file = tmp_path / "fs" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return host_memory(tmp_path / "fs", tmp_path)

    return left


def second(group: str, limit: str, used: int, cached: int = 0, high: str = "max") -> dict[str, str]:
    """Files of a group of version 2."""
    return {
        f"{group}memory.max": f"{limit}\n",
        f"{group}memory.high": f"{high}\n",
        f"{group}memory.current": f"{used}\n",
        f"{group}memory.stat": f"anon {used - cached}\nfile {cached}\ninactive_file {cached // 2}\n"
        f"active_file {cached - cached // 2}\n",
    }


def first(group: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    """Files of a group of version 1."""
    return {
        f"memory/{group}memory.limit_in_bytes": f"{limit}\n",
        f"memory/{group}memory.usage_in_bytes": f"{used}\n",
        f"memory/{group}memory.stat": f"cache {cached}\ntotal_inactive_file {cached}\ntotal_active_file 0\n",
    }


def test_without_groups_it_is_what_the_system_has(groups):
    assert groups("", {}) == 1_000_000


def test_a_group_of_version_2(groups):
    assert groups("0::/job\n", second("job/", "5000", 1000)) == 4000


def test_pages_of_files_count_as_free(groups):
    assert groups("0::/job\n", second("job/", "5000", 3000, cached=2000)) == 4000


def test_a_group_above_may_have_less(groups):
    files = second("a/b/", "max", 100) | second("a/", "900", 400) | second("", "max", 500)
    assert groups("0::/a/b\n", files) == 500


def test_the_limit_from_which_on_a_group_is_slowed_down_counts_too(groups):
    assert groups("0::/job\n", second("job/", "5000", 1000, high="3000")) == 2000


def test_a_group_of_version_1(groups):
    lines = "5:cpu:/job\n4:memory,hugetlb:/job\n0::/\n"
    assert groups(lines, first("job/", "7000", 2500, cached=500) | first("", NO_LIMIT, 9000)) == 5000


def test_in_a_container_the_path_of_the_host_is_not_there(groups):
    assert groups("4:memory:/docker/0123\n", first("", "6000", 1000)) == 5000
    assert groups("0::/docker/0123\n", second("", "4000", 1000)) == 3000


def test_without_a_limit_it_is_what_the_system_has(groups):
    assert groups("0::/job\n", second("job/", "max", 1000)) == 1_000_000
    assert groups("4:memory:/job\n", first("job/", NO_LIMIT, 1000)) == 1_000_000


def test_a_group_that_has_more_than_its_limit_leaves_nothing(groups):
    assert groups("0::/job\n", second("job/", "1000", 2000)) == 0


def test_files_that_are_not_as_expected_say_nothing(groups):
    assert groups("0::/job\n", {"job/memory.max": "many", "job/memory.current": "1"}) == 1_000_000
    assert groups("0::/other\n", {"other/memory.max": "500"}) == 1_000_000


def test_a_cpu_has_what_the_limits_leave(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 12_345)
    assert memory.free_memory(torch.device("cpu")) == 12_345


def test_an_address_space_that_is_limited_counts():
    room = 200_000_000
    script = (
        "import resource, psutil; from hesspec.backend.host_memory import host_memory\n"
        f"limit = psutil.Process().memory_info().vms + {room}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); print(host_memory())"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 0.5 * room < int(done.stdout) <= room


def test_sizes_are_those_of_psutil():
    ours = available_memory(), virtual_memory(), resident_memory()
    process = psutil.Process().memory_info()
    # Other processes allocate meanwhile, and this one does between the two readings.
    assert ours[0] == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    assert ours[1:] == pytest.approx((process.vms, process.rss), rel=0.05)


def test_this_process_has_less_than_the_machine():
    assert 0 < host_memory() <= psutil.virtual_memory().total
