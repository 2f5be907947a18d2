"""Accuracy through the real byte path, and how far it lies below the uncut model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from evaluators.edge import wire

_BATCH = 125


@dataclass(frozen=True, kw_only=True)
class Score:
    """What came out when every picture went through bytes.

    ``predictions`` (N,) are class indices, ``payload_bytes`` the mean length of the payloads, ``sample`` the payload of
    the first picture.
    """

    predictions: np.ndarray
    payload_bytes: float
    sample: bytes


@torch.no_grad()
def score_split(
    encoder: nn.Module,
    decoder: nn.Module,
    tail: nn.Module,
    features: Sequence[torch.Tensor],
    form: wire.WireFormat,
) -> Score:
    """Encode each picture's features to a payload, decode the payload, and classify what it holds.

    Args:
        features: the frozen head's outputs, one tensor (N, ...) for each that crosses the cut.
        form: levels and coder.
    """
    device = next(decoder.parameters()).device
    predictions, sizes, sample = [], [], b""
    for batch in zip(*(tensor.split(_BATCH) for tensor in features), strict=True):
        activations = [tensor.float().cpu().numpy() for tensor in encoder(*(part.to(device) for part in batch))]
        payloads = [wire.encode(list(picture), form) for picture in zip(*activations, strict=True)]
        received = [np.stack(tensors) for tensors in zip(*(wire.decode(payload, form) for payload in payloads))]
        scores = tail(*decoder(*(torch.from_numpy(tensor).to(device) for tensor in received)))
        predictions.append(scores.argmax(1).cpu().numpy())
        sizes += [len(payload) for payload in payloads]
        sample = sample or payloads[0]
    return Score(predictions=np.concatenate(predictions), payload_bytes=float(np.mean(sizes)), sample=sample)


def paired_drop_pp(reference: np.ndarray, other: np.ndarray) -> tuple[float, tuple[float, float]]:
    """How much less accurate ``other`` is, in percentage points, with a 95 % interval (normal approximation).

    Args:
        reference: whether the uncut model was right, one bool a picture.
        other: the same for the candidate, on the same pictures in the same order.
    """
    difference = reference.astype(float) - other.astype(float)
    mean = float(difference.mean())
    half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))
