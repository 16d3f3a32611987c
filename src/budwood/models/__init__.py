"""Where networks come from. One file = one source; `network.open_network` resolves a name or a path."""
