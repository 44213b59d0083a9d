"""Training: one loop from manifests to a model file, stoppable anywhere and resumed to the bit.

A run is a folder (`asr.run_folder`), its parts and its state are in `asr.run`. A run that is killed at any
moment and started again gives the weights, and the metrics but for their `timing`, of a run that was not (same
machine, same number of threads, CPU).

Several processes can train one model (`torchrun --nproc-per-node N -m asr.train recipe=NAME`, docs/distributed.md):
each runs this loop over its share of every batch, and what they have to agree on they `gather` (`asr.distributed`).
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from asr import batches, calibration, confidence, ctc, files, optim, probe, replay, score
from asr.batches import Batch
from asr.calibration import Calibration
from asr.config import Config, to_yaml
from asr.distributed import Team
from asr.errors import AsrError
from asr.progress import Clock, Progress, epoch_line, opening, progress
from asr.run import Position, Run, facts, random_states, resume, save_state
from asr.run_folder import RunFolder, run_path

_Heard = tuple[str, list[tuple[str, float]]]  # a text; its words with their probabilities
_KEPT = 3  # batches that are kept to be replayed, of each process
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
    team: Team = Team(),  # noqa: B008 (frozen)
) -> Result:
    """Train to the end of the schedule, or to the early stop; an unfinished run of the same name goes on.

    Args:
        config: the settings.
        recipe: its name, the first part of the run folder.
        say: takes a line for people (it stands in log.txt as well).
        show: takes the progress after every batch.
        stop: asked after every batch; an exit status makes the run save its state and end with it.
        team: the processes that train together; the first of them writes and speaks.

    Raises:
        InputError: settings, manifests or audio are wrong, or the run folder holds another run.
        AsrError: the run was stopped, diverged, or could not write.
    """
    with team.together():
        folder = RunFolder(run_path(config, recipe), config, say, team.is_first)
        run = Run(config, folder.log, team)
    team.check_same([run.data, to_yaml(config)], "their settings or manifests")
    position = resume(run, folder)
    run.network = team.wrap(run.model)
    history = team.share(folder.read_history(position.epoch))
    plan = probe.plan(run)
    total_steps = sum(math.ceil(count / config.training.accumulate) for count in plan.counts)
    folder.log(opening(run, folder.path, position))
    folder.log(probe.try_longest(run, plan.longest, plan.epoch))
    clock = Clock(begun_at=position.epoch + position.batch / plan.counts[min(position.epoch, len(plan.counts) - 1)])
    while position.epoch < config.training.epochs and not _is_stale(position, config.training.patience):
        wer = history[-1]["dev"]["rate"] if history else None
        with contextlib.closing(train_epoch(run, position, total_steps, folder, clock, stop)) as steps:
            for _ in steps:
                show(progress(position, config.training.epochs, plan.counts[position.epoch], wer, clock))
        save_state(run, position, folder)
        history.append(_end_epoch(run, position, recipe, folder, clock, stop))
        with team.together():
            folder.write_history(history)
        position.next_epoch()
        save_state(run, position, folder)
    with team.together():
        return _finish(run, position, history, recipe, folder)


@dataclasses.dataclass
class Step:
    """An optimiser step under way: sums of each of its batches, the last one, and the first whose loss isn't finite."""

    sums: list[dict[str, float]] = dataclasses.field(default_factory=list)
    last: replay.Suspect | None = None
    suspect: replay.Suspect | None = None


def train_epoch(
    run: Run,
    position: Position,
    total_steps: int,
    folder: RunFolder,
    clock: Clock,
    stop: Callable[[], int | None],
) -> Generator[None, None, None]:
    """Train on this process's shares of the batches of an epoch that are still to do; yields after each."""
    saved = waited = time.monotonic()
    step = Step()
    run.model.train()
    todo = run.shares(position.epoch, position.batch)
    make = lambda share: run.train.batch(share.rows, position.epoch)  # noqa: E731
    # Closed whatever happens: a thread that still computes while Python ends would bring it down.
    with contextlib.closing(batches.prefetch(make, todo)) as ready, probe.memory_told(run, "a batch"):
        for share, batch in zip(todo, run.team.side_by_side(ready), strict=True):
            begun = time.monotonic()
            clock.waiting += begun - waited
            batch = batch.to(run.device)
            random = random_states(run.device)
            with run.team.summing(run.network, share.ends_step):
                losses, log_probs, lengths = run.losses(batch)
                (losses.sum() / share.divisor).backward()
            if share.counts:
                _count(step, replay.Suspect(batch, losses.detach(), random), log_probs, lengths)
            position.batch += share.ends_batch
            if share.ends_step:
                is_due = time.monotonic() - saved > run.config.training.save_minutes * 60
                told = run.team.gather([step.sums, stop(), is_due])
                _add(position, clock, [sums for sums, _, _ in told])
                _update(run, position, step, folder, total_steps)
                step = Step()
                status = max((status for _, status, _ in told if status is not None), default=None)
                if status is not None:
                    ready.close()  # its thread is to have ended before Python does
                if status is not None or told[0][2]:
                    save_state(run, position, folder)
                    saved = time.monotonic()
                if status is not None:
                    with run.team.together():
                        raise AsrError(f"stopped, state saved in {folder.path}: run the same command to go on", status)
            waited = time.monotonic()
            clock.training += waited - begun
            yield


def _count(step: Step, seen: replay.Suspect, log_probs: torch.Tensor, lengths: torch.Tensor) -> None:
    """Add a batch to the sums of the step."""
    with torch.no_grad():
        valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
        blanks = int(((log_probs.argmax(2) == 0) & valid).sum())
        loss = float(seen.losses.sum())
    step.last = seen
    if not math.isfinite(loss):
        step.suspect = step.suspect or seen
    labels = len(seen.batch.targets)
    frames = int(lengths.sum())
    step.sums.append(
        {"loss": loss, "labels": labels, "frames": frames, "blanks": blanks, "seconds": seen.batch.seconds}
    )


def _add(position: Position, clock: Clock, told: list[list[dict[str, Any]]]) -> None:
    """Add the sums of a step, of every process, to those of the epoch."""
    for sums in (sums for sums_of_process in told for sums in sums_of_process):
        if math.isfinite(sums["loss"]):
            position.loss += sums["loss"]
            position.labels += sums["labels"]
        position.frames += sums["frames"]
        position.blanks += sums["blanks"]
        clock.speech += sums["seconds"]


def _update(run: Run, position: Position, step: Step, folder: RunFolder, total_steps: int) -> None:
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
        _tell_skipped(run, position, step, folder)
        position.skipped += 1
        position.skipped_in_a_row += 1
    run.optimizer.zero_grad(set_to_none=True)
    if position.skipped_in_a_row >= _TOO_MANY_SKIPPED:
        with run.team.together():
            raise AsrError(
                f"{_TOO_MANY_SKIPPED} steps in a row had a loss or gradient that is not finite; the best model so far "
                "is kept; lower optim.lr or look at the utterances named in log.txt"
            )


def _tell_skipped(run: Run, position: Position, step: Step, folder: RunFolder) -> None:
    """Name the utterances whose loss is not finite (or all of the last batches), and keep them for a replay."""
    culprits = run.team.gather(step.suspect.culprits if step.suspect else [])
    is_known = any(culprits)
    last = step.last.batch.utterances if step.last else []
    named = [name for names in (culprits if is_known else run.team.gather(last)) for name in names]
    folder.log(f"step {position.step}: loss or gradient not finite, step skipped: {', '.join(named)}")
    kept = step.suspect if is_known else step.last
    path = folder.path / f"not_finite-{position.step:08d}-{run.team.rank}.safetensors"
    with run.team.together():
        if kept and len(list(folder.path.glob(f"not_finite-*-{run.team.rank}.safetensors"))) < _KEPT:
            replay.keep(path, run, kept)


def evaluate(run: Run, stop: Callable[[], int | None]) -> tuple[score.Score, float, Calibration]:
    """Greedy word error rate on the dev set, its CTC loss in nats a label, and the calibration of the words heard.

    The processes share the utterances, and all score what all of them heard.
    """
    run.averaged.eval()
    dev, team = run.dev, run.team
    groups = batches.by_length([example.seconds for example in dev.examples], run.config.data.batch_seconds)

    def make(group: list[int]) -> Batch:
        return dev.batch([(index,) for index in group])

    mine = groups[team.rank :: team.size]
    done: list[tuple[float, list[_Heard]]] = []
    with torch.no_grad(), team.together(), contextlib.closing(batches.prefetch(make, mine)) as ready:
        for batch in ready:
            losses, log_probs, lengths = run.losses(batch.to(run.device), run.averaged)
            heard = ctc.greedy(log_probs, lengths, run.tokenizer.tokens)
            done.append((float(losses.sum()), [(one.text, confidence.sureness(one)) for one in heard]))
            if (status := stop()) is not None:
                raise AsrError("stopped while the dev set was decoded: run the same command to go on", status)
    told = team.gather(done)
    hypotheses: dict[int, _Heard] = {}
    total = 0.0
    for number, group in enumerate(groups):  # in the order of one process: the sum is the same to the bit
        loss, heard_in_it = told[number % team.size][number // team.size]
        total += loss
        hypotheses |= dict(zip(group, heard_in_it, strict=True))
    references = [example.text for example in dev.examples]
    labels = sum(len(example.labels) for example in dev.examples)
    ordered = [hypotheses[index] for index in range(len(references))]
    normalizer = run.config.text.normalizer
    result = score.score(references, [text for text, _ in ordered], normalizer=normalizer)
    judged = confidence.judge(references, [words for _, words in ordered], normalizer)
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
        with run.team.together():
            folder.save_model(run.averaged.state_dict(), run.card | {"decoder": decoder, "training": known})
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
    if run.team.is_first:
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


if __name__ == "__main__":  # as torchrun starts it: `asr train` with the same arguments
    import os
    import sys

    from asr import cli, distributed

    status = cli.main(["train", *sys.argv[1:]])
    if distributed.is_one_of_many():  # everything is written; gloo's threads, still there, can abort a Python that ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
