"""Heads, tails, encoders and decoders as ONNX models.

The whole network is exported once, returning the tensor at every partition point; heads and tails are cut out of that
graph, which takes a tenth of a second each where an export takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from evaluators.models.cut import SplitModel
from spaces.partition import INPUT


class OnnxNetwork:
    """A network exported to ONNX, from which halves are cut.

    Args:
        split: the network; exported with the weights it has now.
    """

    def __init__(self, split: SplitModel) -> None:
        module, self._names = split.tapped()
        size = split.image_size
        outputs = list(dict.fromkeys(name for point, names in self._names.items() if point != INPUT for name in names))
        self._proto = to_onnx(module, (torch.zeros(1, 3, size, size),), [INPUT], outputs)

    def save_part(self, start: str, end: str, path: Path) -> None:
        """Write the part between two points: ``input`` to a point for a head, a point to ``output`` for a tail.

        Inputs and outputs stand in the order of the point's tensors.
        """
        part = onnx.utils.Extractor(self._proto).extract_model(self._names[start], self._names[end])
        onnx.save(part, str(path))


def to_onnx(
    module: nn.Module, examples: Sequence[torch.Tensor], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """Export a module for inputs of the examples' shapes (batch 1), weights inside."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.onnx.export(
                module.eval(), tuple(examples), input_names=inputs, output_names=outputs, dynamo=True, verbose=False
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program.model_proto


def save_module(module: nn.Module, examples: Sequence[torch.Tensor], path: Path, results: int = 1) -> None:
    """Export an encoder, a decoder or a trained tail, which return ``results`` tensors, to a file."""
    inputs = [f"tensor_{number}" for number in range(len(examples))]
    onnx.save(to_onnx(module, examples, inputs, [f"result_{number}" for number in range(results)]), str(path))
