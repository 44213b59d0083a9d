"""Promise 7 for audio: no damaged recording crashes, hangs, prints, or takes memory without bound.

The harness is a command of its own, which is also run with 100,000 files: `scripts/bench/fuzz_audio.py`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

HARNESS = Path(__file__).parents[2] / "scripts" / "bench" / "fuzz_audio.py"
MUTANTS = 2000


def test_two_thousand_damaged_recordings_are_read_or_refused_in_one_line(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, HARNESS, "--mutants", str(MUTANTS), "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["failures"] == {}
    assert result["stdout_bytes"] == 0
    assert result["memory_bytes"] < 300 << 20
    assert sum(result["outcomes"].values()) == MUTANTS
    assert min(result["outcomes"]["read"], result["outcomes"]["refused"]) > MUTANTS // 10  # both sides were tried


def test_the_same_number_gives_the_same_damaged_recording(tmp_path):
    for name in ("a", "b"):
        command = [sys.executable, HARNESS, "--only", "7", "--keep", tmp_path / name]
        subprocess.run(command, check=True, timeout=100)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


FAULTY = """
import os, runpy, signal, sys
from asr import audio
calls = 0
def info(content):
    global calls
    calls += 1
    number = int(sys.argv[2]) + calls - 1
    if number == 2: os.abort()
    if number == 5: raise KeyError(1)
    while number == 8: pass
    if number == 10: os.write(1, b"Error : from C")
audio.info = info
setitimer = signal.setitimer
signal.setitimer = lambda which, seconds: setitimer(which, seconds / 10)
runpy.run_path({harness!r}, run_name="__main__")
"""


def test_the_harness_sees_a_crash_an_exception_a_hang_and_what_is_printed(tmp_path):
    spec = importlib.util.spec_from_file_location("fuzz_audio", HARNESS)
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    faulty = tmp_path / "faulty.py"
    faulty.write_text(FAULTY.format(harness=str(HARNESS)))
    harness.__file__ = str(faulty)  # what it starts as a child
    result = harness.fuzz(0, 12)
    assert result["failures"] == {2: "crash", 5: "KeyError", 8: "hang"}
    assert result["stdout_bytes"] == len("Error : from C")
    assert sum(result["outcomes"].values()) == 12
