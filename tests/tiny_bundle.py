"""A bundle of a network with a few hundred weights, written in milliseconds and without torch."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evaluators import folders
from evaluators.edge import halves, main, points, seal, verify, wire

SIZE, CLASSES = 8, ["ant", "bee", "cat", "dog", "elk"]
DEVICE = {"head_ms": 2.0, "encode_ms": 1.0, "pack_ms": 0.5}
SERVER = {"unpack_ms": 0.5, "decode_ms": 1.0, "tail_ms": 3.0}
NOWHERE = ["--server", "http://127.0.0.1:9", "--retries", "0"]


def write(folder, name="tiny", seed=0, detector=False, whole=False, coder="packed"):
    """A bundle's folder. Bundles of different seeds have payloads of the same form and different answers."""
    random = np.random.default_rng(seed)
    convolution = random.normal(0, 0.3, (4, 3, 2, 2)).astype(np.float32)
    outputs = 12 if detector else len(CLASSES)
    linear = random.normal(0, 0.3, (64, outputs)).astype(np.float32)
    levels = wire.TensorLevels((4, 4, 4), np.full(4, -1, np.float32), np.full(4, 1, np.float32))
    form = wire.WireFormat(bits=4, tensors=(levels,), coder=coder, carries_image_size=detector)
    picture = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "letterbox": detector}
    manifest = {"picture": picture, "threads": 1, "wire": form.to_dict(), "classes": CLASSES}
    sample = random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    device, server = folder / "device", folder / "server"
    folders.write_device(device, manifest, sample)
    _save(device / "head.onnx", [_conv()], [1, 3, 8, 8], [1, 4, 4, 4], {"w": convolution})
    _save(device / "encoder.onnx", [helper.make_node("Tanh", ["x"], ["y"])], [1, 4, 4, 4], [1, 4, 4, 4], {})
    if whole:
        nodes = [_conv("c"), helper.make_node("Tanh", ["c"], ["t"]), *_tail("t", detector)]
        weights = {"w": convolution, "l": linear, **_shape(detector)}
        _save(device / "whole.onnx", nodes, [1, 3, 8, 8], _answer(detector), weights)
    payload = halves.DeviceHalf(device).encode(sample)
    folders.write_server(server, manifest, payload=payload)
    _save(server / "decoder.onnx", [helper.make_node("Identity", ["x"], ["y"])], ["n", 4, 4, 4], ["n", 4, 4, 4], {})
    weights = {"l": linear, **_shape(detector)}
    _save(server / "tail.onnx", _tail("x", detector), ["n", 4, 4, 4], _answer(detector), weights)
    sources = {"device": "measured", "server": "measured", "link": "modelled"}
    parts = {**DEVICE, "link_ms": 2.0, **SERVER}
    verify.write_prediction(device, parts, sources, len(payload), {"rate_mb_per_s": 1.0, "rtt_ms": 2.0})
    fingerprint = seal.write(folder, name)
    (folder / "bundle.json").write_text(json.dumps({"format": 1, "fingerprint": fingerprint}))
    return folder


def write_points(folder, drops=(0.0, 1.0), **more):
    """A bundle of two points: the second is of other weights, sends half the bytes and computes longer."""
    write(folder, seed=0, **more)
    second = write(folder / "making", seed=1, coder="lzma", **more)
    for side in seal.SIDES:
        shutil.rmtree(second / side / "edge")
        for name in ("__main__.py", "files.json"):
            (second / side / name).unlink()
        (folder / side / "points").mkdir()
        (second / side).rename(folder / side / "points" / "2")
    shutil.rmtree(second)
    first, other = (
        points.PointInBundle("1", 7, "a", drops[0], 4000, 10.0),
        points.PointInBundle("2", 9, "b", drops[1], 2000, 12.0),
    )
    points.write(folder / "device", [first, other], max(drops))
    seal.write(folder, "tiny")
    return folder


@contextmanager
def served(bundle, *options, port=0):
    """The bundle's own server half as a process; yields it with ``url`` and ``events``, what it has logged so far."""
    command = [sys.executable, str(bundle / "server"), "serve", "--port", str(port), *map(str, options)]
    clean = {key: value for key, value in os.environ.items() if key not in ("SPLITSEARCH_TOKEN", "PYTHONPATH")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**clean, "OMP_NUM_THREADS": "1"})
    process.events = []
    ready = threading.Event()

    def read():
        for line in process.stderr:
            process.events.append(json.loads(line) if line.startswith("{") else {"event": line})
            if process.events[-1]["event"] == "listening":
                process.url = process.events[-1]["url"]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(60) and hasattr(process, "url"), process.events
        process.port = int(process.url.rpartition(":")[2])
        yield process
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()


def run_device(bundle, capsys, *arguments, code=0):
    """Run the device half's command line; what it has printed."""
    assert main.device(bundle / "device", [str(each) for each in arguments]) == code
    return capsys.readouterr()


def edit_json(path, **changes):
    """Replace values in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def picture(folder, seed=0):
    """A picture file."""
    from PIL import Image

    path = Path(folder) / f"{seed}.png"
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)).save(path)
    return path


def _conv(output="y"):
    return helper.make_node("Conv", ["x", "w"], [output], strides=[2, 2])


def _tail(tensor, detector):
    nodes = [helper.make_node("Flatten", [tensor], ["f"])]
    if not detector:
        return [*nodes, helper.make_node("MatMul", ["f", "l"], ["y"])]
    return [
        *nodes,
        helper.make_node("MatMul", ["f", "l"], ["m"]),
        helper.make_node("Abs", ["m"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["r"]),
        helper.make_node("Add", ["r", "o"], ["y"]),  # the right lower corner lies there
    ]


def _shape(detector):
    corners = np.array([0, 0, 9, 9, 0, 0], np.float32)
    return {"s": np.array([-1, 2, 6], np.int64), "o": corners} if detector else {}


def _answer(detector):
    return ["n", 2, 6] if detector else ["n", len(CLASSES)]


def _save(path, nodes, shape_in, shape_out, weights):
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape_out)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
