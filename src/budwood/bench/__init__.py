"""Timing networks honestly: same answers first, then interleaved rounds, medians and spread. One file = one backend."""
