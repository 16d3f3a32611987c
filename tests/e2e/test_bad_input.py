"""What a user can do wrong: one line that says how to mend it, exit code 2, and nothing left behind."""

import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

SHAPES, MODEL = "shapes", ("--model", "py:toynet.small")
TRANSFER = ("transfer", SHAPES, *MODEL, "--workers", "0", "--epochs", "1", "--no-measure-latency")
PRUNE = ("prune", "py:toynet.small", "--method", "magnitude", "--sparsity")


class Payload:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("pwned", "w")


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)


@pytest.fixture(scope="module")
def wrong(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder full of things that are not what they should be."""
    root = tmp_path_factory.mktemp("wrong")
    os.symlink(place / "few", root / SHAPES)
    (root / "empty").mkdir()
    for k in range(6):
        picture(root / "one" / "only" / f"{k}.png", k)
        picture(root / "loose" / f"{k}.png", k)
        picture(root / "cut" / "ab"[k % 2] / f"{k}.png", k)
    for path in (root / "cut" / "a").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    picture(root / "photo" / "1.png")
    for k in range(6):
        picture(root / "twain" / "ab"[k % 2] / f"{k}.png", k)
    picture(root / "two" / "a" / "1.png")
    picture(root / "two" / "b" / "1.png", 9)
    for k in range(5000):
        folder = root / "thousands" / f"class {k:04}"
        folder.mkdir(parents=True)
        os.link(root / "two" / "a" / "1.png", folder / "1.png")
    tables = {
        "columns": "file,class\na.png,x\n", "absent": "path,label\nno/such.png,x\nnor/this.png,y\n",
        "split": "path,label,split\none/only/0.png,x,holdout\n", "label": "path,label\none/only/0.png,\n",
        "twice": "path,label\none/only/0.png,x\none/only/0.png,y\n", "nothing": "",
    }  # fmt: skip
    for name, text in tables.items():
        (root / f"{name}.csv").write_text(text)
    (root / "latin.csv").write_bytes("path,label\nK\xe4fer.png,x\n".encode("latin-1"))
    (root / "notes.txt").write_text("hello")
    (root / "zero.safetensors").write_bytes(b"")
    torch.save({"weight": Payload()}, root / "code.pth")
    safetensors.torch.save_file({"weight": torch.zeros(3)}, root / "foreign.safetensors")
    (root / "results" / "abc").mkdir(parents=True)
    (root / "results" / "abc" / "result.json").write_text("{}")
    (root / "occupied").mkdir()
    (root / "occupied" / "thesis.tex").write_text("all my work")
    return root


@pytest.fixture
def scene(wrong: Path, budwood: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The things of `wrong`, a checkpoint and a run, in the folder the command is called in."""
    for path in wrong.iterdir():
        os.symlink(path, tmp_path / path.name)
    assert budwood(*PRUNE, "0.5", "--out", "made").code == 0
    (run,) = (tmp_path / "made").glob("*/")
    run.rename(tmp_path / "run")
    shutil.rmtree(tmp_path / "made")
    whole = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    (tmp_path / "good.safetensors").write_bytes(whole)
    for name, data in {
        "short": whole[:-100], "header": whole[:50], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "gone": whole.replace(b"py:toynet.small", b"py:toygone.smal"),
    }.items():  # fmt: skip
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    assert budwood("export", "py:toynet.wide", "wide.pth").code == 0
    assert budwood("export", "good.safetensors", "dense.pth").code == 0
    return tmp_path


def tree(root: Path) -> dict[str, float]:
    """What is there; linked folders are not followed, so only what a command could have made is looked at."""
    return {str(path): path.lstat().st_mtime for path in root.rglob("*") if "__pycache__" not in str(path)}


OPTION = (*TRANSFER, "--prune", "gmp", "--sparsity", "0.5", "--option")
TABLE: dict[str, list[tuple[tuple[str, ...], str]]] = {
    "data": [
        (("transfer", "nowhere", *MODEL), "nowhere is neither a folder or file nor a task"),
        (("transfer", "cifar11", *MODEL), "did you mean cifar10 or cifar100"),
        (("transfer", *MODEL), "name a folder of class folders"),
        (("transfer", "--task", "cifar11", *MODEL), "no task called 'cifar11'; did you mean cifar10 or cifar100"),
        (("transfer", "--task", "folder", *MODEL), "needs to know where"),
        (("transfer", "empty", *MODEL), "empty is empty: it has no class folders"),
        (("transfer", "one", *MODEL), "one has one class only"),
        (("transfer", "two", *MODEL), "2 classes have fewer than 3 images: a, b; each needs 3"),
        (("transfer", "thousands", *MODEL), "5000 classes have fewer than 3 images: class 0000, class 0001"),
        (("transfer", "loose", *MODEL), "holds 6 images but no class folders"),
        (("transfer", "cut", *MODEL), "3 of 6 images in cut cannot be read: a/0.png"),
        (("transfer", "notes.txt", *MODEL), "neither a folder nor a .csv file"),
        (("transfer", "columns.csv", *MODEL), "its first line must be path,label[,split]"),
        (("transfer", "absent.csv", *MODEL), "lists 2 files that do not exist: no/such.png, nor/this.png"),
        (("transfer", "split.csv", *MODEL), "line 2 has the split 'holdout'; write train, val or test"),
        (("transfer", "label.csv", *MODEL), "line 2 has no label"),
        (("transfer", "twice.csv", *MODEL), "lists one/only/0.png twice"),
        (("transfer", "nothing.csv", *MODEL), "has columns none"),
        (("transfer", "latin.csv", *MODEL), "is not UTF-8 text"),
        (("data", "check", "nowhere"), "nowhere does not exist"),
        (("data", "check", "empty"), "empty is empty"),
        (("data", "check", "loose"), "put the images of each class into a folder of its own"),
        (("eval", "py:toynet.small", "nowhere"), "nowhere is neither"),
        (("eval", "py:toynet.small", "two"), "the network has 3 classes, the data 2"),
        ((*PRUNE, "0.5", "--calibration", "empty"), "empty holds no images"),
        ((*PRUNE, "0.5", "--calibration", "photo"), "photo holds one image, too few for batch norm's statistics"),
        ((*PRUNE, "0.5", "--calibration", "nowhere"), "no folder of images at nowhere"),
        ((*PRUNE, "0.5", "--calibration", "one", "--data", SHAPES), "leave one of them out"),
    ],
    "model": [
        (("transfer", SHAPES), "--model"),
        (("transfer", SHAPES, "--model", "resnet50"), "no file at resnet50"),
        (("transfer", SHAPES, "--model", "tim:resnet50"), "no source called 'tim'; did you mean timm"),
        (("transfer", SHAPES, "--model", "torchvision:resnet51"), "did you mean resnet50"),
        (("transfer", SHAPES, "--model", "timm:resnet5"), "resnet50"),
        (("transfer", SHAPES, "--model", "timm:resnet50.a1_in2k"), "did you mean resnet50.a1_in1k"),
        (("transfer", SHAPES, "--model", "packaged:lite0"), "tf_efficientnet_lite0"),
        (("transfer", SHAPES, "--model", "py:toynet.smal"), "py:toynet.smal"),
        (("transfer", SHAPES, "--model", "py:nomodule.f"), "No module named 'nomodule'"),
        (("transfer", SHAPES, "--model", "py:toynet.nn"), "py:toynet.nn"),
        (("transfer", SHAPES, "--model", "nowhere.safetensors"), "no file at nowhere.safetensors"),
        (("transfer", SHAPES, "--model", "zero.safetensors"), "has 0 bytes"),
        (("transfer", SHAPES, "--model", "short.safetensors"), "short.safetensors is damaged"),
        (("transfer", SHAPES, "--model", "header.safetensors"), "header.safetensors"),
        (("transfer", SHAPES, "--model", "flipped.safetensors"), "flipped.safetensors is damaged"),
        (("transfer", SHAPES, "--model", "gone.safetensors"), "gone.safetensors"),
        (("transfer", SHAPES, "--model", "foreign.safetensors"), "foreign.safetensors"),
        (("transfer", SHAPES, "--model", "code.pth"), "not safe; save model.state_dict() alone"),
        (("transfer", SHAPES, "--model", "notes.txt"), "notes.txt"),
        (("transfer", SHAPES, "--model", "empty"), "empty is a folder"),
        (("transfer", SHAPES, "--model", "py:toynet.small@wide.pth"), "weights are not those of py:toynet.small"),
        (("transfer", SHAPES, "--model", "wide.pth"), "not the state_dict of a torchvision network"),
        ((*TRANSFER[:2], "--model", "py:toynet.convolutional_head", "--mode", "linear"), "--mode full"),
        (("info", "."), "name the checkpoint file in it"),
        (("info", "nowhere"), "no file at nowhere"),
        (("export", "py:toynet.small", "x.tflite"), "end its name in .pth, .safetensors or .onnx"),
        (("export", "py:toynet.small", "notes.txt/x.pth"), "cannot write notes.txt/x.pth"),
        (("verify", "dense.pth"), "carries no mask; say --against"),
        (("verify", "nowhere"), "no file at nowhere"),
        (("verify", "short.safetensors"), "is damaged"),
        (("verify", "code.pth", "--against", "good.safetensors"), "not safe"),
        (("verify", "wide.pth", "--against", "good.safetensors"), "another network"),
        (("verify", "dense.pth", "--against", "dense.pth"), "dense.pth"),
    ],
    "numbers": [
        *[((*TRANSFER, "--prune", "gmp", "--sparsity", text), text) for text in ("1.0", "-1", "nan", "abc", "inf", "")],
        ((*TRANSFER, "--prune", "gmp", "--sparsity", "90"), "did you mean 0.9?"),
        ((*TRANSFER, "--prune", "gmp", "--sparsity", "90%"), "give the share of zeros, as 0.9"),
        ((*PRUNE, "1.0"), "0.9 means 90 % zeros"),
        ((*TRANSFER, "--lr", "-1"), "--lr -1: Input should be greater than 0"),
        ((*TRANSFER, "--lr", "nan"), "--lr nan"),
        ((*TRANSFER, "--lr", "inf"), "--lr inf"),
        ((*TRANSFER[:-3], "--epochs", "abc"), "--epochs abc"),
        ((*TRANSFER, "--batch-size", "0"), "--batch-size 0"),
        ((*TRANSFER, "--weight-decay", "nan"), "--weight-decay nan"),
        ((*TRANSFER, "--size", "8"), "--size 8"),
        ((*TRANSFER, "--schedule", "linear"), "--schedule"),
        ((*TRANSFER, "--seeds", "-1"), "--seeds"),
        ((*TRANSFER[:4], "--workers", "-1"), "--workers"),
        (("eval", "py:toynet.small", SHAPES, "--size", "0"), "--size"),
        (("verify", "good.safetensors", "--sparsity", "much"), "--sparsity"),
        ((*TRANSFER, "--lr", "1e30"), "lower the learning rate"),
    ],
    "words": [
        (("transfr",), 'Did you mean "transfer"?'),
        (("data", "chek", SHAPES), 'Did you mean "check"?'),
        ((*TRANSFER, "--epochz", "3"), "Did you mean --epochs?"),
        ((*TRANSFER, "extra"), "too many arguments: extra"),
        ((*TRANSFER, "--mode", "lin"), 'Did you mean "linear"?'),
        (("ls", "method"), '"methods"'),
        (("transfer", SHAPES, *MODEL, "--mode", "linear", "--epochs", "3"), "--epochs does not count for a linear"),
        ((*TRANSFER, "--device", "gpu"), "no device 'gpu'"),
        ((*TRANSFER, "--device", "meta"), "no device 'meta'"),
        ((*TRANSFER, "--prune", "gpm", "--sparsity", "0.5"), "no method called 'gpm'; did you mean gmp or"),
        ((*TRANSFER, "--prune", "gmp"), "--prune gmp needs --sparsity"),
        ((*TRANSFER, "--sparsity", "0.5"), "--sparsity needs a method"),
        ((*TRANSFER, "--option", "a=1"), "--option needs a method"),
        ((*TRANSFER, "--prune", "fixed", "--sparsity", "0.5"), "--prune fixed holds the mask"),
        ((*TRANSFER, "--distill", "0.5"), "--distill teaches a pruned network"),
        (("prune", "py:toynet.small", "--method", "gmp", "--sparsity", "0.5"), "give --data"),
        ((*PRUNE, "0.5", "--adapt-bn"), "--adapt-bn counts for a linear head alone"),
        ((*PRUNE, "0.5", "--data", SHAPES, "--head", "sgd"), "--head counts for a linear head alone"),
        ((*TRANSFER, "--adapt-bn"), "--adapt-bn counts for a linear head alone"),
        (("prune", "py:toynet.small", "--method", "fixed", "--sparsity", "0.5"), "prunes nothing"),
        (("transfer", SHAPES, "--model", "good.safetensors", "--prune", "gmp", "--sparsity", "0.2"), "already has 5"),
        ((*OPTION, "nothing=1"), "gmp has no option nothing; it takes allocation"),
        ((*OPTION, "schedule.stop=1"), "gmp has no option schedule.stop; it takes"),
        ((*OPTION, "schedule.end=2"), "option schedule.end of gmp cannot be 2"),
        ((*OPTION, "schedule.start=0.9"), "the pruning ends (end=0.6) before it starts (start=0.9)"),
        ((*OPTION, "schedule=fast"), "option schedule of gmp cannot be 'fast'"),
        ((*OPTION, "allocation=random"), "'global', 'uniform', 'erk' or 'str'"),
        ((*OPTION, "allocation"), "'allocation' is not KEY=VALUE"),
    ],
    "methods": [
        ((*PRUNE, "0.5", "--option", "pattern=4:2"), "between 1 and 1 can be kept, not 4"),
        ((*PRUNE, "0.5", "--option", "pattern=2x4"), "write unstructured, N:M as 2:4, or 1xB as 1x4"),
        ((*PRUNE, "0.9", "--option", "pattern=2:4"), "2:4 makes 0.5 zeros in the layers it prunes, not 0.9"),
        ((*PRUNE, "0.5", "--option", "pattern=1x5"), "1x5 does not divide the 8 input channels of 3, which fall"),
        ((*PRUNE, "0.5", "--option", "pattern=2:4", "--option", "allocation=erk"), "erk does not"),
        (
            ("prune", "py:toynet.convolutional_head", *PRUNE[2:], "0.5", "--option", "allocation=uniform"),
            "every layer of this network is one that is kept dense: nothing to prune; change keep_dense",
        ),
        ((*PRUNE, "0.9", "--option", "allocation=str"), "STR published budgets for ResNet-50 alone"),
        (("prune", "py:toynet.small", "--sparsity", "0.5"), "no method: add --method gmp"),
        (("prune", "py:toynet.small", "--method", "magnitude"), "--method magnitude needs --sparsity"),
        (("prune", "py:toynet.small", "--method", "dense"), "prunes nothing, it trains: add --data"),
        (("prune", "py:toynet.small", "--method", "wanda", "--sparsity", "0.5"), "add --calibration IMAGES"),
        (("prune", "py:toynet.small", "--method", "rigl", "--sparsity", "0.5"), "rigl prunes while it trains"),
        ((*PRUNE, "0.5", "--data", "twain", "--distill", "0.5"), "--distill needs a network that knows the classes"),
        ((*PRUNE, "0.5", "--from-scratch"), "which have to be trained: add --data"),
        (("prune", "run", "--method", "dense", "--from-scratch", "--data", SHAPES), "needs an architecture"),
        (("prune", "py:toynet.small", "--recipe", "nowhere.toml"), "cannot read the recipe nowhere.toml"),
        (("prune", "py:toynet.small", "--recipe", "notes.txt"), "notes.txt is no TOML"),
        (("recipe", "show", "gpm"), "did you mean gmp or"),
        (("recipe", "show", "magnitude", "--paper"), "no settings of a paper"),
        (("recipe", "show", "gmp", "--paper", "--variant", "fast"), "there are: post-training, from-scratch"),
        ((*TRANSFER[:2], *MODEL, "--mode", "linear", "--prune", "rigl", "--sparsity", "0.5"), "--mode full, or prune"),
        ((*TRANSFER, "--schedule", "step"), "--schedule"),
        ((*TRANSFER, "--milestones", "-1"), "--milestones"),
    ],
    "out": [
        ((*TRANSFER, "--out", "notes.txt"), "notes.txt is a file; name a folder for the runs"),
        ((*TRANSFER, "--out", "notes.txt/runs"), "cannot write notes.txt/runs"),
        ((*TRANSFER, "--out", "occupied"), "occupied holds other files already"),
        ((*TRANSFER, "--out", "run"), "run is the folder of one run; name the folder that holds the runs"),
        ((*PRUNE, "0.5", "--out", "occupied"), "occupied holds other files already"),
        (("report", "nowhere"), "no folder at nowhere"),
        (("report", "empty"), "no finished run in empty"),
        (("report", "results"), "is no result of Budwood's, or damaged"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLE)
def test_one_line_and_nothing_left_behind(kind: str, budwood: Callable[..., Any], scene: Path) -> None:
    wrong_ones = []
    for arguments, expected in TABLE[kind]:
        shutil.rmtree(scene / "runs", ignore_errors=True)
        before = tree(scene)
        said = budwood(*arguments)
        left = {path for path in tree(scene).items() ^ before.items() if "lower the learning" not in expected}
        words = [line for line in said.lines if line.startswith("budwood: ")]
        allowed = said.lines == words or "lower the learning" in expected  # this one has trained before
        good = said.code == 2 and said.out == "" and len(words) == 1 and allowed and expected in said.err and not left
        if not good:
            wrong_ones.append((" ".join(arguments), said, sorted(left)))
    assert wrong_ones == []
    assert not (scene / "pwned").exists() and not Path("pwned").exists()


POOLED = ("prune", "py:toynet.pooled", "--sparsity", "0.5", "--workers", "0")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--method", "magnitude", "--size", "16"), "takes no images of 16 x 16 px"),
        (("--method", "gmp", "--data", SHAPES, "--size", "16"), "takes no images of 16 x 16 px"),
        (("--method", "gmp", "--data", SHAPES, "--batch-size", "1"), "a part of 1 image where"),
        (("--method", "gmp", "--data", SHAPES, "--batch-size", "3", "--accumulate", "2"), "lower --accumulate"),
        (("--method", "gmp", "--data", SHAPES, "--epochs", "3", "--warmup-epochs", "5"), "rise for 5 of 3 epochs"),
    ],
)  # fmt: skip
def test_what_only_the_run_itself_shows(
    arguments: tuple[str, ...], expected: str, budwood: Callable[..., Any], scene: Path
) -> None:
    said = budwood(*POOLED, *arguments)
    assert said.code == 2 and expected in said.lines[-1] and sum("budwood: " in line for line in said.lines) == 1


def test_names_that_are_no_text(budwood: Callable[..., Any], shapes: Path) -> None:
    odd = b"\xe9".decode("utf-8", "surrogateescape")
    (shapes / "red").rename(shapes / f"r{odd}d")
    data = shapes.rename(shapes.with_name(f"sh{odd}pes"))
    done = budwood(
        "prune", "py:toynet.small", "--from-scratch", "--method", "gmp", "--sparsity", "0.5", "--data", data,
        "--epochs", "1", "--workers", "0",
    )  # fmt: skip
    assert done.code == 0, done
    assert json.loads(budwood("info", done.out.strip(), "--json").out)["lineage"]["classes"][2] == r"r\udce9d"


def test_images_that_were_left_out_are_told(budwood: Callable[..., Any], shapes: Path) -> None:
    (shapes / "red" / "00.png").write_bytes(b"x")
    said = budwood(*PRUNE, "0.5", "--calibration", shapes)
    assert said.code == 0 and "1 of 60 images left out, not readable: 00.png" in said.err
    refused = budwood(*PRUNE, "0.5", "--data", shapes, "--epochs", "1", "--workers", "0")
    assert refused.code == 2 and "--allow-unreadable" in refused.err
    said = budwood(*PRUNE, "0.5", "--data", shapes, "--epochs", "1", "--workers", "0", "--allow-unreadable")
    assert said.code == 0 and "1 of 60 images left out" in said.err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_spoilt_during_the_run(
    workers: int, budwood: Callable[..., Any], shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met by a process that loads images, it is told as by this one."""
    from budwood.study.run import Runner

    run = Runner.run

    def spoil(self: Runner, spec: Any) -> Any:
        for path in (shapes / "red").iterdir():
            path.write_bytes(path.read_bytes()[:-40])
        return run(self, spec)

    monkeypatch.setattr(Runner, "run", spoil)
    said = budwood(*PRUNE, "0.5", "--data", shapes, "--epochs", "1", "--workers", workers)
    told = said.lines[-1]
    assert said.code == 2 and told.endswith("repair or remove it") and "Traceback" not in said.err, said
    assert told.startswith(f"budwood: {shapes}/red/")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), "not enough memory"),
        (RuntimeError("DataLoader worker (pid 812) is killed by signal: Killed. "), "a process that loads images"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, expected: str, budwood: Callable[..., Any], scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budwood.study.run import Runner

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Runner, "run", full)
    said = budwood(*PRUNE, "0.5")
    assert said.code == 2 and said.lines[-1].startswith(f"budwood: {expected}")


def test_a_gif_called_jpg_is_counted_and_used(budwood: Callable[..., Any], shapes: Path) -> None:
    with Image.open(shapes / "red" / "00.png") as photo:
        photo.convert("P").save(shapes / "red" / "00.jpg", format="GIF")
    (shapes / "red" / "00.png").unlink()
    said = budwood("data", "check", shapes)
    assert said.code == 0 and "red/00.jpg (is GIF)" in " ".join(said.out.split())
    done = budwood("transfer", shapes, *TRANSFER[2:])
    assert done.code == 0 and "3 classes; 42 train, 9 val, 9 test" in done.err


def test_hidden_files_are_nobodys(budwood: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """What a file manager leaves in a new folder does not make it foreign."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".DS_Store").write_bytes(b"x")
    assert budwood("transfer", place / "few", *TRANSFER[2:], "--out", "mine").code == 0


# ------------------------------------------------------------------------------------------- the machine


OFFLINE = """
import socket, sys
asked = []

def nobody(host, *rest, **more):
    asked.append(host)
    raise socket.gaierror(-2, "Name or service not known")

socket.getaddrinfo = nobody
from budwood.cli import main
try:
    main(sys.argv[1:])
finally:
    print(len(asked))
"""


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("torchvision:resnet18", r"download https://download.pytorch.org/models/resnet18-\w+.pth elsewhere and put it"),
        ("timm:resnet18", r"download https://huggingface.co/timm/resnet18\S+ elsewhere .*timm:resnet18@FILE"),
    ],
)
def test_weights_without_internet(model: str, hint: str, process: Callable[..., Any], tmp_path: Path) -> None:
    """It says how to get the weights by hand, and does not ask again and again for minutes."""
    if model.startswith("timm"):
        pytest.importorskip("timm")
    none = {name: "" for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "ALL_PROXY")}
    caches = {"TORCH_HOME": str(tmp_path / "torch"), "HF_HOME": str(tmp_path / "hub")}
    said = process("-c", OFFLINE, "info", model, **none, **caches)
    assert said.code == 2 and len(said.lines) == 1, said
    assert re.search(hint, said.err) and "(no internet?)" in said.err
    assert 1 <= int(said.out) <= 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB; skipped where it may not be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def assert_refused_by_the_disk(said: Any, out: Path) -> None:
    assert said.code == 2 and said.out == "", said
    assert [line.startswith("budwood: cannot write") for line in said.lines] == [True], said
    assert "free space or choose another place" in said.err
    assert not list(out.rglob("result.json")) and not list(out.rglob("*.part"))


def test_a_full_disk(budwood: Callable[..., Any], place: Path, small_disk: Path) -> None:
    call = ("transfer", place / "few", *TRANSFER[2:], "--out", small_disk / "runs", "--json")
    (small_disk / "ballast").write_bytes(b"x" * 45_000)
    assert_refused_by_the_disk(budwood(*call), small_disk)
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert budwood(*call).code == 0  # the same command goes on


def test_a_file_size_limit(budwood: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """What a quota does, and what can be had without mounting anything."""
    call = ("transfer", place / "few", *TRANSFER[2:], "--json")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        said = budwood(*call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused_by_the_disk(said, tmp_path / "runs")
    assert budwood(*call).code == 0


def test_a_reader_that_goes_away(process: Callable[..., Any], place: Path, tmp_path: Path) -> None:
    """As in `budwood ls models | head -1`."""
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); from budwood.cli import main; main(sys.argv[1:])"
    )
    said = process("-c", code, "ls", "methods", "--json")
    assert said.code in (1, 120) and "Traceback" not in said.err
