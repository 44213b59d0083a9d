"""asr.pairs: references meet their hypotheses, whatever the file; nothing is dropped on the way."""

import json
from pathlib import Path

import pytest

from asr.errors import InputError
from asr.score import read_pairs, score


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def manifest(folder: Path, name: str, *records: dict[str, object]) -> Path:
    lines = [json.dumps({"audio_filepath": f"{record.get('id')}.wav"} | record) for record in records]
    return file(folder, name, "\n".join(lines) + "\n")


def test_manifests_are_matched_by_id(tmp_path):
    said = manifest(
        tmp_path,
        "ref.jsonl",
        {"id": "u1", "text": "a b", "speaker": "x"},
        {"id": "u2", "text": "c", "speaker": "y"},
    )
    heard = manifest(tmp_path, "hyp.json", {"id": "u2", "pred_text": "d"}, {"id": "u1", "pred_text": "a"})
    assert read_pairs(said, heard) == (["u1", "u2"], ["a b", "c"], ["a", "d"], ["x", "y"])


def test_a_hypothesis_is_pred_text_and_text_only_where_no_line_has_one(tmp_path):
    said = manifest(tmp_path, "ref.jsonl", {"id": "u1", "text": "a"}, {"id": "u2", "text": "b"})
    texts = manifest(tmp_path, "texts.jsonl", {"id": "u1", "text": "x"}, {"id": "u2", "text": ""})
    assert read_pairs(said, texts).hypotheses == ["x", ""]
    both = manifest(
        tmp_path,
        "both.jsonl",
        {"id": "u1", "text": "a", "pred_text": ""},
        {"id": "u2", "text": "b", "pred_text": "y"},
    )
    assert read_pairs(said, both).hypotheses == ["", "y"]
    mixed = manifest(tmp_path, "mixed.jsonl", {"id": "u1", "text": "a"}, {"id": "u2", "text": "b", "pred_text": "y"})
    with pytest.raises(InputError, match=r"mixed.jsonl: 1 of 2 utterances have no 'pred_text', the first is 'u1'"):
        read_pairs(said, mixed)


def test_one_manifest_serves_as_both_but_never_as_its_own_hypothesis(tmp_path):
    both = manifest(tmp_path, "both.jsonl", {"id": "u1", "text": "a", "pred_text": "b"})
    assert read_pairs(both) == read_pairs(both, both) == (["u1"], ["a"], ["b"], None)
    said = manifest(tmp_path, "ref.jsonl", {"id": "u1", "text": "a"})
    (tmp_path / "folder").mkdir()
    for arguments in ((said,), (said, said), (said, tmp_path / "folder" / ".." / "ref.jsonl")):
        with pytest.raises(InputError, match="have no 'pred_text'"):
            read_pairs(*arguments)


def test_speakers_are_all_named_or_none(tmp_path):
    both = manifest(
        tmp_path,
        "both.jsonl",
        {"id": "u1", "text": "a", "pred_text": "b", "speaker": "x"},
        {"id": "u2", "text": "a", "pred_text": "b"},
    )
    assert read_pairs(both).speakers is None


def test_a_reference_without_text_is_named(tmp_path):
    said = manifest(tmp_path, "ref.jsonl", {"id": "u1", "text": "a"}, {"id": "u2", "pred_text": "b"})
    with pytest.raises(InputError, match=r"ref.jsonl: 1 of 2 utterances have no 'text', the first is 'u2'"):
        read_pairs(said)


def test_text_files_go_line_by_line_and_lose_nothing(tmp_path):
    said = file(tmp_path, "ref.txt", "a\n\nthe cat\n")
    heard = file(tmp_path, "hyp.TXT", "b\nx\n\n")
    assert read_pairs(said, heard) == (["1", "2", "3"], ["a", "", "the cat"], ["b", "x", ""], None)


@pytest.mark.parametrize("content", [b"a b\r\n\r\nc\r\n", b"\xef\xbb\xbfa b\n\nc", b"a b\n\nc\n"])
def test_line_ends_byte_order_marks_and_a_missing_last_line_end(tmp_path, content):
    assert read_pairs(file(tmp_path, "ref.txt", content), file(tmp_path, "hyp.txt", "x\ny\nz")).references == [
        "a b",
        "",
        "c",
    ]


def test_only_a_line_feed_ends_a_line(tmp_path):
    said = file(tmp_path, "ref.txt", "a\u2028b\x0bc\x85d\re\n")
    heard = file(tmp_path, "hyp.txt", "a b c d e\n")
    pairs = read_pairs(said, heard)
    assert len(pairs.references) == 1 and score(pairs.references, pairs.hypotheses).errors == 0


def test_trn_files_are_matched_by_id(tmp_path):
    said = file(
        tmp_path,
        "ref.trn",
        b"\xef\xbb\xbf;; a comment\r\nthe (uh) cat (spk-01)\r\n\r\n(spk-02)\r\na (spk-03)  \r\n",
    )
    heard = file(tmp_path, "hyp.trn", "b (spk-03)\nthe cat (spk-01)\nx (spk-02)\n")
    expected = (["spk-01", "spk-02", "spk-03"], ["the (uh) cat", "", "a"], ["the cat", "x", "b"], None)
    assert read_pairs(said, heard) == expected


def test_a_manifest_meets_a_trn_file(tmp_path):
    said = manifest(tmp_path, "ref.jsonl", {"id": "u1", "text": "a b", "speaker": "x"})
    heard = file(tmp_path, "hyp.trn", "a (u1)\n")
    assert read_pairs(said, heard) == (["u1"], ["a b"], ["a"], ["x"])
    assert read_pairs(heard, manifest(tmp_path, "hyp.jsonl", {"id": "u1", "pred_text": "b"})).hypotheses == ["b"]


def test_missing_and_additional_utterances_are_counted_and_one_is_named(tmp_path):
    said = file(tmp_path, "ref.trn", "a (u1)\nb (u2)\nc (u3)\n")
    few = file(tmp_path, "few.trn", "a (u1)\n")
    with pytest.raises(
        InputError, match=r"few.trn: no hypothesis for 2 of 3 utterances of .*ref.trn, the first is 'u2'"
    ):
        read_pairs(said, few)
    many = file(tmp_path, "many.trn", "a (u1)\nb (u2)\nc (u3)\nd (u4)\n")
    with pytest.raises(InputError, match=r"many.trn: 1 of 4 utterances are not in .*ref.trn, the first is 'u4'"):
        read_pairs(said, many)


@pytest.mark.parametrize(
    "said, heard, message, status",
    [
        (
            ("r.txt", "a\nb\n"),
            ("h.txt", "a\n"),
            r"r.txt has 2 lines, .*h.txt 1; line by line they must match",
            1,
        ),
        (("r.txt", "a\n"), ("h.trn", "a (u)\n"), r".txt goes by lines, the other by ids; give two alike", 2),
        (("r.trn", "a (u)\n"), ("h.txt", "a\n"), r".txt goes by lines, the other by ids; give two alike", 2),
        (("r.ctm", "a"), ("h.txt", "a\n"), r"r.ctm: .ctm is no known kind; use .jsonl, .json, .trn, .txt", 2),
        (("text", "a"), ("h.txt", "a\n"), r"text: no suffix is no known kind", 2),
        (("r.txt", ""), ("h.txt", ""), r"r.txt: no utterance in it, nothing to score", 1),
        (("r.jsonl", "\n"), ("h.jsonl", "\n"), r"r.jsonl: no utterance in it", 1),
        (
            ("r.txt", b"a\n\xff\xfeb\n"),
            ("h.txt", "a\nb\n"),
            r"r.txt: line 2: not UTF-8; save the file as UTF-8",
            1,
        ),
        (("r.txt", b"a" * 1_000_001), ("h.txt", "a"), r"r.txt: line 1: longer than 1000000 bytes", 1),
        (("r.trn", "a b\n"), ("h.trn", ""), r"r.trn: line 1: does not end in an utterance id in brackets", 1),
        (("r.trn", "a u)\n"), ("h.trn", ""), r"r.trn: line 1: does not end in an utterance id", 1),
        (("r.trn", "a (u) b\n"), ("h.trn", ""), r"r.trn: line 1: does not end in an utterance id", 1),
        (("r.trn", "a ( )\n"), ("h.trn", ""), r"r.trn: line 1: does not end in an utterance id", 1),
        (("r.trn", "a (u)\nb (u)\n"), ("h.trn", ""), r"r.trn: line 2: id 'u' stands twice", 1),
        (("r.trn", "{ a / b } (u)\n"), ("h.trn", ""), r"line 1: alternatives in braces are not supported", 1),
    ],
)
def test_wrong_files_get_one_line(tmp_path, said, heard, message, status):
    with pytest.raises(InputError, match=message) as caught:
        read_pairs(file(tmp_path, *said), file(tmp_path, *heard))
    assert caught.value.status == status


def test_files_that_cannot_be_read(tmp_path):
    said = file(tmp_path, "ref.txt", "a\n")
    with pytest.raises(InputError, match=r"none.txt: No such file or directory; check the path"):
        read_pairs(said, tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match=r"folder.txt: Is a directory; check the path"):
        read_pairs(said, tmp_path / "folder.txt")
    with pytest.raises(InputError, match=r"ref.txt: no hypotheses to score; name their file too") as caught:
        read_pairs(said)
    assert caught.value.status == 2
