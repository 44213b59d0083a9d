"""The parser of all verbs, and its errors of one line."""

import argparse
import difflib
from collections.abc import Callable
from typing import Any, NoReturn

import asr
from asr.cli import align, lm, models, training, tune
from asr.errors import InputError


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line that name the nearest right word."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise the InputError (status 2) of a wrong flag, verb or value."""
        known = list(self._option_string_actions)
        for action in self._actions:
            known += list(action.choices) if isinstance(action, argparse._SubParsersAction) else []
        wrong = [word.strip("',") for word in message.replace("invalid choice: ", "").split()]
        near = [match for word in wrong for match in difflib.get_close_matches(word, known, 1, 0.6) if word != match]
        hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
        raise InputError(message.split(" (choose from")[0] + hint, status=2)


def build() -> Parser:
    """All verbs and their flags."""
    parser = Parser(prog="asr", description="Train, run and measure speech recognisers (bidirectional LSTM, CTC).")
    parser.add_argument("--version", action="version", version=f"asr {asr.__version__}")
    verb = _adder(parser, "verb")
    training.add(verb)
    models.add(verb)
    align.add(verb)
    tune.add(verb)
    language: Parser = verb("lm", None, "Train and measure n-gram language models.")
    lm.add(_adder(language, "lm_verb"))
    return parser


def _adder(parser: Parser, name: str) -> Callable[..., Any]:
    """A function that adds a verb below `parser`; the chosen one will stand under `name`."""
    verbs = parser.add_subparsers(dest=name, required=True, metavar="VERB")

    def verb(name: str, run: Any, summary: str, **settings: Any) -> Any:
        added: Parser = verbs.add_parser(name, help=summary, description=summary, **settings)
        added.set_defaults(run=run, parser=added)
        added.add_argument("-q", "--quiet", action="store_true", help="no progress and no remarks")
        return added

    return verb
