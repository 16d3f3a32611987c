"""Checkpoints on disk: a round trip keeps every bit, and no damaged file is taken for a good one."""

import json
import os
import stat
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from budwood.core.checkpoint import Checkpoint, Lineage, pack, unpack
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.task import Preprocessing

LINEAGE = Lineage(
    architecture="torchvision:resnet18",
    source="somewhere",
    num_classes=3,
    classes=("crack", "void", "päivää"),
    preprocessing=Preprocessing(size=32, resize=40),
    method="gmp",
    where="downstream",
    options={"allocation": "erk", "schedule": {"end": 0.5}},
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def small(density: float = 0.4, seed: int = 0) -> Checkpoint:
    random = torch.Generator().manual_seed(seed)
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=random),
        "conv.bias": torch.randn(4, generator=random),
        "bn.num_batches_tracked": torch.tensor(17),
        "fc.weight": torch.randn(3, 4, generator=random),
    }
    mask = Mask({n: torch.rand(state[n].shape, generator=random) < density for n in ("conv.weight", "fc.weight")})
    mask.apply_(state)
    return Checkpoint(state, mask, LINEAGE)


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.lineage == other.lineage
        and one.mask == other.mask
        and one.state.keys() == other.state.keys()
        and all(t.dtype == other.state[n].dtype and torch.equal(t, other.state[n]) for n, t in one.state.items())
    )


def refused(data: bytes) -> str:
    """The one line that refuses these bytes; anything but a UserError fails the test that asks."""
    with pytest.raises(UserError) as caught:
        unpack(data, "my.safetensors")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("my.safetensors")
    return message


# -- round trip -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=0, max_size=4),
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_round_trip(shape: list[int], dtype: torch.dtype, density: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=random).to(dtype)
    mask = Mask({"a:b.weight": torch.rand(shape, generator=random) < density})
    state = {"a:b.weight": weight, "plain": torch.randn(shape, generator=random).to(dtype), "steps": torch.tensor(3)}
    mask.apply_(state)
    before = Checkpoint(state, mask, LINEAGE)
    after = unpack(pack(before), "here")
    assert same(before, after) and before.digest() == after.digest()


def test_every_special_value_survives() -> None:
    weight = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-45, -0.0, 0.0, 3.0, 0.0])
    mask = Mask({"w": torch.tensor([True] * 7 + [False])})
    after = unpack(pack(Checkpoint({"w": weight}, mask, LINEAGE)), "here")
    assert after.state["w"].view(torch.int32).tolist() == weight.view(torch.int32).tolist()
    assert after.mask == mask, "a kept zero stays kept"


def test_zeros_made_by_multiplication_are_negative_and_still_readable(tmp_path: Path) -> None:
    weight = torch.tensor([-1.0, -2.0, 3.0]) * torch.tensor([1.0, 0.0, 1.0])
    assert bool(torch.signbit(weight[1]))
    before = Checkpoint({"w": weight}, Mask.from_zeros({"w": weight}), LINEAGE)
    before.save(tmp_path / "c.safetensors")
    after = Checkpoint.load(tmp_path / "c.safetensors")
    assert after.state["w"].tolist() == [-1, 0, 3] and after.digest() == before.digest()


def test_memory_layout_is_no_part_of_it() -> None:
    plain = small()
    state = plain.state | {"conv.weight": plain.state["conv.weight"].to(memory_format=torch.channels_last)}
    other = Checkpoint(state, plain.mask, LINEAGE)
    assert other.digest() == plain.digest() and same(unpack(pack(other), "here"), plain)


def test_digest_depends_on_every_part() -> None:
    base = small()
    changed = [
        base.state | {"conv.bias": base.state["conv.bias"] + 1e-7},
        base.state | {"conv.bias": base.state["conv.bias"].double()},
        base.state | {"conv.bias": base.state["conv.bias"].reshape(2, 2)},
        {n: t for n, t in base.state.items() if n != "conv.bias"},
    ]
    digests = {Checkpoint(state, base.mask, LINEAGE).digest() for state in changed}
    digests.add(Checkpoint(base.state, base.mask.without(["fc.weight"]), LINEAGE).digest())
    assert len(digests | {base.digest()}) == 6


def test_a_pruned_weight_that_is_not_zero_is_the_callers_mistake(tmp_path: Path) -> None:
    for value in (1.0, float("nan")):
        checkpoint = Checkpoint({"w": torch.full((2,), value)}, Mask({"w": torch.tensor([True, False])}), LINEAGE)
        with pytest.raises(ValueError, match="not zero"):
            checkpoint.save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def test_size_at_90_percent() -> None:
    """10 % of the values plus one bit a weight: (0.1 * 32 + 1) / 32 = 0.131 of dense float32, and the header."""
    weight = torch.randn(64, 64, 3, 3)
    kept = torch.zeros(weight.numel(), dtype=torch.bool)
    kept[torch.randperm(weight.numel())[: weight.numel() // 10]] = True
    mask = Mask({"w": kept.reshape(weight.shape)})
    mask.apply_({"w": weight})
    assert len(pack(Checkpoint({"w": weight}, mask, LINEAGE))) <= 0.16 * 4 * weight.numel()


def test_to_dense_is_a_stock_state_dict() -> None:
    layer = torch.nn.Linear(4, 3)
    mask = Mask({"weight": torch.rand(3, 4) < 0.5})
    mask.apply_(layer)
    loaded = unpack(pack(Checkpoint(dict(layer.state_dict()), mask, LINEAGE)), "here")
    torch.nn.Linear(4, 3).load_state_dict(loaded.to_dense(), strict=True)


# -- damage ---------------------------------------------------------------------------------------------------


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, body: bytes) -> bytes:
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def with_claim(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A good file whose metadata `change` has edited."""
    header, body = header_of(pack(small()))
    stored = json.loads(header["__metadata__"]["budwood"])
    change(stored)
    header["__metadata__"]["budwood"] = json.dumps(stored)
    return with_header(header, body)


def with_tensors(change: Callable[[dict[str, Tensor]], Any]) -> bytes:
    """A well-formed safetensors file with the same metadata whose tensors `change` has edited."""
    data = pack(small())
    tensors = safetensors.torch.load(data)
    change(tensors)
    return safetensors.torch.save(tensors, metadata=header_of(data)[0]["__metadata__"])


def test_truncated_anywhere() -> None:
    data = pack(small())
    for length in range(len(data)):
        refused(data[:length])


def test_any_byte_flipped() -> None:
    """Refused, or (white space of the header, a number's last digit) exactly the same checkpoint."""
    original = small()
    data, random = pack(original), np.random.default_rng(0)
    harmless = 0
    for position in random.permutation(len(data))[:600]:
        damaged = bytearray(data)
        damaged[position] ^= int(random.integers(1, 256))
        try:
            loaded = unpack(bytes(damaged), "my.safetensors")
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert same(loaded, original), f"byte {position} changed the checkpoint unnoticed"
            harmless += 1
    assert harmless < 30


def test_bytes_appended() -> None:
    for tail in (b"\0", b"x" * 1000):
        refused(pack(small()) + tail)


CLAIMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another mask's digest": lambda s: s.update(mask_digest="0" * 64),
    "another content's digest": lambda s: s.update(content_digest="0" * 64),
    "another lineage": lambda s: s["lineage"].update(classes=["void", "crack", "päivää"]),
    "another architecture": lambda s: s["lineage"].update(architecture="torchvision:resnet34"),
    "a wrong sparsity": lambda s: s.update(sparsity=s["sparsity"] + 0.001),
    "a sparsity that is NaN": lambda s: s.update(sparsity=float("nan")),
    "NaN in the lineage": lambda s: s["lineage"]["options"].update(x=float("nan")),
    "infinite preprocessing": lambda s: s["lineage"]["preprocessing"].update(mean=[float("inf")] * 3),
    "a huge shape": lambda s: s["shapes"].update({"conv.weight": [10**18, 10**18]}),
    "an absurdly long shape": lambda s: s["shapes"].update({"conv.weight": [1] * 100_000}),
    "a negative shape": lambda s: s["shapes"].update({"conv.weight": [-4, -27]}),
    "a shape with zero": lambda s: s["shapes"].update({"conv.weight": [0, 10**9]}),
    "a shape of the same size": lambda s: s["shapes"].update({"conv.weight": [3, 4, 3, 3]}),
    "a shape that is text": lambda s: s["shapes"].update({"conv.weight": "big"}),
    "a mask of a tensor that is not there": lambda s: s["shapes"].update({"extra": [2]}),
    "a mask less": lambda s: s["shapes"].pop("conv.weight"),
    "a field more": lambda s: s.update(extra=1),
    "a field less": lambda s: s.pop("lineage_digest"),
    "another format": lambda s: s.update(format="other"),
    "no classes": lambda s: s["lineage"].update(num_classes=0),
    "a where that is none": lambda s: s["lineage"].update(where="nowhere"),
}


@pytest.mark.parametrize("change", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_that_is_not_true(change: Callable[[dict[str, Any]], Any]) -> None:
    refused(with_claim(change))


def test_a_later_format_version_asks_for_an_upgrade() -> None:
    assert "upgrade" in refused(with_claim(lambda s: s.update(version=2)))


def shifted_bits(tensors: dict[str, Tensor]) -> None:
    """108 weights need 13.5 bytes: set one of the four bits past the end."""
    tensors["bits:conv.weight"][-1] |= 1


TENSORS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a value": lambda t: t["values:conv.weight"].add_(1),
    "a bias": lambda t: t["dense:conv.bias"].mul_(-1),
    "one bit": lambda t: t["bits:conv.weight"].__setitem__(0, t["bits:conv.weight"][0] ^ 1),
    "two bits": lambda t: t["bits:conv.weight"].__setitem__(0, t["bits:conv.weight"][0] ^ 0xFF),
    "bits past the end": shifted_bits,
    "a byte of bits more": lambda t: t.update({"bits:conv.weight": torch.zeros(15, dtype=torch.uint8)}),
    "bits of another type": lambda t: t.update({"bits:conv.weight": t["bits:conv.weight"].to(torch.int32)}),
    "bits in two dimensions": lambda t: t.update({"bits:conv.weight": t["bits:conv.weight"].reshape(2, 7)}),
    "a value more": lambda t: t.update({"values:fc.weight": torch.zeros(t["values:fc.weight"].numel() + 1)}),
    "a value less": lambda t: t.update({"values:fc.weight": t["values:fc.weight"][1:].clone()}),
    "values of another type": lambda t: t.update({"values:fc.weight": t["values:fc.weight"].double()}),
    "values in two dimensions": lambda t: t.update({"values:fc.weight": t["values:fc.weight"][None].clone()}),
    "no bits": lambda t: t.pop("bits:fc.weight"),
    "no values": lambda t: t.pop("values:fc.weight"),
    "dense and packed": lambda t: t.update({"dense:fc.weight": torch.zeros(3, 4)}),
    "an empty weight": lambda t: t.update({"dense:fc.weight": torch.zeros(0, 4)}),
    "an unknown kind": lambda t: t.update({"other:fc.weight": torch.zeros(1)}),
    "a name without kind": lambda t: t.update({"fc.weight": torch.zeros(1)}),
    "values without a shape": lambda t: t.update({"values:other": torch.zeros(1)}),
    "a tensor more": lambda t: t.update({"dense:other": torch.zeros(1)}),
    "a tensor less": lambda t: t.pop("dense:conv.bias"),
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_those_of_the_digest(change: Callable[[dict[str, Tensor]], Any]) -> None:
    refused(with_tensors(change))


def test_an_empty_weight_that_claims_its_shape() -> None:
    data = with_tensors(
        lambda t: (t.pop("bits:fc.weight"), t.pop("values:fc.weight"), t.update({"dense:fc.weight": torch.zeros(0, 4)}))
    )
    header, body = header_of(data)
    stored = json.loads(header["__metadata__"]["budwood"])
    stored["shapes"]["fc.weight"] = [0, 4]
    header["__metadata__"]["budwood"] = json.dumps(stored)
    refused(with_header(header, body))


def test_headers_that_ask_for_the_impossible() -> None:
    header, body = header_of(pack(small()))
    for claim in (10**18, 2**64 - 1, 2**31):
        refused(struct.pack("<Q", claim) + b"{}" + body)
    for shape in ([2**40], [2**62, 4], [2**32, 2**32], [-1], [0, 2**62]):
        wrong = json.loads(json.dumps(header))
        wrong["values:conv.weight"]["shape"] = shape
        refused(with_header(wrong, body))
    for dtype in ("F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "XX", 7):
        wrong = json.loads(json.dumps(header))
        wrong["values:conv.weight"]["dtype"] = dtype
        refused(with_header(wrong, body))
    for offsets in ([0, 10**15], [8, 4], [-4, 4], [0]):
        wrong = json.loads(json.dumps(header))
        wrong["values:conv.weight"]["data_offsets"] = offsets
        refused(with_header(wrong, body))


@pytest.mark.parametrize("depth", [100, 300, 100_000])
def test_deeply_nested_json(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    header, body = header_of(pack(small()))
    stored = header["__metadata__"]["budwood"]
    refused(with_header('{"__metadata__":' + nested + "}", body))
    refused(with_header(nested, b""))
    header["__metadata__"]["budwood"] = nested
    refused(with_header(header, body))
    header["__metadata__"]["budwood"] = stored.replace('"options":{', f'"options":{{"deep":{nested},')
    refused(with_header(header, body))


def test_metadata_of_another_kind() -> None:
    _, body = header_of(pack(small()))
    for metadata in (
        "text",
        [1],
        {"budwood": {"a": 1}},
        {"budwood": None},
        {"budwood": "\ud800"},
        {"budwood": "{}"},
        {},
    ):
        refused(with_header({"__metadata__": metadata}, b""))
        refused(with_header({"__metadata__": metadata}, body))


def test_other_peoples_files() -> None:
    assert "not a checkpoint" in refused(safetensors.torch.save({"w": torch.ones(2)}))
    assert "not a checkpoint" in refused(safetensors.torch.save({"w": torch.ones(2)}, metadata={"format": "pt"}))
    for data in (b"x", b"\0" * 8, b"\0" * 100, b"PK\3\4" + b"\0" * 100, b"{}", os.urandom(64)):
        refused(data)


def test_what_it_costs_to_refuse_a_huge_claim() -> None:
    data = with_claim(lambda s: s["shapes"].update({"conv.weight": [2**40, 2**20]}))
    tracemalloc.start()
    try:
        refused(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


# -- the file system ------------------------------------------------------------------------------------------


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "empty", tmp_path / "no", tmp_path / "empty" / "x", tmp_path / ("n" * 5000)):
        with pytest.raises(UserError) as caught:
            Checkpoint.load(path)
        assert "\n" not in str(caught.value)


def test_an_absurdly_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    try:
        os.truncate(path, 20 * 2**30)
    except OSError:
        pytest.skip("this file system has no sparse files")
    with pytest.raises(UserError, match="bytes"):
        Checkpoint.load(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [28, 5], ids=["full", "broken"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "c.safetensors"
    old, new = small(seed=1), small(seed=2)
    old.save(path)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(UserError, match=os.strerror(number)) as caught:
            new.save(path)
    assert "\n" not in str(caught.value)
    assert same(Checkpoint.load(path), old) and list(tmp_path.iterdir()) == [path]
    new.save(path)
    assert same(Checkpoint.load(path), new)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "c", tmp_path / "folder", Path("/proc/no/such/c"), Path("/dev/full/c")):
        with pytest.raises(UserError, match="cannot write") as caught:
            small().save(path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(UserError, match="cannot write"):
            small().save(folder / "c")
    finally:
        folder.chmod(0o700)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        small().save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_folders_on_the_way_are_made_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.safetensors"
    umask = os.umask(0o022)
    try:
        assert small().save(path) == path.stat().st_size
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
