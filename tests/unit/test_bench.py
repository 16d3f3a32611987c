"""Timing on a fake clock, the check before any time, and what an environment may say."""

import getpass
import platform

import numpy as np
import pytest
import torch
from torch import nn

from budwood.bench import backend as backend_module
from budwood.bench.environment import environment
from budwood.bench.latency import disagreement, latency, zeros
from budwood.bench.timer import compare
from budwood.bench.zeros import with_random_zeros
from budwood.core.errors import UserError
from budwood.core.registry import backends


class FakeClock:
    """Time passes only where a callable says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_compare_interleaves_warms_up_and_takes_medians() -> None:
    clock, order = FakeClock(), []
    durations = {"a": iter([99, 99, 1, 99, 2, 99, 3, 99, 10]), "b": iter([99] + [30, 30, 4] * 4)}

    def call(name: str) -> None:
        order.append(name)
        clock.now += next(durations[name]) / 1000

    timings = compare({n: (lambda n=n: call(n)) for n in "ab"}, rounds=4, clock=clock)
    assert "".join(order) == "ab" + "aabbb" * 4  # b needs two calls to be warm
    a, b = timings["a"], timings["b"]
    assert (a.median, a.minimum, a.rounds) == pytest.approx((2.5, 1, 4))  # of 1, 2, 3, 10; no 99 was counted
    assert (a.q1, a.q3) == pytest.approx((1.75, 4.75))
    assert (b.median, b.q1, b.q3, b.minimum) == pytest.approx((4, 4, 4, 4))


def test_compare_divides_by_calls_per_round() -> None:
    clock, calls = FakeClock(), []

    def call() -> None:
        calls.append(1)
        clock.now += 1 / 32  # exact, so that two calls are 50 ms and more in every turn

    assert compare({"a": call}, rounds=3, per_round=4, clock=clock)["a"].median == pytest.approx(31.25)
    assert len(calls) == 1 + 3 * (2 + 4)


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 3), (1.0, 3), (9.5, 5), (None, 7)])
def test_compare_keeps_to_its_budget_but_runs_three_rounds(seconds: float | None, expected: int) -> None:
    clock = FakeClock()

    def call() -> None:
        clock.now += 1

    # One second of warm-up, then two a round: after five rounds eleven have passed, after four nine.
    assert compare({"a": call}, rounds=7, seconds=seconds, clock=clock)["a"].rounds == expected


def test_disagreement() -> None:
    expected = np.array([[1.0, -2.0, 0.5]], np.float32)
    assert disagreement(expected, expected + 0.0019) is None
    assert "1.5e-03" in str(disagreement(expected, expected + 0.003))
    assert "differ" in str(disagreement(expected, expected * np.nan))
    assert "shape" in str(disagreement(expected, expected[:, :2]))
    assert "finite" in str(disagreement(expected * np.inf, expected))


def test_zeros_counts_convolutions_and_linear_layers_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Linear(2, 3))
    nn.init.zeros_(model[0].weight)
    nn.init.ones_(model[2].weight)
    assert zeros(model) == 0.25
    assert zeros(nn.ReLU()) == 0


class Fake(backend_module.Backend):
    """Eager mode's answer, off by a factor."""

    factor = 1.0

    def prepare(self, model, example, threads):
        run = backends.get("eager")().prepare(model, example, threads)
        return lambda batch: run(batch) * self.factor


class Wrong(Fake):
    factor = 1.01


class Absent(Fake):
    def available(self):
        return "not installed; install it"


class Broken(Fake):
    def prepare(self, model, example, threads):
        raise RuntimeError("no such operator\nand a long trace")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    backends.names()
    for name, member in {"fake": Fake, "wrong": Wrong, "absent": Absent, "broken": Broken}.items():
        monkeypatch.setitem(backends._members, name, member)


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_latency_times_only_what_agrees(fakes: None) -> None:
    before = torch.get_num_threads()
    names = ["eager", "fake", "wrong", "absent", "broken"]
    rows = latency({"dense": _net(), "sparse": _net()}, 16, 2, names, threads=1, seconds=0.01)
    assert torch.get_num_threads() == before
    assert [(r.label, r.backend) for r in rows] == [(label, n) for label in ("dense", "sparse") for n in names]
    assert [r.status for r in rows[:5]] == ["done", "done", "failed", "skipped", "failed"]
    assert "9.9e-03" in rows[2].reason or "1.0e-02" in rows[2].reason
    assert rows[3].reason == "not installed; install it"
    assert rows[4].reason == "RuntimeError: no such operator"
    assert all(r.ms_per_image is None and r.speedup is None for r in rows if r.status != "done")
    assert rows[0].speedup == 1
    assert rows[6].speedup == pytest.approx(rows[0].ms_per_image / rows[6].ms_per_image)
    assert all(r.q1 <= r.ms_per_image <= r.q3 and r.rounds >= 3 for r in rows if r.status == "done")


def test_latency_without_a_first_time_has_no_speedups(fakes: None) -> None:
    rows = latency({"dense": _net()}, 16, 1, ["broken", "eager"], threads=1, seconds=0)
    assert rows[1].ms_per_image is not None
    assert rows[1].speedup is None


def test_latency_refuses_an_unknown_backend_before_any_work() -> None:
    with pytest.raises(UserError, match=r"no backend called 'eagre'.*eager"):
        latency({"dense": _net()}, 16, 1, ["eagre"], threads=1, seconds=0)


def test_latency_of_a_network_that_cannot_run_is_a_users_error() -> None:
    with pytest.raises(UserError, match=r"dense cannot run on images of shape \[1, 3, 2, 2\]"):
        latency({"dense": _net()}, 2, 1, ["eager"], threads=1, seconds=0)


def test_missing_names_the_absent_module_and_the_cure() -> None:
    assert backend_module.missing("onnx", "torch") is None
    reason = backend_module.missing("onnx", "torch", "no_such_module")
    assert reason == "no_such_module not installed; pip install 'budwood[onnx]'"


def test_compile_without_a_compiler_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in backends.get("compile")().available()


def test_environment_is_complete_and_not_personal() -> None:
    found = environment()
    assert {"cpu", "cores", "threads", "memory", "os", "python", "torch", "numpy", "budwood"} <= found.keys()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert int(found["cores"]) >= 1
    assert all(isinstance(value, str) and value for value in found.values())
    text = " ".join(found.values()).split()
    assert platform.node() not in text
    assert getpass.getuser() not in text
    assert "/home" not in " ".join(text)


# -- the engine among the others, and coarser numbers -----------------------------------------------------------


def test_what_every_report_measures() -> None:
    measured = [name for name in backends if backends.get(name).in_reports]
    assert {"eager", "engine", "onnxruntime", "openvino"} <= set(measured)
    assert not {"compile", "openvino-bf16", "openvino-int8"} & set(measured)


def test_a_backend_of_coarser_numbers_may_differ_by_more(fakes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "tolerance", 0.1)
    (eager, wrong) = latency({"dense": _net()}, 16, 1, ["eager", "wrong"], threads=1, seconds=0)
    assert (eager.status, wrong.status) == ("done", "done")


def test_the_engine_is_timed_beside_eager() -> None:
    rows = latency({"dense": _net()}, 16, 3, ["eager", "engine"], threads=1, seconds=0)
    assert [row.status for row in rows] == ["done", "done"], rows


def test_random_zeros_are_where_they_are_said_to_be() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 40, 1), nn.Conv2d(40, 10, 3, groups=2),
        nn.Linear(10, 5),
    )  # fmt: skip
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = with_random_zeros(model, 0.9)
    shares = [float((layer.weight == 0).float().mean()) for layer in made]
    assert shares == pytest.approx([0, 0, 0.9, 0.9, 0], abs=1e-3)
    kept = made[2].weight != 0
    torch.testing.assert_close(made[2].weight[kept], model[2].weight[kept] * 10**0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(with_random_zeros(model, 0.9)[3].weight, made[3].weight)
    assert not torch.equal(with_random_zeros(model, 0.9, seed=1)[3].weight, made[3].weight)
    named = with_random_zeros(model, {"0.weight": 0.5, "2.weight": 1.0})
    assert [float((layer.weight == 0).float().mean()) for layer in named] == [0.5, 0, 1, 0, 0]
    assert bool(torch.isfinite(named[2].weight).all())
