"""Links: jitter, profiles as files, and the probe over a real socket."""

import contextlib
import functools
import json
import socket
import struct
import threading
import time

import pytest
import yaml

import evaluators.edge.probe as probing
from evaluators import machine_lock
from evaluators.edge.probe import ProbeError, main, probe, serve
from evaluators.latency import link_probe
from evaluators.latency.link_probe import measure_link
from evaluators.latency.links import LinkProfile, load_link, measured_link
from evaluators.latency.profile_files import SHIPPED, profile_names
from evaluators.latency.profiles import load_machine
from evaluators.result import Source
from spaces.errors import MeasurementError, SpecError

FILE = {"format": 1, "name": "mine", "kind": "recorded", "rate_mb_per_s": 2.0, "rtt_ms": 3.0, "source": "a cable"}
PROBED = {"format": 1, "rate_mb_per_s": 2.5, "rtt_ms": 3.0, "jitter_ms": 0.5, "bytes": 1_000_000}


def write(folder, **changes):
    path = folder / "cable.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (FILE | changes).items() if value is not None}))
    return str(path)


def test_jitter_moves_the_tail_and_not_the_median():
    steady = LinkProfile(rate_mb_per_s=2.0, rtt_ms=3.0)
    shaky = LinkProfile(rate_mb_per_s=2.0, rtt_ms=3.0, jitter_ms=10.0)
    assert shaky.latency_ms(1000) == steady.latency_ms(1000) == steady.p90_ms(1000) == pytest.approx(3.5)
    assert shaky.p90_ms(1000) == pytest.approx(3.5 + 12.816)
    assert steady.label == "2 MB/s, 3 ms round trip"
    assert shaky.label == "2 MB/s, 3 ms round trip +-10 ms"


def test_a_link_as_a_study_gives_it_is_modelled():
    link = load_link({"rate_mb_per_s": 2, "rtt_ms": 1, "jitter_ms": 0.5, "name": "mine"})
    assert (link.jitter_ms, link.name, link.origin) == (0.5, "mine", Source.MODELLED)
    described = json.loads(json.dumps(link.describe()))
    assert described["source"] == "modelled" and described["name"] == "mine" and described["jitter_ms"] == 0.5
    assert LinkProfile.from_dict(json.loads(json.dumps(link.to_dict()))) == link
    with pytest.raises(SpecError, match=r"link\.jitter_ms: -1 given; a number from 0"):
        load_link({"rate_mb_per_s": 2, "jitter_ms": -1})
    with pytest.raises(SpecError, match=r"link\.jitter.*did you mean 'jitter_ms'"):
        load_link({"rate_mb_per_s": 2, "jitter": 1})


def test_a_profile_is_read_by_its_path(tmp_path):
    link = load_link(write(tmp_path, jitter_ms=0.25, note="short"))
    assert link == LinkProfile(
        rate_mb_per_s=2.0, rtt_ms=3.0, jitter_ms=0.25, name="mine", source="a cable", origin=Source.RECORDED
    )
    assert load_link(write(tmp_path, name=None)).name == "cable"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "link.source: nothing given; words are needed"),
        ({"source": " "}, "link.source: ' ' given"),
        ({"kind": None}, "link.kind: nothing given; modelled and recorded are allowed"),
        ({"kind": "measured"}, "link.kind: 'measured' given"),
        ({"rate_mb_per_s": None}, "link.rate_mb_per_s: nothing given"),
        ({"rate_mb_per_s": 0}, "link.rate_mb_per_s: 0 given"),
        ({"rate_mb_per_s": 1e-320}, "1e-320 given; a number of at least 1e-06 is needed"),
        ({"rtt_ms": "long"}, "link.rtt_ms: 'long' given"),
        ({"bandwidth": 3}, "link.bandwidth: 3 given; no such key"),
        ({"format": 2}, "format: 1 is needed"),
    ],
)
def test_profiles_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        load_link(write(tmp_path, **changes))


def test_what_is_shipped():
    names = profile_names("links")
    assert {f"rate_{rate}_mb_per_s" for rate in (1, 2, 5, 10)} | {"scission_wireless", "scission_wired"} <= set(names)
    for name in names:
        link = load_link(name)
        assert link.name == name and len(link.source) > 40 and link.origin is not Source.MEASURED
        data = yaml.safe_load((SHIPPED / "links" / f"{name}.yaml").read_text())
        assert data["kind"] == "recorded" or data.get("note") or name.startswith("rate_")
    assert load_link("rate_5_mb_per_s").latency_ms(1_000_000) == pytest.approx(202.0)
    assert load_link("scission_wireless").rate_mb_per_s == pytest.approx(1.6 / 8)
    assert load_link("scission_wired").latency_ms(2_500_000) == pytest.approx(1045.0)


def test_a_probe_becomes_a_link():
    link = measured_link(PROBED, "garage")
    assert (link.rate_mb_per_s, link.rtt_ms, link.jitter_ms) == (2.5, 3.0, 0.5)
    assert link.origin is Source.MEASURED and link.source == "a transfer of 1,000,000 bytes"


@pytest.mark.parametrize(
    "broken",
    [None, [], {}, PROBED | {"format": 2}, PROBED | {"rate_mb_per_s": 0.0}, PROBED | {"bytes": "many"}, {"format": 1}],
)
def test_what_is_no_probe(broken):
    with pytest.raises(MeasurementError, match="measurement of a link"):
        measured_link(broken, "garage")


@pytest.fixture
def short(monkeypatch):
    """Enough to see that it works."""
    monkeypatch.setattr(probing, "WARMUP_S", 0.05)


# -- between the right two ends ----------------------------------------------------------------------------------------


HERE, CAMERA, SERVER = (load_machine(name, "device") for name in ("local", "ssh://pi@camera", "ssh://rack"))
BOARD = load_machine("raspberry_pi_4b", "device")


class FakeSsh:
    """A machine over SSH that answers at once and remembers what it was asked to run."""

    def __init__(self, target, asked):
        self.target, self.asked = target, asked

    def run(self, folder, arguments):
        self.asked.append((self.target.host, *arguments[:2]))
        return json.dumps(PROBED) if arguments[0] == "probe" else "listening on port 1"


@pytest.fixture
def asked(monkeypatch):
    asked = []
    monkeypatch.setattr(link_probe, "SshRunner", lambda target: FakeSsh(target, asked))
    return asked


def test_a_camera_sends_to_the_server_and_not_to_here(asked):
    assert measure_link(CAMERA, SERVER).name == "ssh://pi@camera to ssh://rack"
    (port,) = {arguments[1].rpartition(":")[2] for _, *arguments in asked if arguments[0] == "probe"}
    assert ("camera", "probe", f"rack:{port}") in asked and ("rack", "serve", "--port") in asked


@pytest.mark.parametrize("server", [None, HERE])
def test_a_camera_sends_to_here_where_the_server_is(asked, server):
    assert measure_link(CAMERA, server).name.startswith("ssh://pi@camera to ")
    made, (host, command, address) = asked
    assert made == ("camera", "--help")  # with all that it lacks, before somebody waits for it
    assert (host, command) == ("camera", "probe") and address.startswith(":")


@pytest.mark.parametrize(
    ("device", "server", "message"),
    [
        (BOARD, HERE, "raspberry_pi_4b is a profile; give a rate"),
        (CAMERA, BOARD, "raspberry_pi_4b is a profile; give a rate"),
        (CAMERA, CAMERA, "device and server are the same machine, ssh://pi@camera; give a rate"),
    ],
)
def test_ends_that_are_not_at_hand(asked, device, server, message):
    with pytest.raises(SpecError, match=message):
        measure_link(device, server)
    assert not asked


def test_nobody_else_measures_or_trains_here_while_a_camera_sends(asked, monkeypatch):
    @contextlib.contextmanager
    def measuring():
        asked.append("alone")
        yield
        asked.append("over")

    monkeypatch.setattr(machine_lock, "measuring", measuring)
    measure_link(CAMERA)
    assert (asked[1], asked[2][:2], asked[3]) == ("alone", ("camera", "probe"), "over")


def test_a_link_waits_for_a_training_longer_than_the_far_side_waits_for_a_link(short, monkeypatch):
    begun, waited_s = threading.Event(), 4.0  # or a probe on a busy machine comes too late

    def train():
        with machine_lock.training():
            begun.set()
            time.sleep(1.5 * waited_s)

    monkeypatch.setattr(link_probe.probe, "serve", functools.partial(serve, timeout_s=waited_s))
    other = threading.Thread(target=train)
    other.start()
    begun.wait()
    assert measure_link(HERE).rate_mb_per_s > 0
    other.join()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_camera_that_sees_this_machine_under_an_ipv6_address_reaches_it_too(short, monkeypatch, address):
    class Ssh(FakeSsh):
        def run(self, folder, arguments):
            if arguments[0] == "--help":
                return ""
            return json.dumps(probe(address, int(arguments[1].lstrip(":")), seconds=0.1))

    monkeypatch.setattr(link_probe, "SshRunner", lambda target: Ssh(target, []))
    assert measure_link(CAMERA).rate_mb_per_s > 0


def test_a_device_whose_networks_run_on_torch_has_a_link_too(short):
    found = measure_link(load_machine({"name": "local", "runtime": "torch"}, "device"), HERE)
    assert found.rate_mb_per_s > 0 and found.origin is Source.MEASURED


# -- the probe, over loopback ------------------------------------------------------------------------------------------


class Server(threading.Thread):
    """Runs ``handle(listener)`` beside the test and keeps what it raises."""

    def __init__(self, handle):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.handle, self.error = handle, None

    def run(self):
        try:
            self.handle(self.listener)
        except ProbeError as error:
            self.error = error

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.join(10)
        self.listener.close()
        assert not self.is_alive()


def answering(transfer):
    """A server that answers pings, and a transfer with these bytes and nothing after them."""

    def handle(listener):
        connection, _ = listener.accept()
        with connection:
            while (request := probing._receive(connection, 13))[4] == probing._PING:
                connection.sendall(request)
            connection.sendall(transfer)
            with contextlib.suppress(OSError):  # the probe drops what it has not sent, and may be gone already
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    return handle


def swallowing(listener):
    """A server that answers pings, and a transfer never."""
    connection, _ = listener.accept()
    with connection, contextlib.suppress(ConnectionError):
        while request := connection.recv(1 << 16):
            if len(request) == 13 and request[4] == probing._PING:
                connection.sendall(request)


def silent(listener):
    connection, _ = listener.accept()
    with connection, contextlib.suppress(ConnectionError):
        while connection.recv(1 << 16):
            pass


def test_a_link_is_measured(short):
    with Server(serve) as server:
        found = probe("127.0.0.1", server.port, seconds=0.1)
    assert server.error is None
    assert set(found) == {"format", "rate_mb_per_s", "rtt_ms", "jitter_ms", "bytes"}
    assert found["rate_mb_per_s"] > 0 and found["rtt_ms"] > 0 and found["jitter_ms"] >= 0 and found["bytes"] > 0
    assert measured_link(json.loads(json.dumps(found)), "loopback").origin is Source.MEASURED


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (silent, "went silent: timed out"),
        (swallowing, r"did not answer within 0\.3 s after the transfer"),
        (answering(struct.pack("!Qd", 1000, 0.1)[:5]), "ends after 5 of 16 bytes"),
        (answering(struct.pack("!Qd", 0, 0.0)), "nothing arrived"),
        (answering(struct.pack("!Qd", 1000, float("nan"))), "nothing arrived"),
    ],
)
def test_no_usable_answer_is_an_error_and_no_hang(short, handle, message):
    with Server(handle) as server, pytest.raises(ProbeError, match=message):
        probe("127.0.0.1", server.port, seconds=0.1, timeout_s=0.3)


def test_something_else_than_a_probe(short):
    with Server(serve) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET / HTTP/1.")  # as long as a request
        assert connection.recv(1) == b""
    assert "something else" in str(server.error)


def test_a_probe_that_goes_away():
    with Server(serve) as server:
        socket.create_connection(("127.0.0.1", server.port)).close()
    assert "closed the connection after 0 of 13 bytes" in str(server.error)


def test_nobody_comes_and_nobody_waits():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ProbeError, match=r"no probe came within 0\.1 s"):
            serve(listener, timeout_s=0.1)
        port = listener.getsockname()[1]
    with pytest.raises(ProbeError, match=r"no connection to 127\.0\.0\.1"):
        probe("127.0.0.1", port, timeout_s=0.5)
    with pytest.raises(ProbeError, match="0 seconds given"):
        probe("127.0.0.1", port, seconds=0)


def test_from_the_command_line(short, capsys):
    with Server(serve) as server:
        assert main(["measure", f"127.0.0.1:{server.port}", "--seconds", "0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["rate_mb_per_s"] > 0
    assert main(["measure", "nowhere"]) == 1
    assert "HOST:PORT is needed" in capsys.readouterr().err
    assert main(["serve", "--host", "127.0.0.1", "--timeout", "0.1"]) == 1
    assert "no probe came" in capsys.readouterr().err
