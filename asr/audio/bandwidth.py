"""Telephone sound in a wide-band file: recorded at 8 kHz, written at 16 kHz, it has nothing above 4 kHz."""

import numpy as np

EDGE = 4000.0  # Hz, the most that a rate of 8 kHz can carry
GUARD = 250.0  # Hz above the edge left out: resamplers' filters leak there
SHARE = 2e-5  # (-47 dB) the most of the power that may lie above in telephone sound
WINDOW = 512
_FRAMES = 20_000  # spectra looked at, spread over the recording


def narrow_band(samples: np.ndarray, rate: int) -> bool:
    """Whether `samples` (n,) at `rate` Hz carry (practically) nothing above 4 kHz though they could.

    The power above ``EDGE + GUARD``, summed over Hann-windowed spectra, is compared with all power above 50
    Hz. False for silence, for less than a window of samples, and where the rate leaves no room above 4 kHz.
    """
    if len(samples) < WINDOW or rate < 2 * (EDGE + 2 * GUARD):
        return False
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[:: WINDOW // 2]
    frames = frames[:: -(-len(frames) // _FRAMES)]
    power = np.zeros(WINDOW // 2 + 1)
    for begin in range(0, len(frames), 1000):
        spectra = np.fft.rfft(frames[begin : begin + 1000] * np.hanning(WINDOW + 1)[:-1].astype(np.float32))
        power += (np.abs(spectra) ** 2).sum(axis=0)
    frequencies = np.fft.rfftfreq(WINDOW, 1 / rate)
    total = power[frequencies > 50].sum()
    return bool(total > 0 and power[frequencies > EDGE + GUARD].sum() < SHARE * total)
