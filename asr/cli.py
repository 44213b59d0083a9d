"""The command line: `asr VERB`. Parses, calls, prints; nothing else of asr prints or exits.

Results go to standard output, progress and remarks to standard error. Exit status: 0 done; 1 an input or a run failed
(named); 2 an argument, override, recipe or model is wrong, before work starts; 130 and 143 on signals, state saved.
"""

import argparse
import difflib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import asr
from asr.errors import AsrError, InputError

# torch takes seconds to import: each verb imports what it needs, and `asr --help` nothing.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = _parser()
        args, unknown = parser.parse_known_args(arguments)
        rest = {"train": "overrides", "transcribe": "inputs"}.get(args.verb)
        if unknown and rest and not any(word.startswith("-") and word != "-" for word in unknown):
            setattr(args, rest, [*getattr(args, rest), *unknown])  # argparse ends a list at the first flag
        elif unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return args.run(args)
    except AsrError as error:
        sys.stderr.write(f"asr: {error}\n")
        return error.status
    except KeyboardInterrupt:
        sys.stderr.write("asr: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of standard output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line that name the nearest right word."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        known = list(self._option_string_actions)
        for action in self._actions:
            known += list(action.choices) if isinstance(action, argparse._SubParsersAction) else []
        wrong = [word.strip("',") for word in message.replace("invalid choice: ", "").split()]
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, 1, 0.6) if word != match]
        hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
        raise InputError(message.split(" (choose from")[0] + hint, status=2)


def _parser() -> _Parser:
    """All verbs and their flags."""
    parser = _Parser(prog="asr", description="Train, run and measure speech recognisers (bidirectional LSTM, CTC).")
    parser.add_argument("--version", action="version", version=f"asr {asr.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, summary: str, **settings: Any) -> _Parser:
        added: _Parser = verbs.add_parser(name, help=summary, description=summary, **settings)
        added.set_defaults(run=run, parser=added)
        added.add_argument("-q", "--quiet", action="store_true", help="no progress and no remarks")
        return added

    _add_training_verbs(verb)
    _add_model_verbs(verb)
    return parser


def _add_training_verbs(verb: Callable[..., _Parser]) -> None:
    prepare = verb("prepare", _prepare, "Make a corpus's manifests from a local copy or a download.")
    prepare.add_argument("corpus", help="fsdd, fsdd_strings, yesno, an4, synth_digits")
    prepare.add_argument("--source", type=Path, help="folder of a local copy (else ASR_DATA, else a download)")
    prepare.add_argument("--out", type=Path, default=Path("data"), help="folder of prepared corpora (data)")
    prepare.add_argument("--no-download", action="store_true", help="an error where no local copy is found")

    train = verb("train", _train, "Train a recogniser by a recipe.", add_help=False)
    train.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=NAME, then settings to change")
    train.add_argument("-h", "--help", action="store_true", help="this help, the recipes and all settings")
    train.add_argument("--multirun", action="store_true", help="comma lists become one run each, in turn")
    train.add_argument("--dry-run", action="store_true", help="print the settings (a recipe) and stop")
    train.add_argument("--overfit-one-batch", action="store_true", help="can the model learn one batch by heart?")


def _add_model_verbs(verb: Callable[..., _Parser]) -> None:
    transcribe = verb("transcribe", _transcribe, "Transcribe recordings: files, folders, manifests, - for stdin.")
    transcribe.add_argument("inputs", nargs="+", metavar="INPUT", help="audio file, folder, manifest.jsonl, or -")
    _add_model(transcribe)
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
    _add_model(evaluate)
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


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", type=Path, required=True, help="model.safetensors of a run")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (auto)")
    parser.add_argument("--batch-seconds", type=float, default=120.0, help="audio computed together, seconds (120)")
    parser.add_argument("--channel", type=int, help="channel to take, from 0 (the mean of all)")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--normalizer", help="none, lower, basic (of the model; none without one)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the interval (1000; 0: none)")
    parser.add_argument("--by", choices=["speaker"], help="draw the interval over speakers, not utterances")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def _prepare(args: argparse.Namespace) -> int:
    from asr import corpora
    from asr.console import Screen

    screen = Screen(args.quiet)
    manifests = corpora.prepare(args.corpus, args.out, args.source, download=not args.no_download, say=screen.say)
    for split, path in manifests.items():
        print(f"{split}\t{path}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from asr import config

    if args.help:
        print(f"{args.parser.format_help()}\n{config.help_text()}")
        return 0
    recipe = [item.removeprefix("recipe=") for item in args.overrides if item.startswith("recipe=")]
    overrides = [item for item in args.overrides if not item.startswith("recipe=")]
    if len(recipe) != 1:
        raise InputError(f"give one recipe=NAME; recipes are {', '.join(config.recipes())}", status=2)
    jobs = config.expand(overrides) if args.multirun else [overrides]
    configs = [config.load(recipe[0], job) for job in jobs]
    if args.dry_run:
        for settings in configs:
            print(config.to_yaml(settings), end="")
        return 0
    from asr.console import Screen
    from asr.run_folder import is_finished, run_path

    screen, stop = Screen(args.quiet), _Signals()
    name = config.name_of(recipe[0])
    for settings in configs:
        if args.multirun and is_finished(run_path(settings, name)):
            screen.say(f"{run_path(settings, name)}: finished already")
        elif status := _train_one(args, settings, name, screen, stop):
            return status
    return 0


def _train_one(args: argparse.Namespace, settings: Any, recipe: str, screen: Any, stop: "_Signals") -> int:
    """Prepare the corpus where its manifests are missing, then train one run."""
    from asr import corpora, train

    manifest = Path(settings.data.train)
    if settings.data.corpus and not manifest.exists():
        corpora.prepare(settings.data.corpus, manifest.parent.parent, say=screen.say)
    if args.overfit_one_batch:
        learnt = train.overfit_one_batch(settings, 500, screen.say)
        print("learnt by heart" if learnt else "not learnt: look at the data, or lower optim.lr")
        return 0 if learnt else 1
    with screen.training() as bar:
        result = train.train(settings, recipe, say=screen.say, show=bar.show, stop=stop.status)
    bounds = result.dev["interval"] or (float("nan"), float("nan"))
    low, high = (float("inf") if bound is None else 100 * bound for bound in bounds)
    print(f"dev WER {100 * result.dev['rate']:.2f} % [{low:.2f}, {high:.2f}] of {result.dev['count']} words")
    print(f"best model: {result.model} (epoch {result.best_epoch + 1} of {result.epochs})")
    print(f"curves: {result.folder / 'curves.png'}")
    return 0


class _Signals:
    """Notes the first SIGINT or SIGTERM, so that training can save and stop; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self._status: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._status = 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def status(self) -> int | None:
        """The exit status that a signal asks for, or None."""
        return self._status


def _transcribe(args: argparse.Namespace) -> int:
    from asr import bulk, recognizer
    from asr.console import Screen

    forms = bulk.choose_formats(args.output_format)
    if args.output_dir is None and (args.skip_existing or len(forms) > 1):
        what = "--skip-existing" if args.skip_existing else "several output formats"
        raise InputError(f"{what} needs --output-dir, a folder for the files", status=2)
    recordings = bulk.collect(args.inputs, sys.stdin.buffer.read)
    folder = bulk.OutputFolder(args.output_dir, recordings, forms) if args.output_dir else None
    todo = [one for one in recordings if not (args.skip_existing and folder and folder.has(one))]
    model = recognizer.load(args.model, args.device)
    screen = Screen(args.quiet)
    if len(todo) < len(recordings):
        screen.say(
            f"{len(recordings) - len(todo)} of {len(recordings)} inputs have their outputs already: left as they are"
        )
    failures = []
    results = bulk.transcribe(model, todo, channel=args.channel, batch_seconds=args.batch_seconds)
    with screen.counting("transcribing", len(todo)) as counter:
        for recording, result in results:
            counter.advance()
            if isinstance(result, InputError):
                failures.append((recording, result))
                sys.stderr.write(f"asr: {_named(recording.name, result)}\n")
                continue
            for note in result.notes:
                screen.say(f"{recording.name}: {note}")
            if folder:
                folder.write(recording, result)
            else:
                _print_transcript(bulk.rendered(recording, result, forms[0]), recording.name, forms[0], len(recordings))
    if folder:
        folder.write_failures(failures)
        screen.say(f"{len(todo) - len(failures)} transcripts in {args.output_dir}")
    if failures:
        sys.stderr.write(f"asr: {len(failures)} of {len(todo)} inputs failed\n")
    return 1 if failures else 0


def _named(name: str, error: InputError) -> str:
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
    with screen.counting("evaluating", len(manifest.read(args.manifest))) as counter:
        result = evaluate(
            model,
            args.manifest,
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
            "decoder": model.card["decoder"],
        }
        print(json.dumps(described | result.to_json(), ensure_ascii=False))
    else:
        print(f"{result.words}\n{result.characters}")
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


if __name__ == "__main__":
    sys.exit(main())
