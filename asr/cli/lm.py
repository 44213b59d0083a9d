"""The verbs of language models: `asr lm train` and `asr lm perplexity`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr.cli.training import Signals
from asr.errors import InputError

_LSTM = [
    ("hidden", int, "units of each layer (512)"),
    ("layers", int, "layers (1)"),
    ("dropout", float, "share of vectors and outputs left out in training (0.1)"),
    ("epochs", int, "times that the text is gone through (3)"),
    ("batch", int, "words learnt from at once, padding included (2048)"),
    ("lr", float, "highest learning rate (0.003)"),
    ("seed", int, "of first weights, order and dropout (1)"),
]


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs and their flags."""
    train = verb("train", _train, "Estimate an n-gram model on text (modified Kneser-Ney), or train an LSTM (--lstm).")
    _add_text(train)
    train.add_argument(
        "-o", "--output", type=Path, required=True, help="file to write: .arpa, .arpa.gz; with --lstm .safetensors"
    )
    train.add_argument("--order", type=int, help="words of the longest n-gram (3)")
    train.add_argument(
        "--prune",
        type=int,
        nargs="+",
        metavar="COUNT",
        help="leave out n-grams seen at most so often, by order: 0 0 1 (none)",
    )
    train.add_argument("--vocab", type=int, metavar="N", help="keep the N most frequent words (all)")
    train.add_argument("--min-count", type=int, metavar="N", help="keep words that occur N times or more (all)")
    train.add_argument("--discount-fallback", action="store_true", help="fixed discounts where the text is too small")

    train.add_argument("--lstm", action="store_true", help="train an LSTM, which rescores what a search has found")
    train.add_argument("--dev", nargs="+", default=[], metavar="TEXT", help="LSTM: text that says which state is kept")
    for name, kind, what in _LSTM:
        train.add_argument(f"--{name}", type=kind, metavar="N", help=f"LSTM: {what}")

    perplexity = verb("perplexity", _perplexity, "How well a language model foresees text.")
    perplexity.add_argument("lm", metavar="LM", help="ARPA file, plain or .gz, or an LSTM's .safetensors")
    _add_text(perplexity)
    perplexity.add_argument("--json", action="store_true", help="the result as JSON")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", nargs="+", metavar="TEXT", help="file, plain or .gz, a sentence a line; manifest.jsonl; - for stdin"
    )
    parser.add_argument("--unit", help="word or character (word)")
    parser.add_argument("--normalizer", help="none, lower, basic (none)")


def _train(args: argparse.Namespace) -> int:
    names = [name for name, *_ in _LSTM] + ["dev"] if not args.lstm else ["order", "prune", "discount_fallback"]
    for name in names:
        if getattr(args, name) not in (None, False, []):
            kind = "an LSTM" if args.lstm else "an n-gram model; add --lstm"
            raise InputError(f"--{name.replace('_', '-')} has no effect on {kind}", status=2)
    return _train_lstm(args) if args.lstm else _estimate(args)


def _train_lstm(args: argparse.Namespace) -> int:
    from asr import lstm_lm_training
    from asr.console import Screen

    given = {name: getattr(args, name) for name, *_ in _LSTM if getattr(args, name) is not None}
    screen, stop = Screen(args.quiet), Signals()
    made = lstm_lm_training.train(
        args.text,
        args.output,
        lstm_lm_training.Settings(**given),
        unit=args.unit or "word",
        normalizer=args.normalizer or "none",
        vocabulary=args.vocab,
        min_count=args.min_count,
        dev=args.dev,
        counting=screen.counting,
        say=screen.say,
        stop=stop.status,
    )
    print(f"{made.sentences} sentences, {made.tokens} {args.unit or 'word'}s, {made.words} different")
    on = "dev text" if args.dev else "end of the training"
    print(f"{made.parameters / 1e6:.2f} M parameters, perplexity {made.perplexity:.2f} on the {on}")
    print(args.output)
    return 0


def _estimate(args: argparse.Namespace) -> int:
    from asr import lm
    from asr.console import Screen

    made = lm.train(
        args.text,
        args.output,
        order=3 if args.order is None else args.order,
        unit=args.unit or "word",
        normalizer=args.normalizer or "none",
        prune=args.prune or [],
        vocabulary=args.vocab,
        min_count=args.min_count,
        fallback=args.discount_fallback,
        counting=Screen(args.quiet).counting,
    )
    print(f"{made.sentences} sentences, {made.tokens} {args.unit or 'word'}s")
    for number, (size, discounts) in enumerate(zip(made.ngrams, made.discounts, strict=True), 1):
        print(f"{number}-grams: {size}, discounts {' '.join(f'{one:.4f}' for one in discounts)}")
    print(args.output)
    return 0


def _perplexity(args: argparse.Namespace) -> int:
    from asr import files, lm
    from asr.console import Screen

    counting = Screen(args.quiet).counting
    if files.is_safetensors(args.lm):
        from asr.lstm_lm.model import LanguageModel

        if args.unit is not None or args.normalizer is not None:
            flag = "--unit" if args.unit is not None else "--normalizer"
            raise InputError(f"{flag} has no effect: {args.lm} says itself how its texts are read", status=2)
        network = LanguageModel.load(args.lm)
        unit = network.unit
        known: dict[str, Any] = {"sha256": network.sha256}
        found = network.perplexity(lm.sentences(args.text, unit, network.normalizer, counting))
    else:
        from asr.decode.ngram import NGram

        ngram = NGram.load(args.lm)
        unit, known = args.unit or "word", {"sha256": ngram.sha256} | {"order": ngram.order}
        found = ngram.perplexity(lm.sentences(args.text, unit, args.normalizer or "none", counting))
    if args.json:
        print(json.dumps({"lm": {"name": args.lm} | known} | found.to_json()))
        return 0
    share = 100 * found.unknown / found.words if found.words else 0.0
    print(f"perplexity {found.perplexity:.2f}, {found.known_perplexity:.2f} without unknown words")
    print(f"{found.sentences} sentences, {found.words} {unit}s, {found.unknown} unknown ({share:.2f} %)")
    return 0
