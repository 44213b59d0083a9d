"""Decoders as users name them: flags, `decoder.json`, `asr tune`; with a small trained model on real recordings."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asr
from asr import ctc, manifest, tune
from asr.cli import main
from asr.decode import lexicon, settings
from asr.decode.beam import BeamSearch
from asr.decode.hotwords import HotWords
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram
from asr.manifest import Utterance

DATA = Path(__file__).parent / "data"
MODEL = DATA / "model_v1.safetensors"
FSDD = sorted((DATA / "fsdd").glob("*.flac"))
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a manifest of real digits, a language model of digits, a lexicon; the current folder."""
    monkeypatch.chdir(tmp_path)
    spoken = [Utterance(str(path), text=WORDS[int(path.name[0])], id=path.stem) for path in FSDD]
    manifest.write(tmp_path / "dev.jsonl", spoken)
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    assert main(["lm", "train", "-q", "words.txt", "-o", "words.arpa", "--order", "2", "--discount-fallback"]) == 0
    return tmp_path


def evaluate(capsys, *flags) -> dict:
    capsys.readouterr()
    assert main(["evaluate", "-q", "-m", str(MODEL), "--manifest", "dev.jsonl", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words) -> str:
    """The one line on standard error of a call that ends with status 2."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_language_model_and_a_lexicon_make_fewer_errors_than_greedy(folder, capsys):
    greedy = evaluate(capsys)
    fused = evaluate(capsys, "--decoder", "beam", "--lm", "words.arpa", "--word-bonus", "0")
    closed = evaluate(capsys, "--decoder", "beam", "--lm", "words.arpa", "--lexicon", "words.txt", "--word-bonus", "0")
    assert fused["wer"]["rate"] <= greedy["wer"]["rate"]
    assert closed["wer"]["rate"] <= greedy["wer"]["rate"]
    assert greedy["decoder"] == {"kind": "greedy"}
    assert fused["decoder"]["lm_sha256"] == NGram.load("words.arpa").sha256
    assert closed["decoder"]["lexicon_words"] == 10
    assert (fused["decoder"]["beam"], fused["decoder"]["token_min"], fused["decoder"]["beam_min"]) == (100, -5.0, -10.0)


def test_the_lexicon_lets_only_its_words_out(folder, capsys):
    (folder / "few.txt").write_text("one\nnine\n")
    assert (
        main(["transcribe", "-q", "-m", str(MODEL), *map(str, FSDD), "--decoder", "beam", "--lexicon", "few.txt"]) == 0
    )
    heard = [line.split("\t")[1].split() for line in capsys.readouterr().out.splitlines()]
    assert {word for words in heard for word in words} <= {"one", "nine"}


def test_several_hypotheses_stand_in_the_transcript_with_their_scores(folder, capsys):
    capsys.readouterr()
    command = [
        "transcribe",
        "-q",
        "-m",
        str(MODEL),
        str(FSDD[0]),
        "-f",
        "json",
        "--decoder",
        "beam",
        "--lm",
        "words.arpa",
    ]
    assert main([*command, "--nbest", "3", "--hot-words", "nine", "--hot-weight", "2"]) == 0
    transcript = json.loads(capsys.readouterr().out)
    alternatives = transcript["alternatives"]
    assert len(alternatives) == 3 and alternatives[0]["text"] == transcript["text"]
    assert [one["score"] for one in alternatives] == sorted((one["score"] for one in alternatives), reverse=True)
    for one in alternatives:
        assert one["score"] == pytest.approx(one["acoustic"] + one["lm"] + one["bonus"] + one["hot"])
        assert one["hot"] == pytest.approx(2.0 * one["text"].split().count("nine"))
    assert main(command) == 0
    assert "alternatives" not in json.loads(capsys.readouterr().out)


def test_hot_words_come_from_the_command_line_and_from_files(folder, capsys):
    (folder / "names.txt").write_text("nine one\t3.5\n\nseven\n")
    args = ["--decoder", "beam", "--hot-words", "names.txt", "--hot-words", "two"]
    assert evaluate(capsys, *args)["decoder"]["hot_words"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lm", "words.arpa"], "--lm has no effect on greedy decoding; add --decoder beam"),
        (["--beam", "5"], "--beam has no effect on greedy"),
        (["--hot-words", "one"], "--hot-words has no effect on greedy"),
        (["--decoder", "beam", "--hot-weight", "3"], "--hot-weight has no effect without --hot-words"),
        (["--decoder", "beam", "--lm-weight", "1"], "lm_weight has no effect without a language model"),
        (["--decoder", "beam", "--beam", "0"], "beam is 0"),
        (["--decoder", "beam", "--hot-words", "ünder"], "hot word 'ünder': characters 'ü' (U+00FC), 'd' (U+0064)"),
        (["--decoder", "beam", "--lm", "none.arpa"], "none.arpa"),
        (["--decoder", "beam", "--lexicon", "none.txt"], "none.txt: can't be read"),
        (["--decoder", "none.json"], "none.json"),
        (["--decoder", "beem"], "beem"),
        (["--decoder", "beam", "--nbest", "3"], "--nbest shows in the JSON only; add -f json"),
    ],
)
def test_a_flag_without_effect_or_with_a_wrong_value_is_one_line(folder, capsys, flags, message):
    assert message in refused(capsys, "transcribe", "-m", MODEL, FSDD[0], *flags)


def test_a_decoder_file_names_its_files_by_place_and_content(folder, capsys):
    (folder / "out").mkdir()
    settings.write("out/decoder.json", {"lm": Path("words.arpa"), "lexicon": Path("words.txt"), "lm_weight": 0.7})
    written = json.loads(Path("out/decoder.json").read_text())
    assert written["lm"] == {"path": "../words.arpa", "sha256": NGram.load("words.arpa").sha256}
    assert evaluate(capsys, "--decoder", "out/decoder.json")["decoder"]["lm_weight"] == 0.7
    flags = ["--decoder", "out/decoder.json", "--lm-weight", "0.2"]
    assert evaluate(capsys, *flags)["decoder"]["lm_weight"] == 0.2
    shutil.copy("words.arpa", "other.arpa")
    Path("words.arpa").write_text(Path("words.arpa").read_text() + "\n")
    assert "is another file than the one it was tuned with" in refused(
        capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "out/decoder.json"
    )
    Path("words.arpa").unlink()
    assert "no such file; put it there or tune again" in refused(
        capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "out/decoder.json"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "not the settings of a beam search"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"kind": "greedy"}', "not the settings of a beam search"),
        ('{"kind": "beam", "beem": 5}', "unknown setting 'beem'"),
        ('{"kind": "beam", "beam": "5"}', 'beam is "5"'),
        ('{"kind": "beam", "beam": true}', "beam is true"),
        ('{"kind": "beam", "beam": 1e9}', "beam is 1000000000.0"),
        ('{"kind": "beam", "hot_words": ["one"]}', "hot_words is"),
        ('{"kind": "beam", "hot_words": {"one": "3"}}', "hot_words is"),
        ('{"kind": "beam", "lm": "words.arpa"}', "lm is"),
        ('{"kind": "beam", "lm_weight": NaN, "lm": {"path": "words.arpa", "sha256": "0"}}', "is another file"),
    ],
)
def test_a_wrong_decoder_file_is_refused_in_one_line(folder, capsys, content, message):
    (folder / "decoder.json").write_text(content)
    assert message in refused(capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "decoder.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no word in it"),
        (b"\n;;; nothing\n", "no word in it"),
        (b"one\n\xff\n", "line 2 is no UTF-8"),
        (b"one\tw u q\n", "word 'one': 'q' is not among the model's"),
        (b"one\nabc\n", "word 'abc'"),
    ],
)
def test_a_wrong_lexicon_is_refused_in_one_line(folder, capsys, content, message):
    (folder / "lexicon.txt").write_bytes(content)
    line = refused(capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "beam", "--lexicon", "lexicon.txt")
    assert message in line and "lexicon.txt" in line


def test_a_lexicon_without_end_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(lexicon, "_LARGEST", 3)
    (folder / "words.txt").write_text("one\ntwo\n")
    assert "words.txt: more than 3 bytes; a lexicon has a word a line" in refused(
        capsys, "transcribe", "-q", "-m", MODEL, FSDD[0], "--decoder", "beam", "--lexicon", "words.txt"
    )


def test_a_language_model_of_its_own_signs_is_refused(folder, capsys):
    (folder / "empty.arpa").write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-99\t<s>\n-1\t</s>\n-1\t<unk>\n\n\\end\\\n")
    assert "the language model has no words but its own signs; estimate it on more text" in refused(
        capsys, "transcribe", "-q", "-m", MODEL, FSDD[0], "--decoder", "beam", "--lm", "empty.arpa"
    )


def test_a_lexicon_holds_pronunciations_as_cmudict_writes_them(tmp_path):
    (tmp_path / "dict").write_text(";;; remark\nTOO  T UW\nTOO(2)  T AH\nTOO(3)  T UW\na\n")
    assert Lexicon.load(tmp_path / "dict").words == {"TOO": [["T", "UW"], ["T", "AH"]], "a": []}


def test_tune_finds_the_setting_with_the_fewest_errors_and_writes_what_the_others_take(folder, capsys):
    capsys.readouterr()
    command = [
        "tune",
        "-q",
        "-m",
        str(MODEL),
        "--manifest",
        "dev.jsonl",
        "--lm",
        "words.arpa",
        "-o",
        "made/decoder.json",
    ]
    grid = ["--lm-weights", "0.2", "1", "--word-bonuses", "-1", "0", "--beams", "4", "20"]
    assert main([*command, *grid, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    trials, best = found["trials"], found["best"]
    assert best["wer"] == min(trial["wer"] for trial in trials)
    assert {(trial["lm_weight"], trial["word_bonus"]) for trial in trials} >= {(0.2, -1), (0.2, 0), (1, -1), (1, 0)}
    assert found["greedy_and_best"]["b"]["rate"] == best["wer"]
    assert found["greedy_and_best"]["a"]["rate"] == evaluate(capsys)["wer"]["rate"]
    assert evaluate(capsys, "--decoder", "made/decoder.json")["wer"]["rate"] == best["wer"]
    tuned = evaluate(capsys, "--decoder", "made/decoder.json")
    curve = {key: value for key, value in tuned["decoder"]["calibration"].items() if key != "model"}
    assert curve == found["calibration"] and curve["words"] == tuned["confidence"]["words"] > 0
    assert tuned["confidence"]["calibrated"] is True
    other = evaluate(capsys, "--decoder", "made/decoder.json", "--beam", "5")
    assert "calibration" not in other["decoder"] and other["confidence"]["calibrated"] is False
    assert Path("made/decoder.png").read_bytes()[1:4] == b"PNG"
    assert main([*command, *grid]) == 0
    assert "b - a:" in capsys.readouterr().out


def test_tune_refuses_what_it_has_nothing_to_find_with(folder, capsys):
    command = ["tune", "-q", "-m", MODEL, "--manifest", "dev.jsonl"]
    assert "without a language model there is no weight to find" in refused(capsys, *command)
    assert "ends in .json" in refused(capsys, *command, "--lm", "words.arpa", "-o", "decoder.png")
    manifest.write(folder / "dev.jsonl", [Utterance(str(FSDD[0]), id="1")])
    assert "needs its reference" in refused(capsys, *command, "--lm", "words.arpa")


def test_of_equally_good_settings_the_middle_one_is_taken():
    same = [tune.Trial(weight, 0.0, 16, 0.1, 0.1) for weight in (0.5, 1.0, 1.5)]
    assert tune._best([*same, tune.Trial(0.1, 0.0, 16, 0.1, 0.2)]).lm_weight == 1.0


def test_times_of_words_are_near_those_of_the_forced_alignment():
    recognizer = asr.load(MODEL, "cpu")
    search, near = BeamSearch(recognizer.tokens), []
    for one in recognizer.emissions_many(FSDD):
        best = search.decode(one.log_probs)[0]
        length = one.log_probs.new_tensor([len(one.log_probs)]).long()
        labels = length.new_tensor(best.tokens)
        [spans] = ctc.align(one.log_probs[None], length, labels, length.new_tensor([len(labels)]))
        near += [abs(a - c) <= 2 and abs(b - d) <= 2 for (a, b), (c, d) in zip(best.frames, spans, strict=True)]
        assert all(0 <= word.probability <= 1 for word in best.words)
        assert " ".join(word.word for word in best.words) == best.text
    assert sum(near) >= 0.95 * len(near)


def test_importing_asr_loads_no_numba():
    code = "import sys, asr, asr.ctc, asr.recognizer, asr.cli; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_search_runs_the_same_as_plain_python(folder, capsys):
    """Without numba, or without its cache, results are the same, scores to 1e-12."""
    code = """
import json, sys
import numpy as np
from asr.decode.beam import BeamSearch
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram
from asr.compiled import AVAILABLE
rng = np.random.default_rng(0)
tokens = ["<blank>", "|", *"efghinorstuvwxz"]
logits = rng.normal(0, 2, (40, len(tokens)))
rows = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
lm, words = NGram.load("words.arpa"), Lexicon.load("words.txt")
made = [
    BeamSearch(tokens, beam=8, nbest=3),
    BeamSearch(tokens, lm, None, {"nine one": 2.0}, beam=8, nbest=3),
    BeamSearch(tokens, lm, words, {"two": 2.0}, beam=8, nbest=3, token_top=5, best_path=True),
]
def told(h):
    words = [[w.word, w.start, w.end] for w in h.words]
    return [[h.text, h.frames, words], [h.score, h.acoustic, h.lm, *(w.probability for w in h.words)]]
print(json.dumps([AVAILABLE, [[told(h) for h in s.decode(rows)] for s in made]]))
"""
    runs = []
    for value in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(value)
        )
        runs.append(json.loads(done.stdout))
    assert [run[0] for run in runs] == [True, False]
    for compiled, plain in zip(runs[0][1], runs[1][1], strict=True):
        for one, other in zip(compiled, plain, strict=True):
            assert one[0] == other[0] and one[0][2]
            assert one[1] == pytest.approx(other[1], abs=1e-12)


def environment(disabled: str) -> dict[str, str]:
    return os.environ | {"NUMBA_DISABLE_JIT": disabled}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n", "no phrase in it"), (b"one\n\xff", "no UTF-8"), (b"one\t5\ntwo\tx\n", "line 2: weight 'x' is no number")],
)
def test_a_wrong_list_of_hot_words_is_refused_in_one_line(folder, capsys, content, message):
    (folder / "names.txt").write_bytes(content)
    line = refused(capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "beam", "--hot-words", "names.txt")
    assert message in line and "names.txt" in line


def test_a_model_of_single_letters_as_words_is_one_of_words(tmp_path):
    (tmp_path / "letters").write_text("e f g\nh i\n" * 3)
    assert main(["lm", "train", "-q", str(tmp_path / "letters"), "-o", str(tmp_path / "a"), "--discount-fallback"]) == 0
    tokens = asr.load(MODEL, "cpu").tokens
    assert BeamSearch(tokens, NGram.load(tmp_path / "a")).settings["lm_unit"] == "word"
    text = ["lm", "train", "-q", str(tmp_path / "letters"), "--unit", "character", "--discount-fallback"]
    assert main([*text, "-o", str(tmp_path / "b")]) == 0
    assert BeamSearch(tokens, NGram.load(tmp_path / "b")).settings["lm_unit"] == "token"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"one\n" * 99, mtime=0)[:-20], "can't be read"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "can't be read"),
        (b"one\t<blank> o n e\n", "'<blank>' is not among"),
        (b"one\t| o n e\n", "'|' is not among"),
    ],
)
def test_a_lexicon_that_can_not_be_heard_or_unpacked_is_refused(folder, capsys, content, message):
    (folder / "lexicon.gz").write_bytes(content)
    assert message in refused(
        capsys, "transcribe", "-m", MODEL, FSDD[0], "--decoder", "beam", "--lexicon", "lexicon.gz"
    )


def test_a_byte_order_mark_is_no_letter(folder):
    (folder / "words.txt").write_text("one\n", encoding="utf-8-sig")
    assert list(Lexicon.load("words.txt").words) == ["one"]
    assert HotWords.load("words.txt", 2.0) == {"one": 2.0}


def test_a_missing_list_of_hot_words_is_no_phrase(folder, capsys):
    for name, message in (("names.txt", "names.txt: can't be read"), ("q" * 300, "hot word")):
        flags = ["--decoder", "beam", "--hot-words", name]
        assert message in refused(capsys, "transcribe", "-m", MODEL, FSDD[0], *flags)


def test_tune_refuses_before_it_listens(folder, capsys, monkeypatch):
    monkeypatch.setattr(tune, "listen", lambda *_: pytest.fail("listened"))
    command = ["tune", "-q", "-m", MODEL, "--manifest", "dev.jsonl", "--lm", "words.arpa"]
    assert "lm_weight is nan" in refused(capsys, *command, "--lm-weights", "nan")
    assert "beam is 0" in refused(capsys, *command, "--beams", "0")
    assert main([*map(str, command), "-o", "/proc/nothing/decoder.json"]) == 1
    assert "not written" in capsys.readouterr().err


def test_tune_needs_a_word_in_the_references(folder, capsys):
    manifest.write(folder / "dev.jsonl", [Utterance(str(FSDD[0]), id="1", text=" ")])
    assert "no word in its references" in refused(
        capsys, "tune", "-q", "-m", MODEL, "--manifest", "dev.jsonl", "--lm", "words.arpa"
    )


def test_hot_words_are_normalised_and_words_left_out_are_told(folder, capsys):
    (folder / "words.txt").write_text("one\ntwo\nBAD\nquick\n")
    assert main(["lm", "train", "-q", "words.txt", "-o", "mixed.arpa", "--order", "1", "--discount-fallback"]) == 0
    capsys.readouterr()
    flags = ["--decoder", "beam", "--lm", "mixed.arpa", "--hot-words", "ONE, two!"]
    assert main(["transcribe", "-m", str(MODEL), str(FSDD[0]), *flags]) == 0
    assert "2 words of the language model can't be spelled in the model's tokens: BAD, quick" in capsys.readouterr().err
