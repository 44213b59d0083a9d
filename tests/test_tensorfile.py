"""Safetensors files: what is written can be read by anyone, what is damaged is refused."""

import hashlib
import json
import os
import random
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import tensorfile
from asr.errors import AsrError, InputError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def load(path) -> dict[str, torch.Tensor]:
    with tensorfile.opened(path) as (file, header):
        return tensorfile.read(file, header, path)


def content(header: dict, body: bytes = b"", **metadata: str) -> bytes:
    """A file made by hand, with the right checksum."""
    head = json.dumps({"__metadata__": {"sha256": hashlib.sha256(body).hexdigest(), **metadata}, **header}).encode()
    return len(head).to_bytes(8, "little") + head + body


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


tensors = st.dictionaries(
    st.text("abc._/", min_size=1, max_size=8),
    st.builds(
        lambda dtype, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 4), max_size=4),
        st.integers(0, 9),
    ),
    max_size=6,
)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


@settings(max_examples=60)
@given(tensors)
def test_what_is_written_comes_back_and_the_safetensors_package_reads_the_same(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("a") / "a.safetensors"
    tensorfile.write(path, found, {"key": "value"})
    for other in (load(path), safetensors.torch.load_file(path)):
        assert other.keys() == found.keys()
        assert all(same(other[name], found[name]) for name in found)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["key"] == "value"


def test_shared_transposed_expanded_and_strided_tensors_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    found = {
        "a": base,
        "same": base,
        "t": base.t(),
        "s": base[:, ::2],
        "e": torch.ones(1).expand(3),
        "0": base[0, 0],
    }
    tensorfile.write(tmp_path / "a", found, {})
    again = load(tmp_path / "a")
    assert all(torch.equal(found[name], again[name]) and found[name].shape == again[name].shape for name in found)
    again["a"].zero_()
    assert torch.equal(again["same"], base), "each has its own memory"


def test_parameters_that_require_gradients_are_written(tmp_path):
    tensorfile.write(tmp_path / "a", {"w": torch.nn.Parameter(torch.ones(2))}, {})
    assert not load(tmp_path / "a")["w"].requires_grad


def test_equal_tensors_give_equal_files_whatever_the_order(tmp_path):
    a, b = torch.zeros(3), torch.ones(2, dtype=torch.int64)
    tensorfile.write(tmp_path / "1", {"a": a, "b": b}, {"x": "1", "y": "2"})
    tensorfile.write(tmp_path / "2", {"b": b, "a": a}, {"x": "1", "y": "2"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_tensors_are_aligned_for_readers_that_map_the_file(tmp_path):
    tensorfile.write(
        tmp_path / "a", {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3, dtype=torch.float64)}, {}
    )
    with tensorfile.opened(tmp_path / "a") as (_, header):
        assert header.start % 8 == 0
        assert all(entry.begin % entry.dtype.itemsize == 0 for entry in header.tensors.values())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "a"
    tensorfile.write(path, {"w": torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"not written: \d+ bytes of header"):
        tensorfile.write(path, {}, {"x": "x" * tensorfile.MAX_HEADER})
    with pytest.raises(AsrError, match="not written"):
        tensorfile.write(path.parent, {}, {})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


BAD = {
    "empty": (b"", "an empty file"),
    "short": (b"\x10\0\0", "not a safetensors file"),
    "text": (b"root:x:0:0:root:/root:/bin/sh\n", "not a safetensors file"),
    "pickle": (
        b"\x80\x04\x95" + bytes(20),
        "a PyTorch pickle is never loaded .it can run code.; give a model.safetensors",
    ),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip, perhaps PyTorch's: a PyTorch pickle is never loaded"),
    "header of 2^63": (b"\0\0\0\0\0\0\0\x80{}", "a header of 9223372036854775808 bytes in a file of 10"),
    "header beyond the file": (b"\x50\0\0\0\0\0\0\0{}", "a header of 80 bytes in a file of 10"),
    "header of 1 byte": (b"\1\0\0\0\0\0\0\0{", "a header of 1 bytes"),
    "header of no bytes": (b"\0\0\0\0\0\0\0\0{}", "a header of 0 bytes"),
    "header too large": ((50_000_000).to_bytes(8, "little") + b"{" + b" " * 50_000_000, "limit 4000000"),
    "no JSON": (b"\3\0\0\0\0\0\0\0{a}", "no valid JSON"),
    "not UTF-8": (b'\4\0\0\0\0\0\0\0{"\xff}', "no valid JSON"),
    "a key twice": (b'\x0e\0\0\0\0\0\0\0{"a":1,"a":1} ', "no valid JSON .*a key stands twice"),
    "deep JSON": (b"\x40\x0d\x03\0\0\0\0\0" + b'{"a":' * 40000, "no valid JSON"),
    "metadata no object": (content({"__metadata__": 1}), "metadata of its header are not all texts"),
    "metadata no text": (content({"__metadata__": {"a": 1}}), "metadata of its header are not all texts"),
    "too many tensors": (
        content({str(i): entry(shape=[0], offsets=[0, 0]) for i in range(10_001)}),
        "10001 tensors",
    ),
    "entry no object": (content({"w": 1}), "not described by dtype, shape and data_offsets"),
    "entry with more": (content({"w": {**entry(), "code": "x"}}, bytes(8)), "not described by"),
    "entry with less": (content({"w": {"dtype": "F32"}}), "not described by"),
    "unknown dtype": (content({"w": entry("F128")}, bytes(8)), "type 'F128' is none of F64, F32"),
    "dtype no text": (content({"w": entry(["F32"])}, bytes(8)), "type a list of 1 is none of"),
    "shape no list": (content({"w": entry(shape=2)}, bytes(8)), "its shape is no list of up to 8 sizes"),
    "shape of floats": (
        content({"w": entry(shape=[2.0])}, bytes(8)),
        "its shape is no list of up to 8 sizes",
    ),
    "shape of booleans": (content({"w": entry(shape=[True, 2])}, bytes(8)), "is no list of up to 8 sizes"),
    "negative size": (content({"w": entry(shape=[-1, -2])}, bytes(8)), "is no list of up to 8 sizes"),
    "rank 9": (content({"w": entry(shape=[2] + [1] * 8)}, bytes(8)), "is no list of up to 8 sizes"),
    "shape overflow": (content({"w": entry(shape=[2**33, 2**33])}, bytes(8)), "does not fit its shape"),
    "huge size": (content({"w": entry(shape=[2**80])}, bytes(8)), "is no list of up to 8 sizes"),
    "offsets no list": (content({"w": entry(offsets=8)}, bytes(8)), "does not fit its shape"),
    "one offset": (content({"w": entry(offsets=[8])}, bytes(8)), "does not fit its shape"),
    "end before begin": (content({"w": entry(offsets=[8, 0])}, bytes(8)), "does not fit its shape"),
    "shape and range differ": (content({"w": entry(shape=[3])}, bytes(8)), "does not fit its shape"),
    "overlap": (
        content({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "tensor 'b' starts at byte 4, not at 8",
    ),
    "hole": (
        content({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
        "tensor 'b' starts at byte 12, not at 8",
    ),
    "trailing bytes": (content({"w": entry()}, bytes(9)), "9 bytes of tensors, its header speaks of 8"),
    "cut": (content({"w": entry()}, bytes(7)), "7 bytes of tensors, its header speaks of 8"),
    "name not printable": (
        content({"a\x1b[31m": entry()}, bytes(8)),
        r"tensor 'a\\x1b\[31m': its name is too long or not",
    ),
    "name too long": (content({"a" * 501: entry()}, bytes(8)), "its name is too long or not printable"),
    "wrong checksum": (
        content({"w": entry()}, bytes(8), sha256="0" * 64),
        "damaged: its SHA-256 is not the one",
    ),
    "no checksum": (
        content({"__metadata__": {}, "w": entry()}, bytes(8)),
        "damaged: its SHA-256 is not the one",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_in_one_line_that_says_what_is_wrong(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD[kind][0])
    with pytest.raises(InputError, match=BAD[kind][1]) as raised:
        load(path)
    message = str(raised.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) + 300
    assert raised.value.status == 2


def test_a_good_file_made_by_hand_is_read(tmp_path):
    (tmp_path / "a").write_bytes(content({"w": entry()}, bytes(8)))
    assert torch.equal(load(tmp_path / "a")["w"], torch.zeros(2))


def test_a_header_that_starts_like_a_pickle_is_no_pickle(tmp_path):
    head = content({"w": entry()}, b"")[8:]
    head += b" " * (0x280 - len(head))
    (tmp_path / "a").write_bytes((0x280).to_bytes(8, "little") + head + bytes(8))
    with pytest.raises(InputError, match="SHA-256"):
        load(tmp_path / "a")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "NUL", "unreadable", "loop"])
def test_what_is_no_ordinary_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "a"
    reason = "not an ordinary file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "NUL":
        path, reason = "a\0b", "null"
    elif kind == "missing":
        reason = "No such file or directory; check the path"
    elif kind == "loop":
        path.symlink_to(path)
        reason = "[Tt]oo many levels of symbolic links"
    elif kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root may read every file")
        path.write_bytes(b"x")
        path.chmod(0)
        reason = "Permission denied"
    with pytest.raises(InputError, match=reason):
        load(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a"
    tensorfile.write(path, {"w": torch.ones(1_000_000)}, {})
    with tensorfile.opened(path) as (file, header):
        os.truncate(path, 1_000_000)
        with pytest.raises(InputError, match="cut short while it was read"):
            tensorfile.read(file, header, path)


def test_nothing_a_stranger_wrote_fills_the_error_message():
    assert tensorfile.short(10**5000) == "a whole number of more than 38 digits"
    assert len(tensorfile.short("x" * 10**6)) <= 60
    assert tensorfile.short([1] * 1000) == "a list of 1000"
    assert tensorfile.short("\ud800\x1b") == r"'\ud800\x1b'"


def mutated(original: bytes, draw: random.Random) -> bytes:
    data = bytearray(original)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data))
        match draw.randrange(5):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                data[at] = draw.choice(b'"{}[]:,0198\\e-.ntf')
            case 2:
                del data[at : at + draw.randint(1, 8)]
            case 3:
                data[at:at] = data[at : at + draw.randint(1, 8)]
            case _:
                del data[at:]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_of_mutated_files_all_are_refused_or_read_as_the_safetensors_package_reads_them(tmp_path, count):
    draw = random.Random(1)
    path = tmp_path / "a"
    tensorfile.write(path, {"w": torch.arange(3.0), "n": torch.arange(4), "b": torch.tensor([True])}, {"k": "v"})
    original, accepted, read = path.read_bytes(), 0, 0
    for _ in range(count):
        data = mutated(original, draw)
        path.write_bytes(data)
        try:
            with tensorfile.opened(path) as (file, header):
                accepted += 1
                other = safetensors.torch.load(data)
                assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {
                    name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in other.items()
                }
                found = tensorfile.read(file, header, path)
        except InputError:
            continue
        assert all(same(found[name], other[name]) for name in found)
        read += 1
    assert 0 < read < accepted < count / 2


@pytest.mark.skipif(sys.platform == "win32", reason="sparse files")
def test_only_what_was_checked_is_allocated(tmp_path):
    path = tmp_path / "a"
    with open(path, "wb") as file:
        file.write(content({"w": entry()}, b""))
        file.truncate(10 * 2**30)
    with pytest.raises(InputError, match="10737418240 bytes, more than any model of asr"):
        load(path)
