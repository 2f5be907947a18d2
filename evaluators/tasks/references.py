"""What candidates are compared with: the uncut model after the same fine-tuning, and the uncut model on JPEG files."""

from __future__ import annotations

import copy

import numpy as np
import torch

from evaluators.edge.picture import from_jpeg, to_jpeg
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.tasks.data import Pictures
from evaluators.tasks.features import FeatureBank
from evaluators.tasks.training import compute_device, finetune
from spaces.partition import OUTPUT

_BATCH = 100


def finetuned_uncut(
    split: SplitModel, bank: FeatureBank, partition: str, settings: FinetuneSettings, seed: int
) -> np.ndarray:
    """Classes (N,) that the uncut model finds in the search-validation pictures after the fine-tuning that candidates
    at a partition point get, without a bottleneck.
    """
    device = compute_device()
    tail = copy.deepcopy(split.tail(partition)).to(device)
    learns = settings.scope == "all"
    head = copy.deepcopy(split.head(partition)).to(device) if learns else None
    finetune(tail, None, bank.lesson(partition, settings.scope), settings, head=head, seed=seed)
    features = bank.through(head.cpu(), bank.validation) if head else bank.features(partition, "validation")
    with torch.no_grad():
        batches = zip(*(tensor.split(_BATCH) for tensor in features))
        # Copies: a tail may work in place, and the bank keeps these.
        scores = [tail(*(tensor.to(device, copy=True) for tensor in batch)) for batch in batches]
        return torch.cat(scores).argmax(1).cpu().numpy()


def on_jpeg(bank: FeatureBank, quality: int) -> tuple[np.ndarray, float]:
    """Classes (N,) that the uncut model as given finds in the search-validation pictures after JPEG; mean bytes of the
    files.
    """
    files = [to_jpeg(pixels, quality) for pixels in bank.validation.pixels]
    decoded = Pictures([from_jpeg(data) for data in files], bank.validation.labels)
    found = bank.through_head(OUTPUT, decoded)[0].argmax(1).numpy()
    return found, float(np.mean([len(data) for data in files]))
