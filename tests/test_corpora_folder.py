"""A folder of one's own: what is found, left out and said, how it is split, and that it trains by one command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from asr import cli, config, corpora, manifest, sizes
from asr.errors import InputError
from asr.manifest import Utterance

FSDD = Path(__file__).parent / "data" / "fsdd"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def sound(path: Path, seconds: float = 1.0, rate: int = 8000, channels: int = 1, loud: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (int(seconds * rate), channels)
    soundfile.write(path, np.random.default_rng(1).uniform(-loud, loud, shape), rate)
    return path


def beside(folder: Path, count: int = 12, speakers: int = 0, text: str = "hello there") -> Path:
    """Recordings with a .txt beside each, in sub-folders of so many speakers."""
    for number in range(count):
        place = folder / f"voice{number % speakers}" if speakers else folder
        sound(place / f"clip{number:02d}.wav").with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    return folder


def prepared(source: Path, out: Path) -> tuple[dict[str, list[Utterance]], list[str]]:
    said: list[str] = []
    paths = corpora.prepare("folder", out, source, say=said.append)
    return {split: manifest.read(path) for split, path in paths.items()}, said


def test_text_files_beside_audio_and_folders_as_speakers(tmp_path: Path) -> None:
    splits, said = prepared(beside(tmp_path / "mine", 30, 6, "Hello, THERE!"), tmp_path / "out")
    speakers = {split: {line.speaker for line in lines} for split, lines in splits.items()}
    assert sum(len(lines) for lines in splits.values()) == 30
    assert set.union(*speakers.values()) == {f"voice{number}" for number in range(6)}
    assert sum(map(len, speakers.values())) == 6 and all(speakers.values())  # nobody is in two
    line = splits["train"][0]
    assert line.text == "Hello, THERE!" and line.duration == 1.0 and line.id == f"{line.speaker}/{line.path.stem}"
    told = "\n".join(said)
    assert "audio files with a .txt beside each: 30 recordings with text" in told
    assert "6 speakers by sub-folder: nobody is in two of train, dev and test" in told
    assert "text.normalizer=basic, such as 'Hello, THERE!' -> 'hello there'" in told
    assert "6 characters: ehlort; dropped: ',' 30, '!' 30" in told


@pytest.mark.parametrize(
    ("name", "rows", "how"),
    [
        ("list.csv", 'path,text,speaker\n{0},"one, two",a{1}\n', "audio in 'path', text in 'text', speaker in 'spea"),
        ("list.csv", "{0};one, two\n", "audio in column 1, text in column 2"),
        ("list.csv", "one, two|{0}\n", "audio in column 2, text in column 1"),
        ("list.tsv", 'nr\twhat was said\twhere\n{1}\tone, two\t{0}\n', "audio in 'where', text in 'what was said'"),
        ("list.tsv", "{0}\tone, two\n", "audio in column 1, text in column 2"),
        ("list.jsonl", '{{"audio_filepath": "{0}", "text": "one, two"}}\n', "audio in 'audio_filepath', text in 'tex"),
        ("list.jsonl", '{{"recording": "{0}", "said": "one, two"}}\n', "audio in 'recording', text in 'said'"),
    ],
    ids=["csv-named", "csv-semicolon", "csv-bar", "tsv-other-names", "tsv-bare", "jsonl-nemo", "jsonl-other"],
)  # fmt: skip
def test_tables_are_read_whatever_they_look_like(name: str, rows: str, how: str, tmp_path: Path) -> None:
    home = tmp_path / "mine"
    for number in range(12):
        sound(home / "clips" / f"c{number}.wav")
    first, last = rows.splitlines()[0], rows.splitlines()[-1]
    lines = [first] if first != last else []
    lines += [last.format(f"clips/c{number}.wav" if number else "clips/c0", number) for number in range(12)]
    (home / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, source in enumerate((home, home / name)):
        splits, said = prepared(source, tmp_path / f"out{number}")
        assert {line.text for lines in splits.values() for line in lines} == {"one, two"}
        assert {line.path.name for lines in splits.values() for line in lines} == {f"c{n}.wav" for n in range(12)}
        assert any(f"{name}, {how}" in line and line.endswith(": 12 recordings with text") for line in said), said
        by = "12 speakers by column" if "speaker" in how else "speakers unknown: split by recording"
        assert any(by in line for line in said)


def test_what_is_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    home = beside(tmp_path / "mine", 12)
    for name, text in (("damaged", "a b"), ("empty", " ?! \n"), ("long", "a b"), ("short", "a"), ("silent", "a"),
                       ("full", "far too much text for the half second that it lasts")):  # fmt: skip
        (home / f"{name}.txt").write_text(text)
    (home / "damaged.flac").write_bytes(b"fLaC and no more")
    sound(home / "empty.wav")
    sound(home / "long.wav", 31)
    sound(home / "short.wav", 0.05)
    sound(home / "silent.wav", loud=0)
    sound(home / "full.wav", 0.5)
    sound(home / "lonely.wav")
    (home / "text only.txt").write_text("a")
    sound(home / "latin.wav").with_suffix(".txt").write_bytes(b"gr\xfc\xdfe")
    sound(home / "clip00.flac")  # beside clip00.wav, of the same name
    splits, said = prepared(home, tmp_path / "out")
    assert sum(len(lines) for lines in splits.values()) == 12
    rows = (tmp_path / "out/folder/mine/left_out.tsv").read_text(encoding="utf-8").splitlines()
    reasons = dict(row.split("\t") for row in rows)
    assert reasons.pop("damaged.flac").startswith("unreadable (")
    assert reasons == {
        "empty.wav": "empty text",
        "long.wav": "too long (31.0 s, at most 30)",
        "short.wav": "too short (0.05 s, at least 0.1)",
        "silent.wav": "nothing but silence",
        "full.wav": "51 characters of text for 0.50 s: more than can be said",
        "lonely.wav": "no .txt beside it",
        "text only.txt": "no recording beside it",
        "latin.wav": "its .txt can't be read (not UTF-8)",
        "clip00.wav": "the same name with another ending came before",
    }
    assert any("10 left out, all in" in line for line in said)


def test_mixed_rates_formats_channels_and_digits_are_said(tmp_path: Path) -> None:
    home = beside(tmp_path / "mine", 12, text="room 12")
    sound(home / "clip01.wav", rate=16000, channels=2)
    (home / "clip02.wav").unlink()
    sound(home / "clip02.flac")
    said = "\n".join(prepared(home, tmp_path / "out")[1])
    assert "mixed recordings (11 at 8000 Hz, 1 at 16000 Hz, 11 WAV, 1 FLAC)" in said
    assert "1 recordings have several channels: their mean is taken" in said
    assert "12 texts hold digits" in said


def test_one_speaker_is_split_by_recording_and_that_is_said(tmp_path: Path) -> None:
    splits, said = prepared(beside(tmp_path / "mine", 40, 1), tmp_path / "out")
    assert {split: len(lines) for split, lines in splits.items()} == {"train": 32, "dev": 4, "test": 4}
    assert any("speakers unknown: split by recording, so the error rates are those of voices known" in s for s in said)
    ids = [line.id for lines in splits.values() for line in lines]
    assert len(set(ids)) == 40
    moved = tmp_path / "elsewhere" / "mine"
    shutil.copytree(tmp_path / "mine", moved)
    again, _ = prepared(moved, tmp_path / "out2")
    assert {s: [line.id for line in lines] for s, lines in again.items()} == {
        s: [line.id for line in lines] for s, lines in splits.items()
    }


def test_held_out_texts_with_characters_that_training_never_has_are_left_out(tmp_path: Path) -> None:
    home = beside(tmp_path / "mine", 40)
    before, _ = prepared(home, tmp_path / "out")
    chosen = before["dev"][0].id
    (home / f"{chosen}.txt").write_text("hello zebra", encoding="utf-8")
    after, _ = prepared(home, tmp_path / "out")
    assert chosen not in [line.id for lines in after.values() for line in lines]
    assert f"{chosen}.wav\tdev only, and no training text has 'abz'" in (
        tmp_path / "out/folder/mine/left_out.tsv"
    ).read_text(encoding="utf-8")


def test_too_little_or_nothing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name your recordings: --source DIR, in training data.dir=DIR") as caught:
        corpora.prepare("folder", tmp_path)
    assert caught.value.status == 2
    with pytest.raises(InputError, match=r"nowhere: no such folder or table"):
        corpora.prepare("folder", tmp_path, tmp_path / "nowhere")
    home = beside(tmp_path / "mine", 3)
    sound(home / "x.wav")
    with pytest.raises(InputError, match=r"mine: 3 usable recordings, 10 or more are needed .*x.wav: no .txt beside"):
        corpora.prepare("folder", tmp_path, home)
    (home / "a.csv").write_text("what,ever\n1,2\n")
    with pytest.raises(InputError, match=r"a.csv: no column of audio files .*name the columns in its first line"):
        corpora.prepare("folder", tmp_path, home)
    (home / "b.tsv").write_text("")
    with pytest.raises(InputError, match=r"several tables \(a.csv, b.tsv\); name the one to use"):
        corpora.prepare("folder", tmp_path, home)
    with pytest.raises(InputError, match=r"b.tsv: empty"):
        corpora.prepare("folder", tmp_path, home / "b.tsv")
    (home / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a.csv: not read \(not UTF-8\)"):
        corpora.prepare("folder", tmp_path, home / "a.csv")


def test_prepared_once_again_after_a_change_and_never_over_an_edit(tmp_path: Path) -> None:
    home = beside(tmp_path / "mine", 20)
    prepared(home, tmp_path)
    assert prepared(home, tmp_path)[1] == [f"folder: prepared already, in {tmp_path / 'folder' / 'mine'}"]
    sound(home / "new.wav").with_suffix(".txt").write_text("hello")
    assert sum(len(lines) for lines in prepared(home, tmp_path)[0].values()) == 21
    path = tmp_path / "folder" / "mine" / "train.jsonl"
    edited = path.read_text(encoding="utf-8").replace("hello", "hallo", 1)
    path.write_text(edited, encoding="utf-8")
    with pytest.raises(InputError, match=r"train.jsonl: changed since it was made of .*; to train on it as it is"):
        corpora.prepare("folder", tmp_path, home)
    assert path.read_text(encoding="utf-8") == edited


def test_a_dev_set_that_is_left_with_nothing_is_too_few(tmp_path: Path) -> None:
    home = beside(tmp_path / "mine", 10)
    for number, path in enumerate(sorted(home.glob("*.txt"))):
        path.write_text(chr(ord("a") + number))  # no text has a character of another's
    with pytest.raises(
        InputError, match=r"10 usable recordings, 10 or more are needed \(in train and dev\); .* only, and"
    ):
        prepared(home, tmp_path / "out")
    assert not (tmp_path / "out" / "folder" / "mine" / "corpus.json").exists()


def test_an_edited_manifest_stays_when_recordings_come_or_go_too(tmp_path: Path) -> None:
    source = beside(tmp_path / "mine", 20)
    prepared(source, tmp_path / "out")
    dev = tmp_path / "out" / "folder" / "mine" / "dev.jsonl"
    dev.write_text(edited := dev.read_text().replace("hello", "hullo"))
    sound(source / "more.wav").with_suffix(".txt").write_text("hello there\n")
    with pytest.raises(InputError, match=r"dev\.jsonl: changed since it was made"):
        prepared(source, tmp_path / "out")
    assert dev.read_text() == edited


def test_another_folder_of_the_same_name_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = (beside(tmp_path / place / "mine", 20) for place in ("a", "b"))
    splits, _ = prepared(first, tmp_path / "out")
    with pytest.raises(InputError, match=r"holds the manifests of .*a/mine, and .*b/mine has its name"):
        prepared(second, tmp_path / "out")
    shutil.move(first, tmp_path / "gone")
    shutil.move(tmp_path / "gone", tmp_path / "a" / "theirs")
    again, _ = prepared(second, tmp_path / "out")  # the first is nowhere now
    assert [line.id for line in again["train"]] == [line.id for line in splits["train"]]


def test_names_that_utf8_can_not_write_are_left_out(tmp_path: Path) -> None:
    source = beside(tmp_path / "mine.v1", 20)
    try:
        (source / "bad\udcff.wav").write_bytes((source / "clip00.wav").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    prepared(source, tmp_path / "out")
    left_out = (tmp_path / "out" / "folder" / "mine.v1" / "left_out.tsv").read_text(encoding="utf-8")
    assert "bad\\udcff.wav" in left_out and "its name is not UTF-8; rename it" in left_out


def manifests(folder: Path, texts: list[str], dev: list[str], seconds: float, rate: int = 16000) -> tuple[str, str]:
    wav = sound(folder / "a.wav", 0.2, rate)
    for split, said in (("train", texts), ("dev", dev)):
        lines = [Utterance(str(wav), seconds, text, id=str(number)) for number, text in enumerate(said)]
        manifest.write(folder / f"{split}.jsonl", lines)
    return str(folder / "train.jsonl"), str(folder / "dev.jsonl")


def test_sizes_grow_with_the_speech_and_words_are_tokens_where_they_are_few(tmp_path: Path) -> None:
    sentences = [f"this is sentence {chr(97 + number % 26)}" for number in range(60)]
    hidden = []
    for number, seconds in enumerate((5.0, 20.0, 200.0, 3000.0, 30000.0)):  # 5 min to 500 h
        chosen, why = sizes.choose(*manifests(tmp_path / str(number), sentences, sentences[:9], seconds))
        hidden.append(int(chosen["model.hidden"]))
        assert chosen["text.units"] == "characters" and chosen["features.rate"] == "16000"
        assert chosen["model.convolutions"] == "[1,3]" and chosen["text.normalizer"] == "none"
    assert hidden == sorted(hidden) and len(set(hidden)) == 5
    assert why == "500.0 h of training speech, 60 utterances, 29 different words"
    chosen, _ = sizes.choose(*manifests(tmp_path / "w", ["Yes", "No"] * 20, ["No"], 1.0, 8000))
    assert (chosen["text.units"], chosen["augment"], chosen["features.rate"]) == ("words", "speed", "8000")
    chosen, _ = sizes.choose(*manifests(tmp_path / "v", ["Yes", "No"] * 20, ["never"], 1.0))
    assert chosen["text.units"] == "characters"  # dev has a word that training has not
    chosen, _ = sizes.choose(*manifests(tmp_path / "c", ["so it is"] * 20, ["It is"], 1.0))
    assert chosen["text.normalizer"] == "basic"  # the capital is in dev alone
    chosen, _ = sizes.choose(*manifests(tmp_path / "f", ["a good deal of talk"] * 20, ["a good"], 0.62))
    assert chosen["model.convolutions"] == "[1,2]"  # 20 characters and a repeat in 62 frames
    with pytest.raises(InputError, match=r"train.jsonl: no utterance in it"):
        sizes.choose(*manifests(tmp_path / "e", [], ["a"], 1.0))


def test_every_choice_is_a_setting_that_fits_and_the_command_line_wins(tmp_path: Path) -> None:
    for row in sizes.TABLE:
        seconds = min(row.hours, 1000) * 3600 / 60
        chosen, _ = sizes.choose(*manifests(tmp_path, ["some words here"] * 60, ["some"], seconds))
        loaded = config.load("folder", sizes.overrides(chosen, ()))
        assert (loaded.model.hidden, loaded.model.layers, loaded.training.epochs) == (
            row.hidden,
            row.layers,
            row.epochs,
        )
    kept = dict(item.split("=") for item in sizes.overrides(chosen, {"augment", "model.hidden", "training.epochs"}))
    assert not {"augment", "model.hidden", "training.epochs"} & kept.keys() and "model.layers" in kept
    assert not any(key.startswith("model") for key in dict(i.split("=") for i in sizes.overrides(chosen, {"model"})))


def test_a_folder_without_a_corpus_is_a_void_setting() -> None:
    with pytest.raises(InputError, match=r"data.dir has no effect without data.corpus; set it too"):
        config.load("folder", ["data.corpus=null", "data.dir=x"])


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The FSDD recordings of the tests as someone's folder: a sub-folder a speaker, a .txt beside each."""
    monkeypatch.chdir(tmp_path)
    for path in sorted(FSDD.glob("*.flac")):
        digit, speaker, _ = path.stem.split("_")
        place = tmp_path / "my_recordings" / speaker
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / path.name)
        (place / f"{path.stem}.txt").write_text(WORDS[int(digit)].capitalize() + ".\n")
    return tmp_path


FAST = ["model.hidden=8", "model.channels=8", "training.epochs=1", "data.cache_gigabytes=0"]


def test_a_folder_trains_by_one_command_and_its_config_has_the_choices(
    digits: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", "recipe=folder", "data.dir=my_recordings", *FAST]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "6 speakers by sub-folder" in said and "chosen for 0.1 min of training speech" in said
    assert "model.hidden" not in said.split("chosen for")[1].splitlines()[0]
    run = digits / "runs" / "folder" / "seed1"
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["data"]["sizes"] == "given" and written["data"]["train"] == "data/folder/my_recordings/train.jsonl"
    assert (written["model"]["hidden"], written["model"]["layers"]) == (8, 2)  # the command line's, the table's
    assert written["features"]["rate"] == 8000 and written["data"]["batch_seconds"] == 20
    result = json.loads((run / "result.json").read_text())
    assert result["training"]["settings"]["data"]["sizes"] == "given"


def test_a_run_repeats_from_its_config_without_the_rules(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train", "recipe=folder", "data.dir=my_recordings", *FAST]) == 0
    monkeypatch.setattr(sizes, "choose", lambda *_: 1 / 0)
    assert cli.main(["train", "recipe=runs/folder/seed1/config.yaml", "name=again"]) == 0
    first, again = (
        json.loads(Path("runs/folder", name, "metrics.jsonl").read_text().splitlines()[0])
        for name in ("seed1", "again")
    )
    assert first["train"] == again["train"] and first["dev"] == again["dev"]


def test_a_manifest_edited_between_stop_and_resume_is_an_error(
    digits: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.cli import training

    command = ["train", "recipe=folder", "data.dir=my_recordings", *FAST, "training.epochs=3"]
    command.remove("training.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(training.Signals, "status", lambda self: 130)
        assert cli.main(command) == 130  # stopped after the first step, with its state saved
    path = Path("data/folder/my_recordings/train.jsonl")
    text = path.read_text()
    path.write_text(text.replace('"text": "', '"text": "so ', 1))
    assert cli.main(command) == 2
    assert "train.jsonl: changed since it was made of my_recordings" in capsys.readouterr().err
    repeat = ["train", "recipe=runs/folder/seed1/config.yaml"]
    assert cli.main(repeat) == 2
    assert (
        "the manifests changed since this run began (data/folder/my_recordings/train.jsonl); put them back to go on"
        in (capsys.readouterr().err)
    )
    path.write_text(text)
    assert cli.main(repeat) == 0


def test_an_empty_dev_set_is_an_error_before_training(digits: Path, capsys: pytest.CaptureFixture) -> None:
    corpora.prepare("folder", "data", "my_recordings")
    Path("empty.jsonl").write_text("")
    assert cli.main(["train", "recipe=folder", "data.corpus=null", "data.train=data/folder/my_recordings/train.jsonl",
                     "data.dev=empty.jsonl", *FAST]) == 1  # fmt: skip
    assert "empty.jsonl: no utterance" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_recordings_of_an4_train_for_a_few_steps(asr_data, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = asr_data("an4")
    lines = (root / "etc/an4_train.transcription").read_text().splitlines()
    chosen = sorted((root / "wav").glob("an4_clstk/*/*.flac"))[::40][:24]
    for path in chosen:
        text = next(line for line in lines if line.endswith(f"({path.stem})"))
        place = tmp_path / "mine" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / path.name)
        (place / f"{path.stem}.txt").write_text(text.split("<s>")[1].split("</s>")[0].strip())
    assert cli.main(["train", "recipe=folder", "data.dir=mine", "training.epochs=2"]) == 0
    assert (tmp_path / "runs/folder/seed1/model.safetensors").exists()
