"""The one training loop.

A step, in this order:

1. forward and backward, through `pruner.backward` (which may do several passes) and with the weights that
   `pruner.forward_weights` gives in place of the stored ones,
2. `pruner.update`: gradients are still dense here,
3. the optimizer forgets what it knew of revived weights, or everything where `pruner.resets_momentum` says so (and
   the average of the weights begins anew),
4. gradients of weights that are not trained (`pruner.trains`; else: pruned) are set to zero,
5. the optimizer steps, unless `pruner.applies_gradient` says no,
6. pruned weights are set to zero: neither momentum nor weight decay nor the average of the weights revives one.

After every epoch the network as it would be deployed (the average of the weights, if any, finished by the method, its
batch norm statistics made anew if the method is tagged so) is held against its mask and evaluated.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Plan, Pruner
from ..core.spec import Recipe
from ..engine.training.passes import Passes
from . import distributed
from .batchnorm import recalibrate
from .data import batch_plan, batches_from, loader, mixed_seed, on_device
from .evaluate import evaluate
from .optim import forget_revived, learning_rate, sgd
from .state import load_state, save_state

WORTHWHILE = 0.5
"""Sparsity from which training goes through the engine: a step is 1.2 to 1.7 times as fast there, and faster with more
zeros (docs/results/training.md)."""
LASTING = 8
"""Steps in which a mask has to be in force to be worth what the engine makes of it, which takes as long as one or two
steps: one that another follows sooner is trained through PyTorch."""
ASKED = 16
"""Steps after which several processes ask the first one whether to save."""
ENGINE, OFF, FEW = "engine", "off", "few zeros"
NEW, LOOKS, OWN = "a mask in force for few steps", "gradients of pruned weights", "weights of the method's own"
"""What a step went through, or why through PyTorch."""
SCRATCH = "scratch"
"""The folder for a method's `Plan.scratch`, beside the state of the run."""

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, how it goes: the loss of the last one, or PRUNING and how far the method is)"""
PRUNING = "pruning,"


@dataclass
class Fitted:
    """The model is left as the selected epoch's; `history` has one row an epoch."""

    mask: Mask
    history: list[dict[str, float]]
    epoch: int
    notes: list[str]
    """How many steps went through the engine, and why not the others."""


@dataclass
class Fit:
    """One training of `model`, in place.

    `train` may have `set_epoch(epoch)`, called before each epoch. `val` selects the best epoch by `metric`.
    With `state_path` the run is saved there at least every `save_seconds`, and goes on from there.
    """

    model: nn.Module
    pruner: Pruner
    mask: Mask
    train: Dataset[Any]
    val: Dataset[Any]
    recipe: Recipe
    metric: str = "top1"
    seed: int = 0
    teacher: nn.Module | None = None
    workers: int = 0
    accelerate: bool = False
    """Forward and backward passes through the engine, at the steps where that is worth it (`_why_not`)."""
    state_path: Path | None = None
    save_seconds: float = 60.0
    progress: Progress | None = None
    step: int = field(default=0, init=False)
    history: list[dict[str, float]] = field(default_factory=list, init=False)
    ways: dict[str, int] = field(default_factory=dict, init=False)
    """How many steps went through the engine, or for which reason through PyTorch."""

    def run(self) -> Fitted:
        """Train to the end. Raises UserError where the loss is not finite or the processes' masks differ."""
        self._prepare()
        if self.state_path is not None and self.state_path.exists():
            try:
                self._restore()
            except KeyError as lacking:
                raise UserError(
                    f"{self.state_path} has no {lacking}: another version of Budwood wrote it; delete it to start this"
                    " run again"
                ) from None
        while self.step < self.plan.steps:
            self._epoch(self.step // self.plan.steps_per_epoch)
        self.model.load_state_dict(self.best)
        self.best_mask.apply_(self.model)
        if self.plan.scratch is not None and distributed.rank() == 0:
            shutil.rmtree(self.plan.scratch, ignore_errors=True)
        return Fitted(self.best_mask, self.history, self.best_epoch, self._notes())

    def _notes(self) -> list[str]:
        if set(self.ways) <= {OFF, FEW}:
            return []
        others = [f"{reason} ({count})" for reason, count in self.ways.items() if reason != ENGINE]
        end = f"; through PyTorch: {', '.join(others)}" if others else ""
        return [f"trained through the engine at {self.ways.get(ENGINE, 0)} of {self.step} steps{end}"]

    # -- before ------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.device = next(self.model.parameters()).device
        self.model.to(memory_format=torch.channels_last)
        batches = len(self._batches(0))
        scratch = self.state_path.parent / SCRATCH if self.state_path is not None else None
        draw = batches_from(self.train, self.seed, self.workers, self.device)
        self.plan = Plan(
            self.recipe.epochs, batches, self.seed, draw, scratch=scratch, progress=self._told, recipe=self.recipe
        )
        self.pruner.check(self.model, self.mask, self.recipe.epochs)
        self.cycles = self.pruner.cycles()
        self.length = self.cycles.length(self.recipe.epochs)
        if self.recipe.warmup_epochs and self.recipe.warmup_epochs >= (self.length or 0):
            raise UserError(
                f"the learning rate would rise for {self.recipe.warmup_epochs} of {self.length} epochs and never fall;"
                " lower --warmup-epochs, or give more --epochs"
            )
        self.mask = distributed.mask_from_first(self.pruner.start(self.model, self.mask, self.plan))
        self.mask.apply_(self.model)
        self.average = copy.deepcopy(self.model) if self.recipe.ema else None
        self.net = distributed.wrap(self.model)
        self.engine = self.accelerate and self.device.type == "cpu" and not self.recipe.amp
        self.passes: Passes | None = None
        self.since, self.lasted = 0, True  # when the mask came into force; whether the one before it lasted
        self.optimizer = self._optimizer()
        self.best: dict[str, Tensor] = self.model.state_dict()
        self.best_mask, self.best_epoch, self.best_score = self.mask, -1, -math.inf
        self.loss_sum = 0.0
        self.saved_at = time.monotonic()

    def _told(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(self.step, self.plan.steps, f"{PRUNING} {done} of {total}")

    def _batches(self, epoch: int) -> list[list[int]]:
        length = len(self.train)  # type: ignore[arg-type]
        world = distributed.world()
        size = max(1, self.recipe.batch_size // world)
        return batch_plan(length, size, self.seed, epoch, distributed.rank(), world)

    def _optimizer(self) -> torch.optim.SGD:
        own = {name for name in self.mask if self.pruner.tags.decays}
        decayed = [p for name, p in self.model.named_parameters() if name not in own]
        others = [p for name, p in self.model.named_parameters() if name in own]
        return sgd([*decayed, *self.pruner.parameters()], others, self.recipe)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Every parameter that the optimizer knows, in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    # -- one epoch ---------------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        first = self.step % self.plan.steps_per_epoch
        if first == 0:
            torch.manual_seed(mixed_seed(self.seed, epoch, distributed.rank()))
            self.loss_sum = 0.0
        if hasattr(self.train, "set_epoch"):
            self.train.set_epoch(epoch)
        self.model.train()
        batches = loader(self.train, self._batches(epoch)[first:], self.workers)
        for batch in on_device(batches, self.device):
            loss = self._step(batch)
            self.loss_sum += loss
            self.step += 1
            if self.progress is not None:
                self.progress(self.step, self.plan.steps, f"loss {loss:.3f}")
            if self._due():
                self._save()
        self._close_epoch(epoch)
        self._save()

    def learning_rate(self, step: int) -> float:
        """At a 0-based step of the run."""
        assert self.length is not None  # the method's `check` has seen to it
        _, place = self.cycles.place(step, self.length, self.plan.steps_per_epoch)
        return learning_rate(self.recipe, place, self.plan.steps_per_epoch, self.length)

    def _due(self) -> bool:
        """Whether to save in the middle of an epoch: by the first process's clock, which others ask now and then."""
        late = time.monotonic() - self.saved_at > self.save_seconds and self._finite()
        if self.step % self.plan.steps_per_epoch == 0 or (distributed.world() > 1 and self.step % ASKED):
            return False
        return bool(distributed.from_first(late))

    def _finite(self) -> bool:
        """Whether this is a state that can be gone on with. At the end of an epoch the validation loss tells."""
        values = self.model.state_dict().values()
        return all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())

    def _step(self, batch: tuple[Tensor, Tensor]) -> float:
        lr = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        self.way = self._why_not() or ENGINE
        loss = float(self.pruner.backward(self.model, self.mask, self.step, lambda: self._pass(batch)))
        self._count()
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} at step {self.step}; lower the learning rate (--lr, now {lr:g})")
        distributed.average_(self.pruner.parameters())
        looks = self.pruner.tags.data != "none"
        if looks:
            distributed.statistics_from_first_(self.model)
        mask = self.pruner.update(self.model, self.mask, self.step, batch)
        if mask is not self.mask:
            if looks:  # what is computed on images may differ in the last bits
                mask = distributed.mask_from_first(mask)
            distributed.agree(mask)
            forget_revived(self.optimizer, self.model, self.mask, mask)
            self._adopt(mask)
            if self.pruner.tags.edits_weights:
                distributed.weights_from_first_(self.model)
        if self.pruner.resets_momentum(self.step):
            self.optimizer.state.clear()
            if self.average is not None:  # it would remember the training before
                self.average.load_state_dict(self.model.state_dict())
        if self.pruner.applies_gradient(self.step):
            self._optimize(self.pruner.trains(self.mask))
        self.mask.apply_(self.model)
        self._follow()
        return loss

    def _adopt(self, mask: Mask) -> None:
        """The mask in force from the next step on."""
        if mask != self.mask:
            self.passes = None
            self.lasted = self.step + 1 - self.since >= LASTING
            self.since = self.step + 1
        self.mask = mask

    def _why_not(self) -> str:
        """Why this step goes through PyTorch; empty where it goes through the engine, which computes no gradients of
        pruned weights. A killed run that goes on decides alike: by the step, the masks and the method alone."""
        if not self.engine:
            return OFF
        if type(self.pruner).forward_weights is not Pruner.forward_weights:
            return OWN
        if self.passes is None:
            if self.mask.sparsity < WORTHWHILE:
                return FEW
            if not self.lasted and self.step - self.since < LASTING:
                return NEW
        if self.pruner.looks_at_gradients(self.step):
            return LOOKS
        if self.passes is None:
            self.passes = Passes(self.model, self.mask)
        return self.passes.refusal

    def _count(self) -> None:
        """What this step went through: a call that the engine does not know is known only afterwards."""
        refused = self.passes.refused if self.passes is not None and self.way == ENGINE else ""
        way = refused or self.way
        self.ways[way] = self.ways.get(way, 0) + 1

    @torch.no_grad()
    def _optimize(self, trained: Mask) -> None:
        """One step of the optimizer, which moves no weight outside of `trained`."""
        trained.apply_to_gradients_(self.model)
        if trained is self.mask:
            self.optimizer.step()
            return
        weights = [(p, trained[n].to(p.device)) for n, p in self.model.named_parameters() if n in trained]
        before = [p.clone() for p, _ in weights]
        self.optimizer.step()
        for (p, moves), old in zip(weights, before, strict=True):
            p.copy_(torch.where(moves, p, old))
            if (momentum := self.optimizer.state[p].get("momentum_buffer")) is not None:
                momentum.masked_fill_(~moves, 0)

    def _pass(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """One forward and backward pass, in `accumulate` parts; gradients are added to what is there."""
        images, targets = batch
        through = self.way == ENGINE
        if through:  # as DistributedDataParallel does it, which is not asked then
            distributed.statistics_from_first_(self.model)
        total = torch.zeros((), device=self.device)
        parts = list(zip(images.chunk(self.recipe.accumulate), targets.chunk(self.recipe.accumulate), strict=True))
        for i, (x, y) in enumerate(parts):
            quiet = self.net.no_sync() if i < len(parts) - 1 and distributed.world() > 1 else nullcontext()  # type: ignore[operator]
            with quiet:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp), _told_of_few(len(x)):
                    output = self._forward(x)
                loss = self._loss(output.float(), x, y) * (len(y) / len(targets))
                loss.backward()
            total += loss.detach()
        if through:
            distributed.average_(list(self.model.parameters()))
        return total

    def _forward(self, images: Tensor) -> Tensor:
        if self.way == ENGINE:
            assert self.passes is not None
            return self.passes(images)
        weights = {name: p for name, p in self.model.named_parameters() if name in self.mask}
        replaced = self.pruner.forward_weights(weights, self.mask)
        if replaced is None:
            return self.net(images)  # type: ignore[no-any-return]
        named = {distributed.unwrapped(name): weight for name, weight in replaced.items()}
        return torch.func.functional_call(self.net, named, (images,))  # type: ignore[no-any-return]

    def _loss(self, output: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(output, targets, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is None or self.recipe.distill == 0:
            return loss
        with torch.no_grad():
            wanted = self.teacher.eval()(images).float().softmax(1)
        share = self.recipe.distill
        return (1 - share) * loss + share * F.cross_entropy(output, wanted)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average of the weights a little towards the present ones; the mask holds for it too."""
        if self.average is None:
            return
        for mean, value in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - self.recipe.ema)
            else:
                mean.copy_(value)
        self.mask.apply_(self.average)

    def _close_epoch(self, epoch: int) -> None:
        deployed = copy.deepcopy(self.average if self.average is not None else self.model)
        mask = self.pruner.finish(deployed, self.mask, self.step - 1)
        if mask is not self.mask:
            distributed.agree(mask)
        if self.pruner.tags.recalibrates:
            mask.apply_(deployed)
            recalibrate(deployed, self.train, workers=self.workers)
        if not (self.mask.holds(self.model) and mask.holds(deployed)):
            raise RuntimeError(f"a pruned weight came back to life in epoch {epoch}: {mask.violations(deployed)}")
        scores = distributed.from_first(
            evaluate(deployed, self.val, workers=self.workers) if distributed.rank() == 0 else None
        )
        if not math.isfinite(scores["loss"]):
            raise UserError(
                f"the validation loss became {scores['loss']} in epoch {epoch}; lower the learning rate (--lr)"
            )
        row = {
            "epoch": float(epoch),
            "train_loss": self.loss_sum / self.plan.steps_per_epoch,
            "sparsity": mask.sparsity,
        }
        self.history.append(row | {f"val_{name}": value for name, value in scores.items()})
        last = epoch == self.plan.epochs - 1
        candidate = self.pruner.settled(self.step - 1) and self.recipe.select == "best"
        if (candidate and scores[self.metric] > self.best_score) or (last and self.best_epoch < 0):
            self.best = {name: t.detach().cpu().clone() for name, t in deployed.state_dict().items()}
            self.best_mask, self.best_epoch, self.best_score = mask, epoch, scores[self.metric]

    # -- going on ----------------------------------------------------------------------------------------

    def _save(self) -> None:
        self.saved_at = time.monotonic()
        if self.state_path is None:
            return
        # All else is the same everywhere, or becomes as the first process has it before the next pass.
        random = distributed.gathered(torch.get_rng_state())
        if distributed.rank() != 0:
            return
        momenta = {
            str(i): state["momentum_buffer"]
            for i, p in enumerate(self.trained)
            if (state := self.optimizer.state.get(p)) and state.get("momentum_buffer") is not None
        }
        groups = {
            "model": self.model.state_dict(),
            "momentum": momenta,
            "mask": {name: self.mask[name] for name in self.mask},
            "pruner": self.pruner.state(),
            "best": self.best if self.best_epoch >= 0 else {},
            "best_mask": {name: self.best_mask[name] for name in self.best_mask},
            "average": self.average.state_dict() if self.average is not None else {},
            "rng": {str(rank): state for rank, state in enumerate(random)},
        }
        best_score = self.best_score if math.isfinite(self.best_score) else None
        facts = {
            "step": self.step, "loss_sum": self.loss_sum, "history": self.history, "ways": self.ways,
            "since": self.since, "lasted": self.lasted, "best_epoch": self.best_epoch, "best_score": best_score,
        }  # fmt: skip
        save_state(self.state_path, groups, facts)

    def _restore(self) -> None:
        assert self.state_path is not None
        groups, facts = load_state(self.state_path)
        self.model.load_state_dict(groups["model"])
        for i, p in enumerate(self.trained):
            if (buffer := groups.get("momentum", {}).get(str(i))) is not None:
                self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(buffer)
        self.mask = Mask(groups.get("mask", {}))
        self.pruner.load_state(groups.get("pruner", {}))
        self.best_mask = Mask(groups.get("best_mask", {}))
        self.best_epoch = facts["best_epoch"]
        if self.best_epoch >= 0:
            self.best = groups["best"]
        self.best_score = -math.inf if facts["best_score"] is None else facts["best_score"]
        if self.average is not None:
            self.average.load_state_dict(groups["average"])
        self.step, self.loss_sum, self.history = facts["step"], facts["loss_sum"], facts["history"]
        self.since, self.lasted, self.ways = facts["since"], facts["lasted"], facts["ways"]
        if self.step % self.plan.steps_per_epoch:
            if len(groups["rng"]) != distributed.world():
                raise UserError(
                    f"{self.state_path} is of the middle of an epoch of {len(groups['rng'])} processes, not of "
                    f"{distributed.world()}; go on with as many, or delete it to start this run again"
                )
            torch.set_rng_state(groups["rng"][str(distributed.rank())].clone())


@contextmanager
def _told_of_few(images: int) -> Iterator[None]:
    """A part of a batch may be too small for batch norm, which only a pass shows: it depends on the maps' sizes."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"batch norm cannot train on a part of {images} image where its maps are of one pixel; raise --batch-size,"
            " lower --accumulate, or raise --size"
        ) from None
