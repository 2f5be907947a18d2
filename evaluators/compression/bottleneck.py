"""The autoencoder at the cut: a 1x1 convolution each way, started in closed form.

    head -> (B, C, H, W) -> encoder -> (B, K, H, W) in [-1, 1] -> decoder -> (B, C, H, W) -> tail

The encoder ends in tanh. A bounded output is what lets activations settle on quantization levels at all: a linear map
of features with one mode cannot split into clusters.
"""

from __future__ import annotations

import torch
from torch import nn

from spaces.errors import InfeasibleSplit

# Standard deviation of each component before tanh at the start. At 1 the activations fill [-1, 1] about evenly.
_START_STD = 1.0
_RIDGE = 1e-3


class Bottleneck(nn.Module):
    """Encoder for the device and decoder for the server.

    Args:
        channels: C, feature channels at the cut.
        kept: K, bottleneck channels.
        spatial: whether features are (B, C, H, W) rather than (B, C).
    """

    def __init__(self, channels: int, kept: int, spatial: bool) -> None:
        super().__init__()
        self.channels, self.kept = channels, kept
        self.encoder = nn.Sequential(_pointwise(channels, kept, spatial), nn.Tanh())
        self.decoder = _pointwise(kept, channels, spatial)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations z (B, K, H, W) and the features rebuilt from them, unquantized."""
        activations = self.encoder(features)
        return activations, self.decoder(activations)

    @torch.no_grad()
    def start_from(self, features: torch.Tensor) -> None:
        """Start from principal components: the encoder keeps the K strongest, the decoder undoes it by least squares.

        Args:
            features: a sample at the cut, (N, C, H, W) or (N, C).
        """
        rows = _rows(features).double()  # (N*H*W, C)
        mean = rows.mean(0)
        centred = rows - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
        directions = vectors.flip(1)[:, : self.kept].T  # (K, C), strongest first
        deviations = variances.flip(0)[: self.kept].clamp_min(1e-8 * variances.max().clamp_min(1e-12)).sqrt()
        weight = _START_STD * directions / deviations[:, None]
        _assign(self.encoder[0], weight, -weight @ mean)

        activations = torch.tanh(rows @ weight.T - weight @ mean)  # (N*H*W, K)
        offset = activations.mean(0)
        centred_z = activations - offset
        gram = centred_z.T @ centred_z / len(rows)
        cross = centred_z.T @ centred / len(rows)
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(self.kept, dtype=gram.dtype)
        back = torch.linalg.solve(gram + ridge, cross).T  # (C, K)
        _assign(self.decoder, back, mean - back @ offset)


def kept_channels(channels: int, ae_ratio: float) -> int:
    """Bottleneck channels for an AE ratio. Raises InfeasibleSplit when less than one would be left."""
    kept = round(channels * ae_ratio)
    if kept < 1:
        raise InfeasibleSplit(f"an AE ratio of {ae_ratio:g} leaves no channel of {channels}")
    return kept


def _pointwise(inputs: int, outputs: int, spatial: bool) -> nn.Module:
    # Skip the random initialisation: start_from overwrites it, and it would draw from the global generator.
    layer: nn.Module = nn.Conv2d(inputs, outputs, 1) if spatial else nn.Linear(inputs, outputs)
    return layer


def _assign(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))  # type: ignore[operator, arg-type, union-attr]
    layer.bias.copy_(bias)  # type: ignore[operator, arg-type, union-attr]


def _rows(features: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as (N*H*W, C); (N, C) as it is."""
    return features.movedim(1, -1).reshape(-1, features.shape[1])
