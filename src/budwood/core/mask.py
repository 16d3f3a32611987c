"""Which weights are kept: the source of truth for everything that touches a pruned network."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import UserError


class Mask(Mapping[str, Tensor]):
    """Parameter name -> bool tensor of the parameter's shape, True = kept. Read-only.

    Indexing answers a copy, so no holder of a mask can change it. Parameters it does not name are dense.
    Raises ValueError for an entry that is not a bool tensor with at least one element.
    """

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        for name, kept in entries.items():
            if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.numel() == 0:
                raise ValueError(f"mask of {name!r} must be a bool tensor with at least one element")
        self._entries = {name: entries[name].detach().to("cpu", copy=True).contiguous() for name in sorted(entries)}
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}

    # -- construction -------------------------------------------------------------------------------------

    @classmethod
    def ones(cls, tensors: Mapping[str, Tensor]) -> "Mask":
        """Everything kept, for parameters of these names and shapes."""
        return cls({name: torch.ones(t.shape, dtype=torch.bool) for name, t in tensors.items()})

    @classmethod
    def from_zeros(cls, tensors: Mapping[str, Tensor]) -> "Mask":
        """Read off the zeros (a NaN counts as kept). The caller says to the user that this was done."""
        return cls({name: t != 0 for name, t in tensors.items()})

    # -- a mapping ----------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        return self._entries[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._entries.keys() == other._entries.keys() and all(
            torch.equal(kept, other._entries[name]) for name, kept in self._entries.items()
        )

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept} of {self.total} kept, sparsity {self.sparsity:.4f})"

    # -- numbers ------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        return sum(kept.numel() for kept in self._entries.values())

    @property
    def kept(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Kept weights per parameter."""
        return {name: int(torch.count_nonzero(kept)) for name, kept in self._entries.items()}

    @property
    def density(self) -> float:
        return self.kept / self.total if self.total else 1.0

    @property
    def sparsity(self) -> float:
        return 1.0 - self.density

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(kept.shape) for name, kept in self._entries.items()}

    def digest(self) -> str:
        """sha256 (hex) of names, shapes and bits: equal masks, and only they, have equal digests."""
        sha = hashlib.sha256()
        for name, kept in self._entries.items():
            sha.update(f"{name}\0{tuple(kept.shape)}\0".encode())
            sha.update(np.packbits(kept.numpy()).tobytes())
        return sha.hexdigest()

    # -- other masks --------------------------------------------------------------------------------------

    def restricted(self, names: Iterable[str]) -> "Mask":
        """The entries of these names."""
        wanted = set(names)
        return Mask({name: kept for name, kept in self._entries.items() if name in wanted})

    def without(self, names: Iterable[str]) -> "Mask":
        """All entries but those of these names."""
        return self.restricted(set(self._entries) - set(names))

    def revived_since(self, earlier: "Mask") -> dict[str, Tensor]:
        """Name -> bool tensor of weights kept here and not kept in `earlier` (only names with any)."""
        found = {}
        for name, kept in self._entries.items():
            if name in earlier._entries:
                new = kept & ~earlier._entries[name]
                if bool(new.any()):
                    found[name] = new
        return found

    # -- tensors that must obey it ------------------------------------------------------------------------

    @torch.no_grad()
    def apply_(self, target: nn.Module | Mapping[str, Tensor]) -> None:
        """Set every pruned element to zero, in place (a NaN or an infinity there becomes zero too)."""
        for tensor, kept in self._matched(target):
            tensor.masked_fill_(~kept, 0)

    @torch.no_grad()
    def apply_to_gradients_(self, module: nn.Module) -> None:
        """Set the gradient of every pruned weight to zero, in place."""
        parameters = dict(module.named_parameters())
        for name, kept in self._for_device(_device_of(parameters.values())).items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(~kept, 0)

    @torch.no_grad()
    def violations(self, target: nn.Module | Mapping[str, Tensor]) -> dict[str, int]:
        """Name -> number of pruned weights that are not zero (only names with any)."""
        found = {}
        for name, (tensor, kept) in zip(self._entries, self._matched(target), strict=True):
            count = int(torch.count_nonzero(tensor.masked_fill(kept, 0)))
            if count:
                found[name] = count
        return found

    def holds(self, target: nn.Module | Mapping[str, Tensor]) -> bool:
        """True if every pruned weight of `target` is exactly zero."""
        return not self.violations(target)

    def _matched(self, target: nn.Module | Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        tensors: Mapping[str, Any] = dict(target.named_parameters()) if isinstance(target, nn.Module) else target
        for name, kept in self._entries.items():
            if name not in tensors:
                raise UserError(f"the mask names {name!r}, which this network does not have: another architecture?")
            if tensors[name].shape != kept.shape:
                raise UserError(
                    f"the mask of {name!r} has shape {tuple(kept.shape)}, the weight {tuple(tensors[name].shape)}: "
                    "another architecture?"
                )
        kept_there = self._for_device(_device_of(tensors[name] for name in self._entries))
        return [(tensors[name], kept_there[name]) for name in self._entries]

    def _for_device(self, device: torch.device) -> dict[str, Tensor]:
        """The entries on the device of the weights, copied there once."""
        if device.type == "cpu":
            return self._entries
        if device not in self._on_device:
            self._on_device[device] = {name: kept.to(device) for name, kept in self._entries.items()}
        return self._on_device[device]


def _device_of(tensors: Iterable[Tensor]) -> torch.device:
    return next((t.device for t in tensors), torch.device("cpu"))
