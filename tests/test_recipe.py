"""Recipe files: ours, one's own, a run's settings; whatever is wrong in one gets a line with its place."""

import dataclasses
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

from asr import config, recipe
from asr.errors import InputError

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
BASE = "defaults:\n  - base\n  - _self_\ndata:\n  train: a.jsonl\n  dev: b.jsonl\n"


@pytest.fixture(scope="module")
def fsdd() -> config.Config:
    return config.load("fsdd", [])


@pytest.fixture
def written(tmp_path):
    """Writes a recipe file; returns its path as text."""

    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_short_composes_and_survives_yaml(path, tmp_path):
    assert len(path.read_text().splitlines()) <= 30
    loaded = config.load(path.stem, ["name=yes", "data.test=1e3", "out=é x: #1"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(loaded), encoding="utf-8")
    assert config.load(str(tmp_path / "config.yaml"), []) == loaded
    assert config.load(str(path), []) == config.load(path.stem, [])


def test_recipes_hold_no_code():
    assert {path.suffix for path in (ROOT / "recipes").rglob("*") if path.is_file()} <= {".yaml", ".md"}


_TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)


@hypothesis.settings(max_examples=150, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(text=_TEXTS, lr=st.floats(1e-300, 10), seed=st.integers(0, 2**31 - 1))
def test_any_text_and_number_survives_yaml_and_the_command_line(text, lr, seed, fsdd, tmp_path):
    hypothesis.assume(text.strip() and "${" not in text and text not in ("???", "null", "~"))
    hypothesis.assume(not text.startswith("range("))
    _, values = config._read_overrides([f"out={text}", f"optim.lr={lr!r}", f"seed={seed}"])
    assert values == {"out": text, "optim.lr": lr, "seed": seed}
    changed = dataclasses.replace(fsdd, out=text, seed=seed, optim=dataclasses.replace(fsdd.optim, lr=lr))
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml(changed), encoding="utf-8", newline="")
    assert recipe.read(path, config.groups()).values == config._flatten(dataclasses.asdict(changed))


@pytest.mark.parametrize(
    "text",
    ["1e3", "null", "yes", "0x1F", "1:30", "2024-01-01", "~", "- a", "\u2028\ufeff é", "[1]", "\\", "'\""],
)
def test_texts_that_yaml_might_mistake_survive_hydra(text, written, fsdd):
    changed = dataclasses.replace(fsdd, out=text)
    assert config.load(written(config.to_yaml(changed)), []) == changed


RECIPE_FAULTS = [
    ("seed: 1\nseeed: 2\n", "mine.yaml: line 2: no key 'seeed'; did you mean seed?"),
    ("model:\n  hiden: 2\n", "line 2: no key 'model.hiden'; did you mean model.hidden?"),
    ("seed: 2.5\n", "line 1: seed is '2.5', not a whole number"),
    ("seed: 1\nseed: 2\n", "line 2: 'seed' stands twice; leave one out"),
    ("model: {hidden: 1, hidden: 2}\n", "line 1: 'model.hidden' stands twice"),
    ("model.hidden: 2\n", "line 1: a key is one word, those of a section stand indented below it"),
    ("[1, 2]: 2\n", "line 1: a key is one word"),
    ("model: tiny\n", "line 1: model holds keys (stack, convolutions, channels"),
    ("model: tiny\n", "defaults choose variants: '- override model: CHOICE'"),
    ("data:\n", "line 1: data holds keys (corpus, dir"),
    ("seed: [1]\n", "line 1: seed is not a whole number"),
    ("seed: {a: 1}\n", "line 1: seed is not a whole number"),
    ("model:\n  convolutions: [[1], 2]\n", "line 2: model.convolutions is not a list such as [1,2]"),
    ("model:\n  convolutions: {a: 1}\n", "line 2: model.convolutions is not a list such as [1,2]"),
    ("seed:\n", "line 1: seed is 'null', not a whole number"),
    ("out: ''\n", "line 1: out is empty; give it a value"),
    ("seed: 1\n", "mine.yaml: no value for name; set it in the recipe or by name=VALUE"),
    (
        "defaults: [base, _self_]\n",
        "mine.yaml: no value for data.train; set it in the recipe or by data.train=VALUE",
    ),
    (BASE + "features:\n  high: 9000\n", "mine.yaml: features.high=9000 is above half the rate"),
    ("seed: 'a\n", "no valid YAML (found unexpected end of stream)"),
    ("a: b: c\n", "line 1: no valid YAML (mapping values are not allowed here)"),
    ("", "no settings in it; a recipe holds 'key: value' lines"),
    ("- seed\n", "no settings in it"),
    ("seed\n", "no settings in it"),
    (
        "defaults: base\n",
        "line 1: defaults are '- base', any '- override GROUP: CHOICE', '- _self_', in this order",
    ),
    ("defaults:\n  - _self_\n  - base\n", "line 1: defaults are"),
    ("defaults:\n  - base\n", "line 1: defaults are"),
    ("defaults:\n  - base\n  - fsdd\n  - _self_\n", "line 1: defaults are"),
    ("defaults:\n  - base\n  - model: tiny\n  - _self_\n", "line 3: defaults are"),
    ("defaults:\n  - base\n  - override model: [tiny]\n  - _self_\n", "line 3: defaults are"),
    (
        "defaults:\n  - base\n  - override modle: tiny\n  - _self_\n",
        "line 3: no group 'modle'; did you mean model?",
    ),
    (
        "defaults:\n  - base\n  - override xyzzy: tiny\n  - _self_\n",
        "no group 'xyzzy'; there are features, augment",
    ),
    (
        "defaults:\n  - base\n  - override model: tyni\n  - _self_\n",
        "line 3: no model 'tyni'; did you mean tiny?",
    ),
    ("defaults:\n  - base\n  - override data: x\n  - _self_\n", "line 3: data has no variants; set its keys"),
    (
        "defaults:\n  - base\n  - override model: tiny\n  - override model: tiny\n  - _self_\n",
        "line 4: model is chosen twice; leave one out",
    ),
]


@pytest.mark.parametrize(("text", "message"), RECIPE_FAULTS, ids=[message[:60] for _, message in RECIPE_FAULTS])
def test_wrong_recipe_gets_one_line_with_file_and_line(text, message, written):
    with pytest.raises(InputError) as caught:
        config.load(written(text), [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


def test_a_recipe_of_ones_own_says_what_differs(written):
    text = "# Mine\ndefaults: [base, override model: tiny, _self_]\nname: 1e3\ndata:\n  train: a\n  dev: b\n"
    loaded = config.load(written(text + "model:\n  convolutions:\n    - 2\n  channels: 16\n"), ["optim.lr=0.5"])
    assert (loaded.name, loaded.data.train, loaded.model.hidden) == ("1e3", "a", 128)
    assert (loaded.model.convolutions, loaded.model.channels, loaded.optim.lr) == ([2], 16, 0.5)


def test_a_run_is_repeated_with_other_values_and_variants(written):
    an4 = config.load("an4", [])
    path = written(config.to_yaml(an4))
    assert config.load(path, ["seed=5"]) == dataclasses.replace(an4, seed=5)
    light = config.load("an4", ["augment=light"])
    assert config.load(path, ["augment=light"]) == light != an4
    assert config.load(path, ["augment=light", "augment.join=5"]).augment.join == 5


def test_files_beside_a_recipe_are_not_read(written, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("base.yaml", "model/tiny.yaml"):
        (tmp_path / name).write_text("hidden: ${oc.env:HOME}\n")
    path = written(BASE.replace("- base\n", "- base\n  - override model: tiny\n"))
    shipped = yaml.safe_load((ROOT / "conf/model/tiny.yaml").read_text())
    assert dataclasses.asdict(config.load(path, []).model) == shipped


def test_error_of_an_unreadable_recipe_names_the_reason(tmp_path):
    folder = tmp_path / "x.yaml"
    folder.mkdir()
    with pytest.raises(InputError, match=r"x.yaml: not a file; a recipe is a YAML file"):
        config.load(str(folder), [])
    with pytest.raises(InputError, match=r"check the path of the recipe"):
        config.load("a\0b.yaml", [])
