"""``FinetuneData``: what one fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from evaluators.compression.bottleneck import Tensors
from evaluators.tasks.task import Criterion


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
