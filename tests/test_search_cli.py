"""The command line as a user meets it, scored by the fake evaluator: output, exit codes, messages."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_search_spec import change

from evaluators.result import LatencyParts
from search.cli import app, run_command

ROOT = Path(__file__).parent.parent
POINT_KEYS = ["trial", "name", "accuracy", "latency_ms", "payload_bytes", "feasible", "config", "latency", "sources"]


@pytest.fixture
def done(write_study, study_dict, fake, capsys):
    """A finished study's file."""
    file = write_study(study_dict)
    assert run_command(["run", file]) == 0
    capsys.readouterr()
    return file


def out(capsys, *arguments, code=0):
    assert run_command([*map(str, arguments)]) == code
    return capsys.readouterr()


def test_run_ends_with_the_front_and_the_report(write_study, study_dict, fake, capsys, tmp_path):
    printed = out(capsys, "run", write_study(study_dict), "--trials", 12)
    assert "<- knee" in printed.out and "server-only, JPEG 50" in printed.out
    assert "trial 12 of 12" in printed.err and "report.html" in printed.err
    assert (tmp_path / "runs" / "demo" / "report.html").exists() and (tmp_path / "runs" / "demo" / "study.db").exists()


def test_front_json_keeps_its_contract(done, capsys):
    data = json.loads(out(capsys, "front", done, "--json").out)
    assert list(data) == ["format", "study", "objectives", "front", "baselines"]
    assert data["format"] == 1 and data["study"] == "demo" and data["objectives"] == ["accuracy", "latency_ms"]
    for point in [*data["front"], *data["baselines"]]:
        assert list(point) == POINT_KEYS
        assert list(point["latency"]) == list(LatencyParts.names())
        assert list(point["sources"]) == ["device", "server", "link"]
        assert point["latency_ms"] == pytest.approx(sum(point["latency"].values()))
    assert all(list(p["config"]) == ["partition", "ae_ratio", "bits", "tcl", "lzma"] for p in data["front"])
    assert all(p["feasible"] and isinstance(p["trial"], int) for p in data["front"])
    assert all(p["config"] is None and p["trial"] is None for p in data["baselines"])


def test_a_study_of_coders(write_study, study_dict, fake, capsys):
    study_dict["space"] = {"partition": "all", "ae_ratio": 1.0, "bits": 2, "coder": ["packed", "zstd", "context"]}
    path = write_study(study_dict)
    out(capsys, "run", path, "--trials", "9")
    front = json.loads(out(capsys, "front", path, "--json").out)["front"]
    assert {point["config"]["coder"] for point in front} == {"context"}  # the fake one's smallest payload
    assert ",lzma,coder,head_ms" in out(capsys, "front", path, "--csv").out
    out(capsys, "export", path, "-o", "bundle")
    assert "`onnxruntime` and `constriction`" in Path("bundle/README.md").read_text()


def test_front_csv_and_table(done, capsys):
    assert out(capsys, "front", done, "--csv").out.startswith("kind,trial,name,accuracy")
    assert "all-on-device" in out(capsys, "front", done).out
    assert "not both" in out(capsys, "front", done, "--csv", "--json", code=2).err


def test_check_json_keeps_its_contract(write_study, study_dict, fake, capsys, tmp_path):
    data = json.loads(out(capsys, "check", write_study(study_dict), "--json").out)
    assert list(data) == ["format", "model", "space_size", "points", "baselines"]
    assert data["space_size"] == 108
    keys = ["name", "tensors", "elements", "float_bytes", "head_macs", "tail_macs", "head_ms", "kept", "why"]
    assert all(list(point) == keys for point in data["points"])
    assert data["points"][1]["tensors"] == [{"shape": [64, 16, 16], "elements": 16384}]
    assert [point["name"] for point in data["points"] if point["kept"]] == ["stem", "middle", "deep"]
    assert not (tmp_path / "runs").exists()


def test_check_for_people(write_study, study_dict, fake, capsys):
    printed = out(capsys, "check", write_study(study_dict)).out
    assert "stem" in printed and "3 points are searched; the space is 108 configurations" in printed


def test_report_is_one_page_that_needs_nothing_else(done, capsys, tmp_path):
    assert out(capsys, "report", done, "-o", tmp_path / "page.html").out.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Plotly.newPlot" in page and "trial over a limit" in page and "server-only, JPEG 50" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page)


def test_replay_recomputes_only_the_link(done, capsys):
    before = json.loads(out(capsys, "front", done, "--json").out)
    data = json.loads(out(capsys, "replay", done, "--rates", "0.5,4", "--json").out)
    assert [result["link"]["rate_mb_per_s"] for result in data["replays"]] == [0.5, 4.0]
    jpeg = next(p for p in before["baselines"] if p["name"] == "server-only, JPEG 50")
    slow = next(p for p in data["replays"][0]["baselines"] if p["name"] == "server-only, JPEG 50")
    assert slow["latency"]["link_ms"] == pytest.approx(2 * jpeg["latency"]["link_ms"])
    assert slow["latency"]["compress_ms"] == jpeg["latency"]["compress_ms"]
    on_device = next(p for p in data["replays"][0]["baselines"] if p["name"] == "all-on-device")
    assert on_device["latency"]["link_ms"] == 0
    assert "MB/s" in out(capsys, "replay", done, "--link", "2:10").out
    assert "--rates: 'x' given" in out(capsys, "replay", done, "--rates", "x", code=2).err
    assert "above 0" in out(capsys, "replay", done, "--rates", "0", code=2).err


BOARD = """
{format: 1, name: board, kind: recorded, model: torchvision/resnet18, image_size: 32, runtime: r, threads: 1,
 precision: fp32, date: d, source: s, timings: {
   head: {stem: 7, middle: 8, deep: 9, output: 40}, encode: {stem: 1, middle: 1, deep: 1}, pack: {stem: 1, middle: 1,
   deep: 1}, compress: {stem: 1, middle: 1, deep: 1, input: 2}}}
"""


def test_replay_on_a_recorded_device(done, capsys, tmp_path):
    (tmp_path / "board.yaml").write_text(BOARD)
    (result,) = json.loads(out(capsys, "replay", done, "--device", "board.yaml", "--json").out)["replays"]
    assert result["device"]["name"] == "board" and result["device"]["source"] == "recorded"
    heads = {"stem": 7.0, "middle": 8.0, "deep": 9.0}
    assert all(point["latency"]["head_ms"] == heads[point["config"]["partition"]] for point in result["front"])
    assert {point["sources"]["device"] for point in result["front"]} == {"recorded"}
    alone = next(point for point in result["baselines"] if point["name"] == "all-on-device")
    assert alone["latency_ms"] == 40.0 and alone["sources"]["server"] == "modelled"
    assert "device board (recorded d" in out(capsys, "replay", done, "--device", "board.yaml").out
    (tmp_path / "board.yaml").write_text(BOARD.replace("resnet18", "resnet50"))
    assert "recording of torchvision/resnet50" in out(capsys, "replay", done, "--device", "board.yaml", code=2).err


def test_export_writes_a_bundle_with_its_evidence(done, capsys, tmp_path):
    printed = out(capsys, "export", done, "--pick", "knee", "-o", tmp_path / "bundle").out
    bundle = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert f"trial {bundle['trial']}" in printed
    assert bundle["study"] == "demo" and bundle["seed"] == 0 and len(bundle["study_sha256"]) == 64
    assert set(bundle["config"]) == {"partition", "ae_ratio", "bits", "tcl", "lzma"}
    for name, digest in bundle["sha256"].items():
        assert hashlib.sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest() == digest
    assert {"README.md", "device/device.json", "server/server.json"} <= set(bundle["sha256"])
    assert "`numpy`, `pillow` and `onnxruntime`;" in (tmp_path / "bundle" / "README.md").read_text()
    assert "exists already" in out(capsys, "export", done, "-o", tmp_path / "bundle", code=1).err


def test_export_by_number_and_within_limits(done, capsys, tmp_path):
    out(capsys, "export", done, "--trial", 0, "-o", tmp_path / "zero")
    assert json.loads((tmp_path / "zero" / "bundle.json").read_text())["trial"] == 0
    assert "trial 999 has no result" in out(capsys, "export", done, "--trial", 999, "-o", tmp_path / "x", code=1).err
    assert (
        "keeps these limits" in out(capsys, "export", done, "--max-latency-ms", 0.1, "-o", tmp_path / "x", code=1).err
    )
    assert "'best' given" in out(capsys, "export", done, "--pick", "best", "-o", tmp_path / "x", code=2).err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["front", "report", "replay", "dashboard", "export"])
def test_results_that_are_not_there_yet(write_study, study_dict, capsys, tmp_path, command):
    more = ["-o", tmp_path / "x"] if command == "export" else []
    printed = out(capsys, command, write_study(study_dict), *more, code=1)
    assert "no results" in printed.err and "splitsearch run" in printed.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [["chekc", "x"], ["check"], ["run", "quickstart", "--trails", "3"], ["run", "quickstart", "--trials", "0"]],
)
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    assert len(out(capsys, *arguments, code=2).err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("space.bits", 0, "space.bits: 0 given"),
        ("space.ae_ratio", 1.5, "space.ae_ratio: 1.5 given"),
        ("space.partition", "layer9", "space.partition: 'layer9' given"),
        ("space.bitz", 1, "space.bitz"),
        ("link.rate_mb_per_s", 0, "link.rate_mb_per_s: 0 given"),
        ("data", {"name": "tinyimagenet", "image_size": 64, "root": "absent"}, "data.root"),
        ("data", {"name": "tinyimagenet", "image_size": 64, "root": "junk.tar.gz"}, "corrupt archive"),
        ("model.weights", "absent.safetensors", "model.weights"),
        ("model.name", "torchvision/resnet19", "did you mean 'torchvision/resnet18'"),
        ("model.num_classes", 11, "digits has 10 classes"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_bad_studies_write_nothing(write_study, study_dict, capsys, tmp_path, key, value, message, command):
    (tmp_path / "junk.tar.gz").write_bytes(b"junk")
    change(study_dict, key, value)
    printed = out(capsys, command, write_study(study_dict), code=2)
    assert message in printed.err and "demo.yaml" in printed.err and len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(write_study, study_dict, tmp_path):
    change(study_dict, "space.bits", 0)
    command = [sys.executable, "-c", "from search.cli import main; main()", "check", write_study(study_dict)]
    plain, debug = (subprocess.run([*command, *more], capture_output=True, text=True) for more in ([], ["--debug"]))
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr and "SpecError" in debug.stderr


SLOW_FAKE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background stage_keys inherit it ignored
from evaluators.fake import FakeEvaluator
from search import cli, wiring

class Slow(FakeEvaluator):
    def evaluate(self, config, **options):
        time.sleep(0.2)
        return super().evaluate(config, **options)

wiring.build_evaluator = lambda spec, folder: Slow()
cli.main()
"""


def test_ctrl_c_on_the_real_command_line(write_study, study_dict, tmp_path):
    command = [sys.executable, "-c", SLOW_FAKE, "run", write_study(study_dict)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    lines = []
    while not any(line.startswith("trial 3 of") for line in lines):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.search(r"interrupted; [34] finished trials are kept in runs/demo\. 'splitsearch run .*demo\.yaml'", said)


def test_help_is_quick_and_every_command_is_in_the_readme():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from search.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "torch" not in re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback.__doc__
        assert f"`splitsearch {command.callback.__name__}" in readme
