"""The LSTM: a drop-in for `torch.nn.LSTM` that is right and quick on ragged batches. `docs/lstm.md` explains it."""

from asr.lstm.layer import LSTM, explain
from asr.lstm.reference import LSTMCell

__all__ = ["LSTM", "LSTMCell", "explain"]
