"""OpenVINO on the CPU, in float32. The only file that imports it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.registry import backends
from .backend import Backend, Run, missing, onnx_bytes


@backends.register("openvino")
class OpenVino(Backend):
    def available(self) -> str | None:
        return missing("openvino", "openvino") or missing("onnx", "onnx", "onnxscript")

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        import openvino

        core = openvino.Core()
        network = core.read_model(onnx_bytes(model, example))
        network.reshape(list(example.shape))
        # On processors with bfloat16 units it would otherwise compute in bfloat16.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(network, "CPU", settings).create_infer_request()

        def run(batch: Any) -> NDArray[np.float32]:
            return np.array(request.infer([np.ascontiguousarray(batch, np.float32)])[0])

        run(example)
        return run
