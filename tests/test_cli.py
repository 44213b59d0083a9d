import json
import shutil
from pathlib import Path

import pytest
import small_model
import soundfile
import tones

import asr
from asr import manifest
from asr.cli import main
from asr.manifest import Utterance
from asr.transcript import formats

FSDD = sorted((Path(__file__).parent / "data" / "fsdd").glob("*.flac"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small_model.write(tmp_path_factory.mktemp("model") / "model.safetensors"))


def heard(model, path):
    return asr.load(model, "cpu").transcribe(path).text


# transcribe


def test_one_file_gives_its_text_on_standard_output(run, model):
    assert run("transcribe", "-q", "-m", model, FSDD[0]) == (0, heard(model, FSDD[0]) + "\n", [])


def test_several_files_stand_behind_their_names(run, model):
    _, out, _ = run("transcribe", "-q", "-m", model, *FSDD[:3])
    assert out.splitlines() == [f"{path}\t{heard(model, path)}" for path in FSDD[:3]]


def test_a_folder_is_its_audio_files(run, model, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    shutil.copy(FSDD[0], tmp_path / "in" / "b.flac")
    shutil.copy(FSDD[1], tmp_path / "in" / "deep" / "a.FLAC")
    (tmp_path / "in" / "notes.txt").write_text("not audio")
    _, out, _ = run("transcribe", "-q", "-m", model, "in")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["in/b.flac", "in/deep/a.FLAC"]


def test_an_empty_folder_is_an_error(run, model, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, errors = run("transcribe", "-q", "-m", model, "empty")
    assert (status, errors) == (
        1,
        ["asr: empty: no audio file in this folder; name files, or another folder"],
    )


def test_standard_input_is_a_recording(run, model, monkeypatch):
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FSDD[0].read_bytes())))
    assert run("transcribe", "-q", "-m", model, "-")[1] == heard(model, FSDD[0]) + "\n"


def test_a_manifest_keeps_its_keys_and_gains_pred_text(run, model, tmp_path):
    lines = [Utterance(str(p), text="one", id=p.stem, extra={"mark": n}) for n, p in enumerate(FSDD[:2])]
    manifest.write(tmp_path / "m.jsonl", lines)
    _, out, _ = run("transcribe", "-q", "-m", model, "m.jsonl", "-f", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    assert [(r["id"], r["text"], r["mark"], r["pred_text"]) for r in records] == [
        (p.stem, "one", n, heard(model, p)) for n, p in enumerate(FSDD[:2])
    ]


def test_all_formats_are_written_to_a_folder(run, model, tmp_path):
    status, out, _ = run("transcribe", "-m", model, *FSDD[:2], "-o", "out", "-f", "all")
    assert (status, out) == (0, "")
    expected = {f"{path.stem}.{form}" for path in FSDD[:2] for form in formats}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    told = json.loads((tmp_path / "out" / f"{FSDD[0].stem}.json").read_text())
    assert (told["version"], told["text"], told["audio_filepath"]) == (1, heard(model, FSDD[0]), str(FSDD[0]))
    words = [word for segment in told["segments"] for word in segment["words"]]
    assert " ".join(word["word"] for word in words) == told["text"]
    assert all(0 <= w["start"] <= w["end"] <= told["duration"] and 0 <= w["probability"] <= 1 for w in words)


def test_one_bad_file_of_many_does_not_stop_the_others(run, model, tmp_path):
    """R13: all but the bad one are transcribed, the bad one is named, and --skip-existing does only it again."""
    (tmp_path / "in").mkdir()
    for n in range(99):
        shutil.copy(FSDD[n % len(FSDD)], tmp_path / "in" / f"{n:03}.flac")
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF, but nothing behind it")
    status, _, errors = run("transcribe", "-q", "-m", model, "in", "-o", "out")
    assert status == 1
    assert errors[0].startswith("asr: in/bad.wav")
    assert errors[-1] == "asr: 1 of 100 inputs failed"
    assert len(list((tmp_path / "out").glob("*.txt"))) == 99
    [failure] = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["audio_filepath"] == "in/bad.wav"
    shutil.copy(FSDD[0], tmp_path / "in" / "bad.wav")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.txt")}
    status, _, told = run("transcribe", "-m", model, "in", "-o", "out", "--skip-existing")
    assert status == 0
    assert any("99 of 100 inputs have their outputs already" in line for line in told)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (tmp_path / "out" / "bad.txt").exists()
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_two_inputs_of_one_stem_are_refused_before_work_starts(run, model, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(FSDD[0], tmp_path / folder / "x.flac")
    status, _, [error] = run("transcribe", "-m", model, "a/x.flac", "b/x.flac", "-o", "out")
    assert status == 2
    assert "a/x.flac and b/x.flac would both be written to out/x" in error
    assert not (tmp_path / "out").exists()


def test_a_channel_is_picked_and_resampling_is_said(run, model, tmp_path):
    import numpy as np

    samples = soundfile.read(FSDD[0], dtype="float32")[0]
    soundfile.write(tmp_path / "two.wav", np.stack([np.zeros_like(samples), samples], 1), 8000, subtype="PCM_16")
    _, out, _ = run("transcribe", "-q", "-m", model, "two.wav", "--channel", 1)
    assert out.strip() == heard(model, FSDD[0])
    status, _, errors = run("transcribe", "-q", "-m", model, "two.wav", "--channel", 5)
    assert status == 1
    assert "2" in errors[0]
    soundfile.write(tmp_path / "high.wav", samples, 16000)
    assert any("16000" in line for line in run("transcribe", "-m", model, "high.wav")[2])


# evaluate and score


def test_evaluate_prints_rates_with_intervals_and_writes_hypotheses(run, model, tmp_path):
    lines = [Utterance(str(p), text=heard(model, p) if n else "wrong", id=p.stem) for n, p in enumerate(FSDD[:6])]
    manifest.write(tmp_path / "m.jsonl", lines)
    status, out, _ = run("evaluate", "-q", "-m", model, "--manifest", "m.jsonl", "-o", "hyp.jsonl")
    assert status == 0
    assert out.startswith("WER ")
    assert "[" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("CER ")
    status, scored, _ = run("score", "hyp.jsonl", "--normalizer", "basic")
    assert scored.splitlines() == out.splitlines()[:2]


def test_evaluate_as_json_names_model_manifest_decoder_and_counts(run, model, tmp_path):
    manifest.write(tmp_path / "m.jsonl", [Utterance(str(FSDD[0]), text=heard(model, FSDD[0]))])
    _, out, _ = run("evaluate", "-q", "-m", model, "--manifest", "m.jsonl", "--json")
    told = json.loads(out)
    assert told["wer"]["errors"] == 0
    assert told["wer"]["normalizer"] == "basic"
    assert told["decoder"] == {"kind": "greedy"}
    assert len(told["model"]["sha256"]) == 64


def test_evaluate_fails_above_max_wer(run, model, tmp_path):
    manifest.write(tmp_path / "m.jsonl", [Utterance(str(FSDD[0]), text="quite another thing")])
    status, _, errors = run("evaluate", "-q", "-m", model, "--manifest", "m.jsonl", "--max-wer", 0.05)
    assert status == 1
    assert "is above --max-wer 5 %" in errors[-1]


def test_an_utterance_that_cannot_be_read_counts_as_nothing_heard_and_shows(run, model, tmp_path):
    lines = [Utterance("missing.wav", text="one two", id="x"), Utterance(str(FSDD[0]), text="", id="y")]
    manifest.write(tmp_path / "m.jsonl", lines)
    status, out, errors = run("evaluate", "-q", "-m", model, "--manifest", "m.jsonl", "--json")
    assert status == 1
    assert "m.jsonl: line 1:" in errors[0]
    assert json.loads(out)["wer"]["deletions"] == 2
    assert json.loads(out)["failures"][0]["id"] == "x"


def test_score_prints_alignments_of_what_differs(run, tmp_path):
    (tmp_path / "ref.txt").write_text("one two three\nsame\n")
    (tmp_path / "hyp.txt").write_text("one too three\nsame\n")
    status, out, _ = run("score", "ref.txt", "hyp.txt", "--align", "--bootstrap", 0)
    assert status == 0
    assert "WER 25.00 %" in out
    assert "too" in out
    assert out.count("same") == 0


def test_the_interval_may_be_drawn_over_speakers(run, tmp_path):
    lines = [Utterance("a", text="one", pred_text="one", id=str(n), speaker=f"s{n % 3}") for n in range(9)]
    manifest.write(tmp_path / "m.jsonl", lines)
    assert "3 groups" in run("score", "m.jsonl", "--by", "speaker")[1]
    manifest.write(tmp_path / "n.jsonl", [Utterance("a", text="one", pred_text="one")])
    status, _, [error] = run("score", "n.jsonl", "--by", "speaker")
    assert (status, "not every utterance names its speaker" in error) == (2, True)


# train


def test_training_by_the_command_line_ends_with_the_model_and_its_score(run, tmp_path):
    corpus = tones.write_corpus(tmp_path / "tones", train=8, dev=2)
    recipe = tones.write_recipe(corpus, epochs=1)
    status, out, errors = run("train", f"recipe={recipe}")
    assert status == 0
    assert out.startswith("dev WER ")
    assert "model.safetensors" in out
    assert any(line.startswith("epoch 1: loss") for line in errors)
    status, _, errors = run("train", f"recipe={recipe}")
    assert status == 2
    assert "this run is finished" in errors[-1]


def test_memory_that_ends_is_one_line(run, monkeypatch):
    def load(*_):
        raise MemoryError

    monkeypatch.setattr("asr.recognizer.load", load)
    assert run("transcribe", "-m", "m.safetensors", FSDD[0]) == (
        1,
        "",
        ["asr: not enough memory; take a smaller model, batch or beam"],
    )


def test_a_first_start_that_fails_does_not_bind_the_name_to_its_settings(run, tmp_path):
    corpus = tones.write_corpus(tmp_path / "tones", train=8, dev=2)
    recipe = tones.write_recipe(corpus, epochs=1)
    status, _, [line] = run("train", "-q", f"recipe={recipe}", "init_from=nowhere.safetensors")
    assert (status, "nowhere.safetensors" in line) == (2, True)
    assert run("train", "-q", f"recipe={recipe}")[0] == 0


def test_several_values_are_several_runs(run, tmp_path):
    corpus = tones.write_corpus(tmp_path / "tones", train=8, dev=2)
    recipe = tones.write_recipe(corpus, epochs=1)
    status, out, _ = run("train", "-q", f"recipe={recipe}", "seed=1,2", "--multirun")
    assert status == 0
    assert (out.count("dev WER"), "mean of 2 runs" in out) == (2, True)
    status, out, errors = run("train", f"recipe={recipe}", "seed=1,2,3", "--multirun")
    assert (status, out.count("dev WER"), "mean of 3 runs" in out) == (0, 3, True)
    assert sum("finished already" in line for line in errors) == 2


def test_a_dry_run_prints_a_recipe_and_trains_nothing(run, tmp_path):
    status, out, _ = run("train", "recipe=fsdd", "optim.lr=0.5", "--dry-run")
    assert status == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert run("train", "recipe=./mine.yaml", "--dry-run")[1] == out
    assert not (tmp_path / "runs").exists()


def test_train_help_lists_recipes_and_settings(run):
    status, out, _ = run("train", "--help")
    assert status == 0
    for word in ("fsdd", "yesno", "an4", "optim.lr", "training.epochs", "--multirun", "--overfit-one-batch"):
        assert word in out


def test_a_corpus_that_is_not_prepared_yet_is_prepared_first(run, tmp_path, monkeypatch):
    source = tmp_path / "fsdd"
    source.mkdir()
    for path in FSDD:
        shutil.copy(path, source)
    monkeypatch.setenv("ASR_DATA", str(tmp_path))
    status, _, errors = run(
        "train", "recipe=fsdd", "training.epochs=1", "data.cache_gigabytes=0", "model.hidden=8", "threads=1",
        "data.dev=data/fsdd/train.jsonl",
    )  # fmt: skip
    assert status == 0, errors
    assert (tmp_path / "data" / "fsdd" / "train.jsonl").exists()
    assert (tmp_path / "runs" / "fsdd" / "seed1" / "result.json").exists()


# What is wrong is one line, with the nearest right word


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["trian"], 2, "did you mean train?"),
        (["transcribe", "x.wav", "--modle", "m"], 2, "--model"),
        (["evaluate", "-m", "m", "--manifets", "x"], 2, "--manifest"),
        ([], 2, "VERB"),
        (["train", "recipe=fsd"], 2, "fsdd"),
        (["train"], 2, "give one recipe=NAME; recipes are"),
        (["train", "recipe=fsdd", "optim.lrr=1"], 2, "optim.lr"),
        (["train", "recipe=fsdd", "--dry-rum"], 2, "did you mean --dry-run?"),
        (["prepare", "fsddd"], 2, "fsdd"),
        (["info", "none.safetensors"], 2, "none.safetensors"),
        (["transcribe", "-m", "none.safetensors", "x.wav"], 2, "none.safetensors"),
        (["score", "none.txt", "none.txt"], 1, "none.txt"),
    ],
)
def test_a_wrong_word_is_one_line_and_the_status(run, words, status, problem):
    found, out, errors = run(*words)
    assert (found, out, len(errors)) == (status, "", 1)
    assert errors[0].startswith("asr: ")
    assert problem in errors[0]


def test_an_option_without_effect_is_an_error(run, model):
    for words in (["--skip-existing"], ["-f", "txt", "-f", "srt"]):
        status, _, [error] = run("transcribe", "-m", model, FSDD[0], *words)
        assert status == 2
        assert "needs --output-dir" in error


def test_an_unknown_format_is_named_with_the_known_ones(run, model):
    status, _, [error] = run("transcribe", "-m", model, FSDD[0], "-f", "docx")
    assert (status, "txt, json" in error) == (2, True)


def test_every_verb_has_a_help_page(run, capsys):
    for verb in ("prepare", "transcribe", "evaluate", "score", "align", "info"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"asr {verb}" in capsys.readouterr().out


def test_segments_of_one_recording_have_files_of_their_own(run, model, tmp_path):
    samples = soundfile.read(FSDD[0], dtype="float32")[0]
    soundfile.write(tmp_path / "long.wav", samples, 8000, subtype="PCM_16")
    lines = [Utterance("long.wav", duration=0.1, offset=offset, id=f"long.wav@{offset}") for offset in (0.05, 0.1)]
    manifest.write(tmp_path / "m.jsonl", lines)
    status, _, errors = run("transcribe", "-m", model, "m.jsonl", "-o", "out")
    assert status == 0, errors
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"long.wav@0.05.txt", "long.wav@0.1.txt"}


def test_no_transcript_takes_the_place_of_the_list_of_failures(run, model, tmp_path):
    shutil.copy(FSDD[0], tmp_path / "failures.flac")
    status, _, [error] = run("transcribe", "-m", model, "failures.flac", "-f", "jsonl", "-o", "out")
    assert (status, "rename the input 'failures'" in error) == (2, True)


def test_settings_and_inputs_may_stand_behind_a_flag(run, model):
    _, out, _ = run("train", "recipe=fsdd", "--dry-run", "seed=7")
    assert "seed: 7" in out
    assert len(run("transcribe", "-q", FSDD[0], "-m", model, FSDD[1])[1].splitlines()) == 2


def test_a_wrong_normaliser_is_told_before_work_starts(run, model, tmp_path, monkeypatch):
    manifest.write(tmp_path / "m.jsonl", [Utterance(str(FSDD[0]), text="one")])
    monkeypatch.setattr(asr.Recognizer, "transcribe_many", lambda *_, **__: pytest.fail("work was started"))
    status, _, errors = run("evaluate", "-q", "-m", model, "--manifest", "m.jsonl", "--normalizer", "bsaic")
    assert status == 2
    assert "no normaliser 'bsaic'" in errors[-1]


def test_a_name_too_long_for_any_file_is_one_line(run, model):
    status, _, [error] = run("transcribe", "-m", model, "a" * 300)
    assert (status, "no file system has a name this long" in error) == (1, True)
