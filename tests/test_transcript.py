"""Transcripts: times that make sense, segments that can be read, formats that no text can break."""

import itertools
import json
import math
import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import transcript as t
from asr.errors import InputError
from asr.manifest import Utterance
from asr.transcript import Segment, Transcript, Word

CUE = re.compile(r"(\d{2,}):([0-5]\d):([0-5]\d)([,.])(\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d)\4(\d{3})")
few = settings(max_examples=30)
FORMS = list(t.formats)

nasty = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "-->",
            "--->",
            "a-->b",
            "\n\n",
            "1",
            "WEBVTT",
            "NOTE x",
            "<i>",
            "&amp;",
            "\t",
            ";;",
            "\u2028",
            "\x85",
            "\r",
        ]
    ),
)
times = st.one_of(st.floats(-5, 200), st.just(math.nan), st.just(math.inf))
words = st.builds(Word, nasty, times, times, st.floats(-1, 2))
pieces = st.builds(
    Segment,
    id=st.just(7),
    start=times,
    end=times,
    text=nasty,
    avg_logprob=st.floats(-30, 0),
    words=st.lists(words, max_size=4).map(tuple),
)
transcripts = st.builds(
    Transcript,
    audio_filepath=st.one_of(nasty, st.sampled_from(["a b/c d.wav", "/x/;;y.flac", "\udcff.wav"])),
    duration=st.floats(0, 100),
    text=nasty,
    segments=st.lists(pieces, max_size=5).map(tuple),
)


def spoken(text: str, start: float = 0.0, each: float = 0.3, gap: float = 0.1) -> list[Word]:
    return [
        Word(word, start + number * (each + gap), start + number * (each + gap) + each, 0.9)
        for number, word in enumerate(text.split())
    ]


def heard(*pieces: Segment, text: str = "", duration: float = 10.0, path: str = "x/take 1.wav") -> Transcript:
    return Transcript(path, duration, text or " ".join(piece.text for piece in pieces), pieces)


def seconds(hours: str, minutes: str, whole: str, thousandths: str) -> float:
    return round(int(hours) * 3600 + int(minutes) * 60 + int(whole) + int(thousandths) / 1000, 3)


def cues(content: str) -> list[tuple[float, float, list[str]]]:
    """An independent reader of SRT and WebVTT: blocks between blank lines, times, text."""
    found = []
    for block in re.split(r"\n\n+", content.strip("\n")):
        lines = block.split("\n")
        if lines[0] == "WEBVTT" or not block:
            continue
        at = 0 if "-->" in lines[0] else 1
        match = CUE.fullmatch(lines[at])
        assert match, lines
        a = match.groups()
        found.append((seconds(*a[:3], a[4]), seconds(*a[5:]), lines[at + 1 :]))
    return found


# The JSON shape


def test_the_json_shape_has_exactly_the_documented_keys():
    [segment] = t.segments(spoken("one two"))
    whole = Transcript(
        "a.wav",
        2.0,
        "one two",
        (segment,),
        {"name": "m", "sha256": "0"},
        {"kind": "greedy"},
        0.01,
        ("resampled",),
    )
    shape = whole.to_json()
    assert list(shape) == [
        "version", "audio_filepath", "duration", "language", "text", "segments", "model", "decoder", "rtf",
    ]  # fmt: skip
    assert shape["version"] == 1 and shape["language"] is None and shape["rtf"] == 0.01
    assert shape["model"] == {"name": "m", "sha256": "0"} and shape["decoder"] == {"kind": "greedy"}
    assert shape["segments"] == [
        {
            "id": 0,
            "start": 0.0,
            "end": 0.7,
            "text": "one two",
            "avg_logprob": round(math.log(0.9), 4),
            "words": (
                {"word": "one", "start": 0.0, "end": 0.3, "probability": 0.9},
                {"word": "two", "start": 0.4, "end": 0.7, "probability": 0.9},
            ),
        }
    ]
    assert json.loads(t.render(whole, "json")) == json.loads(json.dumps(shape))
    assert [word.word for word in whole.words] == ["one", "two"]


@few
@given(transcripts)
def test_times_are_rounded_never_decrease_and_lie_inside_the_recording(transcript):
    shape = json.loads(t.render(transcript, "json"))
    last = 0.0
    for number, segment in enumerate(shape["segments"]):
        assert segment["id"] == number
        parts = segment["words"] or [segment]
        for part in parts:
            for time in (part["start"], part["end"]):
                assert last <= time <= shape["duration"] and time == round(time, 3)
                last = time
        assert (segment["start"], segment["end"]) == (parts[0]["start"], parts[-1]["end"])
        assert all(0 <= word["probability"] <= 1 for word in segment["words"])


def test_times_that_are_in_order_are_left_alone():
    whole = heard(*t.segments(spoken("one two three", start=1.0004)))
    assert [(word.start, word.end) for word in whole.words] == [(1.0, 1.3), (1.4, 1.7), (1.8, 2.1)]


def test_a_transcript_built_from_a_transcripts_pieces_is_the_same():
    once = heard(*t.segments(spoken("one two three", start=0.12345)), duration=1.23456)
    assert Transcript(once.audio_filepath, once.duration, once.text, once.segments) == once
    assert once.duration == 1.235


# Segments


def test_a_pause_ends_a_segment():
    first, second = Word("one", 0.0, 0.5, 0.5), Word("two", 1.3, 1.5, 1.0)
    assert [piece.text for piece in t.segments([first, second])] == ["one", "two"]
    assert [piece.text for piece in t.segments([first, Word("two", 1.29, 1.5, 1.0)])] == ["one two"]


def test_a_segment_is_two_lines_of_42_characters_at_most():
    twenty = "abcdefghijklmnopqrst"
    full = " ".join([twenty] * 4)  # two lines of 41
    assert [piece.text for piece in t.segments(spoken(full, each=0.1))] == [full]
    assert [piece.text for piece in t.segments(spoken(full + " b", each=0.1))] == [full, "b"]


def test_a_segment_lasts_seven_seconds_at_most_but_for_a_single_word():
    assert [len(piece.words) for piece in t.segments(spoken("a " * 20, each=0.5, gap=0.5))] == [7, 7, 6]
    assert [piece.text for piece in t.segments([Word("a", 0, 9, 1), Word("b", 9, 9.5, 1)])] == ["a", "b"]
    assert [piece.text for piece in t.segments([Word("a", 0, 6.5, 1), Word("b", 6.5, 7, 1)])] == ["a b"]


def test_no_words_no_segments():
    assert t.segments([]) == ()


def test_the_log_probability_of_an_impossible_word_is_finite():
    [piece] = t.segments([Word("a", 0, 1, 0.0), Word("b", 1, 2, 1.0)])
    assert piece.avg_logprob == pytest.approx(math.log(1e-10) / 2)


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 3), st.floats(0, 9)), max_size=30))
def test_segments_keep_every_word_in_order_and_their_limits(steps):
    time, spoken_words = 0.0, []
    for length, gap, lasting in steps:
        spoken_words.append(Word("x" * length, time + gap, time + gap + lasting, 0.5))
        time += gap + lasting
    found = t.segments(spoken_words)
    assert [word for piece in found for word in piece.words] == spoken_words
    for piece, following in itertools.zip_longest(found, found[1:]):
        if len(piece.words) > 1:
            assert piece.end - piece.start <= 7
        assert all(b.start - a.end < 0.8 for a, b in zip(piece.words, piece.words[1:], strict=False))
        if following:  # nothing ends without a reason
            joined = piece.text + " " + following.words[0].word
            assert (
                following.start - piece.end >= 0.8
                or following.words[0].end - piece.start > 7
                or len(textwrap.wrap(joined, 42, break_long_words=False)) > 2
            )


# The formats, by example

FIRST = (Word("one", 0.5, 0.75, 0.5), Word("&", 0.8, 0.9, 1), Word("two", 1, 1.25, 0.25))
EXAMPLE = heard(
    Segment(0, 0.5, 1.25, "one & two", -0.1, FIRST),
    Segment(1, 3661.5, 3662.0, "a-->b", -0.1, (Word("a-->b", 3661.5, 3662.0, 0.125),)),
    duration=4000.0,
)
EXPECTED = {
    "txt": "one & two a-->b\n",
    "srt": "1\n00:00:00,500 --> 00:00:01,250\none & two\n\n2\n01:01:01,500 --> 01:01:02,000\na->b\n",
    "vtt": "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\none &amp; two\n\n01:01:01.500 --> 01:01:02.000\na--&gt;b\n",
    "tsv": "start\tend\ttext\n500\t1250\tone & two\n3661500\t3662000\ta-->b\n",
    "ctm": (
        "take_1 1 0.500 0.250 one 0.5000\ntake_1 1 0.800 0.100 & 1.0000\ntake_1 1 1.000 0.250 two 0.2500\n"
        "take_1 1 3661.500 0.500 a-->b 0.1250\n"
    ),
    "jsonl": '{"audio_filepath": "x/take 1.wav", "duration": 4000.0, "pred_text": "one & two a-->b"}\n',
}


@pytest.mark.parametrize("form", EXPECTED)
def test_formats_are_written_as_their_readers_expect(form):
    assert t.render(EXAMPLE, form) == EXPECTED[form]


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("txt", "\n"),
        ("srt", ""),
        ("vtt", "WEBVTT\n"),
        ("tsv", "start\tend\ttext\n"),
        ("ctm", ""),
        ("jsonl", '{"audio_filepath": "x/take 1.wav", "duration": 10.0, "pred_text": ""}\n'),
    ],
)
def test_a_silent_recording_gives_a_valid_empty_file(form, content):
    assert t.render(heard(), form) == content
    assert t.render(heard(Segment(0, 0, 1, " ", 0.0)), form) == content.replace("text\n", "text\n0\t1000\t\n")


def test_a_long_segment_is_shown_in_lines_of_42_characters():
    text = " ".join(["word"] * 16)
    [(_, _, lines)] = cues(t.render(heard(Segment(0, 0, 5, text, 0.0)), "srt"))
    assert lines == [" ".join(["word"] * 8)] * 2


def test_a_cue_never_has_its_end_at_its_start():
    for form in ("srt", "vtt"):
        [(start, end, _)] = cues(t.render(heard(Segment(0, 2, 2, "a", 0.0)), form))
        assert (start, end) == (2.0, 2.001)


def test_a_manifest_line_keeps_all_keys_of_its_utterance():
    utterance = Utterance("a.wav", 1.5, "one", None, "u1", 0.5, "ann", "test", {"lang": "en", "n": [1]}, "/somewhere")
    assert json.loads(t.manifest_line(heard(text="two\nthree"), utterance)) == utterance.to_json() | {
        "pred_text": "two three"
    }
    lacking = Utterance("a.wav", id="u1")
    assert json.loads(t.manifest_line(heard(duration=2.5), lacking))["duration"] == 2.5


def test_an_unknown_format_is_named_with_the_known_ones():
    with pytest.raises(
        InputError, match="no output format 'doc'; known are txt, json, jsonl, srt, vtt, tsv, ctm"
    ) as raised:
        t.render(heard(), "doc")
    assert raised.value.status == 2


# The formats, whatever the text


def shown(transcript: Transcript) -> list[Segment]:
    return [piece for piece in transcript.segments if piece.text.split()]


@few
@given(transcripts)
def test_no_text_breaks_srt(transcript):
    content = t.render(transcript, "srt")
    found = cues(content)
    assert len(found) == len(shown(transcript)) == content.count("-->")
    for number, ((start, end, lines), piece) in enumerate(zip(found, shown(transcript), strict=True), start=1):
        assert re.search(rf"(?:^|\n\n){number}\n", content)
        assert start < end and start == piece.start and abs(end - piece.end) <= 0.0011
        assert lines and all(line.strip() and len(line.splitlines()) == 1 for line in lines)
        assert " ".join(lines) == re.sub("-{2,}>", "->", " ".join(piece.text.split()))
    assert [cue[0] for cue in found] == sorted(cue[0] for cue in found)


@few
@given(transcripts)
def test_no_text_breaks_vtt(transcript):
    content = t.render(transcript, "vtt")
    assert content.startswith("WEBVTT\n")
    found = cues(content)
    assert len(found) == len(shown(transcript)) == content.count("-->")
    for (start, end, lines), piece in zip(found, shown(transcript), strict=True):
        assert start < end
        assert not any("<" in line or ">" in line for line in lines)
        assert not re.search("&(?!amp;|lt;|gt;)", "".join(lines))
        plain = " ".join(lines).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert plain == " ".join(piece.text.split())


@few
@given(transcripts)
def test_no_text_breaks_tsv(transcript):
    header, *rows = t.render(transcript, "tsv").removesuffix("\n").split("\n")
    assert header == "start\tend\ttext"
    assert len(rows) == len(transcript.segments)
    for row, piece in zip(rows, transcript.segments, strict=True):
        start, end, text = row.split("\t")
        assert (int(start), int(end)) == (round(piece.start * 1000), round(piece.end * 1000))
        assert text == " ".join(piece.text.split())


@few
@given(transcripts)
def test_no_text_or_name_breaks_ctm(transcript):
    lines = t.render(transcript, "ctm").split("\n")[:-1]
    spoken_words = [word for word in transcript.words if word.word.split()]
    assert len(lines) == len(spoken_words)
    for line, word in zip(lines, spoken_words, strict=True):
        name, channel, start, lasting, text, confidence = line.split()
        assert not name.startswith(";;") and channel == "1"
        assert float(start) == word.start and abs(float(start) + float(lasting) - word.end) < 0.0006
        assert text == "_".join(word.word.split()) and float(confidence) == word.probability


@few
@given(transcripts)
def test_txt_and_jsonl_are_one_line(transcript):
    text = " ".join(transcript.text.split())
    assert t.render(transcript, "txt") == text + "\n"
    line = t.render(transcript, "jsonl")
    assert line.count("\n") == 1 and line.endswith("\n")
    assert json.loads(line) == {
        "audio_filepath": transcript.audio_filepath,
        "duration": transcript.duration,
        "pred_text": text,
    }


@few
@given(transcripts)
def test_every_format_can_be_written_as_utf8(transcript):
    for form in FORMS:
        t.render(transcript, form).encode()


# Where transcripts are written


def test_outputs_are_named_by_stem_and_format(tmp_path):
    assert t.output_paths(["a/x.wav", "b.c.flac", "-"], tmp_path, ["txt", "srt"]) == [
        {"txt": tmp_path / "x.txt", "srt": tmp_path / "x.srt"},
        {"txt": tmp_path / "b.c.txt", "srt": tmp_path / "b.c.srt"},
        {"txt": tmp_path / "stdin.txt", "srt": tmp_path / "stdin.srt"},
    ]


@pytest.mark.parametrize("pair", [("a/x.wav", "b/x.wav"), ("x.wav", "x.flac"), ("x.wav", "x.wav")])
def test_two_inputs_with_one_stem_are_refused_by_name(tmp_path, pair):
    with pytest.raises(
        InputError, match=f"{pair[0]} and {pair[1]} would both be written to .*x.*; rename one"
    ) as raised:
        t.output_paths(pair, tmp_path, ["txt"])
    assert raised.value.status == 2


def test_an_input_is_never_overwritten(tmp_path):
    manifest = tmp_path / "test.jsonl"
    with pytest.raises(InputError, match=r"test\.jsonl is an input and would be overwritten"):
        t.output_paths([manifest], tmp_path, ["jsonl"])
    assert t.output_paths([manifest], tmp_path / "out", ["jsonl"])


def test_suffixes_name_their_format():
    assert t.suffix("srt") == ".srt"
