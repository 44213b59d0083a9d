"""From a model's probabilities to words: n-gram language models and the searches that use them."""
