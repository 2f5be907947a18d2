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
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from evaluators.models.cut import SplitModel
from spaces.partition import INPUT

_log = logging.getLogger("splitsearch")


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
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Any = None,
) -> onnx.ModelProto:
    """Export a module for inputs of the examples' shapes, weights inside; ``dynamic_shapes`` as torch.export has it."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.onnx.export(
                module.eval(),
                tuple(examples),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program.model_proto


def save_module(module: nn.Module, examples: Sequence[torch.Tensor], path: Path, results: int = 1) -> None:
    """Export an encoder, a decoder or a trained tail, which return ``results`` tensors, to a file."""
    onnx.save(to_onnx(module, examples, *_names(examples, results)), str(path))


def save_batchable(module: nn.Module, examples: Sequence[torch.Tensor], path: Path, results: int = 1) -> None:
    """As :func:`save_module`, for a module that takes ``*tensors``; for any number of pictures at once where it can.

    A network that cannot be exported so, or that answers otherwise then, is exported for one picture at a time.
    """
    pairs = [torch.cat([tensor, torch.rand_like(tensor)]) for tensor in examples]
    try:
        shapes = (tuple({0: torch.export.Dim.DYNAMIC} for _ in pairs),)
        onnx.save(to_onnx(module, pairs, *_names(pairs, results), dynamic_shapes=shapes), str(path))
        if _answers_each(path, pairs, results):
            return
    except Exception as error:  # exporters and runtimes raise almost anything for what they do not know
        _log.info("%s takes one picture at a time (%s)", path.name, type(error).__name__)
    save_module(module, examples, path, results)


def _names(examples: Sequence[torch.Tensor], results: int) -> tuple[list[str], list[str]]:
    return [f"tensor_{number}" for number in range(len(examples))], [f"result_{number}" for number in range(results)]


def _answers_each(path: Path, pairs: Sequence[torch.Tensor], results: int) -> bool:
    """Whether a model answers two pictures at once as it answers one after the other."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tensors: Sequence[torch.Tensor]) -> Any:
        return session.run(None, {f"tensor_{number}": tensor.numpy() for number, tensor in enumerate(tensors)})

    both = run(pairs)
    singles = [run([tensor[place : place + 1] for tensor in pairs]) for place in range(2)]
    rows = [(both[number][place], singles[place][number][0]) for number in range(results) for place in range(2)]
    return all(one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in rows)
