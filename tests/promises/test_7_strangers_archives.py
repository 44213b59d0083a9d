"""Promise 7 for corpora: no stranger's archive or manifest escapes its folder or takes memory without bound.

Some forty hostile tars, thirty hostile zips and other files, and forty hostile manifests. Each ends in one
`InputError` of one short line, in little memory, and nothing is written, outside the folder or in it.
"""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from asr import manifest
from asr.corpora.archive import inspect, safe_name, unpack
from asr.errors import InputError

Entry = tuple[tarfile.TarInfo, bytes]
MEMORY = 30_000_000  # bytes that Python may hold at once while it refuses an archive or a manifest


def info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, size, link
    return entry


def file(name: str, data: bytes = b"x") -> Entry:
    return info(name, size=len(data)), data


def tar(*entries: Entry, ending: bytes = b"\0" * 1024, format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar made header by header, so that it can lie."""
    content = b""
    for entry, data in entries:
        content += entry.tobuf(format) + data + b"\0" * (-len(data) % 512)
    return content + ending


def lying(name: str, size: bytes) -> bytes:
    """A header whose size field holds `size` as it stands, with a right checksum."""
    header = bytearray(info(name).tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def pax(records: dict[str, str], entry: Entry) -> bytes:
    body = b""
    for key, value in records.items():
        text = f" {key}={value}\n".encode()
        length = len(text) + len(str(len(text) + len(str(len(text)))))
        body += f"{length}".encode() + text
    head = info("pax", tarfile.XHDTYPE, len(body)).tobuf(tarfile.USTAR_FORMAT)
    return head + body + b"\0" * (-len(body) % 512) + tar(entry)


GOOD = file("recordings/0_a_0.wav")
TARS: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: tar(file("../evil.wav")),
    "climbs from below": lambda: tar(file("a/b/../../../evil.wav")),
    "climbs behind good files": lambda: tar(GOOD, file("recordings/../../evil.wav")),
    "is absolute": lambda: tar(file("/tmp/evil.wav")),
    "is absolute twice": lambda: tar(file("//tmp/evil.wav")),
    "names a drive": lambda: tar(file("C:/evil.wav")),
    "uses backslashes": lambda: tar(file("..\\..\\evil.wav")),
    "has a line break in a name": lambda: tar(file("a\nb.wav")),
    "has an escape sequence in a name": lambda: tar(file("\x1b[2Jb.wav")),
    "has a name that is no UTF-8": lambda: tar(file("\udcff\udcfe.wav")),
    "has a name without end": lambda: tar(file("a/" * 2000 + "b.wav")),
    "has a part that no file system takes": lambda: tar(file("a" * 300 + ".wav")),
    "climbs in a pax name": lambda: pax({"path": "../../evil.wav"}, file("good.wav")),
    "has a NUL in a pax name": lambda: pax({"path": "good.wav\0../evil"}, file("good.wav")),
    "links to a file": lambda: tar((info("evil.wav", tarfile.SYMTYPE, link="/etc/passwd"), b""), GOOD),
    "links and writes through": lambda: tar((info("d", tarfile.SYMTYPE, link="/tmp"), b""), file("d/evil.wav")),
    "links upwards": lambda: tar((info("d", tarfile.SYMTYPE, link=".."), b""), file("d/evil.wav")),
    "links hard": lambda: tar((info("evil.wav", tarfile.LNKTYPE, link="../../secret"), b"")),
    "holds a device": lambda: tar((info("evil.wav", tarfile.CHRTYPE), b"")),
    "holds a disk": lambda: tar((info("evil.wav", tarfile.BLKTYPE), b"")),
    "holds a pipe": lambda: tar((info("evil.wav", tarfile.FIFOTYPE), b"")),
    "holds an unknown type": lambda: tar((info("evil.wav", b"Z"), b"")),
    "is sparse": lambda: tar((info("evil.wav", tarfile.GNUTYPE_SPARSE), b"")),
    "is sparse by pax": lambda: pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}, file("e.wav")),
    "has a name twice": lambda: tar(file("a.wav", b"1"), file("a.wav", b"2")),
    "has a name twice in other case": lambda: tar(file("a.wav", b"1"), file("A.WAV", b"2")),
    "has a file as a folder": lambda: tar(file("a.wav"), file("a.wav/b.wav")),
    "has a folder as a file": lambda: tar(file("a.wav/b.wav"), file("a.wav")),
    "promises an exabyte": lambda: lying("big.wav", b"\x80" + (1 << 60).to_bytes(11, "big")),
    "promises less than nothing": lambda: lying("less.wav", b"\xff" * 12) + b"\0" * 1024,
    "has a size that is no number": lambda: lying("text.wav", b"99999999999"),
    "ends within a file": lambda: tar(GOOD, (info("b.wav", size=9999), b"x" * 600), ending=b"")[:-100],
    "ends within a header": lambda: tar(GOOD, ending=b"")[:700],
    "asks for gigabytes of pax header": lambda: (
        info("p", tarfile.XHDTYPE, 6_000_000_000).tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096
    ),
    "asks for gigabytes of name": lambda: (
        info("n", tarfile.GNUTYPE_LONGNAME, 6_000_000_000).tobuf(tarfile.GNU_FORMAT) + b"a" * 4096
    ),
    "chains headers": lambda: tar(*[(info("n", tarfile.GNUTYPE_LONGNAME, 1), b"a")] * 3000),
    "holds six thousand members": lambda: tar(file("a.wav", b""))[:512] * 6000,
    "is empty": lambda: tar(),
    "holds nothing of a corpus": lambda: tar(file("setup.py", b"import os")),
}


def zipped(name: str, data: bytes = b"x", mode: int = 0o100644, **fields: object) -> bytes:
    stream = io.BytesIO()
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("recordings/0_a_0.wav", b"good")
        archive.writestr(entry, data)
    return stream.getvalue()


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    """`content` with `old` overwritten wherever it stands (both headers of a member)."""
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


def central(content: bytes, offset: int, new: bytes) -> bytes:
    """`content` with bytes of its last member's central header overwritten."""
    at = content.rindex(b"PK\x01\x02") + offset
    return content[:at] + new + content[at + len(new) :]


def overlapping(copies: int, size: int) -> bytes:
    """A zip whose entries all name the same `size` zeros."""
    zeros = b"\0" * size
    data, check = zlib.compress(zeros, 9)[2:-4], zlib.crc32(zeros)
    head = (20, 0, 8, 0, 0, check, len(data), size)
    content = struct.pack("<4s5H3I2H", b"PK\3\4", *head, 5, 0) + b"0.wav" + data
    directory = b""
    for number in range(copies):
        name = f"{number}.wav".encode()
        directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, *head, len(name), *[0] * 6) + name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, copies, copies, len(directory), len(content), 0)
    return content + directory + end


ZIPS: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: zipped("../evil.wav"),
    "climbs from below": lambda: zipped("a/../../evil.wav"),
    "is absolute": lambda: zipped("/tmp/evil.wav"),
    "names a drive": lambda: zipped("C:evil.wav"),
    "uses backslashes": lambda: zipped("..\\evil.wav"),
    "has a NUL in a name": lambda: patched(zipped("good.wav#evil"), b"good.wav#evil", b"good.wav\0evil"),
    "links": lambda: zipped("evil.wav", b"/etc/passwd", 0o120777),
    "holds a device": lambda: zipped("evil.wav", b"", 0o020666),
    "holds a pipe": lambda: zipped("evil.wav", b"", 0o010666),
    "has a name twice": lambda: zipped("recordings/0_a_0.wav".upper()),
    "has a file as a folder": lambda: zipped("recordings/0_a_0.wav/b.wav"),
    "is encrypted": lambda: central(zipped("evil.wav"), 8, b"\1\0"),
    "uses an unknown compression": lambda: central(zipped("evil.wav"), 10, b"\x63\0"),
    "promises four gigabytes": lambda: central(zipped("evil.wav"), 24, b"\xf0\xff\xff\xff"),
    "holds more than it says": lambda: central(zipped("evil.wav", b"x" * 5000), 24, b"\x05\0\0\0"),
    "holds less than it says": lambda: central(zipped("evil.wav", b"x" * 5000), 24, b"\0\x20\0\0"),
    "has a wrong sum": lambda: central(zipped("evil.wav", b"x" * 5000), 16, b"\1\2\3\4"),
    "is two names for one": lambda: central(zipped("evil.wav"), 46, b"good.wav"),
    "is cut": lambda: zipped("evil.wav")[:-30],
    "counts one file a thousand times": lambda: overlapping(1000, 10_000_000),
    "holds six thousand members": lambda: overlapping(6000, 0),
    "lists millions of members": lambda: zipped("evil.wav")[:-10] + b"\xff\xff\xff\x7f" + b"\0" * 6,
}

OTHERS: dict[str, Callable[[], bytes]] = {
    "bomb: a gigabyte of zeros in one member": lambda: bomb(),
    "gzip that goes on behind the tar": lambda: gzip.compress(tar(GOOD) + b"\0" * 4_000_000),
    "bomb: cut gzip": lambda: gzip.compress(tar(GOOD))[:-20],
    "gzip of nothing": lambda: gzip.compress(b""),
    "gzip of gzip": lambda: gzip.compress(gzip.compress(tar(GOOD))),
    "gzip with a wrong sum": lambda: gzip.compress(tar(GOOD))[:-8] + b"\0" * 8,
    "gzip with rubbish behind its head": lambda: b"\x1f\x8b\x08\0" + os.urandom(2000),
    "a page of HTML": lambda: b"<html><body>404</body></html>",
    "nothing": lambda: b"",
    "a pickle": lambda: (
        b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94."
    ),
}


def bomb() -> bytes:
    head = info("bomb.wav", size=1 << 30).tobuf(tarfile.GNU_FORMAT)
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31)
    content = squeeze.compress(head)
    block = b"\0" * (1 << 20)
    for _ in range(64):
        content += squeeze.compress(block)
    return content + squeeze.flush()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(action: Callable[[], object]) -> InputError:
    """The one InputError that `action` raises: short, one line, in little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            action()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    message = str(caught.value)
    assert "\n" not in message and len(message) < 900 and message.isprintable()
    return caught.value


CASES = [
    pytest.param(make, id=f"{kind} {name}")
    for kind, table in (("tar", TARS), ("zip", ZIPS), ("file", OTHERS))
    for name, make in table.items()
]


@pytest.mark.parametrize("make", CASES)
def test_a_hostile_archive_is_refused_in_one_line_and_nothing_is_written(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = outside / "archive"
    archive.write_bytes(make())
    before = tree(tmp_path)
    error = refused(lambda: unpack(archive, outside / "in" / "corpus", lambda name: name.endswith(".wav")))
    assert str(archive) in str(error)
    assert [path for path in tree(tmp_path) if path != "outside/in"] == before


@pytest.mark.parametrize("name", ["climbs", "links and writes through", "is absolute", "links hard", "holds a pipe"])
def test_a_hostile_tar_is_refused_when_compressed_too(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(TARS[name]()))
    refused(lambda: unpack(archive, tmp_path / "corpus", lambda name: True))
    assert tree(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("mutate", range(200))
def test_a_mutated_archive_gives_its_files_or_one_line(mutate: int, tmp_path: Path) -> None:
    import random

    draw = random.Random(mutate)
    seeds = [tar(GOOD, file("b.wav", b"y" * 2000)), gzip.compress(tar(GOOD)), zipped("b.wav", b"y" * 2000)]
    content = bytearray(seeds[mutate % 3])
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    archive = tmp_path / "archive"
    archive.write_bytes(content[: draw.randint(len(content) // 2, len(content))] if mutate % 2 else content)
    try:
        unpack(archive, tmp_path / "corpus", lambda name: name.endswith(".wav"))
    except InputError as error:
        assert "\n" not in str(error)
        assert tree(tmp_path) == ["archive"]
    assert all(path.startswith(("archive", "corpus")) for path in tree(tmp_path))


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress], ids=["tar", "tar.gz"])
def test_a_good_tar_is_unpacked_with_only_the_files_asked_for(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    folder = (info("top", tarfile.DIRTYPE), b"")
    content = [
        folder,
        file("./top/a.wav", b"1" * 70_000),
        file("top/run.sh", b"rm"),
        file("top/deep/er/b.wav", b""),
    ]
    archive.write_bytes(pack(tar(*content)))
    paths = unpack(archive, tmp_path / "corpus", lambda name: name.endswith(".wav"))
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "corpus/top/a.wav",
        "corpus/top/deep/er/b.wav",
    ]
    assert paths[0].read_bytes() == b"1" * 70_000
    assert not (tmp_path / "corpus" / "top" / "run.sh").exists()
    assert not paths[0].stat().st_mode & 0o111


def test_a_good_zip_is_unpacked_with_only_the_files_asked_for(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(zipped("top/b.wav", b"2" * 70_000))
    paths = unpack(archive, tmp_path / "corpus", lambda name: name.startswith("top"))
    assert [path.read_bytes() for path in paths] == [b"2" * 70_000]


def test_the_line_names_the_wrong_members_and_counts_the_rest(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar(*[file(f"../{n}.wav") for n in range(5)]))
    with pytest.raises(InputError, match=r"refused, nothing unpacked: '../0.wav' is no .*'../2.wav'.* and 2 more"):
        inspect(archive)


def test_bytes_and_members_are_capped(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar(file("a", b"1" * 600), file("b", b"2" * 600)))
    assert len(inspect(archive, max_bytes=1200, max_members=2)) == 2
    with pytest.raises(InputError, match="more than 2 members or 1199 bytes"):
        inspect(archive, max_bytes=1199, max_members=2)
    with pytest.raises(InputError, match="more than 1 members"):
        inspect(archive, max_members=1)


def test_a_folder_that_stands_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "archive").write_bytes(tar(GOOD))
    with pytest.raises(Exception, match="exists already"):
        unpack(tmp_path / "archive", tmp_path / "corpus", lambda name: True)
    assert tree(tmp_path / "corpus") == []


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b", "a/b"),
        ("./a//b/", "a/b"),
        ("a..b", "a..b"),
        ("é ü", "é ü"),
        ("..", ""),
        ("a/..", ""),
        ("", ""),
        ("a\x7f", ""),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def line(**values: object) -> bytes:
    return json.dumps({"audio_filepath": "a.wav", **values}).encode() + b"\n"


MANIFESTS: dict[str, bytes] = {
    "a line of 10 MB": b'{"audio_filepath": "' + b"a" * 10_000_000 + b'"}\n',
    "10 MB of blanks": b" " * 10_000_000,
    "10 MB of NULs": b"\0" * 10_000_000,
    "a NUL in the path": line(audio_filepath="a\0.wav"),
    "a NUL in the text": line(text="one\0two"),
    "a NUL in the id": line(id="a\0"),
    "a raw NUL": b'{"audio_filepath": "a\0.wav"}\n',
    "duration NaN": b'{"audio_filepath": "a.wav", "duration": NaN}\n',
    "duration Infinity": b'{"audio_filepath": "a.wav", "duration": Infinity}\n',
    "duration -Infinity": b'{"audio_filepath": "a.wav", "duration": -Infinity}\n',
    "duration 1e999": b'{"audio_filepath": "a.wav", "duration": 1e999}\n',
    "duration of 400 digits": b'{"audio_filepath": "a.wav", "duration": 1' + b"0" * 400 + b"}\n",
    "duration of 5000 digits": b'{"audio_filepath": "a.wav", "duration": 1' + b"0" * 5000 + b"}\n",
    "duration below 0": line(duration=-1),
    "duration a text": line(duration="1.5"),
    "duration true": line(duration=True),
    "duration a list": line(duration=[1]),
    "offset below 0": line(offset=-0.5),
    "offset NaN": b'{"audio_filepath": "a.wav", "offset": NaN}\n',
    "offset of 400 digits": b'{"audio_filepath": "a.wav", "offset": 1' + b"0" * 400 + b"}\n",
    "an id twice": line(id="x") + line(id="x", audio_filepath="b.wav"),
    "an audio twice without ids": line() + line(),
    "text a number": line(text=5),
    "text a list": line(text=["one"]),
    "text an object": line(text={"$ref": "/etc/passwd"}),
    "text a long list": line(text=["one two three"] * 50_000),
    "path a list": line(audio_filepath=["a", "b"]),
    "path a number": line(audio_filepath=7),
    "path empty": line(audio_filepath=""),
    "path null": line(audio_filepath=None),
    "path missing": b'{"text": "one"}\n',
    "speaker a number": line(speaker=3),
    "a NeMo manifest as one list": b"[" + line().strip() + b"]\n",
    "a number": b"7\n",
    "a text": b'"a.wav"\n',
    "deep nesting": b'{"audio_filepath": "a.wav", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep objects": b'{"audio_filepath": "a.wav", "x": ' + b'{"x":' * 50_000 + b"1" + b"}" * 50_000 + b"}\n",
    "not UTF-8": b'{"audio_filepath": "a.wav", "text": "\xff\xfe"}\n',
    "UTF-16": '{"audio_filepath": "a.wav"}\n'.encode("utf-16"),
    "half a surrogate": b'{"audio_filepath": "a.wav", "text": "\\ud800"}\n',
    "a cut line": line()[:-5] + b"\n",
    "two objects in a line": line().strip() + line(),
    "Python": b"__import__('os').system('id')\n",
    "YAML with a tag": b"!!python/object/apply:os.system ['id']\n",
    "CSV": b"path,text\na.wav,one\n",
    "a WAV file": b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0",
    "gzip": gzip.compress(line()),
}


@pytest.mark.parametrize(
    "content",
    [pytest.param(content, id=name) for name, content in MANIFESTS.items()],
)
def test_a_hostile_manifest_is_refused_in_one_line_that_names_file_and_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    error = refused(lambda: manifest.read(path))
    assert f"{path}: line " in str(error)
    assert tree(tmp_path) == ["m.jsonl"]


def test_a_manifest_that_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.jsonl", Path("/dev/zero"), tmp_path / ("a" * 300)):
        refused(lambda path=path: manifest.read(path))


@pytest.mark.parametrize(
    "name", ["cat /etc/passwd |", "| touch evil", "$(touch evil)", "../../a.wav", "http://a/b.wav"]
)
def test_a_path_in_a_manifest_is_only_ever_a_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(line(audio_filepath=name))
    [utterance] = manifest.read(tmp_path / "m.jsonl")
    assert utterance.path == tmp_path / name
    assert tree(tmp_path) == ["m.jsonl"]


def test_the_keys_of_other_tools_are_kept_and_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(line(duration=1, text="a", lang="en", _target_="os.system", command="id"))
    [utterance] = manifest.read(tmp_path / "m.jsonl")
    assert utterance.extra == {"lang": "en", "_target_": "os.system", "command": "id"}
