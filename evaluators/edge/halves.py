"""The two halves of a split network as folders that run: ``DeviceHalf`` and ``ServerHalf``.

A device folder holds ``device.json``, ``head.onnx``, usually ``encoder.onnx``, and ``sample.npy`` (one picture to
measure with); ``whole.onnx``, the whole network, where the device may answer without a server. A server folder holds
``server.json``, ``tail.onnx`` and usually ``decoder.onnx``. What is absent is skipped: without an encoder the head is
the whole network (all-on-device); without a decoder the server takes a picture (server-only), raw or as a codec's file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from . import picture as images
from . import seal as seals
from . import threads as pools
from . import wire as wires
from .boxes import LEAST_SCORE, Box, boxes_of
from .letterbox import Letterbox
from .picture_codecs import PictureCoding

FORMAT = 1
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _read_manifest(path: Path) -> dict:
    manifest = json.loads(path.read_text())
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {manifest.get('format')!r} given, {FORMAT} known here; export the bundle again"
        )
    return manifest


def _session(path: Path, threads: int, provider: str, alone: bool) -> onnxruntime.InferenceSession:
    wanted = _PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise ValueError(f"this onnxruntime has no {wanted}; install onnxruntime-gpu, or set provider: cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    pools.configure(options, threads, alone=alone)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # what onnxruntime raises has no common name
        told = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path}: onnxruntime {onnxruntime.__version__} does not open it ({told}); a newer one may"
        ) from None
    if wanted not in session.get_providers():  # it goes on without, and says so in its log alone
        raise ValueError(f"onnxruntime could not start {wanted}: are GPU, CUDA and cuDNN there? Else set provider: cpu")
    return session


def _run(session: onnxruntime.InferenceSession, tensors: list[np.ndarray]) -> list[np.ndarray]:
    names = [node.name for node in session.get_inputs()]
    return session.run(None, dict(zip(names, tensors)))


class Half:
    """A folder with its manifest and its ONNX models, opened once.

    Raises SealError where the folder is a bundle's and not as it was exported.
    """

    side: str

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.seal = seals.check(self.folder, self.side) if (self.folder / seals.FILE).exists() else None
        self.manifest = _read_manifest(self.folder / f"{self.side}.json")
        self.picture = images.PictureFormat.from_dict(self.manifest["picture"])
        wire = self.manifest.get("wire")
        self.wire = wires.WireFormat.from_dict(wire) if wire else None
        coding = self.manifest.get("picture_codec")
        self.coding = PictureCoding.from_dict(coding) if coding else None
        self.timed_codings = [PictureCoding.from_dict(each) for each in self.manifest.get("timed_picture_codecs", ())]
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    @property
    def sealed(self) -> seals.Seal:
        """The bundle that this is half of. Raises SealError for a folder that is no bundle's."""
        return self.seal or seals.check(self.folder, self.side)

    @property
    def classes(self) -> list[str]:
        """The classes' names, by their numbers; none where the folder has none."""
        return self.manifest.get("classes") or []

    @property
    def finds_boxes(self) -> bool:
        """Whether this is half of a detector."""
        return self.wire is not None and self.wire.carries_image_size

    def has(self, model: str) -> bool:
        """Whether the folder holds this model."""
        return self._path(model).exists()

    def _path(self, model: str) -> Path:
        """Where a model's file lies; points of one cut share the first one's head."""
        shared = self.manifest.get("models", {}).get(model)
        if shared is None:
            return self.folder / f"{model}.onnx"
        path, bundle = (self.folder / shared).resolve(), self.folder.resolve().parent.parent
        if not path.is_relative_to(bundle):
            raise seals.SealError(f"{self.folder}: its {model} {shared!r} leads out of the bundle; nothing was opened")
        return path

    def run(self, model: str, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Run one of the folder's models on tensors with a batch dimension of 1. Raises as :meth:`open` does."""
        self.open(model)
        return _run(self._sessions[model], tensors)

    def open(self, model: str) -> None:
        """Have a model ready to run. Raises ValueError where the onnxruntime here does not take it."""
        if model not in self._sessions:
            threads, provider = self.manifest["threads"], self.manifest.get("provider", "cpu")
            alone = not (self.has("encoder") or self.has("decoder"))
            self._sessions[model] = _session(self._path(model), threads, provider, alone)


class DeviceHalf(Half):
    """Picture in, payload out."""

    side = "device"

    def head(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Normalise a picture and run the head."""
        return self.run("head", [images.to_input(pixels, self.picture)])

    def activations(self, features: list[np.ndarray]) -> list[np.ndarray]:
        """Run the encoder: bottleneck activations without the batch dimension."""
        return [tensor[0] for tensor in self.run("encoder", features)]

    def encode(self, pixels: np.ndarray, picture_size: tuple[int, int] | None = None) -> bytes:
        """The payload of one picture.

        Args:
            pixels: as :func:`.picture.open_picture` returns them.
            picture_size: width and height of the picture itself, if it was scaled down; a detector's boxes are in its
                pixels.

        Raises:
            PayloadError: NaN or infinite activations.
        """
        if self.wire is None:
            raise ValueError(f"{self.folder} holds a whole network; there is no payload to encode")
        size = picture_size or (pixels.shape[1], pixels.shape[0])
        return wires.encode(self.activations(self.head(pixels)), self.wire, size)

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """The whole network's answer, without a server; of the same form as the server's."""
        return self.run("whole", [images.to_input(pixels, self.picture)])[0][0]


class ServerHalf(Half):
    """Payload in, answer out: class scores, or boxes."""

    side = "server"

    def tail(self, activations: list[np.ndarray]) -> np.ndarray:
        """Run decoder and tail: the network's answer, class scores (classes,) or boxes (M, 6)."""
        return self.run("tail", self.run("decoder", [tensor[None] for tensor in activations]))[0][0]

    def decode(self, payload: bytes) -> np.ndarray:
        """The network's answer to one payload: class scores (classes,), or a detector's rows (M, 6) in pixels of its
        input, see :meth:`boxes`. Raises PayloadError for a payload that is not ours.
        """
        if self.wire is None:
            raise ValueError(f"{self.folder} takes images; there is no payload to decode")
        return self.tail(wires.decode(payload, self.wire))

    def boxes(self, payload: bytes, least_score: float = LEAST_SCORE) -> list[Box]:
        """What a detector finds, in pixels of the picture, the surest first."""
        answer = self.decode(payload)
        assert self.wire is not None
        width, height = wires.picture_size(payload, self.wire)
        return boxes_of(answer, Letterbox(width, height, self.picture.size), least_score)
