"""A pruned network on disk: one safetensors file of packed non-zeros, bitmasks and checked metadata."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from .errors import UserError
from .files import digest_of, metadata_of, read_bytes, write_atomic
from .mask import Mask
from .task import Preprocessing

FORMAT = "budwood-checkpoint"
FORMAT_VERSION = 1


class Lineage(BaseModel):
    """Where a network comes from and what was done to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    architecture: str
    """The name that builds it, as `timm:resnet50`."""
    source: str = ""
    """Where its first weights came from."""
    num_classes: int = Field(ge=1)
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing
    method: str = "dense"
    where: Literal["none", "upstream", "downstream", "one-shot"] = "none"
    options: dict[str, Any] = {}
    task: str | None = None
    parent: str | None = None
    """Digest of the checkpoint this one was made from."""
    versions: dict[str, str] = {}
    mask_inferred: bool = False
    """True where the mask was read from the zeros of a file that carried none."""


class _Stored(BaseModel):
    """The JSON beside the tensors."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["budwood-checkpoint"]
    version: int
    lineage: Lineage
    shapes: dict[str, list[int]]
    sparsity: float
    mask_digest: str
    content_digest: str
    lineage_digest: str


@dataclass(frozen=True)
class Checkpoint:
    """A stock `state_dict`, its mask and its lineage."""

    state: dict[str, Tensor]
    mask: Mask
    lineage: Lineage

    def to_dense(self) -> dict[str, Tensor]:
        """A state_dict that plain torchvision or timm loads strictly; pruned weights are zero."""
        return dict(self.state)

    def digest(self) -> str:
        """sha256 (hex) over every tensor and the mask: what a run that starts here depends on."""
        return content_digest(self.state, self.mask)

    def save(self, path: Path) -> int:
        """Write one file atomically and return its size in bytes.

        Raises ValueError if a pruned weight is not zero: such a checkpoint would lose it.
        """
        data = pack(self)
        write_atomic(path, data)
        return len(data)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read and check everything; UserError in one line where the file is missing, foreign or damaged."""
        return unpack(read_bytes(path), str(path))


def content_digest(state: Mapping[str, Tensor], mask: Mask) -> str:
    """sha256 (hex) over names, shapes, types and values. A pruned weight counts as +0 even where it is -0, as it is
    after a multiplication by the mask: the file does not hold it."""
    sha = hashlib.sha256(mask.digest().encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        if name in mask:
            tensor = tensor.masked_fill(~mask[name], 0)
        sha.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()


def pack(checkpoint: Checkpoint) -> bytes:
    """The file's bytes. Per tensor with pruned weights `values:NAME` (the kept ones in row-major order) and
    `bits:NAME` (np.packbits of the mask, first weight in the highest bit); per other tensor `dense:NAME`."""
    wrong = checkpoint.mask.violations(checkpoint.state)
    if wrong:
        raise ValueError(f"pruned weights are not zero: {wrong}")
    tensors: dict[str, Tensor] = {}
    for name, value in checkpoint.state.items():
        plain = value.detach().cpu().contiguous()
        kept = checkpoint.mask.get(name)
        if kept is not None and not bool(kept.all()):
            tensors[f"values:{name}"] = plain[kept]
            tensors[f"bits:{name}"] = torch.from_numpy(np.packbits(kept.numpy()))
        else:
            tensors[f"dense:{name}"] = plain.clone()
    stored = _Stored(
        format="budwood-checkpoint",
        version=FORMAT_VERSION,
        lineage=checkpoint.lineage,
        shapes={name: list(shape) for name, shape in checkpoint.mask.shapes().items()},
        sparsity=checkpoint.mask.sparsity,
        mask_digest=checkpoint.mask.digest(),
        content_digest=checkpoint.digest(),
        lineage_digest=digest_of(checkpoint.lineage.model_dump(mode="json")),
    )
    return safetensors.torch.save(tensors, metadata={"budwood": stored.model_dump_json()})


def is_checkpoint(data: bytes) -> bool:
    """True if these bytes claim to be a file of ours."""
    return "budwood" in (metadata_of(data) or {})


def unpack(data: bytes, where: str) -> Checkpoint:
    """Bytes -> Checkpoint, every claim of the file checked. `where` names it in the message."""

    def damaged(what: str) -> UserError:
        return UserError(f"{where} is damaged ({what}); make or copy it again")

    metadata = metadata_of(data)
    if metadata is None:
        raise damaged("it has no readable header")
    if "budwood" not in metadata:
        raise UserError(f"{where} is a safetensors file but not a checkpoint of Budwood's")
    try:
        stored = _Stored.model_validate_json(metadata["budwood"])
        lineage_digest = digest_of(stored.lineage.model_dump(mode="json"))
    except (ValidationError, ValueError, TypeError, RecursionError):
        raise damaged("its metadata is not valid") from None
    if stored.version != FORMAT_VERSION:
        raise UserError(f"{where} has format version {stored.version}, this Budwood reads {FORMAT_VERSION}; upgrade")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # safetensors raises several kinds for broken headers, offsets and lengths
        raise damaged(str(error)) from None
    state, entries = _unpack_tensors(tensors, stored.shapes, damaged)
    mask = Mask(entries)
    if mask.digest() != stored.mask_digest:
        raise damaged("the mask's digest differs")
    if content_digest(state, mask) != stored.content_digest:
        raise damaged("the weights' digest differs")
    if lineage_digest != stored.lineage_digest:
        raise damaged("the digest of its lineage differs")
    if not abs(mask.sparsity - stored.sparsity) <= 1e-9:  # this way round, NaN is refused
        raise damaged("the sparsity it claims is not the mask's")
    return Checkpoint(state, mask, stored.lineage)


def _unpack_tensors(
    tensors: dict[str, Tensor], shapes: dict[str, list[int]], damaged: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    state: dict[str, Tensor] = {}
    entries: dict[str, Tensor] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(":")
        if kind == "dense":
            state[name] = value
        elif kind not in ("values", "bits") or name not in shapes:
            raise damaged(f"unexpected tensor {key!r}")
    for name, shape in shapes.items():
        bits, values = tensors.get(f"bits:{name}"), tensors.get(f"values:{name}")
        if name in state:
            if bits is not None or values is not None or list(state[name].shape) != shape or 0 in shape:
                raise damaged(f"{name!r} does not have the shape it claims")
            entries[name] = torch.ones(shape, dtype=torch.bool)
            continue
        if bits is None or values is None:
            raise damaged(f"{name!r} is missing")
        entries[name] = kept = _unpack_bits(bits, shape, f"{name!r}", damaged)
        if values.ndim != 1 or values.numel() != int(torch.count_nonzero(kept)):
            raise damaged(f"{name!r} does not have as many values as its mask keeps")
        state[name] = torch.zeros(shape, dtype=values.dtype)
        state[name][kept] = values
    return state, entries


def _unpack_bits(bits: Tensor, shape: list[int], name: str, damaged: Any) -> Tensor:
    """Bits -> bool tensor of `shape`. The size is compared before anything of that size is made."""
    count = 1
    for extent in shape:
        if extent < 1:
            raise damaged(f"{name} has an impossible shape")
        count *= extent
    if bits.dtype != torch.uint8 or bits.ndim != 1 or bits.numel() != (count + 7) // 8:
        raise damaged(f"the mask of {name} does not fit its shape")
    flat = np.unpackbits(bits.numpy())
    if flat[count:].any():
        raise damaged(f"the mask of {name} has bits past its end")
    return torch.from_numpy(flat[:count].astype(bool)).reshape(shape)
