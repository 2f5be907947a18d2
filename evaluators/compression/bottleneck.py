"""The autoencoder at the cut: a 1x1 convolution each way for every tensor that crosses, started in closed form.

    head -> (B, C, H, W) -> encoder -> (B, K, H, W) in [-1, 1] -> decoder -> (B, C, H, W) -> tail

The encoder ends in tanh. A bounded output is what lets activations settle on quantization levels at all: a linear map
of features with one mode cannot split into clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from spaces.errors import InfeasibleSplit

# Standard deviation of each component before tanh at the start. At 1 the activations fill [-1, 1] about evenly.
_START_STD = 1.0
_RIDGE = 1e-3

Tensors = tuple[torch.Tensor, ...]


class Bottleneck(nn.Module):
    """Encoders for the device and decoders for the server, one of each for every tensor at a partition point.

    Args:
        shapes: of the tensors, without the batch dimension.
        channel_axes: axis of each tensor's channels, batch dimension included: 1 or -1.
        ae_ratio: bottleneck channels over feature channels, the same for all.

    Raises:
        InfeasibleSplit: the ratio leaves a tensor without a channel.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], channel_axes: Sequence[int], ae_ratio: float) -> None:
        super().__init__()
        channels = [shape[axis - 1 if axis > 0 else axis] for shape, axis in zip(shapes, channel_axes, strict=True)]
        self.kept = [kept_channels(count, ae_ratio) for count in channels]
        encoders, decoders = [], []
        for shape, axis, count, kept in zip(shapes, channel_axes, channels, self.kept):
            moved = axis == -1 and len(shape) > 1
            encoders.append(_Encoder(_pointwise(count, kept, len(shape), moved), moved))
            decoders.append(_Decoder(_pointwise(kept, count, len(shape), moved), moved))
        self.encoder, self.decoder = _Each(encoders), _Each(decoders)

    def forward(self, *features: torch.Tensor) -> tuple[Tensors, Tensors]:
        """Activations z, (B, K, ...) each, and the features rebuilt from them, unquantized."""
        activations = self.encoder(*features)
        return activations, self.decoder(*activations)

    @torch.no_grad()
    def start_from(self, features: Sequence[torch.Tensor]) -> None:
        """Start from principal components: each encoder keeps the K strongest, its decoder undoes it by least squares.

        Args:
            features: a sample of every tensor at the cut, (N, C, H, W) or as the network has it.
        """
        for tensor, encoder, decoder in zip(features, self.encoder.parts, self.decoder.parts, strict=True):
            _start(tensor, encoder, decoder)  # type: ignore[arg-type]


class _Encoder(nn.Module):
    """Features to activations in [-1, 1], channels on axis 1 whatever the network does."""

    def __init__(self, layer: nn.Module, moved: bool) -> None:
        super().__init__()
        self.layer, self.moved = layer, moved

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        activations = torch.tanh(self.layer(features))
        return activations.movedim(-1, 1) if self.moved else activations


class _Decoder(nn.Module):
    """Activations to features, channels where the network has them."""

    def __init__(self, layer: nn.Module, moved: bool) -> None:
        super().__init__()
        self.layer, self.moved = layer, moved

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(activations.movedim(1, -1) if self.moved else activations)
        return features


class _Each(nn.Module):
    """Applies its parts to its arguments, one to one."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return tuple(part(tensor) for part, tensor in zip(self.parts, tensors, strict=True))


def kept_channels(channels: int, ae_ratio: float) -> int:
    """Bottleneck channels for an AE ratio. Raises InfeasibleSplit when less than one would be left."""
    kept = round(channels * ae_ratio)
    if kept < 1:
        raise InfeasibleSplit(f"an AE ratio of {ae_ratio:g} leaves no channel of {channels}")
    return kept


def _pointwise(inputs: int, outputs: int, dimensions: int, channels_last: bool) -> nn.Module:
    """A linear map of the channels, the same at every place."""
    # Skip the random initialisation: start_from overwrites it, and it would draw from the global generator.
    if channels_last or dimensions == 1:
        return nn.utils.skip_init(nn.Linear, inputs, outputs)
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[dimensions]
    return nn.utils.skip_init(convolution, inputs, outputs, 1)


def _start(features: torch.Tensor, encoder: _Encoder, decoder: _Decoder) -> None:
    """Principal components of one tensor."""
    rows = _rows(features, encoder.moved).double()  # (N*H*W, C)
    kept = encoder.layer.weight.shape[0]  # type: ignore[union-attr, index]
    mean = rows.mean(0)
    centred = rows - mean
    variances, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    directions = vectors.flip(1)[:, :kept].T  # (K, C), strongest first
    deviations = variances.flip(0)[:kept].clamp_min(1e-8 * variances.max().clamp_min(1e-12)).sqrt()
    weight = _START_STD * directions / deviations[:, None]
    _assign(encoder.layer, weight, -weight @ mean)

    activations = torch.tanh(rows @ weight.T - weight @ mean)  # (N*H*W, K)
    offset = activations.mean(0)
    centred_z = activations - offset
    gram = centred_z.T @ centred_z / len(rows)
    cross = centred_z.T @ centred / len(rows)
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-9) * torch.eye(len(gram), dtype=gram.dtype)
    back = torch.linalg.solve(gram + ridge, cross).T  # (C, K)
    _assign(decoder.layer, back, mean - back @ offset)


def _assign(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))  # type: ignore[operator, arg-type, union-attr]
    layer.bias.copy_(bias)  # type: ignore[operator, arg-type, union-attr]


def _rows(features: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """(N, C, H, W) as (N*H*W, C); (N, C) as it is."""
    return (features if channels_last else features.movedim(1, -1)).flatten(0, -2)
