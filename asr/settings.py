"""Reads and checks settings: each by its type and range in `asr.schema`, then all of them together.

A value typed by hand is read by the type of its key: ``name=1e3`` is a text, ``seed=2.5`` an error.
"""

import dataclasses
import difflib
import re
import typing
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from asr.errors import InputError
from asr.schema import SECTIONS, SETTINGS, Config, Features, Like, Setting, Text

MISSING = "???"  # OmegaConf's sign for a value that a recipe has to give
_MAX_TEXT = 4096  # characters of a text setting: the longest path of common file systems
_MAX_NUMBER = 40  # characters of a number
_MAX_ITEMS = 16  # of a list
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse(key: str, text: str, where: str, quoted: bool = False) -> Any:
    """The value that `text` stands for as a value of `key`.

    Args:
        key: one of SETTINGS.
        text: as typed; null or ~ is None unless `quoted`; a list is ``[1,2]``.
        where: start of an error message, such as ``mine.yaml: line 3: ``.
        quoted: whether the text stood in quotation marks (in a file).

    Raises:
        InputError: it is no value of that setting; the message says what it takes, and what is near.
    """
    kind = SETTINGS[key].type
    value: Any = text
    if text in ("null", "~") and not quoted:
        value = None
    elif kind is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif kind is list and text.startswith("[") and text.endswith("]"):
        items = text[1:-1].split(",") if text[1:-1].strip() else []
        value = [_number(int, item.strip()) for item in items]
    else:
        value = _number(kind, text)
    return check(key, value, where)


def _number(kind: type, text: str) -> Any:
    """`text` as an int or a float; as it is where it's none, or where `kind` is neither."""
    pattern = {int: _INTEGER, float: _NUMBER}.get(kind)
    return kind(text) if pattern and len(text) <= _MAX_NUMBER and pattern.fullmatch(text) else text


def check(key: str, value: Any, where: str) -> Any:
    """`value` if `key` takes it (an int where a number is due becomes a float).

    Raises:
        InputError: it doesn't.
    """
    setting = SETTINGS[key]
    if value is None:
        return None if setting.nullable else _refuse(setting, value, where)
    if setting.type is float and type(value) is int:
        value = float(value)
    items = value if isinstance(value, list) else [value]
    kind = int if setting.type is list else setting.type
    if isinstance(value, str) and setting.type is str and (fault := _text_fault(value, setting.nullable)):
        raise InputError(f"{where}{key} {fault}", status=2)
    if type(value) is not setting.type or len(items) > _MAX_ITEMS:
        _refuse(setting, value, where)
    if any(type(item) is not kind or (setting.range and not setting.range.holds(item)) for item in items):
        _refuse(setting, value, where)
    return value


def _text_fault(value: str, nullable: bool) -> str:
    """What no text may be: empty, endless, unprintable, or something that OmegaConf would act upon."""
    if not value.strip():
        return "is empty; write null for none" if nullable else "is empty; give it a value"
    if len(value) > _MAX_TEXT:
        return f"is longer than {_MAX_TEXT} characters; shorten it"
    if "${" in value:
        return "holds '${': variables and interpolations aren't read; write the value itself"
    if value == MISSING:
        return f"is {MISSING}; give it a value"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        return "holds a control character, or bytes that are no UTF-8; remove them"
    return ""


def _refuse(setting: Setting, value: Any, where: str) -> NoReturn:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    near = setting.range.examples if isinstance(setting.range, Like) else ("true", "false") * (setting.type is bool)
    raise InputError(f"{where}{setting.key} is {shown!r}, not {setting.words()}{hint(shown, near)}", status=2)


def hint(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """``; did you mean X?`` where one of `names` is as near as `cutoff` (1: equal), else nothing."""
    near = difflib.get_close_matches(name[:100], list(names), 1, cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_key(key: str, where: str) -> InputError:
    """The error for a key that isn't in the tree, with the nearest by its last part or by the whole."""
    leaves: dict[str, list[str]] = {}
    for name in SETTINGS:
        leaves.setdefault(name.rpartition(".")[2], []).append(name)
    leaf = key.rpartition(".")[2]
    if leaf in leaves:
        found = f"; did you mean {' or '.join(leaves[leaf])}?"
    elif not (found := hint(key, (*SETTINGS, *SECTIONS), 0.6)):
        near = difflib.get_close_matches(leaf[:100], leaves, 1)
        found = f"; did you mean {' or '.join(leaves[near[0]])}?" if near else "; asr train --help lists all keys"
    return InputError(f"{where}no key {key[:60]!r}{found}", status=2)


def build(values: dict[str, Any], where: str) -> Config:
    """The tree from a value for each key of SETTINGS, checked one by one and together.

    Raises:
        InputError: a key is unknown or missing, a value is wrong, or two don't go together.
    """
    for key in values:
        if key not in SETTINGS:
            raise unknown_key(key, where)
    for key in SETTINGS:
        if values.get(key, MISSING) == MISSING:
            raise InputError(f"{where}no value for {key}; set it in the recipe or by {key}=VALUE", status=2)
    config: Config = _tree(Config, "", {key: check(key, values[key], where) for key in SETTINGS})
    if fault := next(_faults(config), None):
        raise InputError(where + fault, status=2)
    return config


def _tree(section: Any, prefix: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(section)
    fields = {
        name: _tree(hint, f"{name}.", values) if dataclasses.is_dataclass(hint) else values[prefix + name]
        for name, hint in hints.items()
    }
    return section(**fields)


def _faults(config: Config) -> Iterator[str]:
    """Settings that contradict one another, or of which one makes the other void."""
    yield from _feature_faults(config.features)
    yield from _text_faults(config.text)
    model, augment = config.model, config.augment
    if model.channels is not None and not model.convolutions:
        yield "model.channels has no effect without model.convolutions; set it to null"
    if model.channels is None and model.convolutions:
        yield "model.channels is null, but model.convolutions need it; set a number, such as 256"
    if augment.speed_min > augment.speed_max:
        speeds = f"augment.speed_min={augment.speed_min:g} is above augment.speed_max={augment.speed_max:g}"
        yield f"{speeds}; lower it"
    size = config.features.coefficients or config.features.mels
    if augment.frequency_width > size:
        yield f"augment.frequency_width={augment.frequency_width} is more than a frame has ({size}); lower it"
    for one, other in (("frequency_masks", "frequency_width"), ("time_masks", "time_share")):
        if bool(getattr(augment, one)) != bool(getattr(augment, other)):
            zero, void = (one, other) if not getattr(augment, one) else (other, one)
            yield f"augment.{void} has no effect while augment.{zero} is 0; set both or neither"
    if config.data.dir is not None and config.data.corpus is None:
        yield "data.dir has no effect without data.corpus; set it too, such as data.corpus=folder"
    if config.data.cache is not None and not config.data.cache_gigabytes:
        yield "data.cache has no effect while data.cache_gigabytes is 0; set a size, or data.cache=null"


def _text_faults(text: Text) -> Iterator[str]:
    if text.units == "bpe" and text.pieces is None:
        yield "text.pieces is null, but text.units=bpe needs it; set a number, such as 256"
    if text.units != "bpe" and text.pieces is not None:
        yield f"text.pieces has no effect with text.units={text.units}; set it to null"


def _feature_faults(features: Features) -> Iterator[str]:
    half = features.rate / 2
    if features.kind == "logmel" and features.coefficients is not None:
        yield "features.coefficients has no effect with features.kind=logmel; set it to null"
    if features.kind == "mfcc" and features.coefficients is None:
        yield "features.coefficients is null, but features.kind=mfcc needs it; set a number, such as 13"
    if (features.coefficients or 0) > features.mels:
        yield f"features.coefficients is above features.mels ({features.mels}); lower it"
    if (features.high or 0) > half:
        yield f"features.high={features.high:g} is above half the rate ({half:g} Hz); lower it or set null"
    if features.low >= (features.high or half):
        yield f"features.low={features.low:g} is not below the upper edge, {features.high or half:g} Hz"
    if features.top_db is not None and features.normalize == "running":
        yield "features.top_db has no meaning with features.normalize=running, which hears no further; set it to null"
    if features.hop > features.window:
        yield f"features.hop={features.hop:g} is above features.window={features.window:g}; lower it"
