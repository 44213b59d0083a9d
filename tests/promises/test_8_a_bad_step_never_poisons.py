"""R6: a NaN or infinity in the input, the loss or a gradient costs its step, is counted, and reaches no weight."""

import dataclasses
import json

import pytest
import tones
import torch

from asr import config, probe, train
from asr.errors import AsrError
from asr.run import Run

STEPS = 30  # steps that are hit, one after the other, in one run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tones.write_corpus(tmp_path_factory.mktemp("tones"), train=40, dev=4)


def poisoned_input(value):
    def poison(batch, losses, model):
        features = batch.features.clone()
        features[0, 0] = value
        return dataclasses.replace(batch, features=features), None

    return poison


def poisoned_loss(value):
    return lambda batch, losses, model: (batch, value)


def poisoned_gradient(value):
    def poison(batch, losses, model):
        weight = next(model.parameters())
        hook = weight.register_hook(lambda gradient: hook.remove() or torch.full_like(gradient, value))
        return batch, None

    return poison


POISONS = {
    f"{where} {value}": make(value)
    for where, make in (("input", poisoned_input), ("loss", poisoned_loss), ("gradient", poisoned_gradient))
    for value in (float("nan"), float("inf"))
}


def poison_steps(monkeypatch, poison, which):
    """Make `Run.losses` poison the training steps whose number (from 0) is in `which`."""
    original = Run.losses
    seen = 0

    def losses(self, batch, model=None):
        nonlocal seen
        if not torch.is_grad_enabled():
            return original(self, batch, model)
        seen += 1
        if seen - 1 not in which:
            return original(self, batch, model)
        batch, factor = poison(batch, None, self.model)
        found, log_probs, lengths = original(self, batch)
        return (found if factor is None else found * factor), log_probs, lengths

    monkeypatch.setattr(Run, "losses", losses)
    monkeypatch.setattr(probe, "try_longest", lambda *arguments: "")  # no step of training


def run_training(corpus, tmp_path, epochs, check=lambda run: None):
    recipe = tones.write_recipe(corpus, epochs)
    chosen = config.load(str(recipe), [f"out={tmp_path}/runs", "data.batch_seconds=8"])
    lines = []
    result = train.train(chosen, "tones", say=lines.append, show=lambda progress: None)
    return result, lines


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_each_poisoned_step_is_skipped_and_counted_and_weights_stay_finite(corpus, tmp_path, monkeypatch, poison):
    poison_steps(monkeypatch, poison, set(range(0, 2 * STEPS, 2)))
    finite = []
    update = train._update

    def checked(run, *arguments):
        update(run, *arguments)
        finite.append(all(bool(p.isfinite().all()) for p in run.model.parameters()))

    monkeypatch.setattr(train, "_update", checked)
    result, lines = run_training(corpus, tmp_path, epochs=16)
    assert len(finite) >= 2 * STEPS
    assert all(finite)
    told = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["train"]["skipped"] for line in told) == STEPS
    said = [line for line in lines if "loss or gradient not finite, step skipped: train" in line]
    assert len(said) == STEPS
    assert all(torch.isfinite(torch.tensor(line["train"]["loss"])) for line in told)


def test_ten_in_a_row_end_the_run_and_keep_the_best_model(corpus, tmp_path, monkeypatch):
    poison_steps(monkeypatch, poisoned_loss(float("nan")), set(range(10, 1000)))
    with pytest.raises(AsrError, match="10 steps in a row had a loss or gradient that is not finite; the best model"):
        run_training(corpus, tmp_path, epochs=16)
    from asr.recognizer import load

    load(tmp_path / "runs" / "tones" / "seed1" / "model.safetensors", "cpu")


def test_the_utterance_with_a_poisoned_loss_is_named(corpus, tmp_path, monkeypatch):
    named = []

    def poison(batch, losses, model):
        named.append(batch.utterances[1])
        factor = torch.ones(len(batch.utterances))
        factor[1] = float("nan")
        return batch, factor

    poison_steps(monkeypatch, poison, {0})
    _, lines = run_training(corpus, tmp_path, epochs=1)
    [line] = [line for line in lines if "not finite" in line]
    assert line.endswith(f"step skipped: {named[0]}")
