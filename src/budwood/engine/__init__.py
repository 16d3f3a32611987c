"""Sparse CNNs at the speed of their zeros, on ordinary CPUs. Imports nothing of ours but the vocabulary."""
