"""The tests' own networks are `py:` ones, and their checkpoints are read back; what they measure is not kept."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("BUDWOOD_TRUST_CODE", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
