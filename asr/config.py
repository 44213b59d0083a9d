"""From a recipe and overrides to a checked `Config`: composition with Hydra, help, and the way back to YAML.

The recipe is Hydra's primary config and conf/ its search path: base.yaml, the variants of the groups, then
the recipe's own values. An override ``group=choice`` replaces a variant, ``key=value`` a value, read by the
type that the key has in `asr.schema` and not by Hydra's grammar. Hydra composes a copy of what `asr.recipe`
read, so that a file from anyone reaches it as plain keys and values only. No plugins, no logging, no change
of the working directory.

Hydra and OmegaConf are imported when `load` is called, and by this file alone.
"""

import contextlib
import dataclasses
import itertools
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from asr import recipe as recipe_file
from asr import settings
from asr.errors import AsrError, InputError
from asr.schema import SECTIONS, SETTINGS, Config

__all__ = ["Config", "expand", "groups", "help_text", "load", "name_of", "recipes", "root", "to_yaml"]

_LOCK = threading.Lock()  # Hydra's state belongs to the process


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
        InputError: anything in recipe or overrides is wrong (status 2).
    """
    path = _path(recipe)
    choices, values = _read_overrides(overrides)
    written = recipe_file.read(path, groups())
    composed = _compose(written, choices, path)
    return settings.build(composed | values, "" if overrides else f"{path}: ")


def expand(overrides: list[str]) -> list[list[str]]:
    r"""The jobs of ``--multirun``: a comma list becomes alternatives, several all combinations, in order.

    A comma inside brackets parts nothing, nor does one written ``\,``. Where more than the seed differs, each
    job gets a name, its run folder, from its number and what differs; unless the names themselves are listed.

    Raises:
        InputError: an override is wrong, or two jobs would be one run.
    """
    lists: list[list[str]] = []
    for item in overrides:
        key, value = _split(item)
        parts = re.split(r"(?<!\\),(?![^\[]*\])", value)
        if len(set(parts)) < len(parts):
            raise InputError(f"override {item!r}: a value stands twice; leave one out", status=2)
        lists.append([f"{key}={part.replace(chr(92) + ',', ',')}" for part in parts])
    jobs = [list(job) for job in itertools.product(*lists)]
    for job in jobs:
        _read_overrides(job)
    listed = {items[0].partition("=")[0] for items in lists if len(items) > 1}
    if not listed or "name" in listed:
        return jobs
    if any(item.startswith("name=") for item in overrides):
        raise InputError("--multirun: the jobs would share one run folder; leave name= out", status=2)
    return jobs if listed == {"seed"} else [[*job, _name(number, job, listed)] for number, job in enumerate(jobs, 1)]


def _name(number: int, job: list[str], listed: set[str]) -> str:
    """The override that names a job: ``name=02-lr_0.001``."""
    pairs = [item.partition("=") for item in job]
    label = "-".join(f"{key.rpartition('.')[2]}_{value}" for key, _, value in pairs if key in listed)
    return f"name={number:02}-{re.sub(r'[^A-Za-z0-9_.+-]+', '_', label)[:100]}"


def to_yaml(config: Config) -> str:
    """The settings as YAML, itself a recipe: loading it gives an equal Config."""
    return _dump(dataclasses.asdict(config))


def name_of(recipe: str) -> str:
    """The first part of a run's folder: a recipe's name, or of a file its stem.

    A run's own config.yaml has the name of the recipe that the run was started with.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        return recipe
    is_run = path.name == "config.yaml" and (path.parent / "log.txt").exists()
    return (path.absolute().parent.parent.name if is_run else "") or path.stem


def recipes() -> dict[str, str]:
    """The known recipes by name, each with the comment in its first line."""
    return {path.stem: _first_comment(path) for path in sorted(root("recipes").glob("*.yaml"))}


def groups() -> dict[str, dict[str, str]]:
    """The groups and their variants, each variant with the comment in its first line."""
    found = {section: sorted((root("conf") / section).glob("*.yaml")) for section in SECTIONS}
    return {group: {path.stem: _first_comment(path) for path in paths} for group, paths in found.items() if paths}


def help_text() -> str:
    """Recipes, groups, every key with its value and what it does, as recipes/ and conf/ say (no Hydra)."""
    lines = ["recipes (recipe=NAME, or the path of a .yaml file):"]
    lines += [f"  {name:14} {comment}" for name, comment in recipes().items()]
    lines += ["", "groups (GROUP=CHOICE, such as model=tiny):"]
    for group, variants in groups().items():
        lines += [f"  {f'{group}={choice}':18} {comment}" for choice, comment in variants.items()]
    lines += ["", "keys (KEY=VALUE, such as optim.lr=0.001) and their values before a recipe changes them:"]
    lines += [f"  {f'{key}={value}':32} {comment}" for key, (value, comment) in documented().items()]
    return "\n".join(lines) + "\n"


def documented() -> dict[str, tuple[str, str]]:
    """Value and comment of each key, as they stand in conf/base.yaml and in the variants that it chooses."""
    base = (root("conf") / "base.yaml").read_text(encoding="utf-8")
    found = dict(_commented(base))
    for group, choice in re.findall(r"^  - (\w+): (\w+)$", base, re.MULTILINE):
        text = (root("conf") / group / f"{choice}.yaml").read_text(encoding="utf-8")
        found |= {f"{group}.{key}": value for key, value in _commented(text)}
    return {key: found[key] for key in SETTINGS if key in found}


def _commented(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(key, (value, comment)) of each ``key: value  # comment`` in a file of conf/."""
    section = ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\w+):", line):
            section = heading[1] + "."
        elif pair := re.fullmatch(r"(  )?(\w+): (.+?)  # (.+)", line):
            yield (section if pair[1] else "") + pair[2], (pair[3], pair[4])


def _first_comment(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _path(recipe: str) -> Path:
    """The file of a recipe."""
    if recipe.endswith((".yaml", ".yml")):
        return Path(recipe)
    known = recipes()
    if recipe in known:
        return root("recipes") / f"{recipe}.yaml"
    near = settings.hint(recipe, known) or f"; there are {', '.join(known)}, or the path of a .yaml file"
    raise InputError(f"no recipe {recipe[:200]!r}{near}", status=2)


def _split(item: str) -> tuple[str, str]:
    """Key and value of an override; all else in Hydra's grammar is refused, with what replaces it."""
    where = f"override {item[:200]!r}: "
    key, equals, value = item.partition("=")
    if key.startswith("~"):
        raise InputError(
            f"{where}no key can be removed; set it to another value (--help tells which take null)", status=2
        )
    if key.startswith("+"):
        raise InputError(f"{where}no key can be added; to change one, leave out the +", status=2)
    if re.match(r"hydra\b", key):
        raise InputError(f"{where}Hydra's own settings aren't used; out= and name= choose the run folder", status=2)
    if not equals:
        raise InputError(f"{where}no '=' in it; write KEY=VALUE", status=2)
    if key not in SETTINGS and key not in SECTIONS:
        raise settings.unknown_key(key, where)
    if not value:
        raise InputError(f"{where}nothing behind the '='; write null for no value, where a key takes it", status=2)
    is_free = key in SETTINGS and SETTINGS[key].is_free_text
    if not is_free and re.match(r"(range|choice|glob|interval)\(", value):
        raise InputError(f"{where}functions aren't read; list the values, such as seed=1,2,3 --multirun", status=2)
    return key, value


def _read_overrides(overrides: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices by group, and the values by key."""
    choices: dict[str, str] = {}
    values: dict[str, Any] = {}
    for item in overrides:
        key, value = _split(item)
        where = f"override {item[:200]!r}: "
        if key in choices or key in values:
            raise InputError(f"{where}{key} is set twice; leave one out", status=2)
        takes_commas = key in SETTINGS and (SETTINGS[key].is_free_text or value.startswith("["))
        if "," in value and not takes_commas:
            raise InputError(f"{where}a list of values needs --multirun, which makes a run of each", status=2)
        if key in SETTINGS:
            values[key] = settings.parse(key, value, "override ")
        else:
            choices[key] = recipe_file.check_choice(key, value, groups(), where)
    return choices, values


def _compose(recipe: recipe_file.Recipe, choices: dict[str, str], path: Path) -> dict[str, Any]:
    """Let Hydra compose a copy of the recipe with conf/; returns values by dotted key."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if recipe.from_base:
        chosen = recipe.choices | choices
        defaults = ["base", *({f"override {group}": choice} for group, choice in chosen.items()), "_self_"]
    else:  # every value stands in the recipe; a variant chosen by an override replaces those of its group
        defaults = ["_self_", *({group: choice} for group, choice in choices.items())]
    search = f"file://{root('conf')}".replace("${", r"\${")  # else an interpolation
    copy = {"defaults": defaults, "hydra": {"searchpath": [search]}, **_nest(recipe.values)}
    try:
        with _LOCK, _no_plugins(), tempfile.TemporaryDirectory(prefix="asr-") as folder:
            Path(folder, "recipe.yaml").write_text(_dump(copy), encoding="utf-8")
            composed = _hydra(folder)
        return _flatten(OmegaConf.to_container(composed))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(f"{path} with {root('conf')}: {str(error).splitlines()[0]}", status=2) from error
    except OSError as error:
        raise AsrError(f"no temporary file for the recipe ({error.strerror}); make room or set TMPDIR", 2) from error


def _hydra(folder: str) -> Any:
    """The composition of ``folder/recipe.yaml``; a program that itself runs under Hydra keeps its state."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    theirs, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return compose("recipe")
    finally:
        GlobalHydra.instance().hydra = theirs


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Keep Hydra, which looks for plugins when it is first used, from importing those of other packages."""
    modules: dict[str, Any] = sys.modules
    before = {"hydra_plugins": modules["hydra_plugins"]} if "hydra_plugins" in modules else {}
    modules["hydra_plugins"] = None  # an import of it fails
    try:
        yield
    finally:
        del modules["hydra_plugins"]
        modules.update(before)


def _nest(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested dictionaries."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[leaf] = value
    return tree


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


class _Dumper(yaml.SafeDumper):
    """Quotes each text that a reader of YAML might take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value out wherever it stands."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity")
    is_plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_/.-]*", text) and text.lower() not in words
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def _dump(tree: dict[str, Any]) -> str:
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)
    return text
