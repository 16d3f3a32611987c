"""A study on one page and on the screen, drawn from results alone."""
