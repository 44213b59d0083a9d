"""Speech recognition with stacked bidirectional LSTMs and CTC: train on recordings, transcribe, measure.

    import asr

    recognizer = asr.load("model.safetensors")
    print(recognizer.transcribe("speech.wav").text)
    print(asr.wer(["what was said"], ["what was heard"]))

The names below are looked up on first use, so that ``import asr`` brings neither torch nor anything else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.recognizer import Recognizer, load
    from asr.score import wer
    from asr.transcript import Transcript

__all__ = ["Recognizer", "Transcript", "load", "wer"]
__version__ = "0.1.0"

_HOMES = {
    "load": "asr.recognizer",
    "Recognizer": "asr.recognizer",
    "Transcript": "asr.transcript",
    "wer": "asr.score",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'asr' has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
