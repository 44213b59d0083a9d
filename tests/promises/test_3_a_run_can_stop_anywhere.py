"""Promise 3: killed at any moment and started again, training ends as if nothing had happened, to the bit.

The moments are all events of a run: every optimiser step, and in every save the moment before and after the file is
synced and renamed. `ASR_KILL_POINTS` sets how many of them are tried (20; 200 with --slow).
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tones
import torch

from asr import checkpoint, config, files, manifest, train
from asr.errors import AsrError
from asr.recognizer import load

POINTS = int(os.environ.get("ASR_KILL_POINTS", "20"))
EPOCHS = 3
OFTEN = ["training.save_minutes=0", "data.batch_seconds=4", "augment.join=2", "model.context=10"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"), train=20, dev=4)


@pytest.fixture(scope="module")
def settings(corpus):
    recipe = tones.write_recipe(corpus, EPOCHS)
    return config.load(str(recipe), OFTEN)


def run_once(settings, name, kill_at=None):
    """Train in a child process that is killed at the event of that number; returns its status and its events."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            count_events(writer, kill_at)
            chosen = config.load(str(Path(settings.out).parent / "tones.yaml"), overrides(settings, name))
            train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as events:
        count = len(events.read())
    _, status = os.waitpid(child, 0)
    return status, count


def overrides(settings, name):
    return [*OFTEN, f"out={Path(settings.out).parent / name}"]


def count_events(writer, kill_at):
    """Make every optimiser step and every step of a save an event; die by SIGKILL at one."""
    seen = 0

    def event():
        nonlocal seen
        seen += 1
        os.write(writer, b".")
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(module, name):
        original = getattr(module, name)

        def wrapped(*arguments, **keywords):
            event()
            result = original(*arguments, **keywords)
            event()
            return result

        setattr(module, name, wrapped)

    around(train, "_update")
    around(files.os, "replace")
    around(files.os, "fsync")


def outcome(settings, name):
    """What must be equal: weights, card (but for the run's own folder), metrics (but for timing)."""
    folder = Path(settings.out).parent / name / "tones" / "seed1"
    card, weights = checkpoint.load_model(folder / "model.safetensors")
    del card["training"]["settings"]["out"], card["training"]["commit"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["timing"]
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest(), card, lines


@pytest.fixture(scope="module")
def uninterrupted(settings):
    status, events = run_once(settings, "uninterrupted")
    assert status == 0
    return outcome(settings, "uninterrupted"), events


def check_kill_point(settings, uninterrupted, point):
    expected, _ = uninterrupted
    name = f"killed{point}"
    status, _ = run_once(settings, name, kill_at=point)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    status, _ = run_once(settings, name)
    # A kill behind the last rename leaves a finished run: it is told, and nothing is left to do.
    assert status == 0 or (Path(settings.out).parent / name / "tones" / "seed1" / "result.json").exists()
    assert outcome(settings, name) == expected
    strays = list((Path(settings.out).parent / name).rglob(".*.tmp"))
    assert not strays or status != 0


@pytest.mark.parametrize("share", range(20))
def test_a_killed_run_ends_to_the_bit_as_one_that_was_not(settings, uninterrupted, share):
    check_kill_point(settings, uninterrupted, 1 + (uninterrupted[1] - 1) * share // 19)


@pytest.mark.slow
def test_a_run_killed_at_any_of_many_points_ends_to_the_bit_as_one_that_was_not(settings, uninterrupted):
    events = uninterrupted[1]
    for point in sorted({1 + (events - 1) * n // (POINTS - 1) for n in range(POINTS)}):
        check_kill_point(settings, uninterrupted, point)


def test_a_run_killed_again_and_again_gets_there(settings, uninterrupted):
    attempts = 1
    while run_once(settings, "often", kill_at=50)[0] and attempts < 100:
        attempts += 1
    assert attempts > 3
    assert outcome(settings, "often") == uninterrupted[0]


def test_the_decoded_dev_set_is_the_same_after_a_resume(settings, uninterrupted, corpus):
    run_once(settings, "decoded", kill_at=uninterrupted[1] // 2)
    run_once(settings, "decoded")
    heard = []
    for name in ("uninterrupted", "decoded"):
        model = Path(settings.out).parent / name / "tones" / "seed1" / "model.safetensors"
        recognizer = load(model, "cpu")
        heard.append([recognizer.transcribe(u).text for u in manifest.read(corpus / "dev.jsonl")])
    assert heard[0] == heard[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_says_how_to_go_on(settings, uninterrupted, number, status):
    name = f"signal{status}"
    command = [sys.executable, "-m", "asr.cli", "train", f"recipe={Path(settings.out).parent / 'tones.yaml'}"]
    command += [*overrides(settings, name), "training.epochs=2000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    state = Path(settings.out).parent / name / "tones" / "seed1" / "state"
    deadline = time.monotonic() + 120
    while not list(state.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "run the same command to go on" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_stop_in_the_middle_of_an_epoch_and_while_dev_is_decoded_lose_nothing(settings, uninterrupted):
    chosen = config.load(str(Path(settings.out).parent / "tones.yaml"), overrides(settings, "stopped"))
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return 130 if asked % 3 == 0 else None

    for _ in range(100):
        try:
            train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None, stop=stop)
            break
        except AsrError as error:
            assert error.status == 130
    assert asked > 9
    assert outcome(settings, "stopped") == uninterrupted[0]


def test_the_draws_of_an_utterance_do_not_depend_on_torchs_generator(settings):
    from asr import run

    parts = run.Run(settings, lambda line: None)
    first = parts.train.batch([(0,), (1, 2)], epoch=1).features
    torch.manual_seed(99)
    assert torch.equal(first, parts.train.batch([(0,), (1, 2)], epoch=1).features)
