"""The study's plots: one file = one plot, each a Picture for the page and for a paper."""
