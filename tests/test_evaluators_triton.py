"""A server half as a Triton model repository: its configurations are Triton's, its answers the server half's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from triton_stand_in import Triton, TritonError, read_config

from evaluators import folders
from evaluators.edge import halves, wire
from evaluators.fake import FakeEvaluator
from evaluators.triton.repository import write_repository
from search import wiring
from search.cli import run_command
from spaces.errors import SplitsearchError

pytest.importorskip("tritonclient")
SHAPES = ((4, 6, 6), (3, 2, 2))
CLASSES = 5
PICTURE = {"size": 32, "mean": [0.0] * 3, "std": [1.0] * 3}


def network(path, shapes, results, nodes, constants, batch):
    """An ONNX file; a batch of None is any number of pictures."""

    def named(prefix, dims):
        return [
            helper.make_tensor_value_info(f"{prefix}_{n}", TensorProto.FLOAT, [batch or "batch", *each])
            for n, each in enumerate(dims)
        ]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", named("tensor", shapes), named("result", results), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_server(folder, batch, coder="packed", detector=False):
    """A server half with two tensors at the cut: a decoder that scales, a tail that multiplies; and its wire format."""
    rng = np.random.default_rng(0)
    levels = tuple(wire.TensorLevels(s, -np.ones(s[0], np.float32), np.ones(s[0], np.float32)) for s in SHAPES)
    form = wire.WireFormat(bits=3, tensors=levels, coder=coder, carries_image_size=detector)
    folders.write_server(folder, {"picture": PICTURE, "threads": 1, "wire": form.to_dict(), "classes": list("abcde")})
    scales = {f"scale_{n}": np.float32(n + 2) for n in range(2)}
    nodes = [helper.make_node("Mul", [f"tensor_{n}", f"scale_{n}"], [f"result_{n}"]) for n in range(2)]
    network(folder / "decoder.onnx", SHAPES, SHAPES, nodes, scales, batch)
    rows = (7, 6) if detector else (CLASSES,)
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    weights = rng.normal(size=(sum(sizes), int(np.prod(rows)))).astype(np.float32)
    nodes = [helper.make_node("Flatten", [f"tensor_{n}"], [f"flat_{n}"]) for n in range(2)]
    nodes += [helper.make_node("Concat", ["flat_0", "flat_1"], ["all"], axis=1)]
    nodes += [helper.make_node("MatMul", ["all", "weights"], ["scores"])]
    nodes += [helper.make_node("Reshape", ["scores", "rows"], ["result_0"])]
    constants = {"weights": weights, "rows": np.array([-1, *rows], np.int64)}
    network(folder / "tail.onnx", SHAPES, [rows], nodes, constants, batch)
    return form


def payloads(form, count=4):
    rng = np.random.default_rng(1)
    tensors = [[rng.uniform(-1, 1, shape).astype(np.float32) for shape in SHAPES] for _ in range(count)]
    return [wire.encode(each, form, (640, 480)) for each in tensors]


def as_tensor(payload):
    return np.frombuffer(payload, np.uint8)


@pytest.fixture(params=[(1, "packed", False), (None, "lzma", False), (None, "packed", True)], ids=str)
def half(request, tmp_path):
    """A server half, its wire format, and its repository; with one picture at a time, several, and a detector's."""
    form = write_server(tmp_path / "server", *request.param)
    write_repository(tmp_path / "server", tmp_path / "triton", "net-1.0")
    return halves.ServerHalf(tmp_path / "server"), form, tmp_path / "triton"


def test_the_ensemble_answers_as_the_server_half(half, monkeypatch):
    server, form, repository = half
    triton = Triton(repository, monkeypatch)
    for payload in payloads(form):
        found = triton.infer("net-1.0", payload=as_tensor(payload))
        assert list(found) == ["answer"]
        np.testing.assert_array_equal(found["answer"], server.decode(payload))


def test_a_payload_that_is_not_ours_is_refused_in_words_and_harms_no_other(half, monkeypatch):
    server, form, repository = half
    triton = Triton(repository, monkeypatch)
    good = payloads(form, 1)[0]
    for bad in (b"", b"x", good[:-1], good + b"!", bytes([good[0] ^ 1]) + good[1:], good[:-1] + bytes([good[-1] ^ 1])):
        with pytest.raises(TritonError) as caught:
            triton.infer("net-1.0", payload=as_tensor(bad))
        assert caught.value.code == "INVALID_ARG" and "payload" in caught.value.message
    np.testing.assert_array_equal(triton.infer("net-1.0", payload=as_tensor(good))["answer"], server.decode(good))


def test_configurations_say_what_the_files_are(half):
    server, _, repository = half
    several = (
        server.folder.joinpath("tail.onnx").exists()
        and "batch" in onnxruntime.InferenceSession(server.folder / "tail.onnx").get_inputs()[0].shape
    )
    assert sorted(place.name for place in repository.iterdir()) == [
        "net-1.0",
        "net-1.0_decoder",
        "net-1.0_payload",
        "net-1.0_tail",
    ]
    for part in ("decoder", "tail"):
        place = repository / f"net-1.0_{part}"
        config, types = read_config(place)
        session = onnxruntime.InferenceSession(place / "1" / "model.onnx")
        for told, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [each.name for each in told] == [node.name for node in real]
            for each, node in zip(told, real, strict=True):
                assert types.DataType.Name(each.data_type) == "TYPE_FP32" and node.type == "tensor(float)"
                assert list(each.dims) == node.shape[1:]
                assert list(each.reshape.shape) == ([] if several else node.shape)
        assert config.backend == "onnxruntime" and config.HasField("dynamic_batching") == several
        assert (config.max_batch_size > 0) == several
    whole, types = read_config(repository / "net-1.0")
    (payload,), (answer,) = whole.input, whole.output
    assert (payload.name, types.DataType.Name(payload.data_type), list(payload.dims)) == ("payload", "TYPE_UINT8", [-1])
    assert answer.name == "answer" and list(answer.dims) == list(
        read_config(repository / "net-1.0_tail")[0].output[0].dims
    )
    assert read_config(repository / "net-1.0_payload")[0].backend == "python"


def test_the_step_needs_numpy_alone(half, tmp_path):
    """In a process that has neither pillow nor onnxruntime nor anything of ours."""
    _, form, repository = half
    version = repository / "net-1.0_payload" / "1"
    (tmp_path / "one.payload").write_bytes(payloads(form, 1)[0])
    script = f"""
import sys
for name in ("PIL", "onnxruntime", "torch", "evaluators", "search", "spaces"):
    sys.modules[name] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
from types import ModuleType
pb = ModuleType("triton_python_backend_utils")
pb.Tensor = lambda name, values: (name, values)
pb.InferenceResponse = lambda tensors, error=None: tensors
pb.get_input_tensor_by_name = lambda request, name: request[name]
pb.TritonError = None
sys.modules["triton_python_backend_utils"] = pb
import runpy, numpy
model = runpy.run_path({str(version / "model.py")!r})["TritonPythonModel"]()
model.initialize({{"model_repository": {str(version.parent)!r}, "model_version": "1"}})
class Payload:
    def as_numpy(self):
        return numpy.fromfile({str(tmp_path / "one.payload")!r}, numpy.uint8)
(answer,) = model.execute([{{"payload": Payload()}}])
print([(name, values.shape) for name, values in answer])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str([(f"activation_{n}", shape) for n, shape in enumerate(SHAPES)]), done.stderr


def test_a_type_that_triton_would_not_get_from_us_is_named(tmp_path):
    write_server(tmp_path / "server", 1)
    model = onnx.load(str(tmp_path / "server" / "tail.onnx"))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, str(tmp_path / "server" / "tail.onnx"))
    with pytest.raises(SplitsearchError, match=r"tail\.onnx: 'tensor_0' is DOUBLE"):
        write_repository(tmp_path / "server", tmp_path / "triton", "net")


class HandMade(FakeEvaluator):
    """The fake evaluator, but its bundles hold a server half that runs."""

    def export(self, config, directory, **training):
        evidence = super().export(config, directory, **training)
        write_server(directory / "server", 1)
        return evidence


def test_export_as_triton(write_study, study_dict, monkeypatch, capsys):
    evaluator = HandMade()
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: evaluator)
    file = write_study(study_dict)
    assert run_command(["run", file, "--trials", "6"]) == 0
    assert run_command(["export", file, "--as", "triton", "-o", "both"]) == 0
    assert run_command(["export", file, "-o", "plain"]) == 0
    listed = json.loads(Path("both/bundle.json").read_text())["sha256"]
    for name in ("demo/config.pbtxt", "demo/1/README", "demo_payload/1/model.py", "demo_tail/1/model.onnx"):
        assert f"triton/{name}" in listed
    assert not Path("plain/triton").exists()
    said = Path("both/README.md").read_text()
    assert said.startswith(Path("plain/README.md").read_text())
    assert "The model is called `demo`" in said and "Not tried: Triton's own ONNX" in said
    form = wire.WireFormat.from_dict(json.loads(Path("both/server/server.json").read_text())["wire"])
    (payload,) = payloads(form, 1)
    found = Triton(Path("both/triton"), monkeypatch).infer("demo", payload=as_tensor(payload))["answer"]
    np.testing.assert_array_equal(found, halves.ServerHalf(Path("both/server")).decode(payload))
    capsys.readouterr()
    assert run_command(["export", file, "--as", "tritn", "-o", "x"]) == 2
    assert "'tritn' given; bundle, triton are allowed" in capsys.readouterr().err
