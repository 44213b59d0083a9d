"""The network of an LSTM language model: word vectors -> LSTM -> the next word's probability.

    words (frames, batch)
      -> vectors of the words, dropout
      -> `layers` LSTM layers (`asr.lstm.LSTM`), dropout between and behind them
      -> linear to the vectors' size
      -> adaptive softmax with the same vectors (`asr.lstm_lm.softmax`)

(Mikolov et al., "Recurrent neural network based language model", Interspeech 2010; Sundermeyer, Schlueter and Ney,
"LSTM neural networks for language modeling", Interspeech 2012.)
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from asr.lstm import LSTM
from asr.lstm_lm.softmax import AdaptiveSoftmax

State = tuple[Tensor, Tensor]

EOS, UNK = 0, 1  # the words that every vocabulary begins with: the end of a sentence (its start too) and the unknown


class Network(nn.Module):
    """Words behind words; every sentence starts from the state of zeros.

    Args:
        words: size of the vocabulary.
        size: of the word vectors.
        hidden: units of each LSTM layer.
        layers: LSTM layers.
        cutoffs: of the adaptive softmax.
        dropout: probability, of the vectors and of each layer's outputs.
    """

    def __init__(
        self, words: int, size: int, hidden: int, layers: int, cutoffs: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.softmax = AdaptiveSoftmax(words, size, cutoffs)
        self.lstm = LSTM(size, hidden, layers, dropout=dropout if layers > 1 else 0.0, forget_bias=1.0)
        self.output = nn.Linear(hidden, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """What the softmax takes for the word behind each word.

        Args:
            words: `(frames, batch)` int64.
            lengths: `(batch,)` words of each row, 0 to `frames`.
            state: h and c of the words before, None: none.

        Returns:
            `(frames, batch, size)`, and h and c behind each row's last word.
        """
        vectors = self.dropout(self.softmax.embed(words))
        outputs, state = self.lstm(vectors, state, lengths)
        return self.output(self.dropout(outputs)), state

    def log_probs(self, targets: Tensor, lengths: Tensor, longest: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The natural logarithm of each word's probability, a piece of the frames after the other.

        The state goes from piece to piece, its gradient does not (truncated backpropagation through time).

        Args:
            targets: `(frames, batch)` int64, sentences with their ends; behind a row's length any word.
            lengths: `(batch,)` words of each row, its end included.
            longest: frames of a piece.

        Yields:
            `(n,)`, and where they belong: `(piece, batch)` bool, in the order of its true values.
        """
        inputs = torch.cat([torch.full_like(targets[:1], EOS), targets[:-1]])
        state: State | None = None
        for start in range(0, len(targets), longest):
            piece = slice(start, start + longest)
            frames = len(targets[piece])
            left = (lengths - start).clamp(0, frames)
            hidden, state = self(inputs[piece], left, state)
            state = state[0].detach(), state[1].detach()
            valid = torch.arange(frames, device=targets.device)[:, None] < left
            yield self.softmax.log_prob(hidden[valid], targets[piece][valid]), valid
