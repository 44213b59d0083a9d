"""docs/configuration.md: each command in it does what stands there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from asr import config
from asr.errors import AsrError

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (asr train .*)\n(?:(asr: .*)\n)?", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("command", "answer"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands_of_the_documentation_do_what_it_says(command, answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(re.findall(r"```yaml\n(# mine.yaml.*?)```", PAGE, re.DOTALL)[0], encoding="utf-8")
    run = Path("runs/fsdd/seed1")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml(config.load("fsdd", [])), encoding="utf-8")
    words = shlex.split(command)[2:]
    flags = [word for word in words if word.startswith("--")]
    name = next((word.removeprefix("recipe=") for word in words if word.startswith("recipe=")), None)
    overrides = [word for word in words if not word.startswith(("--", "recipe="))]
    assert set(flags) <= {"--multirun", "--dry-run", "--help"}
    try:
        for job in config.expand(overrides) if "--multirun" in flags else [overrides]:
            if name:
                config.load(name, job)
        said = ""
    except AsrError as error:
        said = f"asr: {error}"
    assert said == answer


def test_documentation_names_every_variant_and_shows_enough():
    assert len(COMMANDS) >= 19
    assert sum(bool(answer) for _, answer in COMMANDS) >= 9
    for group, choice in itertools.chain.from_iterable([(g, c) for c in found] for g, found in config.groups().items()):
        assert re.search(rf"`{group}` \|.*`{choice}`", PAGE), (group, choice)
