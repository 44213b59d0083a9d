"""`asr train --multirun`: each job in a process and a run folder of its own, in turn or several at a time.

A job that fails is named and the others go on; one that is finished already is not trained again. At the end stands a
table of all that are finished, with the mean over those that differ in their seed alone.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from asr.config import Config, name_of
from asr.errors import InputError


def run(recipe: str, jobs: list[list[str]], configs: list[Config], args: argparse.Namespace) -> int:
    """Train all jobs (`configs`, the settings of the overrides `jobs`), or print the script that does it under Slurm.

    Returns the exit status: 1 where a job failed, 130 or 143 after a signal, which is passed on to the jobs.
    """
    from asr import distributed
    from asr.cli.training import prepared
    from asr.console import Screen
    from asr.run_folder import is_finished, refuse_others, run_path

    if args.overfit_one_batch or distributed.is_one_of_many():
        other = "--overfit-one-batch" if args.overfit_one_batch else "torchrun"
        raise InputError(f"--multirun has no effect together with {other}; leave one out", status=2)
    if args.jobs is not None and args.jobs < 1:
        raise InputError(f"--jobs is {args.jobs}; use a whole number from 1", status=2)
    screen, at_once = Screen(args.quiet), args.jobs or 1
    fixed = [prepared(settings, recipe, job, screen.say) for settings, job in zip(configs, jobs, strict=True)]
    commands = [[sys.executable, "-m", "asr.cli", "train", f"recipe={recipe}", *job] for job in jobs]
    if args.slurm_script:
        print(_slurm_script(name_of(recipe), commands, args.jobs))
        return 0
    paths = [run_path(settings, name_of(recipe)) for settings in fixed]
    children = _Children()

    def train(number: int) -> bool:
        """Whether a job is finished."""
        if is_finished(paths[number]):
            try:
                refuse_others(paths[number], fixed[number])
            except InputError as error:
                sys.stderr.write(f"asr: {error}\n")
                return False
            screen.say(f"{paths[number]}: finished already")
            return True
        quiet = ["--quiet"] if args.quiet or at_once > 1 else []
        failure = children.run([*commands[number], *quiet], is_alone=at_once == 1)
        if failure and children.status is None:
            sys.stderr.write(f"asr: {paths[number]}: {failure}\n")
        elif not failure and at_once > 1:
            screen.say(f"{paths[number]}: finished")
        return not failure

    with ThreadPoolExecutor(at_once) as pool:
        finished = list(pool.map(train, range(len(jobs))))
    own = [number for number in range(len(jobs)) if finished[number] or not is_finished(paths[number])]
    for line in _table([paths[number] for number in own], [jobs[number] for number in own]):
        print(line)
    return children.status or (0 if all(finished) else 1)


class _Children:
    """Processes that get SIGINT and SIGTERM passed on; after one, no new ones start. `status` is then its exit status.

    Each has a process group of its own, so that a Ctrl-C reaches it once: a second one ends a run without saving.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()  # the main thread's own handler may find it taken
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def run(self, command: list[str], is_alone: bool) -> str | None:
        """Wait for a command; returns None, or how it failed. What it says is shown only where it runs alone."""
        with self._lock:
            if self.status is not None:
                return "not started"
            errors = None if is_alone else subprocess.PIPE
            child = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=errors, text=True, start_new_session=True
            )
            self._running.add(child)
        _, said = child.communicate()
        with self._lock:
            self._running.discard(child)
        if child.returncode == 0:
            return None
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit status {child.returncode}"
        last = (said or "").strip().splitlines()[-1:]
        return f"this job failed ({how})" + (f": {last[0].removeprefix('asr: ')}" if last else "")

    def _pass_on(self, number: int, frame: object) -> None:
        with self._lock:
            self.status = 128 + number
            for child in self._running:
                child.send_signal(number)


def _table(paths: list[Path], jobs: list[list[str]]) -> Iterator[str]:
    """A line for each finished run, and for runs that differ in their seed alone their mean and spread."""
    rates: dict[tuple[str, ...], list[float]] = {}
    for path, job in zip(paths, jobs, strict=True):
        if not (path / "result.json").exists():
            yield f"{path}\tnot finished"
            continue
        result: dict[str, Any] = json.loads((path / "result.json").read_text(encoding="utf-8"))
        dev = result["dev"]
        rate = float("inf") if dev["rate"] is None else 100 * dev["rate"]
        yield (
            f"{path}\tdev WER {rate:.2f} % ({dev['substitutions']} S, {dev['deletions']} D, {dev['insertions']} I "
            f"of {dev['count']} words)\tepoch {result['best_epoch'] + 1} of {result['epochs']}"
        )
        alike = tuple(item for item in job if not item.startswith(("seed=", "name=")))
        rates.setdefault(alike, []).append(rate)
    for alike, found in rates.items():
        if len(found) > 1:
            yield (
                f"{' '.join(alike) or 'all'}\tmean of {len(found)} runs {statistics.mean(found):.2f} %, standard "
                f"deviation {statistics.stdev(found):.2f}, from {min(found):.2f} to {max(found):.2f} %"
            )


def _slurm_script(name: str, commands: list[list[str]], at_once: int | None) -> str:
    """A batch script of a job array, a task a run; a task that is stopped saves and, run again, goes on."""
    cases = [f"    {number}) exec {shlex.join(command)} ;;" for number, command in enumerate(commands, 1)]
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name=asr-{name}",
            f"#SBATCH --array=1-{len(commands)}" + (f"%{at_once}" if at_once else ""),
            "#SBATCH --signal=B:TERM@120 # two minutes before the limit of time: the run saves its state",
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            'case "$SLURM_ARRAY_TASK_ID" in',
            *cases,
            "esac",
        ]
    )
