"""Reads a recipe file, which may come from anyone, as plain keys, choices and values.

A recipe is YAML as Hydra reads a primary config: a defaults list (``base``, ``override GROUP: CHOICE``,
``_self_``) and below it the values that differ; or every value and no defaults list, as in a run's own
config.yaml. Of YAML no more is read than that needs: no anchors and aliases (166 bytes can stand for
millions of values), no tags (they can name code), no interpolations, and within limits of size and depth. Of
Hydra's defaults list likewise: no other files, packages or optional entries.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from asr import settings
from asr.errors import InputError
from asr.schema import SECTIONS, SETTINGS

_MAX_BYTES = 100_000
_MAX_PARTS = 2_000  # keys, values and brackets
_MAX_DEPTH = 4  # settings, section, list, and one for a mistake that deserves a better message
_DEFAULTS = "defaults are '- base', any '- override GROUP: CHOICE', '- _self_', in this order"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Whether it starts from conf/base.yaml, its choices by group, its values (checked) by dotted key."""

    from_base: bool
    choices: dict[str, str]
    values: dict[str, Any]


def read(path: Path, variants: Mapping[str, Collection[str]]) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the file.
        variants: the choices of each group.

    Raises:
        InputError: the file can't be read or holds anything but a recipe; the message names file and line.
    """
    text = _text(path)
    try:
        _check_events(path, text)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}no valid YAML ({error.problem})", status=2) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: no valid YAML ({str(error).splitlines()[0]})", status=2) from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: no settings in it; a recipe holds 'key: value' lines", status=2)
    from_base, choices, values = False, dict[str, str](), dict[str, Any]()
    for key, value, where in _pairs(path, node):
        if key == "defaults":
            from_base, choices = True, _choices(value, variants, where)
        elif key in SECTIONS:
            values |= _section(path, key, value, where)
        else:
            values[key] = _value(key, value, where)
    return Recipe(from_base, choices, values)


def check_choice(group: str, choice: str, variants: Mapping[str, Collection[str]], where: str) -> str:
    """`choice` if it is one of the group's variants. Raises InputError naming those there are."""
    if group not in variants:
        keys = ", ".join(key for key in SETTINGS if key.startswith(f"{group}."))
        raise InputError(f"{where}{group} has no variants; set its keys one by one: {keys}", status=2)
    if choice not in variants[group]:
        near = settings.hint(choice, variants[group]) or f"; there are {', '.join(variants[group])}"
        raise InputError(f"{where}no {group} {choice[:60]!r}{near}", status=2)
    return choice


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; a recipe is a YAML file", status=2)
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES} bytes; a recipe has some 30 lines", status=2)
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; a recipe is a YAML file", status=2) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}; check the path of the recipe", status=2) from error


def _check_events(path: Path, text: str) -> None:
    """Refuse what makes YAML more than keys and values, before anything is built from it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        where = f"{path}: line {event.start_mark.line + 1}: "
        if getattr(event, "anchor", None):  # an alias has the name of its anchor here
            raise InputError(f"{where}anchors and aliases (& and *) aren't read; write the value out", status=2)
        if getattr(event, "tag", None):
            raise InputError(f"{where}tags (!) aren't read; write a plain value", status=2)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InputError(f"{where}nested deeper than a recipe is ({_MAX_DEPTH} levels)", status=2)
        if count > _MAX_PARTS:
            raise InputError(f"{where}more than {_MAX_PARTS} keys and values; a recipe has some 30 lines", status=2)


def _pairs(path: Path, node: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value node, place in the file) of a mapping; a key stands once."""
    seen = set()
    for key_node, value in node.value:
        where = f"{path}: line {key_node.start_mark.line + 1}: "
        key = key_node.value
        if not isinstance(key, str) or "." in key:
            raise InputError(f"{where}a key is one word, those of a section stand indented below it", status=2)
        if key in seen:
            raise InputError(f"{where}{prefix + key[:60]!r} stands twice; leave one out", status=2)
        seen.add(key)
        yield prefix + key, value, where


def _section(path: Path, section: str, node: Any, where: str) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        keys = ", ".join(key.partition(".")[2] for key in SETTINGS if key.startswith(f"{section}."))
        raise InputError(
            f"{where}{section} holds keys ({keys}); defaults choose variants: '- override {section}: CHOICE'",
            status=2,
        )
    return {key: _value(key, value, place) for key, value, place in _pairs(path, node, f"{section}.")}


def _choices(node: Any, variants: Mapping[str, Collection[str]], where: str) -> dict[str, str]:
    """The choices in a defaults list."""
    entries = node.value if isinstance(node, yaml.SequenceNode) else []
    ends = [entry.value for entry in entries[:1] + entries[1:][-1:]]
    if ends != ["base", "_self_"] or not all(isinstance(entry, yaml.MappingNode) for entry in entries[1:-1]):
        raise InputError(f"{where}{_DEFAULTS}", status=2)
    choices: dict[str, str] = {}
    for key_node, value_node in (pair for entry in entries[1:-1] for pair in entry.value):
        line = f"{where.rpartition('line')[0]}line {key_node.start_mark.line + 1}: "
        form = re.fullmatch(r"override (\w+)", key_node.value) if isinstance(key_node.value, str) else None
        if not form or not isinstance(value_node.value, str):
            raise InputError(f"{line}{_DEFAULTS}", status=2)
        group = form[1]
        if group not in SECTIONS:
            near = settings.hint(group, variants) or f"; there are {', '.join(variants)}"
            raise InputError(f"{line}no group {group[:60]!r}{near}", status=2)
        if group in choices:
            raise InputError(f"{line}{group} is chosen twice; leave one out", status=2)
        choices[group] = check_choice(group, value_node.value, variants, line)
    return choices


def _value(key: str, node: Any, where: str) -> Any:
    """The value of one key: a scalar, or a list of scalars where the key takes a list."""
    if key not in SETTINGS:
        raise settings.unknown_key(key, where)
    setting = SETTINGS[key]
    if isinstance(node, yaml.ScalarNode):
        quoted = node.style is not None
        return settings.parse(key, node.value or ("" if quoted else "null"), where, quoted)
    items = [item.value for item in node.value if isinstance(item, yaml.ScalarNode)]
    if setting.type is not list or len(items) < len(node.value):
        raise InputError(f"{where}{key} is not {setting.words()}", status=2)
    return settings.parse(key, f"[{','.join(items)}]", where)
