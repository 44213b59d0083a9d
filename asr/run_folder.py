"""The folder of a training run: `runs/<recipe>/<name>/` with settings, log, metrics, states and the best model.

==================  =====================================================================
``config.yaml``     the settings, itself a recipe that repeats the run
``log.txt``         what was said
``metrics.jsonl``   a line an epoch; what differs by machine stands under ``timing``
``curves.png``      loss and word error rate over the epochs
``model.safetensors``  the best model so far
``state/``          the last resumable state
``result.json``     written last: a run that has it is finished
==================  =====================================================================
"""

import dataclasses
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from asr import checkpoint, curves, files
from asr.config import Config, load, to_yaml
from asr.errors import AsrError, InputError

# Settings that may change between the start of a run and its continuation: they do not change what is learnt.
_FREE = (
    "out",
    "device",
    "data.dir",
    "data.cache",
    "data.cache_gigabytes",
    "training.save_minutes",
    "training.tensorboard",
)

_DRAW_EVERY = 60.0  # seconds between two pictures: drawing takes about one


def run_path(config: Config, recipe: str) -> Path:
    """The folder of a run: `out/<recipe>/<name>`, where the name is `seed<N>` if none is given."""
    return Path(config.out) / recipe / (config.name or f"seed{config.seed}")


def is_finished(path: Path) -> bool:
    """Whether the run in that folder came to its end."""
    return (path / "result.json").exists()


class RunFolder:
    """Opens (or goes on with) the folder of a run.

    Args:
        path: the folder; made where it does not exist.
        config: the run's settings.
        say: takes a line for people; `log` writes it to log.txt as well.
        writes: whether this process writes; of several that train together one does, and others read and say nothing.

    Raises:
        InputError: the folder holds a finished run, one with other settings, or one that another process trains.
        AsrError: it can't be written.
    """

    def __init__(self, path: Path, config: Config, say: Callable[[str], None], writes: bool = True) -> None:
        self.path = path
        self._say = say
        self._writes = writes
        self._drawn = time.monotonic()
        if not writes:
            return
        if is_finished(path):
            raise InputError(
                f"{path}: this run is finished; choose another name (name=...) or remove the folder", status=2
            )
        weakref.finalize(self, os.close, _alone(path))
        settings = path / "config.yaml"
        if (path / "state").exists():  # before its first state there is nothing that other settings could spoil
            refuse_others(path, config)
        self._board = curves.tensorboard(path) if config.training.tensorboard else None
        files.write_text(settings, to_yaml(config))
        files.sweep(path)

    @property
    def model(self) -> Path:
        """The best model's file."""
        return self.path / "model.safetensors"

    @property
    def result(self) -> Path:
        """The file that ends a run."""
        return self.path / "result.json"

    def log(self, line: str) -> None:
        """Say a line and keep it in log.txt."""
        if not self._writes:
            return
        self._say(line)
        try:
            with open(self.path / "log.txt", "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self._say(f"{self.path / 'log.txt'}: {error.strerror}; this line is not in it")

    def save_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Commit a resumable state in one rename."""
        if self._writes:
            checkpoint.save_state(self.path / "state", tensors, values)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last state, or None for a fresh run (and where another process reads and writes)."""
        return checkpoint.load_state(self.path / "state") if self._writes else None

    def save_model(self, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Write the best model so far."""
        if self._writes:
            checkpoint.save_model(self.model, weights, card)

    def read_history(self, epochs: int) -> list[dict[str, Any]]:
        """The metrics of the first `epochs` epochs; later lines were written by a process that did not get further."""
        path = self.path / "metrics.jsonl"
        if not self._writes:
            return []
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return [line for line in lines if line.get("epoch", epochs) < epochs]

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, now and then curves.png and, where asked for, add the last epoch to TensorBoard."""
        if not self._writes:
            return
        files.write_text(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))
        if time.monotonic() - self._drawn > _DRAW_EVERY:
            self.draw(history)
        if self._board:
            self._board(history[-1])

    def draw(self, history: list[dict[str, Any]]) -> None:
        """Draw curves.png."""
        curves.draw(history, self.path / "curves.png")
        self._drawn = time.monotonic()

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: the run is finished."""
        files.write_text(self.result, json.dumps(result, indent=2) + "\n")


def _alone(path: Path) -> int:
    """The descriptor of a locked file in a run's folder: no second process trains there while this one holds it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AsrError(f"{path}: not written ({error.strerror or error}); choose another folder (out=...)") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise InputError(
            f"{path}: another process trains this run; wait for it, or choose another name (name=...)", status=2
        ) from error
    except OSError:  # a file system without locks
        pass
    return file


def refuse_others(path: Path, config: Config) -> None:
    """Refuse a folder whose run has other settings than these. Raises InputError (status 2)."""
    settings = path / "config.yaml"
    if not settings.exists():
        return
    old, new = _flat(load(str(settings), [])), _flat(config)
    changed = [key for key in new if new[key] != old.get(key) and key not in _FREE]
    if changed:
        key, kind = changed[0], "a finished" if is_finished(path) else "an unfinished"
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(
            f"{path}: holds {kind} run with {key}={old.get(key)}, not {new[key]}{more}; "
            "go on with its settings, or choose another name (name=...)",
            status=2,
        )


def _flat(config: Config) -> dict[str, Any]:
    """The settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat
