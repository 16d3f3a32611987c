"""TensorFlow's checkpoints: two that TensorFlow wrote, and others written here from the description of the format."""

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.core.errors import UserError
from budwood.models.files import read
from budwood.models.published import bundle

GOLDEN = Path(__file__).parents[1] / "golden/tensorflow"
F = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8


def variables(path: Path) -> dict[str, torch.Tensor]:
    return bundle.read(path.read_bytes(), path)


def test_what_tensorflow_wrote() -> None:
    expected = {
        "resnet_model/initial_conv/weights": F, "resnet_model/initial_conv/mask": (F > 0.5).float(),
        "global_step": torch.tensor(160000), "resnet_model/empty": torch.zeros(0, 3),
        "double": torch.tensor([1.5, -2.25], dtype=torch.float64), "half": torch.tensor([1.5, -2.25]).half(),
        "bf": torch.tensor([1.5, -2.25]).bfloat16(), "yes": torch.tensor([True, False]),
        "int8": torch.tensor([-3, 4], dtype=torch.int8), "int16": torch.tensor([-300, 4], dtype=torch.int16),
        "uint8": torch.tensor([200], dtype=torch.uint8), "int32": torch.tensor([[-70000]], dtype=torch.int32),
    }  # fmt: skip
    found = variables(GOLDEN / "model.ckpt-7.index")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_two_data_files() -> None:
    found = variables(GOLDEN / "two.index")
    assert found.keys() == {"x", "y"} and torch.equal(found["x"], F) and torch.equal(found["y"], 2 * F)


# -- written here ---------------------------------------------------------------------------------------------


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n % 128 + 128]) + varint(n // 128)


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number * 8) + varint(value)
    return varint(number * 8 + 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """With one restart, and its byte and checksum behind it."""
    made, last = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last)))
        made += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return made + struct.pack("<II", 0, 1) + b"\0" + bytes(4)


def table(blocks: list[bytes]) -> bytes:
    made, handles = b"", []
    for i, one in enumerate(blocks):
        handles.append((b"%05d" % i, varint(len(made)) + varint(len(one) - 5)))
        made += one
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(made)) + varint(len(index) - 5)
    return made + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))


def entry(array: np.ndarray, offset: int, kind: int = 1) -> bytes:
    return sized(array.shape, array.nbytes, offset, kind)


def sized(shape: Sequence[int], size: int, offset: int = 0, kind: int = 1) -> bytes:
    sides = b"".join(field(2, field(1, side)) for side in shape)
    return field(1, kind) + field(2, sides) + field(4, offset) + field(5, size) + varint(6 * 8 + 5) + bytes(4)


def write(prefix: Path, arrays: dict[str, np.ndarray], each: int = 4) -> Path:
    """A bundle of float32 variables, so many entries a block; the .index file's path."""
    values, entries = b"", [HEADER]
    for name, array in sorted(arrays.items()):
        entries.append((name.encode(), entry(array, len(values))))
        values += array.astype("<f4").tobytes()
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(values)
    path = prefix.with_name(f"{prefix.name}.index")
    path.write_bytes(table([block(entries[i : i + each]) for i in range(0, len(entries), each)]))
    return path


@given(st.dictionaries(st.text("ab/_1", max_size=12).filter(bool), st.lists(st.integers(0, 4), max_size=3)))
@settings(max_examples=50, deadline=None)
def test_any_names_and_shapes(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = variables(write(tmp_path_factory.mktemp("b") / "w", arrays))
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name].numpy(), array) for name, array in arrays.items())


def refused(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_what_is_missing_or_damaged_is_said_in_one_line(tmp_path: Path) -> None:
    one = np.ones((2, 2), np.float32)
    path = write(tmp_path / "w", {"a": one, "b": one})
    data = path.with_name("w.data-00000-of-00001")
    refused(data, r"name the \.index file beside it")
    data.write_bytes(data.read_bytes()[:-1])
    refused(path, "claims more than its data files hold")
    data.unlink()
    refused(path, r"needs w\.data-00000-of-00001 beside it: No such file")
    data.write_bytes(bytes(64))
    good = entry(one, 0)
    for entries, match in (
        ([HEADER, (b"a", good + field(7, b""))], "stored in slices"),
        ([HEADER, (b"a", entry(one, 60))], "not of its size"),
        ([HEADER, (b"a", entry(one, 0, 2))], "not of its size"),
        ([HEADER, (b"a", good + field(3, 1))], "claims more"),
        ([HEADER, *((b"%03d" % i, good) for i in range(5))], "claims more than its data files hold"),
        ([(b"", field(1, 0)), (b"a", good)], "no data file"),
        ([(b"", field(1, 1) + field(2, 1)), (b"a", good)], "another byte order"),
        ([(b"a", good)], "no header"),
        ([HEADER, (b"a" * 1025, good)], "not of its length"),
        ([HEADER, (b"a", good[:-1])], "cut short"),
        ([HEADER, (b"a", sized([0, 2**64 - 1], 0))], "of no shape"),
        ([HEADER, (b"a", sized([2**31 - 1] * 3 + [0], 0))], "of no shape"),
        ([HEADER, (b"a", sized([0] * 9, 0))], "of no shape"),
        ([HEADER, (b"\xff", good)], "utf-8"),
    ):
        path.write_bytes(table([block(entries)]))
        refused(path, match)
    packed = bytearray(block([HEADER]))
    packed[-5] = 1
    path.write_bytes(table([bytes(packed)]))
    refused(path, "packed")
    whole = block([HEADER, (b"a", good)])
    index = block([(b"%d" % i, varint(0) + varint(len(whole) - 5)) for i in range(9)])
    footer = varint(0) + varint(0) + varint(len(whole)) + varint(len(index) - 5)
    path.write_bytes(whole + index + footer.ljust(40, b"\0") + bundle.MAGIC)
    refused(path, "overlap")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    for place in GOLDEN.glob("model.ckpt-7.*"):
        shutil.copy(place, tmp_path)
    path = tmp_path / "model.ckpt-7.index"
    data = path.read_bytes()
    for end in range(0, len(data) - bundle.FOOTER, 7):
        path.write_bytes(data[:end] + data[-bundle.FOOTER :])
        refused(path, "TensorFlow")
