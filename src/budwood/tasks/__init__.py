"""Data sets: one file each, and `folder` for one's own images."""
