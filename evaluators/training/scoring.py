"""Answers through the real byte path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from evaluators.compression.bottleneck import Tensors
from evaluators.edge import wire
from evaluators.models.answer import first_tensor


@dataclass(frozen=True, kw_only=True)
class Score:
    """What came out when every picture went through bytes.

    ``answers`` (N, ...) are what the network says, see :class:`evaluators.tasks.task.Task`, ``payload_bytes`` is the
    mean length of the payloads, ``sample`` the payload of the first picture.
    """

    answers: torch.Tensor
    payload_bytes: float
    sample: bytes


@torch.no_grad()
def score_split(
    encoder: nn.Module,
    decoder: nn.Module,
    tail: nn.Module,
    batches: Iterable[Tensors],
    form: wire.WireFormat,
) -> Score:
    """Encode each picture's features to a payload, decode the payload, and have the tail answer what it holds.

    Args:
        batches: the head's outputs, some images at a time, one tensor (B, ...) for each that crosses the cut.
        form: levels and coder.
    """
    device = next(decoder.parameters()).device
    answers, sizes, sample = [], [], b""
    for batch in batches:
        activations = [tensor.float().cpu().numpy() for tensor in encoder(*(part.to(device) for part in batch))]
        payloads = [wire.encode(list(picture), form) for picture in zip(*activations, strict=True)]
        received = [np.stack(tensors) for tensors in zip(*(wire.decode(payload, form) for payload in payloads))]
        output = tail(*decoder(*(torch.from_numpy(tensor).to(device) for tensor in received)))
        answers.append(first_tensor(output).cpu())
        sizes += [len(payload) for payload in payloads]
        sample = sample or payloads[0]
    return Score(answers=torch.cat(answers), payload_bytes=float(np.mean(sizes)), sample=sample)
