"""A lock is one process's, and goes with it."""

import subprocess
import sys
from pathlib import Path

import pytest

from budwood.core.errors import UserError
from budwood.core.files import locked

HOLD = """
import sys, time
from pathlib import Path
from budwood.core.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_held_by_another_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"another process is at work in .*run; wait for it"), locked(path):
        raise AssertionError("two hold it")
    child.kill()
    child.wait()
    with locked(path):
        assert path.exists()
    assert not path.exists()
    with locked(path, wait=True):
        pass


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "file" / ".lock"):
        pass
