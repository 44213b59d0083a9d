"""Several processes train as one does: two or three of them over gloo, on a corpus of tones."""

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import tones
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import ended, run_team, wait_for_state

from asr import batches, checkpoint, config, distributed, run, train
from asr.distributed import Team
from asr.errors import InputError

PLAIN = ["augment=none", "model.dropout=0.0"]  # dropout's draws are each process's own

SHORT = ["data.batch_seconds=2"]  # several steps an epoch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"), train=21, dev=5)


def trainer(corpus, tmp_path, name, *overrides, stop_after=None, epochs=2):
    """What a process does: train a run of that name, stopped after so many steps; returns its weights and metrics."""
    recipe = tones.write_recipe(corpus, epochs)
    chosen = config.load(str(recipe), [f"out={tmp_path}/runs", f"name={name}", *overrides])

    def work(team):
        asked = 0

        def stop():
            nonlocal asked
            asked += 1
            return 143 if stop_after and asked == stop_after and team.rank == team.size - 1 else None

        result = train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None, stop=stop, team=team)
        return outcome(result.folder)

    return work


def outcome(folder):
    _, weights = checkpoint.load_model(folder / "model.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["timing"]
    digest = hashlib.sha256(b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights)))
    return {"digest": digest.hexdigest(), "metrics": lines}


def check_alike(one, other):
    """Equal counts; sums in another order differ in their last bits, the largest seen by 5e-7."""
    assert len(one["metrics"]) == len(other["metrics"])
    for a, b in zip(one["metrics"], other["metrics"], strict=True):
        assert (a["step"], a["dev"]["count"], a["best"]) == (b["step"], b["dev"]["count"], b["best"])
        for key in ("loss", "gradient_norm", "blank_rate"):
            assert a["train"][key] == pytest.approx(b["train"][key], rel=1e-5)
        assert a["dev"]["loss"] == pytest.approx(b["dev"]["loss"], rel=1e-5)


@pytest.mark.parametrize("overrides", [[], ["training.accumulate=2"]], ids=["", "accumulated"])
def test_two_processes_train_as_one_with_the_doubled_batch(corpus, tmp_path, overrides):
    plain = [*PLAIN, *overrides]
    [one] = run_team(1, tmp_path, trainer(corpus, tmp_path, "one", *plain, "data.batch_seconds=6"))
    two = run_team(2, tmp_path, trainer(corpus, tmp_path, "two", *plain, "data.batch_seconds=3"))
    assert two[0] == two[1]
    check_alike(one, two[0])


def test_a_stopped_run_of_two_goes_on_to_the_bits_of_one_that_was_not(corpus, tmp_path):
    whole = run_team(2, tmp_path, trainer(corpus, tmp_path, "whole", *SHORT))
    stopped = run_team(2, tmp_path, trainer(corpus, tmp_path, "stopped", *SHORT, stop_after=4))
    assert [(end["kind"], end["status"]) for end in stopped] == [("AsrError", 143), ("ToldElsewhere", 143)]
    assert "state saved" in stopped[0]["error"]
    assert run_team(2, tmp_path, trainer(corpus, tmp_path, "stopped", *SHORT)) == whole


@pytest.mark.parametrize("processes", [1, 3])
def test_another_number_of_processes_goes_on_with_the_same_batches(corpus, tmp_path, processes):
    whole = run_team(2, tmp_path, trainer(corpus, tmp_path, "whole", *PLAIN, *SHORT))
    run_team(2, tmp_path, trainer(corpus, tmp_path, "stopped", *PLAIN, *SHORT, stop_after=4))
    others = run_team(processes, tmp_path, trainer(corpus, tmp_path, "stopped", *PLAIN, *SHORT))
    assert all(other == others[0] for other in others)
    check_alike(whole[0], others[0])


@pytest.mark.parametrize(("then", "now"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 2), (4, 1), (5, 3)])
def test_an_epoch_has_every_utterance_once_and_as_many_steps_on_every_process(corpus, tmp_path, then, now):
    recipe = tones.write_recipe(corpus)
    chosen = config.load(str(recipe), ["data.batch_seconds=2", "training.accumulate=2"])
    parts = run.Run(chosen, lambda line: None, Team(0, 1))
    parts.processes = then
    everything = [row for group in parts.groups(1) for row in group]
    seen, ends = [], []
    for rank in range(now):
        parts.team = Team(rank, now)
        shares = parts.shares(1)
        seen += [row for share in shares if share.counts for row in share.rows]
        ends.append([(share.ends_batch, share.ends_step) for share in shares])
        assert all(share.rows for share in shares)
    assert sorted(seen) == sorted(everything)
    assert all(other == ends[0] for other in ends)
    assert sum(end for end, _ in ends[0]) == len(parts.groups(1))


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=40), st.integers(1, 9))
def test_a_batch_is_dealt_out_whole_and_no_share_is_longer_by_more_than_an_utterance(seconds, shares):
    dealt = batches.deal(seconds, shares)
    assert sorted(index for share in dealt for index in share) == list(range(len(seconds)))
    loads = [sum(seconds[index] for index in share) for share in dealt]
    assert max(loads) - min(loads) <= max(seconds) + 1e-9
    assert batches.deal(seconds, 1) == [list(range(len(seconds)))]


def test_what_processes_tell_each_other_arrives_whole(tmp_path):
    def work(team):
        told = team.gather({"rank": team.rank, "text": "é" * 1000 * team.rank, "number": 0.1 + team.rank})
        state = ({"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.5)}, {"x": [1]}) if team.is_first else None
        tensors, values = team.share_state(state)
        return [told, {name: tensor.tolist() for name, tensor in tensors.items()}, values, team.share(team.rank)]

    told = [{"rank": rank, "text": "é" * 1000 * rank, "number": 0.1 + rank} for rank in range(2)]
    expected = [told, {"a": [[0, 1, 2], [3, 4, 5]], "b": 0.5}, {"x": [1]}, 0]
    assert run_team(2, tmp_path, work) == [expected, expected]


def test_the_error_of_one_process_ends_all_and_is_told_once(corpus, tmp_path):
    recipe = tones.write_recipe(corpus)
    chosen = config.load(str(recipe), [f"out={tmp_path}/runs"])

    def work(team):
        original = run.examples.Loader.batch

        def batch(self, rows, epoch=None):
            if team.rank == 1 and epoch == 1:
                raise InputError("x.flac: cut short")
            return original(self, rows, epoch)

        run.examples.Loader.batch = batch
        return train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None, team=team).epochs

    first, second = run_team(2, tmp_path, work)
    assert (first["kind"], first["status"]) == ("ToldElsewhere", 1)
    assert (second["kind"], second["error"]) == ("InputError", "x.flac: cut short")


def test_processes_with_different_settings_do_not_start(corpus, tmp_path):
    recipe = tones.write_recipe(corpus)

    def work(team):
        chosen = config.load(str(recipe), [f"out={tmp_path}/runs", f"optim.lr=0.0{team.rank + 1}"])
        return train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None, team=team).epochs

    first, second = run_team(2, tmp_path, work)
    assert first["error"] == "the processes differ in their settings or manifests; start all of them alike"
    assert second["status"] == 2


def test_a_killed_process_ends_the_other_with_a_line_and_the_state_is_whole(corpus, tmp_path):
    overrides = ["training.save_minutes=0", *SHORT]
    whole = run_team(2, tmp_path, trainer(corpus, tmp_path, "whole", *overrides))
    training = trainer(corpus, tmp_path, "killed", *overrides)

    def work(team):
        update, steps = train._update, []

        def dying(*arguments):
            update(*arguments)
            steps.append(1)
            if team.rank == 1 and len(steps) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        train._update = dying
        return training(team)

    first, second = run_team(2, tmp_path, work)
    assert second is None
    assert first["status"] == 1
    assert first["error"].startswith("process 0: another process of this run is gone")
    assert run_team(2, tmp_path, training) == whole


def test_a_skipped_step_is_skipped_by_all_and_its_culprit_named(corpus, tmp_path):
    recipe = tones.write_recipe(corpus, 1)
    chosen = config.load(str(recipe), [f"out={tmp_path}/runs"])

    def work(team):
        original, lines = run.Run.losses, []

        def losses(self, batch, model=None):
            found, log_probs, lengths = original(self, batch, model)
            wrong = torch.tensor([float("nan") if name == "train7" else 1.0 for name in batch.utterances])
            return found * wrong, log_probs, lengths

        run.Run.losses = losses
        train.train(chosen, "tones", say=lines.append, show=lambda progress: None, team=team)
        return lines

    first, second = run_team(2, tmp_path, work)
    assert second == []
    [line] = [line for line in first if "not finite" in line]
    assert line.endswith("step skipped: train7")
    assert len(list((tmp_path / "runs" / "tones" / "seed1").glob("not_finite-*.safetensors"))) == 1


def test_a_process_that_knows_no_number_of_its_own_says_how_to_start(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(InputError, match="WORLD_SIZE is 2, but RANK is not set; start with torchrun"),
        distributed.joined(),
    ):
        pass


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_what_torchrun_tells_in_numbers_is_a_number(monkeypatch, name):
    for known in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(known, "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv(name, "two")
    with pytest.raises(InputError, match=f"{name}=two: not a whole number; start with torchrun"), distributed.joined():
        pass


@pytest.mark.parametrize(
    ("name", "gpus", "local", "expected"),
    [
        ("auto", 2, 1, "cuda:1"),
        ("cpu", 2, 1, "cpu"),
        ("cuda:0", 2, 1, "one GPU for 2 processes"),
        ("auto", 1, 1, "more processes than the 1 GPUs here"),
    ],
)
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch, name, gpus, local, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    team = Team(rank=local, size=2, local=local)
    if expected.startswith(("cuda", "cpu")):
        assert team.device(name) == expected
    else:
        with pytest.raises(InputError, match=expected):
            team.device(name)


# As a user starts it


def torchrun(corpus, tmp_path, *overrides):
    """Start two processes with torchrun, at a port that it finds free itself."""
    recipe = tones.write_recipe(corpus)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1", "-m", "asr.train", f"recipe={recipe}"]
    settings = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    command += [f"out={tmp_path}/runs", *overrides]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_torchrun_trains_with_two_processes_and_one_speaks(corpus, tmp_path):
    process = torchrun(corpus, tmp_path)
    with ended(process):
        out, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert out.count("dev WER") == 1
    assert errors.count("begins; 21 utterances") == 1
    result = json.loads((tmp_path / "runs" / "tones" / "seed1" / "result.json").read_text())
    assert result["training"]["processes"] == 2


def test_a_signal_to_torchrun_saves_the_state_and_says_how_to_go_on(corpus, tmp_path):
    process = torchrun(corpus, tmp_path, "training.save_minutes=0", "training.epochs=2000")
    state = tmp_path / "runs" / "tones" / "seed1" / "state"
    with ended(process):
        wait_for_state(state, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=180)
    assert process.returncode != 0
    told = [line for line in errors.splitlines() if line.startswith("asr: ")]
    assert len(told) == 1, errors
    assert "stopped" in told[0] and "run the same command to go on" in told[0]
    tensors, _ = checkpoint.load_state(state)
    assert "random.cpu.1" in tensors
