"""``StageTimer``: times the stages of one picture's way on a device and on a server."""

from __future__ import annotations

import functools
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from evaluators import folders
from evaluators.compression.bottleneck import new_bottleneck
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import wire
from evaluators.edge.picture import PictureFormat, to_input
from evaluators.edge.picture_codecs import PictureCoding
from evaluators.latency.machines import Machine, Timings
from evaluators.latency.neighbours import Timed, stage_name, standing_out
from evaluators.latency.profiles import Here
from evaluators.latency.torch_half import SUFFIX as TORCH_SUFFIX
from evaluators.models.cut import SplitModel
from evaluators.models.distilled import DistilledHead, stand_in
from evaluators.models.onnx_export import OnnxNetwork, save_module
from evaluators.models.work import head_work, module_work, tail_work
from evaluators.result import StageKey
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit
from spaces.partition import INPUT, OUTPUT, PartitionPoint

StageKeys = dict[str, StageKey]
_NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages of one way took, and what any other machine would be asked to time."""

    stage_keys: StageKeys
    timings: Timings

    def __or__(self, other: Stages) -> Stages:
        return Stages(stage_keys=self.stage_keys | other.stage_keys, timings=self.timings | other.timings)

    def macs(self, stage: str) -> int:
        """Multiply-accumulate operations of a stage that is a network, for one picture."""
        work = self.stage_keys[stage].work
        return work.macs if work is not None else 0

    def only(self, *names: str, of: str = "") -> Stages:
        """Some of the stages; ``of`` is the rest of their names (see :func:`stage_kind`), which is left out."""
        full = {name: f"{name} {of}".strip() for name in names}
        return Stages(
            stage_keys={name: self.stage_keys[long] for name, long in full.items() if long in self.stage_keys},
            timings={name: self.timings[long] for name, long in full.items() if long in self.timings},
        )


@dataclass(frozen=True, eq=False)
class _Task:
    """Something to be timed ahead."""

    what: str
    time: Callable[[], Stages]

    def timed(self) -> list[Timed]:
        """Its timings; none of what does not fit a point."""
        try:
            stages = self.time()
        except InfeasibleSplit:
            return []
        return [
            Timed(stage=stage, stage_key=stages.stage_keys[stage], timing=timing)
            for stage, timing in stages.timings.items()
        ]


@dataclass(frozen=True)
class _Keys:
    """What the stages at a bottleneck depend on: features of one shape are squeezed alike at all points."""

    config: SplitConfig
    point: PartitionPoint

    @property
    def squeezed(self) -> str:
        """The shape of the bottleneck: of its decoder and of what is sent, whatever head stands before it."""
        stride = f"/s{self.config.stride}" if self.config.stride > 1 else ""
        return f"{shapes_in_words(self.point)}/r{self.config.ae_ratio:g}{stride}"

    def encoder(self, squeeze: Squeeze) -> str:
        """The encoder. Behind a distilled head, one serves for all points with maps of this size."""
        if squeeze.head is None:
            return self.squeezed
        return f"{squeeze.head.key}/{'+'.join('x'.join(map(str, each.shape)) for each in squeeze.form.tensors)}"

    @property
    def packed(self) -> str:
        """The number of values and their bit-width."""
        return f"{self.squeezed}/b{self.config.bits}"

    def content(self, payload: bytes) -> str:
        """The very bytes."""
        return f"{self.packed}/{self.config.lossless}/{hashlib.sha256(payload).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class Squeeze:
    """What stands at a cut, as far as it takes time.

    Attributes:
        encoder: on the device.
        decoder: on the server.
        form: of the payloads between.
        head: before the encoder, where it is a distilled one; None where it is the network's own.
    """

    encoder: nn.Module
    decoder: nn.Module
    form: wire.WireFormat
    head: DistilledHead | None = None


class StageTimer:
    """Knows machines and folders, and nothing of accuracy.

    Heads and tails are timed with the uncut model's weights: how long they take does not depend on the values.
    """

    def __init__(
        self,
        device: Machine,
        server: Machine,
        split: SplitModel,
        picture: PictureFormat,
        sample: np.ndarray,
    ) -> None:
        self.device, self.server = device, server
        self._split, self._picture, self._sample = split, picture, sample
        self._suspects: set[str] = set()  # names of stages to be timed a second time
        self._doubts: dict[str, str] = {}  # by name: how a timing contradicts its neighbours, twice taken

    @functools.cached_property
    def network(self) -> OnnxNetwork:
        """The uncut network as ONNX, exported the first time a part of it has to be timed or shipped."""
        return OnnxNetwork(self._split)

    def time_ahead(
        self,
        partitions: Sequence[str],
        ae_ratios: Sequence[float],
        bits: Sequence[int],
        strides: Sequence[int],
        heads: Sequence[str],
        progress: Callable[[str], None],
    ) -> None:
        """Time all that does not depend on a training, so that later calls find it: everything but lossless coders.

        A timing that contradicts its neighbours is taken a second time; one that still does says so from then on.

        Args:
            partitions: the points that will be asked for.
            ae_ratios, bits, strides, heads: of the bottlenecks there; what does not fit a point is left out.
            progress: told what is timed, one line each.
        """
        tasks = list(self._tasks_ahead(partitions, ae_ratios, bits, strides, heads))
        timed: dict[str, Timed] = {}
        tasks_of: dict[str, _Task] = {}
        for number, task in enumerate(tasks, 1):
            progress(f"timing {task.what} ({number} of {len(tasks)})")
            for each in task.timed():
                timed[each.name] = each
                tasks_of.setdefault(each.name, task)
        self._suspects = set(standing_out(timed.values()))
        for task in dict.fromkeys(tasks_of[name] for name in timed if name in self._suspects):
            progress(f"timing {task.what} again, which contradicts its neighbours")
            timed |= {each.name: each for each in task.timed()}
        self._suspects, self._doubts = set(), standing_out(timed.values())

    def _tasks_ahead(
        self,
        partitions: Sequence[str],
        ae_ratios: Sequence[float],
        bits: Sequence[int],
        strides: Sequence[int],
        heads: Sequence[str],
    ) -> Iterator[_Task]:
        for partition in partitions:
            yield _Task(f"head of {partition}", functools.partial(self.head, partition))
            yield _Task(f"tail of {partition}", functools.partial(self.tail, partition))
            for head, ratio, stride in itertools.product(heads, ae_ratios, strides):
                config = SplitConfig(partition=partition, ae_ratio=ratio, bits=min(bits), stride=stride, head=head)
                shape = config.label.partition(f", {min(bits)} bit")[0]
                yield _Task(f"bottleneck at {shape}", functools.partial(self.bottleneck, config, bits))

    def bottleneck(
        self, config: SplitConfig, bits: Sequence[int], sides: Sequence[str] = ("device", "server")
    ) -> Stages:
        """What a bottleneck takes that nobody trained, head and tail included and lossless coders left out.

        Args:
            config: which bottleneck; its bit-width does not count.
            bits: the bit-widths that packing is timed for, in one go: stages ``pack b1`` and ``unpack b1``.
            sides: ``device``, ``server`` or both.

        Raises:
            InfeasibleSplit: its ratio leaves no channel.
        """
        squeeze = untrained(self._split, config)
        forms = {width: _of_width(squeeze.form, width) for width in bits}
        keys = {f"b{width}": StageKey(key=self._keys(replace(config, bits=width)).packed) for width in bits}
        wires: dict[str, object] = {"timed_wires": [form.to_dict() for form in forms.values()]}
        stages = Stages(stage_keys={}, timings={})
        if "device" in sides:
            packing = {f"pack {name}": key for name, key in keys.items()}
            stages |= self._ask_device(config, squeeze, packing, wires)
        if "server" in sides:
            packing = {f"unpack {name}": key for name, key in keys.items()}
            payload = wire.encode([np.zeros(each.shape, np.float32) for each in squeeze.form.tensors], squeeze.form)
            stages |= self._ask_server(config, squeeze, packing, payload, wires)
        return stages

    def split(self, config: SplitConfig, squeeze: Squeeze, payload: bytes) -> Stages:
        """All stages of a configuration with ``payload``, the sample picture's."""
        return self.device_side(config, squeeze, payload) | self.server_side(config, squeeze, payload)

    def device_side(self, config: SplitConfig, squeeze: Squeeze, payload: bytes) -> Stages:
        """What happens on the device, where the sample picture becomes ``payload``."""
        keys = self._keys(config)
        packing = {"pack": StageKey(key=keys.packed)}
        if config.lossless != "packed":
            packing["compress"] = StageKey(key=keys.content(payload))
        return self._ask_device(config, squeeze, packing)

    def server_side(self, config: SplitConfig, squeeze: Squeeze, payload: bytes) -> Stages:
        """What happens on the server, where the sample picture's payload arrives."""
        keys = self._keys(config)
        packing = {"unpack": StageKey(key=keys.packed)}
        if config.lossless != "packed":
            packing["decompress"] = StageKey(key=keys.content(payload))
        return self._ask_server(config, squeeze, packing, payload)

    def _ask_device(
        self, config: SplitConfig, squeeze: Squeeze, packing: StageKeys, more: Mapping[str, object] = _NOTHING
    ) -> Stages:
        maps = [torch.zeros(1, *shape) for shape in self._split.tap(config.partition).point.shapes]
        picture = [torch.zeros(1, 3, self._split.image_size, self._split.image_size)]
        if squeeze.head is not None:
            with torch.no_grad():
                maps = list(squeeze.head.eval()(*picture))

        def write(folder: Path) -> None:
            self.write_device(folder, {"wire": squeeze.form.to_dict(), **more})
            if squeeze.head is None:
                self._save_part(self.device, INPUT, config.partition, folder / "head")
            else:
                _save(self.device, squeeze.head, picture, folder / "head")
            _save(self.device, squeeze.encoder, maps, folder / "encoder")

        if squeeze.head is None:
            head = self._head_key(config.partition)
        else:
            head = StageKey(key=squeeze.head.key, work=module_work(squeeze.head, picture))
        encode = StageKey(key=self._keys(config).encoder(squeeze), work=module_work(squeeze.encoder, maps))
        stage_keys = {"head": head, "encode": encode, **packing}
        return self._ask(self.device, stage_keys, write)

    def _ask_server(
        self,
        config: SplitConfig,
        squeeze: Squeeze,
        packing: StageKeys,
        payload: bytes,
        more: Mapping[str, object] = _NOTHING,
    ) -> Stages:
        activations = [torch.zeros(1, *levels.shape) for levels in squeeze.form.tensors]

        def write(folder: Path) -> None:
            manifest = _manifest(self.server, self._picture, {"wire": squeeze.form.to_dict(), **more})
            folders.write_server(folder, manifest, payload=payload)
            self._save_part(self.server, config.partition, OUTPUT, folder / "tail")
            _save(self.server, squeeze.decoder, activations, folder / "decoder")

        decode = StageKey(key=self._keys(config).squeezed, work=module_work(squeeze.decoder, activations))
        stage_keys = {**packing, "decode": decode, "tail": self._tail_key(config.partition)}
        return self._ask(self.server, stage_keys, write)

    def all_on_device(self) -> Stages:
        """The whole network on the device."""
        return self.head(OUTPUT)

    def head(self, partition: str) -> Stages:
        """A head on the device, normalising the picture included."""

        def write(folder: Path) -> None:
            self.write_device(folder, {})
            self._save_part(self.device, INPUT, partition, folder / "head")

        return self._ask(self.device, {"head": self._head_key(partition)}, write)

    def tail(self, partition: str) -> Stages:
        """A tail on the server."""

        def write(folder: Path) -> None:
            folders.write_server(folder, _manifest(self.server, self._picture, {}))
            with torch.no_grad():
                features = self._split.head(partition)(torch.from_numpy(to_input(self._sample, self._picture)))
            np.savez(folder / "features.npz", *(tensor.numpy() for tensor in features))
            self._save_part(self.server, partition, OUTPUT, folder / "tail")

        return self._ask(self.server, {"tail": self._tail_key(partition)}, write)

    def server_only(self) -> Stages:
        """The stages of sending the picture itself, raw."""

        def write(folder: Path) -> None:
            self._write_server_only(folder, {})

        return self._ask(self.server, {"unpack": StageKey(key="raw picture"), "tail": self._tail_key(INPUT)}, write)

    def server_only_coded(self, codings: Sequence[PictureCoding]) -> list[Stages]:
        """The stages of sending the picture as a codec's file, for each coding; timed in one go, as processes take
        longer to start than these stages do. A machine whose Pillow lacks a codec leaves its stages out.
        """
        manifest = {"timed_picture_codecs": [coding.to_dict() for coding in codings]}
        keys = {str(coding): StageKey(key=f"{coding} picture") for coding in codings}

        def on(machine: Machine, stages: Sequence[str], write: Callable[[Path, Mapping[str, object]], None]) -> Stages:
            wanted = {f"{stage} {name}": key for name, key in keys.items() for stage in stages}
            return self._ask(machine, wanted, lambda folder: write(folder, manifest))

        found = on(self.device, ["compress"], self.write_device)
        found |= on(self.server, ["decompress", "unpack"], self._write_server_only)
        tail = self.server_only().only("tail")
        return [found.only("compress", "decompress", "unpack", of=str(coding)) | tail for coding in codings]

    def _write_server_only(self, folder: Path, extra: Mapping[str, object]) -> None:
        folders.write_server(folder, _manifest(self.server, self._picture, extra), self._sample)
        self._save_part(self.server, INPUT, OUTPUT, folder / "tail")

    def write_device(self, folder: Path, extra: Mapping[str, object]) -> None:
        """A device folder for the device, without its models."""
        folders.write_device(folder, _manifest(self.device, self._picture, extra), self._sample)

    def _keys(self, config: SplitConfig) -> _Keys:
        return _Keys(config, self._split.tap(config.partition).point)

    def _head_key(self, partition: str) -> StageKey:
        return StageKey(key=partition, work=head_work(self._split, partition))

    def _tail_key(self, partition: str) -> StageKey:
        return StageKey(key=partition, work=tail_work(self._split, partition))

    def _ask(self, machine: Machine, stage_keys: StageKeys, write: Callable[[Path], None]) -> Stages:
        if not stage_keys:
            return Stages(stage_keys={}, timings={})
        names = {stage: stage_name(stage, stage_key) for stage, stage_key in stage_keys.items()}
        with tempfile.TemporaryDirectory(prefix="splitsearch-") as scratch:

            def folder() -> Path:
                write(Path(scratch))
                return Path(scratch)

            timings = machine.timings(stage_keys, folder)
            suspects = {stage: stage_keys[stage] for stage, name in names.items() if name in self._suspects}
            if suspects:
                timings |= machine.timings(suspects, folder, again=True)
        for stage, timing in timings.items():
            if doubt := self._doubts.get(names[stage]):
                timings[stage] = replace(timing, caveat="; ".join(filter(None, [timing.caveat, doubt])))
        return Stages(stage_keys=stage_keys, timings=timings)

    def _save_part(self, machine: Machine, start: str, end: str, stem: Path) -> None:
        """The network between two points, one of them an end of it, as ``machine`` runs it."""
        if not _on_torch(machine):
            self.network.save_part(start, end, stem.with_suffix(".onnx"))
            return
        module = self._split.head(end) if start == INPUT else self._split.tail(start)
        shapes = self._split.tap(start).point.shapes
        _save(machine, module, [torch.zeros(1, *shape) for shape in shapes], stem)


def shapes_in_words(point: PartitionPoint) -> str:
    """The shapes of a point's tensors, ``512x8x8``; channels that do not come first are marked, ``197x384*``."""
    axes = point.channel_axes or (1,) * len(point.shapes)
    words = (
        "x".join(map(str, shape)) + ("" if axis == 1 else "*") for shape, axis in zip(point.shapes, axes, strict=True)
    )
    return "+".join(words)


def untrained(split: SplitModel, config: SplitConfig) -> Squeeze:
    """What takes as long as what is trained. Raises InfeasibleSplit where the ratio leaves no channel."""
    point = split.tap(config.partition).point
    bottleneck = new_bottleneck(point, config, split.image_size)
    head, generator = stand_in(config, point, split.image_size), torch.Generator().manual_seed(0)
    maps = [torch.randn(1, *shape, generator=generator) for shape in point.shapes]
    with torch.no_grad():
        if head is not None:
            maps = list(head(torch.randn(1, 3, split.image_size, split.image_size, generator=generator)))
        for parameter in bottleneck.parameters():
            # Not the closed form of a training, which takes seconds where there are thousands of channels.
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        activations = bottleneck.eval().encoder(*maps)
    form = _form([tuple(tensor.shape[1:]) for tensor in activations], config.bits)
    return Squeeze(encoder=bottleneck.encoder, decoder=bottleneck.decoder, form=form, head=head)


def _of_width(form: wire.WireFormat, bits: int) -> wire.WireFormat:
    return _form([levels.shape for levels in form.tensors], bits)


def _form(shapes: Sequence[tuple[int, ...]], bits: int) -> wire.WireFormat:
    return wire.WireFormat(bits=bits, tensors=tuple(LevelGrid(bits).levels(shape) for shape in shapes))


def _manifest(machine: Machine, picture: PictureFormat, extra: Mapping[str, object]) -> dict[str, object]:
    how = machine.profile.how
    provider = {"provider": how.provider} if isinstance(how, Here) and how.provider != "cpu" else {}
    return {"picture": picture.to_dict(), "threads": machine.profile.threads, **provider, **extra}


def _on_torch(machine: Machine) -> bool:
    how = machine.profile.how
    return isinstance(how, Here) and how.runtime == "torch"


def _save(machine: Machine, module: nn.Module, examples: list[torch.Tensor], stem: Path) -> None:
    """A module as ``machine`` runs it."""
    if not _on_torch(machine):
        with torch.no_grad():
            results = len(pytree.tree_leaves(module.eval()(*examples)))
        save_module(module, examples, stem.with_suffix(".onnx"), results)
        return
    program = torch.export.export(module.eval(), tuple(examples))
    torch.export.save(program, stem.with_suffix(TORCH_SUFFIX))
