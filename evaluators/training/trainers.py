"""Trainers: they turn a configuration into a :class:`Candidate`, by training it or by finding it again.

distilled head, if any  ->  closed-form start  ->  reconstruction  ->  fine-tuning  ->  levels
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from evaluators import machine_lock
from evaluators.compression.bottleneck import Bottleneck, Tensors, new_bottleneck
from evaluators.compute import compute_device
from evaluators.edge import context
from evaluators.edge.errors import PayloadError
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import stand_in
from evaluators.settings import FinetuneSettings
from evaluators.store import Store, StoreKey
from evaluators.training import distilled_heads
from evaluators.training.candidate import (
    Candidate,
    load_candidate,
    save_candidate,
    tables_from_file,
    tables_to_file,
)
from evaluators.training.distilled_heads import DistilledHeads
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune import finetune
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.levels import LEVEL_IMAGES, choose_levels, count_tables
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

# Raise when training itself changes: candidates of an older recipe are then not taken for its own.
RECIPE = 7
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

    def __init__(
        self,
        split: SplitModel,
        feature_cache: FeatureCache,
        settings: FinetuneSettings,
        heads: DistilledHeads | None = None,
    ) -> None:
        self._split, self._feature_cache, self._settings = split, feature_cache, settings
        self._heads = heads or DistilledHeads(split, feature_cache)

    def train(self, config: SplitConfig, budget: Budget, seed: int, begun: Candidate | None = None) -> Candidate:
        """As :class:`CandidateTrainer` says; ``begun`` is the same after reconstruction, gone on with."""
        settings, cache = self._settings.within(budget), self._feature_cache
        with infeasible_if_it_breaks(), machine_lock.training():
            bottleneck, tail = self._bottleneck(config), self.tail(config.partition)
            head: nn.Module | None = own_head(cache.base, config, settings)
            if begun is not None:
                bottleneck, head = begun.bottleneck, begun.head
            elif config.head != "own":
                head = self._heads.get(config, budget, seed)
            data = cache.finetune_data(config.partition, self._sample(config, budget, seed))
            rows = None if begun is None else begun.history
            trained = self._finetuned(config, settings, data, bottleneck, tail, head, seed, budget.until, rows)
            maps = self._maps(trained, config, budget, seed)
            trained = replace(trained, levels=choose_levels(trained, config, maps, data, settings))
            if config.lossless == "context":
                trained = replace(trained, tables=count_tables(trained, config, maps))
        return replace(trained, carries_image_size=cache.dataset.picture.letterbox)

    def tail(self, partition: str) -> nn.Module:
        """A tail as candidates have it before they learn."""
        return self._feature_cache.tail(partition)

    def tables(self, config: SplitConfig, candidate: Candidate, budget: Budget, seed: int) -> Candidate:
        """The candidate with context tables, counted on the images that its levels were chosen on."""
        maps = self._maps(candidate, config, budget, seed)
        return replace(candidate, tables=count_tables(candidate, config, maps))

    def _bottleneck(self, config: SplitConfig) -> Bottleneck:
        return new_bottleneck(self._split.tap(config.partition).point, config, self._split.image_size)

    def _sample(self, config: SplitConfig, budget: Budget, seed: int) -> TrainSample:
        own = TrainSample(budget.images, seed)
        return own if config.head == "own" else self._heads.sample(budget, seed)

    def _maps(self, candidate: Candidate, config: SplitConfig, budget: Budget, seed: int) -> Tensors:
        """What the candidate's head makes of the images that levels are chosen on, (N, ...) for each tensor."""
        sample, cache = TrainSample(budget.images, seed), self._feature_cache
        if candidate.head is None:
            return tuple(tensor[:LEVEL_IMAGES] for tensor in cache.features(config.partition, sample))
        images = cache.images(sample)
        return cache.through(candidate.head, replace(images, pixels=images.pixels[:LEVEL_IMAGES]))

    @staticmethod
    def _finetuned(
        config: SplitConfig,
        settings: FinetuneSettings,
        data: FinetuneData,
        bottleneck: Bottleneck,
        tail: nn.Module,
        head: nn.Module | None,
        seed: int,
        until: str,
        begun: Sequence[dict[str, Any]] | None,
    ) -> Candidate:
        device = compute_device()
        history = finetune(
            tail.to(device),
            bottleneck.to(device),
            data,
            settings,
            head=head and head.to(device),
            config=config,
            seed=seed,
            until=until,
            begun=begun,
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
        if config.head == "own":
            del recipe["head_steps"]
        else:
            recipe["head_version"] = distilled_heads.RECIPE
        if budget.until != "full":
            recipe["until"] = budget.until
        own = {"config": config.training_fields, "recipe": recipe, "seed": seed}
        return StoreKey("candidate", {**self._depends_on, **own})

    def train(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        key, plain = self.key(config, budget, seed), replace(config, lossless="packed")
        # Refused before anything is trained.
        _check_coder(config)
        self._bottleneck(config)

        def make(folder: Path) -> None:
            made = self._inner.train(plain, budget, seed, self._begun(plain, budget, seed))
            learned = self._settings.scope != "bottleneck" and budget.until == "full"
            save_candidate(made, folder, tail_learned=learned)

        candidate = self._load(self._store.get(key, make, plain.label), config, budget)
        if config.lossless != "context":
            return candidate
        return replace(candidate, tables=self._tables(key, config, candidate, budget, seed))

    def _begun(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate | None:
        """The same after reconstruction, if somebody has stopped there; a rate penalty's own state is not kept."""
        if "reconstruction" not in budget.rungs or budget.until != "full" or config.rate > 0:
            return None
        sooner = replace(budget, until="reconstruction")
        folder = self._store.find(self.key(config, sooner, seed))
        return None if folder is None else self._load(folder, config, sooner)

    def _load(self, folder: Path, config: SplitConfig, budget: Budget) -> Candidate:
        if budget.until == "full":
            tail = copy.deepcopy(self._split.tail(config.partition))
        else:
            tail = self._inner.tail(config.partition)
        head = head_of_its_own(self._split, config, self._settings)
        found = load_candidate(folder, self._bottleneck(config), tail, head)
        return replace(found, carries_image_size=self._carries_image_size)

    def _bottleneck(self, config: SplitConfig) -> Bottleneck:
        return new_bottleneck(self._split.tap(config.partition).point, config, self._split.image_size)

    def _tables(self, key: StoreKey, config: SplitConfig, candidate: Candidate, budget: Budget, seed: int) -> Any:
        def make(folder: Path) -> None:
            tables_to_file(self._inner.tables(config, candidate, budget, seed).tables, folder / _TABLES)

        tables_key = StoreKey("context-tables", {"candidate": key.digest, "format": context.FORMAT})
        return tables_from_file(self._store.get(tables_key, make, config.label) / _TABLES)


def own_head(split: SplitModel, config: SplitConfig, settings: FinetuneSettings) -> nn.Module | None:
    """A copy of the network's own head where it learns too; None where the uncut model's serves."""
    return copy.deepcopy(split.head(config.partition)) if settings.scope == "all" else None


def head_of_its_own(split: SplitModel, config: SplitConfig, settings: FinetuneSettings) -> nn.Module | None:
    """A module to load a candidate's head into; None where the uncut model's serves."""
    point = split.tap(config.partition).point
    return stand_in(config, point, split.image_size) or own_head(split, config, settings)


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
