"""Why LTH-T's tickets are no worse than trained networks here: their accuracy with whose batch norm statistics.

    python docs/results/methods/tickets.py TINYIMAGENET100

A ticket is the dense network's weights under a mask, not trained any further; `recalibrates` makes its batch norm
statistics anew on the training images. Here it is looked at with these, and with the dense network's own.
"""

import argparse
from pathlib import Path

import torch

from budwood.models.network import Network, open_network
from budwood.tasks.images import transforms
from budwood.tasks.opening import open_task
from budwood.train.evaluate import evaluate

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="folder of tinyimagenet100")
    task = open_task(parser.parse_args().data)
    dense = open_network(str(CHECKPOINTS / "dense-s0.safetensors"))

    def top1(network: Network) -> str:
        images = task.load("test", transforms(network.lineage.preprocessing, train=False))
        return f"{100 * evaluate(network.module, images, workers=1)['top1']:.1f}"

    weights = dense.module.state_dict()
    print("| ticket | with its own statistics | with the dense network's |\n|---|---|---|")
    print(f"| (dense) | {top1(dense)} | |")
    for name in ("lth-t-80", "lth-t-90", "lth-t-95"):
        path = CHECKPOINTS / f"{name}-s0.safetensors"
        if not path.exists():
            continue
        ticket = open_network(str(path))
        for key, kept in ticket.mask.items():
            assert torch.equal(ticket.module.get_parameter(key), weights[key] * kept), f"{key} was trained"
        own = top1(ticket)
        ticket.module.load_state_dict({k: v for k, v in weights.items() if "running_" in k}, strict=False)
        print(f"| {name} | {own} | {top1(ticket)} |")


if __name__ == "__main__":
    main()
