"""The flags that choose a decoder, for the verbs that read emissions out."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from asr.errors import InputError

HOT_WEIGHT = 3.0  # nats a hot word adds where its list names no weight


def add_decoding(parser: argparse.ArgumentParser, nbest: bool = False) -> None:
    """The flags; `nbest` where a verb can show several hypotheses."""
    parser.add_argument("--decoder", default="greedy", help="greedy, beam, or decoder.json of `asr tune` (greedy)")
    add_vocabulary(parser)
    parser.add_argument("--beam", type=int, help="prefixes kept after every frame (100)")
    parser.add_argument("--lm-weight", type=float, help="factor on the language model's logarithms (0.5)")
    parser.add_argument("--word-bonus", type=float, help="nats a word (1.5 with a language model of words, else 0)")
    add_rescoring(parser)
    parser.add_argument("--rescore-weight", type=float, help="share of the LSTM's score, 0 to 1 (0.5)")
    if nbest:
        parser.add_argument("--nbest", type=int, help="hypotheses in the JSON, best first (1)")


def add_rescoring(parser: argparse.ArgumentParser) -> None:
    """The flags for a second look at what a search has found."""
    parser.add_argument("--rescore", type=Path, metavar="LSTM", help="LSTM language model that rescores hypotheses")
    parser.add_argument("--rescore-nbest", type=int, help="hypotheses that it rescores (50)")


def add_vocabulary(parser: argparse.ArgumentParser) -> None:
    """The flags for what may be heard."""
    parser.add_argument("--lm", type=Path, metavar="ARPA", help="language model of words or tokens, plain or .gz")
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="only these words: one a line, tokens behind it")
    parser.add_argument(
        "--hot-words", action="append", metavar="WORDS", help="a file of phrases, or one phrase; repeatable"
    )
    parser.add_argument("--hot-weight", type=float, help=f"nats that each of them adds ({HOT_WEIGHT:g})")


def build_decoder(args: argparse.Namespace, model: Any, screen: Any) -> Any:
    """The decoder that the flags name; None for greedy.

    Raises:
        InputError: a flag has no effect on that decoder, or its value or file is wrong (status 2).
    """
    given = vocabulary(args, model.card["normalizer"])
    for name in ("beam", "nbest", "lm_weight", "word_bonus", "rescore", "rescore_weight", "rescore_nbest"):
        if getattr(args, name, None) is not None:
            given[name] = getattr(args, name)
    if args.decoder == "greedy":
        if given:
            flag = "--" + next(iter(given)).replace("_", "-")
            raise InputError(f"{flag} has no effect on greedy decoding; add --decoder beam", status=2)
        return None
    from asr.decode import settings

    options = {} if args.decoder == "beam" else settings.read(args.decoder)
    curve = options.get("calibration")
    if curve and (why := _uncalibrated(curve, given, model)):
        screen.say(f"{args.decoder}: words keep the model's own probabilities: it was calibrated {why}")
        options = {key: value for key, value in options.items() if key != "calibration"}
    decoder = settings.build(model.tokens, options | given)
    prepare(decoder, screen)
    return decoder


def _uncalibrated(curve: dict[str, str], given: Collection[str], model: Any) -> str | None:
    """Why a tuned decoder's calibration does not hold here, if it does not; more hypotheses shown change none."""
    changed = [name for name in given if name != "nbest"]
    if changed:
        return f"without --{changed[0].replace('_', '-')}"
    return None if curve["model"] == model.identity["sha256"] else "for another model; tune again"


def vocabulary(args: argparse.Namespace, normalizer: str) -> dict[str, Any]:
    """What the flags of `add_vocabulary` name; hot words are normalised as the model's texts are.

    Raises:
        InputError: a flag has no effect, or a list of hot words is wrong (status 2).
    """
    given = {name: getattr(args, name) for name in ("lm", "lexicon") if getattr(args, name) is not None}
    if args.hot_words:
        from asr import text

        named = _phrases(args.hot_words, HOT_WEIGHT if args.hot_weight is None else args.hot_weight)
        clean = text.normalizer(normalizer)
        given["hot_words"] = {clean(phrase): weight for phrase, weight in named.items()}
    elif args.hot_weight is not None:
        raise InputError("--hot-weight has no effect without --hot-words", status=2)
    return given


def prepare(decoder: Any, screen: Any) -> None:
    """Say what may surprise, or take a while, before the first search."""
    from asr import compiled
    from asr.decode import search

    if not compiled.AVAILABLE:
        screen.say("numba is switched off (NUMBA_DISABLE_JIT): the search runs as plain Python, far slower")
    elif not compiled.is_ready(search.search):
        screen.say("compiling the beam search, once: some 15 seconds")
    if missing := decoder.vocabulary.left_out:
        shown = ", ".join(missing[:5])
        screen.say(f"{len(missing)} words of the language model can't be spelled in the model's tokens: {shown}")


def _phrases(named: Sequence[str], weight: float) -> dict[str, float]:
    """The phrases of files and of words on the command line."""
    from asr.decode.hotwords import HotWords

    phrases: dict[str, float] = {}
    for item in named:
        is_file = "/" in item or item.endswith(".txt") or _is_file(item)
        phrases |= HotWords.load(item, weight) if is_file else {item: weight}
    return phrases


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a phrase that no file could be called
        return False
