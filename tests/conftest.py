"""The tests' own networks are `py:` ones, and their checkpoints are read back."""

import os

os.environ.setdefault("BUDWOOD_TRUST_CODE", "1")
