"""The two halves of a candidate as folders that run, and the proof that they give the candidate's answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators import folders
from evaluators.edge import halves
from evaluators.models.answer import FirstTensor
from evaluators.models.cut import SplitModel
from evaluators.models.onnx_export import OnnxNetwork, save_batchable, save_module
from evaluators.tasks.data import Dataset, LabelledImages
from evaluators.tasks.task import Task
from evaluators.training.candidate import Candidate
from spaces.config import SplitConfig
from spaces.errors import SplitsearchError
from spaces.partition import INPUT

LEAST_AGREEMENT = 0.99
_MOST_DIFFERENT = 1  # images, where a hundredth of them is less than one


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What is needed to write and to try both halves.

    Attributes:
        split: the uncut network, with its weights.
        dataset, task: what the answers are about.
        device_threads, server_threads: of the runtimes there; 0 is one for each core.
    """

    split: SplitModel
    dataset: Dataset
    task: Task
    device_threads: int
    server_threads: int

    def write(self, config: SplitConfig, candidate: Candidate, images: LabelledImages, directory: Path) -> None:
        """Write ``device/`` and ``server/`` into an existing directory; the first image is what they measure with."""
        sample = [torch.zeros(1, *shape) for shape in self.split.tap(config.partition).point.shapes]
        self._write_device(config, candidate, sample, images.pixels[0], directory / "device")
        payload = halves.DeviceHalf(directory / "device").encode(images.pixels[0])
        self._write_server(config, candidate, sample, payload, directory / "server")

    def check(self, directory: Path, images: LabelledImages, answers: torch.Tensor) -> dict[str, Any]:
        """Send every image through both halves, as a user would.

        Args:
            directory: holds ``device/`` and ``server/``.
            images: to try.
            answers: what the candidate said of them, (N, ...).

        Returns:
            Evidence for ``bundle.json``: number of images, share of equal answers, accuracy, mean bytes.

        Raises:
            SplitsearchError: too many answers differ.
        """
        device, server = halves.DeviceHalf(directory / "device"), halves.ServerHalf(directory / "server")
        payloads = [device.encode(pixels) for pixels in images.pixels]
        found = torch.from_numpy(np.stack([server.decode(payload) for payload in payloads]))
        agreement = self.task.agreement(found, answers)
        different = round((1 - agreement) * len(payloads))
        if agreement < LEAST_AGREEMENT and different > _MOST_DIFFERENT:
            raise SplitsearchError(
                f"the exported halves answer {different} of {len(payloads)} images otherwise than the trial "
                f"({agreement:.2%} agree, {LEAST_AGREEMENT:.0%} are needed), so nothing was exported; "
                "onnxruntime and torch may compute this network differently: 'splitsearch check' tries an export of it"
            )
        return {
            "images": len(payloads),
            "agreement_with_trial": agreement,
            "accuracy": self.task.judge(found, images).accuracy,
            "payload_bytes": float(np.mean([len(payload) for payload in payloads])),
        }

    def _write_device(
        self, config: SplitConfig, candidate: Candidate, sample: list[torch.Tensor], pixels: np.ndarray, folder: Path
    ) -> None:
        manifest = {"picture": self.dataset.picture.to_dict(), "threads": self.device_threads}
        manifest |= {"classes": list(self.dataset.classes)}
        folders.write_device(folder, manifest | {"wire": candidate.wire_format(config).to_dict()}, pixels)
        if candidate.head is None:
            OnnxNetwork(self.split).save_part(INPUT, config.partition, folder / "head.onnx")
        else:
            picture = torch.zeros(1, 3, self.split.image_size, self.split.image_size)
            save_module(candidate.head, [picture], folder / "head.onnx", len(sample))
            with torch.no_grad():
                sample = list(candidate.head.eval()(picture))
        save_module(candidate.bottleneck.eval().encoder, sample, folder / "encoder.onnx", len(sample))

    def _write_server(
        self, config: SplitConfig, candidate: Candidate, sample: list[torch.Tensor], payload: bytes, folder: Path
    ) -> None:
        manifest = {"picture": self.dataset.picture.to_dict(), "threads": self.server_threads}
        manifest |= {"wire": candidate.wire_format(config).to_dict(), "classes": list(self.dataset.classes)}
        folders.write_server(folder, manifest, payload=payload)
        activations = [torch.zeros(1, *levels.shape) for levels in candidate.levels]
        save_batchable(candidate.bottleneck.eval().decoder, activations, folder / "decoder.onnx", len(sample))
        save_batchable(FirstTensor(candidate.tail), sample, folder / "tail.onnx")


def write_whole(split: SplitModel, task: Task, images: LabelledImages, directory: Path) -> dict[str, Any]:
    """Add the uncut network to ``device/``, for when there is no server, and send every image through it.

    Returns:
        Evidence for ``bundle.json``: number of images, accuracy, bytes of the file.
    """
    picture = torch.zeros(1, 3, split.image_size, split.image_size)
    path = directory / "device" / "whole.onnx"
    save_module(FirstTensor(split.tail(INPUT)), [picture], path)
    half = halves.DeviceHalf(directory / "device")
    found = torch.from_numpy(np.stack([half.answer(pixels) for pixels in images.pixels]))
    accuracy = task.judge(found, images).accuracy
    return {"images": len(images), "accuracy": accuracy, "bytes": path.stat().st_size}
