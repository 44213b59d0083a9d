"""The batched beam search on the device itself: what the CPU gives, with no wait between the frames."""

import math

import numpy as np
import pytest
import torch
from test_batched import LETTERS, batch, ragged, random_arpa
from test_beam import arpa

from asr.decode import steps
from asr.decode.batched import BatchedBeamSearch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = [{}, {"beam": 5, "nbest": 5, "token_top": 0, "token_min": -math.inf}, {"beam": 64, "beam_min": -3.0}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_device_gives_what_the_cpu_gives(order, settings, tmp_path):
    rng = np.random.default_rng(order)
    lm = arpa(tmp_path, random_arpa(rng, LETTERS[1:], order)) if order else None
    search, (log_probs, lengths) = BatchedBeamSearch(LETTERS, lm, **settings), batch(ragged(rng, 33, 80, len(LETTERS)))
    lengths[3] = 0
    on_device = search.decode(log_probs.cuda(), lengths.cuda())
    for found, expected in zip(on_device, search.decode(log_probs, lengths), strict=True):
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)  # float64 on both
            assert (one.text, one.frames, one.lm) == (other.text, other.frames, pytest.approx(other.lm, abs=1e-9))
            assert [word.word for word in one.words] == [word.word for word in other.words]


def test_no_frame_waits_for_the_device(tmp_path, monkeypatch):
    rng, step = np.random.default_rng(0), steps.step
    search = BatchedBeamSearch(LETTERS, arpa(tmp_path, random_arpa(rng, LETTERS[1:], 3)))

    def watched(*given):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    log_probs, lengths = batch(ragged(rng, 8, 40, len(LETTERS)))
    expected = search.decode(log_probs, lengths)
    monkeypatch.setattr(steps, "step", watched)
    found = search.decode(log_probs.cuda(), lengths)
    assert [[one.text for one in own] for own in found] == [[one.text for one in own] for own in expected]
