"""The verb `asr align`: when each word of a known text was said."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from asr.cli.models import Failure, add_model, done, status
from asr.errors import InputError


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    align = verb("align", _align, "When each word of a known text was said: files, folders, manifests, - for stdin.")
    align.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="manifest.jsonl with texts; or audio file, or folder of them, with what was said in a .txt file beside "
        "each (talk.wav, talk.txt), or in --text",
    )
    add_model(align)
    align.add_argument("--text", help="what was said, for one audio file or - (the words themselves, no file)")
    align.add_argument("-o", "--output-dir", type=Path, required=True, help="folder for the files, one an input")
    align.add_argument(
        "-f", "--output-format", action="append", metavar="FORMAT", help="textgrid ctm json, all; repeatable (textgrid)"
    )


def _align(args: argparse.Namespace) -> int:
    from asr import aligner, bulk, recognizer
    from asr.console import Screen
    from asr.transcript import render

    forms = bulk.choose_formats(args.output_format, aligner.formats)
    recordings = bulk.collect(args.inputs, sys.stdin.buffer.read)
    if args.text is not None and (len(recordings) != 1 or recordings[0].utterance):
        raise InputError("--text is what was said in one audio file; a manifest carries its texts itself", status=2)
    folder = bulk.OutputFolder(args.output_dir, recordings, forms)
    model = recognizer.load(args.model, args.device)
    screen = Screen(args.quiet)
    failures: list[Failure] = []
    results = bulk.align(model, recordings, args.text, channel=args.channel, batch_seconds=args.batch_seconds)
    with screen.counting("aligning", len(recordings)) as counter:
        for recording, result in done(results, counter.advance, screen, failures):
            folder.write(recording, functools.partial(render, result, forms=aligner.formats))
    folder.write_failures(failures)
    screen.say(f"{len(recordings) - len(failures)} alignments in {args.output_dir}")
    return status(len(failures), len(recordings))
