"""The times of known texts: truth by construction on real recordings, the files, the command line."""

import functools
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_model
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import asr
from asr import aligner, manifest
from asr.aligner import Alignment
from asr.errors import InputError
from asr.manifest import Utterance
from asr.text import BLANK
from asr.transcript import Word, render

DATA = Path(__file__).parent / "data"
FSDD = sorted((DATA / "fsdd").glob("*.flac"))
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def trained():
    """A small model that was trained on strings of digits."""
    return asr.load(DATA / "model_v1.safetensors", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(small_model.write(tmp_path_factory.mktemp("model") / "model.safetensors"))


@pytest.fixture
def run(run):
    """Run `asr align` in an empty folder; returns its status, standard output and the lines on standard error."""
    return functools.partial(run, "align")


def read_textgrid(text):
    """Praat's long text format, by its words: duration and, for each tier, its intervals (start, end, text)."""
    words = re.findall(r'"(?:[^"]|"")*"|[^\s"]+', text)
    assert words[:9] == ["File", "type", "=", '"ooTextFile"', "Object", "class", "=", '"TextGrid"', "xmin"]

    def values(name, of):
        places = [place for place, word in enumerate(of) if word == name and of[place + 1] == "="]
        return [of[place + 2] for place in places]

    def string(word):
        return word[1:-1].replace('""', '"')

    tiers = {}
    starts = [place for place, word in enumerate(words) if word == "item" and words[place + 1] != "[]:"]
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        own = words[start:end]
        [name], [kind], [size] = values("name", own), values("class", own), values("size", own)
        low, high, texts = values("xmin", own), values("xmax", own), values("text", own)
        assert (kind, len(texts), low[0]) == ('"IntervalTier"', int(size), "0")
        tiers[string(name)] = [
            (float(a), float(b), string(c)) for a, b, c in zip(low[1:], high[1:], texts, strict=True)
        ]
        assert high[0] == values("xmax", words)[0]
    assert int(values("size", words)[0]) == len(tiers)
    return float(values("xmax", words)[0]), tiers


def assert_covers(intervals, duration):
    """The intervals stand one behind the other from 0 to the end, and none is empty in time."""
    assert [start for start, _, _ in intervals] == [0.0, *(end for _, end, _ in intervals[:-1])]
    assert intervals[-1][1] == duration
    assert all(start < end for start, end, _ in intervals)
    assert not any(a[2] == b[2] == "" for a, b in itertools.pairwise(intervals))


def joined(paths, pause=0.3):
    """The recordings one behind the other with pauses around them, and where each begins and ends (seconds)."""
    draw = np.random.default_rng(0)
    pieces, places, time = [], [], 0.0
    for path in [*paths, None]:
        pieces.append(0.001 * draw.standard_normal(round(pause * 8000)))
        time += pause
        if path:
            pieces.append(soundfile.read(path)[0])
            places.append((time, time + len(pieces[-1]) / 8000))
            time = places[-1][1]
    return np.concatenate(pieces).astype(np.float32), places


# What is found


@pytest.mark.parametrize("first", range(0, 18, 3))
def test_each_word_is_found_in_its_recording(trained, first):
    paths = FSDD[first : first + 3]
    samples, places = joined(paths)
    found = aligner.align(trained, samples, " ".join(WORDS[int(path.name[0])] for path in paths))
    assert [word.word for word in found.words] == found.text.split()
    behind = 0.0  # the recording before; CTC may emit a word's first token in the pause in front of it
    for word, (start, end) in zip(found.words, places, strict=True):
        assert behind - 0.1 <= word.start < word.end <= end + 0.1
        assert start < word.end
        assert word.start < end
        behind = end


def test_the_right_text_is_more_probable_than_a_wrong_one(trained):
    samples, _ = joined(FSDD[:3])
    right = aligner.align(trained, samples, "zero zero one")
    wrong = aligner.align(trained, samples, "nine nine six")
    assert right.avg_logprob > wrong.avg_logprob + 0.1


def test_greedys_own_text_is_found_where_greedy_heard_it(trained):
    """With the text that greedy decoding gives, its path is the best one; so the times are those of the transcript."""
    heard = trained.transcribe(FSDD[12])
    found = aligner.align(trained, FSDD[12], heard.text)
    assert found.words == heard.words
    assert found.words


def test_tokens_are_the_characters_of_the_words_inside_their_times(trained):
    samples, _ = joined(FSDD[4:8])
    found = aligner.align(trained, samples, " Two,   two THREE three!")
    assert found.text == "two two three three"
    assert "".join(token.word for token in found.tokens) == "twotwothreethree"
    tokens = list(found.tokens)
    for word in found.words:
        own = [tokens.pop(0) for _ in word.word]
        assert (own[0].start, own[-1].end) == (word.start, word.end)
        geometric = np.exp(np.mean([np.log(max(token.probability, 1e-4)) for token in own]))
        assert word.probability == pytest.approx(geometric, abs=0.01)
    assert len(samples) / 8000 == pytest.approx(found.duration, abs=0.0005)


def test_words_as_tokens_are_words_in_both(tmp_path, monkeypatch):
    tokens = [BLANK, *(f"|{word}" for word in sorted(["one", "zero", *map(str, range(16))]))]
    monkeypatch.setattr(small_model, "TOKENS", tokens)
    recognizer = asr.load(small_model.write(tmp_path / "model.safetensors"), "cpu")
    found = aligner.align(recognizer, FSDD[0], "zero one zero")
    assert [word.word for word in found.words] == ["zero", "one", "zero"]
    assert found.words == found.tokens
    with pytest.raises(InputError, match="words 'two', 'six' are not among the 18 words; spell it as the model does"):
        aligner.align(recognizer, FSDD[0], "two one six two")


def test_silence_has_no_words(trained):
    found = aligner.align(trained, FSDD[0], " ... ")
    assert (found.text, found.words, found.tokens) == ("", (), ())
    duration, tiers = read_textgrid(render(found, "textgrid", aligner.formats))
    assert tiers == {"words": [(0.0, duration, "")], "tokens": [(0.0, duration, "")]}
    assert render(found, "ctm", aligner.formats) == ""


def test_a_full_recording_keeps_every_time_inside_and_nothing_is_empty(trained):
    """As many labels as frames, and a last frame that begins where the recording ends."""
    samples = soundfile.read(FSDD[0], dtype="float32")[0]
    frame = round(trained.frame_seconds * 8000)
    for length in (6 * frame - 1, 6 * frame, 6 * frame + 1):
        frames = int(trained.emissions([samples[:length]], 8000)[1][0])
        text = "zerotwotenin"[:frames]
        found = aligner.align(trained, samples[:length], text)
        duration, tiers = read_textgrid(render(found, "textgrid", aligner.formats))
        assert_covers(tiers["tokens"], duration)
        assert [text for _, _, text in tiers["tokens"] if text] == list(text)


def test_many_come_in_order_and_errors_take_their_places(trained, tmp_path):
    missing = InputError("no text")
    sources = [FSDD[0], FSDD[1], tmp_path / "none.wav", FSDD[2], FSDD[3]]
    texts = ["zero", "zero", "one", missing, "öne"]
    results = list(aligner.align_many(trained, sources, texts))
    assert results[:2] == [aligner.align(trained, path, "zero") for path in FSDD[:2]]
    assert "none.wav" in str(results[2])
    assert results[3] is missing
    assert "character 'ö' (U+00F6) is not among the 17 tokens" in str(results[4])


@pytest.mark.parametrize(
    ("samples", "text", "problem"),
    [
        (2400, "zero " * 9, r"frames cannot emit 44 labels, 44 are needed; was this text said in this recording\?"),
        (7, "zero", "1 ms are too short for 4 tokens"),
        (1, "", "0 ms are too short for 0 tokens"),
        (8000, "gö ühm", r"characters 'ö' \(U\+00F6\), 'ü' \(U\+00FC\), 'm' \(U\+006D\) are not among the 17 tokens"),
    ],
)
def test_what_cannot_be_aligned_is_one_line(trained, samples, text, problem):
    with pytest.raises(InputError, match=problem):
        aligner.align(trained, np.zeros(samples, np.float32), text)


# The formats


MARKS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]) | st.just('"'), min_size=1, max_size=6)


@given(st.lists(st.tuples(MARKS, st.integers(0, 3), st.integers(1, 900)), max_size=5), st.integers(0, 2))
def test_a_textgrid_read_back_is_what_was_written(drawn, rest):
    words, time = [], 0
    for text, gap, lasting in drawn:
        words.append(Word(text, (time + gap) / 1000, (time + gap + lasting) / 1000, 0.5))
        time += gap + lasting
    seconds = (time + rest or 1) / 1000
    alignment = Alignment("a.wav", seconds, " ".join(word.word for word in words), tuple(words), (), -1.0, {})
    duration, tiers = read_textgrid(render(alignment, "textgrid", aligner.formats))
    assert duration == seconds
    assert list(tiers) == ["words", "tokens"]
    assert_covers(tiers["words"], duration)
    assert [item for item in tiers["words"] if item[2]] == [(word.start, word.end, word.word) for word in words]


def test_the_reader_reads_a_file_as_praat_writes_it():
    written = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 2 \ntiers? <exists> \nsize = 1 \n'
        'item []: \n    item [1]:\n        class = "IntervalTier" \n        name = "words" \n        xmin = 0 \n'
        "        xmax = 2 \n        intervals: size = 2 \n        intervals [1]:\n            xmin = 0 \n"
        '            xmax = 0.5 \n            text = "a ""b"" = c" \n        intervals [2]:\n'
        '            xmin = 0.5 \n            xmax = 2 \n            text = "" \n'
    )
    assert read_textgrid(written) == (2.0, {"words": [(0.0, 0.5, 'a "b" = c'), (0.5, 2.0, "")]})


def test_json_and_ctm_say_the_same(trained):
    samples, _ = joined(FSDD[:3])
    found = aligner.align(trained, samples, "zero zero one")
    told = json.loads(render(found, "json", aligner.formats))
    assert set(told) == {
        "version", "audio_filepath", "duration", "text", "avg_logprob", "words", "tokens", "model"
    }  # fmt: skip
    assert (told["version"], told["text"], told["model"]) == (1, "zero zero one", trained.identity)
    assert [set(each) for each in told["tokens"]] == [{"token", "start", "end", "probability"}] * 11
    for line, word in zip(render(found, "ctm", aligner.formats).splitlines(), told["words"], strict=True):
        _, channel, start, lasting, spoken, probability = line.split()
        assert (channel, float(start), spoken, float(probability)) == (
            "1", word["start"], word["word"], word["probability"]
        )  # fmt: skip
        assert float(lasting) == pytest.approx(word["end"] - word["start"], abs=1e-9)


def test_an_unknown_format_is_named_with_the_known_ones(trained):
    with pytest.raises(InputError, match="no output format 'elan'; known are textgrid, ctm, json"):
        render(aligner.align(trained, FSDD[0], "zero"), "elan", aligner.formats)


# The command line


def test_one_file_with_its_text_gives_a_textgrid(run, model, tmp_path):
    assert run(FSDD[0], "-q", "-m", model, "--text", "Zero!", "-o", "out") == (0, "", [])
    [path] = (tmp_path / "out").iterdir()
    assert path.name == "0_george_0.TextGrid"
    duration, tiers = read_textgrid(path.read_text(encoding="utf-8"))
    assert duration == pytest.approx(soundfile.info(FSDD[0]).duration, abs=0.0005)
    assert [text for _, _, text in tiers["words"] if text] == ["zero"]
    assert [text for _, _, text in tiers["tokens"] if text] == list("zero")


def test_a_folder_takes_the_texts_beside_its_files(run, model, tmp_path):
    for path, text in zip(FSDD[:2], ["zero", "\ufeffZero,\nno"], strict=True):
        shutil.copy(path, tmp_path)
        (tmp_path / path.name).with_suffix(".txt").write_text(text, encoding="utf-8")
    status, _, errors = run(".", "-m", model, "-o", "out", "-f", "json", "-f", "ctm")
    assert (status, errors[-1]) == (0, "2 alignments in out")
    assert len(list((tmp_path / "out").iterdir())) == 4
    told = json.loads((tmp_path / "out" / f"{FSDD[1].stem}.json").read_text())
    assert (told["text"], told["audio_filepath"]) == ("zero no", FSDD[1].name)


def test_a_manifest_brings_its_texts_and_a_bad_line_stops_no_other(run, model, tmp_path):
    samples, places = joined(FSDD[:2])
    soundfile.write(tmp_path / "long.wav", samples, 8000, subtype="PCM_16")
    (start, end), _ = places
    lines = [
        Utterance("long.wav", end - start, "zero", id="part", offset=start),
        Utterance("long.wav", 0.2, id="no text"),
        Utterance("none.wav", text="one", id="none"),
        Utterance(str(FSDD[0]), text="zzürich", id="letters"),
        Utterance(str(FSDD[1]), text="zero", id="whole"),
    ]
    manifest.write(tmp_path / "m.jsonl", lines)
    status, _, errors = run("m.jsonl", "-q", "-m", model, "-o", "out", "-f", "all")
    assert status == 1
    assert len(errors) == 4
    assert "long.wav: line 2: key 'text' is missing; alignment needs what was said" in errors[0]
    assert "none.wav" in errors[1]
    assert "the text: characters 'ü' (U+00FC), 'c' (U+0063) are not among the 17 tokens" in errors[2]
    assert errors[3] == "asr: 3 of 5 inputs failed"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *(f"{stem}.{form}" for stem in ("part", FSDD[1].stem) for form in ("TextGrid", "ctm", "json")),
        "failures.jsonl",
    }
    failures = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 3
    assert json.loads((tmp_path / "out" / "part.json").read_text())["duration"] == pytest.approx(end - start, abs=1e-3)


def test_standard_input_is_a_recording(run, model, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FSDD[0].read_bytes())))
    assert run("-", "-q", "-m", model, "--text", "zero", "-o", "out", "-f", "ctm")[0] == 0
    assert (tmp_path / "out" / "stdin.ctm").read_text().split()[4] == "zero"


def test_what_was_said_on_standard_input_has_to_be_given(run, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FSDD[0].read_bytes())))
    status, _, errors = run("-", "-q", "-m", model, "-o", "out")
    assert status == 1
    assert "what was said on standard input stands in --text; give it" in errors[0]


@pytest.mark.parametrize(
    ("words", "status", "problem"),
    [
        ([FSDD[0], FSDD[1], "--text", "zero"], 2, "--text is what was said in one audio file"),
        (["m.jsonl", "--text", "zero"], 2, "a manifest carries its texts itself"),
        ([FSDD[0], "--text", "zero", "-f", "srt"], 2, "no output format 'srt'; known are textgrid, ctm, json, all"),
        ([FSDD[0], FSDD[0]], 2, "would both be written to"),
        (["none.wav"], 1, "none.txt: No such file or directory; what was said stands there, or in --text"),
        (["latin.wav"], 1, "latin.txt: not UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line(run, model, tmp_path, words, status, problem):
    manifest.write(tmp_path / "m.jsonl", [Utterance(str(FSDD[0]), text="zero")])
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    found, _, errors = run(*words, "-q", "-m", model, "-o", "out")
    assert found == status
    assert problem in errors[0]
    assert len(errors) == status % 2 + 1  # with status 1 a second line counts the failures


def test_an_output_folder_is_needed(run, model):
    status, _, [error] = run(FSDD[0], "-m", model, "--text", "zero")
    assert (status, "-o/--output-dir" in error) == (2, True)


def test_transcribing_does_not_load_the_compiler():
    code = "import sys, asr.bulk, asr.ctc; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_each_word_of_an4_has_its_time(trained, asr_data):
    """Spelled letters of AN4, resampled from 16 kHz: whatever the model thinks of them, the files are whole."""
    folder = asr_data("an4")
    sources = sorted(folder.rglob("*.flac"))[:20]
    assert sources
    for found in aligner.align_many(trained, sources, ["one two six"] * len(sources)):
        duration, tiers = read_textgrid(render(found, "textgrid", aligner.formats))
        for tier in tiers.values():
            assert_covers(tier, duration)
        assert [word.word for word in found.words] == ["one", "two", "six"]
