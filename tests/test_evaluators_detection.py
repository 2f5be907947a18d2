"""A detector goes the whole way, as a classifier does: command line, real bytes, export, and never the network."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import squares
import yaml
from PIL import Image

pytest.importorskip("ultralytics")

from evaluators import baselines
from evaluators.latency.links import LinkProfile
from evaluators.latency.profiles import MachineProfile
from evaluators.settings import BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.split_evaluator import SplitEvaluator, SplitSettings
from search.spec import load_spec
from spaces.config import SplitConfig
from spaces.errors import SpecError

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "data" / "voc2007-15.tar.gz"
LOCAL = MachineProfile(name="local", threads=2)
STUDY = {
    "format": 1,
    "name": "squares",
    "model": {"name": "ultralytics/yolov10n", "num_classes": 2},
    "data": {"name": "yolo", "root": "squares/squares.yaml", "image_size": 96},
    "link": {"rate_mb_per_s": 0.1, "rtt_ms": 2.0},
    "space": {"partition": "model.9", "ae_ratio": [0.25], "bits": [4], "tcl": [0], "lzma": [False], "head": "own"},
    "baseline": {"epochs": 40, "batch_size": 4},
    "finetune": {"images": 12, "epochs": 2, "batch_size": 4, "reconstruction_steps": 100},
    "search": {"trials": 1, "seed": 0, "sampler": "random"},
}
# Notes every way out that Python has; loopback is one too, since nothing here has a reason to use it.
WATCH = """
import socket

def _refused(name):
    def refuse(*given, **more):
        with open({log!r}, "a") as file:
            print(name, given[1:] or given, file=file)
        raise OSError("no network in this test")
    return refuse

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, _refused(name))
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, _refused(name))
"""


def settings(**changes):
    given = {
        "model": ModelSettings(name="ultralytics/yolov10n", num_classes=20),
        "device": LOCAL,
        "server": LOCAL,
        "link": LinkProfile(rate_mb_per_s=1.0, rtt_ms=2.0),
        "finetune": FinetuneSettings(images=10, epochs=1, batch_size=5, reconstruction_steps=20, head_steps=20),
        "baseline": BaselineSettings(epochs=2, batch_size=5),
    }
    return SplitSettings(**{**given, **changes})


@pytest.mark.architectures
@pytest.mark.slow
def test_a_study_of_a_detector_never_asks_the_network(tmp_path):
    squares.write(tmp_path / "squares")
    (tmp_path / "squares.study.yaml").write_text(yaml.safe_dump(STUDY))
    log = tmp_path / "network.log"
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    path = os.pathsep.join([str(tmp_path / "watch"), str(ROOT)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("YOLO_")}
    environment = {**clean, "PYTHONPATH": path, "SPLITSEARCH_CACHE": str(tmp_path / "cache")}

    def splitsearch(*arguments):
        command = [sys.executable, "-c", "from search.cli import main; main()", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    probe = [sys.executable, "-c", "import urllib.request as u; u.urlopen('http://localhost:1')"]
    assert subprocess.run(probe, env=environment, capture_output=True).returncode != 0
    assert log.read_text()  # the watch works
    log.unlink()

    told = splitsearch("run", "squares.study.yaml")
    assert "mAP50" in told and "accuracy is mAP50-95" in told
    front = json.loads(splitsearch("front", "squares.study.yaml", "--json"))
    whole = next(point for point in front["baselines"] if point["name"] == "all-on-device")
    raw = next(point for point in front["baselines"] if point["name"] == "server-only, raw")
    assert whole["accuracy"] == raw["accuracy"] > 0.2 and raw["payload_bytes"] == 96 * 54 * 3
    (point,) = front["front"]
    assert point["payload_bytes"] == 14 + (16 * 12 * 12 + 32 * 6 * 6 + 64 * 3 * 3) / 2  # three scales, four bits
    assert point["accuracy"] > 0.5 * whole["accuracy"]
    (row,) = (row for row in csv.DictReader(splitsearch("front", "squares.study.yaml", "--csv").splitlines())
              if row["kind"] == "front")  # fmt: skip
    assert float(row["mAP50"]) >= float(row["accuracy"]) == point["accuracy"]
    splitsearch("report", "squares.study.yaml")
    assert "<th>mAP50</th>" in (tmp_path / "runs" / "squares" / "report.html").read_text()
    splitsearch("export", "squares.study.yaml", "--pick", "most-accurate", "-o", "bundle")
    evidence = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["evidence"]
    assert evidence["halves"]["agreement_with_trial"] == 1.0
    assert evidence["halves"]["accuracy"] == pytest.approx(evidence["accuracy"], abs=0.01)
    assert not log.exists(), log.read_text()

    # The halves on a picture: boxes in its own pixels, drawn on it.
    picture = tmp_path / "squares" / "images" / "val" / "0.png"
    enlarged = tmp_path / "large.png"
    with Image.open(picture) as image:
        image.resize((squares.WIDTH * 5, squares.HEIGHT * 5), Image.Resampling.NEAREST).save(enlarged)
    half(tmp_path, "device", "encode", enlarged, "--out", tmp_path / "payloads")
    payload = tmp_path / "payloads" / "large.payload"
    drawing = ("--draw", tmp_path / "drawn", "--on", enlarged)
    (answer,) = json.loads(half(tmp_path, "server", "decode", payload, "--json", *drawing))
    best = max((box for box in answer["boxes"] if box["name"] == "red"), key=lambda box: box["score"])
    row = (tmp_path / "squares" / "labels" / "val" / "0.txt").read_text().split()
    x, y, width = map(float, row[1:4])
    assert int(row[0]) == best["class"] == 0
    assert (best["left"] + best["right"]) / 2 == pytest.approx(x * 640, abs=40)
    assert (best["top"] + best["bottom"]) / 2 == pytest.approx(y * 360, abs=40)
    assert best["right"] - best["left"] == pytest.approx(width * 640, rel=0.3)
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "large.png"))
    assert drawn.shape == (360, 640, 3) and (drawn != np.asarray(Image.open(enlarged))).any()
    assert "--on with 1 images" in half(tmp_path, "server", "decode", payload, "--draw", "there", fails=True)
    assert "found" in half(tmp_path, "server", "decode", payload)


def half(folder, side, *arguments, fails=False):
    command = [sys.executable, side, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder / "bundle", capture_output=True, text=True)
    assert (done.returncode == 1) if fails else (done.returncode == 0), done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.architectures
@pytest.mark.slow
def test_real_photographs_of_voc_go_the_whole_way(tmp_path, monkeypatch):
    """Far too few to learn from; that every part takes them is what is shown."""
    if not REAL.exists():
        pytest.skip(f"{REAL} is not there")
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "QUALITIES", (10, 70))
    data = DataSettings(name="voc0712", root=REAL, image_size=128)
    evaluator = SplitEvaluator(settings(data=data), tmp_path / "run")
    evaluator.prepare(None, lambda _: None)
    config = SplitConfig(partition="model.6", ae_ratio=0.25, bits=2, tcl=3.0)
    found, distilled = evaluator.evaluate(config), evaluator.evaluate(replace(config, head="distilled"))
    for each in (found, distilled):
        assert each.payload_bytes == 14 + (16 * 16 * 16 + 32 * 8 * 8) / 4
        assert 0 <= each.accuracy <= each.metrics["mAP50"] <= 1
    assert distilled.details["head_macs"] < found.details["head_macs"]
    low, high = found.drop_interval_pp
    assert low <= found.accuracy_drop_pp <= high
    names = [baseline.name for baseline in evaluator.baselines(trained=True)]
    assert "server-only, JPEG 70, fine-tuned" in names and "all-on-device, fine-tuned" in names
    assert "mAP50-95" in evaluator.notes()[-1] and "The data: 20 classes (" in "".join(evaluator.notes())


def test_detectors_that_find_things_twice_are_refused(tmp_path):
    file = squares.write(tmp_path / "squares", train=2, val=2)
    given = settings(
        model=ModelSettings(name="ultralytics/yolov8n", num_classes=2),
        data=DataSettings(name="yolo", root=file, image_size=64),
    )
    with pytest.raises(SpecError, match=r"model\.name.*ultralytics/yolov8n.*finds things twice.*yolov10"):
        SplitEvaluator(given, tmp_path / "run")


def test_one_class_is_for_detection_alone(tmp_path):
    def study(**changes):
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        return load_spec(tmp_path / "one.yaml")

    squares.write(tmp_path / "squares", train=2, val=2, classes=1)
    assert study(model={"name": "ultralytics/yolov10n", "num_classes": 1}).model.num_classes == 1
    with pytest.raises(SpecError, match="num_classes: 1 given; a whole number from 2 is needed"):
        study(model={"name": "torchvision/resnet18", "num_classes": 1})
    with pytest.raises(SpecError, match="num_classes: 0 given; a whole number from 1 is needed"):
        study(model={"name": "ultralytics/yolov10n", "num_classes": 0})
    for role in ("train", "val"):
        (tmp_path / "folders" / role / "red").mkdir(parents=True)
        for number in range(2):
            picture = tmp_path / "squares" / "images" / "train" / f"{number}.png"
            (tmp_path / "folders" / role / "red" / picture.name).write_bytes(picture.read_bytes())
    given = settings(
        model=ModelSettings(name="ultralytics/yolov10n", num_classes=1),
        data=DataSettings(name="imagefolder", root=tmp_path / "folders", image_size=64),
    )
    with pytest.raises(SpecError, match=r"data\.name: 'imagefolder' given; .* needs data for detection"):
        SplitEvaluator(given, tmp_path / "run")
    classifier = replace(given, model=ModelSettings(name="torchvision/resnet18", num_classes=2))
    with pytest.raises(SpecError, match=r"'imagefolder' given; has 1 class \(red\); a classifier needs two or more"):
        SplitEvaluator(classifier, tmp_path / "run")
