"""OpenVINO on the CPU, in float32, bfloat16 and 8-bit integers. The only file that imports it and NNCF."""

import contextlib
import io
import logging
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.registry import backends
from .backend import Backend, Run, missing, onnx_bytes

CALIBRATION = 4
"""Batches of noise that the ranges of 8-bit numbers are taken from: enough for times, not for accuracies."""


@backends.register("openvino")
class OpenVino(Backend):
    precision: ClassVar[str] = "f32"

    def available(self) -> str | None:
        return missing("openvino", "openvino") or missing("onnx", "onnx", "onnxscript")

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        network = core.read_model(onnx_bytes(model, example))
        network.reshape(list(example.shape))
        network = self.quantized(network, example)
        # On processors with bfloat16 units it would otherwise compute in bfloat16.
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(network, "CPU", settings).create_infer_request()

        def run(batch: Any) -> NDArray[np.float32]:
            return np.array(request.infer([np.ascontiguousarray(batch, np.float32)])[0])

        run(example)
        return run

    def quantized(self, network: Any, example: Tensor) -> Any:
        return network


@backends.register("openvino-bf16")
class OpenVinoBfloat16(OpenVino):
    """On a processor without bfloat16 units it computes in float32."""

    precision = "bf16"
    tolerance = 0.1
    in_reports = False


@backends.register("openvino-int8")
class OpenVinoInt8(OpenVino):
    """Quantised by NNCF after training, with noise for images. How much its answers may differ is generous, since
    it is there for its times."""

    tolerance = 0.5
    in_reports = False

    def available(self) -> str | None:
        return super().available() or missing("openvino", "nncf")

    def quantized(self, network: Any, example: Tensor) -> Any:
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        random = np.random.default_rng(0)
        images = [random.standard_normal(tuple(example.shape), np.float32) for _ in range(CALIBRATION)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return nncf.quantize(network, nncf.Dataset(images), subset_size=CALIBRATION)
