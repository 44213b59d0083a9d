"""The fused scans on CUDA devices: sources, their compilation on first use (`nvrtc`), what launches them (`launch`)."""
