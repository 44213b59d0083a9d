"""The verbs of language models: `asr lm train` and `asr lm perplexity`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs and their flags."""
    train = verb("train", _train, "Estimate an n-gram model on text (modified Kneser-Ney) and write it as ARPA.")
    _add_text(train, "+")
    train.add_argument("-o", "--output", type=Path, required=True, help="ARPA file to write, .arpa or .arpa.gz")
    train.add_argument("--order", type=int, default=3, help="words of the longest n-gram (3)")
    train.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[],
        metavar="COUNT",
        help="leave out n-grams seen at most so often, by order: 0 0 1 (none)",
    )
    train.add_argument("--vocab", type=int, metavar="N", help="keep the N most frequent words (all)")
    train.add_argument("--min-count", type=int, metavar="N", help="keep words that occur N times or more (all)")
    train.add_argument("--discount-fallback", action="store_true", help="fixed discounts where the text is too small")

    perplexity = verb("perplexity", _perplexity, "How well an n-gram model foresees text.")
    perplexity.add_argument("lm", metavar="LM", help="ARPA file, plain or .gz")
    _add_text(perplexity, "+")
    perplexity.add_argument("--json", action="store_true", help="the result as JSON")


def _add_text(parser: argparse.ArgumentParser, count: str) -> None:
    parser.add_argument(
        "text", nargs=count, metavar="TEXT", help="file, plain or .gz, a sentence a line; manifest.jsonl; - for stdin"
    )
    parser.add_argument("--unit", default="word", help="word or character (word)")
    parser.add_argument("--normalizer", default="none", help="none, lower, basic (none)")


def _train(args: argparse.Namespace) -> int:
    from asr import lm
    from asr.console import Screen

    made = lm.train(
        args.text,
        args.output,
        order=args.order,
        unit=args.unit,
        normalizer=args.normalizer,
        prune=args.prune,
        vocabulary=args.vocab,
        min_count=args.min_count,
        fallback=args.discount_fallback,
        counting=Screen(args.quiet).counting,
    )
    print(f"{made.sentences} sentences, {made.tokens} {args.unit}s")
    for number, (size, discounts) in enumerate(zip(made.ngrams, made.discounts, strict=True), 1):
        print(f"{number}-grams: {size}, discounts {' '.join(f'{one:.4f}' for one in discounts)}")
    print(args.output)
    return 0


def _perplexity(args: argparse.Namespace) -> int:
    from asr import lm
    from asr.console import Screen
    from asr.decode.ngram import NGram

    model = NGram.load(args.lm)
    found = model.perplexity(lm.sentences(args.text, args.unit, args.normalizer, Screen(args.quiet).counting))
    if args.json:
        print(json.dumps({"lm": {"name": args.lm, "sha256": model.sha256, "order": model.order}} | found.to_json()))
        return 0
    share = 100 * found.unknown / found.words if found.words else 0.0
    print(f"perplexity {found.perplexity:.2f}, {found.known_perplexity:.2f} without unknown words")
    print(f"{found.sentences} sentences, {found.words} {args.unit}s, {found.unknown} unknown ({share:.2f} %)")
    return 0
