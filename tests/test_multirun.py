"""`asr train --multirun`: jobs in processes of their own."""

import argparse
import os
import signal
import subprocess
import sys

import pytest
import tones
from processes import ended, wait_for_state

from asr import cli, config
from asr.cli import training
from asr.errors import InputError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"), train=8, dev=2)


def start(corpus, tmp_path, *arguments, epochs=1):
    recipe = tones.write_recipe(corpus, epochs)
    command = [sys.executable, "-m", "asr.cli", "train", f"recipe={recipe}", f"out={tmp_path}/runs", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )


def finish(process, timeout=180):
    with ended(process):
        out, errors = process.communicate(timeout=timeout)
    return process.returncode, out.splitlines(), errors


def test_a_failed_job_is_named_the_others_go_on_and_finished_ones_are_not_trained_again(corpus, tmp_path):
    wrong = f"{corpus}/train.jsonl,nowhere.jsonl"
    jobs = (f"data.train={wrong}", "seed=1,2", "--multirun", "--jobs", "2")
    status, table, errors = finish(start(corpus, tmp_path, *jobs))
    assert status == 1
    named = [line for line in errors.splitlines() if line.startswith("asr: ")]
    assert len(named) == 2
    assert all("this job failed (exit status" in line and "nowhere.jsonl" in line for line in named)
    assert [line.count("dev WER") for line in table[:4]] == [1, 1, 0, 0]
    assert "mean of 2 runs" in table[4]
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert len(models) == 2
    again, same, errors = finish(start(corpus, tmp_path, *jobs))
    assert (again, same) == (1, table)
    assert errors.count("finished already") == 2
    assert models == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}


def test_a_signal_is_passed_on_and_no_new_job_starts(corpus, tmp_path):
    process = start(corpus, tmp_path, "seed=1,2", "--multirun", "training.save_minutes=0", epochs=5000)
    state = tmp_path / "runs" / "tones" / "seed1" / "state"
    with ended(process):
        wait_for_state(state, process)
        process.send_signal(signal.SIGTERM)
        status, table, errors = finish(process)
    assert status == 143, errors
    assert "run the same command to go on" in errors
    assert [line.split("\t")[1] for line in table] == ["not finished", "not finished"]
    assert not (tmp_path / "runs" / "tones" / "seed2").exists()


def test_the_slurm_script_does_each_job_as_a_task_of_the_array(corpus, tmp_path):
    """A stand-in for sbatch reads the array's range from the script and runs its tasks one after the other."""
    status, script, errors = finish(start(corpus, tmp_path, "seed=1,2", "--multirun", "--slurm-script", "--jobs", "1"))
    assert (status, errors) == (0, "")
    assert not (tmp_path / "runs").exists()
    [array] = [line.partition("--array=")[2] for line in script if "--array=" in line]
    assert array == "1-2%1"
    (tmp_path / "runs.sbatch").write_text("\n".join(script))
    for task in ("1", "2"):
        settings = os.environ | {"SLURM_ARRAY_TASK_ID": task}
        subprocess.run(
            ["bash", "runs.sbatch"], cwd=tmp_path, env=settings, check=True, capture_output=True, timeout=120
        )
    assert {path.parent.name for path in (tmp_path / "runs").rglob("result.json")} == {"seed1", "seed2"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--jobs", "2"], "--jobs and --slurm-script are for --multirun"),
        (["--multirun", "--jobs", "0"], "--jobs is 0; use a whole number from 1"),
        (["--multirun", "--overfit-one-batch"], "--multirun has no effect together with --overfit-one-batch"),
    ],
)
def test_flags_that_have_no_effect_together_are_an_error(arguments, problem, capsys):
    assert cli.main(["train", "recipe=fsdd", *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_torchrun_and_jobs_of_its_own_do_not_go_together(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["train", "recipe=fsdd", "--multirun", "seed=1,2"]) == 2
    assert "--multirun has no effect together with torchrun; leave one out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"overfit_one_batch": True}, "--overfit-one-batch is for one process; start it without torchrun"),
        ({}, "data/fsdd/train.jsonl is missing; run `asr prepare fsdd` before torchrun"),
    ],
)
def test_what_several_processes_do_not_do_is_refused(flags, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = argparse.Namespace(**({"overfit_one_batch": False} | flags))
    with pytest.raises(InputError, match=problem) as caught:
        training._check_many(args, config.load("fsdd", []))
    assert caught.value.status == 2


def test_a_run_finished_with_other_settings_is_no_result_of_these(corpus, tmp_path):
    assert finish(start(corpus, tmp_path, "seed=1,2", "--multirun"))[0] == 0
    status, table, errors = finish(start(corpus, tmp_path, "seed=1,2", "model.layers=2", "--multirun"))
    assert (status, table) == (1, [])
    assert errors.count("holds a finished run with model.layers=1, not 2") == 2
