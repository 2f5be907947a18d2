"""``FinetuneData``: what one fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from evaluators.compression.bottleneck import Tensors
from evaluators.edge.picture import PictureFormat
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.task import Criterion


class KeptInputs:
    """Images of an index as network input, (B, 3, S, S); read once each, as far as there is room to keep them.

    Pictures that lie in files take longer to decode than a small head takes to run.
    """

    def __init__(self, images: LabelledImages, picture: PictureFormat, room_bytes: int = 2_000_000_000) -> None:
        self._images, self._picture, self._left = images, picture, room_bytes
        self._kept: dict[int, torch.Tensor] = {}

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        """(B,) to (B, 3, S, S)."""
        return torch.cat([self._one(number) for number in index.tolist()])

    def _one(self, number: int) -> torch.Tensor:
        if number in self._kept:
            return self._kept[number]
        found = self._images.chosen(self._picture, [number])
        if found.nbytes <= self._left:
            self._kept[number] = found
            self._left -= found.nbytes
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """What one fine-tuning learns from.

    ``features`` are the uncut model's, (N, ...) for each tensor that crosses the cut; ``criterion`` knows the labels of
    the same images and what the uncut model says of them; ``inputs`` returns the images of an index themselves,
    (B, 3, S, S), for a head that learns too. With ``versions`` 2, the second half are the mirror images of the first.
    """

    features: Tensors
    criterion: Criterion
    inputs: Callable[[torch.Tensor], torch.Tensor] | None = None
    versions: int = 1

    def __len__(self) -> int:
        """Images, in one version each."""
        return len(self.criterion) // self.versions

    def batches(self, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Every image once, shuffled, each in one of its versions."""
        order = torch.randperm(len(self), generator=generator)
        if self.versions > 1:
            order += len(self) * torch.randint(self.versions, order.shape, generator=generator)
        yield from order.split(size)

    def pictures(self, index: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The images of an index on a device, as heads like them in memory."""
        assert self.inputs is not None
        return self.inputs(index).to(device).contiguous(memory_format=torch.channels_last)
