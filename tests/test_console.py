"""What a person sees while asr works."""

import pytest

from asr import console
from asr.console import Counter, Screen


@pytest.fixture
def lines(monkeypatch):
    """Advance a counter of 100 at the times given; returns the line behind each step."""

    def at(times: list[float]) -> list[str]:
        now = iter([0.0, *times])
        monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
        screen = Screen.__new__(Screen)
        screen._console = console.Console(quiet=True)
        screen.is_due, screen.say = lambda: True, said.append
        counter = Counter(screen, "transcribing", 100)
        for _ in times:
            counter.advance()
        return said

    said: list[str] = []
    return at


def test_the_first_of_a_batch_does_not_tell_the_time_left(lines):
    burst = [10 + 0.001 * n for n in range(10)]
    assert {line.partition(", ")[2] for line in lines(burst)} == {""}


def test_later_batches_tell_it_by_what_those_before_took(lines):
    said = lines([10.0 * (1 + n // 10) + 0.001 * (n % 10) for n in range(40)])
    assert said[10] == "transcribing: 11 of 100, 1:29 min left"  # 10 took 10 s
    assert said[39] == "transcribing: 40 of 100, 1:00 min left"


def test_things_done_one_by_one_tell_it_from_the_second_on(lines):
    assert lines([2.0, 4.0, 6.0])[1:] == [
        "transcribing: 2 of 100, 3:16 min left",
        "transcribing: 3 of 100, 3:14 min left",
    ]
