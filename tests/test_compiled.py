"""Compiled loops and their cache: damaged files and full disks cost time, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = """
from asr.compiled import compiled, is_ready
from asr.decode.selection import kth_largest
import numpy as np
ready = is_ready(kth_largest)
print(ready, kth_largest(np.array([1.0, 3.0, 2.0]), 3, 2))
"""


def run(cache: Path, before: str = "", **more: str) -> list[str]:
    """Call a compiled loop in a process of its own; what it printed: was it in the cache, and the result."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)} | more
    done = subprocess.run(
        [sys.executable, "-c", before + LOOPS], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.fixture
def cache(tmp_path):
    assert run(tmp_path) == ["False", "2.0"]
    assert run(tmp_path) == ["True", "2.0"]
    return tmp_path


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04", bytes(range(1, 250))], ids=["empty", "cut", "garbage"])
def test_a_damaged_cache_is_compiled_anew_and_mended(cache, suffix, content):
    damaged = list(cache.rglob(f"*.{suffix}"))
    assert damaged
    for path in damaged:
        path.write_bytes(content)
    assert run(cache)[1] == "2.0"
    found = list(cache.rglob(f"*kth_largest*.{suffix}"))
    assert found and all(path.read_bytes() != content for path in found)
    assert run(cache) == ["True", "2.0"]


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == ["False", "2.0"]


def test_a_disk_that_is_full_when_the_code_is_kept_costs_time_only(tmp_path):
    full = """
import errno
from numba.core import caching
def save_overload(self, *arguments):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.Cache.save_overload = save_overload
"""
    assert run(tmp_path, full) == ["False", "2.0"]
    assert run(tmp_path) == ["False", "2.0"]


def test_switched_off_it_is_plain_python(tmp_path):
    assert run(tmp_path, NUMBA_DISABLE_JIT="1") == ["True", "2.0"]
    assert not list(tmp_path.rglob("*.nbi"))
