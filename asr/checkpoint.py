"""The model file and the training state: weights and a JSON object in a safetensors file (`asr.tensorfile`).

=====================  ===========  ============  ======================================================
file                   ``format``   JSON under    holds
=====================  ===========  ============  ======================================================
``model.safetensors``  asr          ``card``      weights, and all that transcription needs to know
``state-N``            asr-state    ``values``    weights, optimiser, random states; step, epoch, ...
a language model       asr-lm       ``card``      weights and vocabulary of an LSTM (`asr.lstm_lm.model`)
=====================  ===========  ============  ======================================================

These keys and ``format_version`` stand in the file's metadata. A model comes from strangers: its card is
compared with a closed list of keys, types and ranges before anything is built or allocated, and nothing in it
names code. Each file is written beside its place and renamed over it: one rename commits all of it.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from asr import files, tensorfile
from asr.card import check_card, check_json, check_keys, facts, printable
from asr.errors import InputError
from asr.tensorfile import refusal, short

VERSION = 1  # of the model file and of the state; a reader takes its own and all older ones

_STATE = re.compile(r"state-(\d{6,12})\.safetensors")
Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


# The model file


def save_model(path: str | os.PathLike[str], weights: Mapping[str, Tensor], card: dict[str, Any]) -> None:
    """Write a model file atomically; the same weights and card give the same bytes.

    Args:
        path: the file, `model.safetensors` by custom.
        weights: name -> tensor, of any device and layout.
        card: what `check_card` accepts; a fact of the training that is no number of JSON becomes null.

    Raises:
        AsrError: the file can't be written; what stood there is untouched.
        InputError: the card or a weight is one that `load_model` would refuse.
    """
    card = _as_read(card)
    check_card(card, path)
    for name, tensor in weights.items():
        check_finite(name, tensor, path)
    tensorfile.write(path, weights, metadata("asr", "card", card))


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked card of a model file; the weights stay on the disk. Raises InputError as `load_model`."""
    with tensorfile.opened(path) as (_, header):
        return _card(header, path)


def load_model(
    path: str | os.PathLike[str], expected: Callable[[dict[str, Any]], Expected] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model file.

    Args:
        path: the file.
        expected: gives, from the checked card, the shape and dtype of each weight by name; compared with the
            header before any weight is read.

    Returns:
        The card and the weights (name -> tensor on the CPU).

    Raises:
        InputError: no model file of this or an older version, cut, damaged, too large, with a card that
            `check_card` refuses, weights that are not the expected ones or not finite (status 2).
    """
    with tensorfile.opened(path) as (file, header):
        card = _card(header, path)
        if expected is not None:
            check_weights(header.tensors, expected(card), path)
        weights = tensorfile.read(file, header, path)
    for name, tensor in weights.items():
        check_finite(name, tensor, path)
    return card, weights


def check_weights(weights: Mapping[str, Any], expected: Expected, path: str | os.PathLike[str]) -> None:
    """Compare names, shapes and dtypes (of anything that has `.shape` and `.dtype`) with those of a model.

    Raises:
        InputError: naming the first difference (status 2).
    """
    for name in sorted(weights.keys() | expected.keys()):
        if name not in weights:
            raise refusal(path, f"weight {name!r} is missing; the file does not fit its own card")
        if name not in expected:
            raise refusal(path, f"weight {short(name)} belongs to no part of the model; the file does not fit its card")
        found, wanted = (
            (tuple(weights[name].shape), weights[name].dtype),
            (tuple(expected[name][0]), expected[name][1]),
        )
        if found != wanted:
            raise refusal(path, f"weight {name!r} is {found[1]} {found[0]}, the card asks for {wanted[1]} {wanted[0]}")


def check_finite(name: str, tensor: Tensor, path: str | os.PathLike[str]) -> None:
    """Refuse a weight with NaN or an infinity in it (without a copy of the tensor's size)."""
    if tensor.is_floating_point() and tensor.numel():
        low, high = torch.aminmax(tensor.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise refusal(path, f"weight {short(name)} is not finite (NaN or infinity); the model is of no use")


def describe(path: str | os.PathLike[str]) -> str:
    """A model file for people, a line a fact. Raises InputError as `load_model` does."""
    with tensorfile.opened(path) as (_, header):
        card = _card(header, path)
    parameters = sum(math.prod(entry.shape) for entry in header.tensors.values())
    lines = [
        ("model", printable(str(path))),
        ("size", f"{header.size:,} bytes, {parameters:,} parameters"),
        ("sha256", files.sha256(path)),
        *facts(card),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


# The training state


def save_state(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the next state of a run into `folder` and remove the ones before it, once it is safe on the disk.

    Args:
        folder: made where absent.
        tensors: name -> tensor of any dtype, shape, layout and device.
        values: JSON with texts as keys; a float comes back as the same float (infinite and NaN too), a tuple
            would come back as a list and is refused.

    Returns:
        The file.

    Raises:
        AsrError: the file can't be written; the state before it is untouched.
        InputError: `values` hold what JSON does not give back.
    """
    older = _states(folder)
    number = _number_of(older[0]) + 1 if older else 1
    path = Path(folder) / f"state-{number:08d}.safetensors"
    check_json(values, path, finite=False)
    tensorfile.write(path, tensors, metadata("asr-state", "values", values))
    for old in older:
        old.unlink(missing_ok=True)
    return path


def load_state(
    folder: str | os.PathLike[str], warn: Callable[[str], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest readable state in `folder` as (tensors, values), or None where there is none at all.

    Removes the temporaries of killed processes. A state that can't be read is passed over for the one before
    it, and `warn` gets the line that says so.

    Raises:
        InputError: there are states, and none can be read (status 2).
    """
    if Path(folder).is_dir():
        files.sweep(folder)
    failure: InputError | None = None
    for path in _states(folder):
        try:
            state = _load_state(path)
        except InputError as error:
            failure = failure or error
            continue
        if failure and warn:
            warn(f"{failure}; going on from {path.name}")
        return state
    if failure:
        raise refusal(folder, f"no readable state ({failure}); remove the folder to start anew") from failure
    return None


def _load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with tensorfile.opened(path) as (file, header):
        values = read_object(header, "asr-state", "values", path)
        check_json(values, path, finite=False)
        return tensorfile.read(file, header, path), values


def _states(folder: str | os.PathLike[str]) -> list[Path]:
    """The states in `folder`, newest first."""
    found = [path for path in Path(folder).glob("state-*.safetensors") if _STATE.fullmatch(path.name)]
    return sorted(found, key=_number_of, reverse=True)


def _number_of(path: Path) -> int:
    return int(path.name.removeprefix("state-").removesuffix(".safetensors"))


# Metadata


def _as_read(card: dict[str, Any]) -> dict[str, Any]:
    """A card as its reader sees it: lists for tuples, null for an infinite loss among the facts."""
    training = json.loads(json.dumps(card.get("training", {})), parse_constant=lambda _: None)
    return cast(dict[str, Any], json.loads(json.dumps(card | {"training": training})))


def metadata(form: str, key: str, value: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file of the format `form`, with one JSON object under `key`."""
    return {"format": form, "format_version": str(VERSION), key: json.dumps(value, ensure_ascii=False)}


def _card(header: tensorfile.Header, path: str | os.PathLike[str]) -> dict[str, Any]:
    card = read_object(header, "asr", "card", path)
    check_card(card, path)
    return card


def read_object(header: tensorfile.Header, form: str, key: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of a file of the format `form`, of this version or an older one. Raises InputError (status 2)."""
    metadata = header.metadata
    found, version = metadata.get("format"), metadata.get("format_version", "")
    if found != form:
        kinds = {"asr": "a model", "asr-state": "a training state", "asr-lm": "an LSTM language model"}
        what = kinds.get(str(found), "a safetensors file of another program")
        raise refusal(path, f"{what}, not {kinds[form]} of asr")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise refusal(path, f"its format version is {short(version)}, no whole number; damaged")
    if int(version) > VERSION:
        raise refusal(path, f"format version {version}, this asr reads up to {VERSION}; install a newer asr")
    check_keys(metadata, ("format", "format_version", "sha256", key), "metadata", path)
    return tensorfile.parse(metadata[key], path)
