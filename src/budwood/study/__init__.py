"""Runs: from a spec to a directory with everything that came of it."""
