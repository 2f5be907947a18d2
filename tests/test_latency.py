"""Link arithmetic, profiles, the table of timings, and reading what a machine answered."""

import json
import sys

import pytest

from evaluators.latency.machines import LocalRunner, Machine, read_medians
from evaluators.latency.profiles import LinkProfile, MachineProfile, load_link, load_machine
from evaluators.latency.table import StageTable
from spaces.errors import MeasurementError, SpecError


def test_a_link_is_a_round_trip_and_a_rate():
    assert LinkProfile(rate_mb_per_s=2.0, rtt_ms=3.0).latency_ms(1_000_000) == pytest.approx(503.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rate_mb_per_s": 0}, "link.rate_mb_per_s: 0 given; a number above 0"),
        ({"rate_mb_per_s": -1}, "above 0"),
        ({"rate_mb_per_s": "fast"}, "'fast' given"),
        ({"rate_mb_per_s": 1, "rtt_ms": -1}, "link.rtt_ms: -1 given"),
        ({"rtt_ms": 1}, "link.rate_mb_per_s: nothing given"),
        ({"rate_mb_per_s": 1, "rtt": 1}, "did you mean 'rtt_ms'"),
        ("wifi9", "no such profile"),
        (3, "link: 3 given"),
    ],
)
def test_links_that_cannot_be(value, message):
    with pytest.raises(SpecError, match=message):
        load_link(value)


def test_machines_by_name():
    assert load_machine("local", "device").reference is None
    assert load_machine({"name": "local", "threads": 1}, "device").threads == 1
    pi = load_machine("raspberry_pi_4b", "device")
    assert pi.reference is not None and pi.reference.latency_ms == 262.83 and "ncnn" in pi.reference.source


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("raspberry_pi_4", "device: 'raspberry_pi_4' given.*did you mean 'raspberry_pi_4b'"),
        ({"name": "local", "threads": 0}, "device.threads: 0 given"),
        ({"name": "local", "cores": 1}, "device.cores"),
        (7, "device: 7 given"),
    ],
)
def test_machines_that_cannot_be(value, message):
    with pytest.raises(SpecError, match=message):
        load_machine(value, "device")


def test_own_profiles_are_checked(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("format: 2\n")
    with pytest.raises(SpecError, match="format: 1 is needed"):
        load_machine(str(file), "device")
    file.write_text("format: 1\nname: x\nkind: modelled\nreference: {model: torchvision/resnet50}\n")
    with pytest.raises(SpecError, match=r"device\.reference"):
        load_machine(str(file), "device")


class CountingRunner:
    def __init__(self):
        self.asked = []

    def measure(self, folder, stages):
        self.asked.append(list(stages))
        return {stage: 2.0 for stage in stages}


def test_nothing_is_timed_twice(tmp_path):
    runner = CountingRunner()
    profile = MachineProfile(name="local", threads=2)

    def machine():
        return Machine(profile=profile, runner=runner, table=StageTable(tmp_path / "t.json"), factor=3.0)

    assert machine().stages_ms({"head": "stem", "encode": "stem/r1"}, lambda: tmp_path) == {"head": 6.0, "encode": 6.0}
    again = machine().stages_ms({"head": "stem", "encode": "stem/r2"}, lambda: tmp_path)
    assert again == {"head": 6.0, "encode": 6.0} and runner.asked == [["head", "encode"], ["encode"]]
    machine().stages_ms({"head": "stem"}, lambda: pytest.fail("made a folder for nothing"))


def test_medians_are_read_and_nonsense_is_refused():
    answer = {"stages": {"head": {"p50_ms": 1.5}}}
    assert read_medians(json.dumps(answer), ["head", "encode"]) == {"head": 1.5}
    for text in ("", "[]", "{}", '{"stages": {"head": {}}}', "Traceback"):
        with pytest.raises(MeasurementError, match="not readable"):
            read_medians(text, ["head"])


def test_a_folder_that_cannot_run_says_why(tmp_path):
    (tmp_path / "__main__.py").write_text("import sys; sys.exit('error: no such model')")
    assert sys.executable
    with pytest.raises(MeasurementError, match="no such model"):
        LocalRunner().measure(tmp_path, ["head"])
