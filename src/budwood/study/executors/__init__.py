"""Where runs are done: one file = one way."""
