"""Where a training run stands, in numbers and in lines for people."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from asr.run import Position, Run


@dataclasses.dataclass
class Clock:
    """Seconds of this process since it stood at `begun_at` (in epochs); of them, waiting for data and training.

    `speech` is seconds of speech trained on.
    """

    begun_at: float
    started: float = dataclasses.field(default_factory=time.monotonic)
    waiting: float = 0.0
    training: float = 0.0
    speech: float = 0.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a progress bar shows: `loss` in nats a label, rates as shares, `left` in seconds (None: not known yet)."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    blank_rate: float
    wer: float | None
    speech_rate: float
    waiting: float
    left: float | None


def progress(position: Position, epochs: int, count: int, wer: float | None, clock: Clock) -> Progress:
    """The numbers for the bar, after a batch."""
    done = position.epoch + position.batch / count
    seconds = time.monotonic() - clock.started
    busy = max(1e-9, clock.training + clock.waiting)
    return Progress(
        epoch=position.epoch + 1,
        epochs=epochs,
        batch=position.batch,
        batches=count,
        loss=position.loss / max(1, position.labels),
        blank_rate=position.blanks / max(1, position.frames),
        wer=wer,
        speech_rate=clock.speech / busy,
        waiting=clock.waiting / busy,
        left=(epochs - done) * seconds / max(1e-9, done - clock.begun_at),
    )


def opening(run: Run, folder: Path, position: Position) -> str:
    """The first line of a run."""
    train, dev = (sum(e.seconds for e in loader.examples) / 60 for loader in (run.train, run.dev))
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    where = f"goes on at epoch {position.epoch + 1}, batch {position.batch}" if position.step else "begins"
    return (
        f"{folder}: {where}; {len(run.train.examples)} utterances ({train:.1f} min), dev {len(run.dev.examples)} "
        f"({dev:.1f} min), {len(run.tokenizer.tokens)} tokens, {parameters / 1e6:.2f} M parameters, "
        f"on {run.device}{_processes(run)}"
    )


def _processes(run: Run) -> str:
    """How many processes train, where that is not one."""
    now, then = run.team.size, run.processes
    if now == then:
        return "" if now == 1 else f", {now} processes"
    return f", {now} process{'es' if now > 1 else ''}, with the batches of the {then} that the run began with"


def epoch_line(metrics: dict[str, Any]) -> str:
    """An epoch in a line."""
    train, dev, timing = metrics["train"], metrics["dev"], metrics["timing"]
    seconds = timing["training_seconds"] + timing["waiting_seconds"]
    parts = [
        f"epoch {metrics['epoch'] + 1}: loss {train['loss']:.4f}, dev loss {dev['loss']:.4f}",
        f"dev WER {100 * dev['rate']:.2f} %{' (best)' if metrics['best'] else ''}",
        f"blank {100 * train['blank_rate']:.0f} %",
        f"gradient norm {train['gradient_norm']:.2f} ({100 * train['clipped']:.0f} % clipped)",
        f"{train['skipped']} steps skipped",
        f"{seconds:.1f} s ({timing['speech_seconds'] / max(seconds, 1e-9):.0f} x real time, "
        f"{100 * timing['waiting_seconds'] / max(seconds, 1e-9):.0f} % waiting) + {timing['dev_seconds']:.1f} s dev",
    ]
    return ", ".join(parts)
