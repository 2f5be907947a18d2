"""Writes a Triton model repository from a server half.

    <name>            an ensemble: payload -> answer, by the three steps below
    <name>_payload    Python backend: the payload's bytes -> activation_0, activation_1, ...
    <name>_decoder    ONNX Runtime: the half's decoder.onnx
    <name>_tail       ONNX Runtime: the half's tail.onnx

No tensor has a batch dimension outside: where a network takes several pictures at once, Triton puts requests together
(dynamic batching); where it takes one, Triton adds and removes the dimension of 1 (reshape).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from spaces.errors import SplitsearchError

MOST_AT_ONCE = 8  # pictures that Triton puts together where a network takes several
PAYLOAD, ANSWER = "payload", "answer"  # the names that our own server has too
_STEP = Path(__file__).with_name("step.py")  # not imported: its module of Triton's is only there
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
}

README = """
## On Triton

`triton/` is a model repository for NVIDIA Triton Inference Server (KServe runs the same): decoder and tail as ONNX
models behind a Python step that decodes the payload with this bundle's own code, for which Triton's Python needs
{packages}.

    tritonserver --model-repository triton

The model is called `{name}`; it is the bundle's first point, and further ones are not in it. Its input `payload` is one
UINT8 tensor of any length, a payload's bytes; its output `answer` is what the server half makes of them.

Tried by splitsearch's own tests: every `config.pbtxt` against Triton's schema and the ONNX files, and the server half's
answers from `model.py` and the ONNX files. Tried once with a real Triton (2.51.0, CPU, `benchmarks/triton_check.py` in
splitsearch's repository): a repository like this one loads and answers as the server half does, with requests put
together. That Triton had no ONNX backend, so the ONNX steps ran in its Python backend; with numpy 2 in that
Python requests failed, with numpy 1 they did not. Not tried: Triton's own ONNX backend, GPUs, throughput.
"""


@dataclass(frozen=True)
class Tensor:
    """A tensor of one picture, its batch dimension left out; a length of -1 is any."""

    name: str
    kind: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """What an ONNX file takes and returns, and whether for several pictures at once."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    several: bool

    @classmethod
    def read(cls, path: Path) -> Network:
        """Look into an ONNX file. Raises SplitsearchError where something in it has a type that is not known here."""
        graph = onnx.load(str(path), load_external_data=False).graph
        nodes = [*graph.input, *graph.output]
        tensors = [_tensor(node, path) for node in nodes]
        several = all(not node.type.tensor_type.shape.dim[0].HasField("dim_value") for node in nodes)
        return cls(tuple(tensors[: len(graph.input)]), tuple(tensors[len(graph.input) :]), several)


def write_repository(server: Path, repository: Path, name: str) -> None:
    """Write the four models.

    Args:
        server: a server half with decoder and tail.
        repository: made; must not exist.
        name: of the model that clients ask for.
    """
    decoder, tail = (Network.read(server / f"{part}.onnx") for part in ("decoder", "tail"))
    payload, answer = Tensor(PAYLOAD, "TYPE_UINT8", (-1,)), Tensor(ANSWER, tail.outputs[0].kind, tail.outputs[0].dims)
    sent = [Tensor(f"activation_{number}", each.kind, each.dims) for number, each in enumerate(decoder.inputs)]
    _write_step(server, repository / f"{name}_payload", _config([payload], sent, backend="python"))
    for part, network in (("decoder", decoder), ("tail", tail)):
        place = repository / f"{name}_{part}"
        (place / "1").mkdir(parents=True)
        shutil.copy(server / f"{part}.onnx", place / "1" / "model.onnx")
        (place / "config.pbtxt").write_text(_network_config(network))
    features = [f"feature_{number}" for number in range(len(decoder.outputs))]
    steps = [
        _step(f"{name}_payload", {PAYLOAD: PAYLOAD}, {each.name: each.name for each in sent}),
        _step(f"{name}_decoder", _map(decoder.inputs, [each.name for each in sent]), _map(decoder.outputs, features)),
        _step(f"{name}_tail", _map(tail.inputs, features), _map(tail.outputs, [ANSWER])),
    ]
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "README").write_text("An ensemble has no files; Triton wants its folder.\n")
    scheduling = f"ensemble_scheduling {{\n  step [{','.join(steps)}\n  ]\n}}\n"
    (repository / name / "config.pbtxt").write_text(_config([payload], [answer], platform="ensemble") + scheduling)


def _tensor(node: onnx.ValueInfoProto, path: Path) -> Tensor:
    about = node.type.tensor_type
    if about.elem_type not in _TYPES:
        kind = onnx.TensorProto.DataType.Name(about.elem_type)
        raise SplitsearchError(f"{path.name}: '{node.name}' is {kind}; for Triton, float and int64 are known here")
    dims = [each.dim_value if each.HasField("dim_value") else -1 for each in about.shape.dim]
    return Tensor(node.name, _TYPES[about.elem_type], tuple(dims[1:]))


def _write_step(server: Path, place: Path, config: str) -> None:
    version = place / "1"
    version.mkdir(parents=True)
    shutil.copy(_STEP, version / "model.py")
    shutil.copy(server / "server.json", version / "server.json")
    shutil.copytree(server / "edge", version / "edge", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "config.pbtxt").write_text(config)


def _network_config(network: Network) -> str:
    if network.several:
        batching = f"max_batch_size: {MOST_AT_ONCE}\ndynamic_batching {{ }}\n"
        return _config(network.inputs, network.outputs, backend="onnxruntime") + batching
    return _config(network.inputs, network.outputs, backend="onnxruntime", adds_one=True)


def _config(inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, adds_one: bool = False, **how: str) -> str:
    """The text of a ``config.pbtxt``; its name is that of its folder."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in how.items()]
    for place, tensors in (("input", inputs), ("output", outputs)):
        lines.append(f"{place} [{','.join(_io(tensor, adds_one) for tensor in tensors)}\n]")
    return "\n".join(lines) + "\n"


def _io(tensor: Tensor, adds_one: bool) -> str:
    lines = [f"name: {json.dumps(tensor.name)}", f"data_type: {tensor.kind}", f"dims: {list(tensor.dims)}"]
    lines += [f"reshape {{ shape: {[1, *tensor.dims]} }}"] if adds_one else []
    return "\n  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def _map(tensors: Sequence[Tensor], names: Sequence[str]) -> dict[str, str]:
    return {tensor.name: name for tensor, name in zip(tensors, names, strict=True)}


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = [
        f"      {place} {{ key: {json.dumps(own)} value: {json.dumps(shared)} }}"
        for place, pairs in (("input_map", inputs), ("output_map", outputs))
        for own, shared in pairs.items()
    ]
    return "\n".join(["", "    {", f"      model_name: {json.dumps(model)}", "      model_version: -1", *maps, "    }"])
