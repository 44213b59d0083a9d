"""A recipe, conf/ and overrides compose to a checked Config, and the process that asked stays as it was."""

import dataclasses
import logging
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from asr import config, recipe, schema
from asr.errors import AsrError, InputError

ROOT = Path(__file__).parent.parent
CONF = sorted((ROOT / "conf").rglob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def fsdd() -> config.Config:
    return config.load("fsdd", [])


def test_group_replaces_a_variant_and_the_recipes_values_stay(fsdd):
    loaded = config.load("fsdd", ["model.hidden=77", "model.channels=5", "model=blstm", "features=kaldi"])
    shipped = yaml.safe_load((ROOT / "conf/model/blstm.yaml").read_text())
    assert dataclasses.asdict(loaded.model) == shipped | {
        "hidden": 77,
        "channels": 5,
        "convolutions": [2, 2],
        "dropout": 0.4,
    }
    assert loaded.features.convention == "kaldi"
    assert (loaded.features.rate, loaded.features.mels) == (fsdd.features.rate, fsdd.features.mels)


def test_the_tree_is_frozen(fsdd):
    with pytest.raises(dataclasses.FrozenInstanceError):
        fsdd.seed = 2
    assert type(fsdd.model.convolutions) is list


@pytest.mark.parametrize("path", CONF, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_value_in_conf_has_a_comment_and_a_key(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"# .+\.", lines[0])
    section = "" if path.name == "base.yaml" else f"{path.parent.name}."
    found = {section + key for key, (_, comment) in config._commented("\n".join(lines)) if comment}
    parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
    parsed.pop("defaults", None)
    assert found == {section + key for key in config._flatten(parsed)}
    assert found <= set(schema.SETTINGS)
    if section:  # a variant gives all of its group, so that choosing it leaves nothing of another one
        assert found == {key for key in schema.SETTINGS if key.startswith(section)}


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g, found in config.groups().items() for c in found])
def test_every_variant_composes(group, choice, tmp_path):
    written = yaml.safe_load((ROOT / "conf" / group / f"{choice}.yaml").read_text())
    plain = tmp_path / "plain.yaml"
    plain.write_text("# No own settings\ndefaults: [base, _self_]\ndata: {train: a.jsonl, dev: b.jsonl}\n")
    assert dataclasses.asdict(getattr(config.load(str(plain), [f"{group}={choice}"]), group)) == written


def test_help_lists_recipes_variants_and_every_key_with_its_value():
    text = config.help_text()
    for name, comment in config.recipes().items():
        assert re.search(rf"^  {name} +{re.escape(comment)}$", text, re.MULTILINE)
    assert set(config.recipes()) == {path.stem for path in RECIPES}
    assert all(config.recipes().values())
    for key in schema.SETTINGS:
        assert re.search(rf"^  {re.escape(key)}=\S+ +\S", text, re.MULTILINE), key
    assert re.search(r"^  optim.lr=0.002 +learning rate", text, re.MULTILINE)
    assert "  model=tiny " in text


def test_help_brings_neither_hydra_nor_torch():
    code = "import sys; from asr import config; config.help_text(); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"hydra", "omegaconf", "torch", "numpy"} & set(re.findall(r"'([\w.]+)'", modules))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match=r"no recipe 'fsddd'; did you mean fsdd\?"):
        config.load("fsddd", [])
    with pytest.raises(InputError, match=r"no recipe 'q'; there are an4, .*yesno, or the path of a .yaml file"):
        config.load("q", [])
    with pytest.raises(InputError, match=r"no.yaml: No such file or directory; check the path of the recipe"):
        config.load("./no.yaml", [])


def test_run_folders_are_named_after_the_recipe(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "fsdd" / "seed1"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    assert config.name_of(str(run / "config.yaml")) == "config"
    (run / "log.txt").touch()
    assert config.name_of(str(run / "config.yaml")) == "fsdd"
    monkeypatch.chdir(run)
    assert config.name_of("config.yaml") == "fsdd"
    assert config.name_of("fsdd") == "fsdd"
    assert config.name_of("notes.yaml") == "notes"
    assert config.name_of("some/my.recipe.yaml") == "my.recipe"


MULTIRUN = [
    ([], [[]]),
    (["seed=1"], [["seed=1"]]),
    (["seed=1,2"], [["seed=1"], ["seed=2"]]),
    (
        ["seed=1,2", "optim.lr=1e-3,2e-3"],
        [
            ["seed=1", "optim.lr=1e-3", "name=01-seed_1-lr_1e-3"],
            ["seed=1", "optim.lr=2e-3", "name=02-seed_1-lr_2e-3"],
            ["seed=2", "optim.lr=1e-3", "name=03-seed_2-lr_1e-3"],
            ["seed=2", "optim.lr=2e-3", "name=04-seed_2-lr_2e-3"],
        ],
    ),
    (
        ["model=tiny,blstm", "seed=3"],
        [["model=tiny", "seed=3", "name=01-model_tiny"], ["model=blstm", "seed=3", "name=02-model_blstm"]],
    ),
    (["name=a,b", "optim.lr=1"], [["name=a", "optim.lr=1"], ["name=b", "optim.lr=1"]]),
    (["name=a", "optim.lr=1"], [["name=a", "optim.lr=1"]]),
    (["model.convolutions=[1,2]"], [["model.convolutions=[1,2]"]]),
    (
        ["model.convolutions=[1,2],[],[2]"],
        [
            ["model.convolutions=[1,2]", "name=01-convolutions__1_2_"],
            ["model.convolutions=[]", "name=02-convolutions__"],
            ["model.convolutions=[2]", "name=03-convolutions__2_"],
        ],
    ),
    ([r"data.train=a\,b"], [["data.train=a,b"]]),
    (
        [r"data.train=é/a\,b,c"],
        [["data.train=é/a,b", "name=01-train__a_b"], ["data.train=c", "name=02-train_c"]],
    ),
]


@pytest.mark.parametrize(("overrides", "jobs"), MULTIRUN, ids=[" ".join(overrides) for overrides, _ in MULTIRUN])
def test_multirun_makes_a_job_of_each_combination(overrides, jobs):
    assert config.expand(overrides) == jobs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,1"], "override 'seed=1,1': a value stands twice; leave one out"),
        (["seed=1,x"], "seed is 'x', not a whole number"),
        (["seed=1,"], "override 'seed=': nothing behind the '='"),
        (["seed=range(1,3)"], "functions aren't read; list the values"),
        (["model=tiny,tyni"], "no model 'tyni'; did you mean tiny?"),
        (["seed=1,2", "name=x"], "--multirun: the jobs would share one run folder; leave name= out"),
        (["seed=1,2", "seed=3"], "seed is set twice"),
        (["sed=1,2"], "no key 'sed'; did you mean seed?"),
    ],
)
def test_wrong_multirun_gets_one_line(overrides, message):
    with pytest.raises(InputError, match=re.escape(message)):
        config.expand(overrides)


def test_every_job_loads_into_a_folder_of_its_own():
    overrides = ["model=tiny,blstm", "model.convolutions=[],[2]", "optim.lr=1e-3,0.1", "model.channels=null"]
    names = [item for job in config.expand(overrides) for item in job if item.startswith("name=")]
    assert len(set(names)) == 8
    for item in names:
        config._read_overrides([item])


def test_nothing_of_the_process_is_changed(fsdd, monkeypatch, tmp_path):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        return Path.cwd(), root.level, list(root.handlers), sys.modules.get("hydra_plugins", "absent")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "hydra_plugins", raising=False)
    before = state()
    assert config.load("fsdd", []) == fsdd
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):  # by the program that calls us
        theirs = GlobalHydra.instance().hydra
        config.load("fsdd", [])
        with pytest.raises(AsrError, match="above half the rate"):
            config.load("fsdd", ["features.high=9000"])
        assert GlobalHydra.instance().hydra is theirs
    assert state() == before
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "hydra_plugins", logging)  # the program's, whatever it is
    config.load("fsdd", [])
    assert sys.modules["hydra_plugins"] is logging


def test_threads_compose_at_the_same_time():
    found: dict[int, config.Config] = {}

    def work(seed: int) -> None:
        for _ in range(3):
            found[seed] = config.load("yesno" if seed % 2 else "fsdd", [f"seed={seed}"])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {seed: (loaded.seed, loaded.data.corpus) for seed, loaded in found.items()} == {
        seed: (seed, "yesno" if seed % 2 else "fsdd") for seed in range(4)
    }


@pytest.mark.parametrize("inside", [False, True], ids=["checkout", "wheel"])
def test_any_path_of_the_installation_will_do(inside, tmp_path, fsdd):
    place = tmp_path / "a b, c='d\"e' %20 #é ${oc.env:HOME} (x)"
    shutil.copytree(ROOT / "asr", place / "asr", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "recipes"):
        shutil.copytree(ROOT / name, place / "asr" / name if inside else place / name)
    if inside:  # folders of the same name that other packages left beside ours
        (place / "conf").mkdir()
        (place / "recipes").mkdir()
    # A plugin that would tell of its import, as installed packages may bring them.
    (place / "hydra_plugins").mkdir()
    (place / "hydra_plugins" / "loud.py").write_text("print('plugin imported')\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from asr import config; "
    code += "print(config.__file__); print(config.load('fsdd', []))"
    command = [sys.executable, "-c", code, str(place)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{place / 'asr' / 'config.py'}\n{fsdd}\n"


def test_broken_installation_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "__file__", str(tmp_path / "asr" / "config.py"))
    with pytest.raises(AsrError, match=r"no folder recipes inside or beside .*asr; install asr again"):
        config.load("fsdd", [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed: 1 ", "seed: [1 ", "fsdd.yaml with "),
        ("seed: 1 ", "seed: x ", "seed is 'x', not a whole number"),
        ("seed: 1 ", "seed: '1' ", "seed is '1', not a whole number"),
        ("seed: 1 ", "seed: 1.0 ", "seed is '1.0', not a whole number"),
        ("seed: 1 ", "seed: true ", "seed is 'true', not a whole number"),
        ("seed: 1 ", "seed: {} ", "seed is '{}', not a whole number"),
        ("seed: 1 ", "seeed: 1 ", "no key 'seeed'; did you mean seed?"),
        ("model: blstm", "model: lost", "fsdd.yaml with "),
        ("out: runs ", "out: '${oc.env:HOME}' ", "out holds '${'"),
    ],
)
def test_edited_conf_is_checked_like_a_recipe(old, new, message, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    base = tmp_path / "conf" / "base.yaml"
    base.write_text(base.read_text().replace(old, new, 1))
    real = config.root
    monkeypatch.setattr(config, "root", lambda name: tmp_path / "conf" if name == "conf" else real(name))
    monkeypatch.setattr(
        recipe, "read", lambda path, variants: recipe.Recipe(True, {}, {"data.train": "a", "data.dev": "b"})
    )
    with pytest.raises(InputError) as caught:
        config.load("fsdd", [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_disk_gets_one_line(monkeypatch):
    def full(*arguments: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(AsrError, match=r"no temporary file for the recipe \(No space left on device\); make room"):
        config.load("fsdd", [])
