"""asr.features refuses settings and batches that make no sense, and says what would."""

import math
import warnings

import pytest
import torch

from asr.errors import InputError
from asr.features import LogMel, build


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "logmels"}, r"features\.kind=logmels: did you mean logmel\?"),
        ({"kind": "wavelet"}, r"features\.kind=wavelet: choose one of logmel, mfcc"),
        ({"kind": ["logmel"]}, r"features\.kind="),
        ({"mel": 80}, r"features\.mel: logmel has no such setting; did you mean mels\?"),
        ({"coefficients": 13}, r"features\.coefficients: logmel has no such setting"),
        (
            {"_target_": "os.system"},
            r"features\._target_: logmel has no such setting; choose one of rate, mels, ",
        ),
        ({"mels": 0}, r"features\.mels=0: choose a whole number from 1 to 256"),
        ({"mels": 257}, r"features\.mels=257: .* 1 to 256"),
        ({"mels": 80.0}, r"features\.mels=80\.0: choose a whole number"),
        ({"mels": True}, r"features\.mels=True: choose a whole number"),
        ({"mels": 3, "convention": "kaldi"}, r"features\.mels=3: .* 4 to 256"),
        ({"rate": 999}, r"features\.rate=999: .* 1000 to 768000"),
        ({"rate": 768_001}, r"features\.rate=768001: .* 1000 to 768000"),
        ({"rate": "16000"}, r"features\.rate=16000: choose a whole number"),
        ({"window": 0.0}, r"features\.window=0\.0: choose a number from 0\.001 to 2\.048"),
        ({"window": 3.0}, r"features\.window=3\.0: .* 0\.001 to 2\.048"),
        ({"window": math.nan}, r"features\.window=nan: choose a number"),
        ({"hop": 0.0}, r"features\.hop=0\.0: choose a number from 0\.001 to 0\.025"),
        ({"hop": 0.03}, r"features\.hop=0\.03: .* 0\.001 to 0\.025"),
        ({"low": -1.0}, r"features\.low=-1\.0: choose a number from 0 to 8000"),
        ({"high": 8001.0}, r"features\.high=8001\.0: .* 20 to 8000"),
        ({"high": 10.0}, r"features\.high=10\.0: .* 20 to 8000"),
        ({"high": 20.0}, r"features\.high=20\.0: must be above features\.low=20\.0"),
        ({"convention": "htk"}, r"features\.convention=htk: choose one of slaney, kaldi"),
        ({"convention": "slany"}, r"features\.convention=slany: did you mean slaney\?"),
        ({"normalize": "utterances"}, r"features\.normalize=utterances: did you mean utterance\?"),
        (
            {"kind": "mfcc", "normalize": "batch"},
            r"features\.normalize=batch: choose one of utterance, level, running, none",
        ),
        ({"top_db": 0.5}, r"features\.top_db=0\.5: choose a number from 1 to 200"),
        ({"top_db": 50.0, "normalize": "running"}, r"features\.top_db=50\.0: normalize=running"),
        ({"kind": "mfcc", "top_db": 50.0, "normalize": "running"}, r"features\.top_db=50\.0: normalize=running"),
        ({"kind": "mfcc", "coefficients": 81}, r"features\.coefficients=81: .* 1 to 80"),
        ({"kind": "mfcc", "coefficients": 0}, r"features\.coefficients=0: .* 1 to 80"),
        (
            {"mels": 256},
            r"features\.mels=256: some bands hold no frequency of the FFT; choose at most \d+, or",
        ),
        (
            {"mels": 2, "low": 101.0, "high": 102.0},
            r"features\.mels=2: some bands .*; move features\.low and",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(settings, message):
    with warnings.catch_warnings(), pytest.raises(InputError, match=message) as caught:
        warnings.simplefilter("error")
        build(**{"kind": "logmel"} | settings)
    assert caught.value.status == 2


@pytest.mark.parametrize("convention", ["slaney", "kaldi"])
def test_the_most_mels_that_an_error_names_are_the_most_that_work(convention):
    settings = {"rate": 8000, "convention": convention}
    with pytest.raises(InputError, match="at most") as caught:
        build("logmel", mels=256, **settings)
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    noise = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    features, _ = build("logmel", mels=most, normalize="none", **settings)(noise, torch.tensor([8000]))
    assert features.min() > -15  # no band is empty
    with pytest.raises(InputError, match=f"some bands .* at most {most},"):
        build("logmel", mels=most + 1, **settings)


@pytest.mark.parametrize(
    ("waveforms", "lengths", "message"),
    [
        (torch.zeros(100), torch.tensor([100]), r"waveforms: want floating point \(batch, samples\)"),
        (torch.zeros(1, 100, dtype=torch.int16), torch.tensor([100]), "got torch.int16"),
        (torch.zeros(1, 100), torch.tensor([100, 100]), r"lengths: want int64 \(1,\)"),
        (torch.zeros(1, 100), torch.tensor([100.0]), "got torch.float32"),
        (torch.zeros(1, 100), torch.tensor([101]), "lengths: want 0 to 100, got 101 to 101"),
        (torch.zeros(2, 100), torch.tensor([5, -1]), "got -1 to 5"),
    ],
)
def test_a_batch_that_is_none_is_refused(waveforms, lengths, message):
    with pytest.raises(ValueError, match=message):
        LogMel()(waveforms, lengths)
