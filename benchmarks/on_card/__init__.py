"""The sections of `benchmarks/gpu.py`: whether a card computes right, in which memory, and how fast."""
