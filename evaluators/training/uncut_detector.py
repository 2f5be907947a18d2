"""Training of an uncut detector from scratch, by ultralytics' own trainer with its own augmentation and loss.

It reads files, so the training images are laid out for it once: links to them, and their boxes as text. Nothing is
chosen by looking at other images: what comes out are the averaged weights of the last epoch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from evaluators import machine_lock
from evaluators.compute import autocast, compute_device
from evaluators.settings import BaselineSettings, ModelSettings
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.detection import in_float
from evaluators.tasks.detection_data import EDGE_TOLERANCE, DetectionFiles, ImageFiles, inside

_LEARNING_RATE = {"adamw": 1e-3, "sgd": 1e-2}
_NAMES = {"adamw": "AdamW", "sgd": "SGD"}
_KEPT_IN_MEMORY = 2000  # images, at most; otherwise each is decoded four times an epoch


def yolo_layout(images: LabelledImages, classes: tuple[str, ...], folder: Path) -> Path:
    """Write images and boxes the way ultralytics reads them, for training and validation alike.

    Difficult boxes are left out, as in ultralytics' own VOC.

    Returns:
        The YAML file of the data set.
    """
    assert isinstance(images.pixels, ImageFiles)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number, (file, size) in enumerate(zip(images.pixels.files, images.sizes, strict=True)):
        name = f"{number:06}"
        _link(file, folder / "images" / f"{name}{file.suffix}")
        rows = images.labels[images.labels[:, 0] == number].tolist()
        lines = [_label_line(int(label), corners, size) for _, label, *corners, difficult in rows if not difficult]
        (folder / "labels" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    said = {"path": str(folder.resolve()), "train": "images", "val": "images", "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(said))
    return folder / "data.yaml"


def _label_line(label: int, corners: Sequence[float], size: tuple[int, int]) -> str:
    """Class, middle and size of a box as shares of the picture's.

    ultralytics silently leaves a picture out of which one number is too far from 0 to 1, so such a box is cut off at
    the picture's edges.
    """
    shares = _shares(corners, size)
    if max(shares) > 1 + EDGE_TOLERANCE or min(shares) < -EDGE_TOLERANCE:
        left, top, right, bottom = corners
        shares = _shares(inside((left, top, right, bottom), *size), size)
    return f"{label} " + " ".join(f"{share:.6f}" for share in shares)


def _shares(corners: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    (left, top, right, bottom), (width, height) = corners, size
    return (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height


def train_detector(
    network: nn.Module,
    model: ModelSettings,
    data: DetectionFiles,
    recipe: BaselineSettings,
    seed: int,
    checkpoint: Path,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train an ultralytics network in place; it ends on the CPU, in eval mode.

    A training that was stopped goes on after its last finished epoch; ``checkpoint`` names the folder that it is kept
    in, which its caller removes.

    Returns:
        One row an epoch: its number, mean loss, seconds.
    """
    images = data.train(None, seed)
    # Made anew when a training goes on: its links may lead nowhere where the images have moved meanwhile.
    shutil.rmtree(checkpoint / "data", ignore_errors=True)
    layout = yolo_layout(images, data.classes, checkpoint / "data")
    last = checkpoint / "weights" / "last.pt"
    settings = {
        "model": f"{model.name.partition('/')[2]}.yaml",
        "data": str(layout),
        "imgsz": data.picture.size,
        "epochs": recipe.epochs,
        "batch": recipe.batch_size,
        "nbs": recipe.batch_size,  # a step for every batch
        "optimizer": _NAMES[recipe.optimizer],
        "lr0": recipe.learning_rate or _LEARNING_RATE[recipe.optimizer],
        "fliplr": 0.5 if data.mirrored else 0.0,
        "seed": seed,
        "device": "cpu" if compute_device().type == "cpu" else 0,
        "amp": "bf16" if compute_device().type == "cuda" and torch.cuda.is_bf16_supported() else False,
        "project": str(checkpoint.parent),
        "name": checkpoint.name,
        "exist_ok": True,
        "val": False,
        "plots": False,
        "cache": "ram" if len(images) <= _KEPT_IN_MEMORY else False,
        "verbose": False,
    }
    start = network.state_dict() if model.weights is not None else None
    if last.exists():
        settings |= {"model": str(last), "resume": str(last)}
        start = None
    # It seeds everything, draws bars, and leaves torch all cores but one.
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()), _threads_kept() as keep_threads:
        trainer = _trainer(settings, start, progress)
        trainer.add_callback("on_train_start", lambda _: keep_threads())
        with machine_lock.training():
            trainer.train()
    network.load_state_dict(trainer.ema.ema.float().cpu().state_dict())
    network.eval()
    return _history(checkpoint / "results.csv", data.picture.size)


@contextlib.contextmanager
def _threads_kept() -> Iterator[Callable[[], None]]:
    """Give torch its threads back at the end, and whenever what this yields is called.

    On two cores ultralytics otherwise trains on one, and so does the process from then on: an epoch of 205 images at
    320 px took 7.5 to 8.7 s instead of 4.5 to 5.1 (two EPYC cores, eight epochs each).
    """
    threads = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(threads)
    finally:
        torch.set_num_threads(threads)


def _trainer(settings: dict[str, Any], start: dict[str, torch.Tensor] | None, progress: Callable[[str], None]) -> Any:
    """ultralytics' trainer; ``start`` are weights to begin with, its own random ones when not given."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):  # type: ignore[misc]
        """Tells of its progress, and looks at no picture but those it learns from."""

        def __init__(self) -> None:
            super().__init__(overrides=settings)
            self._began = time.perf_counter()
            self.add_callback("on_train_epoch_start", lambda _: self._start())
            self.add_callback("on_train_batch_end", lambda _: machine_lock.make_way())
            self.add_callback("on_train_epoch_end", lambda _: self._tell())
            if self.device.type == "cpu":
                # Not earlier: the averaged copy, made just before, is saved and must stay as ultralytics knows it.
                self.add_callback("on_pretrain_routine_end", lambda trainer: _hasten(trainer.model))

        def get_model(self, *given: Any, **options: Any) -> Any:
            model = super().get_model(*given, **options)
            if start is not None:
                model.load_state_dict(start)
            return model

        def validate(self) -> tuple[dict[str, Any], None]:
            return {}, None

        def final_eval(self) -> None:
            pass

        def _start(self) -> None:
            self._began = time.perf_counter()

        def _tell(self) -> None:
            loss = sum(map(float, (self.tloss or {}).values()))
            left = (time.perf_counter() - self._began) * (self.epochs - self.epoch - 1)
            progress(
                f"training the uncut model: epoch {self.epoch + 1} of {self.epochs} at {self.args.imgsz} px, "
                f"loss {loss:.2f}, {left / 60:.0f} min left"
            )

    return Trainer()


def _hasten(network: Any) -> None:
    """bfloat16 and channels last, which ultralytics does on GPUs alone: an epoch of 205 images at 320 px takes 8 s
    instead of 12 (two EPYC cores, the loader aside).
    """
    network.to(memory_format=torch.channels_last)
    predict = network.predict

    def hastened(images: torch.Tensor, *rest: Any, **options: Any) -> Any:
        with autocast(network):
            return in_float(predict(images.to(memory_format=torch.channels_last), *rest, **options))

    network.predict = hastened


def _history(log: Path, size: int) -> list[dict[str, Any]]:
    """One row an epoch from the table that ultralytics' trainer writes; its clock starts again when it is resumed."""
    rows, before = [], 0.0
    with log.open(newline="") as file:
        for row in csv.DictReader(file, skipinitialspace=True):
            now = float(row["time"])
            loss = sum(float(value) for name, value in row.items() if name.startswith("train/"))
            seconds = now - before if now > before else now
            rows.append({"epoch": int(row["epoch"]), "size": size, "loss": loss, "seconds": round(seconds, 1)})
            before = now
    return rows


def _link(file: Path, target: Path) -> None:
    try:
        os.symlink(file.resolve(), target)
    except OSError:  # a file system without links
        shutil.copyfile(file, target)
