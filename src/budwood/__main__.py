"""`python -m budwood`, as torchrun calls it."""

from budwood.cli import main

main()
