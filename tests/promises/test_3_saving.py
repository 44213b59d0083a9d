"""Promise 3, saving: a save that is killed or runs into a full disk leaves the last good one.

The harness is a command of its own, which is also run in larger sizes: `scripts/bench/kill_saves.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HARNESS = ROOT / "scripts" / "bench" / "kill_saves.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module", params=[60, pytest.param(1000, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """What the harness counted, with so many kills."""
    folder = tmp_path_factory.mktemp("saves")
    command = [
        sys.executable,
        str(HARNESS),
        "--kills",
        str(request.param),
        "--limits",
        "50",
        "--megabytes",
        "1",
    ]
    command += ["--folder", str(folder), "--out", str(folder / "result.json")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["kills"]["kills"] == request.param
    return result


def test_no_sigkill_leaves_a_state_or_model_that_cannot_be_read(found):
    assert found["kills"]["unreadable"] == 0


def test_after_a_sigkill_the_last_committed_save_or_the_next_is_there(found):
    assert found["kills"]["lost"] == 0


def test_what_killed_saves_leave_behind_is_swept(found):
    assert found["kills"]["interrupted"] > 0, "no kill fell into a write: the test has shown nothing"
    assert found["kills"]["strays"] == 0


def test_the_harness_finds_the_files_that_writing_in_place_leaves_unreadable(found):
    assert found["control, in place"]["unreadable"] > 0


def test_a_full_disk_ends_a_save_in_one_line_and_the_one_before_loads(found):
    assert found["limits"] == found["limits"] | {
        "limits": 50,
        "not one line": 0,
        "unreadable": 0,
        "strays": 0,
    }
