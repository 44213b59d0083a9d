"""What a person sees while asr works: lines and a progress bar on standard error.

Where standard error is no terminal, the bar becomes a line every 30 seconds.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from asr.progress import Progress as TrainingProgress

_EVERY = 30.0  # seconds between lines where there is no terminal
_PAUSE = 0.05  # seconds without anything done that part two bursts


class Screen:
    """Lines and bars on standard error; `quiet` keeps all but errors away."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """A line for the reader."""
        self._console.print(line, markup=False)

    @contextmanager
    def training(self) -> Iterator["TrainingBar"]:
        """A bar for a training run; lines said meanwhile stand above it."""
        bar = TrainingBar(self)
        if not self._console.is_terminal:
            yield bar
            return
        with bar.progress:
            yield bar

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator["Counter"]:
        """A bar for `total` things."""
        counter = Counter(self, what, total)
        if not self._console.is_terminal:
            yield counter
            return
        with counter.progress:
            yield counter

    def is_due(self) -> bool:
        """Whether it is time for a line where there is no bar."""
        if self._console.is_terminal or time.monotonic() - self._last < _EVERY:
            return False
        self._last = time.monotonic()
        return True


class TrainingBar:
    """Loss, word error rate, blank rate, speed, waiting and time left of a training run."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=screen._console, transient=True)
        self._task = self.progress.add_task("", total=1.0)

    def show(self, now: "TrainingProgress") -> None:
        """Show where the run stands."""
        wer = "" if now.wer is None else f", dev WER {100 * now.wer:.2f} %"
        line = (
            f"epoch {now.epoch}/{now.epochs}, batch {now.batch}/{now.batches}, loss {now.loss:.3f}{wer}, "
            f"blank {100 * now.blank_rate:.0f} %, {now.speech_rate:.0f} x real time, "
            f"{100 * now.waiting:.0f} % waiting, {clock(now.left)} left at most"
        )
        done = (now.epoch - 1 + now.batch / now.batches) / now.epochs
        self.progress.update(self._task, completed=done, description=line)
        if self._screen.is_due():
            self._screen.say(line)


class Counter:
    """How many of a number of things are done, and the time left.

    Things come in bursts, a batch at a time: what the bursts before took tells the time left, and the first one can't.
    """

    def __init__(self, screen: Screen, what: str, total: int) -> None:
        self._screen, self._what, self._total, self._done = screen, what, total, 0
        self._begun = self._burst = self._last = time.monotonic()
        self._each: float | None = None  # seconds, of those before the present burst
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=screen._console, transient=True)
        self._task = self.progress.add_task(what, total=max(1, total))

    def advance(self) -> None:
        """One more is done."""
        now = time.monotonic()
        if now - self._last > _PAUSE:
            if self._done:
                self._each = (self._burst - self._begun) / self._done
            self._burst = now
        self._last = now
        self._done += 1
        left = "" if self._each is None else f", {clock(self._each * (self._total - self._done))} left"
        line = f"{self._what}: {self._done} of {self._total}{left}"
        self.progress.update(self._task, completed=self._done, description=line)
        if self._screen.is_due():
            self._screen.say(line)


def clock(seconds: float | None) -> str:
    """Seconds as a person reads them: 42 s, 3:07 min, 1:02 h."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
