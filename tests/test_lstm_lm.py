"""LSTM language models: probabilities against plain torch, learning, exact resume, files from strangers, the verbs."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from asr import lm, lstm_lm_training, tensorfile
from asr.decode.ngram import NGram
from asr.errors import AsrError, InputError
from asr.lstm_lm import softmax
from asr.lstm_lm.model import LanguageModel, padded
from asr.lstm_lm.network import EOS, UNK, Network
from asr.lstm_lm.softmax import AdaptiveSoftmax
from asr.lstm_lm_training import Settings, train

WORDS = ["</s>", "<unk>", *(f"w{number}" for number in range(28))]
SMALL = Settings(hidden=16, epochs=2, batch=40, lr=0.01, dropout=0.2)
FAR = ["a x y z A", "b x y z B", "c x y z C", "d x y z D"]  # the last word follows from the first: no 3-gram sees it


def model(cutoffs=(8, 20), layers=2, unit="word") -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(Network(len(WORDS), 16, 24, layers, cutoffs), WORDS, unit, "none", 1e-4)


def sentences(count=12) -> list[list[str]]:
    draw = np.random.default_rng(1)
    return [[f"w{n}" for n in draw.integers(0, 30, draw.integers(0, 9))] for _ in range(count)]  # two are unknown


# Probabilities


def test_the_softmax_is_that_of_torch():
    torch.manual_seed(0)
    ours = AdaptiveSoftmax(30, 16, [8, 20]).double()
    theirs = nn.AdaptiveLogSoftmaxWithLoss(16, 30, [8, 20], div_value=4.0, dtype=torch.float64)
    with torch.no_grad():
        theirs.head.weight.copy_(torch.cat([ours.vectors[0], ours.clusters]))
        for number, (short, long) in enumerate(theirs.tail):
            short.weight.copy_(ours.projections[number])
            long.weight.copy_(ours.vectors[number + 1])
    states, targets = torch.randn(50, 16, dtype=torch.float64), torch.randint(0, 30, (50,))
    assert torch.allclose(ours.log_probs(states), theirs.log_prob(states))
    assert torch.allclose(ours.log_prob(states, targets), theirs(states, targets).output)


@pytest.mark.parametrize("cutoffs", [[], [8, 20]])
def test_it_begins_as_the_counts_say(cutoffs):
    own = AdaptiveSoftmax(30, 16, cutoffs)
    counts = torch.arange(60, 0, -2)
    own.start_from(counts)
    found = own.log_probs(torch.zeros(1, 16))[0].exp()
    assert torch.allclose(found, (counts + 0.5) / (counts + 0.5).sum(), atol=1e-6)


@pytest.mark.parametrize("cutoffs", [[], [8, 20]])
def test_the_probabilities_of_all_continuations_sum_to_one(cutoffs):
    own = model(cutoffs)
    for words in sentences():
        found = own.following(words)
        assert len(found) == len(WORDS)
        assert np.exp(found).sum() == pytest.approx(1, abs=1e-6)


def test_a_sentence_has_the_product_of_its_continuations_unknown_words_too():
    own = model()
    for words in sentences():
        ids = [own.ids.get(word, UNK) for word in words] + [EOS]
        steps = [own.following(words[:place])[number] for place, number in enumerate(ids)]
        assert own.scores([words])[0] == pytest.approx(steps, abs=1e-5)
        assert own.logprob(words) == pytest.approx(sum(steps), abs=1e-4)


def test_an_unknown_word_has_at_least_its_share():
    own = model()
    with torch.no_grad():
        own.network.softmax.bias[UNK] = -1e4
    assert own.following([])[UNK] == pytest.approx(math.log(1e-4))
    assert np.exp(own.following([])).sum() == pytest.approx(1, abs=1e-6)


def test_a_sentence_scores_the_same_alone_and_in_company():
    own, given = model(), [*sentences(), ["w1"] * 300]
    together = own.scores(given)
    for words, scores in zip(given, together, strict=True):
        assert own.scores([words])[0] == pytest.approx(scores, abs=1e-5)
        assert len(scores) == len(words) + 1


@pytest.mark.parametrize(("cutoffs", "layers"), [([], 1), ([8, 20], 2)])
def test_it_equals_a_plain_lstm_of_torch(cutoffs, layers):
    own = model(cutoffs, layers)
    plain = nn.LSTM(16, 24, layers)
    plain.load_state_dict(own.network.lstm.state_dict())
    rows = own.network.softmax
    table = torch.cat([rows.vectors[0], *(v @ p for v, p in zip(rows.vectors[1:], rows.projections, strict=True))])
    for words in sentences():
        ids = torch.tensor([EOS, *(own.ids.get(word, UNK) for word in words)])
        with torch.no_grad():
            states, _ = plain(table[ids] * 4)  # 4 is the root of the vectors' size
            logs = rows.log_probs(own.network.output(states)).double() + math.log1p(-1e-4)
        logs[:, UNK] = torch.logaddexp(logs[:, UNK], torch.tensor(1e-4).double().log())
        expected = logs[torch.arange(len(ids)), torch.tensor([*ids[1:].tolist(), EOS])]
        assert own.scores([words])[0] == pytest.approx(expected.numpy(), abs=1e-5)


def test_cutting_a_batch_into_pieces_changes_no_probability():
    own = model().network
    targets, lengths = padded([np.array([2, 3, 4, 5, 6, 0]), np.array([7, 0]), np.array([9, 21, 3, 0])])
    [(whole, _)] = own.log_probs(targets, lengths, 100)
    pieces = [piece for piece, _ in own.log_probs(targets, lengths, 4)]
    assert torch.allclose(torch.cat(pieces), whole, atol=1e-6)
    assert len(pieces) == 2


def test_large_vocabularies_are_cut_and_small_ones_are_not():
    assert softmax.cutoffs(5_000) == []
    assert softmax.cutoffs(61_086) == [4_000, 20_000]


# Training


def write(folder: Path, lines: list[str], times: int = 40, name: str = "text.txt") -> Path:
    (folder / name).write_text("\n".join(lines * times) + "\n")
    return folder / name


def test_it_learns_what_a_3_gram_cannot(tmp_path):
    text = write(tmp_path, FAR)
    lm.train([text], tmp_path / "lm.arpa", fallback=True)
    by_ngram = NGram.load(tmp_path / "lm.arpa").perplexity(lm.sentences([text])).perplexity
    train([text], tmp_path / "lm.safetensors", Settings(hidden=32, epochs=8, batch=60, lr=0.02, dropout=0))
    own = LanguageModel.load(tmp_path / "lm.safetensors")
    by_lstm = own.perplexity(lm.sentences([text])).perplexity
    best = 4 ** (1 / 6)  # one choice of four in six events
    assert best * 0.999 < by_lstm < 1.05 * best < by_ngram
    assert own.logprob(["a", "x", "y", "z", "A"]) > own.logprob(["a", "x", "y", "z", "B"]) + 3


@pytest.mark.parametrize("stops", [[1], [3, 8], [5, 6, 11]])
def test_a_training_that_was_stopped_gives_the_same_bytes(tmp_path, stops):
    text, dev = write(tmp_path, FAR, 8), write(tmp_path, FAR[:2], 1, "dev.txt")
    train([text], tmp_path / "whole.safetensors", SMALL, dev=[dev])
    done = 0

    def stop():
        nonlocal done
        done += 1
        return 143 if done in stops else None

    for _ in stops:
        with pytest.raises(AsrError, match=r"state saved in .*cut.safetensors.state") as caught:
            train([text], tmp_path / "cut.safetensors", SMALL, dev=[dev], stop=stop)
        assert caught.value.status == 143
    train([text], tmp_path / "cut.safetensors", SMALL, dev=[dev], stop=stop)
    assert done > max(stops)
    assert (tmp_path / "cut.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not (tmp_path / "cut.safetensors.state").exists()


def test_an_unfinished_training_is_not_mixed_with_another(tmp_path):
    text = write(tmp_path, FAR, 8)
    with pytest.raises(AsrError, match="stopped"):
        train([text], tmp_path / "m.safetensors", SMALL, stop=lambda: 130)
    with pytest.raises(InputError, match="other settings or another text"):
        train([text], tmp_path / "m.safetensors", Settings(hidden=8))


def test_the_best_state_on_the_dev_text_is_kept(tmp_path):
    text, dev = write(tmp_path, FAR, 20), write(tmp_path, ["z y x a", "b z A"], 1, "dev.txt")
    settings = Settings(hidden=32, epochs=6, batch=60, lr=0.02, dropout=0)
    told = []
    made = train([text], tmp_path / "m.safetensors", settings, dev=[dev], say=told.append)
    seen = [float(re.search(r"([\d.]+) \(dev", line)[1]) for line in told]
    assert len(seen) == 24
    assert min(seen) < seen[-1]
    assert made.perplexity == pytest.approx(min(seen), abs=0.06)
    kept = LanguageModel.load(tmp_path / "m.safetensors").perplexity(lm.sentences([dev]))
    assert kept.perplexity == pytest.approx(made.perplexity)


def test_the_vocabulary_goes_by_count_and_the_rest_is_unknown(tmp_path):
    text = write(tmp_path, ["b b a", "a b c", "b d"], 1)
    train([text], tmp_path / "all.safetensors", SMALL)
    train([text], tmp_path / "two.safetensors", SMALL, vocabulary=2)
    assert LanguageModel.load(tmp_path / "all.safetensors").words == ["</s>", "<unk>", "b", "a", "c", "d"]
    two = LanguageModel.load(tmp_path / "two.safetensors")
    assert two.words == ["</s>", "<unk>", "b", "a"]
    assert two.perplexity([["a", "c"], ["d"]]).unknown == 2


# Verbs


def test_train_and_perplexity_from_the_command_line(run, tmp_path):
    write(tmp_path, FAR)
    flags = ["--hidden", "16", "--epochs", "2", "--batch", "50", "--lr", "0.01", "--seed", "2"]
    status, out, told = run("lm", "train", "--lstm", "text.txt", "-o", "m.safetensors", *flags)
    assert (status, out.splitlines()[-1]) == (0, "m.safetensors")
    assert "160 sentences, 800 words, 13 different" in out
    assert "epoch 0.25 of 2: perplexity" in told[0]
    assert run("lm", "perplexity", "-q", "m.safetensors", "text.txt")[1].splitlines()[1].startswith("160 sentences")
    found = json.loads(run("lm", "perplexity", "-q", "--json", "m.safetensors", "text.txt")[1])
    expected = LanguageModel.load("m.safetensors").perplexity(lm.sentences(["text.txt"]))
    assert found["perplexity"] == pytest.approx(expected.perplexity)
    assert found["lm"] == {"name": "m.safetensors", "sha256": LanguageModel.load("m.safetensors").sha256}


def test_a_model_of_characters_reads_its_text_itself(run, tmp_path):
    write(tmp_path, ["Ab ba", "aB"])
    flags = ["--unit", "character", "--normalizer", "lower", "--hidden", "8", "--epochs", "1"]
    assert run("lm", "train", "-q", "--lstm", "text.txt", "-o", "m.safetensors", *flags)[0] == 0
    own = LanguageModel.load("m.safetensors")
    assert set(own.words) == {"</s>", "<unk>", "a", "b", "|"}
    assert own.sentence("AB  b") == ["a", "b", "|", "b"]
    assert "280 characters, 0 unknown" in run("lm", "perplexity", "-q", "m.safetensors", "text.txt")[1]
    status, _, [error] = run("lm", "perplexity", "-q", "m.safetensors", "text.txt", "--unit", "word")
    assert (status, "--unit has no effect" in error) == (2, True)


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        (["text.txt", "--lstm", "-o", "m.arpa"], 2, "m.arpa: the name of an LSTM language model ends in .safetensors"),
        (["empty.txt", "--lstm"], 1, "empty.txt: no sentence in it"),
        (["one.txt", "--lstm"], 1, "one.txt: fewer than two different words to learn"),
        (["text.txt", "--lstm", "--dev", "empty.txt"], 1, "empty.txt: no sentence in it"),
        (["text.txt", "--lstm", "--dev", "none.txt"], 2, "none.txt: No such file"),
        (["text.txt", "--lstm", "--order", "3"], 2, "--order has no effect on an LSTM"),
        (["text.txt", "--lstm", "--discount-fallback"], 2, "--discount-fallback has no effect on an LSTM"),
        (["text.txt", "--hidden", "8"], 2, "--hidden has no effect on an n-gram model; add --lstm"),
        (["text.txt", "--dev", "one.txt"], 2, "--dev has no effect on an n-gram model"),
        (["text.txt", "--lstm", "--hidden", "1"], 2, "hidden is 1; it goes from 2 to 8192"),
        (["text.txt", "--lstm", "--dropout", "1"], 2, "dropout is 1.0; it is a probability"),
        (["text.txt", "--lstm", "--lr", "nan"], 2, "lr is nan"),
        (["text.txt", "--lstm", "--vocab", "1"], 1, "fewer than two different words"),
        (["text.txt", "--lstm", "--unit", "letter"], 2, "no unit 'letter'"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, words, status, problem):
    write(tmp_path, FAR, 1)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "one.txt").write_text("yes\nyes yes\n")
    out = [] if "-o" in words else ["-o", "m.safetensors"]
    found, _, [error] = run("lm", "train", "-q", *words, *out)
    assert (found, problem in error) == (status, True), error
    assert not (tmp_path / "m.safetensors").exists()


def test_files_from_strangers_are_refused_in_one_line(tmp_path):
    path = tmp_path / "m.safetensors"
    own = model()
    own.save(path, {})
    assert LanguageModel.load(path).scores(sentences())[3] == pytest.approx(own.scores(sentences())[3])
    with tensorfile.opened(path) as (file, header):
        weights, good = tensorfile.read(file, header, path), header.metadata
    card = json.loads(good["card"])

    def refused(problem, tensors=weights, **changes):
        changed = json.dumps(card | changes)
        facts = {"format": "asr-lm", "format_version": "1", "card": changed}
        tensorfile.write(tmp_path / "bad.safetensors", tensors, facts)
        with pytest.raises(InputError, match=problem) as caught:
            LanguageModel.load(tmp_path / "bad.safetensors")
        assert caught.value.status == 2

    refused("unit is 'os.system'", unit="os.system")
    refused("unknown key 'class'", **{"class": "x"})
    refused("network.hidden is 10000000", network=card["network"] | {"hidden": 10_000_000})
    refused("cutoffs are not ascending", network=card["network"] | {"cutoffs": [20, 8]})
    for cuts in ("x", [2.5], list(range(2, 11))):
        refused("network.cutoffs is", network=card["network"] | {"cutoffs": cuts})
    refused("unseen is 0", unseen=0)
    refused("training is 7, not a JSON object", training=7)
    refused("weight 'lstm.bias_hh_l0'", network=card["network"] | {"hidden": 25})
    refused("vocabulary is missing", {name: t for name, t in weights.items() if name != "words"})
    refused("not one of 30 different words", weights | {"words": weights["words"][:-4]})
    refused("not UTF-8", weights | {"words": torch.full((9,), 255, dtype=torch.uint8)})
    refused("not finite", weights | {"output.bias": torch.full((16,), math.nan)})
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut or damaged"):
        LanguageModel.load(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="a model, not an LSTM language model of asr"):
        LanguageModel.load(Path(__file__).parent / "data" / "model_v1.safetensors")


def test_more_words_than_a_model_can_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("asr.lstm_lm.model.MAX_WORDS", 4)
    with pytest.raises(InputError, match="different words; keep fewer of them with --vocab"):
        train([write(tmp_path, FAR)], tmp_path / "m.safetensors", SMALL)


def test_a_step_that_is_not_finite_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        lstm_lm_training.Network, "log_probs", lambda self, *_: [(self.output.bias.sum() * math.nan, 0)]
    )
    with pytest.raises(AsrError, match=r"step 1: loss or gradient not finite; .* lower --lr"):
        train([write(tmp_path, FAR)], tmp_path / "m.safetensors", SMALL)
