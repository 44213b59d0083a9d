"""Model files and training states: what is saved comes back, what is damaged or not ours is refused."""

import copy
import json
import math
import os

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_card import GOOD

from asr import checkpoint, files, tensorfile
from asr.errors import AsrError, InputError
from asr.model import AcousticModel


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def weights():
    return AcousticModel(**GOOD["model"]).state_dict()


def expected(card):
    with torch.device("meta"):
        model = AcousticModel(**card["model"])
    return {name: (tuple(weight.shape), weight.dtype) for name, weight in model.state_dict().items()}


def rewrite(path, **changes):
    """The model file with other metadata (None: taken away), its checksum right."""
    with tensorfile.opened(path) as (file, header):
        tensors = tensorfile.read(file, header, path)
    metadata = {key: value for key, value in (header.metadata | changes).items() if value is not None}
    tensorfile.write(path, tensors, metadata)


# The model file


def test_a_model_comes_back_as_it_was_saved(path, weights):
    checkpoint.save_model(path, weights, GOOD)
    card, again = checkpoint.load_model(path, expected)
    assert card == GOOD == checkpoint.read_card(path)
    assert again.keys() == weights.keys() and all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_model_file_is_a_safetensors_file_with_the_card_in_its_metadata(path, weights):
    checkpoint.save_model(path, weights, GOOD)
    assert all(torch.equal(weights[name], w) for name, w in safetensors.torch.load_file(path).items())
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "format_version", "card", "sha256"}
    assert (metadata["format"], metadata["format_version"]) == ("asr", "1")
    assert json.loads(metadata["card"]) == GOOD


def test_equal_models_are_equal_files(tmp_path, weights):
    for name in ("a", "b"):
        checkpoint.save_model(tmp_path / name, dict(reversed(weights.items())) if name == "b" else weights, GOOD)
    assert files.sha256(tmp_path / "a") == files.sha256(tmp_path / "b")


def test_tuples_in_a_card_are_lists_for_its_reader(path, weights):
    card = GOOD | {"model": GOOD["model"] | {"convolutions": (1, 2)}}
    checkpoint.save_model(path, weights, card)
    assert checkpoint.read_card(path) == GOOD


def test_a_fact_that_is_no_number_of_json_does_not_end_a_run(path, weights):
    facts = {"dev": {"loss": math.inf, "rates": [math.nan, 0.5]}}
    checkpoint.save_model(path, weights, GOOD | {"training": facts})
    assert checkpoint.read_card(path)["training"] == {"dev": {"loss": None, "rates": [None, 0.5]}}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_neither_saved_nor_loaded(path, weights, bad):
    checkpoint.save_model(path, weights, GOOD)
    before = path.read_bytes()
    weights["head.bias"][1] = bad
    with pytest.raises(InputError, match=r"weight 'head\.bias' is not finite"):
        checkpoint.save_model(path, weights, GOOD)
    assert path.read_bytes() == before
    tensorfile.write(path, weights, {"format": "asr", "format_version": "1", "card": json.dumps(GOOD)})
    with pytest.raises(InputError, match=r"weight 'head\.bias' is not finite"):
        checkpoint.load_model(path)


def test_a_card_that_could_not_be_loaded_is_not_saved(path, weights):
    with pytest.raises(InputError, match="unknown key 'code'"):
        checkpoint.save_model(path, weights, GOOD | {"code": "x"})
    assert not path.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pt"}, "a safetensors file of another program, not a model of asr"),
        ({"format": None}, "a safetensors file of another program, not a model of asr"),
        ({"format": "asr-state"}, "a training state, not a model of asr"),
        ({"format_version": "2"}, "format version 2, this asr reads up to 1; install a newer asr"),
        ({"format_version": "1.0"}, "its format version is '1.0', no whole number"),
        ({"format_version": "0"}, "its format version is '0', no whole number"),
        ({"format_version": None}, "its format version is '', no whole number"),
        ({"card": None}, "metadata: key 'card' is missing"),
        ({"hook": "x"}, "metadata: unknown key 'hook'"),
        ({"card": "[]"}, "holds a list of 0 instead of a JSON object"),
        ({"card": '{"a": 1, "a": 2}'}, "a key stands twice"),
        ({"card": "{" * 100_000}, "no valid JSON"),
        ({"card": '{"a":' * 100_000}, "no valid JSON"),
        ({"card": json.dumps(GOOD)[:-1] + ', "_target_": "os.system"}'}, "card: unknown key '_target_'"),
    ],
)
def test_metadata_that_are_not_a_models_are_refused(path, weights, changes, message):
    checkpoint.save_model(path, weights, GOOD)
    rewrite(path, **changes)
    for read in (checkpoint.load_model, checkpoint.read_card, checkpoint.describe):
        with pytest.raises(InputError, match=message) as raised:
            read(path)
        assert raised.value.status == 2 and str(raised.value).startswith(str(path))


def test_the_expected_weights_are_compared_before_any_is_read(path, weights, monkeypatch):
    checkpoint.save_model(path, weights | {"extra": torch.ones(1)}, GOOD)
    monkeypatch.setattr(tensorfile, "read", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InputError, match="weight 'extra' belongs to no part of the model"):
        checkpoint.load_model(path, expected)


def test_the_first_difference_of_weights_is_named():
    wanted = {"a": ((2, 3), torch.float32), "b": ((1,), torch.float32)}
    good = {"a": torch.ones(2, 3), "b": torch.ones(1)}
    checkpoint.check_weights(good, wanted, "m")
    for change, message in [
        (
            {"a": torch.ones(3, 2)},
            r"weight 'a' is torch.float32 \(3, 2\), the card asks for torch.float32 \(2, 3\)",
        ),
        (
            {"b": torch.ones(1).half()},
            r"weight 'b' is torch.float16 \(1,\), the card asks for torch.float32 \(1,\)",
        ),
        ({"c": torch.ones(1)}, "weight 'c' belongs to no part of the model"),
    ]:
        with pytest.raises(InputError, match=r"^m: " + message):
            checkpoint.check_weights(good | change, wanted, "m")
    with pytest.raises(InputError, match=r"^m: weight 'b' is missing"):
        checkpoint.check_weights({"a": good["a"]}, wanted, "m")


def test_a_flipped_bit_in_the_weights_is_noticed(path, weights):
    checkpoint.save_model(path, weights, GOOD)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged: its SHA-256 is not the one it was written with"):
        checkpoint.load_model(path)


def test_a_cut_model_is_refused_wherever_it_was_cut(path, weights):
    checkpoint.save_model(path, weights, GOOD)
    data = path.read_bytes()
    for length in [*range(0, 3000, 37), *range(3000, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            checkpoint.load_model(path)


def test_a_model_is_described_in_lines_for_people(path, weights):
    checkpoint.save_model(path, weights, GOOD)
    lines = checkpoint.describe(path).split("\n")
    shown = dict(line.split("  ", 1) for line in lines)
    assert shown["sha256"].strip() == files.sha256(path)
    count = sum(weight.numel() for weight in weights.values())
    assert shown["size"].strip() == f"{path.stat().st_size:,} bytes, {count:,} parameters"
    assert shown["recipe"].strip() == "fsdd" and "model" in shown


# The training state

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
VALUES = st.recursive(
    st.one_of(
        FLOATS,
        st.integers(-(2**80), 2**80),
        st.booleans(),
        st.none(),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def exact(value):
    """A form in which equal means equal to the bit, NaN and the sign of zero included."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return (type(value), value.hex() if isinstance(value, float) else value)


@settings(max_examples=60)
@given(st.dictionaries(st.text("abc", max_size=3), VALUES, max_size=4))
def test_the_values_of_a_state_come_back_to_the_bit(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("state")
    checkpoint.save_state(folder, {}, values)
    assert exact(checkpoint.load_state(folder)[1]) == exact(values)


def test_a_training_state_comes_back_to_the_bit(tmp_path):
    model = AcousticModel(**GOOD["model"])
    optimizer = torch.optim.AdamW(model.parameters())
    frames, lengths = torch.randn(2, 20, 40), torch.tensor([20, 9])
    model(frames, lengths)[0].sum().backward()
    optimizer.step()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors |= {
        "bf16": torch.randn(3).bfloat16(),
        "random": torch.get_rng_state(),
        "nan": torch.tensor([math.nan, math.inf, -0.0]),
        "scalar": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "transposed": torch.arange(6).reshape(2, 3).t(),
    }
    tensors["shared"] = tensors["transposed"]
    checkpoint.save_state(tmp_path / "state", tensors, {"step": 1})
    again, values = checkpoint.load_state(tmp_path / "state")
    assert values == {"step": 1} and again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and again[name].shape == tensor.shape
        assert torch.equal(bits(again[name]), bits(tensor))
    drawn = torch.rand(3)
    torch.set_rng_state(again["random"])
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": (1, 2)}, r"\(1, 2\) is no JSON value"),
        ({"a": {1: 2}}, "key 1 is no text"),
        ({"a": torch.ones(1)}, "is no JSON value"),
    ],
)
def test_values_that_would_come_back_as_something_else_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        checkpoint.save_state(tmp_path, {}, values)
    assert checkpoint.load_state(tmp_path) is None


def test_no_state_is_none(tmp_path):
    assert checkpoint.load_state(tmp_path / "nowhere") is None
    assert checkpoint.load_state(tmp_path) is None


def test_the_newest_state_is_the_only_one_left(tmp_path):
    for step in range(12):
        path = checkpoint.save_state(tmp_path, {"w": torch.full((2,), float(step))}, {"step": step})
    assert list(tmp_path.iterdir()) == [path] and path.name == "state-00000012.safetensors"
    tensors, values = checkpoint.load_state(tmp_path)
    assert values == {"step": 11} and tensors["w"].tolist() == [11, 11]


def test_other_files_in_the_folder_are_let_alone(tmp_path):
    for name in ("state-x.safetensors", "state-1.safetensors", "note.txt"):
        (tmp_path / name).write_text("x")
    checkpoint.save_state(tmp_path, {}, {})
    checkpoint.save_state(tmp_path, {}, {})
    assert checkpoint.load_state(tmp_path) == ({}, {})
    assert len(list(tmp_path.iterdir())) == 4


def two_states(folder):
    """As a process leaves them that is killed between committing a state and removing the one before."""
    first = checkpoint.save_state(folder, {"w": torch.zeros(9)}, {"step": 1})
    content = first.read_bytes()
    second = checkpoint.save_state(folder, {"w": torch.ones(9)}, {"step": 2})
    first.write_bytes(content)
    return first, second


def test_an_unreadable_state_gives_way_to_the_one_before_with_a_warning(tmp_path):
    first, second = two_states(tmp_path)
    second.write_bytes(second.read_bytes()[:-1])
    said = []
    tensors, values = checkpoint.load_state(tmp_path, said.append)
    assert values == {"step": 1} and tensors["w"].sum() == 0
    [line] = said
    assert str(second) in line and line.endswith(f"going on from {first.name}")
    assert checkpoint.load_state(tmp_path) is not None, "the warning is optional"
    third = checkpoint.save_state(tmp_path, {}, {"step": 3})
    assert list(tmp_path.iterdir()) == [third] and third.name > second.name


def test_the_newest_of_two_readable_states_is_taken_in_silence(tmp_path):
    two_states(tmp_path)
    assert checkpoint.load_state(tmp_path, pytest.fail)[1] == {"step": 2}


def test_where_no_state_is_readable_that_is_an_error(tmp_path):
    for path in two_states(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"no readable state .*00000002.*an empty file.*; remove the folder to start anew"
    ):
        checkpoint.load_state(tmp_path)


def test_a_model_is_no_state(tmp_path, weights):
    checkpoint.save_model(tmp_path / "state-00000001.safetensors", weights, GOOD)
    with pytest.raises(InputError, match="a model, not a training state of asr"):
        checkpoint.load_state(tmp_path)


def test_strays_of_killed_processes_are_swept(tmp_path):
    checkpoint.save_state(tmp_path, {}, {"step": 1})
    (tmp_path / ".state-00000002.safetensors.999999999.tmp").write_bytes(b"half")
    assert checkpoint.load_state(tmp_path)[1] == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    checkpoint.save_state(tmp_path, {}, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AsrError, match=r"not written \(No space left on device\); make room"):
        checkpoint.save_state(tmp_path, {}, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load_state(tmp_path)[1] == {"step": 1} and len(list(tmp_path.iterdir())) == 1


def test_a_card_is_not_changed_by_saving_it(path, weights):
    card = copy.deepcopy(GOOD)
    checkpoint.save_model(path, weights, card)
    assert card == GOOD
