"""Several processes of one test, forked and joined in a team over loopback."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch._dynamo  # what DistributedDataParallel imports
from torch import distributed

from asr.distributed import Team, joined
from asr.errors import AsrError

_MEETINGS = itertools.count()


def run_team(size: int, folder: Path, work: Callable[[Team], Any], timeout: float = 120) -> list[Any]:
    """Call ``work(team)`` in `size` processes; returns for each, by rank, what it returned (JSON).

    An AsrError comes back as ``{"error": line, "status": status, "kind": class}``, the end by a signal as None, and
    anything else fails the test. Processes that are alive after `timeout` seconds are killed, and fail it as well.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{next(_MEETINGS)}"  # a file that is left over would mislead the next ones
    children = [_fork(rank, size, meeting, work) for rank in range(size)]
    deadline = time.monotonic() + timeout
    results: list[Any] = []
    try:
        for rank, child in enumerate(children):
            while not (status := os.waitpid(child, os.WNOHANG))[0]:
                assert time.monotonic() < deadline, f"process {rank} of {size} hangs"
                time.sleep(0.02)
            children[rank] = 0
            path = folder / f"{rank}.json"
            assert path.exists() or os.WIFSIGNALED(status[1]), f"process {rank} of {size} failed, see its traceback"
            results.append(json.loads(path.read_text()) if path.exists() else None)
    finally:
        for child in filter(None, children):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for path in folder.glob("*.json"):
            path.unlink()
    return results


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """A process that is at its end behind the block, whatever failed in it."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_state(folder: Path, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Wait until a training has saved its state in `folder`; fails where it ends before, or takes too long."""
    deadline = time.monotonic() + timeout
    while not list(folder.glob("*.safetensors")):
        assert process.poll() is None, "the process ended without a state"
        assert time.monotonic() < deadline, f"no state after {timeout:g} s"
        time.sleep(0.05)


def _fork(rank: int, size: int, meeting: Path, work: Callable[[Team], Any]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        try:
            result = _join(rank, size, meeting, work)
        except AsrError as error:
            result = {"error": str(error), "status": error.status, "kind": type(error).__name__}
        (meeting.parent / f"{rank}.json").write_text(json.dumps(result))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _join(rank: int, size: int, meeting: Path, work: Callable[[Team], Any]) -> Any:
    """Meet by a file, so that no port has to be free, and work."""
    torch.manual_seed(0)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ |= {name: str(value) for name, value in names.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
    meet = distributed.init_process_group
    place = f"file://{meeting}"
    distributed.init_process_group = lambda backend, timeout: meet(  # type: ignore[assignment]
        "gloo", init_method=place, rank=rank, world_size=size, timeout=timeout
    )
    with joined() as team:
        return work(team)
