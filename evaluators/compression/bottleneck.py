"""The autoencoder at the cut, one for every tensor that crosses, started in closed form.

    head -> (B, C, H, W) -> encoder -> (B, K, H, W) in [-1, 1] -> decoder -> (B, C, H, W) -> tail

The encoder has to be cheap, so it is a 1x1 convolution, tanh, and a soft staircase (below). With a stride it is a
convolution that sees one place more than its patch, 3x3 for a stride of 2. The decoder runs on the server and may cost
more: a 1x1 convolution plus a branch of 3x3 convolutions with a residual block, which learns from the neighbours what a
few bits could not say. A distilled head (evaluators/models/distilled.py) gives the encoder maps with channels of its
own; what the decoder makes of them are the network's features all the same.

A bounded output is what lets activations settle on quantization levels at all, and the staircase lets them do so for
any number of levels: a monotone map of features with one mode cannot split into clusters unless it is steep between
levels. How steep is learned for each channel; the task alone makes it flatter, the clustering loss steeper.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from evaluators.models.distilled import stand_in
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import PartitionPoint

FORMAT = 2  # raise when encoders, decoders or distilled heads change: timings of others are then not taken for theirs

# Standard deviation of each channel before tanh at the start. At 1 the activations fill [-1, 1] about evenly.
_START_STD = 1.0
_RIDGE = 1e-3
_BRANCH_CHANNELS = 256  # at most, inside the decoder's branch

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
        head_channels: of the maps that a distilled head returns in the features' place, channels first, one for each
            tensor and as large; None where the encoders get the features themselves.

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
        head_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = [
            shape[axis - 1 if axis > 0 else axis] for shape, axis in zip(shapes, channel_axes, strict=True)
        ]
        self.bottleneck_channels = [kept_channels(count, ae_ratio) for count in self.channels]
        encoders, decoders = [], []
        given = head_channels or self.channels
        for shape, axis, count, kept, own in zip(shapes, channel_axes, self.channels, self.bottleneck_channels, given):
            channels_last = axis == -1 and len(shape) > 1
            dimensions = 1 if channels_last else len(shape)
            if stride > 1:
                _check_stride(stride, () if dimensions == 1 else shape[1:])
            reads_last = channels_last and head_channels is None
            down = _down(own, kept, dimensions if reads_last or not channels_last else len(shape), stride)
            encoders.append(_Encoder(down, SoftStaircase(kept, bits), reads_last))
            decoders.append(Decoder(kept, count, shape, stride, channels_last))
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
        self,
        features: Sequence[torch.Tensor],
        importance: Sequence[torch.Tensor] | None = None,
        seed: int = 0,
        maps: Sequence[torch.Tensor] | None = None,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Start in closed form: encoders keep the K strongest principal components, decoders undo that.

        Behind a distilled head, it is the K components of the features that its maps tell the most of (reduced-rank
        regression: Izenman, Journal of Multivariate Analysis 5, 1975), which are the same where the maps are the
        features.

        The components are rotated at random, weighted by the square root of their deviation, so that all channels tell
        about equally much: at one bit each, a strong component deserves several. Each decoder's 1x1 convolution is the
        least squares solution, its branch starts at nothing.

        Args:
            features: a sample of every tensor at the cut, (N, C, H, W) or as the network has it.
            importance: for each tensor a positive definite (C, C) matrix; an error e there costs e' M e. All channels
                count alike when not given.
            seed: of the rotation and of the branches' inner weights.
            maps: what a distilled head makes of the same pictures, one for each tensor.
            prefixes: for each tensor how many of the first channels have to tell the most that so many can; the last is
                all of them. Nothing is rotated across them.
        """
        generator = torch.Generator().manual_seed(seed)
        metrics = importance or [torch.eye(count) for count in self.channels]
        for number, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            given = features[number] if maps is None else maps[number]
            counts = [0, *(prefixes[number] if prefixes else [self.bottleneck_channels[number]])]
            groups = [after - before for before, after in itertools.pairwise(counts)]
            _start(given, features[number], metrics[number], encoder, decoder, groups, generator)

    @torch.no_grad()
    def refit(self, received: Sequence[torch.Tensor], features: Sequence[torch.Tensor]) -> None:
        """Choose the decoders' linear maps anew: least squares, with the branches as they are.

        Args:
            received: activations after their levels, (N, K, ...) for each tensor.
            features: what is to be rebuilt of them.
        """
        for decoder, tensor, wanted in zip(self.decoders, received, features, strict=True):
            left = wanted.float() - decoder.branch(tensor)
            rows = channel_rows(tensor, channels_last=False).double()
            _fit(decoder, rows, _patch_rows(left, decoder.channels_last, decoder.stride).double())

    @property
    def encoders(self) -> list[_Encoder]:
        """One for each tensor."""
        return [part for part in self.encoder.parts if isinstance(part, _Encoder)]

    @property
    def decoders(self) -> list[Decoder]:
        """One for each tensor."""
        return [part for part in self.decoder.parts if isinstance(part, Decoder)]

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


class Decoder(nn.Module):
    """Activations to features, channels where the network has them: a linear map, and a branch that corrects it.

    Args:
        kept: channels of the activations, on axis 1.
        channels: of the features.
        shape: of the features, without the batch dimension.
        stride: how many times as long the features' sides are.
        channels_last: whether the features' channels are on their last axis.
    """

    def __init__(self, kept: int, channels: int, shape: tuple[int, ...], stride: int, channels_last: bool) -> None:
        super().__init__()
        dimensions = 1 if channels_last else len(shape)
        reach = 3 if dimensions > 1 and max(shape[1:]) > 1 else 1
        width = min(channels, _BRANCH_CHANNELS)
        self.layer = _up(kept, channels, dimensions, stride)
        self.inner = _map(kept, width, dimensions, reach)
        self.first, self.second = (_map(width, width, dimensions, reach) for _ in range(2))
        self.outer = _up(width, channels, dimensions, stride)
        self.channels_last, self.stride = channels_last, stride

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(B, K, ...) to features, (B, ...)."""
        features: torch.Tensor = self.layer(self._signal(activations)) + self.branch(activations)
        return features

    def branch(self, activations: torch.Tensor) -> torch.Tensor:
        """What the branch adds."""
        inner = self.inner(self._signal(activations))
        inner = inner + self.second(torch.relu(self.first(torch.relu(inner))))
        correction: torch.Tensor = self.outer(torch.relu(inner))
        return correction

    def _signal(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.movedim(1, -1) if self.channels_last else activations

    def start(self, generator: torch.Generator) -> None:
        """A branch that adds nothing yet."""
        for inside in (self.inner, self.first):
            drawn = torch.empty_like(inside.weight, device="cpu")  # where the generator is
            inside.weight.copy_(nn.init.kaiming_uniform_(drawn, nonlinearity="relu", generator=generator))
        empty = (self.second.weight, self.outer.weight)
        for parameter in (*empty, self.inner.bias, self.first.bias, self.second.bias, self.outer.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)


class _Each(nn.Module):
    """Applies its parts to its arguments, one to one."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return tuple(part(tensor) for part, tensor in zip(self.parts, tensors, strict=True))


def new_bottleneck(point: PartitionPoint, config: SplitConfig, image_size: int) -> Bottleneck:
    """An untrained bottleneck for a configuration.

    Args:
        point: the configuration's partition point.
        config: head, AE ratio, bit-width and stride.
        image_size: side of the pictures in pixels.

    Raises:
        InfeasibleSplit: it does not fit the point.
    """
    axes = point.channel_axes or (1,) * len(point.shapes)
    head = stand_in(config, point, image_size)
    channels = head.channels if head is not None else None
    return Bottleneck(point.shapes, axes, config.ae_ratio, config.bits, config.stride, channels)


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
    """From patches of side ``stride``, and one place before each, to places."""
    if stride == 1:
        return _map(inputs, outputs, dimensions)
    convolution = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}[dimensions]
    layer = nn.utils.skip_init(convolution, inputs, outputs, stride + 1, stride=stride, padding=1)
    return layer  # type: ignore[return-value]


def _up(inputs: int, outputs: int, dimensions: int, stride: int) -> Layer:
    """From places to patches of side ``stride``."""
    if stride == 1:
        return _map(inputs, outputs, dimensions)
    convolution = {2: nn.ConvTranspose1d, 3: nn.ConvTranspose2d, 4: nn.ConvTranspose3d}[dimensions]
    return nn.utils.skip_init(convolution, inputs, outputs, stride, stride=stride)  # type: ignore[return-value]


def _start(
    given: torch.Tensor,
    features: torch.Tensor,
    importance: torch.Tensor,
    encoder: _Encoder,
    decoder: Decoder,
    groups: Sequence[int],
    generator: torch.Generator,
) -> None:
    """Closed form for one tensor; the vectors are those of patches where there is a stride."""
    stride = encoder.stride
    # (N*H*W, C), or with a stride (N*H*W / s^2, C*s^2): what the encoder sees, and what is to come out
    seen = _patch_rows(given, encoder.channels_last, stride).double()
    wanted = _patch_rows(features, decoder.channels_last, stride).double()
    mean, wanted_mean = seen.mean(0), wanted.mean(0)
    weight = _START_STD * _directions(seen - mean, wanted - wanted_mean, importance, groups, generator)
    _assign_patches(encoder.layer, weight, -weight @ mean, stride)
    encoder.staircase.sharpness.zero_()
    _fit(decoder, torch.tanh(seen @ weight.T - weight @ mean), wanted)
    decoder.start(generator)


def _fit(decoder: Decoder, activations: torch.Tensor, wanted: torch.Tensor) -> None:
    """A decoder's linear map, by least squares from rows (N, K) to rows of features, or of patches of them."""
    back, bias = _least_squares(activations, wanted)
    if decoder.stride == 1:
        _assign(decoder.layer, back.T, bias)
    else:  # one bias a channel, so what differs inside a patch is lost, and learned again by the branch
        _assign(decoder.layer, back, bias.reshape(-1, decoder.stride ** (decoder.layer.weight.dim() - 2)).mean(1))


def _directions(
    seen: torch.Tensor,
    wanted: torch.Tensor,
    importance: torch.Tensor,
    groups: Sequence[int],
    generator: torch.Generator,
) -> torch.Tensor:
    """(K, columns of ``seen``): what of centred rows tells the most of others, each group of channels rotated inside
    itself, at a variance of 1 each; the first group has the strongest.
    """
    kept = sum(groups)
    covariance = seen.T @ seen / len(seen)
    places = wanted.shape[1] // len(importance)
    root = torch.kron(_square_root(importance), torch.eye(places, dtype=torch.float64))
    if seen.shape == wanted.shape and torch.equal(seen, wanted):
        told, explained = root, root @ covariance @ root
    else:
        cross = seen.T @ wanted / len(seen)
        told = root @ torch.linalg.solve(_ridged(covariance), cross).T
        explained = told @ covariance @ told.T
    variances, vectors = torch.linalg.eigh(explained)
    found = min(kept, *seen.shape[1:], wanted.shape[1])  # more channels than that repeat each other
    directions = vectors.flip(1)[:, :found].T @ told  # strongest first
    deviations = variances.flip(0)[:found].clamp_min(1e-8 * variances.max().clamp_min(1e-12)).sqrt()
    drawn = [torch.randn(size, size, generator=generator, dtype=torch.float64) for size in groups]
    turned = torch.block_diag(*(torch.linalg.qr(each)[0] for each in drawn))[:, :found]
    weight = turned @ (directions / deviations.sqrt()[:, None])
    spread = (weight @ covariance * weight).sum(1)  # (K,) variances
    return weight / spread.clamp_min(1e-12).sqrt()[:, None]


def _least_squares(activations: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix (K, C) and offset (C,) that make rows of activations into what is wanted, with a little shrinkage."""
    offset = activations.mean(0)
    centred = activations - offset
    gram, cross = centred.T @ centred / len(centred), centred.T @ wanted / len(centred)
    back = torch.linalg.solve(_ridged(gram), cross)
    return back, wanted.mean(0) - offset @ back


def _ridged(gram: torch.Tensor) -> torch.Tensor:
    return gram + _RIDGE * gram.diagonal().mean().clamp_min(1e-9) * torch.eye(len(gram), dtype=gram.dtype)


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Of a symmetric positive definite matrix, in float64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors @ torch.diag(values.clamp_min(1e-9).sqrt()) @ vectors.T


def _assign(layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.copy_(bias)


def _assign_patches(layer: Layer, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> None:
    """Weights for patches into a layer that also sees the places before each, which start at nothing."""
    if stride > 1:
        axes = layer.weight.dim() - 2
        patches = weight.reshape(len(weight), -1, *(stride,) * axes)
        weight = nn.functional.pad(patches, (1, 0) * axes)
    _assign(layer, weight, bias)


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
