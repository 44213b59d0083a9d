"""What a training run is made of, built and checked before its first step, and its state on the disk.

The state is the weights, the optimiser's moments, torch's random state and a `Position`; everything else (the batches
of an epoch, what augmentation does to an utterance) follows from seed and epoch.
"""

import contextlib
import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import asr
from asr import audio, batches, ctc, examples, features, files, optim, text, units, warm_start
from asr.augment import Augmentation
from asr.batches import Batch
from asr.card import check_card
from asr.config import Config
from asr.errors import InputError
from asr.model import AcousticModel, device_named
from asr.run_folder import RunFolder


@dataclasses.dataclass
class Position:
    """Where a run stands: batches done of an epoch, optimiser steps, the best epoch so far, sums over this epoch."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    skipped_in_a_row: int = 0
    best_epoch: int = -1
    best_errors: int | None = None  # on the dev set
    best_loss: float | None = None
    loss: float = 0.0
    labels: int = 0
    frames: int = 0
    blanks: int = 0
    norm: float = 0.0
    steps: int = 0
    clipped: int = 0
    skipped: int = 0

    def next_epoch(self) -> None:
        """Go to the start of the next epoch, with empty sums."""
        self.epoch += 1
        self.batch = self.labels = self.frames = self.blanks = self.steps = self.clipped = self.skipped = 0
        self.loss = self.norm = 0.0


class Run:
    """A training run: what `train` and `overfit_one_batch` share. Everything is built and checked here, before a step.

    Args:
        config: the settings.
        say: takes a line for people.

    Raises:
        InputError: settings, manifests or audio are wrong.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config = config
        self.say = say
        self.device = device_named(config.device)
        torch.set_num_threads(config.threads or torch.get_num_threads())
        torch.manual_seed(config.seed)
        normalize = text.normalizer(config.text.normalizer)
        train, dev = (
            examples.read_examples(path, normalize, config.data.max_seconds, say)
            for path in (config.data.train, config.data.dev)
        )
        if not any(example.text for example in dev):
            raise InputError(f"{config.data.dev}: no words in its texts; the dev set has to tell good from bad models")
        self.tokenizer = units.build(config.text.units, [example.text for example in train], config.text.pieces)
        self.front_end = features.build(**_settings(config.features))
        shape = dict(features=self.front_end.size, tokens=len(self.tokenizer.tokens), **_settings(config.model))
        self.model = AcousticModel(**shape).to(self.device)
        self.card = {
            "features": _settings(config.features),
            "normalizer": config.text.normalizer,
            "tokens": self.tokenizer.tokens,
            "model": shape,
            "decoder": dataclasses.asdict(config.decoder),
        }
        check_card(self.card | {"training": {}}, config.data.train)  # before an epoch is spent on what can't be saved
        self.train, self.dev = (
            self._loader(chosen, path) for chosen, path in ((train, config.data.train), (dev, config.data.dev))
        )
        self.averaged = optim.average_of(self.model) if config.optim.average else self.model
        self.begun: dict[str, Any] | None = None  # with the weights of which model
        self.data = {path: files.sha256(path) for path in (config.data.train, config.data.dev)}
        if note := examples.narrow_band_note(train, self.front_end.rate):
            say(note)
        self.optimizer = optim.adamw(
            self.model, config.optim.lr, (config.optim.beta1, config.optim.beta2), config.optim.weight_decay
        )

    def _loader(self, chosen: list[examples.Example], path: str) -> examples.Loader:
        """Label, check and bind the examples of one manifest."""
        config = self.config
        chosen = examples.label(chosen, self.tokenizer, path)
        emission_frames = lambda seconds: self.model.frames(  # noqa: E731
            self.front_end.frames(round(seconds * self.front_end.rate))
        )
        examples.check_frames(chosen, emission_frames, path)
        cache = None
        if config.data.cache_gigabytes:
            folder = Path(config.data.cache or Path.home() / ".cache" / "asr" / "audio")
            cache = audio.SampleCache(folder, int(config.data.cache_gigabytes * 1e9))
        augmentation = Augmentation(**_settings(config.augment))
        return examples.Loader(
            chosen,
            self.tokenizer,
            self.front_end,
            augmentation,
            config.seed,
            self.model.frames,
            config.data.max_seconds,
            cache,
        )

    def begin(self) -> None:
        """Take the weights of the model that the run starts from, if it does. Raises InputError as `warm_start`."""
        if self.config.init_from:
            self.begun, line = warm_start.begin(self.config.init_from, self.model, self.card)
            self.averaged.load_state_dict(self.model.state_dict())
            self.say(line)

    def groups(self, epoch: int) -> list[list[examples.Row]]:
        """The batches of an epoch."""
        rows = self.train.rows(epoch)
        seconds = [self.train.seconds(row) for row in rows]
        groups = batches.order(seconds, self.config.data.batch_seconds, self.config.seed, epoch)
        return [[rows[number] for number in group] for group in groups]

    def losses(
        self, batch: Batch, model: torch.nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CTC loss of each utterance `(batch,)`, log-probabilities and their lengths, by `model` (the trained one)."""
        autocast = self.config.training.autocast
        with torch.autocast(self.device.type, getattr(torch, autocast)) if autocast else contextlib.nullcontext():
            log_probs, lengths = (model or self.model)(batch.features, batch.lengths)
        return ctc.loss(log_probs, lengths, batch.targets, batch.target_lengths), log_probs, lengths


def save_state(run: Run, position: Position, folder: RunFolder) -> None:
    """Commit everything that the rest of the run depends on."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    if run.averaged is not run.model:
        tensors |= {f"averaged.{name}": tensor for name, tensor in run.averaged.state_dict().items()}
    for number, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    values = {"position": dataclasses.asdict(position), "data": run.data, "begun": run.begun}
    folder.save_state(tensors, values)


def resume(run: Run, folder: RunFolder) -> Position:
    """Put a run where its last state stands, or at the start."""
    state = folder.load_state()
    if state is None:
        run.begin()
        return Position()
    tensors, values = state
    run.begun = values.get("begun")
    if values["data"] != run.data:
        changed = ", ".join(path for path in run.data if values["data"].get(path) != run.data[path])
        raise InputError(
            f"{folder.path}: the manifests changed since this run began ({changed}); put them back to go on, or choose "
            "another name (name=...)",
            status=2,
        )
    for prefix, model in (("model.", run.model), ("averaged.", run.averaged)):
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if prefix == "model." or run.averaged is not run.model:
            model.load_state_dict(weights)
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = tensor
    run.optimizer.load_state_dict({"state": moments, "param_groups": run.optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and run.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], run.device)
    return Position(**values["position"])


def facts(run: Run, recipe: str) -> dict[str, Any]:
    """What the model file tells about its training; nothing that changes from one identical run to the next."""
    return {
        "recipe": recipe,
        "settings": dataclasses.asdict(run.config),
        "data": run.data,
        **({"init_from": run.begun} if run.begun else {}),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "asr": asr.__version__,
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it does."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
            done = subprocess.run([*git, *command], capture_output=True, check=True, text=True, timeout=5)
        return done.stdout.strip()
    return None


def _settings(part: Any) -> dict[str, Any]:
    """A part of the settings as keyword arguments; what is null is left to the default."""
    return {key: value for key, value in dataclasses.asdict(part).items() if value is not None}
