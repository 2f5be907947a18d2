"""``Stopwatch``: times the stages of one picture's way on a device and on a server, and composes its latency."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from evaluators import folders
from evaluators.candidates import Candidate
from evaluators.edge.picture import PictureFormat, to_input
from evaluators.latency.links import LinkProfile
from evaluators.latency.machines import Machine
from evaluators.models.cut import SplitModel
from evaluators.models.onnx_export import OnnxNetwork, save_module
from evaluators.result import LatencyParts, Source, Sources, Timing
from spaces.config import SplitConfig
from spaces.partition import INPUT, OUTPUT

Timings = dict[str, Timing]  # by stage


class Stopwatch:
    """Knows machines and folders, and nothing of accuracy.

    Heads and tails are timed with the uncut model's weights: how long they take does not depend on the values.
    """

    def __init__(
        self,
        device: Machine,
        server: Machine,
        link: LinkProfile,
        split: SplitModel,
        picture: PictureFormat,
        sample: np.ndarray,
    ) -> None:
        self.device, self.server, self.link = device, server, link
        self._split, self._picture, self._sample = split, picture, sample

    @property
    def sources(self) -> Sources:
        """A link is always modelled here: its rate and round trip are given, not measured."""
        return Sources(device=self.device.source, server=self.server.source, link=Source.MODELLED)

    @functools.cached_property
    def network(self) -> OnnxNetwork:
        """The uncut network as ONNX, exported the first time a part of it has to be timed or shipped."""
        return OnnxNetwork(self._split)

    def compose(self, timings: Timings, payload_bytes: float) -> LatencyParts:
        """One picture's latency: medians of the stages, and the link for payloads of this mean length; none for 0."""
        link_ms = self.link.latency_ms(payload_bytes) if payload_bytes else 0.0
        return LatencyParts(link_ms=link_ms, **{f"{stage}_ms": timing.p50_ms for stage, timing in timings.items()})

    def split(self, config: SplitConfig, candidate: Candidate, payload: bytes) -> Timings:
        """All stages of a candidate; the server is timed with ``payload``, one picture's."""
        stride = f"/s{config.stride}" if config.stride > 1 else ""
        cut, squeezed = config.partition, f"{config.partition}/r{config.ae_ratio:g}{stride}"
        packed, content = f"{squeezed}/b{config.bits}", f"{config.training_key}/{config.lossless}"
        manifest = {"wire": candidate.wire_format(config).to_dict()}
        features = [torch.zeros(1, *shape) for shape in self._split.tap(cut).point.shapes]
        activations = [torch.zeros(1, *levels.shape) for levels in candidate.levels]

        def write_device(folder: Path) -> None:
            self.write_device(folder, manifest)
            self.network.save_part(INPUT, cut, folder / "head.onnx")
            save_module(candidate.bottleneck.encoder, features, folder / "encoder.onnx", len(features))

        def write_server(folder: Path) -> None:
            folders.write_server(folder, self._manifest(self.server, manifest), payload=payload)
            self.network.save_part(cut, OUTPUT, folder / "tail.onnx")
            save_module(candidate.bottleneck.decoder, activations, folder / "decoder.onnx", len(features))

        device_keys = {"head": cut, "encode": squeezed, "pack": packed}
        server_keys = {"unpack": packed, "decode": squeezed, "tail": cut}
        if config.lossless != "packed":
            device_keys["compress"] = server_keys["decompress"] = content
        return _timings(self.device, device_keys, write_device) | _timings(self.server, server_keys, write_server)

    def all_on_device(self) -> Timings:
        """The whole network on the device."""
        return {"head": self.head(OUTPUT)}

    def head(self, partition: str) -> Timing:
        """A head on the device, normalising the picture included."""

        def write(folder: Path) -> None:
            self.write_device(folder, {})
            self.network.save_part(INPUT, partition, folder / "head.onnx")

        return _timings(self.device, {"head": partition}, write)["head"]

    def tail(self, partition: str) -> Timing:
        """A tail on the server."""

        def write(folder: Path) -> None:
            folders.write_server(folder, self._manifest(self.server, {}))
            with torch.no_grad():
                features = self._split.head(partition)(torch.from_numpy(to_input(self._sample, self._picture)))
            np.savez(folder / "features.npz", *(tensor.numpy() for tensor in features))
            self.network.save_part(partition, OUTPUT, folder / "tail.onnx")

        return _timings(self.server, {"tail": partition}, write)["tail"]

    def server_only(self, jpeg_quality: int | None) -> Timings:
        """The stages of sending the picture itself, raw or as JPEG."""
        manifest = {"jpeg_quality": jpeg_quality}
        form = "raw" if jpeg_quality is None else f"jpeg {jpeg_quality}"

        def write_server(folder: Path) -> None:
            folders.write_server(folder, self._manifest(self.server, manifest), self._sample)
            self.network.save_part(INPUT, OUTPUT, folder / "tail.onnx")

        server_keys = {"unpack": f"{form} picture", "tail": INPUT}
        if jpeg_quality is not None:
            server_keys["decompress"] = f"{form} picture"
        timings = _timings(self.server, server_keys, write_server)
        if jpeg_quality is not None:
            write_device = functools.partial(self.write_device, extra=manifest)
            timings |= _timings(self.device, {"compress": f"{form} picture"}, write_device)
        return timings

    def write_device(self, folder: Path, extra: Mapping[str, object]) -> None:
        """A device folder for this machine, without its models."""
        folders.write_device(folder, self._manifest(self.device, extra), self._sample)

    def _manifest(self, machine: Machine, extra: Mapping[str, object]) -> dict[str, object]:
        return {"picture": self._picture.to_dict(), "threads": machine.profile.threads, **extra}


def _timings(machine: Machine, keys: Mapping[str, str], write: Callable[[Path], None]) -> Timings:
    with tempfile.TemporaryDirectory(prefix="splitsearch-") as scratch:

        def folder() -> Path:
            write(Path(scratch))
            return Path(scratch)

        return machine.timings(keys, folder)
