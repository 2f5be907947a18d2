"""``SplitEvaluator``: scores a configuration by cutting, training, encoding to bytes and measuring."""

from __future__ import annotations

import functools
import platform
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision
from torch import nn

from evaluators import machine_lock
from evaluators.base import Evaluator, Progress, Split
from evaluators.baselines import Asked, Rival, codec_notes, rivals
from evaluators.bundle import Halves, write_whole
from evaluators.compression.bottleneck import FORMAT as BOTTLENECKS
from evaluators.compute import compute_device
from evaluators.edge.circumstances import machine as this_machine
from evaluators.identity import architecture, arithmetic, state_digest
from evaluators.latency.compose import latency_fields
from evaluators.latency.link_probe import measure_link
from evaluators.latency.links import LinkProfile
from evaluators.latency.machine_for import machine_for
from evaluators.latency.machines import NotRecorded
from evaluators.latency.profiles import MachineProfile, cores
from evaluators.latency.runners import Runner
from evaluators.latency.stage_timer import Squeeze, Stages, StageTimer
from evaluators.latency.table import StageTable
from evaluators.models.cut import SplitModel
from evaluators.models.detector import has_one_to_one_head
from evaluators.models.distilled import DistilledHead
from evaluators.models.load import build
from evaluators.pricing import Pricing, device_model_mb
from evaluators.result import RIGHT, Evaluation, Figures, HeadCost, Price, right_text
from evaluators.settings import PRETRAINED, BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.store import Store, StoreKey, digest_of, shared_store
from evaluators.tasks.classification import Classification
from evaluators.tasks.data import Dataset
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection import Detection
from evaluators.tasks.detection_data import DetectionFiles
from evaluators.tasks.task import Task, TaskMetrics
from evaluators.training import distilled_heads, references
from evaluators.training.candidate import Candidate
from evaluators.training.distilled_heads import DistilledHeads
from evaluators.training.feature_cache import FEW, FeatureCache, Part
from evaluators.training.references import StoredReferences
from evaluators.training.rehearsal import rehearse
from evaluators.training.renewal import kept_statistics, renewed
from evaluators.training.trainers import (
    RECIPE,
    CandidateTrainer,
    FinetuneTrainer,
    StoredTrainer,
    infeasible_if_it_breaks,
)
from evaluators.training.uncut import Train, duration, train_classifier, train_or_load, uncut_key, uncut_record
from evaluators.training.uncut_detector import train_detector
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import NotFinished, SpecError
from spaces.partition import INPUT, PartitionPoint
from spaces.space import SearchSpace

_NAMED = 5  # classes
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


# Of the identity, what a candidate does not depend on, or by its own key in the store.
_BESIDE = {
    "rungs": "a quarter of the pictures, 200 at least",  # that a training stopped early is scored on
    "heads": str(distilled_heads.RECIPE),
    "references": str(references.RECIPE),
}
_SEEN = (
    "These weights come from ImageNet, and so do TinyImageNet's held-out images: they may have been seen, and "
    "accuracies may be too high."
)


def _made(record: dict[str, Any]) -> str:
    epochs = record["epochs"]
    took = duration(sum(epoch["seconds"] for epoch in epochs))
    return f"splitsearch trained the uncut model itself: {len(epochs)} epochs in {took} on {record['compute']}."


def _task_name(model: ModelSettings) -> str:
    return "detection" if model.name.startswith("ultralytics/") else "classification"


class SplitEvaluator(Evaluator):
    """The real evaluator.

    Args:
        settings: what to score on what.
        folder: of the study's results, where what belongs to it alone is kept; made when something is kept.
        runner: takes the timings in place of the machines' own; for tests.
        store: keeps what other studies may need too; the user's own unless given.

    Raises:
        SpecError: model, weights or data do not exist or do not fit each other.
    """

    def __init__(
        self, settings: SplitSettings, folder: Path, runner: Runner | None = None, store: Store | None = None
    ) -> None:
        self._settings, self._folder = settings, folder
        self._store = store or shared_store()
        self._runner = runner
        self._dataset = open_dataset(settings.data)
        if len(self._dataset.classes) < 2 and self._dataset.task == _task_name(settings.model) == "classification":
            raise SpecError("data.name", settings.data.name, f"has {self._classes()}; a classifier needs two or more")
        if settings.model.num_classes != len(self._dataset.classes):
            found = f"{settings.data.name} has {self._classes()}; give that number"
            raise SpecError("model.num_classes", settings.model.num_classes, found)
        if self._dataset.task != _task_name(settings.model):
            needs = f"{settings.model.name} needs data for {_task_name(settings.model)}, "
            needs += f"this is for {self._dataset.task}"
            raise SpecError("data.name", settings.data.name, needs)
        if self._dataset.carved and settings.model.weights not in (None, PRETRAINED):
            raise SpecError("model.weights", str(settings.model.weights), _CARVED)
        loaded = build(settings.model, settings.data.image_size)
        self._network = loaded.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._split = SplitModel(self._network, settings.data.image_size)
        self._task = self._task_for(loaded.network)
        self._feature_cache = FeatureCache(self._split, self._dataset, self._task, self._base)
        self._loaded_trained = self._has_weights = loaded.trained
        self._fresh = loaded.fresh
        self._references: dict[Part, TaskMetrics] = {}
        self._start_digest = state_digest(self._network) if settings.model.weights is not None else ""

    # -- the contract ------------------------------------------------------------------------------------------------

    def partition_points(self) -> Sequence[PartitionPoint]:
        return self._split.points

    def head_ms(self, points: Sequence[PartitionPoint]) -> list[float | None]:
        return [0.0 if point.name == INPUT else self._head_ms(point.name) for point in points]

    def _head_ms(self, partition: str) -> float | None:
        try:
            return self._stage_timer.head(partition).timings["head"].p50_ms
        except NotRecorded:
            return None

    @property
    def is_trained(self) -> bool:
        """Whether the uncut model has its weights, given or kept from an earlier training."""
        return self._has_weights or self._store.find(self._uncut_key) is not None

    def identity(self) -> dict[str, str]:
        return {
            "network": digest_of(architecture(self._settings.model)),
            "weights": self._weights_digest,
            "images": digest_of([self._dataset.fingerprint, asdict(self._dataset.picture)]),
            "recipe": str(RECIPE),
            **_BESIDE,
        }

    def distilled_heads(self, space: SearchSpace) -> list[HeadCost]:
        return self._pricing.distilled_heads(space)

    def rehearse(self, space: SearchSpace | None = None) -> None:
        settings = self._settings
        rehearse(
            self._network,
            self._split,
            self._dataset,
            self._task,
            settings.finetune,
            settings.baseline,
            trained=self.is_trained,
            fresh=self._fresh,
            space=space,
        )

    def share_cores(self, workers: int) -> None:
        torch.set_num_threads(max(1, cores() // workers))

    def prepare(self, space: SearchSpace | None, progress: Progress) -> None:
        """Train the uncut model if no weights are given (or load it from an earlier training); time what can be."""
        self._give_weights(progress)
        if space is not None:
            self._pricing.expect(space.bits)
            ahead = (space.partitions, space.ae_ratios, space.bits, space.strides, space.heads)
            self._stage_timer.time_ahead(*ahead, progress)

    def _give_weights(self, progress: Progress) -> None:
        if self._has_weights:
            return
        settings, train = self._settings, self._train_uncut
        train_or_load(
            self._network,
            self._store,
            self._uncut_key,
            self._dataset,
            settings.baseline,
            settings.seed,
            progress,
            train,
        )
        self._has_weights = True

    def price(self, config: SplitConfig) -> Price:
        return self._pricing.of(config)

    def evaluate(
        self, config: SplitConfig, *, budget: Budget | None = None, seed: int | None = None, split: Split = "validation"
    ) -> Evaluation:
        """Train (or load), encode to bytes and back, measure, compose."""
        self._need_weights()
        candidate = self._candidate(config, budget, seed)
        part: Part = FEW if split == "validation" and budget is not None and budget.until != "full" else split
        with infeasible_if_it_breaks(), machine_lock.training():
            score = candidate.score(config, self._feature_cache, part)
        bottleneck, form = candidate.bottleneck, candidate.wire_format(config)
        distilled = candidate.head if isinstance(candidate.head, DistilledHead) else None
        squeeze = Squeeze(encoder=bottleneck.encoder, decoder=bottleneck.decoder, form=form, head=distilled)
        stages = self._stage_timer.split(config, squeeze, score.sample)
        point = self._split.tap(config.partition).point
        details = {
            "bottleneck_channels": sum(candidate.bottleneck.bottleneck_channels),
            "encoder_macs": stages.macs("encode"),
            "device_model_mb": device_model_mb(point, distilled, candidate.bottleneck.encoder),
            "head_macs": stages.macs("head") if distilled is not None else point.head_macs,
            "bits_per_element": 8 * score.payload_bytes / point.elements,
            "training": candidate.history,
        }
        figures = self._figures(score.answers, score.payload_bytes, part)
        return self._evaluation(config.label, figures, stages, config, details)

    def baselines(
        self, *, trained: bool, split: Split = "validation", only: Collection[str] | None = None
    ) -> list[Evaluation]:
        self._need_weights()
        settings, cache, asked = self._settings, self._feature_cache, Asked(split=split, only=only)
        references = StoredReferences(self._split, cache, settings.finetune, settings.seed, self._store, self._basis)
        found = list[Evaluation]()
        for rival in rivals(self._split, cache, self._stage_timer, references if trained else None, asked):
            for name, figures, way in rival.baselines(self._figures_of(rival, split)):
                details = {"device_model_mb": way.device_model_mb}
                found.append(self._evaluation(name, figures, way.stages, details=details))
        return found

    def _figures_of(self, rival: Rival, split: Split) -> dict[str, Figures]:
        """What its answers are worth, by pictures and network; judged once."""

        def make() -> dict[str, Any]:
            return {of: asdict(self._figures(said.answers, said.payload_bytes, split)) for of, said in rival.ask()}

        key = StoreKey("rival", {**self._basis, **rival.made_from})
        kept = self._store.value(key, make, f"scores of {rival.name} images")
        return {of: Figures(**figures) for of, figures in kept.items()}

    def export(
        self, config: SplitConfig, directory: Path, *, budget: Budget | None = None, seed: int | None = None
    ) -> dict[str, Any]:
        """Write both halves, then run every search-validation image through them as a user would."""
        self._need_weights()
        candidate, images = self._candidate(config, budget, seed), self._feature_cache.images("validation")
        both = Halves(
            split=self._feature_cache.base,
            dataset=self._dataset,
            task=self._task,
            device_threads=self._settings.device.threads_there,
            server_threads=self._settings.server.threads_there,
        )
        both.write(config, candidate, images, directory)
        return both.check(directory, images, candidate.score(config, self._feature_cache).answers)

    def export_whole(self, directory: Path) -> dict[str, Any]:
        self._need_weights()
        return write_whole(self._split, self._task, self._feature_cache.images("validation"), directory)

    def describe(self) -> dict[str, Any]:
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
            "coded_before": self._dataset.coded_before,
            "versions": versions,
            "device": device,
            "server": server,
            "link": self._link.describe(),
            "timing_scope": self._timing_scope,
            "images": {
                "fine-tuning": self._settings.finetune.images,
                "search-validation": len(self._feature_cache.images("validation")),
            },
            "seed": self._settings.seed,
            "baseline": None if self._loaded_trained else uncut_record(self._store, self._uncut_key),
        }

    def notes(self) -> list[str]:
        judging = len(self._feature_cache.images("validation"))
        said = [f"The data: {self._classes()}, {judging:,} search-validation images.", *codec_notes()]
        if self.is_trained:
            self._need_weights()
            accuracy, count = self._held_out_accuracy()
            said.append(
                f"The uncut model as given: {self._task.metric} {accuracy:.2%} on all {count:,} held-out images "
                f"(search-validation and test together); the table shows search-validation alone."
            )
        if isinstance(self._dataset, DetectionFiles) and (dropped := self._dataset.degenerate_boxes):
            said.append(f"{dropped} annotated {'box has' if dropped == 1 else 'boxes have'} no area and were left out.")
        if not self._loaded_trained and (record := uncut_record(self._store, self._uncut_key)):
            said.insert(0, _made(record))
        weights = self._settings.model.weights
        if weights == PRETRAINED and self._dataset.name == "tinyimagenet":
            said.insert(0, _SEEN)
        if weights not in (None, PRETRAINED) and self._fresh:
            said.insert(0, f"{weights} is of other classes: {', '.join(sorted(self._fresh))} started anew.")
        return said

    def _classes(self) -> str:
        """Number and names: ``3 classes (apple, leaf, plum)``."""
        names = self._dataset.classes
        listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({listed})"

    # -- parts of it -------------------------------------------------------------------------------------------------

    def _held_out_accuracy(self) -> tuple[float, int]:
        """Accuracy of the uncut model as given on all images it has not seen, and their number.

        For checking weights against what their maker says of them. It chooses nothing, so test stays a test.
        """
        cache = self._feature_cache
        both = torch.cat([cache.answers("validation"), cache.answers("test")])
        images = cache.images("validation") + cache.images("test")
        return self._task.judge(both, images).accuracy, len(images)

    @functools.cached_property
    def _table(self) -> StageTable:
        return StageTable(self._store, self._timing_scope)

    @functools.cached_property
    def _timing_scope(self) -> dict[str, str]:
        """What the names of stages mean: of which network, of which images, and of which kind of bottleneck."""
        identity = self.identity()
        return {name: identity[name] for name in ("network", "images")} | {"bottlenecks": str(BOTTLENECKS)}

    @functools.cached_property
    def _link(self) -> LinkProfile:
        """Given, or measured once and kept, so that all trials are compared over the same link."""
        if self._settings.link is not None:
            return self._settings.link
        # In the study's own folder: a link of today says nothing to another study tomorrow.
        ends = {"device": self._settings.device.name, "server": self._settings.server.name}
        found = Store(self._folder / "link").value(
            StoreKey("link", ends), lambda: measure_link(self._settings.device, self._settings.server).to_dict()
        )
        return LinkProfile.from_dict(found)

    @functools.cached_property
    def _pricing(self) -> Pricing:
        boxes = self._dataset.picture.letterbox
        return Pricing(
            self._split,
            lambda: self._stage_timer,
            lambda: self._link,
            carries_image_size=boxes,
            finetune=self._settings.finetune,
        )

    @functools.cached_property
    def _stage_timer(self) -> StageTimer:
        settings = self._settings
        return StageTimer(
            machine_for(settings.device, self._table, self._runner),
            machine_for(settings.server, self._table, self._runner),
            self._split,
            self._dataset.picture,
            self._feature_cache.images("validation").pixels[0],
        )

    @functools.cached_property
    def _uncut_key(self) -> StoreKey:
        settings = self._settings
        return uncut_key(
            architecture(settings.model), self._start_digest, self._dataset, settings.baseline, settings.seed
        )

    @functools.cached_property
    def _weights_digest(self) -> str:
        """Of the uncut model's weights, or of what they are, or will be, made from."""
        return self._start_digest if self._loaded_trained else self._uncut_key.digest

    @functools.cached_property
    def _basis(self) -> dict[str, Any]:
        """What every training of this evaluator depends on, besides its own settings."""
        identity = {name: value for name, value in self.identity().items() if name not in _BESIDE}
        return {**identity, "arithmetic": arithmetic()}

    @functools.cached_property
    def _trainer(self) -> CandidateTrainer:
        settings = self._settings
        batch = settings.finetune.batch_size
        heads = DistilledHeads(self._split, self._feature_cache, self._store, self._basis, batch)
        inner = FinetuneTrainer(self._split, self._feature_cache, settings.finetune, heads)
        boxes = self._dataset.picture.letterbox
        return StoredTrainer(inner, self._store, self._basis, self._split, settings.finetune, carries_image_size=boxes)

    def _base(self) -> SplitModel:
        """The network that candidates are cut from."""
        if self._settings.finetune.scope == "bottleneck":
            return self._split
        self._need_weights()
        key = StoreKey("batchnorm-statistics", self._basis)
        return renewed(
            self._network,
            self._settings.data.image_size,
            self._dataset,
            self._task,
            lambda make: kept_statistics(self._store, key, make),
        )

    def _candidate(self, config: SplitConfig, budget: Budget | None = None, seed: int | None = None) -> Candidate:
        settings = self._settings
        return self._trainer.train(config, budget or settings.finetune.budget, settings.seed if seed is None else seed)

    def _need_weights(self) -> None:
        """Load the uncut model's weights from an earlier training if need be; train nothing."""
        if not self.is_trained:
            raise NotFinished("the uncut model is not trained yet; 'splitsearch run' trains it first")
        self._give_weights(lambda _: None)

    def _task_for(self, network: nn.Module) -> Task:
        if self._dataset.task == "classification":
            return Classification()
        if not has_one_to_one_head(network):
            needs = "it finds things twice and leaves the rest to another step; yolov10 and yolo26 models do not"
            raise SpecError("model.name", self._settings.model.name, needs)
        return Detection(network, self._dataset.picture)

    @property
    def _train_uncut(self) -> Train:
        classifier = functools.partial(train_classifier, fresh=self._fresh)
        return classifier if self._dataset.task == "classification" else self._train_detector

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

    def _reference(self, part: Part) -> TaskMetrics:
        """The uncut model as given."""
        if part not in self._references:
            images = self._feature_cache.images(part)
            self._references[part] = self._task.judge(self._feature_cache.answers(part), images)
        return self._references[part]

    def _drop_pp(self, answers: torch.Tensor, metrics: TaskMetrics, part: Part) -> tuple[float, tuple[float, float]]:
        """Drop against the uncut model with its interval, which is of no width for the uncut model itself."""
        if torch.equal(answers, self._feature_cache.answers(part)):
            return 0.0, (0.0, 0.0)
        return self._task.drop_pp(self._reference(part), metrics)

    def _figures(self, found: torch.Tensor, payload_bytes: float, part: Part = "validation") -> Figures:
        images = self._feature_cache.images(part)
        metrics = self._task.judge(found, images)
        drop, interval = self._drop_pp(found, metrics, part)
        details: dict[str, Any] = {"scored_images": len(images)}
        if metrics.right is not None:
            details[RIGHT] = right_text(metrics.right)
        if (divergence := self._task.divergence(self._feature_cache.answers(part), found)) is not None:
            details["divergence"] = divergence
        return Figures(
            accuracy=metrics.accuracy,
            metrics=metrics.metrics,
            payload_bytes=payload_bytes,
            accuracy_drop_pp=drop,
            drop_interval_pp=interval,
            details=details,
        )

    def _evaluation(
        self,
        name: str,
        figures: Figures,
        stages: Stages,
        config: SplitConfig | None = None,
        details: dict[str, Any] | None = None,
    ) -> Evaluation:
        watch = self._stage_timer
        low, high = figures.drop_interval_pp
        return Evaluation(
            name=name,
            config=config,
            accuracy=figures.accuracy,
            metrics=figures.metrics,
            payload_bytes=figures.payload_bytes,
            stage_keys=stages.stage_keys,
            accuracy_drop_pp=figures.accuracy_drop_pp,
            drop_interval_pp=(low, high),
            details={**(details or {}), **figures.details},
            **latency_fields(stages.timings, figures.payload_bytes, watch.device, watch.server, self._link),
        )
