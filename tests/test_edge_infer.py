"""infer: pictures and cameras answered through the server, or by the device alone."""

import json
import os
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tiny_bundle
from tiny_bundle import NOWHERE, run_device

from evaluators.edge import client as clients
from evaluators.edge import halves, infer, main
from evaluators.edge.camera import Camera
from evaluators.edge.client import ServerError
from search.cli import run_command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("inferred") / "bundle", whole=True)


@pytest.fixture(scope="module")
def running(bundle):
    with tiny_bundle.served(bundle) as process:
        yield process


def test_pictures_and_folders_are_answered_through_the_server(running, bundle, tmp_path, capsys):
    for number in range(3):
        tiny_bundle.picture(tmp_path / "pictures", number)
    for name in ("notes.txt", "._0.png"):  # the second is what macOS leaves beside a picture
        (tmp_path / "pictures" / name).write_text("no picture")
    single = tiny_bundle.picture(tmp_path, 7)
    said = run_device(bundle, capsys, "infer", tmp_path / "pictures", single, "--server", running.url, "--json")
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
    text = run_device(bundle, capsys, "infer", single, "--server", running.url).out
    assert rows[3]["name"] in text and "by the server" in text
    ours = run_command(["infer", str(bundle), str(single), "--server", running.url, "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert ours == 0 and row["scores"] == rows[3]["scores"]


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(running, bundle, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    good = tiny_bundle.picture(tmp_path)
    arguments = ["infer", tmp_path / "bad.png", good, "--server", running.url, "--json"]
    said = run_device(bundle, capsys, *arguments, code=1)
    bad, row = json.loads(said.out)
    assert "not a picture" in bad["error"] and row["by"] == "server" and "1 without an answer" in said.err


def test_without_a_server_the_device_answers_alone_and_says_so(bundle, tmp_path, capsys):
    pictures = [tiny_bundle.picture(tmp_path, number) for number in range(2)]
    said = run_device(bundle, capsys, "infer", *pictures, *NOWHERE, "--json")
    assert said.err.count("answering on the device alone, with the whole network") == 1
    rows, half = json.loads(said.out), halves.DeviceHalf(bundle / "device")
    for path, row in zip(pictures, rows, strict=True):
        expected = half.answer(main.picture.open_picture(path, half.picture))
        assert row["by"] == "device" and np.array_equal(np.float32(row["scores"]), expected)
    alone = json.loads(run_device(bundle, capsys, "infer", *pictures, "--json").out)
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
    (row,) = json.loads(run_device(folder, capsys, "infer", picture, *NOWHERE, "--json", code=1).out)
    assert "connection refused; is the server running" in row["error"] and "tried 1 times" in row["error"]
    assert "1 picture: 0 by" in run_device(folder, capsys, "infer", picture, *NOWHERE, code=1).err
    assert "export again with --with-whole" in run_device(folder, capsys, "infer", picture, code=1).err
    assert "no pictures in this folder" in run_device(folder, capsys, "infer", folder, *NOWHERE, code=1).err
    assert "no boxes" in run_device(folder, capsys, "infer", picture, *NOWHERE, "--draw", "d", code=1).err


def test_another_bundles_server_ends_it_at_once(running, tmp_path, capsys):
    other = tiny_bundle.write(tmp_path / "other", seed=1, whole=True)
    said = run_device(other, capsys, "infer", tiny_bundle.picture(tmp_path), "--server", running.url, code=1)
    assert "same bundle" in said.err and not said.out


def test_a_detectors_boxes_are_drawn(tmp_path, capsys):
    from PIL import Image

    folder, picture = tiny_bundle.write(tmp_path / "bundle", detector=True, whole=True), tiny_bundle.picture(tmp_path)
    drawn = tmp_path / "drawn"
    with tiny_bundle.served(folder) as process:
        found = []
        for more in (["--server", process.url], []):
            arguments = ["infer", picture, "--json", "--draw", drawn, "--least-score", "0.01", *more]
            found += json.loads(run_device(folder, capsys, *arguments).out)
    assert [row["by"] for row in found] == ["server", "device"] and found[0]["boxes"] and found[1]["boxes"]
    with Image.open(drawn / "0.png") as image:
        assert image.size == (8, 8)


def test_no_picture_is_drawn_over(tmp_path, capsys):
    folder, picture = tiny_bundle.write(tmp_path / "bundle", detector=True, whole=True), tiny_bundle.picture(tmp_path)
    before, payload = picture.read_bytes(), tmp_path / "0.payload"
    payload.write_bytes((folder / "server" / "sample.payload").read_bytes())
    told = run_device(folder, capsys, "infer", picture, "--draw", tmp_path, code=1).err
    assert f"{picture} would be overwritten" in told and picture.read_bytes() == before
    decode = ["decode", payload, "--draw", tmp_path, "--on", picture]
    assert main.server(folder / "server", [str(each) for each in decode]) == 1
    assert "would be overwritten" in capsys.readouterr().err and picture.read_bytes() == before


def test_a_camera_is_whatever_program_writes_a_picture(running, bundle, tmp_path, capsys):
    picture = tiny_bundle.picture(tmp_path)
    command = f"cat {picture}"
    said = run_device(
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
    said = run_device(bundle, capsys, "infer", "--camera", command, "--frames", 1, "--json", code=1)
    (row,) = json.loads(said.out)
    assert row["picture"] == "frame 1" and told in row["error"]


@pytest.mark.parametrize("command", ["no-such-camera", "", "cat 'x"])
def test_a_command_that_can_give_no_picture_is_not_tried_for_ever(bundle, capsys, command):
    said = run_device(bundle, capsys, "infer", "--camera", command, code=1)
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
    said = run_device(bundle, capsys, "infer", "--camera", "true", code=1)
    assert "6 pictures: 0 by the server, 5 by the device, 1 without an answer; 2.0 ms in the median" in said.err
    assert max(most) <= 2 and len(rests) == 1


def test_neither_pictures_nor_a_camera_is_said(bundle, capsys):
    assert "name some, or --camera" in run_device(bundle, capsys, "infer", *NOWHERE, code=1).err


def test_ctrl_c_ends_a_camera_without_frames(bundle, tmp_path, capsys, monkeypatch):
    shots, picture = [], tiny_bundle.picture(tmp_path)

    def shot(camera):
        shots.append(1)
        if len(shots) == 3:
            raise KeyboardInterrupt
        return main.picture.open_upright(picture)

    monkeypatch.setattr(Camera, "shot", shot)
    said = run_device(bundle, capsys, "infer", "--camera", "true", "--json")
    assert len(json.loads(said.out)) == 2 and "2 pictures" in said.err


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
    assert run_device(bundle, capsys, "infer", tmp_path, code=130).err == "error: interrupted\n"


def test_frames_of_no_camera_are_refused(bundle, tmp_path, capsys):
    picture = tiny_bundle.picture(tmp_path)
    said = run_device(bundle, capsys, "infer", picture, "--frames", 3, code=1).err
    assert "--frames 3 given, but nothing takes them; add --camera COMMAND" in said
    assert run_command(["infer", str(bundle), str(picture), "--frames", "3"]) == 1
    assert said in capsys.readouterr().err
