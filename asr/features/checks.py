"""Checks of single settings, which name what is wrong and what would be right."""

import difflib
from collections.abc import Sequence
from typing import Any

from asr.errors import InputError


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse, with an InputError of status 2, a setting that is none of `choices`."""
    if value not in choices:
        raise InputError(f"features.{name}={value}: {nearest(str(value), choices)}", status=2)


def nearest(value: str, choices: Sequence[str]) -> str:
    """A hint: the one of `choices` that `value` is like, else all of them."""
    near = difflib.get_close_matches(value, choices, 1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"


def whole_number(name: str, value: Any, least: int, most: int) -> None:
    """Refuse, with an InputError of status 2, what is no whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"features.{name}={value}: choose a whole number from {least} to {most}", status=2)


def number(name: str, value: Any, least: float, most: float) -> None:
    """Refuse, with an InputError of status 2, what is no number from `least` to `most`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"features.{name}={value}: choose a number from {least:g} to {most:g}", status=2)
