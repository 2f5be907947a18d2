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
from evaluators.compression.nested import NestedBottleneck
from evaluators.compute import compute_device
from evaluators.edge import context
from evaluators.edge.errors import PayloadError
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import stand_in
from evaluators.settings import FinetuneSettings
from evaluators.store import Store, StoreKey
from evaluators.training import cut_training, distilled_heads
from evaluators.training.candidate import (
    Candidate,
    load_candidate,
    load_modules,
    save_candidate,
    tables_from_file,
    tables_to_file,
)
from evaluators.training.cut_training import (
    CutTraining,
    cut_fields,
    load_cut_training,
    new_nested,
    save_cut_training,
)
from evaluators.training.distilled_heads import DistilledHeads
from evaluators.training.feature_cache import FeatureCache, TrainSample
from evaluators.training.finetune import finetune
from evaluators.training.finetune_data import FinetuneData
from evaluators.training.levels import LEVEL_IMAGES, choose_levels, count_tables, refit_decoders
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

# Raise when training itself changes: candidates of an older recipe are then not taken for its own.
RECIPE = 8
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
        self._heads = heads or DistilledHeads(split, feature_cache, batch_size=settings.batch_size)

    def train(self, config: SplitConfig, budget: Budget, seed: int, begun: Candidate | None = None) -> Candidate:
        """As :class:`CandidateTrainer` says; ``begun`` is the same after reconstruction, gone on with."""
        if budget.shared:
            return self.member(self.train_cut(config, budget, seed), config, budget, seed)
        settings = self._settings.within(budget)
        with infeasible_if_it_breaks(), machine_lock.training():
            if begun is None:
                bottleneck, head = self._bottleneck(config), self._head(config, budget, seed)
            else:
                bottleneck, head = begun.bottleneck, begun.head
            tail, data = self.tail(config.partition), self._data(config, budget, seed)
            rows = None if begun is None else begun.history
            history = _finetuned(config, settings, data, bottleneck, tail, head, seed, budget.until, rows)
            trained = Candidate(bottleneck=bottleneck, tail=tail, levels=(), history=history, head=head)
            maps = self._maps(trained, config, budget, seed)
            trained = replace(trained, levels=choose_levels(trained, config, maps, data, settings))
        return self._with_tables(trained, config, maps)

    def train_cut(self, config: SplitConfig, budget: Budget, seed: int) -> CutTraining:
        """One training for all configurations that differ from this in AE ratio and bit-width alone.

        Args:
            config: one of them.
            budget: with the AE ratios and bit-widths of all.
            seed: see :meth:`train`; of the members that a step takes, too.

        Raises:
            InfeasibleSplit: see :meth:`train`.
        """
        settings = self._settings.within(budget)
        with infeasible_if_it_breaks(), machine_lock.training():
            nested, head = self.new_nested(config, budget), self._head(config, budget, seed)
            tail, data = self.tail(config.partition), self._data(config, budget, seed)
            history = _finetuned(config, settings, data, nested, tail, head, seed)
        return CutTraining(bottleneck=nested, tail=tail, history=history, head=head)

    def member(self, trained: CutTraining, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        """The candidate of a configuration out of the training for all."""
        settings = self._settings.within(budget)
        with infeasible_if_it_breaks(), machine_lock.training():
            alone, data = trained.member(config), self._data(config, budget, seed)
            maps = self._maps(alone, config, budget, seed)
            alone = replace(alone, levels=choose_levels(alone, config, maps, data, settings))
            alone = refit_decoders(alone, config, maps, data, settings)
        return self._with_tables(alone, config, maps)

    def new_nested(self, config: SplitConfig, budget: Budget) -> NestedBottleneck:
        """Untrained, see :func:`~evaluators.training.cut_training.new_nested`."""
        return new_nested(self._split.tap(config.partition).point, config, budget, self._split.image_size)

    def tail(self, partition: str) -> nn.Module:
        """A tail as candidates have it before they learn."""
        return self._feature_cache.tail(partition)

    def tables(self, config: SplitConfig, candidate: Candidate, budget: Budget, seed: int) -> Candidate:
        """The candidate with context tables, counted on the images that its levels were chosen on."""
        maps = self._maps(candidate, config, budget, seed)
        return replace(candidate, tables=count_tables(candidate, config, maps))

    def _bottleneck(self, config: SplitConfig) -> Bottleneck:
        return new_bottleneck(self._split.tap(config.partition).point, config, self._split.image_size)

    def _head(self, config: SplitConfig, budget: Budget, seed: int) -> nn.Module | None:
        if config.head != "own":
            return self._heads.get(config, budget, seed)
        return own_head(self._feature_cache.base, config, self._settings)

    def _data(self, config: SplitConfig, budget: Budget, seed: int) -> FinetuneData:
        own = TrainSample(budget.images, seed)
        sample = own if config.head == "own" else self._heads.sample(budget, seed)
        return self._feature_cache.finetune_data(config.partition, sample)

    def _with_tables(self, candidate: Candidate, config: SplitConfig, maps: Tensors) -> Candidate:
        if config.lossless == "context":
            candidate = replace(candidate, tables=count_tables(candidate, config, maps))
        return replace(candidate, carries_image_size=self._feature_cache.dataset.picture.letterbox)

    def _maps(self, candidate: Candidate, config: SplitConfig, budget: Budget, seed: int) -> Tensors:
        """What the candidate's head makes of the images that levels are chosen on, (N, ...) for each tensor."""
        sample, cache = TrainSample(budget.images, seed), self._feature_cache
        if candidate.head is None:
            return tuple(tensor[:LEVEL_IMAGES] for tensor in cache.features(config.partition, sample))
        images = cache.images(sample)
        return cache.through(candidate.head, replace(images, pixels=images.pixels[:LEVEL_IMAGES]))


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
        own = {"config": config.training_fields, "recipe": self._recipe(config, budget), "seed": seed}
        return StoreKey("candidate", {**self._depends_on, **own})

    def _recipe(self, config: SplitConfig, budget: Budget) -> dict[str, Any]:
        recipe = {**asdict(self._settings.within(budget)), "version": RECIPE}
        if config.head == "own":
            del recipe["head_steps"]
        else:
            recipe["head_version"] = distilled_heads.RECIPE
        if budget.until != "full":
            recipe["until"] = budget.until
        if budget.shared:
            recipe["cut_version"] = cut_training.RECIPE
        else:
            del recipe["shared"]
        return recipe

    def train(self, config: SplitConfig, budget: Budget, seed: int) -> Candidate:
        key, plain = self.key(config, budget, seed), replace(config, lossless="packed")
        # Refused before anything is trained.
        _check_coder(config)
        self._bottleneck(config)

        def make(folder: Path) -> None:
            if budget.shared:
                made = self._inner.member(self._cut_training(plain, budget, seed), plain, budget, seed)
                save_candidate(replace(made, head=None), folder, tail_learned=False)
                return
            made = self._inner.train(plain, budget, seed, self._begun(plain, budget, seed))
            learned = self._settings.scope != "bottleneck" and budget.until == "full"
            save_candidate(made, folder, tail_learned=learned)

        candidate = self._load(self._store.get(key, make, plain.label), config, budget)
        if budget.shared:
            load_modules(self._cut_folder(plain, budget, seed), {"tail": candidate.tail, "head": candidate.head})
        if config.lossless != "context":
            return candidate
        return replace(candidate, tables=self._tables(key, config, candidate, budget, seed))

    def _cut_training(self, config: SplitConfig, budget: Budget, seed: int) -> CutTraining:
        folder, tail = self._cut_folder(config, budget, seed), copy.deepcopy(self._split.tail(config.partition))
        nested, head = self._inner.new_nested(config, budget), head_of_its_own(self._split, config, self._settings)
        return load_cut_training(folder, nested, tail, head)

    def _cut_folder(self, config: SplitConfig, budget: Budget, seed: int) -> Path:
        """Of the training for all configurations of a cut, made first if it is not there."""

        def make(folder: Path) -> None:
            made = self._inner.train_cut(config, budget, seed)
            save_cut_training(made, folder, tail_learned=self._settings.scope != "bottleneck")

        fields = cut_fields(config, self._inner.new_nested(config, budget))
        own = {"config": fields, "recipe": self._recipe(config, budget), "seed": seed}
        key = StoreKey("cut-training", {**self._depends_on, **own})
        return self._store.get(key, make, f"{config.partition}, {config.head} head, all ratios and bit-widths")

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


def _finetuned(
    config: SplitConfig,
    settings: FinetuneSettings,
    data: FinetuneData,
    bottleneck: Bottleneck | NestedBottleneck,
    tail: nn.Module,
    head: nn.Module | None,
    seed: int,
    until: str = "full",
    begun: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Fine-tune on the compute device, in place, and come back to the CPU."""
    device, modules = compute_device(), [module for module in (tail, bottleneck, head) if module is not None]
    for module in modules:
        module.to(device)
    history = finetune(tail, bottleneck, data, settings, head=head, config=config, seed=seed, until=until, begun=begun)
    for module in modules:
        module.cpu()
    return history


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
