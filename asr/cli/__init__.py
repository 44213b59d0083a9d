"""The command line: `asr VERB`. Parses, calls, prints; nothing else of asr prints or exits.

Results go to standard output, progress and remarks to standard error. Exit status: 0 done; 1 an input or a run failed
(named); 2 an argument, override, recipe or model is wrong, before work starts; 130 and 143 on signals, state saved.
"""

import os
import sys
from collections.abc import Sequence

from asr.cli.parser import build
from asr.errors import AsrError

# torch takes seconds to import: each verb imports what it needs, and `asr --help` nothing.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        parser = build()
        args, unknown = parser.parse_known_args(arguments)
        rest = {"train": "overrides", "transcribe": "inputs", "align": "inputs"}.get(args.verb)
        if unknown and rest and not any(word.startswith("-") and word != "-" for word in unknown):
            setattr(args, rest, [*getattr(args, rest), *unknown])  # argparse ends a list at the first flag
        elif unknown:
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return args.run(args)
    except AsrError as error:
        sys.stderr.write(f"asr: {error}\n")
        return error.status
    except MemoryError:
        sys.stderr.write("asr: not enough memory; take a smaller model, batch or beam\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("asr: interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of standard output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
