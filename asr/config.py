"""From a recipe and overrides to a checked `Config`: composition with Hydra, help, and the way back to YAML.

A recipe is Hydra's primary config, conf/ its search path: base.yaml, groups of variants, then the recipe's own values.
An override ``group=choice`` replaces a variant, ``section.key=value`` a value; values are read by the type that the
key has in `asr.schema`, not by Hydra's grammar. A recipe may come from anyone: it is read here, with limits, as keys,
choices and plain values, and Hydra composes a clean copy of it. Nothing in it can name a class, a file to include, a
variable or an anchor.

Hydra and OmegaConf are imported when `load` is called, and by this file alone.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from asr import schema
from asr.errors import AsrError, InputError
from asr.schema import SECTIONS, SETTINGS, Config

_MAX_BYTES = 100_000  # of a recipe
_MAX_PARTS = 2_000  # keys, values and brackets in a recipe
_MAX_DEPTH = 4  # the schema's is 3
_LOCK = threading.Lock()  # Hydra's state is global to the process


def root(name: str) -> Path:
    """The folder `name` (conf or recipes): inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for place in (package, package.parent):
        if (place / name).is_dir():
            return place / name
    raise AsrError(f"no folder {name} inside or beside {package}; install asr again", status=2)


def load(recipe: str, overrides: list[str]) -> Config:
    """Compose and check the settings of a run.

    Args:
        recipe: the name of one in recipes/, or the path of a .yaml file, such as a run's own config.yaml.
        overrides: ``key=value`` or ``group=choice``, each key at most once.

    Raises:
        InputError: anything in recipe or overrides is wrong (status 2, one line).
    """
    path = _recipe_path(recipe)
    choices, values = _read_overrides(overrides)
    written = _read_recipe(path)
    composed = _compose(written, choices, path)
    return schema.build(composed | values, "" if values else f"{path}: ")


def expand(overrides: list[str]) -> list[list[str]]:
    """The jobs of ``--multirun``: a comma list becomes alternatives, several of them all combinations, in order.

    A comma inside brackets parts nothing, nor does one written ``\\,``. Where more than the seed changes, each job
    gets a name (a folder) that tells what differs, unless `name` is among the overrides.

    Raises:
        InputError: an override is wrong, or two jobs would be the same run.
    """
    alternatives = []
    for item in overrides:
        key, value = _split(item)
        parts = re.findall(r"(?:\[[^\]]*\]|\\.|[^,\\\[]|\\|\[)+|(?<=,)(?=,|$)|^(?=,)", value) or [value]
        alternatives.append([f"{key}={part.replace(chr(92) + ',', ',')}" for part in parts])
    jobs = [list(job) for job in itertools.product(*alternatives)]
    if len(set(map(tuple, jobs))) < len(jobs):
        raise InputError("--multirun: a value stands twice in a list; remove one", status=2)
    changing = [index for index, options in enumerate(alternatives) if len(options) > 1]
    for job in jobs:
        _read_overrides(job)
    return _named(jobs, changing)


def _named(jobs: list[list[str]], changing: list[int]) -> list[list[str]]:
    """The jobs, each with a `name` of its own where their folders would be the same."""
    keys = [jobs[0][index].partition("=")[0] for index in changing] if jobs else []
    given = {item.partition("=")[0] for item in jobs[0]} if jobs else set()
    if not set(keys) - {"name", "seed"} and not ("name" in given and "seed" in keys and "name" not in keys):
        return jobs
    if "name" in given and "name" not in keys:
        raise InputError("--multirun: all jobs would have one name; leave name=... out", status=2)
    named = []
    for number, job in enumerate(jobs, 1):
        parts = [
            job[index].rpartition(".")[2] if "." in job[index].split("=")[0] else job[index]
            for index in changing
        ]
        label = re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("._")[:150]
        named.append(job if "name" in keys else [*job, f"name={number:02}-{label}"])
    return named


def to_yaml(config: Config) -> str:
    """The settings as YAML, itself a recipe: loading it gives an equal Config."""
    return _dump(dataclasses.asdict(config))


def recipes() -> dict[str, str]:
    """The known recipes by name, each with the comment in its first line."""
    return {path.stem: _first_comment(path) for path in sorted(root("recipes").glob("*.yaml"))}


def groups() -> dict[str, dict[str, str]]:
    """The groups and their choices, each choice with the comment in its first line."""
    return {
        section: {path.stem: _first_comment(path) for path in sorted((root("conf") / section).glob("*.yaml"))}
        for section in SECTIONS
        if (root("conf") / section).is_dir()
    }


def help_text() -> str:
    """Recipes, groups and every key with its value and what it does, read from recipes/ and conf/ without Hydra."""
    lines = ["recipes (recipe=NAME, or the path of a .yaml file):"]
    lines += [f"  {name:14} {comment}" for name, comment in recipes().items()]
    lines += ["", "groups (GROUP=CHOICE, such as model=tiny):"]
    lines += [
        f"  {f'{group}={choice}':20} {comment}"
        for group, found in groups().items()
        for choice, comment in found.items()
    ]
    lines += [
        "",
        "keys (KEY=VALUE, such as optim.lr=0.001), with their values where recipe and groups say nothing else:",
    ]
    for key, (value, comment) in _documented().items():
        lines.append(f"  {f'{key}={value}':34} {comment}")
    return "\n".join(lines) + "\n"


def _documented() -> dict[str, tuple[str, str]]:
    """Value and comment of each key, as written in conf/base.yaml and the variants that it chooses."""
    base = (root("conf") / "base.yaml").read_text(encoding="utf-8")
    found = dict(_commented(base))
    for group, choice in re.findall(r"^  - (\w+): (\w+)$", base, re.MULTILINE):
        text = (root("conf") / group / f"{choice}.yaml").read_text(encoding="utf-8")
        found |= {f"{group}.{key}": value for key, value in _commented(text)}
    return {key: found[key] for key in SETTINGS if key in found}


def _commented(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(key, (value, comment)) of each ``key: value  # comment`` in the YAML of conf/."""
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\w+):", line):
            section = heading[1] + "."
        elif match := re.fullmatch(r"(  )?(\w+): (.+?)  # (.+)", line):
            yield (section if match[1] else "") + match[2], (match[3], match[4])


def _first_comment(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        line = file.readline()
    return line.lstrip("# ").strip() if line.startswith("#") else ""


def _recipe_path(recipe: str) -> Path:
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    known = recipes()
    if recipe in known:
        return root("recipes") / f"{recipe}.yaml"
    if (Path(recipe) / "config.yaml").is_file():
        raise InputError(f"recipe {recipe} is a folder; write {Path(recipe, 'config.yaml')}", status=2)
    near = schema.hint(recipe, known) or f"; known are {', '.join(known)}, or the path of a .yaml file"
    raise InputError(f"no recipe {recipe[:200]!r}{near}", status=2)


def _split(item: str) -> tuple[str, str]:
    """Key and value of an override; Hydra's other forms are refused, with what replaces them."""
    key, equals, value = item.partition("=")
    if key.startswith("~"):
        raise InputError(
            f"override {item!r}: keys can't be removed; set a value (null where the key takes it)", status=2
        )
    if key.startswith("+"):
        raise InputError(f"override {item!r}: every key exists already; write {item.lstrip('+')}", status=2)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise InputError(
            f"override {item!r}: Hydra's settings aren't used; out= and name= choose the run's folder",
            status=2,
        )
    if not equals:
        raise InputError(f"override {item!r} has no '='; write {item or 'KEY'}=VALUE", status=2)
    if key not in SETTINGS and key not in SECTIONS:
        raise schema.unknown_key(key, f"override {item[:200]!r}: ")
    return key, value


def _read_overrides(overrides: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices of groups, and the values by key."""
    choices: dict[str, str] = {}
    values: dict[str, Any] = {}
    for item in overrides:
        key, value = _split(item)
        if key in choices or key in values:
            raise InputError(f"override {item!r}: {key} is set twice; leave one out", status=2)
        setting = SETTINGS.get(key)
        if "," in value and not (setting and setting.takes_commas):
            raise InputError(
                f"override {item!r}: a list of values needs --multirun (a job for each)", status=2
            )
        if setting is None:
            choices[key] = _choice(key, value, f"override {item!r}: ")
        elif value == "":
            raise InputError(f"override {item!r}: no value behind '='", status=2)
        else:
            values[key] = schema.parse(setting, value, "override ")
    return choices, values


def _choice(group: str, choice: str, where: str) -> str:
    known = groups().get(group)
    if known is None:
        keys = [key for key in SETTINGS if key.startswith(f"{group}.")]
        raise InputError(f"{where}{group} has no variants; set its keys: {', '.join(keys)}", status=2)
    if choice not in known:
        near = schema.hint(choice, known)
        raise InputError(f"{where}no {group} {choice[:60]!r}; known are {', '.join(known)}{near}", status=2)
    return choice


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a recipe file holds: whether it starts from base, its choices of variants, its values by key."""

    from_base: bool
    choices: dict[str, str]
    values: dict[str, Any]


def _read_recipe(path: Path) -> _Recipe:
    """Read a recipe as plain keys and values, within limits, with the line of whatever is wrong."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; check the path of the recipe", status=2
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; a recipe is a YAML file", status=2) from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES} bytes; a recipe has some 30 lines", status=2)
    try:
        _check_events(path, text)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}no valid YAML ({error.problem})", status=2) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: no valid YAML ({str(error).splitlines()[0][:100]})", status=2) from error
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}: no settings in it; a recipe holds 'key: value' lines", status=2)
    return _read_top(path, node)


def _check_events(path: Path, text: str) -> None:
    """Refuse what makes YAML more than keys and values, before anything is built from it."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
        where = f"{path}: line {event.start_mark.line + 1}: "
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(
                f"{where}anchors and aliases (& and *) aren't read; write the value out", status=2
            )
        if getattr(event, "tag", None):
            raise InputError(f"{where}tags (!) aren't read; write a plain value", status=2)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InputError(f"{where}nested deeper than a recipe is ({_MAX_DEPTH} levels)", status=2)
        if count > _MAX_PARTS:
            raise InputError(
                f"{where}more than {_MAX_PARTS} keys and values; a recipe has some 30 lines", status=2
            )


def _pairs(path: Path, node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, yaml.Node, str]]:
    """(full key, value node, place in the file) of a mapping; a key stands once."""
    seen = set()
    for key_node, value in node.value:
        where = f"{path}: line {key_node.start_mark.line + 1}: "
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if key is None or "." in key:
            raise InputError(f"{where}a key is one plain word; write nested keys below one another", status=2)
        if key in seen:
            raise InputError(f"{where}{prefix}{key} stands twice; leave one out", status=2)
        seen.add(key)
        yield prefix + key, value, where


def _read_top(path: Path, node: yaml.MappingNode) -> _Recipe:
    from_base, choices, values = False, {}, {}
    for key, value, where in _pairs(path, node):
        if key == "defaults":
            from_base, choices = _read_defaults(value, where)
        elif key in SECTIONS:
            if not isinstance(value, yaml.MappingNode):
                example = next(name for name in SETTINGS if name.startswith(f"{key}."))
                raise InputError(
                    f"{where}{key} holds keys such as {example}; a variant is chosen in defaults", status=2
                )
            for name, leaf, place in _pairs(path, value, f"{key}."):
                values[name] = _read_value(name, leaf, place)
        else:
            values[key] = _read_value(key, value, where)
    return _Recipe(from_base, choices, values)


def _read_defaults(node: yaml.Node, where: str) -> tuple[bool, dict[str, str]]:
    """The defaults list: base, then ``override GROUP: CHOICE`` as often as needed, then _self_."""
    form = "defaults are '- base', '- override GROUP: CHOICE' as needed, '- _self_', in this order"
    entries = node.value if isinstance(node, yaml.SequenceNode) else []
    names = [entry.value for entry in entries if isinstance(entry, yaml.ScalarNode)]
    if names != ["base", "_self_"] or entries[0].value != "base" or entries[-1].value != "_self_":
        raise InputError(f"{where}{form}", status=2)
    choices: dict[str, str] = {}
    for entry in entries[1:-1]:
        pairs = [(key.value, choice.value) for key, choice in entry.value] if len(entry.value) == 1 else []
        if not pairs or not all(isinstance(part, str) for part in pairs[0]):
            raise InputError(f"{where}{form}", status=2)
        group, choice = pairs[0]
        match = re.fullmatch(r"override /?(\w+)", group)
        if not match or match[1] in choices:
            raise InputError(f"{where}{group[:60]!r}: {form}", status=2)
        if match[1] not in SECTIONS:
            raise InputError(f"{where}no group {match[1][:60]!r}{schema.hint(match[1], groups())}", status=2)
        choices[match[1]] = _choice(match[1], choice, where)
    return True, choices


def _read_value(key: str, node: yaml.Node, where: str) -> Any:
    setting = SETTINGS.get(key)
    if setting is None:
        raise schema.unknown_key(key, where)
    if isinstance(node, yaml.SequenceNode) and setting.type is list:
        if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            raise InputError(f"{where}{key} is not {schema.describe(setting)}", status=2)
        return schema.parse(setting, f"[{','.join(item.value for item in node.value)}]", where)
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{where}{key} is not {schema.describe(setting)}", status=2)
    quoted = node.style is not None
    return schema.parse(setting, node.value if node.value or quoted else "null", where, quoted)


def _compose(recipe: _Recipe, choices: dict[str, str], path: Path) -> dict[str, Any]:
    """Let Hydra compose a clean copy of the recipe with conf/; returns values by dotted key."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if recipe.from_base:
        chosen = [{f"override {group}": choice} for group, choice in (recipe.choices | choices).items()]
        defaults = ["base", *chosen, "_self_"]
    else:  # a run's own config.yaml holds every value; a variant chosen now replaces those of its group
        defaults = ["_self_", *({group: choice} for group, choice in choices.items())]
    # "$" is escaped, since OmegaConf would read a "${" in the path of this installation as an interpolation.
    place = f"file://{root('conf')}".replace("${", "\\${")
    copy = {"defaults": defaults, "hydra": {"searchpath": [place]}, **schema.nest(recipe.values)}
    try:
        with _LOCK, _no_plugins(), tempfile.TemporaryDirectory(prefix="asr-") as folder:
            Path(folder, "recipe.yaml").write_text(_dump(copy), encoding="utf-8")
            with initialize_config_dir(os.path.realpath(folder), version_base="1.3"):
                composed = compose("recipe")
        container = OmegaConf.to_container(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}", status=2) from error
    except OSError as error:
        raise AsrError(
            f"no temporary folder for the recipe ({error.strerror or error}); set TMPDIR", 2
        ) from error
    return schema.flatten(container if isinstance(container, dict) else {})  # type: ignore[arg-type]


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Keep Hydra from importing what other packages offer it as plugins (it looks for them when first used)."""
    absent = object()
    before = sys.modules.get("hydra_plugins", absent)
    sys.modules["hydra_plugins"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is absent:
            del sys.modules["hydra_plugins"]
        else:
            sys.modules["hydra_plugins"] = before  # type: ignore[assignment]


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some YAML reader might take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch(r"[A-Za-z_/][\w /.-]*(?<! )", text, re.ASCII) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity")
_Dumper.add_representer(str, _represent_text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign,assignment]


def _dump(tree: dict[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
