"""The card in a model file: JSON that tells how its weights are used, and a closed list of what it may say.

A card comes from strangers. It is data: names are looked up in the lists here, numbers have ranges, and no
key names code. `asr.checkpoint` keeps it in the model file.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from asr.calibration import is_calibration
from asr.errors import InputError
from asr.tensorfile import refusal, short
from asr.text import BLANK, normalizers, tokenizer

MAX_TOKENS = 100_000
MAX_DEPTH = 16  # of the JSON


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def _or_null(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _strides(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(_whole(1, 8)(stride) for stride in value)


_PARTS: dict[str, type] = {
    "features": dict,
    "normalizer": str,
    "tokens": list,
    "model": dict,
    "decoder": dict,
    "training": dict,
}
_FEATURES: dict[str, Callable[[Any], bool]] = {
    "kind": _one_of("logmel", "mfcc"),
    "rate": _whole(1_000, 768_000),
    "mels": _whole(1, 256),
    "coefficients": _whole(1, 256),
    "window": _number(0.001, 1),
    "hop": _number(0.001, 1),
    "low": _number(0, 384_000),
    "high": _or_null(_number(0, 384_000)),
    "convention": _one_of("slaney", "kaldi"),
    "normalize": _one_of("utterance", "level", "running", "none"),
    "top_db": _or_null(_number(1, 200)),
}
_MODEL: dict[str, Callable[[Any], bool]] = {
    "features": _whole(1, 1_024),
    "tokens": _whole(2, MAX_TOKENS),
    "stack": _whole(1, 16),
    "convolutions": _strides,
    "channels": _or_null(_whole(1, 8_192)),
    "hidden": _whole(1, 8_192),
    "layers": _whole(1, 32),
    "dropout": _number(0, 0.99),
    "layer_norm": _one_of(False, True),
    "context": _whole(0, 100_000),
}
_DECODER: dict[str, Callable[[Any], bool]] = {"kind": _one_of("greedy"), "calibration": is_calibration}


def check_card(card: Any, path: str | os.PathLike[str]) -> None:
    """Compare a card with the closed list of keys, types and ranges; nothing is built before.

    ==============  ====================================================================================
    ``features``    `kind` and the settings of `asr.features.build`
    ``normalizer``  a name in `asr.text.normalizers`
    ``tokens``      list of texts, the blank first, each once
    ``model``       the arguments of `asr.model.AcousticModel`; `channels` and `context` may be absent
    ``decoder``     `kind`: greedy; `calibration` of its words (`asr.calibration`), absent where there is none
    ``training``    facts for people (recipe, overrides, commit, hashes, dev WER); any JSON, never acted upon
    ==============  ====================================================================================

    Raises:
        InputError: a key is missing or unknown, a value of the wrong type or out of range (status 2).
    """
    check_json(card, path)
    check_keys(card, _PARTS, "card", path)
    for key, kind in _PARTS.items():
        if not isinstance(card[key], kind):
            raise refusal(path, f"card: {key!r} is {short(card[key])}, not a {kind.__name__}")
    if card["normalizer"] not in normalizers:
        raise refusal(path, f"card: no normaliser {short(card['normalizer'])}; known are {', '.join(normalizers)}")
    _check_values(card["features"], _FEATURES, ("kind",), "card: features", path)
    _check_values(card["model"], _MODEL, _MODEL.keys() - {"channels", "context"}, "card: model", path)
    _check_values(card["decoder"], _DECODER, ("kind",), "card: decoder", path)
    _check_tokens(card["tokens"], card["model"]["tokens"], path)


def _check_values(
    values: dict[str, Any],
    checks: dict[str, Callable[[Any], bool]],
    required: Collection[str],
    where: str,
    path: str | os.PathLike[str],
) -> None:
    check_keys(values, [key for key in checks if key in values or key in required], where, path)
    for key, value in values.items():
        if not checks[key](value):
            raise refusal(path, f"{where}.{key} is {short(value)}, which no model of asr has")


def check_keys(found: Any, wanted: Iterable[str], where: str, path: str | os.PathLike[str]) -> None:
    """Refuse what is no JSON object with exactly the keys `wanted`. Raises InputError (status 2)."""
    wanted = list(wanted)
    if not isinstance(found, dict):
        raise refusal(path, f"{where} is {short(found)}, not a JSON object")
    for key in wanted:
        if key not in found:
            raise refusal(path, f"{where}: key {key!r} is missing; the file is no model of asr or was edited")
    for key in found:
        if key not in wanted:
            raise refusal(path, f"{where}: unknown key {short(key)}; the file is no model of asr or was edited")


def _check_tokens(tokens: list[Any], count: int, path: str | os.PathLike[str]) -> None:
    if len(tokens) != count:
        raise refusal(path, f"card: {len(tokens)} tokens, but model.tokens is {count}")
    for token in tokens:
        if not isinstance(token, str) or not token or len(token) > 100 or not token.isprintable():
            raise refusal(path, f"card: token {short(token)} is no text of 1 to 100 printable characters")
    if tokens[0] != BLANK:
        raise refusal(path, f"card: the first token is {short(tokens[0])}, not {BLANK!r}")
    if len(set(tokens)) != len(tokens):
        raise refusal(path, "card: a token stands twice")
    try:
        tokenizer(tokens)
    except InputError as error:
        raise refusal(path, f"card: {error}") from error


def check_json(value: Any, path: str | os.PathLike[str], finite: bool = True, depth: int = 0) -> None:
    """Refuse what JSON does not give back as it was, deep nesting, and (`finite`) NaN and infinity."""
    if depth > MAX_DEPTH:
        raise refusal(path, f"JSON nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise refusal(path, f"key {short(key)} is no text")
            check_json(item, path, finite, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_json(item, path, finite, depth + 1)
    elif isinstance(value, float) and finite and not math.isfinite(value):
        raise refusal(path, f"{value} in the card is no number of JSON")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise refusal(path, f"{short(value)} is no JSON value")


def facts(card: dict[str, Any]) -> list[tuple[str, str]]:
    """A checked card for people: (name, value) of each fact, without signs that could steer a terminal."""
    tokens = card["tokens"]
    shown = " ".join(tokens[:40]) + (" ..." if len(tokens) > 40 else "")
    lines = [
        ("features", _pairs(card["features"])),
        ("normaliser", card["normalizer"]),
        ("tokens", f"{len(tokens)}: {shown}"),
        ("network", _pairs(card["model"])),
        ("decoder", _pairs(card["decoder"])),
        *(line for key, value in card["training"].items() for line in _rows(key, value)),
    ]
    return [(printable(name), printable(value)) for name, value in lines]


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A fact of the training: a line for what is plain in an object, and one for each object in it."""
    match value:
        case {
            "unit": str(unit),
            "rate": int() | float() as rate,
            "interval": [int() | float() as low, int() | float() as high],
            "count": int(count),
        }:
            percent = f"{100 * rate:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
            yield f"{name} error rate", f"{percent} of {count} {unit}s"
        case dict():
            plain = {key: item for key, item in value.items() if not isinstance(item, dict)}
            if plain or not value:
                yield name, _pairs(plain)
            for key, item in value.items():
                if isinstance(item, dict):
                    yield from _rows(f"{name}.{key}", item)
        case _:
            yield name, _plain(value)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def printable(text: str) -> str:
    """A text from a file with `?` for each sign that can't be shown (a line break, an escape sequence)."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
