"""Promise 1: `model.safetensors` alone, anywhere, transcribes as it did in training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tones
import torch

import asr
from asr import calibration, confidence, config, ctc, manifest, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tones.write_corpus(tmp_path_factory.mktemp("tones"), train=30, dev=8)
    recipe = tones.write_recipe(folder, epochs=12)
    chosen = config.load(str(recipe), ["augment=none", "features=kaldi", "features.rate=8000", "features.mels=20"])
    result = train.train(chosen, "tones", say=lambda line: None, show=lambda progress: None)
    return folder, result


def test_the_file_alone_hears_on_dev_what_training_heard(trained, tmp_path):
    folder, result = trained
    shutil.copy(result.model, tmp_path / "alone.safetensors")
    recognizer = asr.load(tmp_path / "alone.safetensors", "cpu")
    utterances = manifest.read(folder / "dev.jsonl")
    score = asr.wer([u.text for u in utterances], [recognizer.transcribe(u).text for u in utterances])
    assert score.errors == result.dev["errors"]
    assert score.count == result.dev["count"]
    assert score.count - score.errors > 0, "a model that hears nothing would prove nothing"


def test_it_works_in_an_empty_folder_without_recipes_or_settings(trained, tmp_path):
    folder, result = trained
    shutil.copy(result.model, tmp_path / "alone.safetensors")
    shutil.copy(folder / "dev0.flac", tmp_path / "speech.flac")
    command = [sys.executable, "-m", "asr.cli", "transcribe", "-q", "-m", "alone.safetensors", "speech.flac"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ASR_")}
    heard = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert heard.stdout.strip() == asr.load(result.model, "cpu").transcribe(folder / "dev0.flac").text


def test_the_card_tells_features_tokens_normaliser_decoder_and_how_it_was_trained(trained, capsys):
    from asr.cli import main

    folder, result = trained
    assert main(["info", str(result.model), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["features"]["convention"] == "kaldi"
    assert card["tokens"] == ["<blank>", "|", "a", "b", "c"]
    assert card["normalizer"] == "basic"
    assert card["decoder"]["kind"] == "greedy"
    facts = card["training"]
    assert (facts["recipe"], facts["settings"]["seed"]) == ("tones", 1)
    assert list(facts["data"]) == [str(folder / "train.jsonl"), str(folder / "dev.jsonl")]
    assert facts["dev"]["errors"] == result.dev["errors"]


def test_info_says_it_for_people(trained, capsys):
    from asr.cli import main

    assert main(["info", str(trained[1].model)]) == 0
    told = capsys.readouterr().out
    assert "rate 8000" in told
    assert "dev" in told.lower()


# What tests/data/model_v1.safetensors, a small model, heard when format version 1 was new.
HEARD = {
    "0_george_0": "o",
    "2_jackson_10": "o",
    "3_george_7": "three",
    "5_yweweler_0": "fiur",
    "8_yweweler_20": "g",
    "9_lucas_6": "nine",
}


def test_a_model_file_of_the_first_format_loads_and_hears_what_it_heard_when_it_was_written():
    data = Path(__file__).parent.parent / "data"
    recognizer = asr.load(data / "model_v1.safetensors", "cpu")
    assert {name: recognizer.transcribe(data / "fsdd" / f"{name}.flac").text for name in HEARD} == HEARD


def test_the_file_calibrates_words_by_what_it_heard_in_the_dev_set(trained):
    folder, result = trained
    recognizer = asr.load(result.model, "cpu")
    utterances = manifest.read(folder / "dev.jsonl")
    found = [
        ctc.greedy(one.log_probs[None], torch.tensor([len(one.log_probs)]), recognizer.tokens)[0]
        for one in recognizer.emissions_many(utterances)
    ]
    judged = confidence.judge([one.text for one in utterances], map(confidence.sureness, found), "basic")
    expected = calibration.fit(judged.probability, judged.right)
    told = recognizer.card["decoder"]["calibration"]
    assert told["words"] == expected.words > 0
    assert (told["slope"], told["offset"]) == pytest.approx((expected.slope, expected.offset), abs=1e-3)
    words = [word for one in utterances for word in recognizer.transcribe(one).words]
    assert [word.probability for word in words] == pytest.approx(expected(judged.probability).tolist(), abs=1e-3)
