"""Heads, tails, encoders and decoders as ONNX models.

The whole network is exported once, returning the tensor at every partition point; heads and tails are cut out of that
graph, which takes a tenth of a second each where an export takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
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
        module, names = split.tapped()
        size = split.image_size
        self._proto = to_onnx(module, torch.zeros(1, 3, size, size), [INPUT], names)

    def save_part(self, start: str, end: str, path: Path) -> None:
        """Write the part between two points, named as in :class:`PartitionPoint`."""
        part = onnx.utils.Extractor(self._proto).extract_model([start], [end])
        onnx.save(part, str(path))


def to_onnx(module: nn.Module, example: torch.Tensor, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Export a module for inputs of the example's shape (batch 1), weights inside."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.onnx.export(
                module.eval(), (example,), input_names=inputs, output_names=outputs, dynamo=True, verbose=False
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program.model_proto


def save_module(module: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Export a small module, such as an encoder, to a file."""
    onnx.save(to_onnx(module, example, ["tensor"], ["result"]), str(path))
