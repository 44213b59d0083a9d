"""The settings of a run: names, types and ranges. Their values, with unit and effect, stand in conf/.

`Config` is a tree of frozen dataclasses, and all that the rest of asr sees of a configuration. `SETTINGS` is
the same as a list of leaves with dotted keys, for the code that reads and checks them (`asr.settings`).
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from asr import units
from asr.text import normalizers


@dataclasses.dataclass(frozen=True)
class Between:
    """Numbers from `low` to `high`; with `above` more than `low`."""

    low: float
    high: float = math.inf
    above: bool = False

    def holds(self, value: Any) -> bool:
        """Whether the number is one of these (no infinity is)."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def words(self) -> str:
        """The range in words: ``from 0 to 1``."""
        upper = f" to {self.high:.10g}" if math.isfinite(self.high) else ""
        return f"{'above' if self.above else 'from'} {self.low:.10g}{upper}"


@dataclasses.dataclass(frozen=True)
class Like:
    """Texts that match `pattern` whole; `description` is that in words, `examples` what one may misspell."""

    pattern: str
    description: str
    examples: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the text is one of these."""
        return re.fullmatch(self.pattern, value) is not None

    def words(self) -> str:
        """The description."""
        return self.description


def one_of(*names: str) -> Like:
    """These texts and no others."""
    return Like("|".join(map(re.escape, names)), " or ".join(names), names)


CorpusName = Like(r"[a-z0-9_]{1,100}", "the name of a corpus")
FolderName = Like(r"[^./\\][^/\\]{0,199}", "a folder name without a slash or a dot in front")
Device = Like(r"auto|cpu|cuda(:[0-9]{1,3})?", "auto or cpu or cuda or cuda:N", ("auto", "cpu", "cuda"))
Share = Between(0, 1)
Count = Between(0, 100_000)


@dataclasses.dataclass(frozen=True)
class Data:
    """Manifests, and how utterances become batches."""

    corpus: Annotated[str | None, CorpusName]
    dir: str | None
    sizes: Annotated[str, one_of("given", "auto")]
    train: str
    dev: str
    test: str | None
    batch_seconds: Annotated[float, Between(0, 100_000, above=True)]
    max_seconds: Annotated[float, Between(0, 3600, above=True)]
    cache_gigabytes: Annotated[float, Between(0, 100_000)]
    cache: str | None


@dataclasses.dataclass(frozen=True)
class Text:
    """From the manifest's text to the labels (`asr.text`)."""

    normalizer: Annotated[str, one_of(*normalizers)]
    units: Annotated[str, one_of(*units.NAMES)]
    pieces: Annotated[int | None, Between(2, 50_000)]


@dataclasses.dataclass(frozen=True)
class Features:
    """From waveform to frames (`asr.features`)."""

    kind: Annotated[str, one_of("logmel", "mfcc")]
    rate: Annotated[int, Between(1000, 768_000)]
    mels: Annotated[int, Between(1, 256)]
    window: Annotated[float, Between(0, 1, above=True)]
    hop: Annotated[float, Between(0, 1, above=True)]
    low: Annotated[float, Between(0, 384_000)]
    high: Annotated[float | None, Between(0, 384_000, above=True)]
    convention: Annotated[str, one_of("slaney", "kaldi")]
    normalize: Annotated[str, one_of("utterance", "level", "running", "none")]
    top_db: Annotated[float | None, Between(1, 200)]
    coefficients: Annotated[int | None, Between(1, 256)]


@dataclasses.dataclass(frozen=True)
class Augment:
    """Changes to the training utterances (`asr.augment`)."""

    speed_min: Annotated[float, Between(0.5, 2)]
    speed_max: Annotated[float, Between(0.5, 2)]
    gain_db: Annotated[float, Between(0, 60)]
    frequency_masks: Annotated[int, Between(0, 20)]
    frequency_width: Annotated[int, Between(0, 256)]
    time_masks: Annotated[int, Between(0, 100)]
    time_share: Annotated[float, Share]
    join: Annotated[int, Between(1, 100)]


@dataclasses.dataclass(frozen=True)
class Model:
    """The acoustic model (`asr.model`)."""

    stack: Annotated[int, Between(1, 16)]
    convolutions: Annotated[list[int], Between(1, 8)]
    channels: Annotated[int | None, Between(1, 8192)]
    hidden: Annotated[int, Between(1, 8192)]
    layers: Annotated[int, Between(1, 32)]
    dropout: Annotated[float, Between(0, 0.95)]
    layer_norm: bool
    context: Annotated[int, Count]


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule (`asr.optim`)."""

    lr: Annotated[float, Between(0, 10, above=True)]
    beta1: Annotated[float, Between(0, 0.9999)]
    beta2: Annotated[float, Between(0, 0.999999)]
    weight_decay: Annotated[float, Between(0, 10)]
    warmup: Annotated[float, Share]
    floor: Annotated[float, Share]
    clip: Annotated[float, Between(0)]
    average: Annotated[float, Between(0, 0.99999)]


@dataclasses.dataclass(frozen=True)
class Training:
    """The loop (`asr.train`)."""

    epochs: Annotated[int, Between(1, 100_000)]
    patience: Annotated[int, Count]
    accumulate: Annotated[int, Between(1, 10_000)]
    autocast: Annotated[str | None, one_of("bfloat16")]
    save_minutes: Annotated[float, Between(0, 10_000)]
    tensorboard: bool


@dataclasses.dataclass(frozen=True)
class Decoder:
    """From emissions to text (`asr.decode`)."""

    kind: Annotated[str, one_of("greedy")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that says what a training run does."""

    seed: Annotated[int, Between(0, 2**31 - 1)]
    init_from: str | None
    name: Annotated[str | None, FolderName]
    out: str
    device: Annotated[str, Device]
    threads: Annotated[int, Between(0, 1024)]
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
    """One leaf of the tree: its type (`list`: of whole numbers), whether null is allowed, its range."""

    key: str
    type: type
    nullable: bool
    range: Between | Like | None

    @property
    def is_free_text(self) -> bool:
        """Whether any text will do, such as a path."""
        return self.type is str and self.range is None

    def words(self) -> str:
        """What the setting takes: ``a number from 0 to 1 or null``."""
        nouns = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            list: "a list such as [1,2] of numbers",
        }
        if self.type is str:
            words = self.range.words() if self.range else "a text"
        else:
            words = nouns[self.type] + (f" {self.range.words()}" if self.range else "")
        return words + (" or null" if self.nullable else "")


def _walk(section: type, prefix: str = "") -> Iterator[Setting]:
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from _walk(typing.cast(type, hint), f"{name}.")
            continue
        bare, limits = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)
        kinds = typing.get_args(bare) if isinstance(bare, types.UnionType) else (bare,)
        yield Setting(prefix + name, typing.get_origin(kinds[0]) or kinds[0], type(None) in kinds, limits)


SETTINGS = {setting.key: setting for setting in _walk(Config)}
SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in SETTINGS if "." in key))
