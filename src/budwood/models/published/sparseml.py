"""Networks of SparseML's own classes.

Source: neuralmagic/sparseml, src/sparseml/pytorch: models/classification/resnet.py and mobilenet.py (the names),
utils/model.py and torchvision/train.py (the file), datasets/classification/imagenet.py (the images).

The file is a dict: `state_dict`, and as it happens `optimizer`, `recipe` (YAML in a string), `epoch` (-1 = done),
`arch_key`, `manager`, `args`. It carries no masks: SparseML reads them from the zeros, and so does Budwood.
Names of a ResNet, S and B counted from 0, the stride in conv2 as in torchvision:

    input.conv, input.bn                          conv1, bn1
    sections.S.B.conv1, .bn1, ...                 layer(S+1).B.conv1, .bn1, ...
    sections.S.B.identity.conv, .identity.bn      layer(S+1).B.downsample.0, .downsample.1
    classifier.fc                                 fc

and of MobileNetV1: sections.S.B.depth.conv, .depth.bn, .point.conv, .point.bn (see mobilenet.py).
Files of torchvision's networks that SparseML trained have torchvision's names and are plain.
"""

import re
from dataclasses import replace

from .contents import IMAGENET, Contents, Layout

NAMES = (
    (re.compile(r"input\.conv\."), r"conv1."),
    (re.compile(r"input\.bn\."), r"bn1."),
    (re.compile(r"sections\.(\d{1,3})\.(\d{1,3})\.identity\.conv\."), r"layer\1.\2.downsample.0."),
    (re.compile(r"sections\.(\d{1,3})\.(\d{1,3})\.identity\.bn\."), r"layer\1.\2.downsample.1."),
    (re.compile(r"sections\.(\d{1,3})\.(\d{1,3})\.((?:conv|bn)\d)\."), r"layer\1.\2.\3."),
    (re.compile(r"classifier\.fc\."), r"fc."),
)
METHODS = {
    "ACDCPruningModifier": "acdc",
    "GMPruningModifier": "gmp",
    "GlobalMagnitudePruningModifier": "gmp",
    "MagnitudePruningModifier": "gmp",
    "MFACPruningModifier": "mfac",
    "OBSPruningModifier": "obert",
    "TopKASTPruningModifier": "topkast",
}
"""Of the recipe's modifiers: the method each is."""


def _fits(found: Contents) -> bool:
    return "input.conv.weight" in found.state and any(name.startswith("sections.") for name in found.state)


def _is_mobilenet(found: Contents) -> bool:
    return "sections.0.0.depth.conv.weight" in found.state


def _convert(found: Contents) -> Contents:
    return replace(found.renamed(_name), preprocessing=IMAGENET)


def _name(name: str) -> str:
    for pattern, ours in NAMES:
        match = pattern.match(name)
        if match:
            rest = name[match.end() :]
            if name.startswith("sections."):  # SparseML counts from 0, torchvision from 1
                section, *others = match.groups()
                ours = ours.replace(r"\1", str(int(section) + 1))
                for number, text in enumerate(others, 2):
                    ours = ours.replace(f"\\{number}", text)
            return ours + rest
    return name


def method_of(recipe: object) -> str | None:
    """The pruning method that a recipe names; None where it names none, several, or one that is not known here."""
    modifiers = set(re.findall(r"!(\w*PruningModifier)\b", recipe)) if isinstance(recipe, str) else set()
    named = {METHODS.get(modifier) for modifier in modifiers - {"ConstantPruningModifier"}}
    return named.pop() if len(named) == 1 else None


LAYOUT = Layout("SparseML's names", lambda found: _fits(found) and not _is_mobilenet(found), _convert)
