"""Adaptive softmax over a vocabulary in falling frequency, and the word vectors that go into a network from it.

The probability of a frequent word (the shortlist) comes from one softmax, in which each further cluster of rarer words
has one place; within a cluster a second softmax over vectors a quarter as long gives the word's share (Grave et al.,
"Efficient softmax approximation for GPUs", ICML 2017). Most words need the first softmax only. The same vectors, taken
back to full length by the cluster's own projection, are the network's input (tied embeddings: Press and Wolf, EACL
2017; in clusters: Baevski and Auli, ICLR 2019).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_SHORTER = 4  # how many times shorter the vectors of each further cluster are


def cutoffs(words: int) -> list[int]:
    """Where the clusters of a vocabulary of that size begin; none where one softmax is cheap enough."""
    return [cut for cut in (4_000, 20_000, 100_000) if 2 * cut <= words]


class AdaptiveSoftmax(nn.Module):
    """Word vectors as the input and the output of a network.

    Args:
        words: size of the vocabulary; word 0 is the most frequent.
        size: of the shortlist's vectors, and of what goes in and out.
        cutoffs: the first word of each cluster behind the shortlist, ascending.
    """

    def __init__(self, words: int, size: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        self.bounds = [0, *cutoffs, words]
        self.vectors = nn.ParameterList()
        self.projections = nn.ParameterList()
        for number, (begin, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            short = max(1, size // _SHORTER**number)
            self.vectors.append(nn.Parameter(torch.randn(end - begin, short) * size**-0.5))
            if number:
                self.projections.append(nn.Parameter(torch.randn(short, size) * short**-0.5))
        self.clusters = nn.Parameter(torch.randn(len(cutoffs), size) * size**-0.5)
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs)))
        self.bias = nn.Parameter(torch.zeros(words))

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Set the biases to the logarithms of the words' counts `(words,)`: the network begins as a 1-gram model."""
        shares = (counts.double() + 0.5) / (counts + 0.5).sum()
        for begin, end in zip(self.bounds, self.bounds[1:], strict=False):
            within = 1.0 if begin == 0 else shares[begin:end].sum()
            self.bias[begin:end] = (shares[begin:end] / within).log()
        for number, (begin, end) in enumerate(zip(self.bounds[1:], self.bounds[2:], strict=False)):
            self.cluster_bias[number] = shares[begin:end].sum().log()

    def embed(self, ids: Tensor) -> Tensor:
        """The vectors of words: `(...)` int64 -> `(..., size)`, of variance 1 at first."""
        flat = ids.flatten()
        size = self.clusters.shape[1]
        if len(self.bounds) == 2:
            return functional.embedding(ids, self.vectors[0]) * size**0.5
        found = self.vectors[0].new_zeros(len(flat), size)
        for number, vectors in enumerate(self.vectors):
            begin, end = self.bounds[number], self.bounds[number + 1]
            rows = ((flat >= begin) & (flat < end)).nonzero()[:, 0]
            own = functional.embedding(flat[rows] - begin, vectors)
            found = found.index_copy(0, rows, own @ self.projections[number - 1] if number else own)
        return found.unflatten(0, ids.shape) * size**0.5

    def log_prob(self, states: Tensor, targets: Tensor) -> Tensor:
        """The natural logarithm of each target's probability.

        Args:
            states: `(n, size)`, what the network gives.
            targets: `(n,)` int64, words.
        """
        first = self.bounds[1]
        places = targets
        tails = []
        for number, (begin, end) in enumerate(zip(self.bounds[1:], self.bounds[2:], strict=False)):
            inside = (targets >= begin) & (targets < end)
            places = torch.where(inside, first + number, places)
            rows = inside.nonzero()[:, 0]
            own = self._tail(number, states.index_select(0, rows))
            tails.append((rows, -functional.cross_entropy(own, targets[rows] - begin, reduction="none")))
        total = -functional.cross_entropy(self._head(states), places, reduction="none")
        for rows, share in tails:
            total = total.index_add(0, rows, share)
        return total

    def log_probs(self, states: Tensor) -> Tensor:
        """The natural logarithms of all words' probabilities: `(n, size)` -> `(n, words)`."""
        first = self.bounds[1]
        head = self._head(states).log_softmax(1)
        parts = [head[:, :first]]
        for number in range(len(self.projections)):
            parts.append(self._tail(number, states).log_softmax(1) + head[:, first + number, None])
        return torch.cat(parts, dim=1)

    def _head(self, states: Tensor) -> Tensor:
        """Logits of the shortlist and then of the clusters."""
        first = self.bounds[1]
        if len(self.bounds) == 2:
            return functional.linear(states, self.vectors[0], self.bias)
        weight = torch.cat([self.vectors[0], self.clusters])
        return functional.linear(states, weight, torch.cat([self.bias[:first], self.cluster_bias]))

    def _tail(self, number: int, states: Tensor) -> Tensor:
        """Logits of the words of cluster `number` behind the shortlist."""
        begin, end = self.bounds[number + 1], self.bounds[number + 2]
        shortened = functional.linear(states, self.projections[number])
        return functional.linear(shortened, self.vectors[number + 1], self.bias[begin:end])
