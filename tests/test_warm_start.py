"""Training that begins with a trained model: what it keeps, what is new, what is refused."""

import dataclasses
import json
import re

import pytest
import tones
import torch
from test_train import run_training, settings

from asr import checkpoint, files, load, manifest, warm_start
from asr.errors import InputError
from asr.model import AcousticModel
from asr.run import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A corpus of words of two letters, and a model of it."""
    folder = tmp_path_factory.mktemp("two")
    corpus = tones.write_corpus(folder / "corpus", vocabulary=("a", "ab", "ba"))
    result, _ = run_training(settings(corpus, folder, "augment=none", "model.dropout=0.0", epochs=16))
    return corpus, result.model


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """A corpus with a letter that the model never heard."""
    return tones.write_corpus(tmp_path_factory.mktemp("three") / "corpus", seed=1, vocabulary=("a", "bc", "cab"))


def begun(corpus, tmp_path, *overrides) -> tuple[Run, list[str]]:
    lines: list[str] = []
    parts = Run(settings(corpus, tmp_path, *overrides), lines.append)
    parts.begin()
    return parts, lines


def heard(model, parts) -> torch.Tensor:
    batch = parts.train.batch([(3,)])
    with torch.no_grad():
        return model.eval()(batch.features, batch.lengths)[0][0]


def test_before_the_first_step_the_emissions_are_those_of_the_model(trained, tmp_path):
    corpus, path = trained
    parts, lines = begun(corpus, tmp_path, f"init_from={path}")
    theirs = load(path, "cpu")
    assert parts.tokenizer.tokens == theirs.tokens
    torch.testing.assert_close(heard(parts.model, parts), heard(theirs.model, parts), rtol=0, atol=1e-6)
    torch.testing.assert_close(heard(parts.averaged, parts), heard(theirs.model, parts), rtol=0, atol=1e-6)
    assert lines == [f"begins with {path}: 4 of its 4 tokens kept, 0 new"]


def test_kept_tokens_stand_to_each_other_as_in_the_model_and_a_new_one_begins_in_the_middle(trained, wider, tmp_path):
    _, path = trained
    parts, lines = begun(wider, tmp_path, f"init_from={path}")
    assert parts.tokenizer.tokens == ["<blank>", "|", "a", "b", "c"]
    assert lines == [f"begins with {path}: 4 of its 4 tokens kept, 1 new: c"]
    own, theirs = heard(parts.model, parts), heard(load(path, "cpu").model, parts)
    ratios = own[:, 1:4] - own[:, :1], theirs[:, 1:] - theirs[:, :1]
    torch.testing.assert_close(*ratios, rtol=0, atol=1e-5)
    head, old = parts.model.head.weight, load(path, "cpu").model.head.weight
    assert (head[4] - old[1:].mean(0)).abs().max() < 0.1 * head.shape[1] ** -0.5
    assert not torch.equal(head[4], old[1:].mean(0))


def test_rows_go_to_their_tokens_whatever_the_order_and_those_of_dropped_tokens_go(trained):
    _, path = trained
    card = checkpoint.read_card(path)
    torch.manual_seed(0)
    tokens = ["<blank>", "c", "b", "|"]
    model = AcousticModel(**card["model"])
    facts, _ = warm_start.begin(path, model, card | {"tokens": tokens})
    _, weights = checkpoint.load_model(path)
    for token in ("<blank>", "b", "|"):
        row = weights["head.weight"][card["tokens"].index(token)]
        assert torch.equal(model.head.weight[tokens.index(token)], row)
    assert facts["tokens"] == {"kept": 3, "new": 1, "dropped": 1}
    assert facts["sha256"] == files.sha256(path)


def test_a_new_character_is_learnt_and_the_facts_name_the_model(trained, wider, tmp_path):
    _, path = trained
    chosen = settings(wider, tmp_path, f"init_from={path}", "augment=none", "model.dropout=0.0", epochs=12)
    result, _ = run_training(chosen)
    assert result.dev["rate"] <= 0.2
    recognizer = load(result.model)
    assert "c" in "".join(recognizer.transcribe(one).text for one in manifest.read(wider / "dev.jsonl"))
    facts = recognizer.card["training"]
    assert facts["init_from"] == {
        "name": "model.safetensors",
        "sha256": files.sha256(path),
        "tokens": {"kept": 4, "new": 1, "dropped": 0},
    }
    assert json.loads((result.folder / "result.json").read_text())["training"]["init_from"] == facts["init_from"]


def test_a_resumed_run_does_not_read_the_model_again(trained, wider, tmp_path):
    from asr.errors import AsrError

    copy = tmp_path / "begin.safetensors"
    copy.write_bytes(trained[1].read_bytes())
    chosen = settings(wider, tmp_path, f"init_from={copy}", epochs=2)
    whole, _ = run_training(dataclasses.replace(chosen, name="whole"))
    stops = iter([None, None, 130])
    with pytest.raises(AsrError, match="stopped, state saved"):
        run_training(chosen, stop=lambda: next(stops))
    copy.write_bytes(b"not a model any more")
    resumed, _ = run_training(chosen)
    one, other = (checkpoint.load_model(result.model) for result in (whole, resumed))
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    assert one[0]["training"]["init_from"] == other[0]["training"]["init_from"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["model.hidden=32"], "model.hidden is 24 in that model, here 32; write model.hidden=24"),
        (
            ["features.mels=24", "features.hop=0.02"],
            "features.hop is 0.01 in that model, here 0.02; write features.hop=0.01 features.mels=20",
        ),
        (
            ["features=mfcc", "features.rate=8000", "features.mels=20", "features.coefficients=13"],
            "write features.coefficients=null features.convention=slaney features.kind=logmel",
        ),
        (["model.layer_norm=false"], "model.layer_norm is true in that model, here false; write model.layer_norm=true"),
        (["model.convolutions=[2,1]"], "write model.convolutions=[1,2]"),
    ],
    ids=["size", "features", "kind", "norm", "strides"],
)
def test_another_shape_is_one_line_that_says_what_to_write(trained, tmp_path, overrides, problem):
    corpus, path = trained
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        begun(corpus, tmp_path, f"init_from={path}", *overrides)
    assert caught.value.status == 2 and "\n" not in str(caught.value)


def test_what_shapes_no_weight_may_differ(trained, tmp_path):
    corpus, path = trained
    begun(corpus, tmp_path, f"init_from={path}", "model.dropout=0.5", "model.context=40", "augment=strong")


def test_a_file_that_is_no_model_is_one_line(trained, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"x\.safetensors"):
        begun(trained[0], tmp_path, f"init_from={tmp_path / 'x.safetensors'}")
    with pytest.raises(InputError, match=r"y\.safetensors"):
        begun(trained[0], tmp_path, f"init_from={tmp_path / 'y.safetensors'}")
