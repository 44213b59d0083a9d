"""Decoding: prefix beam search with n-gram language models, lexica and hot words."""
