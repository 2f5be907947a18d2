"""The server half as it is served: the protocol, a client that nobody here wrote, and the server's limits."""

import asyncio
import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
import tiny_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.edge import client as clients
from evaluators.edge import halves, main, protocol, serving
from evaluators.edge.client import Access, RefusedError, ServerClient, ServerError
from evaluators.edge.serving import app, batching, metrics, server
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


def test_a_port_in_use_is_named(running, bundle, capsys):
    port = running.url.rpartition(":")[2]
    assert run_command(["serve", str(bundle), "--port", port]) == 1
    assert f"127.0.0.1:{port} is in use already; give another --port" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--port", "70000"], ["--cert", "no.pem", "--key", "no.pem"]])
def test_what_a_server_cannot_listen_with_is_named(bundle, capsys, options, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main.server(bundle / "server", ["serve", "--port", "0", *options]) == 1
    assert options[-1] in capsys.readouterr().err


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
