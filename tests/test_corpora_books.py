"""Mini LibriSpeech, LibriSpeech and Common Voice on miniature copies of their layouts."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import corpora, manifest
from asr.corpora import commonvoice, download, librispeech, mini_librispeech
from asr.errors import AsrError, InputError

TEXTS = ("HELLO WORLD", "IT'S A BOOK")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """These tests name their sources: ASR_DATA counts only where the fixture `asr_data` is asked for."""
    if "asr_data" not in request.fixturenames:
        monkeypatch.delenv("ASR_DATA", raising=False)


def sound(path: Path, seconds: float = 0.5, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.1, 0.1, int(seconds * rate)).astype("float32")
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, samples, rate, **opus)


def part(folder: Path, speakers: tuple[int, ...], suffix: str = ".flac") -> Path:
    """A part in LibriSpeech's layout: each speaker one chapter of two utterances."""
    for speaker in speakers:
        chapter = folder / str(speaker) / "77"
        for number in range(2):
            sound(chapter / f"{speaker}-77-{number:04d}{suffix}", 0.5 + number / 4)
        lines = [f"{speaker}-77-{number:04d} {text}" for number, text in enumerate(TEXTS)]
        (chapter / f"{speaker}-77.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


def ids(path: Path) -> list[str]:
    return [line.id for line in manifest.read(path)]


@pytest.mark.parametrize(
    ("train", "dev", "suffix"),
    [
        ("train-clean-5", "dev-clean-2", ".flac"),
        ("LibriSpeech/train-clean-5", "LibriSpeech/dev-clean-2", ".flac"),
        ("mini_librispeech/LibriSpeech/train-clean-5", "mini_librispeech/LibriSpeech/dev-clean-2", ".wav"),
        ("librispeech/train", "librispeech/dev", ".opus"),
    ],
)
def test_mini_librispeech_is_found_in_its_layouts(train: str, dev: str, suffix: str, tmp_path: Path) -> None:
    part(tmp_path / "copy" / train, (11, 12), suffix)
    part(tmp_path / "copy" / dev, (101, 20, 9, 30), suffix)
    paths = corpora.prepare("mini_librispeech", tmp_path / "out", tmp_path / "copy")
    assert list(paths) == ["train", "dev", "dev_a", "dev_b"]
    assert ids(paths["train"]) == ["11-77-0000", "11-77-0001", "12-77-0000", "12-77-0001"]
    first = manifest.read(paths["train"])[0]
    assert (first.text, first.speaker, first.split) == ("HELLO WORLD", "11", "train")
    assert first.duration == pytest.approx(0.5, abs=1e-4) and first.path.is_file()
    assert {one.split("-")[0] for one in ids(paths["dev_a"])} == {"9", "30"}  # every other one, by number
    assert {one.split("-")[0] for one in ids(paths["dev_b"])} == {"20", "101"}
    assert sorted(ids(paths["dev_a"]) + ids(paths["dev_b"])) == sorted(ids(paths["dev"]))
    facts = json.loads((tmp_path / "out" / "mini_librispeech" / "corpus.json").read_text())
    assert facts["complete"] is False and "4 of 1519 utterances" in facts["note"]
    assert ("split of the copy's own" in facts["note"]) == train.endswith("/train")
    said: list[str] = []
    corpora.prepare("mini_librispeech", tmp_path / "out", tmp_path / "copy", say=said.append)
    assert said == [f"mini_librispeech: prepared already, in {tmp_path / 'out' / 'mini_librispeech'}"]


def test_a_complete_copy_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    for name, speakers in (("TRAIN", (1, 2)), ("DEV", (3, 4))):
        known = getattr(mini_librispeech, name)
        monkeypatch.setattr(mini_librispeech, name, dataclasses.replace(known, utterances=4))
        part(tmp_path / "copy" / known.name, speakers)
    corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")
    facts = json.loads((tmp_path / "mini_librispeech" / "corpus.json").read_text())
    assert (facts["complete"], facts["note"]) == (True, "")


def test_text_without_audio_and_the_reverse_are_left_out_and_said(tmp_path: Path) -> None:
    train = part(tmp_path / "copy" / "train-clean-5", (1, 2))
    part(tmp_path / "copy" / "dev-clean-2", (3, 4))
    (train / "1/77/1-77-0001.flac").unlink()
    sound(train / "2/77/2-77-0009.flac")
    said: list[str] = []
    paths = corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy", say=said.append)
    assert ids(paths["train"]) == ["1-77-0000", "2-77-0000", "2-77-0001"]
    assert any("1 transcripts without audio, left out: 1-77-0001" in line for line in said)
    assert any("1 recordings without transcript, left out: 2-77-0009" in line for line in said)
    for path in train.glob("*/*/*.flac"):
        path.unlink()
    with pytest.raises(InputError, match=r"no utterance for train in .*train-clean-5; get train-clean-5 again"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")


def test_a_damaged_transcript_or_recording_is_named(tmp_path: Path) -> None:
    train = part(tmp_path / "copy" / "train-clean-5", (1,))
    part(tmp_path / "copy" / "dev-clean-2", (3,))
    text = train / "1/77/1-77.trans.txt"
    text.write_text("1-77-0000 A\n1-77-0000 B\n")
    with pytest.raises(InputError, match=r"1-77.trans.txt: 1-77-0000 stands twice"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")
    text.write_text("<html>\n")
    with pytest.raises(InputError, match=r"1-77.trans.txt: line 1: no 'SPEAKER-CHAPTER-NUMBER TEXT'"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")
    text.write_bytes(b"1-77-0000 \xff\n")
    with pytest.raises(InputError, match=r"1-77.trans.txt: not read"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")
    text.write_text("1-77-0000 A\n")
    (train / "1/77/1-77-0000.flac").write_bytes(b"")
    with pytest.raises(InputError, match=r"1-77-0000.flac"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "copy")


def test_the_copy_at_hand_gives_twenty_speakers_and_two_halves(asr_data, tmp_path: Path) -> None:
    asr_data("librispeech")
    paths = corpora.prepare("mini_librispeech", tmp_path, download=False)
    found = {split: manifest.read(path) for split, path in paths.items()}
    assert {split: len(lines) for split, lines in found.items()} == {
        "train": 1201, "dev": 161, "dev_a": 82, "dev_b": 79,
    }  # fmt: skip
    assert len({line.speaker for line in found["train"]}) == 20
    assert {line.speaker for line in found["dev_a"]} == {"3242", "5789"}
    assert {line.speaker for line in found["dev_b"]} == {"3664", "6272"}
    assert sum(line.duration or 0 for line in found["train"]) / 3600 == pytest.approx(4.15, abs=0.01)
    assert sum(len((line.text or "").split()) for line in found["dev"]) == 5997


PARTS = {
    "train-clean-100": (1, 2), "train-clean-360": (3,), "train-other-500": (4,), "dev-clean": (5,), "dev-other": (6,),
    "test-clean": (7,), "test-other": (8,),
}  # fmt: skip


def test_librispeech_is_a_hundred_hours_or_more(tmp_path: Path) -> None:
    for name, speakers in PARTS.items():
        part(tmp_path / "copy" / "LibriSpeech" / name, speakers)
    sizes = [
        ("librispeech", 100, {"1", "2"}),
        ("librispeech_460", 460, {"1", "2", "3"}),
        ("librispeech_960", 960, {"1", "2", "3", "4"}),
    ]
    for name, hours, expected in sizes:
        paths = corpora.prepare(name, tmp_path, tmp_path / "copy", download=False)
        assert list(paths) == ["train", "dev", "test", "dev_other", "test_other"]
        found = {split: {line.speaker for line in manifest.read(path)} for split, path in paths.items()}
        assert found == {"train": expected, "dev": {"5"}, "test": {"7"}, "dev_other": {"6"}, "test_other": {"8"}}
        assert paths["train"] == tmp_path / name / "train.jsonl"
        assert json.loads((tmp_path / name / "corpus.json").read_text())["title"] == f"LibriSpeech, {hours} hours"


def test_a_missing_part_says_where_to_put_what(tmp_path: Path) -> None:
    part(tmp_path / "copy" / "train-clean-100", (1,))
    with pytest.raises(InputError, match=r"librispeech: no dev-clean found .*put dev-clean.tar.gz .from https://") as e:
        corpora.prepare("librispeech", tmp_path, tmp_path / "copy")
    assert e.value.status == 2
    with pytest.raises(InputError, match=r"no train-clean-5 found .*by --source"):
        corpora.prepare("mini_librispeech", tmp_path, download=False)
    with pytest.raises(InputError, match=r"--source /nowhere: no such folder"):
        corpora.prepare("mini_librispeech", tmp_path, "/nowhere")


def packed(folder: Path, path: Path, evil: str = "") -> Path:
    """A .tar.gz as OpenSLR has them, with a member called `evil` at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(folder, f"LibriSpeech/{folder.name}")
        if evil:
            archive.addfile(tarfile.TarInfo(evil), io.BytesIO())
    return path


def test_archives_in_the_source_are_unpacked_once(tmp_path: Path) -> None:
    for name, speakers in (("train-clean-5", (1, 2)), ("dev-clean-2", (3, 4))):
        packed(part(tmp_path / "made" / name, speakers), tmp_path / "archives" / f"{name}.tar.gz")
    said: list[str] = []
    paths = corpora.prepare("mini_librispeech", tmp_path, tmp_path / "archives", say=said.append)
    assert len([line for line in said if "unpacking" in line and "licence: CC BY 4.0" in line]) == 2
    assert len(ids(paths["train"])) == 4
    assert manifest.read(paths["train"])[0].audio_filepath.startswith("download/train-clean-5/")
    said.clear()
    corpora.prepare("mini_librispeech", tmp_path, tmp_path / "archives", say=said.append)
    assert not any("unpacking" in line for line in said)


def test_an_archive_without_transcripts_is_refused_and_nothing_of_it_stays(tmp_path: Path) -> None:
    made = part(tmp_path / "made" / "train-clean-5", (1,))
    for transcript in made.rglob("*.trans.txt"):
        transcript.unlink()
    packed(made, tmp_path / "archives" / "train-clean-5.tar.gz")
    with pytest.raises(InputError, match=r"no transcripts in it; is it the archive of train-clean-5\?"):
        corpora.prepare("mini_librispeech", tmp_path, tmp_path / "archives")
    assert not list((tmp_path / "mini_librispeech" / "download").rglob("*.flac"))


def test_an_archive_that_climbs_out_is_refused_as_a_whole(tmp_path: Path) -> None:
    made = part(tmp_path / "made" / "train-clean-5", (1,))
    packed(made, tmp_path / "archives" / "train-clean-5.tar.gz", "../../escaped.flac")
    part(tmp_path / "archives" / "dev-clean-2", (3,))
    with pytest.raises(InputError, match=r"train-clean-5.tar.gz: refused, nothing unpacked: .*escaped"):
        corpora.prepare("mini_librispeech", tmp_path / "out", tmp_path / "archives")
    assert not list(tmp_path.rglob("escaped.flac"))
    assert not list((tmp_path / "out").rglob("*.flac"))


def test_without_a_network_the_place_for_the_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AsrError("https://x: no connection (refused); get it elsewhere, give --source")

    monkeypatch.setattr(librispeech, "download", broken)
    kept = tmp_path / "mini_librispeech" / "download"
    with pytest.raises(AsrError, match=rf"no connection .*put train-clean-5.tar.gz \(from .*\) into {kept}"):
        corpora.prepare("mini_librispeech", tmp_path)
    for name, speakers in (("train-clean-5", (1, 2)), ("dev-clean-2", (3, 4))):
        packed(part(tmp_path / "made" / name, speakers), kept / f"{name}.tar.gz")
    assert len(ids(corpora.prepare("mini_librispeech", tmp_path)["train"])) == 4  # the advice works


def test_a_wrong_md5_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"not what was published"
    monkeypatch.setattr(download, "_open", lambda *_: _Response(content))
    archive = download.Archive("https://x/y", 100, md5="0" * 32)
    with pytest.raises(InputError, match=f"wrong checksum .MD5 {hashlib.md5(content).hexdigest()}, expected 000"):
        download.download(archive, tmp_path / "y", licence="none", say=lambda line: None)
    assert list(tmp_path.iterdir()) == []
    right = download.Archive("https://x/y", 100, md5=hashlib.md5(content).hexdigest())
    download.download(right, tmp_path / "y", licence="none", say=lambda line: None)
    assert (tmp_path / "y").read_bytes() == content


class _Response(io.BytesIO):
    """A response to a GET with nothing wrong about it."""

    headers: dict[str, str] = {}  # noqa: RUF012


def voice(folder: Path, language: str = "de", clips: tuple[str, ...] = (".mp3", "")) -> Path:
    """A language in Common Voice's layout; `clips`: what stands behind a clip's name in the column path."""
    home = folder / "cv-corpus-17.0-2024-03-15" / language
    number = 0
    for split in ("train", "dev", "test"):
        rows = ["client_id\tpath\tsentence\tup_votes\tage"]
        for ending in clips:
            name = f"common_voice_{language}_{number}"
            sound(home / "clips" / f"{name}.mp3", 0.5, 32000)
            rows.append(f'speaker{number}\t{name}{ending}\tEr sagte: "Grüß\' Gott {number}".\t2\t')
            number += 1
        (home / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return home


def test_common_voice_is_read_from_its_tables(tmp_path: Path) -> None:
    home = voice(tmp_path / "copy")
    for place in (home, home.parent, tmp_path / "copy"):
        paths = corpora.prepare("commonvoice", tmp_path / "out", place)
        first, second = manifest.read(paths["train"])
        assert (first.id, first.speaker) == ("common_voice_de_0", "speaker0")
        assert first.text == 'Er sagte: "Grüß\' Gott 0".'
        assert first.duration == pytest.approx(0.5, abs=0.1)
        assert second.path.name == "common_voice_de_1.mp3"  # whose ending the table leaves out
    assert not {line.speaker for line in manifest.read(paths["dev"])} & {first.speaker, second.speaker}
    assert json.loads((tmp_path / "out/commonvoice/corpus.json").read_text())["title"] == "Common Voice, language de"


def test_common_voice_says_what_is_wrong(tmp_path: Path) -> None:
    home = voice(tmp_path / "copy")
    table = home / "train.tsv"
    good = table.read_text(encoding="utf-8")
    said: list[str] = []
    (home / "clips" / "common_voice_de_0.mp3").unlink()
    paths = corpora.prepare("commonvoice", tmp_path, home, say=said.append)
    assert any("1 sentences without audio, left out: common_voice_de_0.mp3" in line for line in said)
    assert len(ids(paths["train"])) == 1
    for content, message in (
        ("path\tsentence\nx\ty\n", "no column 'client_id' in its first line"),
        (
            good.replace("common_voice_de_1", "../../../etc/passwd"),
            "line 3: '../../../etc/passwd' is no name of a clip",
        ),
        (good + good.splitlines()[2] + "\n", "line 4: common_voice_de_1 stands twice"),
        (good.splitlines()[0] + "\n", "no sentence with its audio in clips/; get the language again"),
    ):
        table.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            commonvoice.prepare(tmp_path / "new", home, False, said.append)
    table.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"train\.tsv: not read .*; get the language again"):
        commonvoice.prepare(tmp_path / "new", home, False, said.append)
    with pytest.raises(InputError, match="--source /nowhere: no such folder or archive; check the path"):
        corpora.prepare("commonvoice", tmp_path / "new", "/nowhere")
    voice(tmp_path / "copy", "fr")
    with pytest.raises(InputError, match=r"several languages \(de, fr\); name one folder by --source"):
        corpora.prepare("commonvoice", tmp_path / "new", tmp_path / "copy")
    with pytest.raises(InputError, match=r"no language found .*download one at https://commonvoice.mozilla.org"):
        corpora.prepare("commonvoice", tmp_path / "new")


def test_common_voice_is_unpacked_from_its_archive(tmp_path: Path) -> None:
    home = voice(tmp_path / "copy")
    with tarfile.open(tmp_path / "de.tar.gz", "w:gz", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(home.parent, home.parent.name)
    paths = corpora.prepare("commonvoice", tmp_path / "out", tmp_path / "de.tar.gz")
    assert len(ids(paths["test"])) == 2
    assert manifest.read(paths["test"])[0].audio_filepath.startswith("download/cv-corpus")
