"""LSTM language models: the network, its adaptive softmax, and the file with which it scores sentences."""
