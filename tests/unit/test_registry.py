"""Registries: filled on demand, and helpful where a name is wrong."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from budwood.core.errors import UserError
from budwood.core.registry import Registry, backends, methods, nearest, sources, tasks

PACKAGE = """
from budwood.core.registry import Registry
things = Registry("thing", "{name}")
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry[object]:
    """Over a package of its own with a member in each of two modules."""
    name = f"rooms_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE.format(name=name))
    for member in ("oak", "elm"):
        line = f"from {name} import things\n\n@things.register('{member}')\nclass Tree:\n    pass\n"
        (folder / f"{member}_file.py").write_text(line)
    monkeypatch.syspath_prepend(str(tmp_path))
    found: Registry[object] = importlib.import_module(name).things
    return found


def test_modules_are_imported_at_the_first_question(registry: Registry[object]) -> None:
    assert f"{registry.package}.oak_file" not in sys.modules
    assert registry.names() == list(registry) == ["elm", "oak"]
    assert "oak" in registry and "fir" not in registry
    assert registry.get("oak") is sys.modules[f"{registry.package}.oak_file"].Tree


def test_a_name_is_given_once(registry: Registry[object]) -> None:
    one, other = object(), object()
    assert registry.register("new")(one) is one
    registry.register("new")(one)  # a module may be imported under two names
    with pytest.raises(ValueError, match="'new' is registered twice"):
        registry.register("new")(other)
    assert registry.get("new") is one


def test_an_unknown_name_gets_a_hint(registry: Registry[object]) -> None:
    with pytest.raises(UserError, match=r"no thing called 'oka'; did you mean oak\?") as caught:
        registry.get("oka")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there are: elm, oak"):
        registry.get("zzz")


def test_third_parties_add_members_by_an_entry_point(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_tree.py").write_text(f"from {registry.package} import things\nthings.register('fir')('fir')\n")
    info = tmp_path / "their_tree-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tree\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[budwood.things]\nfir = their_tree\n")
    importlib.invalidate_caches()
    assert registry.names() == ["elm", "fir", "oak"]


def test_hints() -> None:
    assert nearest("resnet51", ["vgg11", "resnet50"]) == "did you mean resnet50?"
    many = [f"item{i}" for i in range(20)]
    assert nearest("zz", many) == f"there are: {', '.join(many[:12])}, ..."


def test_ours_hold_what_the_first_release_promises() -> None:
    assert {"fixed", "magnitude", "gmp"} <= set(methods)
    assert {"cifar10", "folder"} & set(tasks)
    assert {"torchvision", "timm", "packaged", "py"} <= set(sources)
    assert {"eager", "compile", "onnxruntime"} <= set(backends)


def test_importing_the_vocabulary_imports_nothing_heavy() -> None:
    code = "import sys, budwood.core.registry as r; print(sorted(m for m in sys.modules if m.startswith('budwood.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['budwood.core', 'budwood.core.errors', 'budwood.core.registry']"
