"""Load an exported model repository into a real Triton and compare its answers with the bundle's server half.

    splitsearch export quickstart --as triton -o bundle
    python benchmarks/triton_check.py bundle

The Triton is the one that comes with nvidia-pytriton (x86-64), installed into an environment of its own; needs a
Python with a shared library and tritonclient[http]. That build has the Python backend alone, so the two ONNX steps are
run by ONNX Runtime inside of it, with their configurations otherwise as exported; the ensemble, shapes, batches and the
payload step are Triton's own business.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tritonclient.http
from tritonclient.utils import InferenceServerException

from evaluators.edge import halves, wire

PICTURES, AT_ONCE = 200, 8
READY_S = 120

# Runs an ONNX file where Triton has no backend for it: requests that Triton put together run together.
ONNX_STEP = """
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.outputs = [node.name for node in self.session.get_outputs()]

    def execute(self, requests):
        named = pb_utils.get_input_tensor_by_name
        given = [[named(each, name).as_numpy() for name in self.inputs] for each in requests]
        pb_utils.Logger.log_info(f"requests together: {len(requests)}")
        if not isinstance(self.session.get_inputs()[0].shape[0], int):  # it takes several pictures at once
            together = [np.concatenate(tensors) for tensors in zip(*given)]
            found = self.session.run(self.outputs, dict(zip(self.inputs, together)))
            answers = zip(*[np.split(each, len(requests)) for each in found])
        else:
            answers = [self.session.run(self.outputs, dict(zip(self.inputs, tensors))) for tensors in given]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(self.outputs, answer)])
            for answer in answers
        ]
"""


def main() -> None:
    """Print what Triton is, what it loaded and how its answers differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--environment", type=Path, help="keep the environment with Triton here, or use the one there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triton-check-") as scratch:
        there = installed(options.environment or Path(scratch) / "environment")
        repository = prepared(options.bundle / "triton", Path(scratch) / "repository")
        with served(there, repository, Path(scratch)) as (address, log):
            check(options.bundle, address)
            sizes = [int(line.rsplit(": ", 1)[1].strip('"\n ')) for line in log.open() if "requests together" in line]
            print(f"requests that Triton put together: up to {max(sizes)}, {np.mean(sizes):.1f} in the mean")


def installed(place: Path) -> Path:
    """The folder of the packages of an environment that has Triton; made if absent."""
    if not (place / "bin" / "python").exists():
        venv.create(place, with_pip=True)
        subprocess.run(
            [place / "bin" / "python", "-m", "pip", "install", "-q", "nvidia-pytriton", "onnxruntime"], check=True
        )
    return next(place.glob("lib/python*/site-packages"))


def prepared(exported: Path, repository: Path) -> Path:
    """A copy of the repository whose ONNX steps run in the Python backend."""
    shutil.copytree(exported, repository)
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text()
        if 'backend: "onnxruntime"' in text:
            config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
            (config.parent / "1" / "model.py").write_text(ONNX_STEP)
    return repository


@contextlib.contextmanager
def served(packages: Path, repository: Path, scratch: Path):
    """Triton on the repository; gives its HTTP address and its log."""
    triton, backends, log = packages / "pytriton" / "tritonserver", scratch / "backends", scratch / "log"
    shutil.copytree(triton / "backends", backends)
    version = packages.parent.name.removeprefix("python")
    shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
    # Triton's Python is the first on the path; this Triton cannot read tensors with another environment's numpy 2.
    path = f"{packages.parents[2] / 'bin'}:{os.environ['PATH']}"
    found = {"PATH": path, "PYTHONPATH": str(packages), "LD_LIBRARY_PATH": ":".join(libraries)}
    ports = [free_port() for _ in range(3)]
    command = [triton / "bin" / "tritonserver", "--model-repository", repository, "--backend-directory", backends]
    for kind, port in zip(("http", "grpc", "metrics"), ports):
        command += [f"--{kind}-port", str(port), f"--{kind}-address", "127.0.0.1"]
    with log.open("w") as file, subprocess.Popen(command, env=os.environ | found, stdout=file, stderr=file) as server:
        try:
            yield f"127.0.0.1:{ports[0]}", log
        finally:
            server.terminate()


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(bundle: Path, address: str) -> None:
    """Random activations as payloads, several at once, and some that are no payloads."""
    name = json.loads((bundle / "bundle.json").read_text())["study"]
    half = halves.ServerHalf(bundle / "server")
    clients = threading.local()

    def ask(payload: bytes) -> np.ndarray:
        if not hasattr(clients, "own"):  # they do not work across threads
            clients.own = tritonclient.http.InferenceServerClient(address)
        tensor = tritonclient.http.InferInput("payload", [len(payload)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(payload, np.uint8))
        return clients.own.infer(name, [tensor]).as_numpy("answer")

    client = tritonclient.http.InferenceServerClient(address)
    print("Triton", wait_for(client, name)["version"], client.get_model_metadata(name))
    payloads = list(random_payloads(half.wire))
    with ThreadPoolExecutor(AT_ONCE) as several:
        answers = list(several.map(ask, payloads))
    right = [half.decode(payload) for payload in payloads]
    assert all(one.shape == other.shape for one, other in zip(answers, right))
    worst = max(float(np.abs(one - other).max()) for one, other in zip(answers, right))
    print(f"{len(payloads)} payloads, {AT_ONCE} at once; largest difference to the server half: {worst:.3g}")
    for bad in (b"", b"x", payloads[0][:-1], payloads[0][:-1] + bytes([payloads[0][-1] ^ 1])):
        try:
            ask(bad)
            sys.exit(f"{bad!r} was accepted")
        except InferenceServerException as error:
            print(f"{len(bad)} bad bytes: {error.status()} {error.message()}")


def wait_for(client: tritonclient.http.InferenceServerClient, name: str) -> dict:
    """What the server says of itself once the model is ready."""
    end = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(OSError):
            if client.is_model_ready(name):
                return client.get_server_metadata()
        if time.monotonic() > end:
            sys.exit(f"{name} is not ready after {READY_S} s")
        time.sleep(0.5)


def random_payloads(form: wire.WireFormat):
    """Payloads of activations that are drawn evenly between the levels' ends."""
    rng = np.random.default_rng(0)
    for _ in range(PICTURES):
        yield wire.encode(
            [rng.uniform(-1, 1, each.shape).astype(np.float32) for each in form.tensors], form, (640, 480)
        )


if __name__ == "__main__":
    main()
