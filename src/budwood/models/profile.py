"""What a network costs, layer by layer."""

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.modes import evaluating
from ..core.result import Layer
from .network import prunable


@torch.no_grad()
def check_size(module: nn.Module, size: int) -> None:
    """Raise UserError where the network takes no images of `size` x `size` pixels."""
    try:
        with evaluating(module):
            module(torch.zeros(1, 3, size, size, device=next(module.parameters()).device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"the network takes no images of {size} x {size} px ({error}); give another --size"[:300]
        ) from None


@torch.no_grad()
def layers(module: nn.Module, mask: Mask, size: int) -> list[Layer]:
    """Every convolution and linear layer in forward order, with FLOPs for one image of `size` x `size` pixels."""
    weights = {id(p): name for name, p in prunable(module, head=True).items()}
    positions: dict[str, int] = {}
    groups: dict[str, int] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = weights[id(layer.weight)]
        spatial = output[0].numel() // (output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1])
        positions[name] = positions.get(name, 0) + spatial
        groups[name] = getattr(layer, "groups", 1)

    hooks = [m.register_forward_hook(record) for m in module.modules() if id(getattr(m, "weight", None)) in weights]
    try:
        check_size(module, size)
    finally:
        for hook in hooks:
            hook.remove()
    named = {name: p for name, p in module.named_parameters()}
    found = []
    for name, spatial in positions.items():
        kept = mask[name].cpu() if name in mask else torch.ones_like(named[name], dtype=torch.bool, device="cpu")
        # (groups, output channels of one, input channels of one, positions of the kernel)
        by_group = kept.reshape(groups[name], kept.shape[0] // groups[name], kept.shape[1], -1)
        filters, channels = by_group.any(3).any(2), by_group.any(3).any(1)
        left = int(kept.sum())
        found.append(
            Layer(
                name=name.removesuffix(".weight"),
                shape=tuple(kept.shape),
                kept=left,
                total=kept.numel(),
                filters=filters.numel(),
                filters_zero=int((~filters).sum()),
                channels=channels.numel(),
                channels_zero=int((~channels).sum()),
                flops_dense=2 * kept.numel() * spatial,
                flops=2 * left * spatial,
            )
        )
    return found
