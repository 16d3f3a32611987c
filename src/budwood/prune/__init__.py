"""Pruning methods: one file each, over score, allocation and schedule."""
