"""Runs and times a device or server folder with torch: ``python -m evaluators.latency.torch_half FOLDER measure ...``.

For machines that have torch anyway, a server with a GPU above all. Everything but the networks is the ``edge`` room's
own code; the networks are exported programs, ``head.pt2`` in the place of ``head.onnx``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.edge import halves, measure

SUFFIX = ".pt2"


class _OnTorch(halves.Half):
    """A half whose networks are exported programs. Tensors come from and go back to numpy, copies to and from a GPU
    included, which also waits until the GPU is done.
    """

    def has(self, model: str) -> bool:
        return (self.folder / f"{model}{SUFFIX}").exists()

    def run(self, model: str, tensors: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = self._program(model)(*(torch.from_numpy(tensor).to(self._device) for tensor in tensors))
        found = found if isinstance(found, tuple) else (found,)
        return [tensor.float().cpu().numpy() for tensor in found]

    @property
    def _device(self) -> str:
        return str(self.manifest.get("provider", "cpu"))

    @functools.lru_cache(maxsize=8)  # noqa: B019  (a half lives as long as its process)
    def _program(self, model: str) -> Callable[..., Any]:
        program = torch.export.load(self.folder / f"{model}{SUFFIX}").module()
        return program.to(self._device)


class TorchDeviceHalf(_OnTorch, halves.DeviceHalf):
    """Picture in, payload out, by torch."""


class TorchServerHalf(_OnTorch, halves.ServerHalf):
    """Payload in, scores out, by torch."""


def main(arguments: list[str]) -> int:
    """Measure a folder and print the answer as JSON."""
    parser = argparse.ArgumentParser(prog="torch_half", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", choices=["measure"])
    parser.add_argument("--json", action="store_true", required=True)
    parser.add_argument("--stages")
    options = parser.parse_args(arguments)
    only = options.stages.split(",") if options.stages else None
    try:
        side = "device" if (options.folder / "device.json").exists() else "server"
        manifest = json.loads((options.folder / f"{side}.json").read_text())
        torch.set_num_threads(manifest["threads"])
        found = measure.measure(options.folder, only, device_half=TorchDeviceHalf, server_half=TorchServerHalf)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machine = {**found["machine"], "torch": torch.__version__}
    if manifest.get("provider") == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({**found, "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
