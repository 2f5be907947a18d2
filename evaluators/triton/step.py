"""Triton's first step, ``model.py``: a payload's bytes become the bottleneck's activations.

Runs in Triton's Python backend, with numpy and nothing else of ours but the folder ``edge`` beside it, which is the
code that the device's half runs too.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Made and called by Triton, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the wire format. Called once, before any request."""
        folder = Path(args["model_repository"]) / args["model_version"]
        sys.path.insert(0, str(folder))
        self._wire = importlib.import_module("edge.wire")
        self._errors = importlib.import_module("edge.errors")
        self._format = self._wire.WireFormat.from_dict(json.loads((folder / "server.json").read_text())["wire"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request; a payload that is not ours gets an error and harms no other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        payload = pb_utils.get_input_tensor_by_name(request, "payload").as_numpy().tobytes()
        try:
            tensors = self._wire.decode(payload, self._format)
        except self._errors.PayloadError as error:
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))
        names = [f"activation_{number}" for number in range(len(tensors))]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in zip(names, tensors)])
