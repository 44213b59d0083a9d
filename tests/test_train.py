import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import tones
import torch

from asr import config, examples, manifest, run, train
from asr.errors import AsrError, InputError
from asr.recognizer import load


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"))


def settings(corpus, tmp_path, *overrides, epochs=2):
    recipe = tones.write_recipe(corpus, epochs)
    return config.load(str(recipe), [f"out={tmp_path}/runs", *overrides])


def run_training(chosen, **arguments):
    lines = []
    defaults = {"say": lines.append, "show": lambda progress: None}
    return train.train(chosen, "tones", **(defaults | arguments)), lines


def metrics(result):
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_words_of_tones(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "augment=none", "model.dropout=0.0", "name=learn", epochs=24)
    result, _ = run_training(chosen)
    assert result.dev["rate"] <= 0.2
    recognizer = load(result.model)
    said = [u for u in manifest.read(corpus / "dev.jsonl") if recognizer.transcribe(u).text == u.text]
    assert len(said) >= 6


def test_a_run_leaves_all_files_it_promises(corpus, tmp_path):
    result, lines = run_training(settings(corpus, tmp_path))
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        ".lock", "config.yaml", "curves.png", "log.txt", "metrics.jsonl", "model.safetensors", "result.json", "state"
    }  # fmt: skip
    assert [line["epoch"] for line in metrics(result)] == [0, 1]
    assert (result.folder / "log.txt").read_text().splitlines() == lines
    outcome = json.loads((result.folder / "result.json").read_text())
    best = min(metrics(result), key=lambda line: (line["dev"]["errors"], line["dev"]["loss"]))
    assert (outcome["best_epoch"], outcome["dev"]) == (best["epoch"], best["dev"])
    assert load(result.model).card["training"]["dev"]["errors"] == best["dev"]["errors"]
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_runs_own_config_repeats_it_to_the_bit(corpus, tmp_path):
    first, _ = run_training(settings(corpus, tmp_path))
    kept = first.model.read_bytes()
    again = config.load(str(first.folder / "config.yaml"), [])
    first.folder.rename(tmp_path / "first")
    second, _ = run_training(again)
    assert second.model.read_bytes() == kept


def test_another_seed_gives_another_model(corpus, tmp_path):
    first, _ = run_training(settings(corpus, tmp_path))
    second, _ = run_training(settings(corpus, tmp_path, "seed=2"))
    assert first.folder != second.folder
    assert first.model.read_bytes() != second.model.read_bytes()


def test_accumulated_batches_give_the_gradient_of_one_large_batch(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "augment=none", "model.dropout=0.0", "optim.clip=0")
    parts = run.Run(chosen, lambda line: None)
    parts.model.double()
    groups = parts.groups(0)[:3]
    labels = sum(len(parts.train.examples[index].labels) for group in groups for (index,) in group)

    def gradients(batches_of):
        parts.optimizer.zero_grad()
        for group in batches_of:
            batch = parts.train.batch(group)
            batch = dataclasses.replace(batch, features=batch.features.double())
            (parts.losses(batch)[0].sum() / labels).backward()
        return [p.grad.clone() for p in parts.model.parameters()]

    # The head computes in float32, so that is the precision of the comparison.
    for one, many in zip(gradients([[index for group in groups for index in group]]), gradients(groups), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-6)


def test_accumulation_takes_a_step_every_so_many_batches(corpus, tmp_path):
    one, _ = run_training(settings(corpus, tmp_path, "name=one", epochs=1))
    two, _ = run_training(settings(corpus, tmp_path, "name=two", "training.accumulate=2", epochs=1))
    assert metrics(two)[0]["step"] == math.ceil(metrics(one)[0]["step"] / 2)


def test_a_finished_run_is_not_trained_again(corpus, tmp_path):
    chosen = settings(corpus, tmp_path)
    run_training(chosen)
    with pytest.raises(InputError, match="this run is finished; choose another name") as caught:
        run_training(chosen)
    assert caught.value.status == 2


def test_an_unfinished_run_does_not_go_on_with_other_settings(corpus, tmp_path):
    with pytest.raises(AsrError, match="state saved"):
        run_training(settings(corpus, tmp_path), stop=lambda: 143)
    with pytest.raises(InputError, match=r"unfinished run with optim.lr=0.01, not 0.02; go on with its settings"):
        run_training(settings(corpus, tmp_path, "optim.lr=0.02"))


def test_an_unfinished_run_does_not_go_on_with_other_data(tmp_path):
    corpus = tones.write_corpus(tmp_path / "tones", train=8, dev=2)
    with pytest.raises(AsrError, match="state saved"):
        run_training(settings(corpus, tmp_path), stop=lambda: 143)
    manifest.write(corpus / "train.jsonl", manifest.read(corpus / "train.jsonl")[1:])
    with pytest.raises(InputError, match="the manifests changed since this run began"):
        run_training(settings(corpus, tmp_path))


def test_early_stopping_ends_after_so_many_epochs_without_a_better_one(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "training.patience=2", "optim.lr=1e-9", "optim.average=0", epochs=20)
    result, _ = run_training(chosen)
    assert result.epochs == result.best_epoch + 3 < 20


def test_progress_counts_up_and_tells_the_time_left(corpus, tmp_path):
    seen = []
    run_training(settings(corpus, tmp_path), show=seen.append)
    done = [(now.epoch, now.batch) for now in seen]
    assert done == sorted(done)
    assert (seen[-1].epoch, seen[-1].batch) == (2, seen[-1].batches)
    assert seen[0].wer is None
    assert seen[-1].wer is not None
    assert seen[-1].left == pytest.approx(0, abs=1e-6)
    assert all(0 <= now.blank_rate <= 1 and 0 <= now.waiting <= 1 and now.speech_rate > 0 for now in seen)


def test_one_batch_is_learnt_by_heart(corpus, tmp_path):
    lines = []
    assert train.overfit_one_batch(settings(corpus, tmp_path), 300, lines.append)
    assert "texts right" in lines[-1]
    assert not train.overfit_one_batch(settings(corpus, tmp_path), 1, lines.append)
    assert train.overfit_one_batch(settings(corpus, tmp_path, "augment.join=2"), 300, lines.append)


# Data that is wrong is found before the first step


def broken(corpus, tmp_path, change, split="train"):
    """A copy of the manifests in which `change` turned the first utterance of a split into something else."""
    for name in ("train", "dev"):
        utterances = [
            dataclasses.replace(u, audio_filepath=str(u.path)) for u in manifest.read(corpus / f"{name}.jsonl")
        ]
        if name == split:
            utterances[0] = change(utterances[0])
        manifest.write(tmp_path / f"{name}.jsonl", utterances)
    return settings(corpus, tmp_path, f"data.train={tmp_path}/train.jsonl", f"data.dev={tmp_path}/dev.jsonl")


@pytest.mark.parametrize(
    ("change", "split", "problem"),
    [
        (lambda u: dataclasses.replace(u, text=None), "train", r"train.jsonl: line 1: key 'text' is missing"),
        (lambda u: dataclasses.replace(u, audio_filepath="/no.wav"), "train", r"train.jsonl: line 1: .*no.wav"),
        (lambda u: dataclasses.replace(u, duration=99.0), "dev", r"dev.jsonl: line 1: .* ends at .* before"),
        (lambda u: dataclasses.replace(u, offset=99.0), "train", r"train.jsonl: line 1: .* ends at .* before"),
        (
            lambda u: dataclasses.replace(u, text="zebra"),
            "dev",
            r"dev.jsonl: line 1: utterance 'dev0': characters 'z' \(U\+007A\), .* choose a normaliser",
        ),
        (
            lambda u: dataclasses.replace(u, text="abcabcabc" * 20),
            "train",
            r"1 of 40 utterances have fewer frames than their labels need: line 1 'train0' \(\d+ frames, 180 needed\)",
        ),
    ],
)  # fmt: skip
def test_wrong_data_is_one_line_naming_file_and_line(corpus, tmp_path, change, split, problem):
    with pytest.raises(InputError, match=problem):
        run_training(broken(corpus, tmp_path, change, split))


def test_an_empty_training_set_is_an_error(corpus, tmp_path):
    chosen = broken(corpus, tmp_path, lambda u: u)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(InputError, match=r"train.jsonl: no utterance of at most 30 s"):
        run_training(chosen)


def test_a_dev_set_without_words_is_an_error(corpus, tmp_path):
    chosen = broken(corpus, tmp_path, lambda u: u)
    silent = [dataclasses.replace(u, text="") for u in manifest.read(tmp_path / "dev.jsonl")]
    manifest.write(tmp_path / "dev.jsonl", silent)
    with pytest.raises(InputError, match=r"dev.jsonl: no words in its texts"):
        run_training(chosen)


def test_frames_are_counted_with_repeated_neighbours():
    utterance = manifest.Utterance("x.wav", id="x", line=7)
    example = examples.Example(utterance, 1.0, "see", (3, 2, 2))
    examples.check_frames([example], lambda seconds: 4, "m.jsonl")
    with pytest.raises(InputError, match=r"m.jsonl: 1 of 1 .* line 7 'x' \(3 frames, 4 needed\)"):
        examples.check_frames([example], lambda seconds: 3, "m.jsonl")


def test_augmentation_never_makes_an_utterance_too_short_for_its_labels(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "augment.speed_min=1.9", "augment.speed_max=2.0")
    parts = run.Run(chosen, lambda line: None)
    short = min(parts.train.examples, key=lambda e: e.seconds)
    labels = (3, 4) * (parts.model.frames(parts.front_end.frames(round(short.seconds * tones.RATE))) // 2)
    parts.train.examples = [dataclasses.replace(short, labels=labels)]
    batch = parts.train.batch([(0,)], epoch=0)
    assert parts.model.frames(int(batch.lengths[0])) >= len(labels)


def test_a_batch_is_the_same_function_of_seed_and_epoch_whatever_its_company(corpus, tmp_path):
    parts = run.Run(settings(corpus, tmp_path), lambda line: None)
    alone = parts.train.batch([(5,)], epoch=3)
    together = parts.train.batch([(1,), (5,), (9,)], epoch=3)
    length = int(alone.lengths[0])
    assert together.lengths[1] == length
    np.testing.assert_allclose(together.features[1, :length], alone.features[0], atol=1e-5)
    assert not torch.equal(alone.features, parts.train.batch([(5,)], epoch=4).features[:, :length])


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_joined_utterances_are_their_samples_and_words_one_behind_the_other(tmp_path, unit):
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "bc", "cab"))
    chosen = settings(
        corpus, tmp_path, "augment=none", "augment.join=3", f"text.units={unit}", "features.normalize=none"
    )
    parts = run.Run(chosen, lambda line: None)
    rows = [row for group in parts.groups(0) for row in group]
    assert sorted(number for row in rows for number in row) == list(range(len(parts.train.examples)))
    row = next(row for row in rows if len(row) == 3)
    batch = parts.train.batch([row], epoch=0)
    examples_of_it = [parts.train.examples[number] for number in row]
    assert parts.tokenizer.decode(batch.targets.tolist()) == " ".join(example.text for example in examples_of_it)
    assert batch.seconds == pytest.approx(sum(example.seconds for example in examples_of_it))
    first = parts.train.batch([row[:1]], epoch=0)
    same = int(first.lengths[0]) - 3  # frames that look beyond the first utterance's end aside
    torch.testing.assert_close(batch.features[0, :same], first.features[0, :same])


def test_utterances_are_not_joined_beyond_the_longest_allowed(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "augment.join=100", "data.max_seconds=3.0")
    parts = run.Run(chosen, lambda line: None)
    seconds = [parts.train.seconds(row) for group in parts.groups(0) for row in group]
    assert 2.0 < max(seconds) <= 3.0


def test_words_as_units_are_learnt_and_heard(tmp_path):
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "bc", "cab"))
    chosen = settings(corpus, tmp_path, "text.units=words", "augment=none", "model.dropout=0.0", epochs=20)
    result, _ = run_training(chosen)
    recognizer = load(result.model)
    assert recognizer.tokens == ["<blank>", "|a", "|bc", "|cab"]
    assert result.dev["rate"] <= 0.1
    heard = recognizer.transcribe(manifest.read(corpus / "dev.jsonl")[0])
    assert [word.word for segment in heard.segments for word in segment.words] == heard.text.split()


def test_a_word_that_training_did_not_hear_is_named(tmp_path):
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "bc", "cab"))
    line = json.loads((corpus / "dev.jsonl").read_text().splitlines()[0])
    (corpus / "dev.jsonl").write_text(json.dumps(line | {"text": "a bb"}) + "\n")
    with pytest.raises(InputError, match=r"line 1: utterance '.*': word 'bb' is not among the 3 words"):
        run.Run(settings(corpus, tmp_path, "text.units=words"), lambda line: None)


def test_a_token_that_no_model_file_holds_is_an_error_before_training(tmp_path):
    corpus = tones.write_corpus(tmp_path / "words", vocabulary=("a", "b" * 101))
    with pytest.raises(InputError, match=r"word 'b+' has more than 99 characters"):
        run.Run(settings(corpus, tmp_path, "text.units=words"), lambda line: None)


def test_recordings_upsampled_from_a_telephone_are_told_before_training(corpus, tmp_path):
    lines = []
    run.Run(settings(corpus, tmp_path, "features.rate=16000"), lines.append)
    [note] = lines
    assert note.startswith("40 of 40 recordings looked at carry nothing above 4 kHz")
    assert "'train0'" in note
    lines.clear()
    run.Run(settings(corpus, tmp_path), lines.append)
    assert not lines


def test_tensorboard_is_written_where_it_is_asked_for(corpus, tmp_path):
    pytest.importorskip("tensorboard")
    result, _ = run_training(settings(corpus, tmp_path, "training.tensorboard=true", epochs=1))
    assert list((result.folder / "tensorboard").glob("events.*"))


def test_tensorboard_that_is_not_installed_is_one_line(corpus, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"needs TensorBoard: pip install 'asr\[tensorboard\]'"):
        run_training(settings(corpus, tmp_path, "training.tensorboard=true"))


def test_decoded_audio_is_cached_and_the_cache_changes_nothing(corpus, tmp_path):
    cache = ["data.cache_gigabytes=0.1", f"data.cache={tmp_path}/cache"]
    with_cache, _ = run_training(settings(corpus, tmp_path, "name=one", *cache))
    without, _ = run_training(settings(corpus, tmp_path, "name=two"))
    assert list((tmp_path / "cache").rglob("*"))
    weights = [load(result.model, "cpu").model.state_dict() for result in (with_cache, without)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_utterances_that_are_too_long_are_left_out_and_said(corpus, tmp_path):
    longest = sorted(u.duration for u in manifest.read(corpus / "train.jsonl"))[-2]
    lines = []
    parts = run.Run(settings(corpus, tmp_path, f"data.max_seconds={longest + 1e-6}"), lines.append)
    assert len(parts.train.examples) == 39
    assert any(line.startswith(f"{corpus}/train.jsonl: 1 utterances longer than") for line in lines)


def test_a_run_with_a_loss_that_is_not_finite_in_its_history_goes_on(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, epochs=2)
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return 130 if asked == 12 else None

    with pytest.raises(AsrError, match="run the same command"):
        run_training(chosen, stop=stop)
    path = tmp_path / "runs" / "tones" / "seed1" / "metrics.jsonl"
    [line] = [json.loads(text) for text in path.read_text().splitlines()]
    line["dev"]["loss"] = math.nan
    path.write_text(json.dumps(line) + "\n")
    result, _ = run_training(chosen)
    assert result.epochs == 2


def test_a_second_process_does_not_train_in_the_same_folder(corpus, tmp_path):
    chosen = settings(corpus, tmp_path, "name=twice")
    folder = tmp_path / "runs" / "tones" / "twice"
    folder.mkdir(parents=True)
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'ab')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another process trains this run"):
            run_training(chosen)
        other.stdin.close()
        other.wait()
    assert run_training(chosen)[0].folder == folder
