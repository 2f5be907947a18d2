"""Link arithmetic, profiles, the table of timings, and reading what a machine answered."""

import concurrent.futures
import json
import sys

import pytest

from evaluators.latency.links import LinkProfile, load_link
from evaluators.latency.machines import Machine
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.latency.runners import LocalRunner, read_timings
from evaluators.latency.table import StageTable
from evaluators.result import Timing
from spaces.errors import MeasurementError, SpecError


def test_a_link_is_a_round_trip_and_a_rate():
    link = LinkProfile(rate_mb_per_s=2.0, rtt_ms=3.0)
    assert link.latency_ms(1_000_000) == pytest.approx(503.0) and link.busy_ms(1_000_000) == pytest.approx(500.0)


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
        return {stage: timing(2.0) for stage in stages}


def timing(ms, **more):
    return Timing(**{"p50_ms": ms, "p90_ms": 1.5 * ms, "spread": 0.1, "repeats": 20, **more})


def test_nothing_is_timed_twice(tmp_path):
    runner = CountingRunner()
    profile = MachineProfile(name="local", threads=2)

    def machine():
        return Machine(profile=profile, runner=runner, table=StageTable(tmp_path / "t.json"), factor=3.0)

    first = machine().timings({"head": "stem", "encode": "stem/r1"}, lambda: tmp_path)
    assert first == {"head": timing(6.0), "encode": timing(6.0)}
    again = machine().timings({"head": "stem", "encode": "stem/r2"}, lambda: tmp_path)
    assert again == first and runner.asked == [["head", "encode"], ["encode"]]
    machine().timings({"head": "stem"}, lambda: pytest.fail("made a folder for nothing"))


def test_a_table_of_an_earlier_version_is_measured_anew(tmp_path):
    (tmp_path / "t.json").write_text('{"2 threads: head of stem": 2.0}')
    assert StageTable(tmp_path / "t.json").get({"head": "x"}, lambda _: {"head": timing(1.0)}) == {"head": timing(1.0)}


def test_timings_are_read_and_nonsense_is_refused():
    row = {"p50_ms": 1.5, "p90_ms": 2.0, "spread": 0.3, "interval_ms": [1.4, 1.6], "repeats": 40}
    answer = {"stages": {"head": row, "pack": row}, "throttling": ["under-voltage"]}
    (found,) = read_timings(json.dumps(answer), ["head", "encode"]).values()
    assert (found.p50_ms, found.p90_ms, found.repeats) == (1.5, 2.0, 40)
    assert "slowed down (under-voltage)" in found.doubt
    for text in ("", "[]", "{}", '{"throttling": [], "stages": {"head": {}}}', "Traceback"):
        with pytest.raises(MeasurementError, match="not readable"):
            read_timings(text, ["head"])


def test_what_is_doubtful():
    assert timing(1.0, spread=0.25).doubt == "" and timing(1.0, spread=0.4).doubt == "spread 40%"
    slowed = timing(1.0, throttling=("throttled",))
    assert Timing.from_dict(json.loads(json.dumps(slowed.to_dict()))) == slowed
    assert slowed.scaled(2.0).doubt == slowed.doubt and slowed.scaled(2.0).p90_ms == 3.0


def test_measurements_wait_for_each_other(tmp_path):
    busy = tmp_path / "busy"
    (tmp_path / "__main__.py").write_text(
        "import json, pathlib, time\n"
        f"busy = pathlib.Path({str(busy)!r})\n"
        "busy.mkdir()\n"  # fails if it is there
        "time.sleep(0.3)\n"
        "busy.rmdir()\n"
        "row = {'p50_ms': 1.0, 'p90_ms': 1.0, 'spread': 0.0, 'repeats': 1}\n"
        "print(json.dumps({'throttling': [], 'stages': {'head': row}}))\n"
    )
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(LocalRunner().measure, tmp_path, ["head"]) for _ in range(3)]
        assert [job.result()["head"].p50_ms for job in jobs] == [1.0] * 3


def test_a_folder_that_cannot_run_says_why(tmp_path):
    (tmp_path / "__main__.py").write_text("import sys; sys.exit('error: no such model')")
    assert sys.executable
    with pytest.raises(MeasurementError, match="no such model"):
        LocalRunner().measure(tmp_path, ["head"])
