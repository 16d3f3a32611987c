"""LTH-T, lottery tickets of pre-trained networks (Chen et al. 2021): iterative magnitude pruning that always goes back
to the pre-trained weights. What comes out is the ticket itself: the mask times these weights, not trained further.
"""

import copy

from torch import nn

from ..core.errors import UserError
from ..core.mask import Mask
from ..core.pruner import Cycles, Plan, Settings, Tags
from ..core.registry import methods
from ..core.spec import Recipe
from ..models.network import head_of
from .lth import RoundOptions, Rounds, levels
from .scored import participants


class PretrainedOptions(RoundOptions):
    trained: bool = False
    """The weights come trained on this very task, so that the first round prunes them as they are."""


@methods.register("lth-t")
class PretrainedLTH(Rounds):
    """A training and a pruning in each round; the last pruning is the end. Without `keep_dense` the first convolution
    and the classifier are left out, as the authors have it. The ticket's batch norm statistics are made anew: with the
    dense network's it names next to nothing right."""

    tags = Tags(
        family="lottery-ticket",
        paper="Chen et al. 2021",
        gradual=True,
        at_once=False,
        edits_weights=True,
        recalibrates=True,
        patterns=True,
    )
    Options = PretrainedOptions
    brief = {"share": 0.3}
    cost = (
        "a whole training for each round, 11 to 90 % where a fifth goes each time; one further copy of the network, "
        "0.1 GB for ResNet-50"
    )
    papers = {
        "imagenet": Settings(
            model="torchvision:resnet50",
            source="VITA-Group/CV_LTH_Pre-training, main_imp_imagenet.py, pruning_utils.py and README",
            recipe=Recipe(
                epochs=90, batch_size=256, lr=1e-4, momentum=0.9, weight_decay=1e-4, schedule="constant",
                select="last",
            ),
            options={"share": 0.2, "keep_dense": ["first", "classifier"], "trained": True},
            sparsity=1 - 0.8**10,
            notes=(
                "10 epochs a round; the pre-trained weights are pruned as they are, so 10 rounds have 9 trainings",
                "tickets near 80, 90, 95 %: 79.0 (7 rounds), 83.2 (8), 89.3 (10), 91.4 (11), 94.5 (13), 95.6 (14)",
                "they make 18 rounds, and keep a ticket of each",
                "a ticket has the pretrained network's batch norm statistics there; here they are made anew",
            ),
        ),
    }  # fmt: skip

    def cycles(self) -> Cycles:
        return Cycles(max(1, len(levels(self.sparsity, self.options.share)) - self.options.trained))

    def check(self, model: nn.Module, mask: Mask, epochs: int) -> None:
        super().check(model, mask, epochs)
        if self.options.trained and len(levels(self.sparsity, self.options.share)) == 1:
            raise UserError("one round prunes trained weights as they are: take --method magnitude, or a smaller share")

    def layers(self, model: nn.Module, mask: Mask) -> list[str]:
        return participants(model, mask, self.options, ("first", "classifier"))

    def start(self, model: nn.Module, mask: Mask, plan: Plan) -> Mask:
        super().start(model, mask, plan)
        self.last_ = plan.steps - 1
        return self.largest(model, mask, self._level(0)) if self.options.trained else mask

    def _level(self, done: int) -> float:
        """After so many trainings."""
        place = done - 1 + self.options.trained
        return self.levels_[min(place, len(self.levels_) - 1)] if self.levels_ else 0.0

    def settled(self, step: int) -> bool:
        """Only at the end: before, what `finish` answers is the ticket of a shorter last training."""
        return step >= self.last_

    def ticket(self, model: nn.Module, mask: Mask, done: int) -> Mask:
        found = self.largest(model, mask, self._level(done))
        self.rewind(model, found)
        return found

    def finish(self, model: nn.Module, mask: Mask, step: int) -> Mask:
        """The ticket as it would be if the training that is under way ended here. A classifier that was made anew, and
        so has no pretrained weights to go back to (the mask does not name it), stays as it was trained."""
        head = head_of(model)
        trained = copy.deepcopy(model.get_submodule(head).state_dict())
        found = self.ticket(model, mask, self.place_(step)[0] + 1)
        if f"{head}.weight" not in mask:
            model.get_submodule(head).load_state_dict(trained)
        return found
