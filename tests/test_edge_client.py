"""The device's client on bad days: servers that are gone, slow, busy or talk nonsense."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from evaluators.edge import client as clients
from evaluators.edge import protocol
from evaluators.edge.client import Access, RefusedError, ServerClient, ServerError


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
