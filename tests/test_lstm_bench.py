"""The command for a first run on a GPU: it says when there is none, and its steps run on the emulated device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulation import emulator

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench" / "lstm_gpu.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a CUDA device runs it")
def test_without_a_device_it_says_so(tmp_path):
    done = run("--out", str(tmp_path / "results.json"))
    assert (done.returncode, done.stderr) == (1, "lstm_gpu: there is no CUDA device here\n")


@pytest.mark.slow
@emulator.needs_compiler
def test_its_steps_run_and_are_not_run_twice(tmp_path):
    out = tmp_path / "results.json"
    done = run("--out", str(out), "--card", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(out.read_text())["steps"]
    names = {"facts", "smallest", "scans", "timing", "correctness", "repeatability", "capture", "fuzz"}
    assert set(steps) == names
    assert all(step["status"] == "ok" and len(step["records"]) == 1 for step in steps.values())
    again = run("--out", str(out), "--card", "cpu")
    assert again.stdout.count("finished before") == len(names)


@pytest.mark.slow
@emulator.needs_compiler
def test_a_step_that_was_cut_off_goes_on_behind_its_last_line(tmp_path):
    out = tmp_path / "results.json"
    record = {"hidden": 64, "ok": True}
    out.write_text(json.dumps({"steps": {"smallest": {"records": [record], "status": "out of time"}}}))
    run("--out", str(out), "--card", "cpu", "--steps", "smallest")
    assert json.loads(out.read_text())["steps"]["smallest"]["records"] == [record]
