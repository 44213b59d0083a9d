"""What LSTMs are for is learnt here too, in seconds; the longer runs and their figures: docs/lstm.md."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_PATH = Path(__file__).parent.parent / "scripts" / "bench" / "lstm_tasks.py"


@pytest.fixture(scope="module")
def tasks():
    specification = importlib.util.spec_from_file_location("lstm_tasks", _PATH)
    module = importlib.util.module_from_spec(specification)
    sys.modules["lstm_tasks"] = module
    specification.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def test_a_symbol_is_remembered_over_a_lag_at_which_a_plain_rnn_stays_at_chance(tasks):
    assert tasks.lag_task("lstm", lag=50, steps=250) > 0.99
    assert tasks.lag_task("rnn", lag=50, steps=250) < 0.6


def test_a_chaotic_series_is_forecast_better_than_by_a_line_and_by_its_last_value(tasks):
    errors = tasks.forecast(steps=300)
    assert errors["lstm"] < 0.8 * errors["linear"] < errors["last value"]


def test_characters_are_foretold_better_than_by_three_of_them(tasks):
    bits = tasks.characters(steps=250, hidden=128)
    assert bits["lstm"] < bits["3-gram"]


@pytest.mark.slow
def test_two_marked_numbers_are_added_over_a_lag_at_which_a_plain_rnn_stays_at_chance(tasks):
    assert tasks.adding("lstm") < 0.02
    assert tasks.adding("rnn") > 0.1


def test_the_series_is_that_of_the_published_equation(tasks):
    """Its slope at each point is what the equation says, by central differences."""
    series = tasks.mackey_glass(400)
    slope = (series[2:] - series[:-2]) / 2
    then, now = series[:-18], series[17:-1]
    expected = 0.2 * then / (1 + then**10) - 0.1 * now
    assert abs(slope[16:] - expected).max() < 0.01
    assert 0.2 < series.min() < 0.6 and 1.1 < series.max() < 1.5


def test_the_3_gram_model_gives_the_entropy_of_a_text_that_it_knows(tasks):
    assert tasks.trigram_bits("abc" * 1000, "abc" * 100, 3) == pytest.approx(0, abs=0.001)
    assert tasks.trigram_bits("ab", "cdcdcdcd", 4) == pytest.approx(2)
