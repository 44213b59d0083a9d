"""Decoding: prefix beam search with language models, lexica and hot words."""
