"""Bodies of the Open Inference Protocol (KServe v2) over REST, with its binary tensor extension; both ends use this.

A request has one input, ``payload``: UINT8, as long as the payload. Tensors stand in the JSON as ``data``, or behind it
as plain little-endian bytes; then the HTTP header ``Inference-Header-Content-Length`` says how long the JSON is.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

LENGTH_HEADER = "Inference-Header-Content-Length"
INPUT = "payload"
_DTYPES: dict[str, np.dtype] = {"UINT8": np.dtype("<u1"), "INT64": np.dtype("<i8"), "FP32": np.dtype("<f4")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class ProtocolError(ValueError):
    """A body that is none of the protocol's; the message says why."""


@dataclass(frozen=True)
class Request:
    """What a client asks for.

    Attributes:
        payload: of one picture.
        id: given back with the answer.
        parameters: what else was said.
        outputs: the outputs wanted, and whether each as bytes; all of them where this is empty.
        binary: whether outputs come as bytes that are not named in ``outputs``.
    """

    payload: bytes
    id: str = ""
    parameters: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)
    binary: bool = False


def write_request(payload: bytes, parameters: dict, output: str) -> tuple[bytes, int]:
    """The body of a request with binary tensors, one output wanted; and the length of its JSON."""
    tensor: dict[str, Any] = {"name": INPUT, "shape": [len(payload)], "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": len(payload)}
    wanted = [{"name": output, "parameters": {"binary_data": True}}]
    start = _compact({"inputs": [tensor], "outputs": wanted, "parameters": parameters})
    return start + payload, len(start)


def read_request(body: bytes, json_length: Optional[str] = None) -> Request:
    """A request from its body and, where it has one, the header ``Inference-Header-Content-Length``.

    Raises:
        ProtocolError: whatever is wrong with it.
    """
    said, rest = _split(body, json_length)
    inputs = _list_of_objects(said, "inputs")
    if len(inputs) != 1 or inputs[0].get("name") != INPUT:
        raise ProtocolError(f"one input named {INPUT!r} is needed; see GET /v2/models/NAME")
    values = _tensor(inputs[0], rest)
    if values.dtype != np.uint8:
        raise ProtocolError(f"{INPUT}: datatype {inputs[0].get('datatype')!r} given, UINT8 is needed")
    parameters = _object(said, "parameters")
    wanted = _list_of_objects(said, "outputs") if "outputs" in said else []
    outputs = {str(each.get("name")): _object(each, "parameters").get("binary_data") is True for each in wanted}
    identity = said.get("id", "")
    if not isinstance(identity, str):
        raise ProtocolError("id: a string is needed")
    return Request(values.tobytes(), identity, parameters, outputs, parameters.get("binary_data_output") is True)


def write_response(
    model: dict, request: Request, tensors: dict[str, np.ndarray], parameters: dict
) -> tuple[bytes, Optional[int]]:
    """The body of an answer, and the length of its JSON where bytes follow.

    Args:
        model: ``model_name`` and ``model_version``.
        request: what was asked for.
        tensors: every output by name.
        parameters: what else to say.

    Raises:
        ProtocolError: an output was asked for that does not exist.
    """
    unknown = sorted(set(request.outputs) - set(tensors))
    if unknown:
        raise ProtocolError(f"output {unknown[0]!r} given; known: {', '.join(tensors)}")
    rows, parts = [], []
    for name in request.outputs or tensors:
        values = tensors[name]
        row = {"name": name, "shape": list(values.shape), "datatype": _NAMES[values.dtype]}
        if request.outputs.get(name, request.binary):
            parts.append(values.tobytes())
            row["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            row["data"] = values.ravel().tolist()
        rows.append(row)
    identity = {"id": request.id} if request.id else {}
    start = _compact({**model, **identity, "parameters": parameters, "outputs": rows})
    return start + b"".join(parts), len(start) if parts else None


def read_response(body: bytes, json_length: Optional[str] = None) -> tuple[dict, dict[str, np.ndarray]]:
    """The parameters and the outputs of an answer. Raises ProtocolError for what is none."""
    said, rest = _split(body, json_length)
    tensors = {}
    for row in _list_of_objects(said, "outputs"):
        size = _binary_size(row)
        tensors[str(row.get("name"))] = _tensor(row, rest[:size])
        rest = rest[size:]
    return _object(said, "parameters"), tensors


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _split(body: bytes, json_length: Optional[str]) -> tuple[dict, bytes]:
    """The JSON at the start of a body, and the bytes behind it."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and len(json_length) < 10):
            raise ProtocolError(f"{LENGTH_HEADER}: {json_length[:40]!r} given, a number of bytes is needed")
        length = int(json_length)
        if length > len(body):
            raise ProtocolError(f"{LENGTH_HEADER}: {length} given, but the body has {len(body)} bytes")
    try:
        said = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the body does not begin with JSON ({str(error)[:80]})") from None
    if not isinstance(said, dict):
        raise ProtocolError("the body's JSON is no object")
    return said, body[length:]


def _object(said: dict, key: str) -> dict:
    value = said.get(key, {})
    if not isinstance(value, dict):
        raise ProtocolError(f"{key}: an object is needed")
    return value


def _list_of_objects(said: dict, key: str) -> list[dict]:
    value = said.get(key)
    if not (isinstance(value, list) and all(isinstance(each, dict) for each in value)):
        raise ProtocolError(f"{key}: a list of objects is needed")
    return value


def _binary_size(row: dict) -> int:
    """Bytes of a tensor that stand behind the JSON; 0 for one that stands in it."""
    size = _object(row, "parameters").get("binary_data_size", 0)
    if not (isinstance(size, int) and size >= 0):
        raise ProtocolError("binary_data_size: a number of bytes is needed")
    return size


def _tensor(row: dict, rest: bytes) -> np.ndarray:
    """A tensor of the body, its bytes being all that is left behind the JSON."""
    name, shape, dtype = row.get("name"), row.get("shape"), _DTYPES.get(str(row.get("datatype")))
    size = _binary_size(row)
    if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape) and len(shape) < 9):
        raise ProtocolError(f"{name}: its shape is no list of whole numbers")
    if dtype is None:
        raise ProtocolError(f"{name}: datatype {row.get('datatype')!r} given; known: {', '.join(_DTYPES)}")
    if "data" in row and not rest:
        values = _from_json(row["data"], dtype)
    elif size == len(rest) and len(rest) % dtype.itemsize == 0 and "data" not in row:
        values = np.frombuffer(rest, dtype)
    else:
        raise ProtocolError(f"{name}: binary_data_size says {size}, {len(rest)} bytes follow the JSON")
    if values.size != math.prod(shape):
        raise ProtocolError(f"{name}: {values.size} values for a shape of {shape}")
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError):  # none at all, beside a side beyond what an array can have
        raise ProtocolError(f"{name}: no tensor has the shape {str(shape)[:80]}") from None


def _from_json(data: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers of a JSON list, flat or nested, in their datatype's range."""
    try:
        values = np.asarray(data) if isinstance(data, list) else np.asarray(None)
    except ValueError:
        raise ProtocolError("data: the lists have different lengths") from None
    if not values.size:
        return np.empty(0, dtype)
    if values.dtype.kind not in ("iu" if dtype.kind in "iu" else "iuf"):
        raise ProtocolError("data: a list of numbers is needed, whole ones for whole datatypes")
    if dtype.kind == "u" and not (values.min() >= 0 and values.max() <= np.iinfo(dtype).max):
        raise ProtocolError("data: a number is out of the datatype's range")
    return values.astype(dtype).ravel()
