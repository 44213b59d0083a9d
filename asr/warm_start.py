"""Training that begins with the weights of a trained model: for a new voice, a new microphone, more characters.

Everything but the head is taken as it is. A token that both models have keeps its row of the head; a new one begins
with the mean of the kept rows, the blank's left out, and a little of its own random row; rows of other tokens go.
"""

import inspect
import json
import os
from typing import Any

import torch

from asr import checkpoint, files
from asr.errors import InputError
from asr.features import LogMel
from asr.model import AcousticModel

_FREE = ("features", "tokens", "dropout", "context")  # of the model's numbers; they shape no weight that is taken
_OWN = 0.1  # share of its random row that a new token begins with
_SHOWN = 10  # new tokens named


def begin(path: str | os.PathLike[str], model: AcousticModel, card: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Give `model` the weights of a trained one.

    Args:
        path: the trained model's file.
        model: with random weights.
        card: of `model`: `features`, `model` and `tokens`.

    Returns:
        What the facts of the training tell (the file's name and SHA-256, tokens kept, new and dropped), and a line.

    Raises:
        InputError: it is no model file, or has other features or another shape than the settings say; the message tells
            how to set them (status 2).
    """
    theirs = checkpoint.read_card(path)
    _check(path, theirs, card)
    old, new = theirs["tokens"], card["tokens"]
    expected = {name: (tuple(weight.shape), weight.dtype) for name, weight in model.state_dict().items()}
    heads = {name: ((len(old), *expected[name][0][1:]), expected[name][1]) for name in ("head.weight", "head.bias")}
    _, weights = checkpoint.load_model(path, lambda _: expected | heads)
    places = {token: number for number, token in enumerate(old)}
    kept = [token for token in new if token in places]
    for name in heads:
        fresh = model.state_dict()[name].cpu()
        rows = weights[name][[places[token] for token in kept]]
        middle = rows[1:].mean(0) if len(kept) > 1 else torch.zeros_like(fresh[0])
        weights[name] = middle + _OWN * fresh
        weights[name][[number for number, token in enumerate(new) if token in places]] = rows
    model.load_state_dict(weights)
    added = [token for token in new if token not in places]
    more = f": {' '.join(added[:_SHOWN])}{' ...' if len(added) > _SHOWN else ''}" if added else ""
    facts = {
        "name": os.path.basename(path),  # noqa: PTH119 (a name of either system's)
        "sha256": files.sha256(path),
        "tokens": {"kept": len(kept), "new": len(added), "dropped": len(old) - len(kept)},
    }
    line = f"begins with {path}: {len(kept)} of its {len(old)} tokens kept, {len(added)} new{more}"
    return facts, line


def _check(path: str | os.PathLike[str], theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse features or a shape that differ, with what to write."""
    known = inspect.signature(LogMel).parameters
    defaults = {name: parameter.default for name, parameter in known.items()}  # a card may leave them out
    wanted = {
        **{f"features.{key}": value for key, value in (defaults | theirs["features"]).items()},
        **{f"model.{key}": value for key, value in theirs["model"].items() if key not in _FREE},
    }
    found = {
        **{f"features.{key}": value for key, value in (defaults | ours["features"]).items()},
        **{f"model.{key}": value for key, value in ours["model"].items() if key not in _FREE},
    }
    keys = [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]
    if keys:
        key = keys[0]
        changes = " ".join(f"{each}={_written(wanted.get(each))}" for each in keys)
        raise InputError(
            f"init_from={path}: {key} is {_written(wanted.get(key))} in that model, here {_written(found.get(key))}; "
            f"write {changes}",
            status=2,
        )


def _written(value: Any) -> str:
    """A value as it is written behind a key on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
