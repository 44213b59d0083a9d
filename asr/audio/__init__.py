"""Any recording -> mono float32 samples at the model's rate, in blocks.

`read` gives a recording whole, `blocks` in pieces, `info` its header; `SampleCache` keeps what training
decodes.
"""

from asr.audio.bandwidth import narrow_band
from asr.audio.cache import SampleCache
from asr.audio.reading import (
    DURATION_TOLERANCE,
    MAX_SECONDS,
    Audio,
    AudioInfo,
    AudioSource,
    blocks,
    info,
    read,
    resample,
)

__all__ = [
    "DURATION_TOLERANCE",
    "MAX_SECONDS",
    "Audio",
    "AudioInfo",
    "AudioSource",
    "SampleCache",
    "blocks",
    "info",
    "narrow_band",
    "read",
    "resample",
]
