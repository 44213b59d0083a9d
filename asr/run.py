"""What a training run is made of, built and checked before its first step, and its state on the disk.

The state is the weights, the optimiser's moments, torch's random state (each process's) and a `Position`; everything
else (the batches of an epoch, what augmentation does to an utterance) follows from seed and epoch.

With several processes a batch holds `data.batch_seconds` of each, and is dealt out among them (`Run.shares`). The
number of processes that a run began with belongs to its state: it says what the batches are. Another number of
processes can go on with the same batches, dealt out otherwise.
"""

import contextlib
import dataclasses
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import asr
from asr import audio, batches, ctc, examples, features, files, optim, text, units, warm_start
from asr.augment import Augmentation, generator
from asr.batches import Batch
from asr.card import check_card
from asr.config import Config
from asr.distributed import Team
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


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process computes of a batch: `rows`, whose losses are divided by `divisor`.

    A stand-in (`counts` is false) keeps a process company that gets nothing of a batch: all come to every exchange.
    """

    rows: list[examples.Row]
    divisor: float
    counts: bool
    ends_batch: bool
    ends_step: bool


class Run:
    """A training run: what `train` and `overfit_one_batch` share. Everything is built and checked here, before a step.

    Args:
        config: the settings.
        say: takes a line for people.
        team: the processes that train together.

    Raises:
        InputError: settings, manifests or audio are wrong.
    """

    def __init__(self, config: Config, say: Callable[[str], None], team: Team = Team()) -> None:  # noqa: B008 (frozen)
        self.config = config
        self.say = say
        self.team = team
        self.processes = team.size  # that the run began with
        self.device = device_named(team.device(config.device))
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
        self.network: torch.nn.Module = self.model  # what is trained: with several processes a wrapper around it
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
        """The batches of an epoch, as all processes share them."""
        rows = self.train.rows(epoch)
        seconds = [self.train.seconds(row) for row in rows]
        together = self.config.data.batch_seconds * self.processes
        groups = batches.order(seconds, together, self.config.seed, epoch)
        return [[rows[number] for number in group] for group in groups]

    def deal(self, group: list[examples.Row]) -> list[list[list[examples.Row]]]:
        """What each process computes of a batch, in as many parts as keep a part within `data.batch_seconds`."""
        parts = -(-self.processes // self.team.size)
        dealt = batches.deal([self.train.seconds(row) for row in group], parts * self.team.size)
        rows = [[group[number] for number in share] for share in dealt]
        return [rows[rank :: self.team.size] for rank in range(self.team.size)]

    def shares(self, epoch: int, begin: int = 0) -> list[Share]:
        """What this process computes of the batches of an epoch from number `begin` on."""
        groups, accumulate = self.groups(epoch), self.config.training.accumulate
        labels = [sum(len(self.train.labels(row)) for row in group) for group in groups]
        shares = []
        for number in range(begin, len(groups)):
            first = number - number % accumulate
            divisor = max(1, sum(labels[first : first + accumulate])) / self.team.size  # DDP averages, a step sums
            ends_step = (number + 1) % accumulate == 0 or number + 1 == len(groups)
            parts = self.deal(groups[number])[self.team.rank]
            for part, rows in enumerate(parts, 1):
                is_last = part == len(parts)
                share = Share(rows, divisor, counts=True, ends_batch=is_last, ends_step=is_last and ends_step)
                if not rows:
                    share = dataclasses.replace(share, rows=groups[number][:1], divisor=math.inf, counts=False)
                shares.append(share)
        return shares

    def losses(
        self, batch: Batch, model: torch.nn.Module | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CTC loss of each utterance `(batch,)`, log-probabilities and their lengths, by `model` (`network`)."""
        return losses_of(model or self.network, batch, self.config.training.autocast)


def losses_of(
    model: torch.nn.Module, batch: Batch, autocast: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CTC loss of each utterance `(batch,)`, log-probabilities and their lengths; `autocast` names a torch type."""
    device = batch.features.device.type
    with torch.autocast(device, getattr(torch, autocast)) if autocast else contextlib.nullcontext():
        log_probs, lengths = model(batch.features, batch.lengths)
    return ctc.loss(log_probs, lengths, batch.targets, batch.target_lengths), log_probs, lengths


def save_state(run: Run, position: Position, folder: RunFolder) -> None:
    """Commit everything that the rest of the run depends on; all processes come to it."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    if run.averaged is not run.model:
        tensors |= {f"averaged.{name}": tensor for name, tensor in run.averaged.state_dict().items()}
    tensors |= optim.moments(run.optimizer)
    random = {name: state.tolist() for name, state in random_states(run.device).items()}
    for rank, states in enumerate(run.team.gather(random)):
        tensors |= {_of(rank, name): torch.tensor(state, dtype=torch.uint8) for name, state in states.items()}
    values = {"position": dataclasses.asdict(position), "data": run.data, "begun": run.begun}
    with run.team.together():
        folder.save_state(tensors, values | {"processes": run.processes})


def resume(run: Run, folder: RunFolder) -> Position:
    """Put a run where its last state stands, or at the start."""
    with run.team.together():
        state = folder.load_state()
        if state is not None and state[1]["data"] != run.data:
            changed = ", ".join(path for path in run.data if state[1]["data"].get(path) != run.data[path])
            raise InputError(
                f"{folder.path}: the manifests changed since this run began ({changed}); put them back to go on, or "
                "choose another name (name=...)",
                status=2,
            )
    tensors, values = run.team.share_state(state) or ({}, {"position": {}})
    with run.team.together():
        if not tensors:
            run.begin()
    position = Position(**values["position"])
    run.processes = values.get("processes", 1 if tensors else run.team.size)
    run.begun = values.get("begun", run.begun)
    for prefix, model in (("model.", run.model), ("averaged.", run.averaged)):
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if weights:
            model.load_state_dict(weights)
    optim.restore(run.optimizer, tensors)
    _restore_random(run, tensors, position)
    return position


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators, from which dropout is drawn."""
    states = {"random.cpu": torch.get_rng_state()}
    return states | ({"random.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random(run: Run, tensors: dict[str, torch.Tensor], position: Position) -> None:
    """Let dropout go on as in the state; a process that has none there draws its own, by its number and the step."""
    cpu, cuda = (tensors.get(_of(run.team.rank, name)) for name in ("random.cpu", "random.cuda"))
    if cpu is not None:
        torch.set_rng_state(cpu)
    elif run.team.rank:
        own = generator(run.config.seed, position.step, str(run.team.rank), "processes")
        torch.manual_seed(int(own.integers(2**63)))
    if cuda is not None and run.device.type == "cuda":
        torch.cuda.set_rng_state(cuda, run.device)


def _of(rank: int, name: str) -> str:
    """The name of a process's tensor in the state."""
    return f"{name}.{rank}" if rank else name


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
    } | ({"processes": run.processes} if run.processes > 1 else {})


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
