"""verify: the running pair, part by part, beside what was predicted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle

from evaluators.edge import client as clients
from evaluators.edge import halves, main, points, verify
from search.cli import run_command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("verified") / "bundle", whole=True)


@pytest.fixture(scope="module")
def running(bundle):
    with tiny_bundle.served(bundle) as process:
        yield process


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
    fingerprint = halves.DeviceHalf(bundle / "device").sealed.fingerprint
    with clients.ServerClient(clients.Access(running.url), fingerprint) as client:
        link = client.measure_link()
    assert link.rtt_ms > 0 and link.rate_mb_per_s > 0
