"""Training: one loop from manifests to a model file, stoppable anywhere and resumed to the bit.

A run is a folder (`asr.run_folder`), its parts and its state are in `asr.run`. A run that is killed at any
moment and started again gives the weights, and the metrics but for their `timing`, of a run that was not (same
machine, same number of threads, CPU).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from asr import batches, calibration, checkpoint, confidence, ctc, files, optim, score
from asr.batches import Batch
from asr.calibration import Calibration
from asr.config import Config
from asr.errors import AsrError
from asr.progress import Clock, Progress, epoch_line, opening, progress
from asr.run import Position, Run, facts, resume, save_state
from asr.run_folder import RunFolder, run_path

_TOO_MANY_SKIPPED = 10  # steps in a row with a non-finite loss or gradient end the run


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended: its best model, that model's score on the dev set (`Score.to_json`), and the epochs run."""

    model: Path
    folder: Path
    dev: dict[str, Any]
    best_epoch: int
    epochs: int


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
    folder = RunFolder(run_path(config, recipe), config, say)
    run = Run(config, folder.log)
    position = resume(run, folder)
    history = folder.read_history(position.epoch)
    counts = [len(run.groups(epoch)) for epoch in range(config.training.epochs)]
    total_steps = sum(math.ceil(count / config.training.accumulate) for count in counts)
    clock = Clock(begun_at=position.epoch + position.batch / counts[min(position.epoch, len(counts) - 1)])
    folder.log(opening(run, folder.path, position))
    while position.epoch < config.training.epochs and not _is_stale(position, config.training.patience):
        wer = history[-1]["dev"]["rate"] if history else None
        with contextlib.closing(train_epoch(run, position, total_steps, folder, clock, stop)) as steps:
            for _ in steps:
                show(progress(position, config.training.epochs, counts[position.epoch], wer, clock))
        save_state(run, position, folder)
        history.append(_end_epoch(run, position, recipe, folder, clock, stop))
        folder.write_history(history)
        position.next_epoch()
        save_state(run, position, folder)
    return _finish(run, position, history, recipe, folder)


def train_epoch(
    run: Run,
    position: Position,
    total_steps: int,
    folder: RunFolder,
    clock: Clock,
    stop: Callable[[], int | None],
) -> Generator[None, None, None]:
    """Train on the batches of an epoch that are still to do; yields after each."""
    config, model = run.config, run.model
    groups = run.groups(position.epoch)
    accumulate = config.training.accumulate
    labels = [sum(len(run.train.labels(row)) for row in group) for group in groups]
    saved = waited = time.monotonic()
    model.train()
    todo = groups[position.batch :]
    # Closed whatever happens: a thread that still computes while Python ends would bring it down.
    with contextlib.closing(batches.prefetch(lambda group: run.train.batch(group, position.epoch), todo)) as ready:
        for batch in ready:
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
                if status is not None:
                    ready.close()  # its thread is to have ended before Python does
                if status is not None or time.monotonic() - saved > config.training.save_minutes * 60:
                    save_state(run, position, folder)
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
        if settings.average:
            optim.update_average(run.averaged, run.model, settings.average, position.step)
        position.norm += norm
        position.steps += 1
        position.clipped += bool(settings.clip and norm > settings.clip)
        position.skipped_in_a_row = 0
    else:
        culprits = [u for u, loss in zip(batch.utterances, losses.tolist(), strict=True) if not math.isfinite(loss)]
        run.say(
            f"step {position.step}: loss or gradient not finite, step skipped: "
            f"{', '.join(culprits or batch.utterances)}"
        )
        position.skipped += 1
        position.skipped_in_a_row += 1
    run.optimizer.zero_grad(set_to_none=True)
    if position.skipped_in_a_row >= _TOO_MANY_SKIPPED:
        raise AsrError(
            f"{_TOO_MANY_SKIPPED} steps in a row had a loss or gradient that is not finite; the best model so far "
            "is kept; lower optim.lr or look at the utterances named in log.txt"
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


def evaluate(run: Run, stop: Callable[[], int | None]) -> tuple[score.Score, float, Calibration]:
    """Greedy word error rate on the dev set, its CTC loss in nats a label, and the calibration of the words heard."""
    run.averaged.eval()
    dev = run.dev
    groups = batches.by_length([example.seconds for example in dev.examples], run.config.data.batch_seconds)

    def make(group: list[int]) -> Batch:
        return dev.batch([(index,) for index in group])

    hypotheses: dict[int, ctc.Hypothesis] = {}
    total = 0.0
    with torch.no_grad(), contextlib.closing(batches.prefetch(make, groups)) as ready:
        for group, batch in zip(groups, ready, strict=True):
            losses, log_probs, lengths = run.losses(batch.to(run.device), run.averaged)
            total += float(losses.sum())
            heard = ctc.greedy(log_probs, lengths, run.tokenizer.tokens)
            hypotheses |= dict(zip(group, heard, strict=True))
            if (status := stop()) is not None:
                raise AsrError("stopped while the dev set was decoded: run the same command to go on", status)
    references = [example.text for example in dev.examples]
    labels = sum(len(example.labels) for example in dev.examples)
    ordered = [hypotheses[index] for index in range(len(references))]
    normalizer = run.config.text.normalizer
    result = score.score(references, [one.text for one in ordered], normalizer=normalizer)
    judged = confidence.judge(references, [confidence.sureness(one) for one in ordered], normalizer)
    return result, total / max(1, labels), calibration.fit(judged.probability, judged.right)


def _end_epoch(
    run: Run, position: Position, recipe: str, folder: RunFolder, clock: Clock, stop: Callable[[], int | None]
) -> dict[str, Any]:
    """Score the dev set, keep the model where it is the best so far; returns the epoch's metrics."""
    begun = time.monotonic()
    dev, loss, curve = evaluate(run, stop)
    is_best = position.best_errors is None or (dev.errors, loss) < (position.best_errors, position.best_loss)
    if is_best:
        position.best_epoch, position.best_errors, position.best_loss = position.epoch, dev.errors, loss
        known = facts(run, recipe) | {"epoch": position.epoch, "dev": dev.to_json() | {"loss": loss}}
        decoder = dataclasses.asdict(run.config.decoder) | {"calibration": curve.to_json()}
        card = run.card | {"decoder": decoder, "training": known}
        checkpoint.save_model(folder.model, run.averaged.state_dict(), card)
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
    folder.log(epoch_line(metrics))
    return metrics


def _finish(run: Run, position: Position, history: list[dict[str, Any]], recipe: str, folder: RunFolder) -> Result:
    """Write result.json and say how it ended."""
    best = history[position.best_epoch]
    result = {
        "recipe": recipe,
        "best_epoch": position.best_epoch,
        "epochs": position.epoch,
        "dev": best["dev"],
    }
    folder.draw(history)
    folder.write_result(result | {"training": facts(run, recipe), "model_sha256": files.sha256(folder.model)})
    return Result(folder.model, folder.path, best["dev"], position.best_epoch, position.epoch)


def _is_stale(position: Position, patience: int) -> bool:
    """Whether `patience` epochs (0: any number) went by without a better dev result."""
    return bool(patience) and position.epoch - 1 - position.best_epoch >= patience


def overfit_one_batch(config: Config, steps: int, say: Callable[[str], None]) -> bool:
    """Train on the first batch alone, without augmentation and dropout, until it is learnt by heart.

    The quickest check that data, labels and model fit together. Says loss and blank rate as it goes; returns whether
    the batch's texts came out right within `steps` steps.
    """
    run = Run(config, say)
    run.begin()
    rows = run.groups(0)[0]
    batch = run.train.batch(rows).to(run.device)
    expected = [run.tokenizer.decode(run.train.labels(row)) for row in rows]
    run.model.eval()  # no dropout
    for step in range(1, steps + 1):
        losses, log_probs, lengths = run.losses(batch)
        heard = [hypothesis.text for hypothesis in ctc.greedy(log_probs, lengths, run.tokenizer.tokens)]
        right = sum(a == b for a, b in zip(heard, expected, strict=True))
        loss = float(losses.detach().sum()) / max(1, len(batch.targets))
        if right == len(expected) or step % 20 == 0 or step == steps:
            say(f"step {step}: loss {loss:.4f} nats a label, {right} of {len(expected)} texts right")
        if right == len(expected):
            return True
        (losses.sum() / max(1, len(batch.targets))).backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.optim.clip or math.inf)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return False
