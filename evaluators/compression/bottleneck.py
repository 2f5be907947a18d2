"""The autoencoder at the cut, one for every tensor that crosses, started in closed form.

    head -> (B, C, H, W) -> encoder -> (B, K, H, W) in [-1, 1] -> decoder -> (B, C, H, W) -> tail

The encoder has to be cheap, so it is a 1x1 convolution, tanh, and a soft staircase (below). The decoder runs on the
server and may cost more: a 1x1 convolution plus a branch of two 3x3 convolutions, which learns from the neighbours what
a few bits could not say. With a stride, both work on patches of that side instead of single places.

A bounded output is what lets activations settle on quantization levels at all, and the staircase lets them do so for
any number of levels: a monotone map of features with one mode cannot split into clusters unless it is steep between
levels. How steep is learned for each channel; the task alone makes it flatter, the clustering loss steeper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from spaces.errors import InfeasibleSplit

# Standard deviation of each channel before tanh at the start. At 1 the activations fill [-1, 1] about evenly.
_START_STD = 1.0
_RIDGE = 1e-3
# Channels inside the decoder's branch: twice as many were no better at ResNet-50's stem.
_BRANCH_CHANNELS = 128

Tensors = tuple[torch.Tensor, ...]
Layer = nn.Linear | nn.modules.conv._ConvNd


class Bottleneck(nn.Module):
    """Encoders for the device and decoders for the server, one of each for every tensor at a partition point.

    Args:
        shapes: of the tensors, without the batch dimension.
        channel_axes: axis of each tensor's channels, batch dimension included: 1 or -1.
        ae_ratio: bottleneck channels over feature channels, the same for all.
        bits: bit-width that the encoders' staircases are made for, 1 to 8.
        stride: of the encoders along each spatial axis; z is (B, K, H / stride, W / stride).

    Raises:
        InfeasibleSplit: the ratio leaves a tensor without a channel, or the stride does not fit its spatial axes.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        channel_axes: Sequence[int],
        ae_ratio: float,
        bits: int,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.channels = [
            shape[axis - 1 if axis > 0 else axis] for shape, axis in zip(shapes, channel_axes, strict=True)
        ]
        self.bottleneck_channels = [kept_channels(count, ae_ratio) for count in self.channels]
        encoders, decoders = [], []
        for shape, axis, count, kept in zip(shapes, channel_axes, self.channels, self.bottleneck_channels):
            channels_last = axis == -1 and len(shape) > 1
            dimensions = 1 if channels_last else len(shape)
            if stride > 1:
                _check_stride(stride, () if dimensions == 1 else shape[1:])
            layer = _down(count, kept, dimensions, stride)
            encoders.append(_Encoder(layer, SoftStaircase(kept, bits), channels_last))
            reach = 3 if dimensions > 1 and max(shape[1:]) > 1 else 1
            width = min(count, _BRANCH_CHANNELS)
            inner = _map(kept, width, dimensions, reach)
            outer = _map(width, count, dimensions, reach) if stride == 1 else _up(width, count, dimensions, stride)
            decoders.append(_Decoder(_up(kept, count, dimensions, stride), inner, outer, channels_last))
        self.encoder, self.decoder = _Each(encoders), _Each(decoders)

    def forward(self, *features: torch.Tensor) -> tuple[Tensors, Tensors]:
        """Activations z, (B, K, ...) each, and the features rebuilt from them, unquantized."""
        activations = self.encoder(*features)
        return activations, self.decoder(*activations)

    def activations(self, *features: torch.Tensor) -> tuple[Tensors, Tensors]:
        """Activations z, (B, K, ...) each, and the same once more for the clustering loss: of those, gradients reach
        the staircases' sharpness alone.

        Through the weights that loss finds a cheaper way than clusters: channels that never change. (ResNet-50's stem,
        16 channels of one bit, strength 30: some stayed on one level everywhere, and reconstruction ended at 17 %
        top-1 instead of 38 %.)
        """
        bent = [encoder.bend(tensor) for encoder, tensor in zip(self.encoders, features, strict=True)]
        stairs = [encoder.staircase for encoder in self.encoders]
        return (
            tuple(stair(tensor) for stair, tensor in zip(stairs, bent)),
            tuple(stair(tensor.detach()) for stair, tensor in zip(stairs, bent)),
        )

    @torch.no_grad()
    def start_from(
        self, features: Sequence[torch.Tensor], importance: Sequence[torch.Tensor] | None = None, seed: int = 0
    ) -> None:
        """Start in closed form: encoders keep the K strongest principal components, decoders undo that.

        The components are rotated at random, weighted by the square root of their deviation, so that all channels tell
        about equally much: at one bit each, a strong component deserves several. Untrained, at ResNet-50's stem with 64
        channels of one bit, that lifts accuracy from 34 to 41 % (benchmarks/results/README.md). Each decoder's 1x1
        convolution is the least squares solution, its branch starts at nothing.

        Args:
            features: a sample of every tensor at the cut, (N, C, H, W) or as the network has it.
            importance: for each tensor a positive definite (C, C) matrix; an error e there costs e' M e. All channels
                count alike when not given.
            seed: of the rotation and of the branches' inner weights.
        """
        generator = torch.Generator().manual_seed(seed)
        metrics = importance or [torch.eye(count) for count in self.channels]
        for tensor, metric, encoder, decoder in zip(features, metrics, self.encoders, self.decoders, strict=True):
            _start(tensor, metric, encoder, decoder, generator)

    @property
    def encoders(self) -> list[_Encoder]:
        """One for each tensor."""
        return [part for part in self.encoder.parts if isinstance(part, _Encoder)]

    @property
    def decoders(self) -> list[_Decoder]:
        """One for each tensor."""
        return [part for part in self.decoder.parts if isinstance(part, _Decoder)]

    def weights(self) -> list[nn.Parameter]:
        """All parameters but the staircases'."""
        return [parameter for name, parameter in self.named_parameters() if not name.endswith("sharpness")]

    def sharpness(self) -> list[nn.Parameter]:
        """The staircases' parameters, logarithmic, one tensor for each encoder."""
        return [encoder.staircase.sharpness for encoder in self.encoders]


class _Encoder(nn.Module):
    """Features to activations in [-1, 1], channels on axis 1 whatever the network does."""

    def __init__(self, layer: Layer, staircase: SoftStaircase, channels_last: bool) -> None:
        super().__init__()
        self.layer, self.staircase, self.channels_last = layer, staircase, channels_last

    @property
    def stride(self) -> int:
        return 1 if isinstance(self.layer, nn.Linear) else self.layer.stride[0]

    def bend(self, features: torch.Tensor) -> torch.Tensor:
        """Activations before the staircase."""
        activations = torch.tanh(self.layer(features))
        return activations.movedim(-1, 1) if self.channels_last else activations

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        activations: torch.Tensor = self.staircase(self.bend(features))
        return activations


class SoftStaircase(nn.Module):
    """Monotone map of [-1, 1] onto itself that flattens at the ``2**bits`` levels: the soft rounding of Agustsson and
    Theis (NeurIPS 2020, arXiv 2006.09952, section 4.1), in steps between levels:

        s(y) = floor(y) + 1/2 + tanh(a r) / (2 tanh(a / 2)),    r = y - floor(y) - 1/2

    Half-way points stay where they are, so it never changes which level is nearest. The sharpness ``a`` is learned, one
    for each channel: at 1 the map is nearly the identity, at 20 nearly rounding.

    Args:
        channels: K, on axis 1.
        bits: bit-width, 1 to 8.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.steps = 2**bits - 1
        self.sharpness = nn.Parameter(torch.zeros(channels))  # logarithm of a

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(B, K, ...) within [-1, 1] to the same, in float32."""
        sharpness = self.sharpness.exp().reshape(-1, *[1] * (activations.dim() - 2))
        in_steps = (activations.float() + 1.0) * (self.steps / 2)
        below = in_steps.detach().floor().clamp(0, self.steps - 1)
        between = torch.tanh(sharpness * (in_steps - below - 0.5)) / torch.tanh(sharpness / 2)
        return (below + 0.5 + 0.5 * between) * (2 / self.steps) - 1.0


class _Decoder(nn.Module):
    """Activations to features, channels where the network has them."""

    def __init__(self, layer: Layer, inner: Layer, outer: Layer, channels_last: bool) -> None:
        super().__init__()
        self.layer, self.inner, self.outer, self.channels_last = layer, inner, outer, channels_last

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        signal = activations.movedim(1, -1) if self.channels_last else activations
        features: torch.Tensor = self.layer(signal) + self.outer(torch.relu(self.inner(signal)))
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


def _map(inputs: int, outputs: int, dimensions: int, reach: int = 1) -> Layer:
    """A linear map of the channels of (B, C, ...) with ``dimensions`` - 1 axes behind them, from ``reach`` neighbours
    along each to one.
    """
    # Skip the random initialisation: start_from overwrites it, and it would draw from the global generator.
    if dimensions == 1:
        return nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[return-value]
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[dimensions]
    return nn.utils.skip_init(convolution, inputs, outputs, reach, padding=reach // 2)  # type: ignore[return-value]


def _check_stride(stride: int, sides: tuple[int, ...]) -> None:
    if not sides or any(side % stride for side in sides):
        found = "x".join(map(str, sides)) if sides else "no spatial axes"
        raise InfeasibleSplit(f"a stride of {stride} needs spatial axes that it divides; here are {found}")


def _down(inputs: int, outputs: int, dimensions: int, stride: int) -> Layer:
    """From patches of side ``stride`` to places."""
    if stride == 1:
        return _map(inputs, outputs, dimensions)
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[dimensions]
    return nn.utils.skip_init(convolution, inputs, outputs, stride, stride=stride)  # type: ignore[return-value]


def _up(inputs: int, outputs: int, dimensions: int, stride: int) -> Layer:
    """From places to patches of side ``stride``."""
    if stride == 1:
        return _map(inputs, outputs, dimensions)
    convolution = {2: nn.ConvTranspose1d, 3: nn.ConvTranspose2d, 4: nn.ConvTranspose3d}[dimensions]
    return nn.utils.skip_init(convolution, inputs, outputs, stride, stride=stride)  # type: ignore[return-value]


def _start(
    features: torch.Tensor,
    importance: torch.Tensor,
    encoder: _Encoder,
    decoder: _Decoder,
    generator: torch.Generator,
) -> None:
    """Closed form for one tensor; the vectors are those of patches where there is a stride."""
    stride = encoder.stride
    rows = _patch_rows(
        features, encoder.channels_last, stride
    ).double()  # (N*H*W, C), or with a stride (N*H*W / s^2, C*s^2)
    kept = encoder.layer.weight.shape[0]
    mean = rows.mean(0)
    centred = rows - mean
    covariance = centred.T @ centred / len(rows)
    places = rows.shape[1] // len(importance)
    root = torch.kron(_square_root(importance), torch.eye(places, dtype=torch.float64))
    variances, vectors = torch.linalg.eigh(root @ covariance @ root)
    directions = vectors.flip(1)[:, :kept].T @ root  # (K, C), strongest first
    deviations = variances.flip(0)[:kept].clamp_min(1e-8 * variances.max().clamp_min(1e-12)).sqrt()
    turned = torch.linalg.qr(torch.randn(kept, kept, generator=generator, dtype=torch.float64))[0]
    weight = turned @ (directions / deviations.sqrt()[:, None])
    spread = (weight @ covariance * weight).sum(1)  # (K,) variances
    weight = _START_STD * weight / spread.clamp_min(1e-12).sqrt()[:, None]
    _assign(encoder.layer, weight, -weight @ mean)
    encoder.staircase.sharpness.zero_()

    activations = torch.tanh(rows @ weight.T - weight @ mean)  # (N*H*W, K)
    offset = activations.mean(0)
    centred_z = activations - offset
    gram = centred_z.T @ centred_z / len(rows)
    cross = centred_z.T @ centred / len(rows)
    ridge = _RIDGE * gram.diagonal().mean().clamp_min(1e-9) * torch.eye(len(gram), dtype=gram.dtype)
    back = torch.linalg.solve(gram + ridge, cross)  # (K, C)
    bias = mean - offset @ back
    if stride == 1:
        _assign(decoder.layer, back.T, bias)
    else:  # one bias a channel, so what differs inside a patch is lost, and learned again by the branch
        _assign(decoder.layer, back, bias.reshape(len(importance), -1).mean(1))
    inner, outer = decoder.inner, decoder.outer
    drawn = torch.empty_like(inner.weight, device="cpu")  # where the generator is
    inner.weight.copy_(nn.init.kaiming_uniform_(drawn, nonlinearity="relu", generator=generator))
    for parameter in (inner.bias, outer.weight, outer.bias):
        assert parameter is not None
        nn.init.zeros_(parameter)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Of a symmetric positive definite matrix, in float64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors @ torch.diag(values.clamp_min(1e-9).sqrt()) @ vectors.T


def _assign(layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.copy_(bias)


def _patch_rows(features: torch.Tensor, channels_last: bool, stride: int) -> torch.Tensor:
    """Like :func:`channel_rows`, for patches of side ``stride``: (N * H/s * W/s, C * s * s)."""
    if stride == 1:
        return channel_rows(features, channels_last)
    sides = features.shape[2:]
    split = features.reshape(*features.shape[:2], *(part for side in sides for part in (side // stride, stride)))
    axes = range(len(sides))
    order = [0, *(2 + 2 * axis for axis in axes), 1, *(3 + 2 * axis for axis in axes)]
    return split.permute(order).flatten(0, len(sides)).flatten(1)


def channel_rows(features: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """(N, C, H, W) as (N*H*W, C); (N, C) as it is."""
    return (features if channels_last else features.movedim(1, -1)).flatten(0, -2)
