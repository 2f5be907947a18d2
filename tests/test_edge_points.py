"""Several points in one bundle: which is the fastest over a link, and that the server answers for each."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle
from tiny_bundle import edit_json, run_device

from evaluators.edge import client as clients
from evaluators.edge import halves, main, points, seal
from search import bundle_points


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
        said = run_device(folder, capsys, "infer", picture, "--server", process.url, "--json")
        (row,) = json.loads(said.out)
        half = halves.DeviceHalf(points.folder_of(folder / "device", row["point"]))
        there = halves.ServerHalf(points.folder_of(folder / "server", row["point"]))
        expected = there.decode(half.encode(main.picture.open_picture(picture, half.picture)))
        assert np.array_equal(np.float32(row["scores"]), expected) and "is the fastest" in said.err
        told = run_device(folder, capsys, "infer", picture, "--server", process.url, "--max-drop-pp", "-1", code=1).err
        assert "no point of this bundle" in told


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
    edit_json(same / "device.json", models={"head": "../../../head.onnx"})
    with pytest.raises(seal.SealError, match="leads out of the bundle"):
        halves.DeviceHalf(same).encode(pixels)
