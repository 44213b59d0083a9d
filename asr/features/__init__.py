"""From waveforms to frames: log-mel energies and MFCC in two conventions, batched, differentiable.

===========  =====================================  ===================================================
convention   ``slaney``                             ``kaldi``
===========  =====================================  ===================================================
equal to     ``librosa.feature.melspectrogram``     ``torchaudio.compliance.kaldi.fbank``, no dither
samples      -1 to 1                                scaled to the range of 16-bit integers
frames       centred at ``t * hop``, zeros outside  whole windows only; a shorter file is zero-padded
             the file: ``1 + samples // hop``       to one: ``1 + max(0, samples - window) // hop``
window       Hann, periodic                         mean removed, pre-emphasis 0.97, Povey
mel scale    Slaney's, triangles of area 1          HTK's, triangles of height 1
logarithm    natural, of at least 1e-10             natural, of at least 2 ** -23
MFCC         orthonormal DCT-II of these            the same, and Kaldi's lifter (22)
===========  =====================================  ===================================================

Both take the power spectrum of an FFT as long as the next power of two. A file of no samples has no frame.

What lies behind a row's own samples (padding, noise, NaN) never matters: it is zeroed here, and the frames
behind a row's own are 0. Statistics of `normalize` are taken over a row's own frames, for each feature apart
(but for ``level``):

- ``utterance``: zero mean and unit variance over the file; silence and a single frame become 0.
- ``level``: one mean and one variance for all features of the file. Only the level goes; the shape of the
  spectrum stays, which a file of one short word needs, where it *is* the word.
- ``running``: causal. Frame t is taken relative to mean and variance of frames 0 to t, as if `PRIOR_FRAMES`
  frames with this mean and the variance of speech (`PRIOR_VARIANCE`) had gone before. Frame 0 is always 0.
- ``none``.

Before that, `top_db` (librosa's name) bounds the range: what lies further below the loudest energy of the file is
raised to the bound. A file that begins in digital silence is then normalised as one that begins in a quiet room.

Modules follow from settings alone: a state_dict has no entry of theirs, a model file carries the settings.
"""

import inspect
from typing import Any

from asr.errors import InputError
from asr.features.checks import choice, nearest
from asr.features.log_mel import CONVENTIONS, LogMel
from asr.features.mfcc import MFCC
from asr.features.normalization import NORMALIZATIONS, PRIOR_FRAMES, PRIOR_VARIANCE

__all__ = [
    "CONVENTIONS",
    "KINDS",
    "MFCC",
    "NORMALIZATIONS",
    "PRIOR_FRAMES",
    "PRIOR_VARIANCE",
    "LogMel",
    "build",
]

KINDS: dict[str, type[LogMel] | type[MFCC]] = {"logmel": LogMel, "mfcc": MFCC}


def build(kind: str, **settings: Any) -> LogMel | MFCC:
    """The front end of that kind, ``logmel`` or ``mfcc``; settings as in `LogMel` and `MFCC`.

    A setting that is None takes its default.

    Raises:
        InputError: no such kind or setting, or a value out of its range (status 2).
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    choice("kind", kind, tuple(KINDS))
    known = list(inspect.signature(LogMel).parameters)
    known += ["coefficients"] if kind == "mfcc" else []
    for name in settings:
        if name not in known:
            raise InputError(f"features.{name}: {kind} has no such setting; {nearest(name, known)}", status=2)
    return KINDS[kind](**settings)
