"""Files that pose as models: broken, foreign, absurd or with code in them, by kind."""

import copy
import gzip
import io
import json
import os
import pickle
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from test_card import GOOD, changed
from test_tensorfile import content, entry

from asr import checkpoint, tensorfile
from asr.model import AcousticModel

CANARY = "canary"  # a file that hostile code would make


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def good_model(folder: Path) -> bytes:
    path = folder / "good.safetensors"
    checkpoint.save_model(path, AcousticModel(**GOOD["model"]).state_dict(), GOOD)
    return path.read_bytes()


def with_card(card: object, body: bytes = bytes(8), header: dict | None = None) -> bytes:
    """A model file whose card is as given (a text as it stands)."""
    text = card if isinstance(card, str) else json.dumps(card)
    tensors = {"w": entry()} if header is None else header
    return content(tensors, body, format="asr", format_version="1", card=text)


def with_weights(folder: Path, change) -> bytes:
    """A model file of the good card with weights that `change` has made others."""
    weights = {name: weight.clone() for name, weight in AcousticModel(**GOOD["model"]).state_dict().items()}
    change(weights)
    path = folder / "changed"
    tensorfile.write(path, weights, {"format": "asr", "format_version": "1", "card": json.dumps(GOOD)})
    return path.read_bytes()


def packed(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(buffer, names=("data.pkl",), size=50_000_000) -> None:
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, bytes(size))


def tarred(buffer) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())


def nested(opening: str, depth: int) -> str:
    return opening * depth


def structures(good: bytes) -> dict[str, bytes]:
    """Files that are broken as safetensors."""
    wide = 6 + 3 * 1_300_000 + 3
    return {
        "empty": b"",
        "cut in the header": good[:100],
        "cut in the weights": good[:-100],
        "header of 2^63": (2**63).to_bytes(8, "little") + good[8:],
        "header beyond the file": (3_000_000).to_bytes(8, "little") + good[8:],
        "header of 101 MB": (101_000_000).to_bytes(8, "little") + b"{" + b" " * 101_000_000,
        "overlap": with_card(GOOD, bytes(12), {"a": entry(), "b": entry(offsets=[4, 12])}),
        "hole": with_card(GOOD, bytes(20), {"a": entry(), "b": entry(offsets=[12, 20])}),
        "trailing bytes": good + b"x",
        "shape and range differ": with_card(GOOD, bytes(8), {"w": entry(shape=[3])}),
        "shape overflow": with_card(GOOD, bytes(8), {"w": entry(shape=[2**32, 2**32])}),
        "negative dimension": with_card(GOOD, bytes(8), {"w": entry(shape=[-2])}),
        "end before begin": with_card(GOOD, bytes(8), {"w": entry(offsets=[8, 0])}),
        "unknown dtype": with_card(GOOD, bytes(8), {"w": entry("OBJECT")}),
        "not UTF-8": good[:9] + b"\xff" + good[10:],
        "a key twice": with_card(GOOD)
        .replace(b'"w"', b'"format_version"')
        .replace(b'"format": "asr"', b'"a":1,"a": 2   '),
        "no metadata": content({"__metadata__": {}, "w": entry()}, bytes(8)),
        "a million lists": wide.to_bytes(8, "little") + b'{"a":[' + b"[]," * 1_300_000 + b"1]}",
        "deep header": b"\x40\x0d\x03\0\0\0\0\0" + nested('{"a":', 40_000).encode(),
        "metadata of 50 MB": content({}, format="asr", format_version="1", card="x" * 50_000_000),
    }


def tensors(folder: Path) -> dict[str, bytes]:
    """Sound files whose weights are not those of the card."""

    def put(name, value):
        return lambda weights: weights.__setitem__(name, value)

    return {
        "name ../../x": with_weights(folder, put("../../x", torch.ones(1))),
        "name of an attribute": with_weights(folder, put("__class__", torch.ones(1))),
        "two empty tensors at one place": with_weights(
            folder, lambda weights: weights.update(a=torch.empty(0), b=torch.empty(0))
        ),
        "NaN": with_weights(folder, lambda weights: weights["head.bias"].fill_(float("nan"))),
        "infinity": with_weights(folder, lambda weights: weights["head.bias"][1:].fill_(float("-inf"))),
        "missing": with_weights(folder, lambda weights: weights.pop("head.bias")),
        "no weights": with_weights(folder, lambda weights: weights.clear()),
        "wrong shape": with_weights(folder, put("head.bias", torch.ones(5))),
        "wrong rank": with_weights(folder, put("head.bias", torch.ones(4, 1))),
        "wrong type": with_weights(folder, put("head.bias", torch.ones(4, dtype=torch.float64))),
        "half precision": with_weights(folder, put("head.bias", torch.ones(4).half())),
        "whole numbers": with_weights(folder, put("head.bias", torch.ones(4, dtype=torch.int32))),
    }


def cards() -> dict[str, bytes]:
    """Cards that ask for code, for memory, or for what no model has."""
    ones = {
        f"{number}: {where}={str(value)[:30]}": with_card(changed(where, value))
        for number, (where, value) in enumerate(
            [
                ("_target_", "os.system"),
                ("features._target_", "builtins.eval"),
                ("model._target_", "torch.load"),
                ("decoder._target_", "subprocess.Popen"),
                ("model.__class__", "x"),
                ("normalizer", "__import__('os').system('touch canary')"),
                ("normalizer", "!!python/object/apply:os.system ['touch canary']"),
                ("features.kind", "os.system"),
                ("features.kind", ["logmel"]),
                ("decoder", {"kind": "beam", "lm": "/etc/passwd"}),
                ("decoder.kind", "${oc.env:HOME}"),
                ("model.hidden", 10**9),
                ("model.hidden", 10**400),
                ("model.hidden", -1),
                ("model.hidden", 16.0),
                ("model.hidden", True),
                ("model.layers", 10**9),
                ("model.features", 10**9),
                ("model.stack", 10**9),
                ("model.channels", 10**9),
                ("model.convolutions", [1] * 100_000),
                ("model.dropout", "0.1"),
                ("features.mels", 10**9),
                ("features.rate", 10**12),
                ("features.window", 10**6),
                ("features.hop", 1e-9),
                ("tokens", ["<blank>"] * 4),
                ("tokens", ["<blank>", "a", "b", "\x1b]0;x\x07"]),
                ("tokens", ["<blank>", "a", "b", {"$ref": "/etc/passwd"}]),
                ("tokens", "abcd"),
                ("model", None),
                ("training", "x"),
            ]
        )
    }
    largest = changed("model.hidden", 8192)
    largest["model"]["layers"] = 32
    return ones | {
        "the largest card with small weights": with_card(largest),
        "no card": content({"w": entry()}, bytes(8), format="asr", format_version="1"),
        "card is a list": with_card("[]"),
        "card is null": with_card("null"),
        "card is no JSON": with_card("{'kind': 1}"),
        "card with NaN": with_card(json.dumps(GOOD).replace('"seconds": 1.5', '"seconds": NaN')),
        "card with a number of 5000 digits": with_card(json.dumps(GOOD).replace("8000", "8" * 5000)),
        "card with a key twice": with_card(json.dumps(GOOD).replace('"decoder"', '"normalizer": "none", "decoder"')),
        "card with a million lists": with_card(json.dumps(GOOD).replace("0.001", "[" + "[]," * 1_300_000 + "1]")),
        "deep card": with_card(nested('{"a":', 100_000)),
        "deep but sound card": with_card(changed("training.a", json.loads("[" * 400 + "]" * 400))),
        "a million tokens": with_card(changed("tokens", ["x"] * 700_000)),
        "newer version": content({}, format="asr", format_version="99", card=json.dumps(GOOD)),
        "version of 5000 digits": content({}, format="asr", format_version="9" * 5000, card=json.dumps(GOOD)),
        "another format": content({"w": entry()}, bytes(8), format="pt"),
        "a training state": content({}, format="asr-state", format_version="1", values="{}"),
        "metadata with code": content(
            {}, format="asr", format_version="1", card=json.dumps(GOOD), __init__="import os"
        ),
    }


def strangers() -> dict[str, bytes]:
    """Files of other programs, most with code in them."""
    state = copy.deepcopy(GOOD) | {"hook": Hostile()}
    return {
        **{f"pickle of protocol {protocol}": pickle.dumps(Hostile(), protocol) for protocol in range(6)},
        "torch.save": packed(lambda buffer: torch.save(state, buffer)),
        "old torch.save": packed(lambda buffer: torch.save(state, buffer, _use_new_zipfile_serialization=False)),
        "numpy objects": packed(lambda buffer: np.save(buffer, np.array([Hostile()], dtype=object), allow_pickle=True)),
        "zip bomb": packed(zipped),
        "zip with a path out": packed(lambda buffer: zipped(buffer, ["../../escaped"], 10)),
        "gzip bomb": gzip.compress(bytes(50_000_000)),
        "gzipped pickle": gzip.compress(pickle.dumps(Hostile())),
        "tar with a path out": packed(tarred),
        "script": b"#!/bin/sh\ntouch canary\n",
        "Python": b"__import__('os').system('touch canary')\n",
        "YAML": b"!!python/object/apply:os.system ['touch canary']\n",
        "JSON": json.dumps(GOOD).encode(),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "GGUF": b"GGUF\3\0\0\0" + bytes(100),
        "WAV": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "zeros": bytes(1000),
        "0xff": b"\xff" * 1000,
    }


def special(folder: Path) -> dict[str, Path]:
    """What is no ordinary file, or is larger than it looks."""
    names = [
        "link to passwd",
        "link to a folder",
        "link loop",
        "dangling link",
        "folder",
        "pipe",
        "link to zeros",
    ]
    names += ["socket", "10 GB of zeros", "10 GB behind a header", "a GB of other weights"]
    paths = {name: folder / f"special-{number}" for number, name in enumerate(names)}
    for name, target in {
        "link to passwd": "/etc/passwd",
        "link to a folder": "/etc",
        "link loop": paths["link loop"],
        "dangling link": folder / "nothing",
        "link to zeros": "/dev/zero",
    }.items():
        paths[name].symlink_to(target)
    paths["folder"].mkdir()
    os.mkfifo(paths["pipe"])
    here = Path.cwd()
    os.chdir(folder)  # the name of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(paths["socket"].name)
    finally:
        os.chdir(here)
    for name, size, start in [
        ("10 GB of zeros", 10 * 2**30, b""),
        ("10 GB behind a header", 10 * 2**30, with_card(GOOD, b"")),
        (
            "a GB of other weights",
            None,
            with_card(GOOD, b"", {"w": entry(shape=[2**28], offsets=[0, 2**30])}),
        ),
    ]:
        with open(paths[name], "wb") as file:
            file.write(start)
            file.truncate(size or len(start) + 2**30)
    return paths | {
        "nothing there": folder / "missing",
        "device": Path("/dev/zero"),
        "memory of the process": Path("/proc/self/mem"),
        "endless link": Path("/proc/self/fd/0"),
    }
