"""A decoder as a user names it: flags, or a `decoder.json` beside the model, become a `BeamSearch`.

``decoder.json`` is what `asr tune` writes: the settings of `BeamSearch` by their names, and the files of the language
model and the lexicon, each with its SHA-256 and its path relative to the JSON::

    {"kind": "beam", "beam": 100, "lm": {"path": "words.arpa.gz", "sha256": "..."},
     "lm_weight": 0.8, "word_bonus": 1.2,
     "calibration": {"slope": 0.9, "offset": -0.8, "words": 655, "model": "..."}}

The calibration (`asr.calibration`) names by its SHA-256 the model for whose words it was fitted. With ``rescore``, the
file of an LSTM language model named like the others, ``rescore_weight`` and ``rescore_nbest`` it becomes a `Rescorer`
around that search.
"""

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asr import calibration, files
from asr.decode.beam import BeamSearch
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram
from asr.decode.rescore import NBEST, WEIGHT, Rescorer
from asr.errors import InputError
from asr.lstm_lm import model as lstm_lm

_FILES = ("lm", "lexicon", "rescore")
_CALIBRATION = "calibration"
_RESCORE = ("rescore", "rescore_weight", "rescore_nbest")
_KEYS = (*tuple(inspect.signature(BeamSearch).parameters)[1:], _CALIBRATION, *_RESCORE)


def build(tokens: Sequence[str], options: Mapping[str, Any]) -> BeamSearch | Rescorer:
    """The decoder for a model's tokens: `search`, and a `Rescorer` around it where `options` name a network.

    Raises:
        InputError: a file is missing or wrong, or a setting is refused or has no effect.
    """
    refuse_unused(options)
    first = search(tokens, options)
    if "rescore" not in options:
        return first
    network = lstm_lm.named(options["rescore"])
    return Rescorer(first, network, options.get("rescore_weight", WEIGHT), options.get("rescore_nbest", NBEST))


def refuse_unused(options: Mapping[str, Any]) -> None:
    """Refuse what is for a network where none is named. Raises InputError (status 2)."""
    if "rescore" not in options and (unused := [key for key in _RESCORE if key in options]):
        raise InputError(f"{unused[0]} has no effect without an LSTM language model; add --rescore", status=2)


def search(tokens: Sequence[str], options: Mapping[str, Any]) -> BeamSearch:
    """The search for a model's tokens; `options` as `BeamSearch` takes them, but `lm` and `lexicon` as paths.

    Those of rescoring are left aside. A ``calibration`` (`asr.calibration.among`) stands in the search's `settings`,
    where a recogniser finds it; the hypotheses of the search itself keep the probabilities as heard.

    Raises:
        InputError: a file is missing or wrong, or `BeamSearch` refuses the settings.
    """
    loaded = {key: value for key, value in options.items() if key not in _RESCORE}
    if "lm" in options and files.is_safetensors(options["lm"]):
        raise InputError(
            f"{options['lm']}: no ARPA file; an LSTM language model rescores what is found with one: --rescore",
            status=2,
        )
    if "lm" in options:
        loaded["lm"] = NGram.load(options["lm"])
    if "lexicon" in options:
        loaded["lexicon"] = Lexicon.load(options["lexicon"])
    curve = loaded.pop(_CALIBRATION, None)
    search = BeamSearch(tokens, **loaded)
    if curve is not None:
        search.settings[_CALIBRATION] = curve
    return search


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The options in a `decoder.json`, for `build`.

    Raises:
        InputError: it is no such file, a setting is unknown or of the wrong type, or a file that it names is missing or
            another than the one it was tuned with (status 2).
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; a decoder is greedy, beam or such a file", status=2
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error}); `asr tune` writes such a file", status=2) from error
    if not isinstance(content, dict) or content.pop("kind", None) != "beam":
        raise InputError(f"{path}: not the settings of a beam search (kind: beam)", status=2)
    for key, value in content.items():
        if key not in _KEYS:
            raise InputError(f"{path}: unknown setting {key!r}; known are {', '.join(_KEYS)}", status=2)
        if not _fits(key, value):
            raise InputError(f"{path}: {key} is {json.dumps(value)[:80]}, which is of the wrong kind", status=2)
    return {key: _checked(path, value) if key in _FILES else value for key, value in content.items()}


def write(path: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
    """Write options, as `build` takes them, to a `decoder.json`."""
    folder = Path(path).resolve().parent
    content: dict[str, Any] = {"kind": "beam"}
    for key, value in options.items():
        if key in _FILES:
            value = {"path": os.path.relpath(Path(value).resolve(), folder), "sha256": files.sha256(value)}
        content[key] = value
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _fits(key: str, value: Any) -> bool:
    """Whether a value of JSON is of the kind that a setting takes; its range is the search's to check."""
    match key:
        case "lm" | "lexicon" | "rescore":
            return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("path", "sha256"))
        case "hot_words":
            return isinstance(value, dict) and all(type(weight) in (int, float) for weight in value.values())
        case "calibration":
            own = dict(value) if isinstance(value, dict) else {}
            return isinstance(own.pop("model", None), str) and calibration.is_calibration(own)
        case "best_path":
            return isinstance(value, bool)
        case "beam" | "nbest" | "token_top" | "rescore_nbest":
            return type(value) is int
        case _:
            return type(value) in (int, float)


def _checked(path: str | os.PathLike[str], named: Mapping[str, str]) -> Path:
    """The file that a `decoder.json` names, if it still is that file."""
    wanted = Path(path).resolve().parent / named["path"]
    try:
        found = wanted.is_file()
    except (OSError, ValueError):  # no file could be called so
        found = False
    if not found:
        raise InputError(f"{path}: {wanted}: no such file; put it there or tune again", status=2)
    if files.sha256(wanted) != named["sha256"]:
        raise InputError(f"{path}: {wanted} is another file than the one it was tuned with; tune again", status=2)
    return wanted
