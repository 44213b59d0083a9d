"""Promise 8 for settings: right command lines do what they say, wrong ones end in one line and status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asr import cli, config

ROOT = Path(__file__).parent.parent.parent

# As the shell hands them over, behind `asr train`; what is looked up in the settings that --dry-run prints.
RIGHT = [
    (["recipe=fsdd"], ("data", "train"), "data/fsdd/train.jsonl"),
    (["recipe=fsdd", "optim.lr=1e-3"], ("optim", "lr"), 0.001),
    (["optim.lr=1e-3", "recipe=fsdd"], ("optim", "lr"), 0.001),
    (["recipe=fsdd", "augment.join=9", "augment=light"], ("augment", "join"), 9),
    (["recipe=fsdd", "name=1e3"], ("name",), "1e3"),
    (["recipe=fsdd", "data.train=my=file"], ("data", "train"), "my=file"),
    (["recipe=fsdd", "data.train=a,b"], ("data", "train"), "a,b"),
    (["recipe=fsdd", "data.train=/a b/é=x,y.jsonl"], ("data", "train"), "/a b/é=x,y.jsonl"),
    (["recipe=fsdd", "data.train='quoted' \"twice\""], ("data", "train"), "'quoted' \"twice\""),
    (["recipe=./own recipe, é=1.yaml"], ("data", "train"), "a.jsonl"),
]

WRONG = [
    (["recipe=fsddd"], "no recipe 'fsddd'; did you mean fsdd?"),
    (["recipe=nowhere.yaml"], "nowhere.yaml: No such file or directory; check the path of the recipe"),
    (["recipe=wrong.yaml"], "wrong.yaml: line 2: no key 'model.hiden'; did you mean model.hidden?"),
    ([], "give one recipe=NAME"),
    (["recipe=fsdd", "recipe=yesno"], "give one recipe=NAME"),
    (["recipe=fsdd", "model.hiden=3"], "did you mean model.hidden?"),
    (["recipe=fsdd", "model=tyni"], "did you mean tiny?"),
    (["recipe=fsdd", "features.kind=logmell"], "did you mean logmel?"),
    (["recipe=fsdd", "model.hidden=2.5"], "model.hidden is '2.5', not a whole number from 1 to 8192"),
    (["recipe=fsdd", "optim.lr=abc"], "optim.lr is 'abc', not a number above 0 to 10"),
    (["recipe=fsdd", "seed=null"], "seed is 'null', not a whole number"),
    (["recipe=fsdd", "seed"], "no '=' in it; write KEY=VALUE"),
    (["recipe=fsdd", "seed=1,2"], "a list of values needs --multirun"),
    (["recipe=fsdd", "+seed=1"], "no key can be added; to change one, leave out the +"),
    (["recipe=fsdd", "~optim"], "no key can be removed"),
    (["recipe=fsdd", "hydra.run.dir=x"], "out= and name= choose the run folder"),
    (["recipe=fsdd", "features.coefficients=13"], "has no effect with features.kind=logmel"),
    (["recipe=fsdd", "out=${oc.env:HOME}"], "variables and interpolations aren't read"),
    (["recipe=fsdd", "seed=1,two", "--multirun"], "seed is 'two', not a whole number"),
    (["recipe=fsdd", "optim.lr=1,11", "--multirun"], "optim.lr is '11.0', not a number above 0 to 10"),
    (
        ["recipe=fsdd", "features.rate=8000,4000", "features.high=3000", "--multirun"],
        "above half the rate (2000 Hz)",
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder but for two recipes."""
    monkeypatch.chdir(tmp_path)
    own = "defaults: [base, _self_]\ndata: {train: a.jsonl, dev: b.jsonl}\n"
    (tmp_path / "own recipe, é=1.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text("model:\n  hiden: 3\n")
    return tmp_path


@pytest.mark.parametrize(("arguments", "path", "expected"), RIGHT, ids=[" ".join(given) for given, _, _ in RIGHT])
def test_right_settings_are_those_of_the_run(arguments, path, expected, folder, capsys):
    assert cli.main(["train", *arguments, "--dry-run"]) == 0
    printed = capsys.readouterr()
    found = yaml.safe_load(printed.out)
    for key in path:
        found = found[key]
    assert found == expected
    assert printed.err == ""
    (folder / "again.yaml").write_text(printed.out, encoding="utf-8")
    assert config.to_yaml(config.load("again.yaml", [])) == printed.out


@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["train", "dry run"])
@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(given) for given, _ in WRONG])
def test_wrong_settings_end_in_one_line_before_anything_is_written(arguments, message, flags, folder, capsys):
    before = sorted(folder.iterdir())
    assert cli.main(["train", *arguments, *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("asr: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(folder.iterdir()) == before


def test_status_and_line_reach_the_shell(folder):
    code = "import sys; from asr import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", "recipe=fsdd", "model.hiden=3"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    expected = "asr: override 'model.hiden=3': no key 'model.hiden'; did you mean model.hidden?\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_help_of_train_lists_recipes_and_keys(folder, capsys):
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "fsdd" in printed
    assert "optim.lr=" in printed
