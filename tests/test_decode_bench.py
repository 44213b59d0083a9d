"""The benchmark of decoders at a tiny size and without peers: its texts, its emissions, its rows."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts" / "bench"))
import decode
import decode_data as data
import decode_peers
import decode_rows
import decode_sides
from decode_sides import Emissions, Outcome, Side

WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", "DON'T", "RUN", "HOME", "DOG", "BARKS", "LOUDLY"]


def sentences(count, seed):
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(count)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    lines = [*sentences(600, 0), "THE PURPLE CAT SAT", *sentences(20, 1), "THE ZEBRA RUN HOME"]
    texts = data.split(lines, held_out=21, sentences=4, seed=0)
    return decode_rows.Bench(tmp_path_factory.mktemp("work"), None, texts, rounds=1, frames=300)


def test_the_language_model_does_not_see_the_test_sentences(bench):
    assert (len(bench.texts.train), len(bench.texts.test)) == (601, 4)
    assert bench.texts.hot == ["THE ZEBRA RUN HOME"]
    assert (bench.texts.rare, bench.texts.others) == (["ZEBRA"], ["PURPLE"])


@pytest.mark.parametrize("kind", ["characters", "pieces"])
def test_emissions_are_log_probabilities_that_mostly_spell_the_text(kind):
    texts = sentences(20, 2)
    pieces = data.Pieces.learn(texts, pieces=70)
    tokens, encode = (
        (data.CHARACTERS, data.encode_characters) if kind == "characters" else (pieces.tokens, pieces.encode)
    )
    simulate = data.Simulator(tokens, encode, data.Hearing(hard_words=0.0, weak=0.0, stray=0.0, spread=0.5))
    again, arrays = simulate(texts, seed=1), simulate(texts, seed=1)
    for text, array, same in zip(texts, arrays, again, strict=True):
        assert np.array_equal(array, same)
        assert np.exp(array.astype(np.float64)).sum(1) == pytest.approx(1, abs=1e-5)
        path = array.argmax(1)
        kept = path[np.r_[True, path[1:] != path[:-1]]]
        assert decode_peers.joined([tokens[token] for token in kept if token]) == text


def test_pieces_spell_every_word_with_the_boundary_in_front():
    pieces = data.Pieces.learn(sentences(50, 3), pieces=80)
    assert len(set(pieces.tokens)) == len(pieces.tokens) == 81
    assert "".join(pieces.tokens[number] for number in pieces.encode("THE ZEBRA")) == "|THE|ZEBRA"


@pytest.mark.parametrize(("one", "other", "nearer"), [("B", "P", "X"), ("THE", "TE", "TXE"), ("S", "C", "M")])
def test_what_sounds_alike_is_near(one, other, nearer):
    assert data.difference(one, one) == 0 < data.difference(one, other) < data.difference(one, nearer)


@pytest.mark.parametrize("name", [name for name in decode_rows.ROWS if name not in ("first_call", "pieces_50")])
def test_a_row_is_measured_and_told(bench, name, monkeypatch):
    monkeypatch.setattr(decode_rows, "WEIGHTS", (2.0,))
    row = decode.measure(name, bench)
    assert row["rounds"] == 1
    assert row["command"].startswith("python ")
    assert len(decode.lines(name, row)) == 1 + len(row.get("sides", {})) + len(row["goals"])
    assert all(set(goal) >= {"what", "value", "reached"} for goal in row["goals"])


def test_sides_run_in_turn_and_are_compared(tmp_path):
    emissions = Emissions(
        [np.log(np.full((4, 2), 0.5, np.float32))] * 2, ["A B", "A"], ["<blank>", "A"], tmp_path / "e.npz"
    )
    calls: list[str] = []

    def side(name, seconds, texts, labels=None, rounds=0):
        def run():
            calls.append(name)
            return Outcome(seconds, texts, labels)

        return Side(name, {}, run, rounds)

    mine = side("asr", 1.0, ["A B", "A"], [[1], [1]])
    peers = [side("slow", 8.0, ["A", "A"], [[1, 1], [1]]), side("once", 4.0, ["B", "B"], rounds=1)]
    row = decode_sides.compared([mine, *peers], emissions, rounds=3)
    assert calls == ["asr", "slow", "asr", "slow", "once", "asr", "slow", "asr", "slow"]
    assert row["sides"]["asr"]["us_a_frame"]["median"] == pytest.approx(125_000)
    assert [row["sides"][name]["wer"] for name in ("asr", "slow", "once")] == [0.0, 33.33, 66.67]
    assert {name: each["median"] for name, each in row["ratios"].items()} == {"asr / slow": 0.125, "asr / once": 0.25}
    assert row["search"]["slow worse than asr"] == 1
    goals = decode_rows.goals_of_ratio(row, 0.2)
    assert [(goal["what"], goal["reached"]) for goal in goals] == [("time / once", False), ("WER, %", True)]


def test_memory_of_a_call_is_seen():
    grown = decode_rows.growth(lambda: np.ones(8 << 20).sum())
    assert grown is None or grown > 50
