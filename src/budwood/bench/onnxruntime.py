"""ONNX Runtime on the CPU. The only file that imports it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.registry import backends
from .backend import Backend, Run, missing, onnx_bytes


@backends.register("onnxruntime")
class OnnxRuntime(Backend):
    def available(self) -> str | None:
        return missing("onnx", "onnxruntime", "onnx", "onnxscript")

    def prepare(self, model: nn.Module, example: Tensor, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Its idle threads spin for a while after a call; that time belongs to whoever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(onnx_bytes(model, example), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(batch: Any) -> NDArray[np.float32]:
            return np.asarray(session.run(None, {name: np.ascontiguousarray(batch, np.float32)})[0])

        run(example)
        return run
