"""``SplitEvaluator``: scores a configuration by cutting, training, encoding to bytes and measuring."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from torch import nn

from evaluators import folders
from evaluators.base import Evaluator, Progress, Split
from evaluators.compute import compute_device
from evaluators.edge import halves
from evaluators.edge.circumstances import machine as this_machine
from evaluators.latency.compose import latency_fields
from evaluators.latency.link_probe import measure_link
from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import NotRecorded
from evaluators.latency.profiles import Fitting, MachineProfile, Scaling
from evaluators.latency.runners import Runner
from evaluators.latency.stage_timer import Stages, StageTimer
from evaluators.latency.table import StageTable
from evaluators.models.cut import FirstTensor, SplitModel
from evaluators.models.detector import has_one_to_one_head
from evaluators.models.load import build
from evaluators.models.onnx_export import save_module
from evaluators.result import Evaluation
from evaluators.settings import PRETRAINED, BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.tasks.classification import Classification
from evaluators.tasks.data import Dataset, LabelledImages
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection import Detection
from evaluators.tasks.detection_data import DetectionFiles
from evaluators.tasks.task import Task, TaskMetrics
from evaluators.training.candidates import Candidates
from evaluators.training.feature_cache import FeatureCache
from evaluators.training.references import Whole, answers, as_jpeg, finetuned_uncut
from evaluators.training.uncut import Train, baseline_path, baseline_record, train_classifier, train_or_load
from evaluators.training.uncut_detector import train_detector
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import NotFinished, SpecError
from spaces.partition import INPUT, OUTPUT, PartitionPoint

JPEG_QUALITIES = (10, 25, 50, 75, 95)

_CARVED = (
    "these weights may have seen any picture of a data set that comes undivided, so nothing is left to judge by; "
    "leave them out, or give data with a val or test split"
)


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """All that a :class:`SplitEvaluator` needs to know.

    A ``link`` of None is measured, once, between device and this machine. ``seed`` fixes training, not the split of the
    data.
    """

    model: ModelSettings
    data: DataSettings
    device: MachineProfile
    server: MachineProfile
    link: LinkProfile | None
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    seed: int = 0


_SEEN = (
    "These weights come from ImageNet, and so do TinyImageNet's held-out images: they may have been seen, and "
    "accuracies may be too high."
)


def _made(record: dict[str, Any]) -> str:
    epochs = record["epochs"]
    minutes = sum(epoch["seconds"] for epoch in epochs) / 60
    return (
        f"splitsearch trained the uncut model itself: {len(epochs)} epochs in {minutes:.0f} min on {record['compute']}."
    )


def _task_name(model: ModelSettings) -> str:
    return "detection" if model.name.startswith("ultralytics/") else "classification"


class SplitEvaluator(Evaluator):
    """The real evaluator.

    Args:
        settings: what to score on what.
        folder: where trained candidates and timings are kept; made when something is kept.
        runner: takes the timings in place of the machines' own; for tests.

    Raises:
        SpecError: model, weights or data do not exist or do not fit each other.
    """

    def __init__(self, settings: SplitSettings, folder: Path, runner: Runner | None = None) -> None:
        self._settings, self._folder = settings, folder
        self._runner = runner
        self._dataset = open_dataset(settings.data)
        if settings.model.num_classes != len(self._dataset.classes):
            found = f"{settings.data.name} has {len(self._dataset.classes)} classes; give that number"
            raise SpecError("model.num_classes", settings.model.num_classes, found)
        if self._dataset.task != _task_name(settings.model):
            needs = f"{settings.model.name} needs data for {_task_name(settings.model)}, "
            needs += f"this is for {self._dataset.task}"
            raise SpecError("data.name", settings.data.name, needs)
        if self._dataset.carved and settings.model.weights not in (None, PRETRAINED):
            raise SpecError("model.weights", str(settings.model.weights), _CARVED)
        loaded = build(settings.model)
        self._network = loaded.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._split = SplitModel(self._network, settings.data.image_size)
        self._task = self._task_for(loaded.network)
        self._feature_cache = FeatureCache(
            self._split, self._dataset, self._task, settings.finetune.images, settings.seed
        )
        self._candidates = Candidates(
            folder / "splits", self._split, self._feature_cache, settings.finetune, settings.seed
        )
        self._loaded_trained = self._prepared = loaded.trained

    # -- the contract ------------------------------------------------------------------------------------------------

    def partition_points(self) -> Sequence[PartitionPoint]:
        """See :class:`Evaluator`."""
        return self._split.points

    def head_ms(self, points: Sequence[PartitionPoint]) -> list[float | None]:
        """See :class:`Evaluator`."""
        return [0.0 if point.name == INPUT else self._head_ms(point.name) for point in points]

    def _head_ms(self, partition: str) -> float | None:
        try:
            return self._stage_timer.head(partition).timings["head"].p50_ms
        except NotRecorded:
            return None

    @property
    def is_trained(self) -> bool:
        """Whether the uncut model has its weights, given or kept from an earlier training."""
        return self._prepared or self._baseline_path.exists()

    def prepare(self, partitions: Sequence[str], progress: Progress) -> None:
        """Train the uncut model if no weights are given (or load it from an earlier training); time heads and tails."""
        self._give_weights(progress)
        for number, partition in enumerate(partitions, 1):
            progress(f"timing head and tail of {partition} ({number} of {len(partitions)})")
            self._stage_timer.head(partition)
            self._stage_timer.tail(partition)

    def _give_weights(self, progress: Progress) -> None:
        if self._prepared:
            return
        settings, train = self._settings, self._train_uncut
        train_or_load(
            self._network, self._baseline_path, self._dataset, settings.baseline, settings.seed, progress, train
        )
        self._prepared = True

    def identity(self) -> dict[str, str]:
        """See :class:`Evaluator`."""
        return {}

    def evaluate(
        self, config: SplitConfig, *, budget: Budget | None = None, seed: int | None = None, split: Split = "validation"
    ) -> Evaluation:
        """Train (or load), encode to bytes and back, measure, compose."""
        candidate = self._candidates.get(config)
        score = candidate.score(config, self._feature_cache)
        stages = self._stage_timer.split(config, candidate, score.sample)
        point = self._split.tap(config.partition).point
        details = {
            "bottleneck_channels": sum(candidate.bottleneck.bottleneck_channels),
            "encoder_macs": point.encoder_macs(config.ae_ratio),
            "head_macs": point.head_macs,
            "bits_per_element": 8 * score.payload_bytes / point.elements,
            "training": candidate.history,
        }
        return self._evaluation(config.label, score.answers, score.payload_bytes, stages, config, details)

    def baselines(self, *, trained: bool) -> list[Evaluation]:
        """See :class:`Evaluator`."""
        if not self.is_trained:
            raise NotFinished("the uncut model is not trained yet; 'splitsearch run' trains it first")
        self._give_weights(lambda _: None)
        networks: dict[str, nn.Module] = {"": self._split.head(OUTPUT)}
        if trained:
            networks[", fine-tuned"] = self._finetuned
        validation, watch = self._feature_cache.validation, self._stage_timer
        raw = float(np.mean([pixels.nbytes for pixels in validation.pixels]))

        def ways() -> Iterator[tuple[str, LabelledImages, float, Stages]]:
            """One after the other: decoded, the images of a single quality may fill the memory."""
            yield "all-on-device", validation, 0.0, watch.all_on_device()
            yield "server-only, raw", validation, raw, watch.server_only(None)
            for quality in JPEG_QUALITIES:
                yield f"server-only, JPEG {quality}", *as_jpeg(self._feature_cache, quality), watch.server_only(quality)

        return [
            self._evaluation(name + how, answers(network, self._feature_cache, images), size, stages)
            for name, images, size, stages in ways()
            for how, network in networks.items()
        ]

    def export(self, config: SplitConfig, directory: Path) -> dict[str, Any]:
        """Write both halves, then run every search-validation picture through them as a user would."""
        candidate = self._candidates.get(config)
        sample = [torch.zeros(1, *shape) for shape in self._split.tap(config.partition).point.shapes]
        form = candidate.wire_format(config)
        device, server = directory / "device", directory / "server"
        bottleneck = candidate.bottleneck.eval()
        self._stage_timer.write_device(
            device, {"wire": form.to_dict(), "threads": self._threads(self._settings.device)}
        )
        if candidate.head is None:
            self._stage_timer.network.save_part(INPUT, config.partition, device / "head.onnx")
        else:
            size = self._settings.data.image_size
            save_module(candidate.head, [torch.zeros(1, 3, size, size)], device / "head.onnx", len(sample))
        save_module(bottleneck.encoder, sample, device / "encoder.onnx", len(sample))

        half = halves.DeviceHalf(device)
        payloads = [half.encode(pixels) for pixels in self._feature_cache.validation.pixels]
        manifest = {"picture": self._dataset.picture.to_dict(), "threads": self._threads(self._settings.server)}
        manifest |= {"wire": form.to_dict(), "classes": list(self._dataset.classes)}
        folders.write_server(server, manifest, payload=payloads[0])
        activations = [torch.zeros(1, *levels.shape) for levels in candidate.levels]
        save_module(bottleneck.decoder, activations, server / "decoder.onnx", len(sample))
        save_module(FirstTensor(candidate.tail), sample, server / "tail.onnx")

        other = halves.ServerHalf(server)
        found = torch.from_numpy(np.stack([other.decode(payload) for payload in payloads]))
        scored = candidate.score(config, self._feature_cache)
        return {
            "images": len(payloads),
            "agreement_with_trial": self._task.agreement(found, scored.answers),
            "accuracy": self._task.judge(found, self._feature_cache.validation).accuracy,
            "payload_bytes": float(np.mean([len(payload) for payload in payloads])),
        }

    def describe(self) -> dict[str, Any]:
        """See :class:`Evaluator`."""
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        versions |= {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()}
        library = self._settings.model.name.partition("/")[0]
        if library in ("timm", "ultralytics"):
            versions[library] = metadata.version(library)
        device, server = self._stage_timer.device.describe(), self._stage_timer.server.describe()
        return {
            "machine": this_machine(),
            "compute": str(compute_device()),
            "metric": self._task.metric,
            "versions": versions,
            "device": device,
            "server": server,
            "link": self._link.describe(),
            "images": {
                "fine-tuning": len(self._feature_cache.train),
                "search-validation": len(self._feature_cache.validation),
            },
            "seed": self._settings.seed,
            "baseline": None if self._loaded_trained else baseline_record(self._baseline_path),
        }

    def notes(self) -> list[str]:
        """See :class:`Evaluator`."""
        said = []
        if self.is_trained:
            self._give_weights(lambda _: None)
            accuracy, count = self._held_out_accuracy()
            said.append(
                f"The uncut model as given: {self._task.metric} {accuracy:.2%} on all {count:,} held-out images "
                f"(search-validation and test together); the table shows search-validation alone."
            )
        if isinstance(self._dataset, DetectionFiles) and (dropped := self._dataset.degenerate_boxes):
            said.append(f"{dropped} annotated {'box has' if dropped == 1 else 'boxes have'} no area and were left out.")
        if not self._loaded_trained and (record := baseline_record(self._baseline_path)):
            said.insert(0, _made(record))
        if self._settings.model.weights == PRETRAINED and self._dataset.name == "tinyimagenet":
            said.insert(0, _SEEN)
        return said

    # -- parts of it -------------------------------------------------------------------------------------------------

    def _held_out_accuracy(self) -> tuple[float, int]:
        """Accuracy of the uncut model as given on all images it has not seen, and their number.

        For checking weights against what their maker says of them. It chooses nothing, so test stays a test.
        """
        feature_cache, test = self._feature_cache, self._dataset.test()
        both = torch.cat([feature_cache.answers("validation"), feature_cache.through_head(OUTPUT, test)[0]])
        images = feature_cache.validation + test
        return self._task.judge(both, images).accuracy, len(images)

    @functools.cached_property
    def _table(self) -> StageTable:
        return StageTable(self._folder / "latency.json")

    @functools.cached_property
    def _link(self) -> LinkProfile:
        """Given, or measured once and kept, so that all trials are compared over the same link."""
        if self._settings.link is not None:
            return self._settings.link
        kept = self._folder / "link.json"
        if not kept.exists():
            found = measure_link(self._settings.device)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found.to_dict()) + "\n")
        return LinkProfile.from_dict(json.loads(kept.read_text()))

    @functools.cached_property
    def _stage_timer(self) -> StageTimer:
        settings = self._settings
        return StageTimer(
            machine_for(settings.device, self._table, self._runner),
            machine_for(settings.server, self._table, self._runner),
            self._split,
            self._dataset.picture,
            self._feature_cache.validation.pixels[0],
        )

    @property
    def _baseline_path(self) -> Path:
        settings = self._settings
        return baseline_path(settings.model, self._dataset, settings.baseline, settings.seed)

    def _task_for(self, network: nn.Module) -> Task:
        if self._dataset.task == "classification":
            return Classification()
        if not has_one_to_one_head(network):
            needs = "it finds things twice and leaves the rest to another step; yolov10 and yolo26 models do not"
            raise SpecError("model.name", self._settings.model.name, needs)
        return Detection(network, self._dataset.picture)

    @property
    def _train_uncut(self) -> Train:
        return train_classifier if self._dataset.task == "classification" else self._train_detector

    def _train_detector(
        self,
        network: nn.Module,
        data: Dataset,
        recipe: BaselineSettings,
        seed: int,
        checkpoint: Path,
        progress: Progress,
    ) -> list[dict[str, Any]]:
        assert isinstance(data, DetectionFiles)
        return train_detector(network, self._settings.model, data, recipe, seed, checkpoint, progress)

    @functools.cached_property
    def _reference(self) -> TaskMetrics:
        """The uncut model as given."""
        return self._task.judge(self._feature_cache.answers("validation"), self._feature_cache.validation)

    @functools.cached_property
    def _finetuned(self) -> Whole:
        """The uncut model after the fine-tuning that candidates get, from the earliest point that is searched."""
        first = next(point.name for point in self._split.points if not point.is_end)
        return finetuned_uncut(self._split, self._feature_cache, first, self._settings.finetune, self._settings.seed)

    def _evaluation(
        self,
        name: str,
        found: torch.Tensor,
        payload_bytes: float,
        stages: Stages,
        config: SplitConfig | None = None,
        details: dict[str, Any] | None = None,
    ) -> Evaluation:
        verdict = self._task.judge(found, self._feature_cache.validation)
        drop, interval = self._task.drop_pp(self._reference, verdict)
        watch = self._stage_timer
        return Evaluation(
            name=name,
            config=config,
            accuracy=verdict.accuracy,
            metrics=verdict.metrics,
            payload_bytes=payload_bytes,
            stage_keys=stages.stage_keys,
            accuracy_drop_pp=drop,
            drop_interval_pp=interval,
            details=details or {},
            **latency_fields(stages.timings, payload_bytes, watch.device, watch.server, self._link),
        )

    @staticmethod
    def _threads(profile: MachineProfile) -> int:
        """For the runtime on the machine itself, where an exported half will run."""
        how = profile.how
        return how.reference.threads if isinstance(how, Scaling | Fitting) else profile.threads
