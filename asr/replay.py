"""A batch whose loss or gradient was not finite, kept with the weights of that moment, and computed again.

    from asr import replay
    print(replay.replay("runs/an4/seed1/not_finite-00000123-0.safetensors"))

The file holds what the step depended on: features, lengths, targets, weights, the state of torch's generators (dropout)
and whether it was computed in bfloat16. Like every file of asr it may come from a stranger, and is checked before use.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr import checkpoint
from asr.batches import Batch
from asr.card import check_card
from asr.model import AcousticModel, device_named, weights_of
from asr.run import Run, losses_of
from asr.tensorfile import refusal

_PARTS = ("features", "lengths", "targets", "target_lengths")


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A batch, its losses `(batch,)`, and the states of torch's generators before it was computed."""

    batch: Batch
    losses: Tensor
    random: dict[str, Tensor]

    @property
    def culprits(self) -> list[str]:
        """The utterances whose loss is not finite."""
        pairs = zip(self.batch.utterances, self.losses.tolist(), strict=True)
        return [utterance for utterance, loss in pairs if not math.isfinite(loss)]


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a batch gave again: loss in nats of each utterance, norm of the gradient of each parameter.

    Gradients are of the sum of all losses, not clipped.
    """

    losses: dict[str, float]
    gradients: dict[str, float]

    def __str__(self) -> str:
        """A line for each utterance, then one for each parameter whose gradient is not finite."""
        lines = [f"{utterance}: loss {loss:.6g}" for utterance, loss in self.losses.items()]
        wrong = [f"{name}: gradient {norm}" for name, norm in self.gradients.items() if not math.isfinite(norm)]
        return "\n".join(lines + (wrong or ["all gradients are finite"]))


def keep(path: Path, run: Run, suspect: Suspect) -> None:
    """Write a batch and what its step depends on. Raises AsrError where it can't be written."""
    tensors = {f"batch.{name}": getattr(suspect.batch, name) for name in _PARTS} | suspect.random
    tensors |= {f"model.{name}": weight for name, weight in run.model.state_dict().items()}
    values = {
        "card": run.card | {"training": {}},
        "utterances": suspect.batch.utterances,
        "autocast": run.config.training.autocast,
    }
    checkpoint.save_batch(path, tensors, values)


def replay(path: str | os.PathLike[str], device: str = "auto") -> Replay:
    """Compute a kept batch again: forward and backward in training mode, with the dropout of then.

    Args:
        path: a `not_finite-...safetensors` of a run folder.
        device: on another kind of device than the run's, dropout and rounding differ.

    Raises:
        InputError: no such file, damaged, or one that does not fit itself (status 2).
    """
    tensors, values = checkpoint.load_batch(path)
    place = device_named(device)
    if not isinstance(values.get("card"), dict):
        raise refusal(path, "its card is missing; damaged")
    check_card(values["card"], path)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    checkpoint.check_weights(weights, weights_of(**values["card"]["model"]), path)
    _check(tensors, values, path)
    model = AcousticModel(**values["card"]["model"])
    model.load_state_dict(weights)
    model.to(place).train()
    torch.set_rng_state(tensors["random.cpu"])
    if place.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], place)
    parts = {name: tensors[f"batch.{name}"] for name in _PARTS}
    batch = Batch(utterances=values["utterances"], seconds=0.0, **parts).to(place)
    losses, _, _ = losses_of(model, batch, values["autocast"])
    losses.sum().backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    return Replay(dict(zip(batch.utterances, losses.tolist(), strict=True)), norms)


def _check(tensors: Mapping[str, Tensor], values: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse a batch that does not fit its card or itself."""
    if any(f"batch.{name}" not in tensors for name in _PARTS) or "random.cpu" not in tensors:
        raise refusal(path, "a part of the batch is missing; damaged")
    features, lengths, targets, target_lengths = (tensors[f"batch.{name}"] for name in _PARTS)
    model, utterances = values["card"]["model"], values.get("utterances")
    is_named = isinstance(utterances, list) and all(isinstance(utterance, str) for utterance in utterances)
    rows = len(utterances) if isinstance(utterances, list) and is_named else -1
    fits = (
        features.ndim == 3
        and features.dtype == torch.float32
        and features.shape[2] == model["features"]
        and features.shape[0] == rows
        and all(t.dtype == torch.int64 and t.ndim == 1 for t in (lengths, targets, target_lengths))
        and len(lengths) == len(target_lengths) == rows > 0
        and bool(((lengths >= 0) & (lengths <= features.shape[1])).all())
        and bool(((targets > 0) & (targets < model["tokens"])).all())
        and bool((target_lengths >= 0).all())
        and int(target_lengths.sum()) == len(targets)
        and tensors["random.cpu"].dtype == torch.uint8
        and tensors["random.cpu"].shape == torch.get_rng_state().shape
        and values.get("autocast") in (None, "bfloat16")
    )
    if not fits:
        raise refusal(path, "its batch does not fit its model; damaged")
