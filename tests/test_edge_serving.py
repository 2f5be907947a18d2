"""A served bundle: the protocol, the server half behind it, the device's client, and the bad days."""

import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.edge import client as clients
from evaluators.edge import halves, infer, main, points, protocol, seal, serving, staged, verify
from evaluators.edge.client import Access, RefusedError, ServerClient, ServerError
from evaluators.edge.serving import app, batching, metrics, server
from search import bundle_points
from search.cli import run_command

DEADLINE_S = 1.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("served") / "bundle", whole=True)


@pytest.fixture(scope="module")
def running(bundle):
    with tiny_bundle.served(bundle, "--deadline", DEADLINE_S) as process:
        yield process


@pytest.fixture
def payload(bundle):
    return (bundle / "server" / "sample.payload").read_bytes()


@pytest.fixture
def expected(bundle, payload):
    """What the server half says of the payload without any network."""
    return halves.ServerHalf(bundle / "server").decode(payload)


def client_of(running, bundle=None, **access):
    fingerprint = halves.DeviceHalf(bundle / "device").sealed.fingerprint if bundle else ""
    return ServerClient(Access(running.url, **access), fingerprint)


def answers(running, bundle, payload, expected):
    """Whether the server still answers, and right."""
    with client_of(running, bundle, retries=0) as client:
        return np.array_equal(client.infer("tiny", payload).answer, expected)


# -- what keeps a bundle whole -----------------------------------------------------------------------------------------


def test_both_halves_of_a_bundle_have_one_fingerprint(bundle, tmp_path):
    device, server_half = halves.DeviceHalf(bundle / "device"), halves.ServerHalf(bundle / "server")
    assert device.sealed == server_half.sealed and device.sealed.name == "tiny"
    other = tiny_bundle.write(tmp_path / "other", seed=1)
    assert halves.ServerHalf(other / "server").wire.fingerprint == server_half.wire.fingerprint  # payloads look alike
    assert halves.ServerHalf(other / "server").sealed.fingerprint != server_half.sealed.fingerprint


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def listed(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: flip(folder / "tail.onnx"), "tail.onnx.*SHA-256"),
        (lambda folder: flip(folder / "edge" / "wire.py"), "wire.py.*SHA-256"),
        (lambda folder: (folder / "decoder.onnx").unlink(), "decoder.onnx.*missing"),
        (lambda folder: (folder / "numpy.py").write_text("evil"), "numpy.py.*is not part of the bundle"),
        (lambda folder: (folder / "files.json").write_text("{"), "files.json.*damaged"),
        (lambda folder: listed(folder / "files.json", format=9), "format 9 given"),
        (lambda folder: listed(folder / "files.json", sha256=[]), "damaged"),
        (lambda folder: listed(folder / "files.json", name="other"), "does not fit the files"),
        (lambda folder: listed(folder / "files.json", sha256={"../../secret": "0"}), "leads out of the folder"),
        (lambda folder: listed(folder / "files.json", sha256={"/etc/passwd": "0"}), "leads out of the folder"),
        (lambda folder: linked(folder / "tail.onnx"), "leads out of the folder"),
    ],
)
def test_a_damaged_half_is_refused(tmp_path, damage, told, capsys):
    folder = tiny_bundle.write(tmp_path / "bundle") / "server"
    damage(folder)
    with pytest.raises(seal.SealError, match=told):
        halves.ServerHalf(folder)
    assert main.server(folder, ["serve", "--port", "0"]) == 1
    assert run_command(["serve", str(folder.parent), "--port", "0"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def linked(path):
    outside = path.parent.parent.parent / "elsewhere.onnx"
    path.rename(outside)
    path.symlink_to(outside)


def test_a_half_that_was_changed_and_sealed_anew_no_longer_fits_the_other(tmp_path):
    folder = tiny_bundle.write(tmp_path / "bundle")
    before = halves.DeviceHalf(folder / "device").sealed.fingerprint
    flip(folder / "server" / "tail.onnx")
    seal.write(folder, "tiny")
    assert seal.check(folder / "server", "server").fingerprint != before


def test_a_port_in_use_is_named(running, bundle, capsys):
    port = running.url.rpartition(":")[2]
    assert run_command(["serve", str(bundle), "--port", port]) == 1
    assert f"127.0.0.1:{port} is in use already; give another --port" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--port", "70000"], ["--cert", "no.pem", "--key", "no.pem"]])
def test_what_a_server_cannot_listen_with_is_named(bundle, capsys, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main.server(bundle / "server", ["serve", "--port", "0", *options]) == 1
    assert options[-1] in capsys.readouterr().err


def test_networks_that_do_not_open_are_told_before_anybody_asks(tmp_path, capsys):
    folder = tiny_bundle.write(tmp_path / "bundle", whole=True)
    for path in (folder / "server" / "tail.onnx", folder / "device" / "head.onnx"):
        path.write_bytes(b"junk")
    seal.write(folder, "tiny")
    with pytest.raises(ValueError, match=r"tail\.onnx: onnxruntime \S+ does not open it"):
        server.open_halves(folder / "server")
    told = device(folder, capsys, "infer", tiny_bundle.picture(tmp_path), *NOWHERE, code=1).err
    assert "head.onnx: onnxruntime" in told and "Traceback" not in told


def test_a_folder_that_is_only_measured_needs_no_seal(bundle, tmp_path):
    folder = tiny_bundle.write(tmp_path / "bundle") / "server"
    (folder / "files.json").unlink()
    half = halves.ServerHalf(folder)
    with pytest.raises(seal.SealError, match="no half of a bundle"):
        _ = half.sealed


# -- the protocol ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 26, 5000])
def test_a_payload_survives_both_ways_of_sending_it(size):
    data = random.Random(0).randbytes(size)
    body, json_length = protocol.write_request(data, {"fingerprint": "f"}, "answer")
    asked = protocol.read_request(body, str(json_length))
    assert asked.payload == data and asked.parameters == {"fingerprint": "f"} and asked.outputs == {"answer": True}
    for values in (list(data), [list(data)]):
        said = {"id": "7", "inputs": [{"name": "payload", "shape": [1, size], "datatype": "UINT8", "data": values}]}
        asked = protocol.read_request(json.dumps(said).encode())
        assert asked.payload == data and asked.id == "7" and asked.outputs == {} and not asked.binary


@pytest.mark.parametrize("binary", [True, False])
def test_answers_survive_exactly(binary):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    tensors = {"answer": values, "labels": np.array([-1, 2**40]), "none": np.zeros((0, 4), np.float32)}
    body, json_length = protocol.write_response({}, protocol.Request(b"", binary=binary), tensors, {"a": 1})
    assert (json_length is not None) == binary
    said, found = protocol.read_response(body, None if json_length is None else str(json_length))
    assert said == {"a": 1} and list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and np.array_equal(found[name], tensor)


def tensor(**changes):
    return {"name": "payload", "shape": [2], "datatype": "UINT8", "data": [1, 2], **changes}


MALFORMED = [
    b"",
    b"\x00\xff\xfe",
    b"[" * 100_000,
    b"[]",
    b"{}",
    *(
        json.dumps(said).encode()
        for said in (
            {"inputs": []},
            {"inputs": {}},
            {"inputs": [1]},
            {"inputs": [tensor(), tensor()]},
            {"inputs": [tensor(name="x")]},
            {"inputs": [tensor(shape=[3])]},
            {"inputs": [tensor(shape=[-2])]},
            {"inputs": [tensor(shape=2)]},
            {"inputs": [tensor(shape=[True, 2])]},
            {"inputs": [tensor(shape=[2**70])]},
            {"inputs": [tensor(shape=[0, 2**70], data=[])]},
            {"inputs": [tensor(datatype="FP32")]},
            {"inputs": [tensor(datatype="BYTES")]},
            {"inputs": [tensor(data=[1, 256])]},
            {"inputs": [tensor(data=[1, -1])]},
            {"inputs": [tensor(data=[1, 2.5])]},
            {"inputs": [tensor(data=[True, False])]},
            {"inputs": [tensor(data=[1, None])]},
            {"inputs": [tensor(data=[[1], [2, 3]])]},
            {"inputs": [tensor(data="ab")]},
            {"inputs": [tensor(data=[1, 10**400])]},
            {"inputs": [tensor(parameters=[])]},
            {"inputs": [tensor(data=None, parameters={"binary_data_size": "2"})]},
            {"inputs": [{**tensor(parameters={"binary_data_size": 2}), "data": None}]},
            {"inputs": [tensor()], "outputs": 3},
            {"inputs": [tensor()], "parameters": []},
            {"inputs": [tensor()], "id": 5},
        )
    ),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_body_is_told(body):
    with pytest.raises(protocol.ProtocolError):
        protocol.read_request(body)
    for length in ("-1", "x", "1e3", "99999999999", str(len(body) + 1)):
        with pytest.raises(protocol.ProtocolError):
            protocol.read_request(body, length)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300).map(str), st.text(max_size=5)))
def test_random_bytes_are_malformed(body, length):
    with pytest.raises(protocol.ProtocolError):
        protocol.read_request(body, length)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), json_values), json_values)
def test_any_json_is_a_request_or_malformed(row, parameters):
    said = {"inputs": [{**tensor(), **row}], "parameters": parameters}
    with contextlib.suppress(protocol.ProtocolError):
        assert len(protocol.read_request(json.dumps(said).encode()).payload) == 2


# -- a client that nobody here wrote -----------------------------------------------------------------------------------


def test_tritons_client_gets_health_metadata_and_the_halves_answer(running, payload, expected):
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(running.url.removeprefix("http://"))
    with contextlib.closing(client):
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        about = client.get_model_metadata("tiny")
        assert about["inputs"] == [{"name": "payload", "datatype": "UINT8", "shape": [-1]}]
        assert about["outputs"] == [{"name": "answer", "datatype": "FP32", "shape": [5]}]
        for there, back in ((True, True), (True, False), (False, True), (False, False)):
            sent = triton.InferInput("payload", [len(payload)], "UINT8")
            sent.set_data_from_numpy(np.frombuffer(payload, np.uint8), binary_data=there)
            wanted = [triton.InferRequestedOutput("answer", binary_data=back)]
            found = client.infer("tiny", [sent], outputs=wanted, request_id="r7")
            assert np.array_equal(found.as_numpy("answer"), expected) and found.get_response()["id"] == "r7"
            assert np.array_equal(client.infer("tiny", [sent]).as_numpy("answer"), expected)
        sent.set_data_from_numpy(np.zeros(len(payload), np.uint8))
        with pytest.raises(triton.InferenceServerException, match="payload of version 0"):
            client.infer("tiny", [sent])


def test_tritons_client_gets_a_detectors_boxes(tmp_path):
    triton = pytest.importorskip("tritonclient.http")
    folder = tiny_bundle.write(tmp_path / "bundle", detector=True)
    half, payload = halves.ServerHalf(folder / "server"), (folder / "server" / "sample.payload").read_bytes()
    with tiny_bundle.served(folder) as process:
        client = triton.InferenceServerClient(process.url.removeprefix("http://"))
        with contextlib.closing(client):
            assert [each["name"] for each in client.get_model_metadata("tiny")["outputs"]] == [
                "answer", "boxes", "scores", "labels",
            ]  # fmt: skip
            sent = triton.InferInput("payload", [len(payload)], "UINT8")
            sent.set_data_from_numpy(np.frombuffer(payload, np.uint8))
            found = client.infer("tiny", [sent], parameters={"least_score": 0.01})
            assert np.array_equal(found.as_numpy("answer"), half.decode(payload))
            boxes = half.boxes(payload, 0.01)
            assert found.as_numpy("labels").tolist() == [box.label for box in boxes] and boxes
            corners = [[box.left, box.top, box.right, box.bottom] for box in boxes]
            assert np.allclose(found.as_numpy("boxes"), corners)
            with pytest.raises(triton.InferenceServerException, match="least_score"):
                client.infer("tiny", [sent], parameters={"least_score": "x"})


# -- the server and its limits -----------------------------------------------------------------------------------------


def raw(process, data, read=True):
    """Send bytes as they are; everything that comes back until the server closes or is silent for a while."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=5) as connection:
        with contextlib.suppress(OSError):  # it may close before it has read everything
            connection.sendall(data)
        return _everything(connection) if read else b""


def _everything(connection):
    found = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            found += part
    return found


def post(process, path="/v2/models/tiny/infer", body=b"", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_wrong_requests_are_told_why(running, bundle, payload):
    body, json_length = protocol.write_request(payload, {"fingerprint": "0123"}, "answer")
    length = {protocol.LENGTH_HEADER: str(json_length)}
    status, said = post(running, body=body, **length)
    assert status == 409 and "'0123'" in said["error"] and "same bundle" in said["error"]
    status, said = post(running, "/v2/models/other/infer", body)
    assert status == 404 and "no model 'other'" in said["error"] and "'tiny'" in said["error"]
    assert post(running, "/v2/models/tiny/versions/2/infer")[0] == 404
    assert post(running, "/v2/models/..%2f..%2fetc/infer")[0] == 404
    assert post(running, "/../../etc/passwd")[0] == 404 and post(running, "/v2/health/live")[0] == 405
    status, said = post(running, body=body, Content_Encoding="gzip")
    assert status == 415 and "compressed" in said["error"]
    body, json_length = protocol.write_request(payload, {}, "logits")
    status, said = post(running, body=body, **{protocol.LENGTH_HEADER: str(json_length)})
    assert status == 400 and "output 'logits' given; known: answer" in said["error"]


def test_a_server_of_another_bundle_refuses(running, tmp_path):
    other = tiny_bundle.write(tmp_path / "other", seed=1)
    payload = halves.DeviceHalf(other / "device").encode(np.load(other / "device" / "sample.npy"))
    with client_of(running, other) as client, pytest.raises(RefusedError, match="both halves from the same") as caught:
        client.infer("tiny", payload)
    assert caught.value.status == 409
    with client_of(running) as client:
        assert client.infer("tiny", payload).answer.shape == (5,)  # it would have answered, wrongly


def test_oversized_bodies_are_refused_before_they_are_read(running, bundle, payload, expected):
    assert post(running, body=b"x" * 200_000)[0] == 413
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"
    assert b" 413 " in raw(running, head + b"Content-Length: 99999999999999999999\r\n\r\n")
    endless = b"Transfer-Encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n10000\r\n" + b"x" * 65536
    assert b" 413 " in raw(running, head + endless)
    assert answers(running, bundle, payload, expected)


def test_slow_senders_are_cut_off_and_others_served(running, bundle, payload, expected):
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"
    starts = {"silent": b"", "headers": head, "body": head + b"Content-Length: 100\r\n\r\nx"}
    connections = {name: socket.create_connection(("127.0.0.1", running.port), timeout=10) for name in starts}
    slow = [socket.create_connection(("127.0.0.1", running.port), timeout=10) for _ in range(40)]
    with contextlib.ExitStack() as stack:
        for connection in [*connections.values(), *slow]:
            stack.enter_context(connection)
        for name, start in starts.items():
            connections[name].sendall(start)
        for connection in slow:
            connection.sendall(starts["body"])
        assert answers(running, bundle, payload, expected)
        found = {name: _everything(connection) for name, connection in connections.items()}
        assert found["silent"] == found["headers"] == b"" and b" 408 " in found["body"]
        assert all(b" 408 " in _everything(connection) for connection in slow)
    assert answers(running, bundle, payload, expected)


def malformed(random):
    """One request that cannot be right, as bytes."""
    body = random.choice(MALFORMED)
    head = "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    kind = random.randrange(4)
    if kind == 0:
        return random.randbytes(random.randrange(1, 400)) + b"\r\n\r\n"
    if kind == 1:
        return f"{head}Content-Length: {random.choice(['-1', 'x', '1, 2'])}\r\n\r\n".encode() + body[:100]
    length = f"{protocol.LENGTH_HEADER}: {random.choice(['7', '-1', 'x', '999999'])}\r\n" if kind == 2 else ""
    return f"{head}{length}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.architectures)])
def test_malformed_requests_get_errors_while_others_are_served(running, bundle, payload, expected, count):
    done, right = threading.Event(), []

    def others():
        client = client_of(running, bundle, retries=0)
        while not done.is_set():
            right.append(np.array_equal(client.infer("tiny", payload).answer, expected))
        client.close()

    threads = [threading.Thread(target=others) for _ in range(2)]
    for thread in threads:
        thread.start()
    seed = random.Random(1)
    statuses = Counter(raw(running, malformed(seed))[9:12] for _ in range(count))
    done.set()
    for thread in threads:
        thread.join()
    assert sum(statuses.values()) == count and set(statuses) <= {b"400", b"413"}, statuses
    assert len(right) > 10 and all(right)
    assert running.poll() is None and not [event for event in running.events if event["event"] == "error"]


def asked_of(service, body=b"", path="/v2/models/tiny/infer"):
    """Status and JSON of one request to a service, without a server around it."""
    sent, parts = [], [{"type": "http.request", "body": body}]

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    return service(scope, receive, send), lambda: (sent[0]["status"], json.loads(sent[1]["body"]))


def test_an_answer_that_takes_too_long_and_requests_beyond_the_limit(bundle, payload):
    half, release = halves.ServerHalf(bundle / "server"), threading.Event()
    run = half.run
    half.run = lambda model, tensors: release.wait(5) and run(model, tensors)
    limits = app.Limits(body_bytes=10_000, deadline_s=0.3, waiting=2, workers=2)
    service = app.Service({"1": half}, limits, {"1": batching.Decision(1, "")}, None, lambda *_, **__: None).app()
    said = {"inputs": [tensor(shape=[len(payload)], data=list(payload))]}
    asked = [asked_of(service, json.dumps(said).encode()) for _ in range(3)]

    async def together():
        await asyncio.gather(*(work for work, _ in asked))

    asyncio.run(together())
    release.set()
    found = sorted((result() for _, result in asked), key=lambda each: each[0])
    assert [status for status, _ in found] == [503, 504, 504]
    assert "2 requests are in work" in found[0][1]["error"] and "no answer within 0.3 s" in found[1][1]["error"]


@pytest.mark.parametrize("score", [10**400, float("nan"), "x", True, None], ids=["huge", "nan", "text", "bool", "none"])
def test_a_least_score_that_is_none_is_told(tmp_path, score):
    half = halves.ServerHalf(tiny_bundle.write(tmp_path / "bundle", detector=True) / "server")
    limits, one = app.Limits(body_bytes=10_000), batching.Decision(1, "")
    service = app.Service({"1": half}, limits, {"1": one}, None, lambda *_, **__: None).app()
    payload = (half.folder / "sample.payload").read_bytes()
    said = {"inputs": [tensor(shape=[len(payload)], data=list(payload))], "parameters": {"least_score": score}}
    work, result = asked_of(service, json.dumps(said).encode())
    asyncio.run(work)
    assert result()[0] == 400 and "least_score" in result()[1]["error"]


def test_a_failure_of_the_network_is_told_without_its_details(bundle, payload):
    half, logged = halves.ServerHalf(bundle / "server"), []

    def broken(model, tensors):
        raise RuntimeError("secret path")

    half.run = broken
    limits, one = app.Limits(body_bytes=10_000), batching.Decision(1, "")
    service = app.Service({"1": half}, limits, {"1": one}, None, lambda *_, **about: logged.append(about)).app()
    said = {"inputs": [tensor(shape=[len(payload)], data=list(payload))]}
    work, result = asked_of(service, json.dumps(said).encode())
    with pytest.raises(RuntimeError):  # which uvicorn logs
        asyncio.run(work)
    assert result()[0] == 500 and "secret" not in result()[1]["error"] and logged[0]["status"] == 500


def test_beyond_loopback_a_server_wants_token_and_tls(bundle, capsys, tmp_path, monkeypatch):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert main.server(bundle / "server", ["serve", "--host", host]) == 1
        told = capsys.readouterr().err
        assert "a token" in told and "TLS" in told and "--insecure" in told
    monkeypatch.setenv("SPLITSEARCH_TOKEN", "secret")
    assert main.server(bundle / "server", ["serve", "--host", "0.0.0.0"]) == 1
    told = capsys.readouterr().err
    assert "a token" not in told and "TLS" in told
    assert main.server(bundle / "server", ["serve", "--cert", "c.pem"]) == 1
    assert "both a certificate and its key" in capsys.readouterr().err
    for name in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert server.is_loopback(name)
    (tmp_path / "token").write_text("two words\n")
    assert run_command(["serve", str(bundle), "--token-file", str(tmp_path / "token")]) == 1
    assert "one word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"secret\r\n", "secret"),
        (b"\xef\xbb\xbfsecret\r\n", "secret"),  # as Windows' editors save it
        ("secret\r\n".encode("utf-16"), None),  # as its shell does
        ("secret".encode("utf-16-le"), None),
    ],
)
def test_a_token_that_was_written_elsewhere_is_read_or_its_file_named(tmp_path, written, read):
    file = tmp_path / "token"
    file.write_bytes(written)
    if read:
        assert clients.read_token(file) == read
    else:
        with pytest.raises(ValueError, match=f"{file}: one word of printable ASCII is needed"):
            clients.read_token(file)


def test_serving_without_its_packages_says_what_to_install(bundle, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "evaluators.edge.serving.server")
    monkeypatch.delattr(serving, "server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_command(["serve", str(bundle)]) == 1
    assert "pip install 'splitsearch[serve]'" in capsys.readouterr().err
    assert main.server(bundle / "server", ["serve"]) == 1
    assert "pip install starlette uvicorn" in capsys.readouterr().err


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("credentials")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    (folder / "token").write_text("a-token-of-some-length\n")
    return folder


def test_token_and_tls(bundle, credentials, payload, expected):
    files = ["--cert", credentials / "cert.pem", "--key", credentials / "key.pem"]
    with tiny_bundle.served(bundle, *files, "--token-file", credentials / "token") as process:
        assert process.url.startswith("https://") and "a-token" not in json.dumps(process.events)
        trusted = {"authority": credentials / "cert.pem", "retries": 0}
        token = clients.read_token(credentials / "token")
        good = client_of(process, bundle, token=token, **trusted)
        assert np.array_equal(good.infer("tiny", payload).answer, expected)
        for wrong in (None, "a-token-of-some-lengtH", "x"):
            client = client_of(process, bundle, token=wrong, **trusted)
            with client, pytest.raises(RefusedError, match="401: a bearer token is needed"):
                client.infer("tiny", payload)
        with pytest.raises(RefusedError, match=r"CERTIFICATE_VERIFY_FAILED.*--ca"):
            client_of(process, bundle, token=token).infer("tiny", payload)
        with pytest.raises(ServerError, match="tried 1 times"):
            ServerClient(Access(process.url.replace("https", "http"), retries=0)).infer("tiny", payload)
        good.close()


def test_a_server_finishes_what_it_began(bundle, payload, expected):
    body, json_length = protocol.write_request(payload, {}, "answer")
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n{protocol.LENGTH_HEADER}: {json_length}\r\n"
    with tiny_bundle.served(bundle) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[10:])
            answer = _everything(connection)
        assert process.wait(20) == 0 and answer.startswith(b"HTTP/1.1 200") and answer.endswith(expected.tobytes())
    assert process.events[-1]["event"] == "stopped"


def test_logs_and_metrics_tell_what_happened(bundle, payload):
    with tiny_bundle.served(bundle) as process:
        client = client_of(process, bundle)
        for _ in range(3):
            client.infer("tiny", payload)
        post(process, body=b"junk")
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", process.port, timeout=5)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        client.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["splitsearch_answers_total"] == "3" == values["splitsearch_answer_seconds_count"]
    assert values['splitsearch_requests_total{route="infer",status="200"}'] == "3"
    assert values['splitsearch_requests_total{route="infer",status="400"}'] == "1"
    assert float(values["splitsearch_payload_bytes_total"]) == 3 * len(payload)
    assert float(values['splitsearch_stage_seconds_total{stage="tail"}']) > 0
    requests = [event for event in process.events if event["event"] == "request"]
    assert [event["status"] for event in requests][:4] == [200, 200, 200, 400]
    assert all({"time", "method", "path", "ms", "client"} <= set(event) for event in requests)


def test_a_histogram_counts_up_to_each_bound():
    found = metrics.Metrics()
    for seconds in (0.0005, 0.001, 0.02, 99.0):
        found.observe_answer(seconds)
    lines = dict(line.rsplit(" ", 1) for line in found.text().splitlines() if not line.startswith("#"))
    name = 'splitsearch_answer_seconds_bucket{le="%s"}'
    assert [lines[name % bound] for bound in ("0.001", "0.01", "0.025", "10.0", "+Inf")] == ["2", "2", "3", "3", "4"]


# -- several pictures at once ------------------------------------------------------------------------------------------


class Timed:
    """A half whose tail takes a given time for each number of pictures."""

    def __init__(self, seconds):
        levels = SimpleNamespace(shape=(2,))
        self.now, self.wire, self._seconds = 0.0, SimpleNamespace(tensors=[levels]), seconds

    def run(self, model, tensors):
        if model == "tail":
            if len(tensors[0]) not in self._seconds:
                raise RuntimeError("bad shape")
            self.now += self._seconds[len(tensors[0])]
        return tensors


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.1, 8: 1.2}, 8),
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 6.0}, 4),
        ({1: 1.0, 2: 1.6, 4: 3.2, 8: 6.4}, 1),  # 1.25 times the throughput
        ({1: 1.0, 2: 1.9, 4: 3.9, 8: 5.5}, 1),  # 1.45 times, but the median waits 1.22 times as long
        ({1: 1.0}, 1),
    ],
)
def test_a_batch_has_to_pay(seconds, size):
    half = Timed(seconds)
    decision = batching.decide(half, clock=lambda: half.now)
    assert decision.size == size and decision.why


@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (4, 1), (8, 3)])
def test_everyone_gets_their_own_answer_out_of_a_batch(bundle, size, lanes):
    half, device = halves.ServerHalf(bundle / "server"), halves.DeviceHalf(bundle / "device")
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    payloads, sizes = [device.encode(pixels) for pixels in pictures], []
    batcher, found = batching.Batcher(half, size, lanes, sizes.append), {}

    def ask(number):
        found[number] = staged.decode(half, payloads[number], batcher)[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    with batcher._lock:  # so that many wait
        for thread in threads:
            thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sum(sizes) == 40 and max(sizes) <= size
    for number, payload in enumerate(payloads):
        assert np.allclose(found[number], half.decode(payload), atol=1e-6)


def test_what_fails_in_a_batch_fails_for_all_in_it():
    half = Timed({})
    with pytest.raises(RuntimeError, match="bad shape"):
        batching.Batcher(half, 4, 1)([np.zeros(2, np.float32)])


# -- the client's bad days ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def behaving(*behaviours):
    """A server that treats one request after the other as told, and any further one like the last."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(protocol.read_request(body, self.headers[protocol.LENGTH_HEADER]))
            behaviours[min(len(asked), len(behaviours)) - 1](self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}", asked
        finally:
            httpd.shutdown()
            thread.join()


def reply(handler, status=200, cut=0):
    body, json_length = protocol.write_response(
        {}, protocol.Request(b"", binary=True), {"answer": np.arange(3, dtype=np.float32)}, {}
    )
    handler.send_response(status)
    handler.send_header(protocol.LENGTH_HEADER, str(json_length))
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) - cut])


def gone(handler):
    handler.close_connection = True


def half_an_answer(handler):
    reply(handler, cut=5)
    handler.close_connection = True


def busy(handler):
    reply(handler, status=503)


def slow(handler):
    time.sleep(1.5)
    handler.close_connection = True


@pytest.mark.parametrize("bad", [gone, half_an_answer, busy, slow])
def test_the_client_asks_again(bad):
    pauses = []
    with behaving(bad, bad, reply) as (url, asked):
        client = ServerClient(Access(url, timeout_s=1.0, retries=4), "f", pauses.append)
        found = client.infer("m", b"abc")
        client.close()
    assert found.answer.tolist() == [0, 1, 2] and found.tries == 3
    assert [each.payload for each in asked] == [b"abc"] * 3
    assert 0.05 <= pauses[0] <= 0.1 <= pauses[1] <= 0.2


@pytest.mark.parametrize(("bad", "waits"), [(gone, 0), (busy, 1)])
def test_only_a_kept_connection_that_broke_is_opened_again_at_once(bad, waits):
    pauses = []
    with behaving(reply, bad, reply) as (url, _), ServerClient(Access(url), "f", pauses.append) as client:
        assert [client.infer("m", b"abc").tries for _ in range(2)] == [1, 2]
    assert len(pauses) == waits


def test_a_connection_that_was_closed_meanwhile_is_no_try():
    with behaving(reply, gone, reply, gone) as (url, _), ServerClient(Access(url, retries=0)) as client:
        assert [client.infer("m", b"abc").tries for _ in range(2)] == [1, 2]
        with pytest.raises(ServerError, match="tried 2 times"):
            client.infer("m", b"abc")


@pytest.mark.parametrize("bad", [gone, half_an_answer, busy, slow])
def test_the_client_gives_up_in_time_and_says_why(bad):
    with behaving(bad) as (url, asked):
        client = ServerClient(Access(url, timeout_s=0.2, retries=2), "f", lambda _: None)
        with pytest.raises(ServerError, match=r"\(tried 3 times\)"):
            client.infer("m", b"abc")
        client.close()
    assert len(asked) == 3


def test_what_will_not_be_better_is_not_asked_again():
    for status in (400, 401, 404, 409, 413):
        with behaving(lambda handler, status=status: reply(handler, status)) as (url, asked):
            with ServerClient(Access(url)) as client, pytest.raises(RefusedError) as caught:
                client.infer("m", b"abc")
            assert caught.value.status == status and len(asked) == 1


def test_an_answer_that_is_none_is_told():
    def junk(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"junk")

    told = "none of the protocol's"
    with behaving(junk) as (url, _), ServerClient(Access(url)) as client, pytest.raises(ServerError, match=told):
        client.infer("m", b"abc")


@pytest.mark.parametrize(
    ("scheme", "error", "told"),
    [
        ("http", ConnectionRefusedError(111, "no"), "connection refused; is the server running, and at this port"),
        ("http", socket.gaierror(-2, "Name or service not known"), r"no such host \(Name or service not known\)"),
        ("https", None, "it does not speak TLS; http:// in place of https://"),
    ],
)
def test_a_server_that_is_not_there_is_told_so_that_one_can_look(scheme, error, told, monkeypatch):
    def fail(*_):
        raise error

    with behaving(gone) as (url, _):
        if error:
            monkeypatch.setattr(clients.ServerClient, "_ask_once", fail)
        access = Access(url.replace("http", scheme), retries=0)
        with ServerClient(access) as client, pytest.raises(ServerError, match=told):
            client.infer("m", b"abc")


def test_a_certificate_to_trust_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.pem: no certificate to trust"):
        ServerClient(Access("https://127.0.0.1", authority=tmp_path / "no.pem"))


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "http://", "http://h:x", "http://u:p@h", "http://h/?q=1"])
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(ValueError):
        ServerClient(Access(url))


def test_a_server_that_is_killed_and_started_again_answers(bundle, payload, expected):
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(tiny_bundle.served(bundle))
        client = client_of(process, bundle, retries=60)
        assert np.array_equal(client.infer("tiny", payload).answer, expected)
        process.kill()
        process.wait()
        restart = threading.Thread(target=lambda: stack.enter_context(tiny_bundle.served(bundle, port=process.port)))
        restart.start()
        found = client.infer("tiny", payload)
        restart.join()
        client.close()
        assert found.tries > 1 and np.array_equal(found.answer, expected)


# -- infer -------------------------------------------------------------------------------------------------------------


def device(bundle, capsys, *arguments, code=0):
    assert main.device(bundle / "device", [str(each) for each in arguments]) == code
    return capsys.readouterr()


def test_pictures_and_folders_are_answered_through_the_server(running, bundle, tmp_path, capsys):
    for number in range(3):
        tiny_bundle.picture(tmp_path / "pictures", number)
    for name in ("notes.txt", "._0.png"):  # the second is what macOS leaves beside a picture
        (tmp_path / "pictures" / name).write_text("no picture")
    single = tiny_bundle.picture(tmp_path, 7)
    said = device(bundle, capsys, "infer", tmp_path / "pictures", single, "--server", running.url, "--json")
    rows = json.loads(said.out)
    assert [row["picture"].rpartition("/")[2] for row in rows] == ["0.png", "1.png", "2.png", "7.png"]
    half, there = halves.DeviceHalf(bundle / "device"), halves.ServerHalf(bundle / "server")
    for row in rows:
        payload = half.encode(main.picture.open_picture(row["picture"], half.picture))
        expected = there.decode(payload)
        assert np.array_equal(np.float32(row["scores"]), expected) and row["class"] == int(expected.argmax())
        assert row["name"] == tiny_bundle.CLASSES[row["class"]] and row["by"] == "server"
        assert row["payload_bytes"] == len(payload)
    assert "4 pictures: 4 by the server, 0 by the device, 0 without an answer" in said.err
    text = device(bundle, capsys, "infer", single, "--server", running.url).out
    assert rows[3]["name"] in text and "by the server" in text
    ours = run_command(["infer", str(bundle), str(single), "--server", running.url, "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert ours == 0 and row["scores"] == rows[3]["scores"]


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(running, bundle, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    good = tiny_bundle.picture(tmp_path)
    arguments = ["infer", tmp_path / "bad.png", good, "--server", running.url, "--json"]
    said = device(bundle, capsys, *arguments, code=1)
    bad, row = json.loads(said.out)
    assert "not a picture" in bad["error"] and row["by"] == "server" and "1 without an answer" in said.err


@pytest.mark.parametrize("command", ["device", "splitsearch"])
def test_names_that_standard_output_has_no_letters_for_are_printed_even_so(bundle, tmp_path, command):
    folder = tmp_path / "pictures"
    tiny_bundle.picture(folder).rename(folder / os.fsdecode(b"caf\xe9 \xc3\xbc.png"))
    whole = tiny_bundle.write(tmp_path / "whole", whole=True)
    run = [whole / "device"] if command == "device" else ["-c", "from search.cli import main; main()"]
    asked = [sys.executable, *run, "infer", *([] if command == "device" else [whole]), folder]
    done = subprocess.run(asked, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9 \xfc.png" in done.stdout


@pytest.mark.parametrize(
    ("command", "option", "given"),
    [
        ("infer", "--frames", "0"),
        ("infer", "--timeout", "0"),
        ("infer", "--timeout", "nan"),
        ("verify", "--repeats", "0"),
        ("verify", "--retries", "-1"),
        ("serve", "--batch", "-1"),
        ("serve", "--deadline", "x"),
    ],
)
def test_numbers_that_cannot_be_are_wrong_usage(bundle, capsys, command, option, given):
    half = main.server if command == "serve" else main.device
    with pytest.raises(SystemExit, match="2"):
        half(bundle / ("server" if command == "serve" else "device"), [command, option, given])
    assert re.search(f"{option}: '{given}' given; a .*number from [.01]+ is needed", capsys.readouterr().err)


def test_ctrl_c_in_the_middle_is_no_traceback(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main.infer, "infer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert device(bundle, capsys, "infer", tmp_path, code=130).err == "error: interrupted\n"


NOWHERE = ["--server", "http://127.0.0.1:9", "--retries", "0"]


def test_without_a_server_the_device_answers_alone_and_says_so(bundle, tmp_path, capsys):
    pictures = [tiny_bundle.picture(tmp_path, number) for number in range(2)]
    said = device(bundle, capsys, "infer", *pictures, *NOWHERE, "--json")
    assert said.err.count("answering on the device alone, with the whole network") == 1
    rows, half = json.loads(said.out), halves.DeviceHalf(bundle / "device")
    for path, row in zip(pictures, rows, strict=True):
        expected = half.answer(main.picture.open_picture(path, half.picture))
        assert row["by"] == "device" and np.array_equal(np.float32(row["scores"]), expected)
    alone = json.loads(device(bundle, capsys, "infer", *pictures, "--json").out)
    assert [row["scores"] for row in alone] == [row["scores"] for row in rows]


def test_the_device_asks_the_server_again_after_a_while(bundle):
    class Client:
        asked = 0

        def infer(self, name, payload, version):
            self.asked += 1
            if self.asked == 1:
                raise ServerError("away")
            return clients.Reply(np.zeros(5, np.float32), {}, 1)

    client, said, now = Client(), [], [0.0]
    answerer = infer.Answerer(halves.DeviceHalf(bundle / "device"), client, said.append, lambda: now[0])
    pixels, by = np.zeros((8, 8, 3), np.uint8), []
    for now[0] in (0.0, 1.0, 9.9, 10.1):
        by.append(answerer.answer(pixels, (8, 8))[1]["by"])
    assert by == ["device"] * 3 + ["server"] and client.asked == 2 and len(said) == 1


def test_without_server_and_whole_network_each_picture_is_reported(tmp_path, capsys):
    folder, picture = tiny_bundle.write(tmp_path / "bundle"), tiny_bundle.picture(tmp_path)
    (row,) = json.loads(device(folder, capsys, "infer", picture, *NOWHERE, "--json", code=1).out)
    assert "connection refused; is the server running" in row["error"] and "tried 1 times" in row["error"]
    assert "1 picture: 0 by" in device(folder, capsys, "infer", picture, *NOWHERE, code=1).err
    assert "export again with --with-whole" in device(folder, capsys, "infer", picture, code=1).err
    assert "no pictures in this folder" in device(folder, capsys, "infer", folder, *NOWHERE, code=1).err
    assert "no boxes" in device(folder, capsys, "infer", picture, *NOWHERE, "--draw", "d", code=1).err


def test_another_bundles_server_ends_it_at_once(running, tmp_path, capsys):
    other = tiny_bundle.write(tmp_path / "other", seed=1, whole=True)
    said = device(other, capsys, "infer", tiny_bundle.picture(tmp_path), "--server", running.url, code=1)
    assert "same bundle" in said.err and not said.out


def test_a_detectors_boxes_are_drawn(tmp_path, capsys):
    from PIL import Image

    folder, picture = tiny_bundle.write(tmp_path / "bundle", detector=True, whole=True), tiny_bundle.picture(tmp_path)
    drawn = tmp_path / "drawn"
    with tiny_bundle.served(folder) as process:
        found = []
        for more in (["--server", process.url], []):
            arguments = ["infer", picture, "--json", "--draw", drawn, "--least-score", "0.01", *more]
            found += json.loads(device(folder, capsys, *arguments).out)
    assert [row["by"] for row in found] == ["server", "device"] and found[0]["boxes"] and found[1]["boxes"]
    with Image.open(drawn / "0.png") as image:
        assert image.size == (8, 8)


def test_no_picture_is_drawn_over(tmp_path, capsys):
    folder, picture = tiny_bundle.write(tmp_path / "bundle", detector=True, whole=True), tiny_bundle.picture(tmp_path)
    before, payload = picture.read_bytes(), tmp_path / "0.payload"
    payload.write_bytes((folder / "server" / "sample.payload").read_bytes())
    told = device(folder, capsys, "infer", picture, "--draw", tmp_path, code=1).err
    assert f"{picture} would be overwritten" in told and picture.read_bytes() == before
    decode = ["decode", payload, "--draw", tmp_path, "--on", picture]
    assert main.server(folder / "server", [str(each) for each in decode]) == 1
    assert "would be overwritten" in capsys.readouterr().err and picture.read_bytes() == before


def test_a_camera_is_whatever_program_writes_a_picture(running, bundle, tmp_path, capsys):
    picture = tiny_bundle.picture(tmp_path)
    command = f"cat {picture}"
    said = device(
        bundle, capsys, "infer", picture, "--camera", command, "--frames", 2, "--server", running.url, "--json"
    )
    given, *frames = json.loads(said.out)
    assert [row["picture"] for row in frames] == ["frame 1", "frame 2"]
    assert all(row["scores"] == given["scores"] for row in frames) and "3 pictures" in said.err
    ours = run_command(["infer", str(bundle), "--camera", command, "--frames", "1", "--server", running.url, "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert ours == 0 and row["scores"] == given["scores"]


@pytest.mark.parametrize(
    ("command", "told"),
    [("false", "ended with 1: nothing on standard output"), ("echo x", "picture")],
)
def test_a_camera_that_gives_no_picture_is_no_answer(bundle, capsys, command, told):
    said = device(bundle, capsys, "infer", "--camera", command, "--frames", 1, "--json", code=1)
    (row,) = json.loads(said.out)
    assert row["picture"] == "frame 1" and told in row["error"]


@pytest.mark.parametrize("command", ["no-such-camera", "", "cat 'x"])
def test_a_command_that_can_give_no_picture_is_not_tried_for_ever(bundle, capsys, command):
    said = device(bundle, capsys, "infer", "--camera", command, code=1)
    assert said.err.startswith(f"error: --camera {command!r}: ") and not said.out


def test_a_camera_without_end_takes_no_more_room_and_rests_after_an_error(bundle, capsys, monkeypatch):
    class Row(dict):
        pass

    alive, most, rests = [], [], []

    def rows(*_):
        for number in range(6):
            row = (
                Row(picture="x", error="none") if number == 3 else Row(picture="x", name="ant", score=0.5, by="device")
            )
            row["ms"] = float(number)
            alive.append(weakref.ref(row))
            yield row
            del row
            most.append(sum(each() is not None for each in alive))

    monkeypatch.setattr(infer, "_rows", rows)
    monkeypatch.setattr(infer.time, "sleep", rests.append)
    said = device(bundle, capsys, "infer", "--camera", "true", code=1)
    assert "6 pictures: 0 by the server, 5 by the device, 1 without an answer; 2.0 ms in the median" in said.err
    assert max(most) <= 2 and len(rests) == 1


def test_neither_pictures_nor_a_camera_is_said(bundle, capsys):
    assert "name some, or --camera" in device(bundle, capsys, "infer", *NOWHERE, code=1).err


def test_ctrl_c_ends_a_camera_without_frames(bundle, tmp_path, capsys, monkeypatch):
    shots, picture = [], tiny_bundle.picture(tmp_path)

    def shot(camera):
        shots.append(1)
        if len(shots) == 3:
            raise KeyboardInterrupt
        return main.picture.open_upright(picture)

    monkeypatch.setattr(main.Camera, "shot", shot)
    said = device(bundle, capsys, "infer", "--camera", "true", "--json")
    assert len(json.loads(said.out)) == 2 and "2 pictures" in said.err


# -- several points in one bundle --------------------------------------------------------------------------------------


def test_the_table_of_rates_is_that_of_trying_them_all():
    for seed in range(50):
        numbers = np.random.default_rng(seed)
        listed = [
            points.PointInBundle(str(place), place, "", 0.0, float(numbers.integers(1, 50_000)), numbers.uniform(1, 40))
            for place in range(6)
        ]
        rows = points.by_rate(listed)
        assert rows[0]["from_mb_per_s"] == 0
        for rate in np.geomspace(1e-3, 1e3, 200):
            version = next(row["version"] for row in rows[::-1] if row["from_mb_per_s"] <= rate)
            link = clients.LinkNumbers(rate_mb_per_s=rate, rtt_ms=3.0)
            best = points.fastest(listed, link)
            assert listed[int(version)].latency_ms(link) == pytest.approx(best.latency_ms(link))


def test_points_are_kept_within_the_accuracy_asked_for(tmp_path):
    folder = tiny_bundle.write_points(tmp_path / "bundle", drops=(0.5, 2.0)) / "device"
    assert [point.trial for point in points.read(folder)] == [7, 9]
    assert [point.trial for point in points.read(folder, 1.0)] == [7]
    with pytest.raises(ValueError, match=r"drops at most 0\.1 points; the most accurate drops 0\.50"):
        points.read(folder, 0.1)
    assert points.read(tiny_bundle.write(tmp_path / "single") / "device") == []


def test_what_a_desktop_leaves_beside_points_is_no_point(tmp_path):
    half = halves.DeviceHalf(tiny_bundle.write_points(tmp_path / "bundle") / "device")
    (half.folder / "points" / ".DS_Store").touch()
    assert points.open_point(half, "2").folder == half.folder / "points" / "2"
    with pytest.raises(ValueError, match="point '3' given; this bundle has 1, 2"):
        points.open_point(half, "3")


def test_the_device_changes_with_the_link(tmp_path):
    half = halves.DeviceHalf(tiny_bundle.write_points(tmp_path / "bundle") / "device")
    # At 1 MB/s both points take 14 ms; the second sends less.
    rates, now, said = iter([10.0, 0.5, 1.05, 2.0]), [0.0], []
    client = SimpleNamespace(measure_link=lambda: clients.LinkNumbers(next(rates), 0.0))
    chooser, found = points.Chooser(half, client, points.read(half.folder), said.append, lambda: now[0]), []
    for now[0] in (0.0, 59.0, 61.0, 122.0, 183.0):  # the fourth would gain too little
        found.append(chooser.choose()[1])
    assert found == ["1", "1", "2", "2", "1"] and len(said) == 3
    assert "trial 9 (b) is the fastest, 16.0 ms" in said[1]


def test_the_server_answers_for_every_point(tmp_path, capsys):
    triton = pytest.importorskip("tritonclient.http")
    folder, picture = tiny_bundle.write_points(tmp_path / "bundle"), tiny_bundle.picture(tmp_path)
    with tiny_bundle.served(folder) as process:
        client = triton.InferenceServerClient(process.url.removeprefix("http://"))
        assert client.get_model_metadata("tiny")["versions"] == ["1", "2"]
        for version in ("1", "2"):
            there = halves.ServerHalf(points.folder_of(folder / "server", version))
            payload = (there.folder / "sample.payload").read_bytes()
            sent = triton.InferInput("payload", [len(payload)], "UINT8")
            sent.set_data_from_numpy(np.frombuffer(payload, np.uint8))
            found = client.infer("tiny", [sent], model_version=version).as_numpy("answer")
            assert np.array_equal(found, there.decode(payload))
        client.close()
        said = device(folder, capsys, "infer", picture, "--server", process.url, "--json")
        (row,) = json.loads(said.out)
        half = halves.DeviceHalf(points.folder_of(folder / "device", row["point"]))
        there = halves.ServerHalf(points.folder_of(folder / "server", row["point"]))
        expected = there.decode(half.encode(main.picture.open_picture(picture, half.picture)))
        assert np.array_equal(np.float32(row["scores"]), expected) and "is the fastest" in said.err
        told = device(folder, capsys, "infer", picture, "--server", process.url, "--max-drop-pp", "-1", code=1).err
        assert "no point of this bundle" in told


def test_a_detectors_further_points_are_answered_too(tmp_path):
    folder = tiny_bundle.write_points(tmp_path / "bundle", detector=True)
    there, limits = server.open_halves(folder / "server"), app.Limits(body_bytes=10_000)
    decisions = {version: batching.Decision(1, "") for version in there}
    service = app.Service(there, limits, decisions, None, lambda *_, **__: None).app()
    for version, half in there.items():
        payload = (half.folder / "sample.payload").read_bytes()
        said = {"inputs": [tensor(shape=[len(payload)], data=list(payload))], "parameters": {"least_score": 0.01}}
        work, result = asked_of(service, json.dumps(said).encode(), f"/v2/models/tiny/versions/{version}/infer")
        asyncio.run(work)
        status, answer = result()
        assert status == 200, answer
        found = {row["name"]: row["data"] for row in answer["outputs"]}
        boxes = half.boxes(payload, 0.01)
        assert found["labels"] == [box.label for box in boxes] and boxes
        assert np.array_equal(np.float32(found["answer"]), half.decode(payload).ravel())


def test_heads_of_one_cut_are_kept_once(tmp_path):
    first = tiny_bundle.write(tmp_path / "a") / "device"
    same, other = tiny_bundle.write(tmp_path / "b") / "device", tiny_bundle.write(tmp_path / "c", seed=1) / "device"
    pixels = np.load(same / "sample.npy")
    before = halves.DeviceHalf(same).encode(pixels)
    known = bundle_points._heads(first, {})
    for place in (same, other):
        known = bundle_points._heads(place, known)
        (place / "files.json").unlink()
    assert not (same / "head.onnx").exists() and (other / "head.onnx").exists()
    assert halves.DeviceHalf(same).encode(pixels) == before
    listed(same / "device.json", models={"head": "../../../head.onnx"})
    with pytest.raises(seal.SealError, match="leads out of the bundle"):
        halves.DeviceHalf(same).encode(pixels)


# -- verify ------------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def timed_pair(bundle, monkeypatch):
    """The bundle's pair, each part of it taking exactly as long as said, in milliseconds."""
    clock = Clock()
    monkeypatch.setattr(verify, "time", clock)

    def pair(link_ms, slower=1.0, payload=bytes(42)):
        def encode(half, pixels, size):
            clock.now += slower * sum(tiny_bundle.DEVICE.values()) / 1000
            return payload, {key.removesuffix("_ms"): slower * ms for key, ms in tiny_bundle.DEVICE.items()}

        def ask(name, payload, version):
            clock.now += (link_ms + sum(tiny_bundle.SERVER.values())) / 1000
            return clients.Reply(np.zeros(5), dict(tiny_bundle.SERVER), 1)

        monkeypatch.setattr(verify.staged, "encode", encode)
        return halves.DeviceHalf(bundle / "device"), SimpleNamespace(infer=ask)

    return pair


def test_verify_compares_part_by_part(timed_pair):
    found = verify.verify(*timed_pair(link_ms=2.4), repeats=5)
    assert found["within"] and found["total"]["predicted_ms"] == 10 and found["total"]["error"] == pytest.approx(0.04)
    rows = {row["part"]: row for row in found["rows"]}
    assert list(rows) == ["head", "encode", "pack", "link", "unpack", "decode", "tail"]
    assert rows["link"] == {
        "part": "link",
        "predicted_ms": 2.0,
        "measured_ms": pytest.approx(2.4),
        "source": "modelled",
    }
    assert rows["tail"]["measured_ms"] == rows["tail"]["predicted_ms"] == 3.0
    assert "within 10%" in verify.table(found) and "+20.0%" in verify.table(found)


@pytest.mark.parametrize(
    ("link_ms", "slower", "within"), [(2.9, 1, True), (3.1, 1, False), (2, 1.4, False), (0.9, 1, False)]
)
def test_more_than_a_tenth_off_is_told(timed_pair, link_ms, slower, within):
    found = verify.verify(*timed_pair(link_ms, slower), repeats=3)
    assert found["within"] == within and ("NOT within" in verify.table(found)) != within


def test_verify_takes_the_link_as_measured(timed_pair):
    link = clients.LinkNumbers(rate_mb_per_s=0.042, rtt_ms=1.0)  # 42 bytes take a millisecond
    found = verify.verify(*timed_pair(link_ms=2.0), link=link, repeats=3)
    row = next(row for row in found["rows"] if row["part"] == "link")
    assert row["predicted_ms"] == pytest.approx(2.0) and row["source"] == "measured"


def test_verify_predicts_the_link_for_the_payload_that_is_sent(timed_pair):
    """A coder's payloads differ from picture to picture; the prediction's link is that of the mean, 42 bytes."""
    found = verify.verify(*timed_pair(link_ms=3.0, payload=bytes(1042)), repeats=3)
    assert next(row["predicted_ms"] for row in found["rows"] if row["part"] == "link") == pytest.approx(3.0)
    assert found["total"]["error"] == pytest.approx(0.0)


def test_verify_on_the_running_pair(running, bundle, capsys):
    arguments = ["verify", "--server", running.url, "--json", "--repeats", "3"]
    code = main.device(bundle / "device", arguments)
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["within"] else 1) and found["payload_bytes"] == 42
    parts = {row["part"]: row["measured_ms"] for row in found["rows"]}
    assert all(ms > 0 for ms in parts.values()) and len(parts) == 7
    code = run_command(["verify", str(bundle), "--json", "--repeats", "3"])  # starts a server of its own
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["within"] else 1) and found["rows"][3]["source"] == "measured"
    assert main.device(bundle / "device", ["verify"]) == 1 and "--server URL" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["localhost:8500", "ftp://host", "http://", "http://host:port", ""])
def test_a_malformed_url_is_wrong_usage(bundle, capsys, url):
    for command in (["infer", str(bundle), "x.png"], ["verify", str(bundle)]):
        assert run_command([*command, "--server", url]) == 2
        assert f"--server: '{url}' given; http://HOST:PORT" in capsys.readouterr().err


def test_verify_on_each_point_of_a_bundle(tmp_path, capsys):
    folder = tiny_bundle.write_points(tmp_path / "bundle")
    payloads = [(points.folder_of(folder / "server", each) / "sample.payload").read_bytes() for each in ("1", "2")]
    with tiny_bundle.served(folder) as process:
        said = ["--server", process.url, "--json", "--repeats", "3"]
        for version, payload in enumerate(payloads, 1):
            run_command(["verify", str(folder), *said, "--point", str(version)])
            found = json.loads(capsys.readouterr().out)
            main.device(folder / "device", ["verify", *said, "--point", str(version)])
            there = json.loads(capsys.readouterr().out)
            parts = [[row["part"] for row in each["rows"]] for each in (found, there)]
            assert found["payload_bytes"] == there["payload_bytes"] == len(payload)
            assert [("compress" in each, "decompress" in each) for each in parts] == [(version == 2,) * 2] * 2
        assert run_command(["verify", str(folder), *said, "--point", "3"]) == 1
        assert "point '3' given; this bundle has 1, 2" in capsys.readouterr().err


def test_the_link_is_measured_over_http(running, bundle):
    with client_of(running, bundle) as client:
        link = client.measure_link()
    assert link.rtt_ms > 0 and link.rate_mb_per_s > 0


@pytest.mark.parametrize("command", ["serve", "infer", "verify"])
def test_a_folder_that_is_no_bundle_is_told(tmp_path, command, capsys):
    more = [str(tiny_bundle.picture(tmp_path))] if command == "infer" else []
    assert run_command([command, str(tmp_path), *more]) == 1
    assert "'splitsearch export' makes one" in capsys.readouterr().err
    folder = tiny_bundle.write(tmp_path / "bundle")
    (folder / "bundle.json").write_text('{"format": 99}')
    assert run_command([command, str(folder), *more]) == 1
    assert "format 99 given" in capsys.readouterr().err


def test_the_device_half_imports_neither_torch_nor_the_server(bundle):
    code = "import sys, edge.main; print(sorted({'torch', 'starlette', 'uvicorn', 'onnx'} & set(sys.modules)))"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.check_output([sys.executable, "-c", code], cwd=bundle / "device", env=clean, text=True)
    assert found.strip() == "[]"
