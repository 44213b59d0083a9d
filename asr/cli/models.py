"""The verbs of a trained model: `asr transcribe`, `evaluate`, `score`, `info`."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from asr.cli.decoding import add_decoding, build_decoder
from asr.errors import InputError

Failure = tuple[Any, InputError]


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs and their flags."""
    transcribe = verb("transcribe", _transcribe, "Transcribe recordings: files, folders, manifests, - for stdin.")
    transcribe.add_argument("inputs", nargs="+", metavar="INPUT", help="audio file, folder, manifest.jsonl, or -")
    add_model(transcribe)
    add_decoding(transcribe, nbest=True)
    transcribe.add_argument("-o", "--output-dir", type=Path, help="a file an input here, not standard output")
    transcribe.add_argument(
        "-f",
        "--output-format",
        action="append",
        metavar="FORMAT",
        help="txt json jsonl srt vtt tsv ctm, all; repeatable",
    )
    transcribe.add_argument("--skip-existing", action="store_true", help="leave inputs whose outputs exist")

    evaluate = verb("evaluate", _evaluate, "Word error rate of a model on a manifest, with an interval.")
    add_model(evaluate)
    add_decoding(evaluate)
    evaluate.add_argument("--manifest", type=Path, required=True, help="manifest with references")
    evaluate.add_argument("-o", "--output", type=Path, help="manifest of the hypotheses (pred_text) to write")
    evaluate.add_argument("--max-wer", type=float, help="exit status 1 above this rate (a share: 0.05 is 5 %%)")
    _add_scoring(evaluate)

    score = verb("score", _score, "Word and character error rate of hypotheses, without a model.")
    score.add_argument("reference", type=Path, help="manifest (text), .txt or .trn")
    score.add_argument("hypothesis", type=Path, nargs="?", help="manifest (pred_text or text), .txt or .trn")
    score.add_argument("--align", action="store_true", help="print the alignment of utterances with errors")
    _add_scoring(score)

    info = verb("info", _info, "What a model file says about itself.")
    info.add_argument("model", type=Path)
    info.add_argument("--json", action="store_true", help="the card as JSON")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags of all verbs that run a model."""
    parser.add_argument("-m", "--model", type=Path, required=True, help="model.safetensors of a run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="audio computed together, seconds (120)")
    parser.add_argument("--channel", type=int, help="channel to take, from 0 (the mean of all)")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--normalizer", help="none, lower, basic (of the model; none without one)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the interval (1000; 0: none)")
    parser.add_argument("--by", choices=["speaker"], help="draw the interval over speakers, not utterances")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def _transcribe(args: argparse.Namespace) -> int:
    from asr import bulk, recognizer
    from asr.console import Screen

    forms = bulk.choose_formats(args.output_format)
    if args.output_dir is None and (args.skip_existing or len(forms) > 1):
        what = "--skip-existing" if args.skip_existing else "several output formats"
        raise InputError(f"{what} needs --output-dir, a folder for the files", status=2)
    if args.nbest is not None and "json" not in forms:
        raise InputError("--nbest shows in the JSON only; add -f json", status=2)
    recordings = bulk.collect(args.inputs, sys.stdin.buffer.read)
    folder = bulk.OutputFolder(args.output_dir, recordings, forms) if args.output_dir else None
    todo = [one for one in recordings if not (args.skip_existing and folder and folder.has(one))]
    model = recognizer.load(args.model, args.device)
    screen = Screen(args.quiet)
    if len(todo) < len(recordings):
        screen.say(
            f"{len(recordings) - len(todo)} of {len(recordings)} inputs have their outputs already: left as they are"
        )
    failures: list[Failure] = []
    decoder = build_decoder(args, model, screen)
    results = bulk.transcribe(model, todo, decoder=decoder, channel=args.channel, batch_seconds=args.batch_seconds)
    with screen.counting("transcribing", len(todo)) as counter:
        for recording, result in done(results, counter.advance, screen, failures):
            if folder:
                folder.write(recording, functools.partial(bulk.rendered, recording, result))
            else:
                _print_transcript(bulk.rendered(recording, result, forms[0]), recording.name, forms[0], len(recordings))
    if folder:
        folder.write_failures(failures)
        screen.say(f"{len(todo) - len(failures)} transcripts in {args.output_dir}")
    return status(len(failures), len(todo))


def done(
    results: Iterable[tuple[Any, Any]], advance: Callable[[], None], screen: Any, failures: list[Failure]
) -> Iterator[tuple[Any, Any]]:
    """The recordings that came out, their notes said; the others are told on standard error and kept in `failures`."""
    for recording, result in results:
        advance()
        if isinstance(result, InputError):
            failures.append((recording, result))
            sys.stderr.write(f"asr: {named(recording.name, result)}\n")
            continue
        for note in result.notes:
            screen.say(f"{recording.name}: {note}")
        yield recording, result


def status(failed: int, count: int) -> int:
    """The exit status of a verb that goes on where an input fails; says how many did."""
    if failed:
        sys.stderr.write(f"asr: {failed} of {count} inputs failed\n")
    return 1 if failed else 0


def named(name: str, error: InputError) -> str:
    """An error that names the recording once."""
    return str(error) if name in str(error) else f"{name}: {error}"


def _print_transcript(content: str, name: str, form: str, count: int) -> None:
    """A transcript on standard output: the plain text of one of several recordings stands behind its name."""
    sys.stdout.write(f"{name}\t{content}" if form == "txt" and count > 1 else content)
    sys.stdout.flush()


def _evaluate(args: argparse.Namespace) -> int:
    from asr import manifest, recognizer
    from asr.console import Screen, clock
    from asr.evaluate import evaluate

    screen = Screen(args.quiet)
    model = recognizer.load(args.model, args.device)
    decoder = build_decoder(args, model, screen)
    with screen.counting("evaluating", len(manifest.read(args.manifest))) as counter:
        result = evaluate(
            model,
            args.manifest,
            decoder=decoder,
            normalizer=args.normalizer,
            bootstrap=args.bootstrap,
            by_speaker=args.by == "speaker",
            channel=args.channel,
            batch_seconds=args.batch_seconds,
            advance=counter.advance,
        )
    if args.output:
        manifest.write(args.output, result.hypotheses)
    for utterance, error in result.failures:
        sys.stderr.write(f"asr: {args.manifest}: line {utterance.line}: {error}\n")
    if args.json:
        described = {
            "manifest": str(args.manifest),
            "model": model.identity,
            "decoder": model.settings(decoder),
        }
        print(json.dumps(described | result.to_json(), ensure_ascii=False))
    else:
        print(f"{result.words}\n{result.characters}\n{result.confidence}")
        print(f"{clock(result.seconds)} of audio in {clock(result.elapsed)}, {args.manifest}, model {args.model}")
    too_high = args.max_wer is not None and not result.words.rate <= args.max_wer
    if too_high:
        sys.stderr.write(f"asr: WER {100 * result.words.rate:.2f} % is above --max-wer {100 * args.max_wer:g} %\n")
    return 1 if too_high or result.failures else 0


def _score(args: argparse.Namespace) -> int:
    from asr import score
    from asr.alignment import align, format_alignment
    from asr.pairs import read_pairs

    pairs = read_pairs(args.reference, args.hypothesis)
    if args.by and pairs.speakers is None:
        raise InputError(f"{args.reference}: not every utterance names its speaker; --by speaker needs it", status=2)
    normalizer = args.normalizer or "none"
    groups = pairs.speakers if args.by else None
    words, characters = (
        score.score(pairs.references, pairs.hypotheses, unit, normalizer, args.bootstrap, groups)
        for unit in ("word", "character")
    )
    if args.json:
        print(json.dumps({"wer": words.to_json(), "cer": characters.to_json()}, ensure_ascii=False))
    else:
        print(f"{words}\n{characters}")
    if args.align:
        for number, said, heard in zip(pairs.ids, pairs.references, pairs.hypotheses, strict=True):
            aligned = align(said, heard, normalizer=normalizer)
            if any(edit.op != "=" for edit in aligned):
                print(f"\n{number}\n{format_alignment(aligned)}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from asr import checkpoint

    if args.json:
        print(json.dumps(checkpoint.read_card(args.model), ensure_ascii=False, indent=2))
    else:
        print(checkpoint.describe(args.model))
    return 0
