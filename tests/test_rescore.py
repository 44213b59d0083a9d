"""N-best rescoring: the order against brute force, nothing lost at weight 0, settings that have no effect."""

import json
from pathlib import Path

import pytest
import torch
from test_decoding import FSDD, MODEL, WORDS, evaluate, folder, refused

from asr.cli import main
from asr.decode import settings
from asr.decode.beam import BeamSearch
from asr.decode.ngram import NGram
from asr.decode.rescore import Rescorer
from asr.errors import InputError
from asr.lstm_lm.model import LanguageModel
from asr.lstm_lm.network import Network

TOKENS = ["<blank>", "|", *"efghinorstuvwxz"]

__all__ = ["folder"]  # a fixture


def network(unit="word", known=8, seed=5) -> LanguageModel:
    """A model with large random weights, so that it disagrees with any n-gram; two digits are unknown to it."""
    torch.manual_seed(seed)
    words = ["</s>", "<unk>", *(WORDS[:known] if unit == "word" else TOKENS[1:])]
    made = LanguageModel(Network(len(words), 8, 16, 1, []), words, unit, "none", 1e-6)
    with torch.no_grad():
        for weight in made.network.parameters():
            weight.mul_(3)
    return made


def emissions(count=6, frames=40) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [(2 * torch.randn(frames, len(TOKENS), generator=draw)).log_softmax(1) for _ in range(count)]


@pytest.mark.parametrize("unit", ["word", "character"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_order_is_that_of_brute_force(folder, unit, weight):
    own, search = network(unit), BeamSearch(TOKENS, NGram.load("words.arpa"), nbest=30, lm_weight=0.7, unknown=-4.0)
    moved = 0
    for rows in emissions():
        first = search.decode(rows)
        expected = {}
        for one in first:
            words = one.text.split() if unit == "word" else list(one.text.replace(" ", "|"))
            unknown = sum(word not in own.ids for word in words) if unit == "word" else 0
            lm = (1 - weight) * one.lm + weight * (0.7 * own.logprob(words) - 4.0 * unknown)
            expected[one.text] = (one.acoustic + lm + one.bonus + one.hot, lm, one.acoustic)
        found = Rescorer(search, own, weight, 30).decode(rows)
        assert [one.text for one in found] == sorted(expected, key=lambda text: -expected[text][0])
        assert [(one.score, one.lm, one.acoustic) for one in found] == [
            pytest.approx(expected[one.text], abs=1e-4) for one in found
        ]
        moved += found[0].text != first[0].text
    assert moved


def test_at_weight_0_nothing_is_lost(folder):
    search = BeamSearch(TOKENS, NGram.load("words.arpa"), nbest=5)
    for rows in emissions():
        assert Rescorer(search, network(), 0.0, 20).decode(rows) == search.with_settings(nbest=20).decode(rows)[:5]


def test_only_as_many_as_asked_for_come_back_of_those_that_were_read(folder):
    decoder = Rescorer(BeamSearch(TOKENS, NGram.load("words.arpa")), network(), 1.0, 20)
    [one] = decoder.decode(emissions(1)[0])
    assert one == max(Rescorer(decoder._search, network(), 1.0, 20).decode(emissions(1)[0]), key=lambda h: h.score)
    assert {key: decoder.settings[key] for key in ("nbest", "rescore_nbest", "rescore_weight")} == {
        "nbest": 1,
        "rescore_nbest": 20,
        "rescore_weight": 1.0,
    }


@pytest.mark.parametrize(
    ("given", "weight", "nbest", "problem"),
    [
        ({"lm": True}, 1.5, 50, "rescore_weight is 1.5; it goes from 0 to 1"),
        ({"lm": True}, 0.5, 1, "rescore_nbest is 1"),
        ({"lm": True, "nbest": 9}, 0.5, 8, "rescore_nbest is 8"),
        ({}, 0.5, 50, "add --lm"),
        ({"lm": True, "lm_weight": 0.0}, 0.5, 50, "no effect at lm_weight 0"),
    ],
)
def test_a_setting_without_effect_or_out_of_range_is_refused(folder, given, weight, nbest, problem):
    given = given | ({"lm": NGram.load("words.arpa")} if "lm" in given else {})
    with pytest.raises(InputError, match=problem):
        Rescorer(BeamSearch(TOKENS, **given), network(), weight, nbest)


def test_flags_and_decoder_json_name_the_network(folder, capsys):
    network().save("lstm.safetensors", {})
    flags = ["--decoder", "beam", "--lm", "words.arpa", "--lm-weight", "1"]
    plain = evaluate(capsys, *flags)
    nothing = evaluate(capsys, *flags, "--rescore", "lstm.safetensors", "--rescore-weight", "0")
    assert nothing["wer"] == plain["wer"]
    alone = evaluate(capsys, *flags, "--rescore", "lstm.safetensors", "--rescore-weight", "1", "--rescore-nbest", "9")
    assert alone["decoder"]["rescore_nbest"] == 9
    assert alone["wer"] != plain["wer"]
    options = {"lm": Path("words.arpa"), "lm_weight": 1.0, "rescore": Path("lstm.safetensors")}
    settings.write("decoder.json", options | {"rescore_weight": 1.0, "rescore_nbest": 9})
    again = evaluate(capsys, "--decoder", "decoder.json")
    assert (again["wer"], again["decoder"]) == (alone["wer"], alone["decoder"])
    network(known=9).save("lstm.safetensors", {})
    assert "another file than the one it was tuned with" in refused(
        capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "decoder.json"
    )


def test_transcribe_shows_rescored_hypotheses_with_their_parts(folder, capsys):
    network().save("lstm.safetensors", {})
    flags = ["--decoder", "beam", "--lm", "words.arpa", "--rescore", "lstm.safetensors", "--nbest", "3"]
    capsys.readouterr()
    assert main(["transcribe", "-q", "-m", str(MODEL), str(FSDD[0]), "-f", "json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)["alternatives"]
    assert len(found) == 3
    assert found == sorted(found, key=lambda one: -one["score"])
    for one in found:
        assert one["score"] == pytest.approx(one["acoustic"] + one["lm"] + one["bonus"] + one["hot"])


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--rescore", "lstm.safetensors"], "--rescore has no effect on greedy decoding"),
        (["--decoder", "beam", "--rescore", "lstm.safetensors"], "add --lm"),
        (["--decoder", "beam", "--lm", "words.arpa", "--rescore-weight", "0.5"], "rescore_weight has no effect"),
        (["--decoder", "beam", "--lm", "words.arpa", "--rescore", "words.arpa"], "an ARPA file goes to --lm"),
        (["--decoder", "beam", "--lm", "lstm.safetensors"], "rescores what is found with one: --rescore"),
        (["--decoder", "beam", "--lm", "words.arpa", "--rescore", "none"], "none: No such file"),
        (["--decoder", "beam", "--lm", "words.arpa", "--rescore", MODEL], "a model, not an LSTM language model"),
    ],
)
def test_what_is_wrong_is_one_line(folder, capsys, flags, problem):
    network().save("lstm.safetensors", {})
    assert problem in refused(capsys, "transcribe", "-q", "-m", MODEL, FSDD[0], *flags)


def test_tune_finds_a_share_and_writes_it(folder, capsys):
    network(known=10, seed=11).save("lstm.safetensors", {})
    grid = ["--lm-weights", "0.5", "--word-bonuses", "0", "--beams", "16", "--rescore-weights", "0", "0.5", "1"]
    command = ["tune", "-q", "-m", MODEL, "--manifest", "dev.jsonl", "--lm", "words.arpa", *grid]
    assert main([*map(str, command), "--rescore", "lstm.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["rescoring"]
    assert [share["rescore_weight"] for share in found["shares"]] == [0, 0.5, 1]
    assert found["best"]["wer"] == min(share["wer"] for share in found["shares"])
    assert found["search_and_best"]["a"]["rate"] == found["shares"][0]["wer"]
    written = json.loads(Path("decoder.json").read_text())
    assert written["rescore_weight"] == found["best"]["rescore_weight"] > 0
    assert written["rescore"]["path"] == "lstm.safetensors"
    assert evaluate(capsys, "--decoder", "decoder.json")["wer"]["rate"] == found["best"]["wer"]
    assert "--rescore-weights has no effect" in refused(capsys, *command)
    assert "rescore_nbest has no effect without an LSTM language model; add --rescore" in refused(
        capsys, *command[: command.index("--rescore-weights")], "--rescore-nbest", "9"
    )
    wrong = [*command[: command.index("--rescore-weights")], "--rescore", "lstm.safetensors", "--rescore-weights"]
    assert "rescore_weight is nan; it goes from 0 to 1" in refused(capsys, *wrong, "0", "nan")


@pytest.mark.parametrize(
    ("weight", "share", "said"),
    [("0.5", "1", "leaves it out"), ("0.5", "0", "leaves it out"), ("0", "1", "leaves the LSTM out")],
    ids=["no better", "no share", "no language model"],
)
def test_a_network_that_does_not_help_is_left_out_of_decoder_json(folder, capsys, weight, share, said):
    network().save("lstm.safetensors", {})
    weights = [weight, "20"] if weight == "0" else [weight]  # the network needs one above 0; 20 is far too much
    grid = ["--lm-weights", *weights, "--word-bonuses", "0", "--beams", "16", "--rescore-weights", share]
    command = ["tune", "-q", "-m", MODEL, "--manifest", "dev.jsonl", "--lm", "words.arpa", *grid]
    assert main([*map(str, command), "--rescore", "lstm.safetensors", "--rescore-nbest", "9"]) == 0
    assert said in capsys.readouterr().out
    written = json.loads(Path("decoder.json").read_text())
    assert not [key for key in written if key.startswith("rescore")]
