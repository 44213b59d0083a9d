import dataclasses
import math
import re

import pytest
import tones
import torch

from asr import checkpoint, config, examples, probe, replay, train
from asr.errors import AsrError, InputError
from asr.run import Run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"), train=12, dev=2)


def settings(corpus, tmp_path, *overrides):
    return config.load(str(tones.write_recipe(corpus, 1)), [f"out={tmp_path}/runs", "data.batch_seconds=3", *overrides])


def poisoned_run(corpus, tmp_path, monkeypatch, *overrides):
    """Train where the features of one utterance hold an infinity; returns what was said and the kept batches."""
    original = examples.Loader.batch

    def batch(self, rows, epoch=None):
        made = original(self, rows, epoch)
        if epoch is not None and "train7" in made.utterances:
            made.features[made.utterances.index("train7"), 0] = math.inf
        return made

    monkeypatch.setattr(examples.Loader, "batch", batch)
    lines = []
    chosen = settings(corpus, tmp_path, *overrides)
    train.train(chosen, "tones", say=lines.append, show=lambda progress: None)
    return lines, sorted((tmp_path / "runs" / "tones" / "seed1").glob("not_finite-*"))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_that_is_not_finite_is_kept_and_its_replay_finds_the_culprit(corpus, tmp_path, monkeypatch, accumulate):
    lines, [path] = poisoned_run(corpus, tmp_path, monkeypatch, f"training.accumulate={accumulate}")
    [line] = [line for line in lines if "not finite" in line]
    assert line.endswith("step skipped: train7")
    again = replay.replay(path, "cpu")
    assert [name for name, loss in again.losses.items() if not math.isfinite(loss)] == ["train7"]
    assert not all(math.isfinite(norm) for norm in again.gradients.values())
    assert "train7: loss" in str(again)
    assert "gradient nan" in str(again)


def test_a_replay_gives_the_losses_of_then_with_the_dropout_of_then(corpus, tmp_path):
    run = Run(settings(corpus, tmp_path, "model.dropout=0.5"), lambda line: None)
    run.model.train()
    batch = run.train.batch(run.groups(0)[0], 0)
    random = {"random.cpu": torch.get_rng_state()}
    losses = run.losses(batch)[0].detach()
    replay.keep(tmp_path / "kept.safetensors", run, replay.Suspect(batch, losses, random))
    torch.manual_seed(99)
    again = replay.replay(tmp_path / "kept.safetensors", "cpu")
    assert again.losses == dict(zip(batch.utterances, losses.tolist(), strict=True))
    assert str(again).endswith("all gradients are finite")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors, values: tensors.pop("batch.lengths"), "a part of the batch is missing"),
        (lambda tensors, values: tensors.pop("model.head.bias"), "weight 'head.bias' is missing"),
        (lambda tensors, values: tensors["batch.targets"].fill_(99), "its batch does not fit its model"),
        (lambda tensors, values: tensors["batch.lengths"].fill_(10**6), "its batch does not fit its model"),
        (lambda tensors, values: values.pop("card"), "its card is missing"),
        (lambda tensors, values: values.update(utterances=7), "its batch does not fit its model"),
    ],
    ids=["part", "weight", "targets", "lengths", "card", "utterances"],
)
def test_a_kept_batch_that_does_not_fit_itself_is_refused(corpus, tmp_path, change, problem):
    run = Run(settings(corpus, tmp_path), lambda line: None)
    batch = run.train.batch(run.groups(0)[0], 0)
    path = tmp_path / "kept.safetensors"
    replay.keep(path, run, replay.Suspect(batch, torch.zeros(1), {"random.cpu": torch.get_rng_state()}))
    tensors, values = checkpoint.load_batch(path)
    change(tensors, values)
    checkpoint.save_batch(path, tensors, values)
    with pytest.raises(InputError, match=problem) as caught:
        replay.replay(path, "cpu")
    assert caught.value.status == 2


# The longest batch, first


def test_the_longest_batch_of_all_epochs_is_tried_and_leaves_no_trace(corpus, tmp_path):
    run = Run(settings(corpus, tmp_path, "training.epochs=3", "model.context=10"), lambda line: None)
    plan = probe.plan(run)
    assert plan.counts == [len(run.groups(epoch)) for epoch in range(3)]

    def padded(group):
        return len(group) * max(run.train.seconds(row) for row in group)

    assert padded(plan.longest) == max(padded(group) for epoch in range(3) for group in run.groups(epoch))
    random, weights = torch.get_rng_state(), [p.clone() for p in run.model.parameters()]
    line = probe.try_longest(run, plan.longest, plan.epoch)
    assert line.startswith(f"the longest batch, {padded(plan.longest):.1f} s with padding, was tried first and took ")
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize(
    ("cause", "seconds", "lower"),
    [
        ("gpu", 3.0, "batch_seconds (now 3)"),
        ("cpu", 3.0, "batch_seconds (now 3)"),
        ("cpu", 0.1, "max_seconds (now 30)"),
    ],
)
def test_too_little_memory_is_told_before_the_first_step_with_the_setting_to_lower(
    corpus, tmp_path, monkeypatch, cause, seconds, lower
):
    def losses(self, batch, model=None):
        if cause == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.empty(2**60)

    monkeypatch.setattr(Run, "losses", losses)
    lines = []
    chosen = settings(corpus, tmp_path)
    chosen = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, batch_seconds=seconds))
    problem = rf"not enough memory for the longest batch \(.* s with padding\) .* lower data\.{re.escape(lower)}"
    with pytest.raises(AsrError, match=problem):
        train.train(chosen, "tones", say=lines.append, show=lambda progress: None)
    assert "begins" in lines[-1]
