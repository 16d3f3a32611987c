"""Sources of networks: the classifier is found in all of them, files are read without running them, costs are right,
and what is exported is a plain network."""

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from budwood.core.checkpoint import Checkpoint, Lineage
from budwood.core.errors import UserError
from budwood.core.mask import Mask
from budwood.core.pruner import Plan
from budwood.core.registry import sources
from budwood.core.task import Preprocessing
from budwood.models.export import export
from budwood.models.files import read_state, recognise
from budwood.models.network import Network, build, from_checkpoint, head_of, open_network, prunable, replace_head
from budwood.models.packaged import MODELS
from budwood.models.profile import layers
from budwood.prune.magnitude import Magnitude

NOT_CNNS = ("vit", "swin")
HUGE = ("_8gf", "16gf", "32gf", "128gf")
"""RegNets of hundreds of megabytes, which cannot be made without memory; the same code as the small ones."""
CNNS = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not any(part in name for part in NOT_CNNS) and not name.endswith(HUGE)
]
TIMM = [
    "resnet18", "resnetv2_50", "resnetv2_50x1_bit", "resnext50_32x4d", "seresnet50", "skresnet18",
    "res2net50_26w_4s", "resnest14d", "regnety_002", "efficientnet_b0", "tf_efficientnet_lite0", "mobilenetv2_050",
    "mobilenetv3_small_050", "mobilenetv4_conv_small", "mnasnet_small", "ghostnet_050", "densenet121", "vgg11",
    "dpn48b", "dla34", "hrnet_w18_small", "inception_v3", "inception_v4", "xception41", "cspresnet50",
    "ese_vovnet19b_dw", "repvgg_a0", "mobileone_s0", "fastvit_t8", "convnext_atto", "convnextv2_atto",
    "inception_next_atto", "poolformer_s12", "edgenext_xx_small", "rexnet_100", "nf_resnet26", "hgnetv2_b0",
    "lcnet_050", "starnet_s1", "convmixer_768_32",
]  # fmt: skip


def small(classes: int = 5) -> nn.Module:
    """A stock architecture that is quick: squeezenet1_1 has 0.7 million weights."""
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(num_classes=classes).eval()


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- heads ----------------------------------------------------------------------------------------------------


def classifier_size(module: nn.Module) -> int:
    head = module.get_submodule(head_of(module))
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels  # type: ignore[return-value]


@pytest.mark.parametrize("name", CNNS)
def test_head_of_torchvision(name: str) -> None:
    if "regnet" in name:  # RegNet computes its widths with tensors, which meta has not
        module = torchvision.models.get_model(name, num_classes=7)
    else:
        with torch.device("meta"):
            extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            module = torchvision.models.get_model(name, num_classes=7, **extra)
    assert classifier_size(module) == 7
    assert f"{head_of(module)}.weight" not in prunable(module) and f"{head_of(module)}.weight" in prunable(
        module, head=True
    )


@pytest.mark.parametrize("name", TIMM)
def test_head_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=7)
    assert classifier_size(module) == 7
    assert module.get_submodule(head_of(module)) is module.get_classifier() or head_of(module).startswith(
        module.pretrained_cfg["classifier"]
    )


def test_two_classifiers_are_refused() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="two classifiers") as caught:
        build("timm:repvit_m0_9", 7)
    one_line(caught)


def test_no_head() -> None:
    with pytest.raises(UserError, match="nothing to prune"):
        head_of(nn.Sequential(nn.ReLU()))


def test_shared_and_parametrised_weights() -> None:
    """Each weight that is a parameter stands once; what a layer makes of others does not."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(27, 2))
    model[1].weight = model[0].weight
    nn.utils.parametrizations.weight_norm(model[2])
    assert list(prunable(model, head=True)) == ["0.weight", "4.weight"]
    mask = Magnitude(0.5, Magnitude.Options()).start(model, Mask.ones(prunable(model)), Plan(0, 0))
    mask.apply_(model)
    assert mask.holds(model) and int((model[1].weight == 0).sum()) == 40


@pytest.mark.parametrize(
    "name", ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "timm:dla34", "timm:lcnet_050"]
)
def test_replace_head(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    before = build(name, 1000)
    backbone = {n: t.clone() for n, t in before.module.state_dict().items() if not n.startswith(f"{before.head}.")}
    random = torch.get_rng_state()
    network = replace_head(before, ("a", "b", "c"), seed=1)
    assert torch.equal(torch.get_rng_state(), random), "it has a generator of its own"
    assert network.lineage.classes == ("a", "b", "c") and network.lineage.num_classes == 3
    assert f"{network.head}.weight" not in network.mask and set(network.mask) == set(prunable(network.module))
    with torch.no_grad():
        assert network.module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    state = network.module.state_dict()
    assert all(torch.equal(state[n], t) for n, t in backbone.items())
    head = network.module.get_submodule(network.head).weight.clone()  # type: ignore[operator, union-attr]
    for seed, equal in ((1, True), (2, False)):
        again = replace_head(network, ("a", "b", "c"), seed=seed)
        assert torch.equal(again.module.get_submodule(again.head).weight, head) == equal  # type: ignore[arg-type]


# -- other people's files -------------------------------------------------------------------------------------


def save_pth(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "module.": lambda s: {f"module.{n}": t for n, t in s.items()},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "arch": "squeezenet1_1"},
    "model, compiled, module.": lambda s: {"model": {f"module._orig_mod.{n}": t for n, t in s.items()}},
    "average first": lambda s: {"state_dict_ema": s, "state_dict": {n: t + 1 for n, t in s.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_plain_weights_of_torchvision(wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path) -> None:
    module = small()
    network = open_network(str(save_pth(wrap(module.state_dict()), tmp_path / "weights.pth")))
    assert network.lineage.architecture == "torchvision:squeezenet1_1" and network.lineage.num_classes == 5
    assert network.mask == Mask.ones(prunable(module, head=True)) and not network.lineage.mask_inferred
    assert any("read as torchvision:squeezenet1_1 with 5 classes" in note for note in network.notes)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.module.eval()(images), module(images))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:squeezenet1_1"])
def test_weights_in_another_order(name: str, tmp_path: Path) -> None:
    """safetensors sorts its tensors: the last one is not the classifier's."""
    state = build(name, 5).module.state_dict()
    safetensors.torch.save_file(dict(state), tmp_path / "weights.safetensors")
    for opened in (str(tmp_path / "weights.safetensors"), f"{name}@{tmp_path / 'weights.safetensors'}"):
        network = open_network(opened)
        assert network.lineage.architecture == name and network.lineage.num_classes == 5


def test_zeros_become_a_mask_and_it_is_said(tmp_path: Path) -> None:
    module = small()
    pruned = Mask({n: torch.rand(w.shape) < 0.3 for n, w in prunable(module).items()})
    pruned.apply_(module)
    safetensors.torch.save_file(dict(module.state_dict()), tmp_path / "weights.safetensors")
    network = open_network(str(tmp_path / "weights.safetensors"))
    assert network.mask.restricted(pruned) == pruned and network.lineage.mask_inferred
    assert network.lineage.source == "weights.safetensors"
    assert any("carries no mask: it was read from the zeros" in note for note in network.notes)
    path = tmp_path / "checkpoint.safetensors"
    network.checkpoint().save(path)
    again = open_network(str(path))
    assert again.mask == network.mask and again.lineage == network.lineage
    assert open_network(str(tmp_path)).mask == network.mask, "a run's folder is its checkpoint"


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "googlenet", "inception_v3", "regnet_y_400mf", "resnet18", "wide_resnet50_2"]
)
def test_recognise(name: str) -> None:
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    state = torchvision.models.get_model(name, num_classes=11, **extra).state_dict()
    assert recognise(state, "my.pth") == f"torchvision:{name}"


def test_recognise_says_when_it_cannot() -> None:
    resnet = torchvision.models.resnet18(num_classes=5).state_dict()
    wrong: list[dict[str, Tensor]] = [
        {"extra": torch.zeros(1)},
        {"fc.bias": torch.zeros(6)},
        {"fc.weight": torch.zeros(5, 511)},
        {"fc.weight": torch.zeros(5)},
        {"bn1.num_batches_tracked": torch.zeros(1)},
        {"conv1.weight": torch.zeros(64, 3, 3, 3)},
    ]
    for change in wrong:
        with pytest.raises(UserError, match=r"timm:NAME@my\.pth") as caught:
            recognise({**resnet, **change}, "my.pth")
        one_line(caught)


def test_side_classifiers_are_left_behind(tmp_path: Path) -> None:
    state = torchvision.models.googlenet(num_classes=11, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in state)
    network = open_network(str(save_pth(state, tmp_path / "weights.pth")))
    assert network.lineage.architecture == "torchvision:googlenet" and network.lineage.num_classes == 11


def test_inception_shifts_its_input_as_its_weights_want_it() -> None:
    """torchvision's own weights are made for inputs that the network normalises anew."""
    for name in ("googlenet", "inception_v3"):
        assert build(f"torchvision:{name}", 3).module.transform_input is True


def test_architecture_named_before_the_file(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    state = build("timm:tinynet_e", 4).module.state_dict()
    path = save_pth(dict(state), tmp_path / "mine.pth")
    network = open_network(f"timm:tinynet_e@{path}")
    assert network.lineage.num_classes == 4 and torch.equal(
        network.module.state_dict()["classifier.bias"], state["classifier.bias"]
    )
    for other in ("timm:lcnet_050", "torchvision:resnet18"):
        with pytest.raises(UserError, match="not those of") as caught:
            open_network(f"{other}@{path}")
        one_line(caught)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["torch", "pickle", "module"])
def test_code_in_a_file_is_never_run(kind: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    if kind == "torch":
        torch.save({"state_dict": small().state_dict(), "x": Evil(touched)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(touched), protocol=2))
    else:
        torch.save(small(), path)
    with pytest.raises(UserError, match="not safe") as caught:
        open_network(str(path))
    one_line(caught)
    assert not touched.exists()


def truncated(path: Path) -> None:
    torch.save({"w": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:400])


WRONG: dict[str, Callable[[Path], Any]] = {
    "empty": lambda p: p.touch(),
    "a folder": lambda p: p.mkdir(),
    "text": lambda p: p.write_text("epoch,loss\n0,1.0\n"),
    "random bytes": lambda p: p.write_bytes(os.urandom(2000)),
    "an image": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a truncated file": truncated,
    "a list": lambda p: torch.save([torch.ones(2)], p),
    "a tensor": lambda p: torch.save(torch.ones(2), p),
    "no tensors": lambda p: torch.save({"epoch": 3}, p),
    "an empty dict": lambda p: torch.save({}, p),
    "only vectors": lambda p: torch.save({"w": torch.ones(2)}, p),
    "another network": lambda p: torch.save({"w": torch.ones(2, 2)}, p),
    "a truncated safetensors file": lambda p: p.write_bytes(safetensors.torch.save({"w": torch.ones(9)})[:-4]),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_wrong_files(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth") as caught:
        open_network(str(tmp_path / "weights.pth"))
    one_line(caught)


@pytest.mark.parametrize(
    "name",
    ["no/such.pth", "torchvision:resnet51", "torchvisoin:resnet50", "torchvision:", "py:", "packaged:x", "resnet50"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UserError) as caught:
        open_network(name)
    one_line(caught)


def test_read_state_keeps_names_that_only_look_like_a_prefix(tmp_path: Path) -> None:
    state = {"model.a": torch.ones(2, 2), "b": torch.ones(1)}
    assert read_state(save_pth(state, tmp_path / "w.pth")).keys() == state.keys()


# -- sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
def test_packaged_weights(name: str) -> None:
    pytest.importorskip("timm")
    pytest.importorskip(MODELS[name][0], reason=f"the package with the weights of {name} is not installed")
    network = open_network(f"packaged:{name}")
    assert network.lineage.num_classes == 1000 and network.lineage.preprocessing.size == MODELS[name][1]
    norms = [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(float(m.running_mean.std()) > 0 for m in norms), "trained statistics"
    with torch.no_grad():
        logits = network.module.eval()(torch.zeros(1, 3, 64, 64))
    assert bool(torch.isfinite(logits).all()) and float(logits.std()) > 0.1


def test_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes=6):\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Flatten(), nn.Linear(4, num_classes))\n"
        "    net.preprocessing = {'size': 32, 'resize': 36}\n"
        "    return net\n"
        "def odd(num_classes=6):\n"
        "    net = tiny(num_classes)\n"
        "    net.preprocessing = {'pixels': 32}\n"
        "    return net\n"
        "def fails():\n"
        "    raise RuntimeError('first line\\nsecond line')\n"
        "def text(): return 'net'\n"
    )
    (tmp_path / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = open_network("py:mynets.tiny")
    assert network.lineage.num_classes == 6 and network.lineage.preprocessing == Preprocessing(size=32, resize=36)
    network.checkpoint().save(tmp_path / "c.safetensors")
    again = open_network(str(tmp_path / "c.safetensors"))
    assert all(torch.equal(t, again.module.state_dict()[n]) for n, t in network.module.state_dict().items())
    assert build("py:mynets.tiny", 3).module(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    for name in ("fails", "text", "odd", "none"):
        with pytest.raises(UserError, match=f"py:mynets.{name}") as caught:
            open_network(f"py:mynets.{name}")
        one_line(caught)
    with pytest.raises(UserError, match=r"py:broken\.f") as caught:
        open_network("py:broken.f")
    one_line(caught)
    sys.modules.pop("mynets", None)


def test_checkpoint_of_another_architecture_is_refused() -> None:
    checkpoint = build("torchvision:squeezenet1_1", 3).checkpoint()
    lineage = checkpoint.lineage.model_copy(update={"architecture": "torchvision:squeezenet1_0"})
    with pytest.raises(UserError, match="not those of torchvision:squeezenet1_0") as caught:
        from_checkpoint(copy.copy(type(checkpoint)(checkpoint.state, checkpoint.mask, lineage)))
    one_line(caught)


def test_every_source_is_there() -> None:
    assert {"torchvision", "timm", "packaged", "py"} <= set(sources)


# -- costs ----------------------------------------------------------------------------------------------------


def test_flops_of_resnet50() -> None:
    """2 x 4.09 GMACs at 224 x 224 pixels, as published; over 54 layers in the order they run."""
    with torch.device("meta"):
        module = torchvision.models.resnet50()
    found = layers(module, Mask({}), 224)
    assert sum(layer.flops_dense for layer in found) == pytest.approx(8.18e9, rel=0.01)
    assert sum(layer.flops for layer in found) == sum(layer.flops_dense for layer in found)
    assert [found[0].name, found[1].name, found[-1].name] == ["conv1", "layer1.0.conv1", "fc"] and len(found) == 54


def test_flops_of_one_layer_by_hand() -> None:
    """A grouped, strided convolution of 9 x 9 pixels: out 5 x 5; 6 outputs of 2 inputs x 3 x 3; a fifth is kept."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(150, 2)
    )
    kept = torch.zeros(108, dtype=torch.bool)
    kept[:21] = True
    mask = Mask({"1.weight": kept.reshape(6, 2, 3, 3)})
    first, second, last = layers(module.train(), mask, 9)
    assert (second.name, second.shape, second.kept, second.total) == ("1", (6, 2, 3, 3), 21, 108)
    assert (second.flops_dense, second.flops) == (2 * 108 * 25, 2 * 21 * 25)
    # The 21 weights are the whole first filter and a row of the second; both groups have two input channels.
    assert (second.filters, second.filters_zero, second.channels, second.channels_zero) == (6, 4, 4, 2)
    assert (first.filters, first.filters_zero, first.channels, first.channels_zero) == (4, 0, 3, 0)
    assert (first.flops, last.flops, last.kept) == (2 * 12 * 81, 2 * 300, 300)
    assert module.training and not module[0]._forward_hooks


def test_a_layer_used_twice_costs_twice() -> None:
    shared = nn.Conv2d(3, 3, 1)
    found = layers(nn.Sequential(shared, shared), Mask({}), 4)
    assert [layer.flops for layer in found] == [2 * 2 * 9 * 16]


# -- export ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Network:
    """A pruned squeezenet with preprocessing and classes of its own."""
    module = small(3)
    mask = Mask({n: torch.rand(w.shape) < 0.3 for n, w in prunable(module).items()})
    mask.apply_(module)
    lineage = Lineage(
        architecture="torchvision:squeezenet1_1", num_classes=3, classes=("crack", "dent", "päivää"),
        preprocessing=Preprocessing(size=64, resize=72), method="gmp", where="downstream", task="folder",
    )  # fmt: skip
    return Network(module, mask, lineage)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_exported_weights_load_in_plain_torchvision(network: Network, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    export(network, path)
    state = safetensors.torch.load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    plain = torchvision.models.squeezenet1_1(num_classes=3)
    plain.load_state_dict(state, strict=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), network.module.eval()(images))
    assert network.mask.holds(plain)


def test_exported_weights_load_in_plain_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    exported = build("timm:tinynet_e", 3)
    export(exported, tmp_path / "w.pth")
    timm.create_model("tinynet_e", num_classes=3).load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))


def test_export_says_what_it_can_write(network: Network, tmp_path: Path) -> None:
    for name in ("w.h5", "w"):
        with pytest.raises(UserError, match=r"\.pth, \.safetensors or \.onnx"):
            export(network, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def exported_onnx(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    network.module.train()
    export(network, path)
    assert network.module.training, "the mode is given back"
    return path


def test_onnx_keeps_the_zeros_and_says_what_it_is(network: Network, exported_onnx: Path) -> None:
    import onnx

    model = onnx.load(str(exported_onnx))
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["classes"]) == ["crack", "dent", "päivää"]
    assert Preprocessing.model_validate_json(facts["preprocessing"]) == network.lineage.preprocessing
    assert (facts["architecture"], facts["method"], facts["task"]) == ("torchvision:squeezenet1_1", "gmp", "folder")
    stored = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for name, kept in network.mask.items():
        assert name in stored, "weights keep their names"
        assert not stored[name][~kept.numpy()].any() and (stored[name] != 0).sum() == int(kept.sum())


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_answers_as_pytorch(network: Network, exported_onnx: Path, batch: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    images = torch.rand(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    session = runtime.InferenceSession(str(exported_onnx), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        wanted = network.module.eval()(images)
    assert found.shape == (batch, 3) and torch.allclose(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_does_not_choose_code_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    weights = prunable(module, head=True)
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n\n\ndef f(num_classes=2): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BUDWOOD_TRUST_CODE")
    lineage = Lineage(architecture="py:evil.f", num_classes=2, preprocessing=Preprocessing())
    Checkpoint(module.state_dict(), Mask.ones(weights), lineage).save(tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="BUDWOOD_TRUST_CODE=1"):
        open_network(str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()
