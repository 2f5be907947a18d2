"""The command line as a user meets it, scored by the fake evaluator: output, exit codes, messages."""

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import rich.console
from conftest import STUDY, finish
from test_search_spec import change

from evaluators.fake import FakeEvaluator
from evaluators.result import HeadCost, LatencyParts
from evaluators.store import StoreKey, shared_store
from search import bundle_points, tables, wiring
from search.caching import parse_size
from search.cli import app, run_command
from search.points import trial_points
from search.spec import load_spec
from search.storage import open_study
from spaces.errors import SpecError, SplitsearchError

ROOT = Path(__file__).parent.parent
POINT_KEYS = ["trial", "name", "accuracy", "latency_ms", "payload_bytes", "feasible", "config", "latency", "sources"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of a finished study, for copies of them."""
    return finish(STUDY, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def done(finished, write_study, study_dict, fake):
    """A finished study's file."""
    file = write_study(study_dict)
    shutil.copytree(finished, "runs")
    return file


def out(capsys, *arguments, code=0):
    assert run_command([*map(str, arguments)]) == code
    return capsys.readouterr()


def test_run_ends_with_the_front_and_the_report(write_study, study_dict, fake, capsys, tmp_path):
    printed = out(capsys, "run", write_study(study_dict), "--trials", 12)
    assert "<- knee" in printed.out and "server-only, JPEG 50" in printed.out
    assert "trial 12 of 12" in printed.err and "report.html" in printed.err
    steps = [line.split()[:2] for line in printed.err.partition("\nnext:\n")[2].splitlines()]
    assert steps == [["splitsearch", command] for command in ("confirm", "replay", "export")]
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


def test_a_study_that_names_no_heads_has_both(write_study, study_dict, fake, capsys):
    study_dict["space"] = {"partition": "deep", "ae_ratio": 1.0, "bits": [2, 4], "lzma": False}
    path = write_study(study_dict)
    assert json.loads(out(capsys, "check", path, "--json").out)["space_size"] == 4
    out(capsys, "run", path, "--trials", "4")
    front = json.loads(out(capsys, "front", path, "--json").out)["front"]
    assert {point["config"].get("head", "own") for point in front} == {"own", "distilled"}
    assert "distilled head" in out(capsys, "front", path).out
    assert ",lzma,head,head_ms" in out(capsys, "front", path, "--csv").out


def test_a_study_of_coders(write_study, study_dict, fake, capsys):
    study_dict["space"] = {"partition": "all", "ae_ratio": 1.0, "bits": 2, "coder": ["packed", "zstd", "context"]}
    study_dict["space"]["head"] = "own"
    path = write_study(study_dict)
    out(capsys, "run", path, "--trials", "9")
    front = json.loads(out(capsys, "front", path, "--json").out)["front"]
    assert {point["config"]["coder"] for point in front} == {"context"}  # the fake one's smallest payload
    assert ",lzma,coder,head_ms" in out(capsys, "front", path, "--csv").out
    out(capsys, "export", path, "-o", "bundle")
    assert "`pillow` and `onnxruntime`" in Path("bundle/README.md").read_text()


def test_front_csv_and_table(done, capsys):
    assert out(capsys, "front", done, "--csv").out.startswith("kind,trial,name,accuracy")
    assert "all-on-device" in out(capsys, "front", done).out
    assert "not both" in out(capsys, "front", done, "--csv", "--json", code=2).err


def test_trials_that_could_not_run_are_counted_with_a_reason(write_study, study_dict, fake, capsys):
    study_dict["space"] |= {"ae_ratio": [0.25, 0.0001], "bits": 2, "tcl": 0, "lzma": False}
    study_dict["search"]["sampler"] = "grid"
    path = write_study(study_dict)
    told = "3 of 6 trials could not run, such as: an AE ratio of 0.0001 leaves no channel of "
    ran = out(capsys, "run", path)
    assert told in ran.out and told in out(capsys, "front", path).out
    assert "trial 6 of 6" in ran.err  # though the file asks for 20


@pytest.mark.parametrize("command", [["front"], ["report"], ["replay", "--rates", "1"], ["dashboard"]])
def test_a_study_that_is_being_prepared_says_so(write_study, study_dict, fake, capsys, monkeypatch, command):
    def baselines(*, trained):
        raise SplitsearchError("stopped while the uncut model was trained")

    monkeypatch.setattr(fake, "baselines", baselines)
    path = write_study(study_dict)
    out(capsys, "run", path, code=1)
    told = out(capsys, command[0], path, *command[1:], code=1).err
    assert "error: the study 'demo' has begun and is not ready for its first trial" in told


def test_replay_says_which_baselines_keep_the_limits(write_study, study_dict, fake, capsys):
    study_dict["constraints"] = {"max_latency_ms": 11.0}
    path = write_study(study_dict)
    out(capsys, "run", path, "--trials", 3)
    replays = json.loads(out(capsys, "replay", path, "--rates", "1,100", "--json").out)["replays"]
    keeps = [{point["name"]: point["feasible"] for point in replay["baselines"]} for replay in replays]
    assert [found["server-only, raw"] for found in keeps] == [False, True]  # 13.3 ms, 1.1 ms
    assert all(found["all-on-device"] for found in keeps)  # 10 ms


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
    said = out(capsys, "check", write_study(study_dict))
    assert "timing the heads on the device (local)" in said.err  # which is silent for long otherwise
    printed = said.out
    assert "stem" in printed and "3 points are searched; the space is 108 configurations" in printed


def test_check_prices_distilled_heads_where_the_space_has_them(write_study, study_dict, fake, capsys):
    study_dict["space"]["head"] = ["own", "distilled"]
    path = write_study(study_dict)
    data = json.loads(out(capsys, "check", path, "--json").out)
    assert list(data) == ["format", "model", "space_size", "points", "baselines", "distilled_heads"]
    points = ["stem", "middle", "deep"]
    assert data["distilled_heads"] == [
        {"head": "distilled", "points": points, "macs": 15, "params": 150_000, "ms": 1.5, "why": ""}
    ]
    table = out(capsys, "check", path).out.partition("distilled heads")[2].partition("baselines")[0]
    assert re.search(r"distilled *│ stem, middle, deep +│ +0\.0 │ +150 │ +1\.50", table)


def test_heads_that_cannot_be_made_stand_last_with_their_reason():
    costs = [
        HeadCost(head="distilled", points=("last", "most"), why="it has no map"),
        HeadCost(head="distilled", points=("stem",), macs=2_500_000, params=1_000),
    ]
    printed = io.StringIO()
    rich.console.Console(file=printed, width=120).print(tables.heads_table(costs))
    *_, stem, none = printed.getvalue().splitlines()
    assert [cell.strip() for cell in stem.split("│")] == ["distilled", "stem", "2.5", "1", "-"]
    assert "none for last, most: it has no map" in none


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
    assert "--link: '0.1' given; no such profile" in (said := out(capsys, "replay", done, "--link", "0.1", code=2).err)
    assert said.endswith("A path to a .yaml file works too, and so does RATE:RTT as in 2:10\n")
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


def test_a_bundle_s_readme_names_the_packages_of_all_its_points(done, capsys, tmp_path, monkeypatch):
    further = bundle_points.further_points

    def coded(*arguments):
        point = further(*arguments)[0]
        config = replace(point.evaluation.config, lossless="zstd")
        return [replace(point, evaluation=replace(point.evaluation, config=config))]

    monkeypatch.setattr(bundle_points, "further_points", coded)
    out(capsys, "export", done, "--points", 2, "--max-drop-pp", 8, "-o", tmp_path / "bundle")
    needed = "`numpy`, `pillow`, `onnxruntime` and `zstandard`"
    assert f"Needs Python 3.9 or newer with {needed};" in (tmp_path / "bundle" / "README.md").read_text()


def test_a_bundle_of_several_points_says_which_is_fastest_at_which_rate(done, capsys, tmp_path):
    out(capsys, "export", done, "--points", 3, "--max-drop-pp", 8, "-o", tmp_path / "bundle")
    bundle = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert [each["version"] for each in bundle["points"]] == ["1", "2", "3"][: len(bundle["points"])]
    assert len(bundle["points"]) > 1 and bundle["points"][0]["trial"] == bundle["trial"]
    assert len({each["trial"] for each in bundle["points"]}) == len(bundle["points"])
    assert all(each["drop_pp"] <= 8 for each in bundle["points"])
    assert {row["version"] for row in bundle["fastest_by_rate"]} <= {each["version"] for each in bundle["points"]}
    assert {"device/points/2/device.json", "server/points/2/server.json", "device/points.json"} <= set(bundle["sha256"])
    told = out(capsys, "export", done, "--points", 19, "-o", tmp_path / "more").err
    assert re.search(r"only \d+ points: no other with a drop of at most [-.\d]+ points", told)
    table = json.loads((tmp_path / "more" / "device" / "points.json").read_text())
    limit = table["points"][0]["drop_pp"] + 1
    assert table["max_drop_pp"] == limit and all(each["drop_pp"] <= limit for each in table["points"])


def test_export_writes_a_bundle_with_its_evidence(done, capsys, tmp_path):
    printed = out(capsys, "export", done, "--pick", "knee", "-o", tmp_path / "bundle").out
    bundle = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert f"trial {bundle['trial']}" in printed
    assert bundle["study"] == "demo" and bundle["seed"] == 0 and len(bundle["study_sha256"]) == 64
    assert set(bundle["config"]) == {"partition", "ae_ratio", "bits", "tcl", "lzma"}
    for name, digest in bundle["sha256"].items():
        assert hashlib.sha256((tmp_path / "bundle" / name).read_bytes()).hexdigest() == digest
    assert {"README.md", "device/device.json", "server/server.json"} <= set(bundle["sha256"])
    seal = json.loads((tmp_path / "bundle" / "device" / "files.json").read_text())
    assert seal["fingerprint"] == bundle["fingerprint"] and "predicted.json" in seal["sha256"]
    assert "no whole network" in out(capsys, "export", done, "--with-whole", "-o", tmp_path / "whole", code=1).err
    assert "`numpy`, `pillow` and `onnxruntime`;" in (tmp_path / "bundle" / "README.md").read_text()
    assert "exists already" in out(capsys, "export", done, "-o", tmp_path / "bundle", code=1).err


def test_export_by_number_and_within_limits(done, capsys, tmp_path):
    out(capsys, "export", done, "--trial", 0, "-o", tmp_path / "zero")
    assert json.loads((tmp_path / "zero" / "bundle.json").read_text())["trial"] == 0
    assert "trial 999 has no result" in out(capsys, "export", done, "--trial", 999, "-o", tmp_path / "x", code=1).err
    limits = "--max-latency-ms", 0.1, "--max-drop-pp", 5
    told = out(capsys, "export", done, *limits, "-o", tmp_path / "x", code=1).err
    assert "keeps these limits (a drop of at most 5 pp and at most 0.1 ms); its smallest drop is" in told
    assert "'best' given" in out(capsys, "export", done, "--pick", "best", "-o", tmp_path / "x", code=2).err
    both = "--trial", 0, "--pick", "knee"
    told = out(capsys, "export", done, *both, "-o", tmp_path / "x", code=2).err
    assert "besides --trial 0, which is a point" in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "x").exists()


def test_a_trial_that_is_exported_by_number_although_it_is_over_a_limit_is_said_to_be(
    write_study, study_dict, fake, capsys, tmp_path
):
    study_dict["constraints"] = {"max_payload_bytes": 100}
    study = write_study(study_dict)
    run_command(["run", study])
    searched = trial_points(open_study(load_spec(study), tmp_path / "runs" / "demo"))
    large = next(point for point in searched if not point.feasible)
    told = out(capsys, "export", study, "--trial", large.trial, "--max-latency-ms", 0.5, "-o", tmp_path / "over").err
    assert f"trial {large.trial} ({large.name}) does not keep every limit: max_payload_bytes: " in told
    assert re.search(r"max_latency_ms: [\d.]+ > 0\.5\n", told)
    small = next(point for point in searched if point.feasible)
    assert "every limit" not in out(capsys, "export", study, "--trial", small.trial, "-o", tmp_path / "within").err


def test_a_bundle_of_too_few_points_says_what_they_were_chosen_from(done, capsys, tmp_path):
    told = out(capsys, "export", done, "--points", 5, "--pick", "most-accurate", "-o", tmp_path / "one").err
    out(capsys, "confirm", done, "--seeds", 1)
    confirmed = out(capsys, "export", done, "--points", 5, "--pick", "fastest", "-o", tmp_path / "two").err
    assert "confirmed ones" not in told
    assert re.search(r"only 1 point: no other of the \d confirmed ones with a drop of at most", confirmed)
    told = out(capsys, "export", done, "--max-latency-ms", 0.1, "-o", tmp_path / "x", code=1).err
    assert re.search(r"of the \d confirmed points, no point .* with --trial\n", told)


def test_a_bundle_is_exported_although_the_results_cannot_take_it(done, capsys, tmp_path):
    pytest.importorskip("optuna_dashboard")
    shutil.rmtree(tmp_path / "runs" / "demo" / "artifacts")
    (tmp_path / "runs" / "demo" / "artifacts").write_text("no folder")
    found = out(capsys, "export", done, "-o", tmp_path / "bundle")
    assert "the dashboard will not offer this bundle: " in found.err and "exported to" in found.out
    assert (tmp_path / "bundle" / "bundle.json").exists()


@pytest.mark.parametrize("command", ["confirm", "export"])
def test_a_front_is_empty_for_a_reason(write_study, study_dict, fake, capsys, tmp_path, command):
    more = ["-o", tmp_path / "x"] if command == "export" else []
    study_dict["space"] |= {"partition": ["deep"], "ae_ratio": [0.03125]}
    study = write_study(study_dict)
    run_command(["run", study, "--trials", "2"])
    capsys.readouterr()
    told = out(capsys, command, study, *more, code=1).err
    assert "the front is empty: 2 of 2 trials could not run: an AE ratio of 0.03125 leaves no channel of 8; run" in told


def test_what_to_type_next_says_where_the_study_is_kept(write_study, study_dict, fake, capsys, tmp_path):
    study, kept = write_study(study_dict), ["--storage", "my study.db", "--out", "results"]
    told = out(capsys, "front", study, *kept, code=1).err
    assert told.endswith(f"'splitsearch run {study} --storage 'my study.db' --out results' makes them\n")
    out(capsys, "run", study, "--trials", 5, *kept)
    told = out(capsys, "export", study, *kept, "-o", tmp_path / "bundle").err
    assert f"'splitsearch confirm {study} --storage 'my study.db' --out results' trains the front anew" in told


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
    ("command", "key", "value", "message"),
    [
        ("check", "space.bits", 0, "space.bits: 0 given"),
        ("check", "space.ae_ratio", 1.5, "space.ae_ratio: 1.5 given"),
        ("check", "space.partition", "layer9", "space.partition: 'layer9' given"),
        ("check", "space.bitz", 1, "space.bitz"),
        ("check", "link.rate_mb_per_s", 0, "link.rate_mb_per_s: 0 given"),
        ("check", "data", {"name": "tinyimagenet", "image_size": 64, "root": "absent"}, "data.root"),
        ("check", "data", {"name": "tinyimagenet", "image_size": 64, "root": "junk.tar.gz"}, "corrupt archive"),
        ("check", "model.weights", "absent.safetensors", "model.weights"),
        ("check", "model.name", "torchvision/resnet19", "did you mean 'torchvision/resnet18'"),
        ("check", "model.num_classes", 11, "digits has 10 classes"),
        ("run", "space.bits", 0, "space.bits: 0 given"),
        ("run", "space.partition", "layer9", "space.partition: 'layer9' given"),
        ("run", "model.weights", "absent.safetensors", "model.weights"),
    ],
)
def test_bad_studies_write_nothing(write_study, study_dict, capsys, tmp_path, command, key, value, message):
    (tmp_path / "junk.tar.gz").write_bytes(b"junk")
    change(study_dict, key, value)
    printed = out(capsys, command, write_study(study_dict), code=2)
    assert message in printed.err and "demo.yaml" in printed.err and len(printed.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_without_a_command_there_is_the_help_alone(capsys):
    printed = out(capsys, code=2)
    assert "Usage:" in printed.out + printed.err and "error" not in printed.err


def test_version(capsys):
    assert out(capsys, "--version").out == f"splitsearch {metadata.version('splitsearch')}\n"


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
    assert process.returncode == 130
    found = re.search(
        r"interrupted; (\d+) finished trials are kept in runs/demo\. 'splitsearch run .*demo\.yaml'", said
    )
    assert found and 3 <= int(found[1]) < 20, said


INTERRUPTED_FAKE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from evaluators.fake import FakeEvaluator
from search import cli, wiring

class Slow(FakeEvaluator):
    def baselines(self, *, trained):
        self.wait()
        return super().baselines(trained=trained)

    def export(self, config, directory, **training):
        self.wait()
        return super().export(config, directory, **training)

    def wait(self):
        print("here", file=sys.stderr, flush=True)
        time.sleep(60)

wiring.build_evaluator = lambda spec, folder: Slow()
cli.main()
"""


@pytest.mark.parametrize("command", ["check", "export", "run"])
def test_ctrl_c_ends_every_command_with_130(done, command, tmp_path):
    arguments = {"export": ["-o", "bundle"], "run": ["--out", "elsewhere"]}.get(command, [])
    line = [sys.executable, "-c", INTERRUPTED_FAKE, command, done, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    while "here" not in (said := process.stderr.readline()):
        assert said
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("folder", ["res?x", "50%", "a#b", "[x]", "{y}", "a b&c=d"])
def test_results_go_where_out_says(write_study, study_dict, fake, capsys, tmp_path, folder):
    file = write_study(study_dict)
    printed = out(capsys, "run", file, "--trials", 3, "--out", folder)
    assert f"report: {folder}/report.html" in printed.err
    assert {"study.db", "report.html"} <= {path.name for path in (tmp_path / folder).iterdir()}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "cache"] == [folder]
    assert json.loads(out(capsys, "front", file, "--out", folder, "--json").out)["front"]
    assert out(capsys, "report", file, "--out", folder).out.strip() == f"{folder}/report.html"
    replay = next(line for line in printed.err.splitlines() if "splitsearch replay" in line)
    assert out(capsys, *shlex.split(replay.strip().partition("   ")[0])[1:], "--json").out  # as it says what is next


def test_brackets_in_a_message_stay(write_study, study_dict, fake, capsys):
    assert "[bold]" in out(capsys, "front", write_study(study_dict), "--out", "[bold]", code=1).err


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("journal", "an SQLite file (.db, .sqlite, .sqlite3) or a database's URL is needed: sqlite:///study.db"),
        ("foo.txt", "or a database's URL is needed"),
        ("nosuch://x/y", "no database can be reached with this URL"),
        ("oracle://x/y", "the driver for this database is not installed"),
        ("postgresql://host:port/x", "or a database's URL is needed"),
    ],
)
@pytest.mark.parametrize("command", ["run", "front"])
def test_storages_that_cannot_be_are_wrong_usage(write_study, study_dict, fake, capsys, storage, message, command):
    said = out(capsys, command, write_study(study_dict), "--storage", storage, code=2).err
    assert said.startswith("error: --storage: ") and message in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("storage", ["foo.db", "sqlite:///foo.db", "sub/foo.sqlite3"])
def test_an_sqlite_file_is_a_storage(write_study, study_dict, fake, capsys, tmp_path, storage):
    file = write_study(study_dict)
    assert "makes" in out(capsys, "front", file, "--storage", storage, code=1).err
    assert not list(tmp_path.rglob("foo*"))
    out(capsys, "run", file, "--trials", 3, "--storage", storage)
    assert (tmp_path / storage.removeprefix("sqlite:///")).is_file()
    assert json.loads(out(capsys, "front", file, "--storage", storage, "--json").out)["front"]


@pytest.mark.parametrize("command", ["front", "report", "run", "replay"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"garbage " * 1000), "is damaged (file is not a database)"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "is damaged (database disk image is malformed)"),
    ],
)
def test_a_damaged_database_is_named(done, capsys, command, damage, message):
    damage(Path("runs/demo/study.db"))
    said = out(capsys, command, done, code=1).err
    assert f"runs/demo/study.db {message}" in said and "run the study again" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("trial_user_attributes", "evaluation", "{", "runs/demo/study.db is damaged"),
        ("trial_user_attributes", "evaluation", '"{"', "trial 0 cannot be read"),
        ("trial_user_attributes", "evaluation", '"{}"', "trial 0 cannot be read: this evaluation has no format number"),
        ("study_user_attributes", "spec", "{", "runs/demo/study.db is damaged"),
    ],
)
def test_damaged_attributes_are_named(done, capsys, table, key, value, message):
    with contextlib.closing(sqlite3.connect("runs/demo/study.db")) as database:
        database.execute(f"UPDATE {table} SET value_json = ? WHERE key = ?", (value, key))
        database.commit()
    said = out(capsys, "front", done, code=1).err
    assert message in said and len(said.strip().splitlines()) == 1


def test_cache_shows_and_prunes(write_study, study_dict, capsys, tmp_path):
    write_study(study_dict)
    store = shared_store()
    for number, kind in enumerate(["candidate", "candidate", "uncut"]):
        key = StoreKey(kind, {"number": number})
        store.get(key, lambda folder: (folder / "data").write_bytes(bytes(1000)) and None)
        os.utime(store.path(key) / "entry.json", (number, number))
    printed = out(capsys, "cache").out
    assert re.search(r"candidate\W+2\W+2\.0 KB", printed) and re.search(r"uncut\W+1\W+1\.0 KB", printed)
    assert f"3.0 KB in {tmp_path}/cache/store (at most 20.0 GB" in printed
    printed = out(capsys, "cache", "--prune", "1.5KB").out
    assert "removed 2 entries, 2.0 KB" in printed and "1.0 KB in" in printed
    assert [entry.kind for entry in store.entries()] == ["uncut"]
    assert "removed 1 entry" in out(capsys, "cache", "--prune", "0").out and not store.entries()
    assert "--prune: 'much' given; a size is needed" in out(capsys, "cache", "--prune", "much", code=2).err


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("500MB", 5 * 10**8), ("5GB", 5 * 10**9), ("1.5 gb", 15 * 10**8), ("2k", 2000), ("7B", 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "5XB", "1e3", "5 5"])
def test_no_sizes(text):
    with pytest.raises(SpecError, match="a size is needed"):
        parse_size(text)


class Broken(FakeEvaluator):
    """Something is wrong with the model, or with the halves."""

    def rehearse(self, space=None):
        raise SpecError("model.name", "torchvision/resnet18", "it answers with a dict")

    def export(self, config, directory, **training):
        (directory / "device").mkdir()
        raise SplitsearchError("the halves agree with the trial on 12.00% of the images only")


@pytest.mark.parametrize("command", ["check", "run"])
def test_what_would_fail_later_is_tried_first(write_study, study_dict, monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: Broken())
    said = out(capsys, command, write_study(study_dict), code=2).err
    assert "demo.yaml: model.name: 'torchvision/resnet18' given; it answers with a dict" in said
    assert not (tmp_path / "runs").exists()


def test_a_begun_study_is_not_rehearsed_and_a_failed_export_leaves_nothing(done, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: Broken())
    out(capsys, "run", done)
    said = out(capsys, "export", done, "-o", tmp_path / "bundle", code=1).err
    assert "the halves agree with the trial on 12.00% of the images only" in said
    assert not [path for path in tmp_path.iterdir() if "bundle" in path.name]


class Other(FakeEvaluator):
    """Other weights under the same path."""

    def identity(self):
        return {**super().identity(), "weights": "f" * 64}


@pytest.mark.parametrize("command", ["run", "export"])
def test_other_weights_under_the_same_path_are_refused(done, monkeypatch, capsys, tmp_path, command):
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: Other())
    more = ["-o", tmp_path / "bundle"] if command == "export" else []
    said = out(capsys, command, done, *more, code=2).err
    assert "the model's weights differ (before nothing, now ffffffff)" in said and "another name" in said
    out(capsys, "front", done)  # which has no model at hand


class OtherRungs(FakeEvaluator):
    """Scores cheap rungs on other pictures."""

    def identity(self):
        return {**super().identity(), "rungs": "a tenth of the pictures"}


@pytest.mark.parametrize("pruning", ["none", "rungs"])
def test_other_pictures_for_cheap_rungs_matter_where_there_are_any(
    write_study, study_dict, monkeypatch, capsys, pruning
):
    study_dict["search"] |= {"pruning": pruning, "trials": 3}
    path, evaluators = write_study(study_dict), [FakeEvaluator(), OtherRungs()]
    monkeypatch.setattr(wiring, "build_evaluator", lambda spec, folder: evaluators.pop(0))
    out(capsys, "run", path)
    said = out(capsys, "run", path, code=0 if pruning == "none" else 2).err
    assert ("the pictures that cheap rungs are scored on differ" in said) == (pruning == "rungs")


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
