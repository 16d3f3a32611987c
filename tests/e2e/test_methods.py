"""`budwood prune` with every method: a checkpoint that verifies; a killed run goes on and ends as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budwood.core.checkpoint import Checkpoint
from budwood.core.registry import methods

from .conftest import surroundings

ENTRY = "import sys; from budwood.cli import main; main(sys.argv[1:])"


def words(name: str, place: Path, *extra: str) -> list[str]:
    """The command, with as much training as the method needs; the options that make it brief are kept."""
    kind = methods.get(name)
    options = [
        word
        for key, value in kind.brief.items()
        for inner, part in ({key: value} if not isinstance(value, dict) else _flat(key, value)).items()
        for word in ("--option", f"{inner}={json.dumps(part)}")
    ]
    sparsity = [] if kind.tags.density == "given" else ["--sparsity", "0.7"]
    return [
        "prune", "py:toynet.small", "--method", name, *sparsity, *options, "--workers", "0",
        *(extra or ("--data", str(place / "shapes"), "--epochs", "8", "--batch-size", "6")),
    ]  # fmt: skip


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


@pytest.mark.parametrize("name", methods.names())
def test_prune_verify_and_show(name: str, budwood: Any, place: Path, tmp_path: Path) -> None:
    said = budwood(*words(name, place))
    assert said.code == 0, said
    checkpoint = Path(said.out.strip())
    stored = Checkpoint.load(checkpoint)
    tags = methods.get(name).tags
    asked = ["--sparsity", f"{stored.mask.sparsity:.4f}"]
    assert budwood("verify", checkpoint, *asked).code == 0
    if tags.density == "exact":  # over the layers that take part, which the contract looks at
        assert 0.55 < stored.mask.sparsity < 0.71 and stored.lineage.method == name
    assert budwood(*words(name, place)).out == said.out, "a finished run is not done again"
    assert not list(tmp_path.glob("runs/*/state.safetensors")) and not list(tmp_path.glob("runs/*/scratch/*"))


@pytest.mark.parametrize("name", ["magnitude", "gmp"])
def test_a_classifier_that_is_made_anew_takes_no_part(name: str, budwood: Any, place: Path, shapes: Path) -> None:
    """The network knows three classes, the images show two: all zeros asked for lie in the backbone."""
    shutil.rmtree(next(folder for folder in sorted(shapes.iterdir()) if folder.is_dir()))
    said = budwood(*words(name, place, "--data", str(shapes), "--epochs", "2", "--batch-size", "6"))
    assert said.code == 0, said
    stored = Checkpoint.load(Path(said.out.strip()))
    convolutions = [kept for kept in stored.mask.values() if kept.ndim == 4]
    zeros = sum(int((~kept).sum()) for kept in stored.mask.values())
    assert abs(zeros - 0.7 * sum(kept.numel() for kept in convolutions)) <= 1


@pytest.mark.parametrize("name", ["rigl", "set", "snfs", "topkast", "st3", "lth", "lth-t", "gmp", "str"])
def test_a_network_that_is_sparser_already_is_refused_beforehand(
    name: str, budwood: Any, place: Path, tmp_path: Path
) -> None:
    first = budwood(
        "prune", "py:toynet.small", "--method", "random", "--sparsity", "0.9", "--option", "allocation=global"
    )
    before = sorted(tmp_path.rglob("*"))
    command = words(name, place)
    said = budwood(command[0], first.out.strip(), *command[2:])
    assert said.code == 2 and len(said.lines) == 1, said
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize("name", ["acdc", "cram", "lth-t", "mfac", "rigl", "st3", "str", "topkast"])
def test_with_all_that_a_training_can_do(name: str, budwood: Any, place: Path) -> None:
    """An average of the weights, batches in two parts, bfloat16, smoothed labels: the mask holds all the same."""
    extra = ("--ema", "0.5", "--accumulate", "2", "--amp", "--label-smoothing", "0.1", "--epochs", "8")
    said = budwood(*words(name, place, "--data", str(place / "shapes"), "--batch-size", "6", *extra))
    assert said.code == 0, said
    stored = Checkpoint.load(Path(said.out.strip()))
    assert stored.mask.holds(stored.state) and 0.05 < stored.mask.sparsity < 0.99


@pytest.mark.parametrize("name", [name for name in methods if methods.get(name).tags.at_once])
def test_at_once_with_and_without_images(name: str, budwood: Any, place: Path) -> None:
    tags = methods.get(name).tags
    if tags.density == "given":
        said = budwood(*words(name, place, "--seed", "0"))
        assert said.code == 2 and "prunes nothing" in said.err
        return
    said = budwood(*words(name, place, "--calibration", str(place / "shapes")))
    if tags.gradual and tags.data == "none":
        assert said.code == 2 and "prunes while it trains" in said.err
        return
    assert said.code == 0, said
    assert 0.55 < Checkpoint.load(Path(said.out.strip())).mask.sparsity < 0.71
    without = budwood(*words(name, place, "--seed", "1"))
    if tags.data == "none":
        assert without.code == 0
    else:
        assert without.code == 2 and "looks at images: add --calibration" in without.err


@pytest.mark.parametrize("name", [name for name in methods if not methods.get(name).tags.at_once])
def test_methods_that_train_say_so(name: str, budwood: Any, place: Path) -> None:
    said = budwood(*words(name, place, "--seed", "0"))
    assert said.code == 2 and f"{name} prunes while it trains: give --data" in said.err and len(said.lines) == 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("rigl", "woodfisher", "lth", "snip") else pytest.mark.slow)
        for name in methods
    ],
)
def test_killed_and_gone_on_with(name: str, process: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """kill -9 once the run has saved its state; the same command then ends in the bits of a run that was left alone,
    on as many threads."""
    command = [*words(name, place), "--out", "killed"]
    child = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *command], cwd=tmp_path, env=surroundings(place) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/*/state.safetensors")) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    gone_on, alone = (process("-c", ENTRY, *words(name, place), "--out", out) for out in ("killed", "alone"))
    assert gone_on.code == 0 and alone.code == 0, (gone_on, alone)
    one, other = (Checkpoint.load(tmp_path / said.out.strip()) for said in (gone_on, alone))
    assert one.digest() == other.digest()
    assert not list(tmp_path.glob("killed/*/state.safetensors")) and os.listdir(tmp_path / "killed")


def test_a_network_of_the_same_weights_is_pruned_by_itself(budwood: Any, place: Path) -> None:
    """Only its activations differ, and so does what its layers see."""
    for model in ("py:toynet.small", "py:toynet.leaky"):
        command = words("exact-obs", place, "--calibration", str(place / "shapes"))
        said = budwood(command[0], model, *command[2:])
        assert said.code == 0 and "earlier run" not in said.err, said


def at_once(name: str, place: Path) -> list[str]:
    """The command without a training; a Fisher matrix three times."""
    passes = ["--option", "recomputations=3"] if name in ("woodfisher", "mfac") else []
    return [*words(name, place, "--calibration", str(place / "shapes")), *passes]


STOPS = """
import os, signal, sys
real, left = os.replace, int(sys.argv.pop(1))
def replace(*names):
    global left
    real(*names)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
"""


@pytest.mark.parametrize(
    "name",
    ["exact-obs", *(pytest.param(n, marks=pytest.mark.slow) for n in ("sparsegpt", "woodfisher", "mfac", "wanda"))],
)
def test_killed_and_gone_on_with_at_once(name: str, process: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """kill -9 when the third file has its name: the folder's marker, the spec, then a layer or a pass, or, where the
    method keeps none of these, the pruned network. The same command ends in the bits of a run that was left alone."""
    command = at_once(name, place)
    killed = process("-c", STOPS + ENTRY, "3", *command, "--out", "killed")
    assert killed.code == -signal.SIGKILL
    assert bool(list(tmp_path.glob("killed/pruned/*/*.safetensors"))) == (name != "wanda")
    gone_on, alone = (process("-c", ENTRY, *command, "--out", out) for out in ("killed", "alone"))
    assert gone_on.code == 0 and alone.code == 0, (gone_on, alone)
    one, other = (Checkpoint.load(tmp_path / said.out.strip()) for said in (gone_on, alone))
    assert one.digest() == other.digest()
    assert not list(tmp_path.glob("killed/pruned/*/*")), "what was kept on the way is gone"


@pytest.mark.parametrize("name", ["exact-obs", pytest.param("woodfisher", marks=pytest.mark.slow)])
def test_at_once_in_two_processes(name: str, process: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """Both see the same layers and passes, whoever is first; one checkpoint, that of one process."""
    command = at_once(name, place)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "budwood")
    several, alone = process(*torchrun, *command, "--out", "two"), process("-c", ENTRY, *command, "--out", "one")
    assert several.code == 0 and alone.code == 0, (several, alone)
    two, one = (Checkpoint.load(tmp_path / said.out.split()[-1]) for said in (several, alone))
    assert two.digest() == one.digest()
    assert not list(tmp_path.glob("two/pruned/*/*"))


@pytest.mark.parametrize(
    "name", ["rigl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("snfs", "str", "topkast", "woodfisher"))]
)
def test_trained_in_two_processes(name: str, process: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """The real upstream run, as a user starts it: one checkpoint, told of once, that verifies."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "budwood")
    said = process(*torchrun, *words(name, place), "--from-scratch")
    assert said.code == 0, said
    (checkpoint,) = tmp_path.glob("runs/*/checkpoint.safetensors")
    assert said.out.split() == [str(checkpoint.relative_to(tmp_path))]
    verified = process("-c", ENTRY, "verify", str(checkpoint), "--json")
    assert verified.code == 0 and 0.55 < json.loads(verified.out)["sparsity"] < 0.75
