"""What results depend on, by content: networks, weights, and the kind of machine that computes."""

from __future__ import annotations

import hashlib
from importlib import metadata
from typing import Any

import torch
from torch import nn

from evaluators.compute import compute_device
from evaluators.settings import ModelSettings
from evaluators.store import digest_of
from evaluators.user_code import PREFIX, source_digest

_LIBRARIES = ("torchvision", "timm", "ultralytics")


def architecture(model: ModelSettings) -> dict[str, Any]:
    """What decides a network's operations, without its weights: name, classes, options, code. JSON-ready."""
    own = model.name.startswith(PREFIX)
    library = model.name.partition("/")[0]
    return {
        "name": model.name.rpartition(":")[2] if own else model.name,  # where the file lies decides nothing
        "num_classes": model.num_classes,
        "options": dict(model.options),
        "code": source_digest(model.name) if own else _version(library),
    }


def state_digest(network: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names, hexadecimal."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def arithmetic() -> dict[str, str]:
    """The kind of machine that trains and scores: results of another one differ in their last digits."""
    bf16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    device = compute_device().type
    return {"torch": torch.__version__, "compute": device if device != "cpu" else f"cpu{', bfloat16' if bf16 else ''}"}


def short(value: Any) -> str:
    """The first digits of a JSON value's digest, for people to compare."""
    return digest_of(value)[:12]


def _version(library: str) -> str:
    return f"{library} {metadata.version(library)}" if library in _LIBRARIES else library
