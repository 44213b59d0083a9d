"""Promise 7 for configurations (R10): nothing in a recipe runs or is followed; it is plain, or refused.

Every hostile recipe here is refused before Hydra is even imported. The time that each takes, by one command:
``python -m pytest tests/promises/test_7_strangers_configs.py -k hostile --durations=0 -vv``.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asr import config
from asr.errors import InputError

ROOT = Path(__file__).parent.parent.parent
CANARY = "touch canary"
PLAIN = "data:\n  train: a.jsonl\n  dev: b.jsonl\n"


def _bomb(levels: int) -> str:
    """A list of lists, nine aliases each, `levels` deep: 9 ** levels values in a few bytes."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def _defaults(*entries: str) -> str:
    return "defaults:\n" + "".join(f"  - {entry}\n" for entry in entries) + PLAIN


HOSTILE = {
    # classes and calls
    "target": f"_target_: os.system\ncommand: {CANARY}\n",
    "target in a section": f"model:\n  _target_: distutils.spawn.spawn\n  cmd: [sh, -c, {CANARY}]\n",
    "target with other arguments": "optim:\n  _target_: torch.load\n  _args_: [evil.pt]\n",
    "target as a value": "features:\n  kind:\n    _target_: builtins.open\n",
    "class path as a kind": "features:\n  kind: os.system\n",
    "class path as a decoder": "decoder:\n  kind: subprocess.Popen\n",
    "recursive": "_recursive_: true\n_convert_: all\n",
    # YAML that is more than keys and values
    "python tag": f"seed: !!python/object/apply:os.system ['{CANARY}']\n",
    "python name": "seed: !!python/name:os.system\n",
    "python tag that OmegaConf knows": "out: !!python/object/apply:pathlib.PosixPath [/etc]\n",
    "tag by a directive": "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.system x\n",
    "verbatim tag": f"seed: !<tag:yaml.org,2002:python/object/apply:os.system> ['{CANARY}']\n",
    "harmless tag": "seed: !!int 3\n",
    "tag on a key": "!!python/name:os.system seed: 3\n",
    "binary": "out: !!binary aGVsbG8=\n",
    "anchor": "seed: &a 3\n",
    "merge key": "model: &m\n  hidden: 3\noptim:\n  <<: *m\n",
    "merge key without an alias": "model:\n  <<: {hidden: 3}\n",
    "alias bomb of 4 levels": _bomb(4),
    "alias bomb of 5 levels": _bomb(5),
    "alias bomb of 60 levels": _bomb(60),
    "alias to itself": "model: &m\n  x: *m\n",
    "alias bomb of mappings": "a: &a {b: 1}\nc: &c {d: *a, e: *a}\nf: {g: *c, h: *c}\n",
    # interpolations
    "environment": "out: ${oc.env:HOME}\n",
    "environment, quoted": 'out: "${oc.env:HOME}"\n',
    "environment, in part": "data:\n  train: /tmp/${oc.env:USER}/x\n",
    "environment, escaped": 'out: "\\x24{oc.env:HOME}"\n',
    "environment, in the defaults": _defaults("base", "override model: ${oc.env:HOME}", "_self_"),
    "resolver": "seed: ${oc.decode:'1'}\n",
    "hydra's resolver": "out: ${hydra:runtime.cwd}\n",
    "itself": "out: ${out}\n",
    "key": "${oc.env:HOME}: 1\n",
    "in a list": "model:\n  convolutions: ['${seed}']\n",
    # Hydra's own doors
    "hydra's settings": "hydra:\n  searchpath: [file:///tmp/evil]\n",
    "search path of a module": "hydra:\n  searchpath: [pkg://evil]\n",
    "job logging": "hydra:\n  job_logging:\n    handlers: {x: {class: os.system}}\n",
    "launcher": _defaults("base", "override hydra/launcher: evil", "_self_"),
    "file above": _defaults("base", "../../../etc/passwd", "_self_"),
    "absolute file": _defaults("base", "/etc/passwd", "_self_"),
    "file as a variant": _defaults("base", "override model: ../../evil", "_self_"),
    "absolute variant": _defaults("base", "override model: /tmp/evil", "_self_"),
    "another package": _defaults("base", "override model@hydra: tiny", "_self_"),
    "optional": _defaults("base", "optional model: tiny", "_self_"),
    "list of variants": _defaults("base", "override model: [tiny, blstm]", "_self_"),
    "two in one entry": _defaults("base", "{override model: tiny, override features: ../evil}", "_self_"),
    "nested defaults": "model:\n  defaults: [/evil]\n",
    # sizes
    "deep lists": "seed: " + "[" * 20_000,
    "deep mappings": "seed: " + "{a: " * 20_000,
    "deep blocks": "- " * 20_000 + "x\n",
    "deep keys": "? " * 20_000 + "x\n",
    "deep indentation": "".join(" " * n + "a:\n" for n in range(400)),
    "many keys": "".join(f"k{n}: 1\n" for n in range(9_000)),
    "many items": "model:\n  convolutions: [" + "1," * 40_000 + "1]\n",
    "many documents": "---\n" * 20_000,
    "long number": "optim:\n  lr: " + "1" * 95_000 + "x\n",
    "long digits": "seed: " + "9" * 95_000 + "\n",
    "long exponent": "optim:\n  lr: 1e" + "9" * 30 + "\n",
    "long text": "out: " + "x" * 95_000 + "\n",
    "long key": "x" * 95_000 + ": 1\n",
    "long comment and no settings": "#" + "x" * 99_000,
    "large file": "seed: 1\n" + "#" * 100_000,
    "open quote": 'out: "' + "x " * 45_000,
    # texts
    "escape sequence": 'out: "\\e[31m"\n',
    "line break": 'name: "a\\nb"\n',
    "NUL": 'out: "a\\0b"\n',
    "raw NUL": "out: a\0b\n",
    "way out of the run folder": "name: ../../../etc\n",
    "hidden folder": "name: .ssh\n",
    "absolute name": "name: /etc/cron.d\n",
    "corpus by a path": "data:\n  corpus: ../evil\n",
    "missing value": "out: ???\n",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, str]:
    """What one process says to all of them: it must end, have run nothing, and never have needed Hydra."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, text in enumerate(HOSTILE.values()):
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8", newline="")
    code = """
import sys
from asr import config
from asr.errors import InputError
for number in range(int(sys.argv[1])):
    try:
        config.load(f"{number}.yaml", [])
        print("accepted")
    except InputError as error:
        print(error.status, error)
print("imported" if {"hydra", "omegaconf", "torch"} & set(sys.modules) else "clean")
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(len(HOSTILE))],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,  # against a hang: an alias bomb of 60 levels would never end
    )
    *lines, last = done.stdout.splitlines()
    assert done.stderr == ""
    assert last == "clean"
    assert len(lines) == len(HOSTILE)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.yaml" for n in range(len(HOSTILE)))
    return dict(zip(HOSTILE, lines, strict=True))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipe_is_refused_in_one_line_before_hydra_is_imported(name, answers):
    number = list(HOSTILE).index(name)
    assert answers[name].startswith(f"2 {number}.yaml: ")
    assert len(answers[name]) < 500
    assert answers[name].isprintable()


def test_there_are_at_least_forty_hostile_recipes():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target", "line 1: no key '_target_'"),
        ("target in a section", "line 2: no key 'model._target_'"),
        ("class path as a kind", "line 2: features.kind is 'os.system', not logmel or mfcc"),
        ("python tag", "line 1: tags (!) aren't read; write a plain value"),
        ("tag on a key", "line 1: tags (!) aren't read"),
        ("anchor", "line 1: anchors and aliases (& and *) aren't read; write the value out"),
        ("alias bomb of 60 levels", "line 1: anchors and aliases (& and *) aren't read"),
        ("environment", "line 1: out holds '${': variables and interpolations aren't read"),
        ("environment, escaped", "line 1: out holds '${'"),
        ("resolver", "line 1: seed is"),
        ("hydra's settings", "line 1: no key 'hydra'"),
        (
            "file above",
            "line 1: defaults are '- base', any '- override GROUP: CHOICE', '- _self_', in this order",
        ),
        ("file as a variant", "line 3: no model '../../evil'; there are blstm, tiny"),
        ("launcher", "line 3: defaults are"),
        ("another package", "line 3: defaults are"),
        ("two in one entry", "line 3: no features '../evil'"),
        ("deep lists", "line 1: nested deeper than a recipe is (4 levels)"),
        ("deep blocks", "line 1: nested deeper than a recipe is (4 levels)"),
        ("many keys", "line 1000: more than 2000 keys and values; a recipe has some 30 lines"),
        ("large file", "larger than 100000 bytes; a recipe has some 30 lines"),
        ("long text", "line 1: out is longer than 4096 characters; shorten it"),
        ("raw NUL", "no valid YAML (unacceptable character #x0000: special characters are not allowed)"),
        ("way out of the run folder", "line 1: name is '../../../etc', not a folder name"),
    ],
)
def test_hostile_recipe_is_refused_for_its_reason(name, message, answers):
    assert message in answers[name]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00s",
        b"\x80\x04\x95",
        b"PK\x03\x04" + bytes(range(256)),
        b"\x93NUMPY",
        "seed: 1".encode("utf-16"),
    ],
)
def test_file_that_is_no_text_is_refused(content, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x.yaml: (not UTF-8 text; a recipe is a YAML file|no valid YAML)"):
        config.load(str(path), [])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_without_waiting_for_it(kind, tmp_path):
    path = tmp_path / "x.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"x.yaml: not a file; a recipe is a YAML file"):
        config.load(str(path), [])


def test_neighbours_of_a_recipe_are_neither_read_nor_run(tmp_path, monkeypatch):
    """What lies in a stranger's folder beside the recipe: shadows of ours, a plugin, a Python file."""
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "hydra", "hydra_plugins"):
        (tmp_path / folder).mkdir()
    for shadow in ("base.yaml", "model/tiny.yaml", "hydra/default.yaml", "config.yaml"):
        (tmp_path / shadow).write_text(_bomb(9))
    (tmp_path / "hydra_plugins" / "evil.py").write_text("open('canary', 'w')")
    (tmp_path / "x.yaml").write_text(_defaults("base", "override model: tiny", "_self_"))
    loaded = config.load("x.yaml", [])
    shipped = yaml.safe_load((Path(config.__file__).parent.parent / "conf" / "model" / "tiny.yaml").read_text())
    assert dataclasses.asdict(loaded.model) == shipped
    assert not (tmp_path / "canary").exists()
