"""A network ready to prune or transfer: the module, its mask, its lineage; and how a name becomes one."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.checkpoint import Checkpoint, Lineage, is_checkpoint, unpack
from ..core.errors import UserError
from ..core.mask import Mask
from ..core.registry import sources
from ..core.task import Task
from . import files
from .published import Contents


@dataclass(frozen=True)
class Network:
    """`notes` says, a line each, what was assumed while it was made."""

    module: nn.Module
    mask: Mask
    lineage: Lineage
    notes: list[str] = field(default_factory=list)

    def checkpoint(self) -> Checkpoint:
        """A copy of its present weights, mask and lineage."""
        state = {name: t.detach().cpu().contiguous().clone() for name, t in self.module.state_dict().items()}
        return Checkpoint(state, self.mask, self.lineage)

    def copy(self) -> "Network":
        return replace(self, module=copy.deepcopy(self.module))

    @property
    def head(self) -> str:
        return head_of(self.module)

    @property
    def backbone(self) -> Mask:
        """The mask without the classifier's weight."""
        return self.mask.without([f"{self.head}.weight"])

    def knows(self, task: Task | None) -> bool:
        """Whether the classifier is one for the task's classes, as far as their number tells."""
        return task is not None and self.lineage.num_classes == len(task.classes)


def head_of(module: nn.Module) -> str:
    """Name of the classifier: the last linear or convolution module, in torchvision's and timm's networks alike.

    Raises UserError where there is none.
    """
    names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not names:
        raise UserError("this network has no convolution and no linear layer: nothing to prune or transfer")
    return names[-1]


def check_linear_head(network: Network) -> None:
    """Raises UserError where the classifier is no linear layer, so that no linear head can take its place."""
    if not isinstance(network.module.get_submodule(network.head), nn.Linear):
        raise UserError(f"{network.lineage.architecture} has a convolution as its head; transfer it with --mode full")


def prunable(module: nn.Module, head: bool = False) -> dict[str, Tensor]:
    """Weight name -> parameter of every convolution and linear layer, without the classifier's unless `head`.

    A weight that layers share stands once, under the first one's name; one that a layer makes of others
    (`nn.utils.parametrize`) is none.
    """
    last, parameters = head_of(module), dict(module.named_parameters())
    return {
        f"{name}.weight": m.weight
        for name, m in module.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and (head or name != last) and f"{name}.weight" in parameters
    }


def replace_head(network: Network, classes: tuple[str, ...], seed: int) -> Network:
    """The same backbone, in place, with a fresh dense classifier for `classes`, initialised from `seed`."""
    name = network.head
    old = network.module.get_submodule(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, len(classes))
        else:
            assert isinstance(old, nn.Conv2d)
            new = nn.Conv2d(old.in_channels, len(classes), kernel_size=1)
    parent, _, attribute = name.rpartition(".")
    setattr(network.module.get_submodule(parent), attribute, new)
    lineage = network.lineage.model_copy(update={"num_classes": len(classes), "classes": classes})
    return replace(network, mask=network.mask.without([f"{name}.weight"]), lineage=lineage)


def build(architecture: str, num_classes: int) -> Network:
    """The architecture without trained weights, by a name as `timm:resnet50`."""
    return _from_source(architecture, num_classes, pretrained=False)


def open_network(name: str) -> Network:
    """A network with its trained weights.

    `source:NAME` (see `budwood ls models`), `source:NAME@FILE` for weights of one's own in a file, a checkpoint's
    path, or the path of a state_dict (.pth or .safetensors) of a torchvision network, plain or in one of the layouts
    of models/published.
    Raises UserError for an unknown name, missing weights, or a file that is damaged or does not fit.
    """
    source, _, _ = name.partition(":")
    if source in sources and not Path(name).exists():
        architecture, _, path = name.partition("@")
        if not path:
            return _from_source(architecture, None, pretrained=True)
        return _from_contents(files.read(Path(path)), architecture)
    if ":" in name and not Path(name).exists() and "/" not in source and "\\" not in source:
        sources.get(source)
    file = checkpoint_in(Path(name))
    data = files.bytes_of(file)
    if is_checkpoint(data):
        checkpoint = unpack(data, name)
        _refuse_foreign_code(checkpoint.lineage.architecture, name)
        return from_checkpoint(checkpoint)
    return _from_contents(replace(files.read(file), where=name), None)


def _refuse_foreign_code(architecture: str, file: str) -> None:
    """A file must not choose code that is then run, unless its reader says that it may."""
    if architecture.startswith("py:") and os.environ.get("BUDWOOD_TRUST_CODE") != "1":
        raise UserError(
            f"{file} wants {architecture} to be imported and run; if you trust the file, set BUDWOOD_TRUST_CODE=1"
        )


def checkpoint_in(path: Path) -> Path:
    """The checkpoint of a run's folder; any other path as it is."""
    inside = path / "checkpoint.safetensors"
    return inside if inside.exists() else path


def from_checkpoint(checkpoint: Checkpoint) -> Network:
    """The checkpoint's network; UserError where its architecture is not available or does not fit."""
    lineage = checkpoint.lineage
    sizes = {tensor.shape[:1] for tensor in checkpoint.state.values() if tensor.numel()}
    if (lineage.num_classes,) not in sizes:
        # Said before anything of that size is made.
        raise UserError(f"the weights are not those of {lineage.num_classes} classes; make or copy the file again")
    network = build(lineage.architecture, lineage.num_classes)
    load_strictly(network.module, checkpoint.to_dense(), lineage.architecture)
    checkpoint.mask.apply_(network.module)
    return Network(network.module, checkpoint.mask, lineage)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state_dict whose names and shapes must all fit; one line that says how they do not."""
    wanted = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [n for n in wanted if n in given and wanted[n] != given[n]]
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if wrong or missing or extra:
        examples = "; ".join(
            [f"{n} has shape {given[n]}, wanted {wanted[n]}" for n in wrong[:1]]
            + [f"{n} is missing" for n in missing[:1]]
            + [f"{n} is not known" for n in extra[:1]]
        )
        count = len(wrong) + len(missing) + len(extra)
        raise UserError(f"the weights are not those of {what}: {count} tensors differ ({examples})")
    ours = module.state_dict()
    if odd := [n for n in wanted if ours[n].is_floating_point() and not state[n].is_floating_point()]:
        kind = str(state[odd[0]].dtype).removeprefix("torch.")
        raise UserError(f"the weights are not those of {what}: {odd[0]} holds {kind}; save it as float32")
    module.load_state_dict(dict(state))


def _from_source(name: str, num_classes: int | None, pretrained: bool) -> Network:
    source, separator, rest = name.partition(":")
    if not separator or not rest:
        raise UserError(f"{name!r} is not a model's name; names look like torchvision:resnet50 or timm:resnet50")
    network: Network = sources.get(source)(rest, num_classes, pretrained)
    return network


def _from_contents(found: Contents, wanted: str | None) -> Network:
    """The network of a file, as `wanted` or, without that, as what its layout or its shapes say."""
    architecture, notes = _architecture(found, wanted)
    network = build(architecture, 1000)
    ours = network.module.state_dict()
    if found.stored is not None and not _same_names(found.state, ours) and _same_names(found.stored.state, ours):
        found, notes = found.stored, list(found.stored.notes)  # it only looked like a layout or a prefix
    name = f"{network.head}.weight"
    if name in found.state and name in ours:
        head, made = found.state[name].shape, ours[name].shape
        if head[1:] == made[1:] and head[0] != made[0]:
            network = build(architecture, int(head[0]))
    try:
        load_strictly(network.module, found.state, architecture)
    except UserError as error:
        raise UserError(f"{found.where}: {error}") from None
    notes.insert(0, f"{found.where}: read as {architecture} with {network.lineage.num_classes} classes")
    mask, inferred = _mask(found, prunable(network.module, head=True), notes)
    mask.apply_(network.module)
    pruned = mask.kept < mask.total
    lineage = network.lineage.model_copy(
        update={"source": Path(found.where).name, "mask_inferred": inferred, "where": "upstream" if pruned else "none"}
        | ({"method": found.method or "unknown"} if pruned else {})
        | ({"preprocessing": found.preprocessing} if found.preprocessing else {})
    )
    return Network(network.module, mask, lineage, notes)


def _same_names(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether these are a network's tensors as they stand, but for the number of classes."""
    return stored.keys() == wanted.keys() and all(t.shape[1:] == wanted[n].shape[1:] for n, t in stored.items())


def _architecture(found: Contents, wanted: str | None) -> tuple[str, list[str]]:
    """What to build, and what is to be said about it."""
    notes = list(found.notes)
    if wanted is None:
        return found.architecture or files.recognise(found.state, found.where), notes
    if found.architecture and wanted.partition(".")[0] in found.instead_of:  # timm: resnet50.tv_in1k
        return found.architecture, [*notes, f"{found.where}: {wanted} computes otherwise than the network in this file"]
    return wanted, notes


def _mask(found: Contents, weights: Mapping[str, Tensor], notes: list[str]) -> tuple[Mask, bool]:
    """The mask that the file carries or, without one, its zeros; and whether it was read from these."""
    unknown = sorted(set(found.kept) - set(weights))
    if unknown:
        raise UserError(f"{found.where} has a mask of {unknown[0]}, which is no weight that can be pruned")
    stored = Mask({**Mask.ones(weights), **found.kept})
    if stored.kept < stored.total:
        wrong = sum(stored.violations(weights).values())
        notes.append(
            f"{found.where} carries its mask, which prunes {stored.sparsity:.2%} of the weights"
            + (f"; {wrong} of these were not zero and are now" if wrong else "")
        )
        return stored, False
    mask = Mask.from_zeros(weights)
    if mask.sparsity <= 0.01:
        return stored, False
    carries = "has masks that keep everything" if found.kept else "carries no mask"
    notes.append(f"{found.where} {carries}: it was read from the zeros, {mask.sparsity:.2%} of the weights")
    return mask, True
