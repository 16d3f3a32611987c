"""Programs on disk: a round trip keeps every bit, and no damaged file is taken for a good one."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from budwood.core.errors import UserError
from budwood.core.files import metadata_of
from budwood.core.task import Preprocessing
from budwood.engine import graph as g
from budwood.engine.program import Program
from budwood.engine.saved import KEY, Tensors, _tensors, fingerprint, is_program, load_program, pack, seal, unpack
from budwood.engine.typed_json import kinds
from budwood.testing.graphs import graphs, random_graph

CLASSES = ("crack", "void", "päivää")
PREPROCESSING = Preprocessing(size=32, resize=40, interpolation="bicubic", mean=(0.5, 0.4, 0.3))


def small(zeros: float = 0.9) -> Program:
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 3, 3, 3)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    last = random.standard_normal((3, 16)).astype(np.float32)
    nodes: tuple[g.Node, ...] = (
        g.Conv("a", ("x",), weight, last[0], stride=(2, 1), padding=(1, 1, 0, 2), source="features.0"),
        g.Activate("b", ("a",), g.Activation("clamp", low=-0.0, high=math.inf)),
        g.AdaptivePool("p", ("b",)),
        g.Flatten("f", ("p",)),
        g.Linear("fc", ("f",), last, activation=g.Activation("leaky_relu", slope=0.2)),
    )
    graph = g.Graph({"x": (3, 32, 32)}, nodes, ("fc",))
    return Program(graph, classes=CLASSES, preprocessing=PREPROCESSING, name="net", source="somewhere")


def content_of(data: bytes) -> tuple[dict[str, Any], Tensors]:
    """The JSON and the tensors of a sound file."""
    text = (metadata_of(data) or {})[KEY].partition(" ")[2]
    return json.loads(text), dict(_tensors(data))


def refused(data: bytes) -> str:
    """The one line that refuses these bytes; anything but a UserError fails the test that asks."""
    with pytest.raises(UserError) as caught:
        unpack(data, "my.budwood")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("my.budwood") and message.isprintable()
    return message


# -- round trip -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(graph=graphs())
def test_any_graph_survives(graph: g.Graph) -> None:
    data = pack(Program(graph))
    after = unpack(data, "here").graph
    assert fingerprint(after) == fingerprint(graph)
    assert after.inputs == graph.inputs and after.outputs == graph.outputs
    assert pack(Program(after)) == data


def test_everything_else_travels_with_it(tmp_path: Path) -> None:
    before = small()
    size = before.save(tmp_path / "new" / "flowers.budwood")
    assert (tmp_path / "new" / "flowers.budwood").stat().st_size == size
    after = load_program(tmp_path / "new" / "flowers.budwood", threads=1)
    assert (after.classes, after.preprocessing) == (CLASSES, PREPROCESSING)
    assert (after.name, after.source, after.threads) == ("net", "somewhere", 1)
    assert repr(list(after.graph)) == repr(list(before.graph))
    x = np.random.default_rng(1).standard_normal((5, 3, 32, 32), np.float32)
    assert np.array_equal(before(x), after(x))
    assert Program.load(str(tmp_path / "new" / "flowers.budwood"))(x).shape == (5, 3)
    assert is_program((tmp_path / "new" / "flowers.budwood").read_bytes()) and not is_program(b"PK\3\4")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["flowers.budwood"]


def test_every_kind_of_node_is_in_the_random_graphs_or_the_small_one() -> None:
    seen = {node.op for seed in range(60) for node in random_graph(seed)} | {node.op for node in small().graph}
    assert seen == set(kinds())


@pytest.mark.parametrize("zeros", [0.0, 0.02, 0.5, 0.9, 1.0])
def test_every_special_value_survives(zeros: float) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((7, 5, 3, 3)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38], np.float32)
    special.view(np.uint32)[0] |= 1  # a NaN with a payload
    weight.reshape(-1)[:6] = special
    graph = g.Graph({"x": (5, 4, 4)}, (g.Conv("c", ("x",), weight),), ("c",))
    after = unpack(pack(Program(graph)), "here").graph.nodes[0]
    assert isinstance(after, g.Conv)
    assert np.array_equal(after.weight.view(np.uint32), weight.view(np.uint32))


def test_two_values_of_one_array_name() -> None:
    """Nodes `a` and `a.weight`... whatever the names, each array finds its own."""
    ones = np.ones(3, np.float32)
    nodes = (g.Affine("a", ("x",), ones, 2 * ones), g.Affine("a.scale", ("a",), 3 * ones, 4 * ones))
    graph = g.Graph({"x": (3, 2, 2)}, nodes, ("a.scale",))
    assert fingerprint(unpack(pack(Program(graph)), "here").graph) == fingerprint(graph)


def test_size_of_a_pruned_layer() -> None:
    """10 % of the values plus one bit a weight: (0.1 * 32 + 1) / 32 = 0.131 of dense float32, and the header."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((256, 256, 3, 3)).astype(np.float32)
    weight.reshape(-1)[random.permutation(weight.size)[: weight.size * 9 // 10]] = 0
    graph = g.Graph({"x": (256, 4, 4)}, (g.Conv("c", ("x",), weight),), ("c",))
    assert len(pack(Program(graph))) < 0.1325 * weight.nbytes + 1000


def resnet50(zeros: float = 0.9) -> Program:
    """Its graph after batch norm is folded, 90 % zeros in all convolutions but the stem."""
    random = np.random.default_rng(0)

    def conv(
        name: str, inputs: tuple[str, ...], out: int, into: int, kernel: int, stride: int = 1, **more: Any
    ) -> g.Conv:
        weight = random.standard_normal((out, into, kernel, kernel), np.float32)
        if kernel < 7:
            weight[random.random(weight.shape, np.float32) < zeros] = 0
        bias = random.standard_normal(out, np.float32)
        return g.Conv(name, inputs, weight, bias, stride=(stride,) * 2, padding=(kernel // 2,) * 4, **more)

    relu = {"activation": g.Activation("relu")}
    nodes: list[g.Node] = [
        conv("stem", ("x",), 64, 3, 7, 2, **relu),
        g.Pool("pool", ("stem",), "max", (3, 3), (2, 2), (1, 1, 1, 1)),
    ]
    x, channels = "pool", 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name, stride = f"{stage}.{block}.", 2 if stage and not block else 1
            nodes.append(conv(name + "a", (x,), width, channels, 1, **relu))
            nodes.append(conv(name + "b", (name + "a",), width, width, 3, stride, **relu))
            if block == 0:
                nodes.append(conv(name + "d", (x,), 4 * width, channels, 1, stride))
            short = name + "d" if block == 0 else x
            nodes.append(conv(name + "c", (name + "b", short), 4 * width, width, 1, **relu))
            x, channels = name + "c", 4 * width
    head = random.standard_normal((1000, 2048), np.float32)
    nodes += [g.AdaptivePool("mean", (x,)), g.Flatten("flat", ("mean",)), g.Linear("fc", ("flat",), head)]
    return Program(g.Graph({"x": (3, 224, 224)}, tuple(nodes), ("fc",)))


def test_a_pruned_resnet50_is_small(tmp_path: Path) -> None:
    """How fast it is read: benchmarks/saving.py."""
    assert resnet50().save(tmp_path / "resnet50.budwood") <= 23e6


def test_loading_needs_no_pytorch(tmp_path: Path) -> None:
    small().save(tmp_path / "p.budwood")
    code = (
        "import sys, budwood\n"
        "p = budwood.load_program(sys.argv[1])\n"
        "assert p.classes and p.preprocessing.size == 32 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "p.budwood")], check=True, timeout=60)


# -- what is refused ------------------------------------------------------------------------------------------


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        load_program(tmp_path / "nothing.budwood")
    with pytest.raises(UserError, match="is a folder"):
        load_program(tmp_path)
    for data in (b"x", b"PK\3\4" * 100, seal({}, {}).replace(KEY.encode(), b"another-program")):
        assert "not a program" in refused(data)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        load_program(tmp_path / "empty")


def test_an_unknown_version_is_named() -> None:
    content, tensors = content_of(pack(small()))
    assert "format version 2, this Budwood reads 1" in refused(seal(content | {"version": 2}, tensors))
    assert "format version unknown" in refused(seal(content | {"version": "1"}, tensors))


def test_every_flipped_byte_is_noticed() -> None:
    """Of the tensors and the JSON; flips in the header's own syntax are refused as well."""
    data = pack(small())
    for at in [*range(0, 200), *range(200, len(data), 7)]:
        damaged = bytearray(data)
        damaged[at] ^= 4
        try:
            after = unpack(bytes(damaged), "my.budwood")
        except UserError:
            continue
        assert pack(after) == data, at  # a blank in the header, say


def test_every_length_cut_off_is_noticed() -> None:
    data = pack(small())
    for length in [*range(0, 64), *range(64, len(data), 97), len(data) - 1]:
        refused(data[:length])
    refused(data + b"\0")


Change = Callable[[dict[str, Any], Tensors], object]


def _node(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(node for node in content["nodes"] if node["name"] == name)


LIES: dict[str, tuple[Change, str]] = {
    "an unknown kind": (lambda c, t: _node(c, "b").update(op="Node"), "unknown kind 'Node'"),
    "no kind": (lambda c, t: _node(c, "b").pop("op"), "without an op|object with an op"),
    "an unknown entry": (lambda c, t: _node(c, "b").update(size=3), "unknown entry 'size'"),
    "a missing entry": (lambda c, t: _node(c, "a").pop("weight"), "lacks its weight"),
    "a text for a number": (lambda c, t: _node(c, "a").update(groups="1"), "groups of a Conv: is not a int"),
    "a truth for a number": (lambda c, t: _node(c, "a").update(groups=True), "groups of a Conv: is not a int"),
    "three strides": (lambda c, t: _node(c, "a").update(stride=[1, 1, 1]), "has 3 entries, not 2"),
    "a stride that is no list": (lambda c, t: _node(c, "a").update(stride=1), "is not a list"),
    "an absurd stride": (lambda c, t: _node(c, "a").update(stride=[1 << 40, 1]), "too large"),
    "a stride of zero": (lambda c, t: _node(c, "a").update(stride=[0, 1]), "sizes must be 1 or more"),
    "no groups": (lambda c, t: _node(c, "a").update(groups=0), "0 groups"),
    "an unknown activation": (lambda c, t: _node(c, "b")["activation"].update(kind="sin"), "unknown activation"),
    "a number that is none": (lambda c, t: _node(c, "fc")["activation"].update(slope="0.2"), "is not a float"),
    "two values of one name": (lambda c, t: _node(c, "b").update(name="a"), "two values are called|made by no node"),
    "a value from nowhere": (lambda c, t: _node(c, "b").update(inputs=["z"]), "made by no node before it"),
    "no inputs": (lambda c, t: c.update(inputs=[]), "made by no node"),
    "an input twice": (lambda c, t: c["inputs"].append(c["inputs"][0]), "two inputs have one name"),
    "an input of no pixels": (lambda c, t: c["inputs"][0][1].__setitem__(1, 0), "is no \\(C, H, W\\)"),
    "an input of half a pixel": (lambda c, t: c["inputs"][0][1].__setitem__(1, 0.5), "impossible shape"),
    "an output from nowhere": (lambda c, t: c.update(outputs=["q"]), "made by no node"),
    "no outputs": (lambda c, t: c.update(outputs=[], classes=None), "needs an input and an output"),
    "another shape": (lambda c, t: _node(c, "fc")["weight"].update(shape=[16, 3]), "shape"),
    "a shape below zero": (lambda c, t: _node(c, "a")["weight"].update(shape=[-16, -3, 3, 3]), "impossible shape"),
    "an enormous shape": (lambda c, t: _node(c, "a")["weight"].update(shape=[1 << 31] * 4), "bits its shape needs"),
    "an array used twice": (lambda c, t: _node(c, "a").update(bias=_node(c, "fc")["weight"]), "used twice"),
    "an array that is missing": (lambda c, t: _node(c, "fc")["weight"].update(array="q"), "is missing"),
    "an array too many": (lambda c, t: t.update({"dense:q": np.zeros(2, np.float32)}), "nothing uses"),
    "another type": (lambda c, t: t.update({"dense:fc.weight": t["dense:fc.weight"].astype(np.float64)}), "type"),
    "a value too few": (lambda c, t: t.update({"values:a.weight": t["values:a.weight"][1:]}), "as many values"),
    "bits past the end": (lambda c, t: _bits_past_the_end(t), "as many values"),
    "more classes": (lambda c, t: c["classes"].append("x"), "4 class names"),
    "classes of numbers": (lambda c, t: c.update(classes=[1, 2, 3]), "a class is no text"),
    "an endless name": (lambda c, t: c.update(name="x" * 5000), "its name is no text"),
    "an endless resize": (lambda c, t: c["preprocessing"].update(resize=10**9), "preprocessing is not valid"),
    "a preprocessing of more": (lambda c, t: c["preprocessing"].update(x=1), "preprocessing is not valid"),
    "an entry too many": (lambda c, t: c.update(x=1), "entries"),
    "an entry too few": (lambda c, t: c.pop("source"), "entries"),
    "nodes that are no list": (lambda c, t: c.update(nodes={"a": 1}), "nodes are no list"),
    "too many nodes": (lambda c, t: c.update(nodes=[None] * 20_001), "at most 20,000"),
    "padding without end": (lambda c, t: _node(c, "a").update(padding=[1 << 20] * 4, stride=[9999] * 2), "would take"),
    "an endless map": (lambda c, t: _map(c, 1 << 30), "is a map of 1073741824 x 1073741824 pixels"),
    "cells without end": (lambda c, t: _map(c, 1 << 11), "pools into 2048 x 2048 cells"),
    "an image of gigabytes": (lambda c, t: _enormous(c), "an image would take"),
    "a map too large": (lambda c, t: _padded(c), "an image would take"),
}


def _map(content: dict[str, Any], size: int) -> None:
    """A network that ends in a map of this size; the tensors of what followed are there for a purpose all the same."""
    _node(content, "p").update(size=[size, size])
    _node(content, "fc").update(inputs=["a"])
    _node(content, "f").update(inputs=["a"])
    content["nodes"].insert(-1, {"op": "AdaptivePool", "name": "q", "inputs": ["a"]})
    content["nodes"].insert(-1, {"op": "Flatten", "name": "r", "inputs": ["q"]})
    _node(content, "fc").update(inputs=["r"])


def _enormous(content: dict[str, Any]) -> None:
    """3 x 4096 x 4096 pixels claimed, and sixteen channels made of them."""
    content["inputs"][0][1] = [3, 4096, 4096]
    _node(content, "a").update(stride=[1, 1])


def _padded(content: dict[str, Any]) -> None:
    """The same with a border that makes the map large; the image has 8 x 8 pixels."""
    _map(content, 1)
    _node(content, "q").update(inputs=["wide"])
    content["nodes"].insert(-3, {"op": "Pad", "name": "wide", "inputs": ["p"], "padding": [2000] * 4})


def _bits_past_the_end(tensors: Tensors) -> None:
    """432 weights fill their bytes, so the array is made one shorter."""
    bits = tensors["bits:a.weight"].copy()
    bits[-1] ^= 1
    tensors["bits:a.weight"] = bits


@pytest.mark.parametrize("name", LIES)
def test_a_lie_behind_an_intact_header_is_refused(name: str) -> None:
    change, wanted = LIES[name]
    content, tensors = content_of(pack(small()))
    assert unpack(seal(content, tensors), "here")
    change(content, tensors)
    message = refused(seal(content, tensors))
    assert re.search(wanted, message), message


def test_what_a_plan_would_list_has_an_end() -> None:
    """Vectors, remainders of a stride, and cells for the images that share a vector."""
    wide = g.Graph({"x": (1 << 31,)}, (g.Concat("y", ("x", "x")),), ("y",))
    assert "would take" in refused(pack(Program(wide)))
    patches = g.Conv("y", ("x",), np.ones((1, 1, 256, 256), np.float32), stride=(256, 256))
    assert "windows of 256 x 256" in refused(pack(Program(g.Graph({"x": (1, 256, 512)}, (patches,), ("y",)))))
    cells = g.AdaptivePool("y", ("x",), size=(400, 400))
    assert "400 x 400 cells" in refused(pack(Program(g.Graph({"x": (1, 1, 1)}, (cells,), ("y",)))))


def test_the_wrong_number_of_threads_is_no_damage() -> None:
    with pytest.raises(ValueError, match="threads must be 1 or more, not 0"):
        unpack(pack(small()), "here", threads=0)


def test_an_upsampling_is_no_damage() -> None:
    """The nearest neighbour to twice the size is an adaptive pooling into many cells of a pixel each."""
    graph = g.Graph({"x": (1, 112, 112)}, (g.AdaptivePool("u", ("x",), size=(224, 224)),), ("u",))
    again = unpack(pack(Program(graph)), "here")
    assert again.graph.shapes["u"] == (1, 224, 224)


def test_names_out_of_a_file_do_not_move_the_cursor() -> None:
    content, tensors = content_of(pack(small()))
    _node(content, "b").update(name="\x1b[2J\n" * 100)
    assert "\x1b" not in refused(seal(content, tensors))


def test_nesting_and_numbers_without_end() -> None:
    for text in ("[" * 100_000, "9" * 10_000, "nul", '{"version": 1e999}', "[]", ""):
        from safetensors.numpy import save

        from budwood.engine.saved import digest

        refused(save({}, metadata={KEY: f"{digest(text, {})} {text}"}))


def test_a_concatenation_that_doubles_and_doubles() -> None:
    content, _ = content_of(pack(small()))
    nodes = [{"op": "Concat", "name": f"n{k}", "inputs": [f"n{k - 1}" if k else "x"] * 2} for k in range(40)]
    content.update(nodes=nodes, outputs=["n39"], classes=None)
    assert "would take" in refused(seal(content, {}))


def test_a_field_is_left_out_exactly_where_it_is_the_default() -> None:
    content, _ = content_of(pack(small()))
    assert _node(content, "fc").keys() == {"op", "name", "inputs", "weight", "activation"}
    assert _node(content, "b")["activation"] == {"kind": "clamp", "low": -0.0}
    assert math.copysign(1, _node(content, "b")["activation"]["low"]) == -1
    assert {f.name for f in fields(g.Pool)} > {"kind", "kernel"}


def test_a_node_of_another_library_cannot_be_saved() -> None:
    class Mine(g.Activate):
        pass

    program = small()
    nodes = [Mine(n.name, n.inputs) if isinstance(n, g.Activate) else n for n in program.graph]
    with pytest.raises(ValueError, match="cannot be saved"):
        pack(Program(replace(program.graph, nodes=tuple(nodes))))
