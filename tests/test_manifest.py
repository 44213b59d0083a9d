import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr import manifest
from asr.errors import AsrError, InputError
from asr.manifest import Utterance

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
UTTERANCES = st.builds(
    Utterance,
    audio_filepath=TEXT,
    duration=st.none() | st.floats(0, 1e6),
    text=st.none() | TEXT,
    pred_text=st.none() | TEXT,
    id=TEXT,
    offset=st.floats(0, 1e6).map(abs),
    speaker=st.none() | TEXT,
    split=st.none() | TEXT,
    extra=st.dictionaries(TEXT.map("x_".__add__), st.integers() | TEXT | st.lists(st.booleans())),
)


@given(st.lists(UTTERANCES, unique_by=lambda utterance: utterance.id))
def test_what_is_written_is_read_back(tmp_path_factory, utterances):
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    manifest.write(path, utterances)
    assert [u.to_json() for u in manifest.read(path)] == [u.to_json() for u in utterances]


def test_nemos_keys_are_enough_and_foreign_keys_are_kept(tmp_path):
    line = {"audio_filepath": "a/b.wav", "duration": 1, "text": "one", "lang": "en", "tags": [1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n\n")
    [utterance] = manifest.read(tmp_path / "m.jsonl")
    assert (utterance.id, utterance.duration, utterance.offset, utterance.line) == ("a/b.wav", 1, 0.0, 1)
    assert utterance.extra == {"lang": "en", "tags": [1]}
    assert utterance.to_json() == line | {"id": "a/b.wav"}


def test_audio_is_found_from_the_manifests_folder(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "x.wav"}\n{"audio_filepath": "/abs/y.wav"}\n')
    relative, absolute = manifest.read(tmp_path / "m.jsonl")
    assert relative.path == tmp_path / "x.wav"
    assert str(absolute.path) == "/abs/y.wav"


def test_segments_of_one_file_have_their_own_ids(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "x.wav"}\n{"audio_filepath": "x.wav", "offset": 1.5}\n')
    assert [u.id for u in manifest.read(tmp_path / "m.jsonl")] == ["x.wav", "x.wav@1.5"]


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"audio_filepath": "x.wav"}\r\n')
    assert manifest.read(tmp_path / "m.jsonl")[0].audio_filepath == "x.wav"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"audio_filepath": "a"}\n{bad', r"m.jsonl: line 2: not valid JSON"),
        ('{"text": "a"}', r"line 1: key 'audio_filepath' is missing"),
        ('{"audio_filepath": "a"}\n{"audio_filepath": "a"}', r"line 2: id 'a' stands already in line 1"),
        ('{"audio_filepath": "a", "duration": "1"}', r"'duration' is '1', not a number of seconds"),
        ('{"audio_filepath": "a", "duration": NaN}', r"NaN is no number"),
        ('{"audio_filepath": "a", "duration": -1}', r"'duration' is -1, not a number of seconds"),
        ('{"audio_filepath": "a", "text": 3}', r"'text' is 3, not a text"),
        ('{"audio_filepath": "a\\u0000"}', r"'audio_filepath' holds a NUL character"),
        ('["a"]', r"list instead of a JSON object"),
        ('{"audio_filepath": "' + "a" * 1_000_001 + '"}', r"longer than 1000000 bytes; is this a manifest"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, content, problem):
    (tmp_path / "m.jsonl").write_text(content)
    with pytest.raises(InputError, match=problem):
        manifest.read(tmp_path / "m.jsonl")


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.jsonl: No such file .*; check the path of the manifest"):
        manifest.read(tmp_path / "none.jsonl")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.jsonl"
    manifest.write(path, [Utterance("a", id="a")])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        manifest.write(path, [Utterance("a", id="a", extra={"x": object()})])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]
    with pytest.raises(AsrError, match="not written"):
        manifest.write(path / "inside" / "m.jsonl", [])
