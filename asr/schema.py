"""The settings of a run: their names, types and ranges. Their values, with unit and effect, stand in conf/.

`Config` is a tree of frozen dataclasses and all that the rest of asr sees of a configuration. `parse` reads one
setting from text, by its type in the tree: ``name=1e3`` is a text, ``seed=2.5`` an error.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
import unicodedata
from collections.abc import Iterable
from typing import Any, NoReturn

from asr.errors import InputError
from asr.text import normalizers

_MAX_TEXT = 4096  # characters of a text setting: the longest path of common file systems
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_NULLS = ("null", "~")


def _between(low: float, high: float = math.inf, above: bool = False) -> Any:
    """A number from `low` to `high`; `above`: more than `low`."""
    return dataclasses.field(metadata={"low": low, "high": high, "above": above})


def _one_of(*choices: str) -> Any:
    return dataclasses.field(metadata={"choices": choices})


def _like(pattern: str, description: str) -> Any:
    """A text that matches `pattern` whole."""
    return dataclasses.field(metadata={"pattern": pattern, "description": description})


@dataclasses.dataclass(frozen=True)
class Data:
    """Manifests, and how utterances become batches."""

    corpus: str | None = _like(r"[a-z0-9_]+", "the name of a corpus (letters a to z, digits, _)")
    train: str
    dev: str
    test: str | None
    batch_seconds: float = _between(0, 100_000, above=True)
    max_seconds: float = _between(0, 3600, above=True)
    cache_gigabytes: float = _between(0, 100_000)
    cache: str | None


@dataclasses.dataclass(frozen=True)
class Text:
    """From the manifest's text to the labels."""

    normalizer: str = _one_of(*normalizers)


@dataclasses.dataclass(frozen=True)
class Features:
    """From waveform to frames (`asr.features`)."""

    kind: str = _one_of("logmel", "mfcc")
    rate: int = _between(4000, 192_000)
    mels: int = _between(1, 512)
    window: float = _between(0.001, 1)
    hop: float = _between(0.001, 1)
    low: float = _between(0, 96_000)
    high: float | None = _between(0, 96_000, above=True)
    convention: str = _one_of("slaney", "kaldi")
    normalize: str = _one_of("utterance", "running", "none")
    coefficients: int | None = _between(1, 512)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Changes to the training utterances (`asr.augment`)."""

    speed_min: float = _between(0.5, 2)
    speed_max: float = _between(0.5, 2)
    gain_db: float = _between(0, 60)
    frequency_masks: int = _between(0, 100)
    frequency_width: int = _between(0, 512)
    time_masks: int = _between(0, 100)
    time_share: float = _between(0, 1)


@dataclasses.dataclass(frozen=True)
class Model:
    """The acoustic model (`asr.model`)."""

    stack: int = _between(1, 16)
    convolutions: list[int] = _between(1, 8)
    channels: int | None = _between(1, 8192)
    hidden: int = _between(1, 8192)
    layers: int = _between(1, 32)
    dropout: float = _between(0, 0.95)
    layer_norm: bool


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule (`asr.optim`)."""

    lr: float = _between(0, 10, above=True)
    beta1: float = _between(0, 0.9999)
    beta2: float = _between(0, 0.999999)
    weight_decay: float = _between(0, 10)
    warmup: float = _between(0, 1)
    floor: float = _between(0, 1)
    clip: float = _between(0)


@dataclasses.dataclass(frozen=True)
class Training:
    """The loop (`asr.train`)."""

    epochs: int = _between(1, 100_000)
    patience: int = _between(0, 100_000)
    accumulate: int = _between(1, 10_000)
    autocast: str | None = _one_of("bfloat16", "float16")
    save_minutes: float = _between(0, 10_000)
    tensorboard: bool


@dataclasses.dataclass(frozen=True)
class Decoder:
    """From emissions to text."""

    kind: str = _one_of("greedy")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that says what a training run does."""

    seed: int = _between(0, 2**31 - 1)
    name: str | None = _like(r"[^./\\][^/\\]{0,199}", "a folder name without / that doesn't start with a dot")
    out: str
    device: str = _like(r"auto|cpu|cuda(:[0-9]{1,3})?", "auto, cpu, cuda or cuda:N")
    threads: int = _between(0, 1024)
    data: Data
    text: Text
    features: Features
    augment: Augment
    model: Model
    optim: Optim
    training: Training
    decoder: Decoder


@dataclasses.dataclass(frozen=True)
class Setting:
    """One leaf of the tree: its Python type (`int`, ... or `list`), whether null is allowed, and its range."""

    key: str
    type: type
    nullable: bool
    range: typing.Mapping[str, Any]

    @property
    def takes_commas(self) -> bool:
        """Whether a comma may be part of one value."""
        return self.type is list or (self.type is str and not self.range)


def _settings(section: type, prefix: str = "") -> Iterable[Setting]:
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings(typing.cast(type, hint), f"{field.name}.")
            continue
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = typing.get_origin(kinds[0]) or kinds[0]
        yield Setting(prefix + field.name, kind, type(None) in kinds, field.metadata)


SETTINGS = {setting.key: setting for setting in _settings(Config)}
SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in SETTINGS if "." in key))


def parse(setting: Setting, text: str, where: str, quoted: bool = False) -> Any:
    """The value that `text` stands for.

    Args:
        setting: which setting it is.
        text: as typed; null or ~ is None unless `quoted`; a list is ``[1,2]``.
        where: start of an error message, such as ``mine.yaml: line 3: ``.
        quoted: whether the text stood in quotation marks (in a file).

    Raises:
        InputError: it is no value of that setting; the message names what it takes, and the nearest right value.
    """
    if text in _NULLS and not quoted:
        return check(setting, None, where)
    if setting.type is list:
        inner = re.fullmatch(r"\[(.*)\]", text)
        items = [item.strip() for item in inner[1].split(",")] if inner and inner[1].strip() else []
        return check(setting, [_number(int, item) for item in items] if inner else text, where)
    if setting.type is bool:
        return check(setting, {"true": True, "false": False}.get(text.lower(), text), where)
    return check(setting, _number(setting.type, text), where)


def _number(kind: type, text: str) -> Any:
    """`text` as an int or a float; as it is where it's none, or where `kind` is neither."""
    pattern = {int: _INTEGER, float: _NUMBER}.get(kind)
    return kind(text) if pattern and pattern.fullmatch(text) else text


def check(setting: Setting, value: Any, where: str) -> Any:
    """`value` if it has the type and the range of the setting (an int where a float is due becomes one).

    Raises:
        InputError: it hasn't.
    """
    if value is None:
        return None if setting.nullable else _refuse(setting, value, where)
    if setting.type is float and type(value) is int:
        value = float(value)
    if type(value) is not setting.type:
        _refuse(setting, value, where)
    if isinstance(value, str):
        _check_text(setting, value, where)
    items = value if isinstance(value, list) else [value]
    kind = int if setting.type is list else setting.type
    if not all(type(item) is kind and _is_in_range(setting, item) for item in items) or len(items) > 16:
        _refuse(setting, value, where)
    return value


def _is_in_range(setting: Setting, value: Any) -> bool:
    limits = setting.range
    if "choices" in limits:
        return value in limits["choices"]
    if "pattern" in limits:
        return re.fullmatch(limits["pattern"], value) is not None
    if "low" in limits:
        low, high = limits["low"], limits["high"]
        return math.isfinite(value) and (low < value if limits["above"] else low <= value) and value <= high
    return True


def _check_text(setting: Setting, value: str, where: str) -> None:
    """What no text may hold: nothing, control characters, interpolations, OmegaConf's sign for a missing value."""
    if not value.strip():
        remedy = "; write null for none" if setting.nullable else ""
        raise InputError(f"{where}{setting.key} is empty{remedy}", status=2)
    if len(value) > _MAX_TEXT:
        raise InputError(f"{where}{setting.key} is longer than {_MAX_TEXT} characters; shorten it", status=2)
    if "${" in value:
        raise InputError(
            f"{where}{setting.key} holds '${{': interpolations aren't read; write the value", status=2
        )
    if value == "???":
        raise InputError(f"{where}{setting.key} is '???': write the value", status=2)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise InputError(
            f"{where}{setting.key} holds a control character or is no UTF-8; remove it", status=2
        )


def _refuse(setting: Setting, value: Any, where: str) -> NoReturn:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    names = setting.range.get("choices", ("true", "false") if setting.type is bool else ())
    raise InputError(
        f"{where}{setting.key} is {shown!a}, not {describe(setting)}{hint(shown, names)}", status=2
    )


def describe(setting: Setting) -> str:
    """What the setting takes, in words: ``a number from 0 to 1 or null``."""
    limits = setting.range
    if "choices" in limits:
        words = " or ".join((*limits["choices"], *(["null"] if setting.nullable else [])))
        return f"one of {words}" if " or " in words else words
    if setting.type is bool:
        return "true or false"
    if setting.type is str:
        words = limits.get("description", "a text")
    else:
        start = f"{'more than' if limits['above'] else 'from'} {limits['low']:,g}"
        span = start + (f" to {limits['high']:,g}" if math.isfinite(limits["high"]) else "")
        noun = {int: "a whole number", float: "a number", list: "a list such as [1,2] of whole numbers"}
        words = f"{noun[setting.type]} {span}"
    return words + (" or null" if setting.nullable else "")


def hint(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?`` where one of `names` is near `name`, else nothing."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_key(key: str, where: str) -> InputError:
    """The error for a key that isn't in the tree: the nearest one, by whole name or by its last part."""
    leaf = key.rsplit(".", 1)[-1]
    same = [name for name in SETTINGS if name.rsplit(".", 1)[-1] == leaf]
    found = f"; did you mean {' or '.join(same)}?" if same else hint(key, (*SETTINGS, *SECTIONS))
    if not found:
        leaves = {name.rsplit(".", 1)[-1]: name for name in SETTINGS}
        near = difflib.get_close_matches(leaf, leaves, 1)
        found = f"; did you mean {leaves[near[0]]}?" if near else "; asr train --help lists all keys"
    return InputError(f"{where}no key {key[:60]!r}{found}", status=2)


def build(values: dict[str, Any], where: str) -> Config:
    """The tree from a value for each key of SETTINGS, checked each by itself and together.

    Raises:
        InputError: a key is unknown or missing, a value is wrong, or two don't go together.
    """
    for key in values:
        if key not in SETTINGS:
            raise unknown_key(key, where)
    for key in SETTINGS:
        if values.get(key, "???") == "???":
            raise InputError(f"{where}no value for {key}; set it in the recipe or as {key}=...", status=2)
    checked = {key: check(setting, values[key], where) for key, setting in SETTINGS.items()}
    config = _tree(Config, "", checked)
    if fault := next(_faults(config), None):
        raise InputError(where + fault, status=2)
    return config


def _tree(section: type, prefix: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(section)
    return section(
        **{
            name: _tree(hint, f"{name}.", values) if dataclasses.is_dataclass(hint) else values[prefix + name]
            for name, hint in hints.items()
        }
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; an empty one keeps its key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `flatten`, for keys of one or two parts."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return tree


def _faults(config: Config) -> typing.Iterator[str]:
    """Pairs of settings that contradict one another, or of which one makes the other void."""
    features, model, augment = config.features, config.model, config.augment
    nyquist = features.rate / 2
    if features.kind == "logmel" and features.coefficients is not None:
        yield "features.coefficients has no effect with features.kind=logmel; set it to null"
    if features.kind == "mfcc" and features.coefficients is None:
        yield "features.coefficients is null, but features.kind=mfcc needs it; set a number, such as 13"
    if (features.coefficients or 0) > features.mels:
        yield f"features.coefficients={features.coefficients} is more than features.mels={features.mels}; lower it"
    if (features.high or 0) > nyquist:
        yield f"features.high={features.high:g} is above half of features.rate={features.rate}; lower it or set null"
    if features.low >= (features.high or nyquist):
        yield f"features.low={features.low:g} is not below the upper edge ({features.high or nyquist:g} Hz); lower it"
    if features.hop > features.window:
        yield f"features.hop={features.hop:g} is longer than features.window={features.window:g}; lower it"
    if model.channels is not None and not model.convolutions:
        yield "model.channels has no effect without model.convolutions; set it to null"
    if model.channels is None and model.convolutions:
        yield "model.channels is null, but model.convolutions need it; set a number, such as 256"
    if augment.speed_min > augment.speed_max:
        yield f"augment.speed_min={augment.speed_min:g} is more than augment.speed_max={augment.speed_max:g}"
    size = features.coefficients or features.mels
    if augment.frequency_width > size:
        yield f"augment.frequency_width={augment.frequency_width} is more than a frame has ({size}); lower it"
    if bool(augment.frequency_masks) != bool(augment.frequency_width):
        yield "augment.frequency_masks and augment.frequency_width: one is 0, so the other has no effect; set both or none"
    if bool(augment.time_masks) != bool(augment.time_share):
        yield "augment.time_masks and augment.time_share: one is 0, so the other has no effect; set both or none"
    if config.data.cache is not None and not config.data.cache_gigabytes:
        yield "data.cache has no effect with data.cache_gigabytes=0; set a size, or data.cache=null"
