"""The card of a model: a closed list of what it may say, and a face that people can read."""

import copy
import math
from typing import Any

import pytest
import torch

from asr import card, features
from asr.errors import InputError
from asr.model import AcousticModel

GOOD: dict[str, Any] = {
    "features": {"kind": "logmel", "rate": 8000, "mels": 40, "window": 0.025, "hop": 0.01, "low": 20.0},
    "normalizer": "basic",
    "tokens": ["<blank>", "|", "a", "é"],
    "model": {
        "features": 40,
        "tokens": 4,
        "stack": 2,
        "convolutions": [1, 2],
        "channels": None,
        "hidden": 16,
        "layers": 2,
        "dropout": 0.2,
        "layer_norm": True,
    },
    "decoder": {"kind": "greedy"},
    "training": {"recipe": "fsdd", "seconds": 1.5, "settings": {"seed": 1, "optim": {"lr": 0.001}}},
}

ABSENT = object()


def changed(where: str, value: object) -> dict[str, Any]:
    """The good card with one value changed, added or taken away."""
    result = copy.deepcopy(GOOD)
    *parts, last = where.split(".")
    inner = result
    for part in parts:
        inner = inner[part]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return result


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_good_card_is_taken_and_builds_what_it_names():
    card.check_card(GOOD, "m")
    assert features.build(**GOOD["features"]).size == GOOD["model"]["features"]
    with torch.device("meta"):
        AcousticModel(**GOOD["model"])


@pytest.mark.parametrize(
    "settings",
    [
        {
            "kind": "logmel",
            "rate": 16000,
            "mels": 80,
            "high": None,
            "convention": "kaldi",
            "normalize": "running",
        },
        {
            "kind": "mfcc",
            "rate": 8000,
            "mels": 40,
            "coefficients": 13,
            "high": 4000.0,
            "convention": "slaney",
        },
    ],
)
def test_every_front_end_has_a_card(settings):
    features.build(**settings)
    card.check_card(changed("features", settings), "m")


BAD = [
    ("_target_", "os.system", "card: unknown key '_target_'"),
    ("training", ABSENT, "card: key 'training' is missing"),
    ("features", [], "card: 'features' is a list of 0, not a dict"),
    ("tokens", {}, "card: 'tokens' is a JSON object of 0, not a list"),
    ("normalizer", 1, "card: 'normalizer' is 1, not a str"),
    ("normalizer", "os.system", "card: no normaliser 'os.system'; known are none,"),
    (
        "features.kind",
        "asr.features.LogMel",
        "features.kind is 'asr.features.LogMel', which no model of asr has",
    ),
    ("features.kind", ABSENT, "features: key 'kind' is missing"),
    ("features._target_", "os.system", "features: unknown key '_target_'"),
    ("features.rate", 10**9, "features.rate is 1000000000"),
    ("features.rate", 8000.0, "features.rate is 8000.0"),
    ("features.mels", 257, "features.mels is 257"),
    ("features.mels", True, "features.mels is True"),
    ("features.mels", "40", "features.mels is '40'"),
    ("features.coefficients", 0, "features.coefficients is 0"),
    ("features.window", 3600, "features.window is 3600"),
    ("features.hop", 0, "features.hop is 0"),
    ("features.hop", math.nan, "nan in the card is no number of JSON"),
    ("features.low", -1, "features.low is -1"),
    ("features.high", "4000", "features.high is '4000'"),
    ("features.convention", "htk", "features.convention is 'htk'"),
    ("features.normalize", None, "features.normalize is None"),
    ("model.hidden", 8193, "model.hidden is 8193"),
    ("model.hidden", 10**400, "model.hidden is a whole number of more than 38 digits"),
    ("model.hidden", 0, "model.hidden is 0"),
    ("model.hidden", ABSENT, "model: key 'hidden' is missing"),
    ("model.layers", 33, "model.layers is 33"),
    ("model.features", 1025, "model.features is 1025"),
    ("model.tokens", 100_001, "model.tokens is 100001"),
    ("model.stack", 17, "model.stack is 17"),
    ("model.convolutions", [1] * 9, "model.convolutions is a list of 9"),
    ("model.convolutions", [9], "model.convolutions is a list of 1"),
    ("model.convolutions", "12", "model.convolutions is '12'"),
    ("model.channels", 8193, "model.channels is 8193"),
    ("model.dropout", 1, "model.dropout is 1"),
    ("model.layer_norm", 1, "model.layer_norm is 1"),
    ("model.cell", "x", "model: unknown key 'cell'"),
    ("decoder", {"kind": "beam"}, "decoder.kind is 'beam'"),
    ("decoder.lm", "/etc/passwd", "decoder: unknown key 'lm'"),
    ("tokens", ["<blank>", "a"], "card: 2 tokens, but model.tokens is 4"),
    ("tokens", ["<blank>", "a", "b", "a"], "card: a token stands twice"),
    ("tokens", ["a", "<blank>", "b", "c"], "card: the first token is 'a', not '<blank>'"),
    ("tokens", ["<blank>", "|a", "a|b", "b"], r"card: the token list is wrong: 'a\|b' is no piece of a word"),
    ("tokens", ["<blank>", "|a", "a b", "b"], r"card: the token list is wrong: 'a b' is no piece of a word"),
    ("tokens", ["<blank>", "|a", "|a b", "|b"], r"card: the token list is wrong: '\|a b' is not a word behind '\|'"),
    ("tokens", ["<blank>", "a", " ", "b"], "card: the token list is wrong: ' ' is not one visible character"),
    ("tokens", ["<blank>", "a", "b", 3], "card: token 3 is no text"),
    ("tokens", ["<blank>", "a", "b", ""], "card: token '' is no text"),
    ("tokens", ["<blank>", "a", "b", "\x1b[2J"], r"card: token '\\x1b\[2J' is no text"),
    ("tokens", ["<blank>", "a", "b", "\ud800"], r"card: token '\\ud800' is no text"),
    ("tokens", ["<blank>", "a", "b", "x" * 101], "card: token 'xxx.* is no text of 1 to 100"),
    ("training.deep", nested(20), "JSON nested deeper than 16"),
    ("training.bad", math.inf, "inf in the card is no number of JSON"),
    ("training.bad", {1: 2}, "key 1 is no text"),
    ("training.bad", (1, 2), r"\(1, 2\) is no JSON value"),
    ("training.bad", b"x", "b'x' is no JSON value"),
]


@pytest.mark.parametrize(
    ("where", "value", "message"), BAD, ids=[f"{where}-{n}" for n, (where, _, _) in enumerate(BAD)]
)
def test_a_card_outside_the_closed_list_is_refused(where, value, message):
    with pytest.raises(InputError, match="^m.safetensors: .*" + message) as raised:
        card.check_card(changed(where, value), "m.safetensors")
    assert raised.value.status == 2 and str(raised.value).isprintable()


@pytest.mark.parametrize("value", [None, [], "card", 1])
def test_a_card_that_is_no_object_is_refused(value):
    with pytest.raises(InputError, match=r"card is .*, not a JSON object"):
        card.check_card(value, "m")


def test_channels_may_be_absent():
    card.check_card(changed("model.channels", ABSENT), "m")


def test_the_limits_themselves_are_allowed():
    for where, value in [
        ("hidden", 8192),
        ("layers", 32),
        ("stack", 16),
        ("convolutions", [8] * 8),
        ("channels", 1),
    ]:
        card.check_card(changed(f"model.{where}", value), "m")
    card.check_card(changed("training.deep", nested(card.MAX_DEPTH - 2)), "m")
    with pytest.raises(InputError):
        card.check_card(changed("training.deep", nested(card.MAX_DEPTH - 1)), "m")


def test_facts_are_for_people():
    whole = changed(
        "training.dev",
        {"unit": "word", "rate": 0.0123, "interval": [0.01, 0.02], "count": 300, "normalizer": "basic"},
    )
    shown = dict(card.facts(whole))
    assert shown["features"] == "kind logmel, rate 8000, mels 40, window 0.025, hop 0.01, low 20.0"
    assert shown["tokens"] == "4: <blank> | a é"
    assert shown["normaliser"] == "basic" and shown["decoder"] == "kind greedy"
    assert shown["network"].endswith(
        "convolutions [1, 2], channels null, hidden 16, layers 2, dropout 0.2, layer_norm true"
    )
    assert shown["recipe"] == "fsdd" and shown["seconds"] == "1.5"
    assert shown["settings"] == "seed 1" and shown["settings.optim"] == "lr 0.001"
    assert shown["dev error rate"] == "1.23 % [1.00, 2.00] of 300 words"


@pytest.mark.parametrize(
    "dev", [{"unit": 1}, {"unit": "word", "rate": "x", "interval": [0, 1], "count": 1}, {}, [], None]
)
def test_facts_of_any_shape_are_shown(dev):
    assert any(name == "dev" for name, _ in card.facts(changed("training.dev", dev)))


def test_facts_cannot_steer_a_terminal():
    hostile = changed("training", {"a\x1b[31m\n": "b\r\x07\ud800", "c": ["\x1b]0;x\x07"]})
    lines = [text for line in card.facts(hostile) for text in line]
    assert all(line.isprintable() for line in lines)


def test_a_long_list_of_tokens_is_cut():
    tokens = ["<blank>", *(chr(0x4E00 + number) for number in range(99))]
    shown = dict(card.facts(changed("tokens", tokens)))["tokens"]
    assert shown.startswith("100: <blank> ") and shown.endswith(" ...") and len(shown) < 150
