#!/usr/bin/env python3
"""The engine beside what a user would run instead, on one ONNX file at a time, in one run.

    python benchmarks/table.py --model torchvision:resnet50 --sparsity 0 0.8 0.9 0.95 0.98 --batch 1 16 \
        --engine ours onnxruntime openvino openvino-bf16 openvino-int8 deepsparse --python deepsparse=VENV/bin/python

Each engine is a process of its own; rounds go from engine to engine, so that a drift of the machine's speed hits all
alike, each turn after a rest and a run that is not counted. Outputs are compared first: the root-mean-square difference
to the first engine's, over theirs. Printed are that, the median and the 10 % and 90 % quantiles of a run's time, in ms
per image, the ratio to the first engine, and the process's peak memory. `--python NAME=PATH` gives an engine another
interpreter: DeepSparse wants one of its own (deepsparse==1.8.0, numpy<2, onnx<1.15; its licence allows evaluation
only). `--allocation` shares the zeros among all convolutions as ERK, or STR's published budgets, do. A checkpoint as
`--model` keeps the zeros that it has. `--csv` appends the rows to a file.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import peak_mb

WARM_UP = 5
SETTLE = 0.2
"""Seconds, and then a run that is not counted, between two engines' turns: threads of the one before go to sleep."""


def session(engine: str, path: str, batch: int, threads: int) -> Callable[[], Any]:
    """A function that runs one inference on a fixed random input, and answers the first output."""
    import numpy as np

    def example(shape: Any) -> Any:
        return np.random.default_rng(0).standard_normal([batch, *list(shape)[1:]]).astype(np.float32)

    if engine == "ours":
        import budwood

        program = budwood.compile(path, threads=threads)
        x = example((batch, *program.input_shape))
        return lambda: program(x)
    if engine == "deepsparse":
        from deepsparse import compile_model

        compiled = compile_model(path, batch_size=batch, num_cores=threads)
        x = example(compiled.input_shapes[0])
        return lambda: compiled.run([x])[0]
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        x = example(made.get_inputs()[0].shape)
        return lambda: made.run(None, {made.get_inputs()[0].name: x})[0]
    return _openvino(engine, path, threads, example)


def _openvino(engine: str, path: str, threads: int, example: Callable[[Any], Any]) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    shape = list(model.inputs[0].shape)
    if engine == "openvino-int8":
        import nncf

        model = nncf.quantize(model, nncf.Dataset([example(shape) for _ in range(4)]), subset_size=4)
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if engine == "openvino-bf16" else "f32",
    }
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    x = example(shape)
    return lambda: request.infer({0: x})[0]


def worker(engine: str, path: str, batch: str, threads: str) -> None:
    """Answers every line N on standard input with the seconds of N inferences, after one that is not counted, and
    the peak memory so far, in MB."""
    import numpy as np

    run = session(engine, path, int(batch), int(threads))
    for _ in range(WARM_UP):
        answer = run()
    print("ready", *np.asarray(answer).ravel().tolist(), flush=True)
    for line in sys.stdin:
        time.sleep(SETTLE)
        run()
        times = []
        for _ in range(int(line)):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        print("times", peak_mb(), *times, flush=True)


def reply(process: subprocess.Popen[str], word: str) -> list[float] | None:
    """The numbers of the next line that begins with `word`; None when the process has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        first, *rest = line.split() or [""]
        if first == word:
            return [float(r) for r in rest]
    return None


def measure(path: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per engine."""
    pythons = dict(item.split("=", 1) for item in options.python)
    environment = dict(os.environ, NM_DISABLE_ANALYTICS="True")
    processes, peaks = {}, {}
    answers: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for engine in options.engine:
        command = [pythons.get(engine, sys.executable), __file__, "worker", engine, path, str(batch)]
        process = subprocess.Popen(
            [*command, str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        answer = reply(process, "ready")
        if answer is None:
            print(f"{engine}: does not run here (--verbose shows why)", file=sys.stderr)
            continue
        answers[engine] = answer
        processes[engine], times[engine] = process, []
    runs = max(1, options.images // batch)
    for _ in range(options.rounds):
        for engine, process in processes.items():
            assert process.stdin is not None
            process.stdin.write(f"{runs}\n")
            process.stdin.flush()
            peaks[engine], *found = reply(process, "times") or [0.0]
            times[engine] += found
    rows = []
    for engine, process in processes.items():
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        ms = [t / batch * 1e3 for t in times[engine]]
        low, high = statistics.quantiles(ms, n=10)[0], statistics.quantiles(ms, n=10)[-1]
        row = {"engine": engine, "batch": batch, "ms": statistics.median(ms), "low": low, "high": high}
        rows.append(row | {"peak_mb": peaks[engine]})
    for row in rows:
        row["ratio"] = rows[0]["ms"] / row["ms"]
        row["differs"] = differs(answers[row["engine"]], answers[rows[0]["engine"]])
    return rows


def differs(answer: list[float], reference: list[float]) -> float:
    """Root-mean-square difference over the reference's root mean square."""
    return math.dist(answer, reference) / math.hypot(*reference)


def export(model: str, sparsity: float, allocation: str | None, batch: int, folder: Path) -> tuple[str, str]:
    """An ONNX file of the network, with random weights and random zeros or as its checkpoint has them; its zeros."""
    import torch

    from budwood.bench.zeros import convolutions, with_random_zeros
    from budwood.models.network import build, open_network
    from budwood.prune.allocation import densities

    torch.manual_seed(0)
    pruned = Path(model).exists()
    network = open_network(model) if pruned else build(model, 1000)
    module, zeros = network.module, f"{sparsity:.0%}"
    if pruned:
        zeros = f"{network.mask.sparsity:.0%}"
    elif allocation is None:
        module = with_random_zeros(module, sparsity)
    else:
        zeros = f"{allocation.upper()} {zeros}"
        shapes = {name: tuple(layer.weight.shape) for name, layer in convolutions(module).items()}
        kept = densities(allocation, shapes, sparsity)
        module = with_random_zeros(module, {name: 1 - density for name, density in kept.items()})
    size = network.lineage.preprocessing.size
    path = folder / f"b{batch}.onnx"
    warnings.simplefilter("ignore")
    torch.onnx.export(
        module.eval(), (torch.randn(batch, 3, size, size),), str(path), dynamo=False, opset_version=13, verbose=False
    )
    return str(path), zeros


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        return worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="torchvision:resnet50",
        help="a name as `budwood ls models` has it, a checkpoint or an .onnx file",
    )
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--allocation", choices=("erk", "str"), help="instead of the same share in each layer")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engine", nargs="+", default=["onnxruntime", "ours"], help="the first is what ratios are to")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--images", type=int, default=48, help="images that are timed in a round")
    parser.add_argument("--csv")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    print(
        "| network | zeros | batch | engine | ms an image | 10 % - 90 % | ratio | peak MB | differs |\n"
        + "|---" * 9
        + "|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for sparsity in options.sparsity:
            for batch in options.batch:
                path, zeros = options.model, f"{sparsity:.0%}"
                if not path.endswith(".onnx"):
                    path, zeros = export(options.model, sparsity, options.allocation, batch, Path(folder))
                for row in measure(path, batch, options):
                    named = {"network": options.model, "zeros": zeros, **row}
                    print(
                        f"| {options.model} | {zeros} | {batch} | {row['engine']} | {row['ms']:.2f} | {row['low']:.2f}"
                        f" - {row['high']:.2f} | {row['ratio']:.2f} | {row['peak_mb']:.0f} | {row['differs']:.1e} |",
                        flush=True,
                    )
                    _append(options.csv, named)


def _append(path: str | None, row: dict[str, Any]) -> None:
    if path is None:
        return
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
