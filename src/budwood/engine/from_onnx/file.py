"""An ONNX file as plain Python values. The file is not trusted: whatever is wrong with it is a UserError.

Nothing is allocated by what a file declares, only by what it holds; external data may lie beside the file only.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import UserError
from ..views import MOST_DIMENSIONS

Constant = NDArray[Any]
LARGEST_FILE = 1 << 31  # protobuf's own limit
OPSETS = range(13, 22)

# TensorProto.DataType -> bytes an element takes in raw data
FLOATS = {1: 4, 10: 2, 11: 8, 16: 2}  # float, float16, double, bfloat16
OTHERS = {2: 1, 3: 1, 5: 2, 6: 4, 7: 8, 9: 1}  # uint8, int8, int16, int32, int64, bool


@dataclass(frozen=True)
class Op:
    """A node of the file. A missing optional input is ''. Attributes are numbers, strings, lists or arrays.

    `fault` says in what the node is not as ONNX defines this operator; it is '' if nothing is wrong.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    def integer(self, name: str, default: int) -> int:
        found: int = self._get(name, int, default)
        return found

    def number(self, name: str, default: float) -> float:
        return float(self._get(name, float, default))

    def text(self, name: str, default: str) -> str:
        found: str = self._get(name, str, default)
        return found

    def integers(self, name: str, default: Iterable[int] = ()) -> tuple[int, ...]:
        found: tuple[int, ...] = self._get(name, tuple, tuple(default))
        return found

    def _get(self, name: str, wanted: Any, default: Any) -> Any:
        value: Any = self.attributes.get(name, default)
        if not isinstance(value, wanted) or (wanted is tuple and any(type(v) is not int for v in value)):
            raise ValueError(f"the attribute {name} is of the wrong type")
        return value


@dataclass(frozen=True)
class Model:
    """`title` is what messages call it. `inputs`: name -> its dimensions, None where one is left open."""

    title: str
    inputs: dict[str, tuple[int | None, ...]]
    output: str
    ops: tuple[Op, ...]
    constants: dict[str, Constant]


def printable(text: str, most: int = 80) -> str:
    """A name out of a file, or a message with one, fit to be shown: short, and without control characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:most])
    return shown if len(text) <= most else shown[:-3] + "..."


def _text(field: str | bytes) -> str:
    """Protobuf gives bytes where a name is not UTF-8."""
    if isinstance(field, bytes):
        raise ValueError("it holds a name that is not text")
    return field


def read_model(source: str | os.PathLike[str] | bytes) -> Model:
    """The model in a file, or in its bytes (which cannot refer to external data).

    Raises UserError where it cannot be read, is damaged, or is of an opset that is not known here.
    """
    path = None if isinstance(source, bytes) else Path(source)
    title = "the ONNX model" if path is None else printable(path.name)
    try:
        import onnx
    except ImportError:
        raise UserError("onnx is not installed; pip install 'budwood[onnx]'") from None
    from google.protobuf.message import DecodeError

    data = source if isinstance(source, bytes) else _bytes_of(Path(source))
    try:
        proto = onnx.ModelProto.FromString(data)
        return _model(proto, title, path.parent if path else None)
    except UserError:
        raise
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, OverflowError, MemoryError) as e:
        raise UserError(f"{title}: not a sound ONNX file: {printable(str(e), 300) or type(e).__name__}") from None


def read_properties(source: str | os.PathLike[str] | bytes) -> dict[str, str]:
    """What a model says of itself beside its graph (`metadata_props`): free text, as untrusted as the rest.

    Raises UserError where it cannot be read or is damaged.
    """
    title = "the ONNX model" if isinstance(source, bytes) else printable(Path(source).name)
    try:
        import onnx
    except ImportError:
        raise UserError("onnx is not installed; pip install 'budwood[onnx]'") from None
    from google.protobuf.message import DecodeError

    data = source if isinstance(source, bytes) else _bytes_of(Path(source))
    try:
        proto = onnx.ModelProto.FromString(data)
        return {_text(entry.key): _text(entry.value) for entry in proto.metadata_props}
    except (DecodeError, ValueError, TypeError, MemoryError) as e:
        raise UserError(f"{title}: not a sound ONNX file: {printable(str(e), 300) or type(e).__name__}") from None


def with_properties(data: bytes, properties: dict[str, str]) -> bytes:
    """A model's bytes with these properties and no others; our own model, which is trusted."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    onnx.helper.set_model_props(model, properties)
    return bytes(model.SerializeToString())


def _bytes_of(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is not a file")
            if status.st_size >= LARGEST_FILE:
                raise UserError(f"{path} is larger than an ONNX file can be; keep the weights as external data")
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot read {path}: {reason}") from None


def _model(proto: Any, title: str, folder: Path | None) -> Model:
    opsets = {_text(entry.domain) or "ai.onnx": entry.version for entry in proto.opset_import}
    opset: int = opsets.get("ai.onnx", 0)
    if opset not in OPSETS:
        known = f"{OPSETS[0]} to {OPSETS[-1]}"
        raise UserError(f"{title}: needs an ONNX opset from {known}, its own is {opset or 'not given'}")
    graph = proto.graph
    if len(graph.sparse_initializer):
        raise ValueError("sparse initializers are not supported")
    reader = _Tensors(folder)
    constants = {_text(tensor.name): reader.array(tensor) for tensor in graph.initializer}
    inputs = {_text(value.name): _dimensions(value) for value in graph.input if value.name not in constants}
    if not inputs or not len(graph.output):
        raise ValueError("it has no input or no output")
    ops = tuple(_op(node, reader, opset) for node in graph.node)
    return Model(title, inputs, _text(graph.output[0].name), ops, constants)


def _dimensions(value: Any) -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if tensor.elem_type not in FLOATS or not tensor.HasField("shape"):
        raise ValueError(f"the input {value.name} is no tensor of floating-point numbers with a shape")
    if len(tensor.shape.dim) > MOST_DIMENSIONS:
        raise ValueError(f"the input {value.name} has {len(tensor.shape.dim)} dimensions")
    return tuple(d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim)


def _op(node: Any, reader: _Tensors, opset: int) -> Op:
    from onnx import defs

    attributes = {}
    for attribute in node.attribute:
        name = _text(attribute.name)
        match attribute.type:
            case 1:
                attributes[name] = attribute.f
            case 2:
                attributes[name] = attribute.i
            case 3:
                attributes[name] = attribute.s.decode("utf-8", "replace")
            case 4:
                attributes[name] = reader.array(attribute.t)
            case 6:
                attributes[name] = tuple(attribute.floats)
            case 7:
                attributes[name] = tuple(attribute.ints)
            case _:  # a graph, a type, ...: no operator that is read here has them
                attributes[name] = None
    domain, kind, fault = _text(node.domain), _text(node.op_type), ""
    if domain not in ("", "ai.onnx"):
        kind = f"{domain}.{kind}"
    elif defs.has(kind, opset):
        fault = _fault(node, opset)
    else:
        kind = f"{kind} (none in opset {opset})"
    inputs, outputs = (tuple(map(_text, names)) for names in (node.input, node.output))
    return Op(kind, _text(node.name), inputs, outputs, attributes, fault)


def _fault(node: Any, opset: int) -> str:
    """In what the node is not as this operator is defined; '' if it is."""
    from onnx import defs

    schema: Any = defs.get_schema(node.op_type, opset)
    for what, count, fewest, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not fewest <= count <= most:
            return f"has {count} {what}"
    given = {attribute.name: attribute.type for attribute in node.attribute}
    for name, kind in given.items():
        if name not in schema.attributes or schema.attributes[name].type.value != kind:
            return f"must not have the attribute {printable(name)}, or not of this type"
    missing = [name for name, a in schema.attributes.items() if a.required and name not in given]
    return f"needs the attribute {missing[0]}" if missing else ""


class _Tensors:
    """Reads TensorProtos. Tensors may share external data, but together may not be larger than twice its files."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: dict[Path, int] = {}
        self.read = 0

    def array(self, tensor: Any) -> Constant:
        """The tensor; all floating-point types become float32. ValueError where it is not what it says it is."""
        from onnx import numpy_helper

        dims = tuple(tensor.dims)
        where = f"the tensor {printable(_text(tensor.name))}"
        size = FLOATS.get(tensor.data_type) or OTHERS.get(tensor.data_type)
        if size is None:
            raise ValueError(f"{where} is of a type that is not supported ({tensor.data_type})")
        if len(dims) > MOST_DIMENSIONS or any(d < 0 for d in dims):
            raise ValueError(f"{where} has the shape {dims}")
        if tensor.data_location == tensor.EXTERNAL:
            self._load(tensor, math.prod(dims) * size, where)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != math.prod(dims) * size:
            raise ValueError(f"{where} of shape {dims} holds {len(tensor.raw_data)} bytes")
        array = np.asarray(numpy_helper.to_array(tensor))
        if array.shape != dims:
            raise ValueError(f"{where} is not of the shape it declares")
        return array.astype(np.float32, copy=False) if tensor.data_type in FLOATS else array

    def _load(self, tensor: Any, wanted: int, where: str) -> None:
        from onnx import external_data_helper

        if self.folder is None:
            raise ValueError(f"{where} lies in another file, which bytes cannot refer to")
        place = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
        location = place.get("location", "")
        # onnx checks this too; a version that does not must not open a door.
        file = self.folder / location
        inside = location and not os.path.isabs(location) and ".." not in Path(location).parts
        if not inside or not file.resolve().is_relative_to(self.folder.resolve()) or not file.is_file():
            raise ValueError(f"{where}: its data is not in a file beside the model ({location})")
        size = self.files[file.resolve()] = file.stat().st_size
        offset = int(place.get("offset", 0))
        length = int(place.get("length", size - offset))
        if offset < 0 or length != wanted or offset + length > size:
            raise ValueError(f"{where}: {location} does not hold its {wanted} bytes")
        self.read += length
        if self.read > 2 * sum(self.files.values()):
            raise ValueError(f"{where}: too many tensors share their data")
        external_data_helper.load_external_data_for_tensor(tensor, os.fspath(self.folder))
