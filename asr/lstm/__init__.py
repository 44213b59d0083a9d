"""The recurrent layer: `LSTM` replaces `torch.nn.LSTM` and takes padded input with lengths."""

from asr.lstm.layer import LSTM

__all__ = ["LSTM"]
