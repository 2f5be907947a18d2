"""What candidates are compared with: the uncut model after the same fine-tuning, on clean images or on coded ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from safetensors.torch import load_file
from torch import nn

from evaluators import machine_lock
from evaluators.compute import compute_device
from evaluators.edge.picture_codecs import QUALITIES, PictureCodec, PictureCoding
from evaluators.latency.profiles import cores
from evaluators.models.answer import first_tensor
from evaluators.models.cut import SplitModel
from evaluators.models.weights import save_state
from evaluators.settings import FinetuneSettings
from evaluators.store import Store, StoreKey
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.task import Criterion
from evaluators.training.batchnorm import PICTURES, recalibrate_batchnorm
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune import finetune
from evaluators.training.finetune_data import FinetuneData, KeptInputs

RECIPE = 4  # raise when the fine-tuning of references changes
_WEIGHTS = "weights.safetensors"
_STATISTICS_IMAGES = 500  # for each quality of each codec: fewer cost accuracy, more cost minutes
_JUDGING_IMAGES = 125  # of these, whether it helps: a loss on the same images twice needs few
_OF_SPLITS = ("shared", "head_steps", "reconstruction_steps", "quantization", "ramp")  # settings of bottlenecks, heads
_log = logging.getLogger("splitsearch")


class Whole(nn.Module):
    """Head and tail in one again: images (B, 3, S, S) to a tuple that holds the answers."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Answers (B, ...), alone in a tuple as a head would return them."""
        return (first_tensor(self.tail(*self.head(images))),)


class References(Protocol):
    """The uncut model as candidates' equal: fine-tuned as they are."""

    def clean(self) -> Whole:
        """Fine-tuned on the images as they are."""
        ...

    def behind(self, coding: PictureCoding) -> Whole:
        """Fine-tuned on images of a codec, with the BatchNorm statistics of one quality."""
        ...

    def made_from(self, images: str) -> str:
        """A digest of what they depend on: ``clean``, or a codec's label."""
        ...


class StoredReferences:
    """Trains each reference once, from the earliest partition point, where fine-tuning changes the most; with mirror
    images where those are of the same kind, as candidates with distilled heads do.

    Args:
        split: the uncut network, with its weights.
        feature_cache: of the same network.
        settings: of the fine-tuning that candidates get.
        seed: of that fine-tuning, and of the qualities that training images are coded with.
        store: keeps the fine-tuned weights.
        depends_on: what they depend on besides settings and seed.
    """

    def __init__(
        self,
        split: SplitModel,
        feature_cache: FeatureCache,
        settings: FinetuneSettings,
        seed: int,
        store: Store,
        depends_on: Mapping[str, Any],
    ) -> None:
        self._split, self._feature_cache, self._settings, self._seed = split, feature_cache, settings, seed
        self._store, self._depends_on = store, dict(depends_on)
        self._point = next(point.name for point in split.points if not point.is_end)
        self._mirrored = feature_cache.dataset.mirrored
        self._last: tuple[str, Whole] | None = None  # ten qualities of a codec follow each other

    def clean(self) -> Whole:
        arguments = (self._feature_cache, self._point, self._settings, self._seed)
        return self._kept("clean", lambda: finetuned_uncut(*arguments, mirrored=self._mirrored))

    def behind(self, coding: PictureCoding) -> Whole:
        codec, arguments = coding.codec, (self._feature_cache, self._point, self._settings, self._seed)
        if self._last is None or self._last[0] != codec.label:
            network = self._kept(codec.label, lambda: finetuned_behind(codec, *arguments, mirrored=self._mirrored))
            self._last = codec.label, network
        sample = TrainSample(self._settings.images, self._seed, self._mirrored)
        return at_quality(self._last[1], coding, self._feature_cache, sample)

    def made_from(self, images: str) -> str:
        return self._key(images).digest

    def _key(self, images: str) -> StoreKey:
        shaping = {name: value for name, value in asdict(self._settings).items() if name not in _OF_SPLITS}
        recipe = {"version": RECIPE, "pillow": PIL.__version__, **shaping}
        own = {"fine-tuned on": images, "from": self._point, "recipe": recipe, "seed": self._seed}
        return StoreKey("reference", {**self._depends_on, **own})

    def _kept(self, images: str, train: Callable[[], Whole]) -> Whole:
        def make(place: Path) -> None:
            _log.info("baseline: fine-tuning the uncut network on %s images, as candidates are", images)
            save_state(train(), place / _WEIGHTS)

        folder = self._store.get(self._key(images), make, f"fine-tuned on {images} images")
        found = Whole(*(copy.deepcopy(half) for half in (self._split.head(self._point), self._split.tail(self._point))))
        found.load_state_dict(load_file(folder / _WEIGHTS))
        return found.eval()


class CodedPixels(Sequence[np.ndarray]):
    """Images as they come out of a picture codec, one coding each; coded when they are looked at, since decoded they
    may fill the memory.
    """

    def __init__(self, pixels: Sequence[np.ndarray], codings: Sequence[PictureCoding]) -> None:
        self._pixels, self._codings = pixels, list(codings)

    def __len__(self) -> int:
        return len(self._codings)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return CodedPixels(self._pixels[index], self._codings[index])
        coding = self._codings[index]
        return coding.decode(coding.encode(self._pixels[index]))


class _Decoded(Sequence[np.ndarray]):
    """Pixels of files in memory, decoded when they are looked at."""

    def __init__(self, files: Sequence[bytes], codec: PictureCodec) -> None:
        self._files, self._codec = files, codec

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return _Decoded(self._files[index], self._codec)
        return self._codec.decode(self._files[index])


def finetuned_uncut(
    feature_cache: FeatureCache, partition: str, settings: FinetuneSettings, seed: int, *, mirrored: bool = False
) -> Whole:
    """The uncut model after the fine-tuning that candidates at a partition point get, without a bottleneck.

    Where only bottlenecks are trained, its tail is trained all the same: what fine-tuning alone can do. ``mirrored``
    adds the mirror images that candidates with a distilled head learn from.
    """
    settings, sample = _with_tail(settings), TrainSample(settings.images, seed, mirrored)
    head, tail = copy.deepcopy(feature_cache.base.head(partition)), feature_cache.tail(partition)
    return _finetuned(head, tail, feature_cache.finetune_data(partition, sample), settings, seed)


def finetuned_behind(
    codec: PictureCodec,
    feature_cache: FeatureCache,
    partition: str,
    settings: FinetuneSettings,
    seed: int,
    *,
    mirrored: bool = False,
) -> Whole:
    """The uncut model fine-tuned on training images that went through a codec, each at a random quality.

    The budget is that of candidates, and so is the teacher: the uncut model on the images as they were. The BatchNorm
    statistics, of the head too, are those of the coded images where that helps. ``mirrored`` adds mirror images.
    """
    settings, sample = _with_tail(settings), TrainSample(settings.images, seed, mirrored)
    head, tail = copy.deepcopy(feature_cache.base.head(partition)), feature_cache.tail(partition)
    coded = with_random_qualities(feature_cache.images(sample), codec, seed)
    clean = feature_cache.finetune_data(partition, sample)
    _recalibrate(head, tail, coded, feature_cache, clean.criterion)
    if settings.scope == "all":
        data = replace(clean, features=(), inputs=KeptInputs(coded, feature_cache.dataset.picture))
    else:
        data = replace(clean, features=feature_cache.through(head, coded, rough=mirrored), inputs=None)
    return _finetuned(head, tail, data, settings, seed)


def at_quality(network: Whole, coding: PictureCoding, feature_cache: FeatureCache, sample: TrainSample) -> Whole:
    """A copy of a network whose BatchNorm statistics are those of images coded at one quality, if that helps.

    Fine-tuned on all qualities, ResNet-50 at 64 pixels finds 47.7 % behind JPEG 10, 52.7 with statistics of 250 images
    of that quality, and 54.0 with those of 1,000; behind JPEG 60 58.7, 59.0 and 60.3 (600 images, one seed).
    """
    train = feature_cache.images(sample)
    first = replace(train, pixels=train.pixels[:_STATISTICS_IMAGES])
    found, criterion = copy.deepcopy(network), feature_cache.task.criterion(train)
    _recalibrate(found.head, found.tail, as_coded(first, coding)[0], feature_cache, criterion, judging=_JUDGING_IMAGES)
    return found


def answers(network: nn.Module, feature_cache: FeatureCache, images: LabelledImages) -> torch.Tensor:
    """What a network like :class:`Whole` says of images, (N, ...)."""
    return feature_cache.through(network, images)[0]


def as_coded(images: LabelledImages, coding: PictureCoding) -> tuple[LabelledImages, float]:
    """The images as they come out of a codec; mean bytes of the files. Coded on all cores: Pillow's codecs let others
    run meanwhile.
    """
    with ThreadPoolExecutor(cores()) as pool:
        files = list(pool.map(lambda number: coding.encode(images.pixels[number]), range(len(images))))
    return replace(images, pixels=_Decoded(files, coding.codec)), float(np.mean([len(data) for data in files]))


def with_random_qualities(images: LabelledImages, codec: PictureCodec, seed: int) -> LabelledImages:
    """The images as they come out of a codec, each at a quality drawn once from the table's."""
    drawn = np.random.default_rng(seed).choice(QUALITIES, len(images))
    return replace(images, pixels=CodedPixels(images.pixels, [PictureCoding(codec, int(each)) for each in drawn]))


def _with_tail(settings: FinetuneSettings) -> FinetuneSettings:
    return replace(settings, scope="tail") if settings.scope == "bottleneck" else settings


def _finetuned(head: nn.Module, tail: nn.Module, data: FinetuneData, settings: FinetuneSettings, seed: int) -> Whole:
    device = compute_device()
    learns = head.to(device) if settings.scope == "all" else None
    with machine_lock.training():
        finetune(tail.to(device), None, data, settings, head=learns, seed=seed)
    return Whole(head.cpu(), tail.cpu())


def _recalibrate(
    head: nn.Module,
    tail: nn.Module,
    images: LabelledImages,
    feature_cache: FeatureCache,
    criterion: Criterion,
    *,
    judging: int = PICTURES,
) -> None:
    """Give head and tail the BatchNorm statistics of images, in place, if that helps; the criterion may know more."""
    device, picture = compute_device(), feature_cache.dataset.picture
    both = nn.ModuleList([head.to(device), tail.to(device)])

    def loss(index: torch.Tensor) -> torch.Tensor:
        part = images.inputs(picture, int(index[0]), int(index[-1]) + 1).to(device)
        return criterion(tail(*head(part.to(memory_format=torch.channels_last))), index, 0.0)

    with machine_lock.training(), criterion.learning(tail, 0.0):
        recalibrate_batchnorm(both, loss, len(images), judging=judging)
    both.cpu()
