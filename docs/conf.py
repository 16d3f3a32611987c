"""Sphinx: pages in Markdown (MyST), theme furo."""

from importlib.metadata import version as installed_version

project = "Budwood"
author = "the Budwood authors"
copyright = f"2026, {author}"
version = release = installed_version("budwood")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"Budwood {version}"
exclude_patterns = ["_build", "results/study/data"]
