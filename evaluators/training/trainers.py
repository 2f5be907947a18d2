"""Trainers: they turn a configuration into a :class:`Candidate`, by training it or by finding it again.

closed-form start  ->  reconstruction  ->  fine-tuning  ->  levels
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Bottleneck
from evaluators.compression.tcl import LevelGrid
from evaluators.compute import compute_device
from evaluators.edge import context
from evaluators.edge.errors import PayloadError
from evaluators.models.cut import SplitModel
from evaluators.settings import FinetuneSettings
from evaluators.store import Store, StoreKey
from evaluators.training.candidate import (
    Candidate,
    load_candidate,
    save_candidate,
    tables_from_file,
    tables_to_file,
)
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune import finetune
from evaluators.training.levels import choose_levels, count_tables
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

# Raise when training itself changes: candidates of an older recipe are then not taken for its own.
RECIPE = 6
_TABLES = "context.safetensors"
_LinAlgError: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


class CandidateTrainer(Protocol):
    """Makes candidates. The same arguments give the same candidate."""

    def train(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        """The candidate of a configuration, with context tables where its coder needs them.

        Args:
            config: its lossless coder changes nothing but the tables.
            budget: how much to train.
            seed: of the training sample, of the closed-form start and of the batches' order.

        Raises:
            InfeasibleSplit: the configuration leaves no channel, or does not fit its point, or its training diverged or
                did not fit into memory; says why.
        """
        ...


class FinetuneTrainer:
    """Trains every time it is asked.

    Args:
        split: the uncut network, with its weights.
        feature_cache: of the same network.
        settings: the recipe; its budget is not used.
    """

    def __init__(self, split: SplitModel, feature_cache: FeatureCache, settings: FinetuneSettings) -> None:
        self._split, self._feature_cache, self._settings = split, feature_cache, settings

    def train(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        sample, settings = TrainSample(budget.images, seed), self._settings.within(budget)
        with infeasible_if_it_breaks(), machine_lock.training():
            bottleneck = new_bottleneck(self._split, config)
            tail = self._feature_cache.tail(config.partition, sample, settings.scope)
            trained = self._finetuned(config, settings, sample, bottleneck, tail)
            data = self._feature_cache.finetune_data(config.partition, sample, settings.scope)
            features = trained.features(self._feature_cache, config.partition, sample)
            trained = replace(trained, levels=choose_levels(trained, config, features, data, settings))
            if config.lossless == "context":
                trained = replace(trained, tables=count_tables(trained, config, features))
        return replace(trained, carries_image_size=self._feature_cache.dataset.picture.letterbox)

    def tables(self, config: SplitConfig, candidate: Candidate, budget: Budget, seed: int) -> Candidate:
        """The candidate with context tables, counted on the images that its levels were chosen on."""
        features = candidate.features(self._feature_cache, config.partition, TrainSample(budget.images, seed))
        return replace(candidate, tables=count_tables(candidate, config, features))

    def _finetuned(
        self,
        config: SplitConfig,
        settings: FinetuneSettings,
        sample: TrainSample,
        bottleneck: Bottleneck,
        tail: nn.Module,
    ) -> Candidate:
        device = compute_device()
        head = own_head(self._split, config, settings)
        history = finetune(
            tail.to(device),
            bottleneck.to(device),
            self._feature_cache.finetune_data(config.partition, sample, settings.scope),
            settings,
            head=head and head.to(device),
            grid=LevelGrid(config.bits),
            tcl=config.tcl,
            seed=sample.seed,
        )
        return Candidate(
            bottleneck=bottleneck.cpu(), tail=tail.cpu(), levels=(), history=history, head=head and head.cpu()
        )


class StoredTrainer:
    """A :class:`FinetuneTrainer` whose candidates are kept; finding one again runs no head.

    Args:
        inner: trains what nobody has trained yet.
        store: keeps candidates.
        depends_on: what all candidates depend on besides configuration, budget, seed and recipe: the uncut model and
            its weights, the data, the machine's kind of arithmetic.
        split, settings, carries_image_size: as the inner trainer has them.
    """

    def __init__(
        self,
        inner: FinetuneTrainer,
        store: Store,
        depends_on: Mapping[str, Any],
        split: SplitModel,
        settings: FinetuneSettings,
        *,
        carries_image_size: bool,
    ) -> None:
        self._inner, self._store, self._depends_on = inner, store, dict(depends_on)
        self._split, self._settings, self._carries_image_size = split, settings, carries_image_size

    def key(self, config: SplitConfig, budget: Budget, seed: int) -> StoreKey:
        """What the candidate depends on. Configurations that differ only in their lossless coder share one."""
        recipe = {**asdict(self._settings.within(budget)), "version": RECIPE}
        own = {"config": config.training_fields, "recipe": recipe, "seed": seed}
        return StoreKey("candidate", {**self._depends_on, **own})

    def train(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        key, plain = self.key(config, budget, seed), replace(config, lzma=False, coder=None)
        # Refused before anything is trained.
        _check_coder(config)
        new_bottleneck(self._split, config)

        def make(folder: Path) -> None:
            made = self._inner.train(plain, budget, seed)
            save_candidate(made, folder, tail_learned=self._settings.scope != "bottleneck")

        candidate = self._load(self._store.get(key, make, plain.label), config)
        if config.lossless != "context":
            return candidate
        return replace(candidate, tables=self._tables(key, config, candidate, budget, seed))

    def _load(self, folder: Path, config: SplitConfig) -> Candidate:
        tail = copy.deepcopy(self._split.tail(config.partition))
        head = own_head(self._split, config, self._settings)
        found = load_candidate(folder, new_bottleneck(self._split, config), tail, head)
        return replace(found, carries_image_size=self._carries_image_size)

    def _tables(self, key: StoreKey, config: SplitConfig, candidate: Candidate, budget: Budget, seed: int) -> Any:
        def make(folder: Path) -> None:
            tables_to_file(self._inner.tables(config, candidate, budget, seed).tables, folder / _TABLES)

        tables_key = StoreKey("context-tables", {"candidate": key.digest, "format": context.FORMAT})
        return tables_from_file(self._store.get(tables_key, make, config.label) / _TABLES)


def new_bottleneck(split: SplitModel, config: SplitConfig) -> Bottleneck:
    """An untrained bottleneck for a configuration. Raises InfeasibleSplit where it does not fit its point."""
    point = split.tap(config.partition).point
    return Bottleneck(point.shapes, split.channel_axes(config.partition), config.ae_ratio, config.bits, config.stride)


def own_head(split: SplitModel, config: SplitConfig, settings: FinetuneSettings) -> nn.Module | None:
    """A copy of the head where it learns too; None where the uncut model's serves."""
    return copy.deepcopy(split.head(config.partition)) if settings.scope == "all" else None


@contextlib.contextmanager
def infeasible_if_it_breaks() -> Iterator[None]:
    """Turn what says that a configuration cannot be trained or scored here into InfeasibleSplit."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        reason = str(error).splitlines()[0]
        raise InfeasibleSplit(f"out of memory ({reason}); a smaller finetune.batch_size needs less") from error
    except MemoryError as error:
        raise InfeasibleSplit("out of memory; fewer finetune.images or a smaller batch_size need less") from error
    except (PayloadError, _LinAlgError, FloatingPointError) as error:  # type: ignore[attr-defined]
        raise InfeasibleSplit(f"training diverged: {error}") from error


def _check_coder(config: SplitConfig) -> None:
    if config.lossless == "context" and config.bits > context.MOST_BITS:
        raise InfeasibleSplit(f"context models are made for 1 to {context.MOST_BITS} bits, not for {config.bits}")
