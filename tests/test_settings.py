"""Settings typed by hand: read by the type of their key, or one line with the remedy."""

import dataclasses

import pytest

from asr import config, schema, settings
from asr.errors import InputError


def refused(overrides: list[str], message: str, name: str = "fsdd") -> None:
    with pytest.raises(InputError) as caught:
        config.load(name, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2


@pytest.fixture(scope="module")
def fsdd() -> config.Config:
    return config.load("fsdd", [])


# Right command lines: the override as the shell hands it over, the key, and the value that must come out.
RIGHT = [
    ("seed=7", "seed", 7),
    ("seed=+7", "seed", 7),
    ("seed=010", "seed", 10),  # eight in YAML 1.1
    ("optim.lr=1e-3", "optim.lr", 0.001),
    ("optim.lr=1", "optim.lr", 1.0),
    ("optim.lr=.5", "optim.lr", 0.5),
    ("model.layer_norm=false", "model.layer_norm", False),
    ("model.layer_norm=True", "model.layer_norm", True),
    ("features.high=null", "features.high", None),
    ("features.high=3800", "features.high", 3800.0),
    ("name=1e3", "name", "1e3"),
    ("name=true", "name", "true"),
    ("name=null", "name", None),
    ("name=~", "name", None),
    ("data.train=my=file", "data.train", "my=file"),
    ("data.train=a,b", "data.train", "a,b"),
    ("data.train=/a b/é=x,y.jsonl", "data.train", "/a b/é=x,y.jsonl"),
    ('data.train=it\'s "here" #1 *%@|[x]{y}', "data.train", 'it\'s "here" #1 *%@|[x]{y}'),
    ("data.train=C:\\new\\table", "data.train", "C:\\new\\table"),
    ("data.test=range(1,3)", "data.test", "range(1,3)"),
    ("device=cuda:1", "device", "cuda:1"),
    ("training.autocast=bfloat16", "training.autocast", "bfloat16"),
]

WRONG = [
    ("model.hiden=3", "override 'model.hiden=3': no key 'model.hiden'; did you mean model.hidden?"),
    ("hidden=3", "no key 'hidden'; did you mean model.hidden?"),
    ("learning.lr=3", "no key 'learning.lr'; did you mean optim.lr?"),
    ("kind=mfcc", "no key 'kind'; did you mean features.kind or decoder.kind?"),
    ("modle=tiny", "no key 'modle'; did you mean model?"),
    ("hiddn=3", "no key 'hiddn'; did you mean model.hidden?"),
    ("xyzzy=3", "no key 'xyzzy'; asr train --help lists all keys"),
    ("=3", "no key ''"),
    ("model.hidden.x=3", "no key 'model.hidden.x'; did you mean model.hidden?"),
    ("data@x.train=a", "no key 'data@x.train'"),
    ("model=tyni", "override 'model=tyni': no model 'tyni'; did you mean tiny?"),
    ("model=large", "no model 'large'; there are blstm, tiny"),
    ("model=../model/tiny", "no model '../model/tiny'"),
    ("model=null", "no model 'null'"),
    ("data=fsdd", "data has no variants; set its keys one by one: data.corpus, data.dir"),
    ("+seed=1", "override '+seed=1': no key can be added; to change one, leave out the +"),
    ("++seed=1", "override '++seed=1': no key can be added"),
    ("~optim", "override '~optim': no key can be removed; set it to another value"),
    ("~model.hidden=3", "no key can be removed"),
    ("hydra.run.dir=x", "Hydra's own settings aren't used; out= and name= choose the run folder"),
    ("hydra/launcher=joblib", "Hydra's own settings aren't used"),
    ("hydra=x", "Hydra's own settings aren't used"),
    ("seed", "override 'seed': no '=' in it; write KEY=VALUE"),
    ("seed=", "override 'seed=': nothing behind the '='; write null for no value"),
    ("seed=2.5", "override seed is '2.5', not a whole number from 0 to 2147483647"),
    ("seed=1_000", "seed is '1_000', not a whole number"),
    ("seed=-1", "seed is '-1', not a whole number from 0"),
    ("seed=null", "seed is 'null', not a whole number"),
    ("seed=true", "seed is 'true', not a whole number"),
    ("seed=" + "9" * 5000, "seed is '" + "9" * 57 + "...', not a whole number"),
    ("seed=1,2", "override 'seed=1,2': a list of values needs --multirun, which makes a run of each"),
    ("model=tiny,blstm", "a list of values needs --multirun"),
    ("features.kind=logmel,mfcc", "a list of values needs --multirun"),
    ("model.convolutions=1,2", "a list of values needs --multirun"),
    ("seed=range(1,3)", "functions aren't read; list the values, such as seed=1,2,3 --multirun"),
    ("model=glob(*)", "functions aren't read"),
    ("optim.lr=abc", "optim.lr is 'abc', not a number above 0 to 10"),
    ("optim.lr=nan", "optim.lr is 'nan', not a number"),
    ("optim.lr=.inf", "optim.lr is '.inf', not a number"),
    ("optim.lr=1e999", "optim.lr is 'inf', not a number"),
    ("optim.clip=" + "1" * 41, "optim.clip is '" + "1" * 41 + "', not a number from 0"),
    ("optim.clip=1e999", "optim.clip is 'inf', not a number from 0"),
    ("optim.lr=0", "optim.lr is '0.0', not a number above 0 to 10"),
    ("optim.lr=11", "optim.lr is '11.0', not a number above 0 to 10"),
    ("optim.lr=1:30", "optim.lr is '1:30', not a number"),
    ("model.layer_norm=yes", "model.layer_norm is 'yes', not true or false"),
    ("model.layer_norm=ture", "model.layer_norm is 'ture', not true or false; did you mean true?"),
    ("model.layer_norm=1", "model.layer_norm is '1', not true or false"),
    (
        "model.convolutions=[1,x]",
        "model.convolutions is \"[1, 'x']\", not a list such as [1,2] of numbers from 1 to 8",
    ),
    ("model.convolutions=[1,9]", "model.convolutions is '[1, 9]', not a list"),
    ("model.convolutions=[1,]", "not a list such as [1,2]"),
    ("model.convolutions=2", "model.convolutions is '2', not a list such as [1,2] of numbers from 1 to 8"),
    ("model.convolutions=[" + "1," * 20 + "1]", "not a list such as [1,2]"),
    ("features.kind=logmell", "features.kind is 'logmell', not logmel or mfcc; did you mean logmel?"),
    ("training.autocast=float32", "not bfloat16 or null; did you mean bfloat16?"),
    ("text.normalizer=lowr", "text.normalizer is 'lowr', not none or lower or basic; did you mean lower?"),
    ("device=cdua", "device is 'cdua', not auto or cpu or cuda or cuda:N; did you mean cuda?"),
    ("data.corpus=../x", "data.corpus is '../x', not the name of a corpus or null"),
    ("name=../x", "name is '../x', not a folder name without a slash or a dot in front or null"),
    ("name=a/b", "not a folder name"),
    ("name=" + "a" * 201, "not a folder name"),
    ("out= ", "override out is empty; give it a value"),
    ("data.test= ", "override data.test is empty; write null for none"),
    ("out=" + "a" * 5000, "out is longer than 4096 characters; shorten it"),
    (
        "out=${oc.env:HOME}",
        "out holds '${': variables and interpolations aren't read; write the value itself",
    ),
    ("out=???", "out is ???; give it a value"),
    ("out=a\x1b[31m", "out holds a control character, or bytes that are no UTF-8; remove them"),
    ("out=a\udcff", "out holds a control character, or bytes that are no UTF-8; remove them"),
]

# Settings that contradict one another.
TOGETHER = [
    (
        ["features.coefficients=13"],
        "features.coefficients has no effect with features.kind=logmel; set it to null",
    ),
    (
        ["features.kind=mfcc"],
        "features.coefficients is null, but features.kind=mfcc needs it; set a number, such as 13",
    ),
    (
        ["features=mfcc", "features.coefficients=41"],
        "features.coefficients is above features.mels (40); lower it",
    ),
    (["text.units=bpe"], "text.pieces is null, but text.units=bpe needs it; set a number, such as 256"),
    (["text.pieces=99"], "text.pieces has no effect with text.units=words; set it to null"),
    (["features.high=4001"], "features.high=4001 is above half the rate (4000 Hz); lower it or set null"),
    (["features.low=4000"], "features.low=4000 is not below the upper edge, 4000 Hz"),
    (["features.low=900", "features.high=900"], "features.low=900 is not below the upper edge, 900 Hz"),
    (["features.hop=0.03"], "features.hop=0.03 is above features.window=0.025; lower it"),
    (["model.convolutions=[]"], "model.channels has no effect without model.convolutions; set it to null"),
    (
        ["model.channels=null"],
        "model.channels is null, but model.convolutions need it; set a number, such as 256",
    ),
    (["augment.speed_min=1.3"], "augment.speed_min=1.3 is above augment.speed_max=1.1; lower it"),
    (["augment.frequency_width=41"], "augment.frequency_width=41 is more than a frame has (40); lower it"),
    (
        ["augment.frequency_width=8"],
        "augment.frequency_width has no effect while augment.frequency_masks is 0",
    ),
    (
        ["augment.time_masks=2"],
        "augment.time_masks has no effect while augment.time_share is 0; set both or neither",
    ),
    (
        ["data.cache=x", "data.cache_gigabytes=0"],
        "data.cache has no effect while data.cache_gigabytes is 0; set a size",
    ),
    (["seed=1", "seed=2"], "override 'seed=2': seed is set twice; leave one out"),
    (["model=tiny", "model=blstm"], "model is set twice"),
]


def value(tree: object, key: str) -> object:
    for part in key.split("."):
        tree = getattr(tree, part)
    return tree


@pytest.mark.parametrize(("override", "key", "expected"), RIGHT, ids=[override for override, _, _ in RIGHT])
def test_value_is_read_by_the_type_of_its_key(override, key, expected):
    choices, values = config._read_overrides([override])
    assert (choices, values) == ({}, {key: expected})
    assert type(values[key]) is type(expected)


def test_all_right_overrides_arrive_together(fsdd):
    chosen = {key: (override, expected) for override, key, expected in RIGHT}
    loaded = config.load("fsdd", [override for override, _ in chosen.values()])
    for key in schema.SETTINGS:
        assert value(loaded, key) == (chosen[key][1] if key in chosen else value(fsdd, key))


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_wrong_override_gets_one_line_with_the_remedy(override, message):
    refused([override], message)


@pytest.mark.parametrize(("overrides", "message"), TOGETHER, ids=[message[:60] for _, message in TOGETHER])
def test_contradicting_settings_get_one_line(overrides, message):
    refused(overrides, message)


def test_both_convolutions_and_channels_or_neither(fsdd):
    loaded = config.load("fsdd", ["model.convolutions=[1,2]", "model.channels=32"])
    assert loaded.model == dataclasses.replace(fsdd.model, convolutions=[1, 2], channels=32)
    without = config.load("fsdd", ["model.convolutions=[]", "model.channels=null"]).model
    assert (without.convolutions, without.channels) == ([], None)


def test_ranges_are_described_as_they_are_checked():
    for setting in schema.SETTINGS.values():
        if isinstance(setting.range, schema.Between):
            low, high = setting.range.low, setting.range.high
            assert setting.range.holds(low) is not setting.range.above
            assert not setting.range.holds(low - 1e-9)
            assert setting.range.holds(high) is (high != float("inf"))
            assert not setting.range.holds(float("nan"))
            assert f"{low:.10g}" in setting.words()
        elif setting.range:
            assert all(setting.range.holds(example) for example in setting.range.examples)
        assert setting.words().endswith(" or null") is setting.nullable


def test_ranges_agree_with_the_modules_that_use_the_values():
    from asr import augment

    for name, (low, high) in augment._RANGES.items():
        limits = schema.SETTINGS[f"augment.{name}"].range
        assert (limits.low, limits.high) == (low, high), name


def test_hint_names_only_what_is_near():
    assert settings.hint("tyni", ["blstm", "tiny"]) == "; did you mean tiny?"
    assert settings.hint("qqq", ["blstm", "tiny"]) == ""
