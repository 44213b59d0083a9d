"""FSDD, yesno and AN4: found, read, split, described and left alone the second time."""

import collections
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr import corpora, manifest
from asr.corpora import fsdd, source, yesno
from asr.errors import AsrError, InputError
from asr.manifest import Utterance

DATA = Path(__file__).parent / "data"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FindData = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """These tests name their sources: ASR_DATA counts only where the fixture `asr_data` is asked for."""
    if "asr_data" not in request.fixturenames:
        monkeypatch.delenv("ASR_DATA", raising=False)


def lines(paths: dict[str, Path]) -> dict[str, list[Utterance]]:
    return {split: manifest.read(path) for split, path in paths.items()}


def facts(folder: Path) -> dict:
    return json.loads((folder / "corpus.json").read_text())


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_fsdd_is_split_by_take_and_its_texts_are_words(tmp_path: Path) -> None:
    splits = lines(corpora.prepare("fsdd", tmp_path, DATA))
    assert {split: len(found) for split, found in splits.items()} == {"train": 8, "dev": 4, "test": 9}
    for split, takes in (("test", range(5)), ("dev", range(5, 8)), ("train", range(8, 50))):
        for line in splits[split]:
            digit, speaker, take = line.id.split("_")
            assert int(take) in takes and line.split == split and line.speaker == speaker
            assert line.text == WORDS[int(digit)]
            assert line.path.name == f"{line.id}.flac"
            assert line.duration == soundfile.info(line.path).frames / 8000
    [short] = [line for line in splits["test"] if line.id == "6_yweweler_3"]
    assert short.duration == 0.1435


def test_a_speaker_left_out_is_in_the_test_set_only(tmp_path: Path) -> None:
    corpora.prepare("fsdd", tmp_path, DATA)
    left_out = {path.name: path for path in (tmp_path / "fsdd").glob("without_*")}
    assert sorted(left_out) == [
        f"without_{name}" for name in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    ]
    for name, folder in left_out.items():
        train, dev, test = (manifest.read(folder / f"{split}.jsonl") for split in ("train", "dev", "test"))
        speaker = name.removeprefix("without_")
        assert {line.speaker for line in test} == {speaker}
        assert speaker not in {line.speaker for line in train + dev}
        assert all(fsdd.split_of(line.id) == "train" for line in train)
        assert all(fsdd.split_of(line.id) == "dev" for line in dev)
    assert len(manifest.read(left_out["without_george"] / "test.jsonl")) == 4


def test_yesno_is_split_by_name_and_its_names_are_its_texts(tmp_path: Path) -> None:
    splits = lines(corpora.prepare("yesno", tmp_path, DATA))
    assert [line.text for line in splits["train"]] == ["no no no no yes yes yes yes"]
    assert [line.text for line in splits["test"]] == ["yes yes yes no yes no yes no"]
    assert splits["dev"] == []


@pytest.fixture(params=["sph", "flac", "wav"])
def small_an4(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """AN4's layout with two speakers in training (one of them dev) and one in test; the samples are noise."""
    root = tmp_path / "copy" / "an4"
    lists = {
        "train": ["an4_clstk/fash/an251-fash-b", "an4_clstk/fash/cen1-fash-b", "an4_clstk/fkai/an1-fkai-b"],
        "test": ["an4test_clstk/mmxg/an9-mmxg-b"],
    }
    (root / "etc").mkdir(parents=True)
    for part, names in lists.items():
        (root / "etc" / f"an4_{part}.fileids").write_text("\n".join(names) + "\n")
        around = ("<s> ", " </s>") if part == "train" else ("", "")
        texts = [f"{around[0]}RUBOUT  G M{around[1]} ({name.rsplit('/', 1)[1]})" for name in names]
        (root / "etc" / f"an4_{part}.transcription").write_text("\n".join(texts) + "\n")
        for number, name in enumerate(names):
            path = root / "wav" / f"{name}.{request.param}"
            path.parent.mkdir(parents=True, exist_ok=True)
            samples = np.random.default_rng(number).integers(-99, 99, 1600 + number, dtype=np.int16)
            soundfile.write(
                path,
                samples,
                16000,
                format="NIST" if request.param == "sph" else request.param,
                subtype="PCM_16",
            )
    return root


def test_an4_is_read_from_sphere_flac_and_wav_alike(small_an4: Path, tmp_path: Path) -> None:
    splits = lines(corpora.prepare("an4", tmp_path / "out", small_an4.parent))
    assert [line.id for line in splits["train"]] == ["an251-fash-b", "cen1-fash-b"]
    assert [line.id for line in splits["dev"]] == ["an1-fkai-b"]
    assert [line.id for line in splits["test"]] == ["an9-mmxg-b"]
    assert {line.text for found in splits.values() for line in found} == {"RUBOUT G M"}
    assert [line.speaker for line in splits["train"]] == ["fash", "fash"]
    assert splits["train"][1].duration == 1601 / 16000
    digest = hashlib.sha256()
    for number, name, frames in (
        (0, "an1-fkai-b", 1602),
        (0, "an251-fash-b", 1600),
        (0, "an9-mmxg-b", 1600),
        (1, "cen1-fash-b", 1601),
    ):
        seed = {"an1-fkai-b": 2}.get(name, number)
        samples = np.random.default_rng(seed).integers(-99, 99, frames, dtype=np.int16)
        digest.update(f"{name} 16000 {frames}\n".encode() + samples.astype("<i2").tobytes())
    assert facts(tmp_path / "out" / "an4")["audio_sha256"] == digest.hexdigest()


def test_an4_with_a_missing_file_or_text_names_it(small_an4: Path, tmp_path: Path) -> None:
    listed = small_an4 / "etc" / "an4_test.fileids"
    listed.write_text("an4test_clstk/mmxg/an10-mmxg-b\n")
    with pytest.raises(InputError, match=r"an10-mmxg-b has no line in an4_test.transcription"):
        corpora.prepare("an4", tmp_path / "out", small_an4)
    texts = small_an4 / "etc" / "an4_test.transcription"
    texts.write_text("GO (an10-mmxg-b)\nGO (passwd)\n")
    with pytest.raises(InputError, match=r"no audio file for 'an4test_clstk/mmxg/an10-mmxg-b'"):
        corpora.prepare("an4", tmp_path / "out", small_an4)
    listed.write_text("../../../../etc/passwd\n")
    with pytest.raises(InputError, match=r"no audio file for '../../../../etc/passwd'"):
        corpora.prepare("an4", tmp_path / "out", small_an4)
    texts.unlink()
    with pytest.raises(InputError, match=r"an4_test.transcription: No such file.*get the corpus again"):
        corpora.prepare("an4", tmp_path / "out", small_an4)


def test_corpus_json_says_what_was_made_of_what(tmp_path: Path) -> None:
    paths = corpora.prepare("fsdd", tmp_path, DATA)
    known = facts(tmp_path / "fsdd")
    assert known["corpus"] == "fsdd" and known["licence"].startswith("CC BY-SA 4.0")
    assert known["source"] == str((DATA / "fsdd").resolve())
    assert known["complete"] is False and known["note"].startswith("21 of 3000 recordings")
    assert len(known["manifests"]) == 3 + 6 * 3
    for split, path in paths.items():
        seconds = sum(line.duration or 0 for line in manifest.read(path))
        listed = known["manifests"][split]
        assert listed["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (listed["utterances"], listed["seconds"]) == (
            len(manifest.read(path)),
            pytest.approx(seconds, abs=1e-3),
        )


def test_a_partial_copy_is_said_to_be_one(tmp_path: Path) -> None:
    said: list[str] = []
    corpora.prepare("yesno", tmp_path, DATA, say=said.append)
    assert any("2 of 60 recordings; its figures compare with nobody's" in line for line in said)


def test_a_second_call_says_so_and_touches_nothing(tmp_path: Path) -> None:
    paths = corpora.prepare("fsdd", tmp_path, DATA)
    before, said = files(tmp_path), []
    assert corpora.prepare("fsdd", tmp_path, DATA, say=said.append) == paths
    assert corpora.prepare("fsdd", tmp_path, download=False, say=said.append) == paths
    assert files(tmp_path) == before
    assert said == [f"fsdd: prepared already, in {tmp_path / 'fsdd'}"] * 2


@pytest.mark.parametrize("damage", ["a manifest", "a leave-one-out manifest", "no corpus.json", "a broken corpus.json"])
def test_what_was_changed_or_left_half_done_is_made_again(damage: str, tmp_path: Path) -> None:
    paths = corpora.prepare("fsdd", tmp_path, DATA)
    good = {path: path.read_bytes() for path in (tmp_path / "fsdd").rglob("*.json*")}
    if damage == "a manifest":
        paths["dev"].write_bytes(b"")
    elif damage == "a leave-one-out manifest":
        (tmp_path / "fsdd" / "without_theo" / "train.jsonl").write_bytes(b"")
    elif damage == "no corpus.json":
        (tmp_path / "fsdd" / "corpus.json").unlink()
    else:
        (tmp_path / "fsdd" / "corpus.json").write_text('{"version": 1, "manifests": []}')
    said: list[str] = []
    corpora.prepare("fsdd", tmp_path, DATA, say=said.append)
    assert {path: path.read_bytes() for path in good} == good
    assert "fsdd: prepared already" not in " ".join(said)


def test_manifests_of_another_version_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.prepare("fsdd", tmp_path, DATA)
    monkeypatch.setattr(fsdd, "VERSION", fsdd.VERSION + 1)
    corpora.prepare("fsdd", tmp_path, DATA)
    assert facts(tmp_path / "fsdd")["version"] == fsdd.VERSION


def test_what_breaks_off_half_way_does_not_count_as_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.prepare("fsdd", tmp_path, DATA)
    (tmp_path / "fsdd" / "dev.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(fsdd.prepared, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            corpora.prepare("fsdd", tmp_path, DATA)
    assert not (tmp_path / "fsdd" / "corpus.json").exists()


def test_another_source_or_audio_that_went_away_means_again(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(DATA / "fsdd", copy)
    corpora.prepare("fsdd", tmp_path, DATA)
    paths = corpora.prepare("fsdd", tmp_path, copy)
    assert manifest.read(paths["test"])[0].path.parent == copy
    next(copy.glob("*_0.flac")).unlink()
    paths = corpora.prepare("fsdd", tmp_path, copy)
    assert facts(tmp_path / "fsdd")["note"].startswith("20 of 3000")


@pytest.mark.parametrize(
    "layout",
    ["{}", "recordings", "fsdd", "fsdd/recordings", "free-spoken-digit-dataset/recordings",
     "free-spoken-digit-dataset-1.0.10/recordings", "fsdd/free-spoken-digit-dataset-master/recordings"],
)  # fmt: skip
def test_layouts_are_found_by_looking(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    shutil.copytree(DATA / "fsdd", root / layout.replace("{}", "."))
    paths = corpora.prepare("fsdd", tmp_path / "a", root)
    assert manifest.read(paths["test"])[0].path.parent.resolve() == (root / layout.replace("{}", ".")).resolve()
    monkeypatch.setenv("ASR_DATA", str(root))
    corpora.prepare("fsdd", tmp_path / "b", download=False)
    assert (tmp_path / "a/fsdd/test.jsonl").read_bytes() == (tmp_path / "b/fsdd/test.jsonl").read_bytes()


def test_audio_inside_the_folder_is_named_relative_to_its_manifest(tmp_path: Path) -> None:
    shutil.copytree(DATA / "fsdd", tmp_path / "fsdd" / "download" / "recordings")
    paths = corpora.prepare("fsdd", tmp_path, download=False)
    [line] = [line for line in manifest.read(paths["test"]) if line.id == "0_george_0"]
    assert line.audio_filepath == "download/recordings/0_george_0.flac"
    nested = manifest.read(tmp_path / "fsdd" / "without_george" / "test.jsonl")
    assert nested[0].audio_filepath == "../download/recordings/0_george_0.flac"
    assert nested[0].path.is_file()
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "fsdd", moved)
    assert manifest.read(moved / "test.jsonl")[0].path.is_file()


def test_nothing_found_names_the_places_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"fsdd: no copy found \(looked in .*/fsdd/download; ASR_DATA is not set\)"):
        corpora.prepare("fsdd", tmp_path, download=False)
    monkeypatch.setenv("ASR_DATA", "/nowhere/at/all")
    with pytest.raises(InputError, match=r"looked in /nowhere/at/all, .*; give --source or allow the download"):
        corpora.prepare("fsdd", tmp_path, download=False)
    with pytest.raises(InputError, match=r"--source .*: no yesno there .*waves_yesno") as caught:
        corpora.prepare("yesno", tmp_path, DATA / "fsdd")
    assert caught.value.status == 2
    with pytest.raises(InputError, match=r"--source /nowhere: no such folder or archive") as caught:
        corpora.prepare("yesno", tmp_path, "/nowhere")
    assert caught.value.status == 2


def test_an_unknown_name_gets_the_nearest_and_all() -> None:
    with pytest.raises(
        InputError, match=r"no corpus 'fssd'; did you mean fsdd\? There are fsdd, fsdd_strings"
    ) as caught:
        corpora.prepare("fssd")
    assert caught.value.status == 2
    with pytest.raises(InputError, match=r"no corpus '../x'"):
        corpora.prepare("../x")


def test_audio_that_is_not_what_a_corpus_holds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recordings" / "0_george_0.wav"
    path.parent.mkdir()

    def refused(text: str) -> None:
        with pytest.raises(InputError, match=rf"0_george_0.wav: {text}"):
            corpora.prepare("fsdd", tmp_path / "out", tmp_path)

    path.write_bytes(b"no audio")
    refused("")
    path.write_bytes(b"")
    refused("")
    for samples, form, subtype, text in (
        (np.zeros((9, 2)), "WAV", "PCM_16", "WAV, PCM_16, 2 channels, 0.0 s; expected mono 16-bit"),
        (np.zeros(9), "WAV", "FLOAT", "WAV, FLOAT, 1 channels"),
        (np.zeros(9), "AIFF", "PCM_16", "AIFF, PCM_16"),
        (np.zeros(0), "WAV", "PCM_16", "holds no samples"),
        (np.zeros(8000 * 61, "int16"), "FLAC", "PCM_16", "FLAC, .* 61.0 s; .* at most 60 s"),
    ):
        soundfile.write(path, samples, 8000, format=form, subtype=subtype)
        refused(text)


def test_a_header_that_promises_months_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "recordings" / "0_george_0.flac"
    path.parent.mkdir()
    content = bytearray((DATA / "fsdd" / "0_george_0.flac").read_bytes())
    content[21:26] = bytes([content[21] | 0x0F]) + b"\xff" * 4  # 36 bits: the number of samples
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"0_george_0.flac: FLAC, PCM_16, 1 channels, 8589934.6 s"):
        corpora.prepare("fsdd", tmp_path / "out", tmp_path)


def test_samples_are_read_to_the_bit(tmp_path: Path) -> None:
    samples = np.arange(-32768, 32768).astype("int16")
    for form in ("WAV", "FLAC", "NIST"):
        soundfile.write(tmp_path / "a", samples, 8000, format=form, subtype="PCM_16")
        read, rate = source.read_samples(tmp_path / "a")
        assert np.array_equal(read, samples) and rate == 8000 and read.dtype == np.dtype("<i2")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AsrError, match=r"out/yesno: not written .*--out"):
        corpora.prepare("yesno", tmp_path / "out", DATA)


def test_fsdd_is_complete_and_its_counts_are_the_published_ones(asr_data: FindData, tmp_path: Path) -> None:
    asr_data("fsdd")
    splits = lines(corpora.prepare("fsdd", tmp_path, download=False))
    assert {split: len(found) for split, found in splits.items()} == {"train": 2520, "dev": 180, "test": 300}
    assert facts(tmp_path / "fsdd")["complete"] is True
    assert sum(line.duration or 0 for found in splits.values() for line in found) == pytest.approx(1312.3, abs=0.05)
    assert sum(line.duration or 0 for line in splits["test"]) == pytest.approx(2.15 * 60, abs=0.5)
    left_out = [len(manifest.read(tmp_path / "fsdd" / "without_theo" / f"{split}.jsonl")) for split in splits]
    assert left_out == [2100, 150, 500]


def test_yesno_is_complete_with_240_test_words(asr_data: FindData, tmp_path: Path) -> None:
    asr_data("waves_yesno")
    splits = lines(corpora.prepare("yesno", tmp_path, download=False))
    assert {split: len(found) for split, found in splits.items()} == {"train": 24, "dev": 6, "test": 30}
    names = [line.id for split in ("train", "dev", "test") for line in splits[split]]
    assert names == sorted(names)
    assert sum(len((line.text or "").split()) for line in splits["test"]) == 240
    assert facts(tmp_path / "yesno")["complete"] is True


def test_an4_is_complete_and_no_speaker_is_in_two_splits(asr_data: FindData, tmp_path: Path) -> None:
    asr_data("an4")
    splits = lines(corpora.prepare("an4", tmp_path, download=False))
    assert {split: len(found) for split, found in splits.items()} == {"train": 844, "dev": 104, "test": 130}
    speakers = {split: {line.speaker for line in found} for split, found in splits.items()}
    assert (
        speakers["dev"] == {"fbbh", "fkai", "fplp", "ftmj", "mblb", "mewl", "mjhp", "mtje"}
        and len(speakers["train"]) == 66
        and len(speakers["test"]) == 10
    )
    assert not speakers["train"] & speakers["dev"] and not speakers["test"] & (speakers["train"] | speakers["dev"])
    assert sum(len((line.text or "").split()) for line in splits["test"]) == 773
    assert sum(len((line.text or "").split()) for split in ("train", "dev") for line in splits[split]) == 5442
    assert set("".join(line.text or "" for found in splits.values() for line in found)) == set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ "
    )
    assert collections.Counter(name[0] for name in speakers["dev"]) == {"f": 4, "m": 4}
    assert facts(tmp_path / "an4")["complete"] is True


def test_changed_samples_are_noticed(asr_data: FindData, tmp_path: Path) -> None:
    copy = tmp_path / "waves_yesno"
    shutil.copytree(asr_data("waves_yesno"), copy, copy_function=shutil.copyfile)
    path = copy / "1_0_0_0_0_0_0_0.flac"
    samples, rate = soundfile.read(path, dtype="int16")
    samples[1000] += 1
    soundfile.write(path, samples, rate)
    said: list[str] = []
    corpora.prepare("yesno", tmp_path / "out", copy, say=said.append)
    assert "the samples differ from the published recordings" in " ".join(said)
    assert facts(tmp_path / "out" / "yesno")["complete"] is False


def test_yesno_boundaries_are_the_25th_and_31st_of_all_names(asr_data: FindData) -> None:
    names = sorted(path.stem for path in asr_data("waves_yesno").glob("*.flac"))
    assert [yesno.split_of(name) for name in names] == ["train"] * 24 + ["dev"] * 6 + ["test"] * 30
