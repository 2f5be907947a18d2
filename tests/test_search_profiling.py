"""``profile``: what is measured becomes a file that later runs need no device for."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from loopback_sshd import loopback_sshd

from evaluators.latency.links import load_link
from evaluators.latency.profiles import load_machine
from evaluators.result import Source, Timing
from search.cli import run_command
from spaces.errors import MeasurementError, SpecError

NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes):
        layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


class Runner:
    """Answers at once; silent from the n-th question on."""

    def __init__(self, silent_from=10**6):
        self.asked, self.silent_from = [], silent_from

    def measure(self, folder, stages):
        if len(self.asked) >= self.silent_from:
            raise MeasurementError("ssh://pi@camera: it does not answer; is the device on?")
        self.asked.append(tuple(stages))
        return {stage: Timing(p50_ms=1.25, p90_ms=1.5, spread=0.1, repeats=40) for stage in stages}

    def machine(self):
        return {"processor": "abacus", "cores": 4, "onnxruntime": "1.2.3"}


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return ["--model", f"python:{tmp_path / 'net.py'}:Net", "--image-size", "16"]


@pytest.fixture
def ask(monkeypatch):
    def use(runner):
        monkeypatch.setattr("evaluators.latency.machine_for.runner_for", lambda how: runner)
        return runner

    return use


def test_a_profile_is_a_recording_of_every_head(net, ask, capsys):
    runner = ask(Runner())
    assert run_command(["profile", "ssh://pi@camera", *net, "--name", "camera", "--threads", "3"]) == 0
    file = capsys.readouterr().out.strip()
    assert file == "hardware_profiles/devices/camera.yaml" and not list(Path("hardware_profiles").rglob("*.json"))
    found = load_machine("camera", "device")  # found below the current folder, as any shipped one is
    assert found.source == Source.RECORDED and found.how.threads == "3" and "abacus" in found.how.source
    heads = found.how.timings["head"]
    assert set(heads) == {"1", "3", "4", "output"} and len(runner.asked) == 5
    # What is neither network nor packing is priced by what an interpreter takes there.
    assert [(each.program, each.board_ms) for each in found.how.interpreter] == [
        ("float_loops", 1.25),
        ("sum_loop", 1.25),
    ]
    assert heads["3"] == Timing(p50_ms=1.25, p90_ms=1.5, spread=0.1, repeats=40, source=Source.RECORDED)
    found.check_fits(net[1], 16, "device")
    found.check_fits("python:/elsewhere/net.py:Net", 16, "device")  # a folder may move
    was = replace(found.how, model=net[1])  # as earlier versions wrote it, with its folder
    replace(found, how=was).check_fits(net[1], 16, "device")
    with pytest.raises(SpecError, match=r"a recording of python:net.py:Net at 16 pixels"):
        found.check_fits("python:other.py:Net", 16, "device")


def test_a_profile_s_name_has_no_folder_in_it(net, ask, capsys):
    ask(Runner())
    assert run_command(["profile", "local", *net]) == 0
    assert capsys.readouterr().out.strip() == "hardware_profiles/devices/local_python_net_py_net_16.yaml"


def test_a_profile_of_another_runtime_or_role_is_another_file_and_says_so(net, ask, capsys, monkeypatch):
    ask(Runner())
    monkeypatch.setattr("evaluators.latency.machine_for._gpu", lambda: "a card")
    how = ["--role", "server", "--runtime", "torch", "--provider", "cuda"]
    for more in ([], how):
        assert run_command(["profile", "local", *net, *more]) == 0
    files = capsys.readouterr().out.split()
    names = ["local_python_net_py_net_16", "local_torch_cuda_server_python_net_py_net_16"]
    assert [Path(file).stem for file in files] == names
    usual, card = (load_machine(file, "server").how for file in files)
    assert usual.runtime == "onnxruntime" and "a card" not in usual.source
    assert card.runtime == "torch" and "abacus with a card" in card.source and "torch 2" in card.source


def test_roles(net, ask):
    ask(Runner())
    assert run_command(["profile", "local", *net, "--role", "server", "-o", "mine.yaml"]) == 0
    assert set(load_machine("mine.yaml", "server").how.timings) == {"tail"}
    assert run_command(["profile", "local", *net, "--role", "both", "-o", "mine.yaml"]) == 0
    assert set(load_machine("mine.yaml", "server").how.timings) == {"head", "tail"}


def test_a_study_says_which_bottlenecks(write_study, study_dict, ask):
    runner = ask(Runner())
    study_dict["space"] = {"partition": ["stem", "layer1.0"], "ae_ratio": [0.25, 1.0], "bits": [1, 4], "head": ["own"]}
    assert run_command(["profile", "local", "--study", write_study(study_dict), "-o", "mine.yaml"]) == 0
    timings = load_machine("mine.yaml", "device").how.timings
    assert set(timings["encode"]) == {"64x8x8/r0.25", "64x8x8/r1"}
    assert len(timings["pack"]) == 4 and "64x8x8/r0.25/b4" in timings["pack"]
    assert len(runner.asked) == len(set(timings["head"])) + 3


def test_distilled_heads_and_strides_of_a_study_are_recorded_too(write_study, study_dict, ask):
    ask(Runner())
    space = {"partition": ["layer1.0"], "ae_ratio": [0.25], "bits": [1], "head": ["own", "distilled"], "stride": [1, 2]}
    study_dict["space"] = space
    assert run_command(["profile", "local", "--study", write_study(study_dict), "-o", "mine.yaml"]) == 0
    timings = load_machine("mine.yaml", "device").how.timings
    assert "distilled/2" in timings["head"]
    assert set(timings["encode"]) == {"64x8x8/r0.25", "64x8x8/r0.25/s2", "distilled/2/16x8x8", "distilled/2/16x4x4"}


def test_what_was_measured_before_the_silence_is_kept(net, ask, capsys):
    ask(Runner(silent_from=2))
    assert run_command(["profile", "local", *net, "-o", "mine.yaml"]) == 1
    assert "is the device on" in capsys.readouterr().err and not Path("mine.yaml").exists()
    runner = ask(Runner())
    assert run_command(["profile", "local", *net, "-o", "mine.yaml"]) == 0
    assert len(runner.asked) == 3 and len(load_machine("mine.yaml", "device").how.timings["head"]) == 4


def test_what_was_measured_of_a_network_that_was_changed_since_is_not_kept(net, ask, tmp_path):
    ask(Runner(silent_from=2))
    assert run_command(["profile", "local", *net, "-o", "mine.yaml"]) == 1
    (tmp_path / "net.py").write_text(NET.replace("16", "32"))
    runner = ask(Runner())
    assert run_command(["profile", "local", *net, "-o", "mine.yaml"]) == 0
    assert len(runner.asked) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raspberry_pi_4b"], "local and ssh://user@host are machines that can be measured"),
        (["local", "-o", "board"], "a path that ends in .yaml is needed"),
        (["local", "--name", "../board"], "--name: '../board' given; letters, digits"),
        (["local", "--name", "доска", "--link"], "it names a file"),
        (["local", "--role", "camera"], "device, server, both are allowed"),
        (["ssh://pi:secret@camera"], "a password cannot be given"),
        (["local", "--study", "quickstrat"], "did you mean 'quickstart'"),
        (["local", "--model", "torchvision/resnet19"], "did you mean 'torchvision/resnet18'"),
    ],
)
def test_what_cannot_be_profiled(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_command(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_device_over_ssh_and_its_link(net, tmp_path, capsys):
    """The real thing: a network's heads measured through a real sshd, and a transfer back."""
    (tmp_path / "far").mkdir()
    with loopback_sshd(tmp_path / "far") as server:
        target = server.target()
        arguments = ["--key", target.key, "--known-hosts", target.known_hosts, "--python", sys.executable, "--link"]
        command = ["profile", target.label, *net, "--threads", "1", "--name", "there", *map(str, arguments)]
        assert run_command(command) == 0, capsys.readouterr().err
    found = load_machine("there", "device").how
    assert all(timing.p50_ms > 0 and timing.repeats >= 10 for timing in found.timings["head"].values())
    link = load_link("there_link")
    assert link.rate_mb_per_s > 0 and link.rtt_ms > 0 and link.origin == Source.RECORDED and "ssh://" in link.source
