"""Training: one loop from manifests to a model file, stoppable anywhere and resumed to the bit.

A run is a folder (`docs/data.md`): settings, metrics, log, curves, the best model, the last resumable state. Its state
is the weights, the optimiser's moments, torch's random state and a `Position`; everything else (the batches of an
epoch, what augmentation does to an utterance) follows from seed and epoch. So a run that is killed at any moment and
started again gives the weights, and the metrics but for their `timing`, of a run that was not (same machine, same
number of threads, CPU).
"""

import contextlib
import dataclasses
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import asr
from asr import audio, batches, checkpoint, ctc, examples, features, files, optim, score, text
from asr.augment import Augmentation
from asr.batches import Batch
from asr.config import Config
from asr.errors import AsrError, InputError
from asr.model import AcousticModel, device_named
from asr.run_folder import RunFolder

_TOO_MANY_SKIPPED = 10  # steps in a row with a non-finite loss or gradient end the run


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


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: its best model, that model's score on the dev set, and the epochs run."""

    model: Path
    folder: Path
    dev: score.Score
    best_epoch: int
    epochs: int


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
            examples.read_examples(path, normalize, config.data.max_seconds)
            for path in (config.data.train, config.data.dev)
        )
        self.tokenizer = text.CharTokenizer.from_texts(example.text for example in train)
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
        self.train, self.dev = (
            self._loader(chosen, path) for chosen, path in ((train, config.data.train), (dev, config.data.dev))
        )
        self.data = {path: files.sha256(path) for path in (config.data.train, config.data.dev)}
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
        return examples.Loader(chosen, self.front_end, augmentation, config.seed, self.model.frames, cache)

    def groups(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch."""
        seconds = [example.seconds for example in self.train.examples]
        return batches.order(seconds, self.config.data.batch_seconds, self.config.seed, epoch)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """CTC loss of each utterance `(batch,)`, log-probabilities and their lengths."""
        autocast = self.config.training.autocast
        with torch.autocast(self.device.type, getattr(torch, autocast)) if autocast else contextlib.nullcontext():
            log_probs, lengths = self.model(batch.features, batch.lengths)
        return ctc.loss(log_probs, lengths, batch.targets, batch.target_lengths), log_probs, lengths


def train(
    config: Config,
    recipe: str,
    *,
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    stop: Callable[[], int | None] = lambda: None,
) -> Result:
    """Train to the end of the schedule, or to the early stop; an unfinished run of the same name goes on.

    Args:
        config: the settings.
        recipe: its name, the first part of the run folder.
        say: takes a line for people (it stands in log.txt as well).
        show: takes the progress after every batch.
        stop: asked after every batch; an exit status makes the run save its state and end with it.

    Raises:
        InputError: settings, manifests or audio are wrong, or the run folder holds another run.
        AsrError: the run was stopped, diverged, or could not write.
    """
    folder = RunFolder(Path(config.out) / recipe / (config.name or f"seed{config.seed}"), config, say)
    run = Run(config, folder.log)
    position = _resume(run, folder)
    history = folder.read_history(position.epoch)
    counts = [len(run.groups(epoch)) for epoch in range(config.training.epochs)]
    total_steps = sum(math.ceil(count / config.training.accumulate) for count in counts)
    clock = Clock(begun_at=position.epoch + position.batch / counts[min(position.epoch, len(counts) - 1)])
    folder.log(_opening(run, folder, position))
    while position.epoch < config.training.epochs and not _is_stale(position, config.training.patience):
        wer = history[-1]["dev"]["rate"] if history else None
        for _ in train_epoch(run, position, total_steps, folder, clock, stop):
            show(_progress(position, config.training.epochs, counts[position.epoch], wer, clock))
        history.append(_end_epoch(run, position, recipe, folder, clock, stop))
        folder.write_history(history)
        position.next_epoch()
        _save_state(run, position, folder)
    return _finish(run, position, history, recipe, folder)


def train_epoch(
    run: Run, position: Position, total_steps: int, folder: RunFolder, clock: Clock, stop: Callable[[], int | None]
) -> Iterator[None]:
    """Train on the batches of an epoch that are still to do; yields after each."""
    config, model = run.config, run.model
    groups = run.groups(position.epoch)
    accumulate = config.training.accumulate
    labels = [sum(len(run.train.examples[index].labels) for index in group) for group in groups]
    saved = waited = time.monotonic()
    model.train()
    todo = groups[position.batch :]
    for batch in batches.prefetch(lambda group: run.train.batch(group, position.epoch), todo):
        begun = time.monotonic()
        clock.waiting += begun - waited
        batch = batch.to(run.device)
        first = position.batch - position.batch % accumulate
        losses, log_probs, lengths = run.losses(batch)
        (losses.sum() / max(1, sum(labels[first : first + accumulate]))).backward()
        _count(position, batch, losses, log_probs, lengths)
        position.batch += 1
        if position.batch % accumulate == 0 or position.batch == len(groups):
            _update(run, position, batch, losses, total_steps)
            status = stop()
            if status is not None or time.monotonic() - saved > config.training.save_minutes * 60:
                _save_state(run, position, folder)
                saved = time.monotonic()
            if status is not None:
                raise AsrError(f"stopped, state saved in {folder.path}: run the same command to go on", status)
        waited = time.monotonic()
        clock.training += waited - begun
        clock.speech += batch.seconds
        yield


def _update(run: Run, position: Position, batch: Batch, losses: torch.Tensor, total_steps: int) -> None:
    """One optimiser step; skipped and counted where the loss or the gradient is not finite."""
    settings = run.config.optim
    for group in run.optimizer.param_groups:
        group["lr"] = settings.lr * optim.schedule(position.step, total_steps, settings.warmup, settings.floor)
    norm = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip or math.inf))
    position.step += 1
    if math.isfinite(norm):
        run.optimizer.step()
        position.norm += norm
        position.steps += 1
        position.clipped += bool(settings.clip and norm > settings.clip)
        position.skipped_in_a_row = 0
    else:
        culprits = [u for u, loss in zip(batch.utterances, losses.tolist(), strict=True) if not math.isfinite(loss)]
        run.say(f"step {position.step}: loss or gradient not finite, step skipped: {', '.join(culprits or batch.utterances)}")
        position.skipped += 1
        position.skipped_in_a_row += 1
    run.optimizer.zero_grad(set_to_none=True)
    if position.skipped_in_a_row >= _TOO_MANY_SKIPPED:
        raise AsrError(
            f"{_TOO_MANY_SKIPPED} steps in a row had a loss or gradient that is not finite; the best model so far is kept; "
            "lower optim.lr or look at the utterances named in log.txt"
        )


def _count(
    position: Position, batch: Batch, losses: torch.Tensor, log_probs: torch.Tensor, lengths: torch.Tensor
) -> None:
    """Add a batch to the sums of the epoch."""
    with torch.no_grad():
        valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
        blanks = int(((log_probs.argmax(2) == 0) & valid).sum())
        loss = float(losses.sum())
    if math.isfinite(loss):
        position.loss += loss
        position.labels += len(batch.targets)
    position.frames += int(lengths.sum())
    position.blanks += blanks


def evaluate(run: Run, stop: Callable[[], int | None], bootstrap: int = 0) -> tuple[score.Score, float]:
    """Greedy word error rate on the dev set, and its CTC loss in nats a label."""
    run.model.eval()
    dev = run.dev
    groups = batches.by_length([example.seconds for example in dev.examples], run.config.data.batch_seconds)
    hypotheses: dict[int, str] = {}
    total = 0.0
    with torch.no_grad():
        for group, batch in zip(groups, batches.prefetch(dev.batch, groups), strict=True):
            losses, log_probs, lengths = run.losses(batch.to(run.device))
            total += float(losses.sum())
            heard = ctc.greedy(log_probs, lengths, run.tokenizer.tokens)
            hypotheses |= {index: hypothesis.text for index, hypothesis in zip(group, heard, strict=True)}
            if (status := stop()) is not None:
                raise AsrError("stopped while the dev set was decoded: run the same command to go on", status)
    references = [example.text for example in dev.examples]
    labels = sum(len(example.labels) for example in dev.examples)
    result = score.score(
        references,
        [hypotheses[index] for index in range(len(references))],
        normalizer=run.config.text.normalizer,
        bootstrap=bootstrap,
    )
    return result, total / max(1, labels)


def _end_epoch(
    run: Run, position: Position, recipe: str, folder: RunFolder, clock: Clock, stop: Callable[[], int | None]
) -> dict[str, Any]:
    """Score the dev set, keep the model where it is the best so far; returns the epoch's metrics."""
    begun = time.monotonic()
    dev, loss = evaluate(run, stop)
    is_best = position.best_errors is None or (dev.errors, loss) < (position.best_errors, position.best_loss)
    if is_best:
        position.best_epoch, position.best_errors, position.best_loss = position.epoch, dev.errors, loss
        facts = _facts(run, recipe) | {"epoch": position.epoch, "dev": dev.to_json() | {"loss": loss}}
        checkpoint.save_model(folder.model, run.model.state_dict(), run.card | {"training": facts})
    metrics = {
        "epoch": position.epoch,
        "step": position.step,
        "train": {
            "loss": position.loss / max(1, position.labels),
            "blank_rate": position.blanks / max(1, position.frames),
            "gradient_norm": position.norm / max(1, position.steps),
            "clipped": position.clipped / max(1, position.steps),
            "skipped": position.skipped,
        },
        "dev": dev.to_json() | {"loss": loss},
        "best": is_best,
        "timing": {
            "training_seconds": clock.training,
            "waiting_seconds": clock.waiting,
            "dev_seconds": time.monotonic() - begun,
            "speech_seconds": clock.speech,
        },
    }
    clock.training = clock.waiting = clock.speech = 0.0
    folder.log(_epoch_line(metrics))
    return metrics


def _finish(
    run: Run, position: Position, history: list[dict[str, Any]], recipe: str, folder: RunFolder
) -> Result:
    """Write result.json and say how it ended."""
    best = history[position.best_epoch]
    result = {"recipe": recipe, "best_epoch": position.best_epoch, "epochs": position.epoch, "dev": best["dev"]}
    folder.write_result(result | {"training": _facts(run, recipe), "model_sha256": files.sha256(folder.model)})
    return Result(folder.model, folder.path, best["dev"], position.best_epoch, position.epoch)


def _save_state(run: Run, position: Position, folder: RunFolder) -> None:
    """Commit everything that the rest of the run depends on."""
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    for number, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    folder.save_state(tensors, {"position": dataclasses.asdict(position), "data": run.data})


def _resume(run: Run, folder: RunFolder) -> Position:
    """Put a run where its last state stands, or at the start."""
    state = folder.load_state()
    if state is None:
        return Position()
    tensors, values = state
    if values["data"] != run.data:
        raise InputError(f"{folder.path}: the manifests changed since this run began; choose another name (name=...)", status=2)
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    run.model.load_state_dict(model)
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


def _is_stale(position: Position, patience: int) -> bool:
    """Whether `patience` epochs (0: any number) went by without a better dev result."""
    return bool(patience) and position.epoch - 1 - position.best_epoch >= patience


def _progress(position: Position, epochs: int, count: int, wer: float | None, clock: Clock) -> Progress:
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


def _opening(run: Run, folder: RunFolder, position: Position) -> str:
    """The first line of a run."""
    train, dev = (sum(e.seconds for e in loader.examples) / 60 for loader in (run.train, run.dev))
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    where = f"goes on at epoch {position.epoch + 1}, batch {position.batch}" if position.step else "begins"
    return (
        f"{folder.path}: {where}; {len(run.train.examples)} utterances ({train:.1f} min), dev {len(run.dev.examples)} "
        f"({dev:.1f} min), {len(run.tokenizer.tokens)} tokens, {parameters / 1e6:.2f} M parameters, on {run.device}"
    )


def _epoch_line(metrics: dict[str, Any]) -> str:
    """An epoch in a line."""
    train, dev, timing = metrics["train"], metrics["dev"], metrics["timing"]
    seconds = timing["training_seconds"] + timing["waiting_seconds"]
    return (
        f"epoch {metrics['epoch'] + 1}: loss {train['loss']:.4f}, dev loss {dev['loss']:.4f}, "
        f"dev WER {100 * dev['rate']:.2f} %{' (best)' if metrics['best'] else ''}, blank {100 * train['blank_rate']:.0f} %, "
        f"gradient norm {train['gradient_norm']:.2f} ({100 * train['clipped']:.0f} % clipped, {train['skipped']} skipped), "
        f"{seconds:.1f} s ({timing['speech_seconds'] / max(seconds, 1e-9):.0f} x real time, "
        f"{100 * timing['waiting_seconds'] / max(seconds, 1e-9):.0f} % waiting) + {timing['dev_seconds']:.1f} s dev"
    )


def _facts(run: Run, recipe: str) -> dict[str, Any]:
    """What the model file tells about its training; nothing that changes from one identical run to the next."""
    return {
        "recipe": recipe,
        "settings": dataclasses.asdict(run.config),
        "data": run.data,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "asr": asr.__version__,
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, if it does."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=5).stdout.strip()
    return None


def _settings(part: Any) -> dict[str, Any]:
    """A part of the settings as keyword arguments; what is null is left to the default."""
    return {key: value for key, value in dataclasses.asdict(part).items() if value is not None}


def overfit_one_batch(config: Config, steps: int, say: Callable[[str], None]) -> bool:
    """Train on the first batch alone, without augmentation and dropout, until it is learnt by heart.

    The quickest check that data, labels and model fit together. Says loss and blank rate as it goes; returns whether
    the batch's texts came out right within `steps` steps.
    """
    run = Run(config, say)
    batch = run.train.batch(run.groups(0)[0]).to(run.device)
    references = {example.utterance.id: example.text for example in run.train.examples}
    expected = [references[utterance] for utterance in batch.utterances]
    run.model.eval()  # no dropout
    for step in range(1, steps + 1):
        losses, log_probs, lengths = run.losses(batch)
        heard = [hypothesis.text for hypothesis in ctc.greedy(log_probs, lengths, run.tokenizer.tokens)]
        right = sum(a == b for a, b in zip(heard, expected, strict=True))
        loss = float(losses.sum()) / max(1, len(batch.targets))
        if right == len(expected) or step % 20 == 0 or step == steps:
            say(f"step {step}: loss {loss:.4f} nats a label, {right} of {len(expected)} texts right")
        if right == len(expected):
            return True
        (losses.sum() / max(1, len(batch.targets))).backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.optim.clip or math.inf)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return False
