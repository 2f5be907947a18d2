"""Link arithmetic, profiles, the table of timings, and reading what a machine answered."""

import concurrent.futures
import contextlib
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from evaluators import machine_lock
from evaluators.edge import circumstances, measure
from evaluators.edge.programs import PROGRAMS, stages
from evaluators.folders import write_tool
from evaluators.latency.links import LinkProfile, load_link
from evaluators.latency.machine_for import INTERPRETED, NO_NETWORK, machine_for
from evaluators.latency.machines import NotRecorded
from evaluators.latency.profiles import Here, MachineProfile, load_machine
from evaluators.latency.runners import LocalRunner, read_timings
from evaluators.latency.table import StageTable
from evaluators.result import Source, StageKey, Timing
from evaluators.store import VALUE, Store
from spaces.errors import MeasurementError, SpecError
from spaces.work import Work


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
    local = load_machine("local", "device")
    assert local.how == Here() and local.source == Source.MEASURED
    assert load_machine({"name": "local", "threads": 1}, "device").threads == 1
    torch_gpu = load_machine({"name": "local", "runtime": "torch", "provider": "cuda"}, "server")
    assert torch_gpu.how == Here(runtime="torch", provider="cuda")
    pi = load_machine("raspberry_pi_4b", "device")
    assert pi.how.fit.runtime == "ncnn" and pi.how.reference.latency_ms == 262.83 and pi.source == Source.MODELLED
    slower = load_machine({"name": "raspberry_pi_4b", "runtime": "tensorflow"}, "device")
    assert slower.how.fit.runtime.startswith("TensorFlow")
    one = load_machine({"name": "raspberry_pi_4b", "runtime": "ncnn-1-thread", "threads": 7}, "device")
    assert (pi.threads_there, one.threads_there) == (4, 1)
    recorded = load_machine("raspberry_pi_4b_resnet50", "device")
    assert recorded.threads_there == 0  # all of its own, however many the machine that searches has
    for said, threads in (("3", 3), ("one for each of 4 cores", 0)):
        assert replace(recorded, how=replace(recorded.how, threads=said)).threads_there == threads
    assert recorded.source == Source.RECORDED and recorded.how.whole_ms == 961.4
    there = load_machine({"name": "ssh://pi@camera:2222", "key": "~/id", "threads": 3}, "device")
    assert (there.how.host, there.how.user, there.how.port, there.threads) == ("camera", "pi", 2222, 3)
    assert there.how.key == Path("~/id").expanduser() and there.name == "ssh://pi@camera:2222"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("raspberry_pi_4", "device: 'raspberry_pi_4' given.*did you mean 'raspberry_pi_4b'"),
        ({"name": "local", "threads": 0}, "device.threads: 0 given"),
        ({"name": "local", "cores": 1}, "device.cores"),
        (7, "device: 7 given"),
        ({"name": "local", "runtime": "tensorrt"}, "device.runtime: 'tensorrt' given; onnxruntime and torch"),
        ({"name": "local", "provider": "npu"}, "device.provider: 'npu' given"),
        ({"name": "raspberry_pi_4b", "runtime": "tflite"}, "device.runtime: 'tflite' given.*ncnn"),
        ({"name": "raspberry_pi_4b_resnet50", "runtime": "ncnn"}, "one runtime only"),
        ({"name": "ssh://pi@camera", "password": "x"}, "device.password"),
        ("ssh://pi:secret@camera", "a password cannot be given"),
        ("ssh://", "ssh://host"),
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
    """Every stage takes as long as ``ms`` says by its name, 2 ms unless told."""

    def __init__(self, **ms):
        self.asked, self.ms = [], ms

    def measure(self, folder, stages):
        self.asked.append(sorted(stages))
        return {stage: timing(self.ms.get(stage, 2.0)) for stage in stages}

    def of(self, stages):
        return self.measure(None, stages)

    def machine(self):
        return {"processor": "abacus"}


def timing(ms, **more):
    return Timing(**{"p50_ms": ms, "p90_ms": 1.5 * ms, "spread": 0.1, "repeats": 20, **more})


def stage_keys(**keys):
    return {stage: StageKey(key=key) for stage, key in keys.items()}


def never():
    pytest.fail("made a folder for nothing")


def test_nothing_is_timed_twice(tmp_path):
    runner = CountingRunner()
    profile = MachineProfile(name="local", threads=2)

    def machine():
        return machine_for(profile, StageTable(Store(tmp_path / "store")), runner)

    first = machine().timings(stage_keys(head="stem", encode="stem/r1"), lambda: tmp_path)
    assert first == {"head": timing(2.0), "encode": timing(2.0)}
    again = machine().timings(stage_keys(head="stem", encode="stem/r2"), lambda: tmp_path)
    assert again == first and runner.asked == [["encode", "head"], ["encode"]]
    machine().timings(stage_keys(head="stem"), never)


def test_machines_do_not_share_timings(tmp_path):
    """The same table, the same stage: two numbers of threads and two libraries are four machines."""
    runner, table = CountingRunner(), StageTable(Store(tmp_path / "store"))
    for threads in (1, 2):
        for how in (Here(), Here(runtime="torch")):
            machine = machine_for(MachineProfile(name="local", how=how, threads=threads), table, runner)
            machine.timings(stage_keys(head="stem"), lambda: tmp_path)
    assert runner.asked == [["head"]] * 4


HERE = {"host": "here"}


def kept(tmp_path):
    """What the store holds: what each row depends on, with the row."""
    places = (tmp_path / "store" / "timing").glob("*")
    return [
        (json.loads((p / "entry.json").read_text())["depends_on"], json.loads((p / VALUE).read_text())) for p in places
    ]


def test_a_row_is_an_entry_that_says_what_it_depends_on(tmp_path):
    table = StageTable(Store(tmp_path / "store"), {"network": "abc"})
    machine_for(MachineProfile(name="local", threads=2), table, CountingRunner()).timings(
        stage_keys(head="stem"), lambda: tmp_path
    )
    ((depends_on, row),) = kept(tmp_path)
    assert depends_on["scope"] == {"network": "abc"} and depends_on["key"] == "stem" and depends_on["stage"] == "head"
    place = depends_on["place"]
    assert (place["threads"], place["runtime"], place["provider"]) == (2, "onnxruntime", "cpu") and place["host"]
    assert place["machine"] == circumstances.machine() and place["machine"]["onnxruntime"]
    assert row["timing"]["p50_ms"] == 2.0


def test_another_network_has_other_rows(tmp_path):
    runner, store = CountingRunner(), Store(tmp_path / "store")
    for scope in ({"network": "a"}, {"network": "b"}, {"network": "a"}):
        machine = machine_for(MachineProfile(name="local", threads=2), StageTable(store, scope), runner)
        machine.timings(stage_keys(head="stem"), lambda: tmp_path)
    assert runner.asked == [["head"]] * 2


def test_another_version_of_the_runtime_is_another_machine(tmp_path, monkeypatch):
    runner, store = CountingRunner(), Store(tmp_path / "store")
    for version in ("1.0", "2.0"):
        monkeypatch.setattr(circumstances, "machine", lambda version=version: {"onnxruntime": version})
        machine = machine_for(MachineProfile(name="local", threads=2), StageTable(store), runner)
        machine.timings(stage_keys(head="stem"), lambda: tmp_path)
    assert runner.asked == [["head"]] * 2


def test_a_truncated_row_is_named_and_measured_anew(tmp_path, caplog):
    rows = {"head": "stem", "pack": "stem"}
    StageTable(Store(tmp_path / "store")).get(HERE, rows, CountingRunner().of)
    (broken,) = [
        path for path in (tmp_path / "store" / "timing").glob("*") if '"head"' in (path / "entry.json").read_text()
    ]
    (broken / VALUE).write_text((broken / VALUE).read_text()[:20])
    again = CountingRunner(head=3.0)
    found = StageTable(Store(tmp_path / "store")).get(HERE, rows, again.of)
    assert again.asked == [["head"]] and (found["head"].p50_ms, found["pack"].p50_ms) == (3.0, 2.0)
    assert str(broken) in caplog.text and "damaged" in caplog.text


def test_a_stage_that_a_folder_lacks_is_absent_and_the_others_are_kept(tmp_path):
    rows = {stage: "x" for stage in ("head", "compress", "pack")}
    asked = []

    def measure(stages):
        asked.append(sorted(stages))
        return {stage: timing(1.0) for stage in stages if stage != "compress"}

    assert set(StageTable(Store(tmp_path / "store")).get(HERE, rows, measure)) == {"head", "pack"}
    assert set(StageTable(Store(tmp_path / "store")).get(HERE, rows, measure)) == {"head", "pack"}
    assert asked == [["compress", "head", "pack"], ["compress"]]


def test_what_fails_leaves_nothing_behind(tmp_path):
    def measure(stages):
        raise MeasurementError("the device is off")

    with pytest.raises(MeasurementError, match="is off"):
        StageTable(Store(tmp_path / "store")).get(HERE, {"head": "x", "pack": "x"}, measure)
    assert not kept(tmp_path)


def test_two_that_need_the_same_row_measure_it_once(tmp_path):
    """Sets that overlap, asked for at the same time by many: every row is measured by one and found by the others."""
    stages = ["head", "encode", "pack", "compress"]
    asked, barrier = [], threading.Barrier(6)

    def one(number):
        def measure(missing):
            asked.extend(missing)
            return {stage: timing(float(number + 1)) for stage in missing}

        table = StageTable(Store(tmp_path / "store"))
        rows = {stage: "x" for stage in stages[number % 3 :] + stages[: number % 2]}
        barrier.wait()
        return table.get(HERE, rows, measure)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(6)))
    assert sorted(asked) == sorted(stages)
    for stage in stages:
        assert len({result[stage] for result in results if stage in result}) == 1


def test_what_does_not_come_out_calm_is_timed_again_and_every_run_is_kept(tmp_path):
    answers = [
        {"head": timing(5.0, others=0.5, runs_ms=(4.0, 6.0)), "pack": timing(1.0, runs_ms=(1.0,))},
        {"head": timing(3.0, spread=0.3, runs_ms=(3.0,))},
        {"head": timing(4.0, spread=0.2, runs_ms=(4.0, 4.5))},
    ]
    asked = []

    def measure(stages):
        asked.append(sorted(stages))
        return answers[len(asked) - 1]

    found = StageTable(Store(tmp_path / "store")).get(HERE, {"head": "x", "pack": "x"}, measure)
    assert asked == [["head", "pack"], ["head"], ["head"]]
    assert (found["head"].p50_ms, found["pack"].p50_ms) == (4.0, 1.0) and found["head"].warning == "spread 20%"
    runs = {len(row["attempts"]): [each["runs_ms"] for each in row["attempts"]] for _, row in kept(tmp_path)}
    assert runs == {1: [[1.0]], 3: [[4.0, 6.0], [3.0], [4.0, 4.5]]}


def test_a_calm_timing_is_taken_at_once(tmp_path):
    answers = [{"head": timing(5.0, throttling=("throttled",), spread=0.0)}, {"head": timing(3.0)}]
    found = StageTable(Store(tmp_path / "store")).get(HERE, {"head": "x"}, lambda _: answers.pop(0))
    assert found["head"] == timing(3.0) and not answers


@pytest.mark.parametrize(("second", "third"), [(3.2, False), (3.4, True)])
def test_a_spread_that_comes_out_alike_twice_is_not_timed_a_third_time(tmp_path, second, third):
    answers = [{"head": timing(3.0, spread=0.3)}, {"head": timing(second, spread=0.2)}, {"head": timing(3.1)}]
    found = StageTable(Store(tmp_path / "store")).get(HERE, {"head": "x"}, lambda _: answers.pop(0))
    assert len(answers) == (not third) and found["head"].p50_ms == (3.1 if third else second)


def test_a_spread_of_microseconds_is_neither_marked_nor_timed_again(tmp_path):
    answers = [{"pack": timing(0.02, spread=0.5)}, {}]
    found = StageTable(Store(tmp_path / "store")).get(HERE, {"pack": "x"}, lambda _: answers.pop(0))
    assert found["pack"].warning == "" and len(answers) == 1


REFERENCE = "{model: m, image_size: 8, latency_ms: 30, runtime: r, threads: 1, precision: p, source: s}"
PROGRAM_TIMES = "[{program: float_loops, board_ms: 8, source: s}, {program: sum_loop, board_ms: 900, source: t}]"


def modelled(tmp_path, monkeypatch, more=""):
    """A board known by one network's latency."""
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    (tmp_path / "board.yaml").write_text(f"format: 1\nname: slow\nkind: modelled\nreference: {REFERENCE}\n{more}")
    return load_machine(str(tmp_path / "board.yaml"), "device")


def test_a_scaled_machine_times_its_reference_once_and_marks_what_it_says(tmp_path, monkeypatch):
    runner, table = CountingRunner(head=10.0), StageTable(Store(tmp_path / "store"))
    machine = machine_for(modelled(tmp_path, monkeypatch), table, runner)
    assert machine.timings({}, never) == {} and not runner.asked  # no reference for nothing
    found = machine.timings(
        {"encode": StageKey(key="stem", work=Work(layers=1)), **stage_keys(pack="x")}, lambda: tmp_path
    )
    assert found["encode"] == timing(6.0, p90_ms=9.0, source=Source.MODELLED) and found["encode"].warning == ""
    assert found["pack"].p50_ms == 6.0 and found["pack"].warning == NO_NETWORK
    assert runner.asked == [["encode", "pack"], ["head"]]
    assert "x 3.00 by the latency of m at 8 px" in machine.describe()["how"]


def test_what_is_no_network_is_priced_by_the_boards_interpreter(tmp_path, monkeypatch):
    """8 ms where 2 are taken here and 900 where 100 are: 4 and 9 times as long, 6 in the geometric mean."""
    runner = CountingRunner(head=10.0, float_loops=2.0, sum_loop=100.0, pack=0.5)
    profile = modelled(tmp_path, monkeypatch, f"interpreter: {PROGRAM_TIMES}\n")
    machine = machine_for(profile, StageTable(Store(tmp_path / "store")), runner)
    found = machine.timings(stage_keys(pack="x"), lambda: tmp_path)
    assert found["pack"].p50_ms == pytest.approx(3.0) and found["pack"].source == Source.MODELLED
    assert found["pack"].warning == INTERPRETED == "modelled by one factor for interpreted code, error unknown"
    assert ["head"] not in runner.asked  # no network was asked for
    assert machine.describe()["factors"]["2 Python programs"] == pytest.approx([4.0, 9.0])
    assert "what is no network by 2 Python programs, error unknown" in machine.describe()["how"]


def test_a_factor_that_was_timed_under_load_marks_all_it_prices(tmp_path, monkeypatch):
    class Busy(CountingRunner):
        def measure(self, folder, stages):
            return {stage: timing(2.0, others=0.0 if stage in ("encode", "pack") else 0.5) for stage in stages}

    machine = machine_for(modelled(tmp_path, monkeypatch), StageTable(Store(tmp_path / "store")), Busy())
    encode = StageKey(key="stem", work=Work(layers=1))
    found = machine.timings({"encode": encode, **stage_keys(pack="x")}, lambda: tmp_path)
    for stage, caveat in (("encode", ""), ("pack", f"{NO_NETWORK}; ")):
        why = "the timing of its factor: timed while other work took 50% of the processor"
        assert found[stage].warning == caveat + why


def test_factors_are_measured_once_for_all_networks(tmp_path, monkeypatch):
    runner = CountingRunner()
    profile = modelled(tmp_path, monkeypatch, f"interpreter: {PROGRAM_TIMES}\n")
    for network in ("a", "b"):
        table = StageTable(Store(tmp_path / "store"), {"network": network})
        machine_for(profile, table, runner).timings(stage_keys(pack="x"), lambda: tmp_path)
    assert runner.asked.count(["float_loops", "sum_loop"]) == 1 and runner.asked.count(["pack"]) == 2


@pytest.mark.parametrize(
    ("was", "given", "message"),
    [
        ("latency_ms: 30", "latency_ms: fast", r"reference\.latency_ms: 'fast' given; a number above 0"),
        ("latency_ms: 30", "latency_ms: 0", r"reference\.latency_ms: 0 given; a number above 0"),
        ("image_size: 8", "image_size: 8 px", r"reference\.image_size: '8 px' given; a whole number"),
        ("model: m", "model: 50", r"reference\.model: 50 given; a text"),
    ],
)
def test_a_reference_that_cannot_be(tmp_path, was, given, message):
    text = f"format: 1\nname: slow\nkind: modelled\nreference: {REFERENCE.replace(was, given)}\n"
    (tmp_path / "board.yaml").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_machine(str(tmp_path / "board.yaml"), "device")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{program: float_loops}", "device.interpreter: .* a list of"),
        ("[{program: float_loops}]", "exactly these keys are needed: board_ms, program, source"),
        ("[{program: float_lops, board_ms: 1, source: s}]", "did you mean 'float_loops'"),
        ("[{program: sum_loop, board_ms: 0, source: s}]", "device.interpreter.board_ms: 0 given; a number above 0"),
        ("[{program: sum_loop, board_ms: 1, source: ' '}]", "where does the figure come from"),
    ],
)
def test_figures_of_an_interpreter_that_cannot_be(tmp_path, monkeypatch, rows, message):
    with pytest.raises(SpecError, match=message):
        modelled(tmp_path, monkeypatch, f"interpreter: {rows}\n")


def test_the_programs_do_what_was_published():
    variables = {}
    exec(PROGRAMS["sum_loop"], variables)
    assert variables["s"] == 999_999 * 1_000_000 // 2
    exec(PROGRAMS["float_loops"], variables)
    assert variables["x"] == 9_999
    for run in stages().values():
        run()


def test_a_folder_times_the_programs(tmp_path):
    found = LocalRunner().measure(write_tool(tmp_path / "folder", "programs"), ["float_loops"])
    assert set(found) == {"float_loops"} and found["float_loops"].p50_ms > 0
    assert len(found["float_loops"].runs_ms) == found["float_loops"].repeats >= 10


RECORDED = """
format: 1
name: my-board
kind: recorded
model: torchvision/resnet18
image_size: 32
runtime: onnxruntime
threads: 4
precision: fp32
date: 2026-01-02
source: a kitchen table
timings:
  head: {stem: 3.5, output: {p50_ms: 20.0, p90_ms: 22.0, spread: 0.05, repeats: 40}}
  encode: {stem/r0.5: 0.25}
"""


def recorded(tmp_path, text=RECORDED):
    (tmp_path / "mine.yaml").write_text(text)
    return load_machine(str(tmp_path / "mine.yaml"), "device")


def test_a_recording_answers_and_says_what_it_lacks(tmp_path):
    profile = recorded(tmp_path)
    machine = machine_for(profile, StageTable(Store(tmp_path / "store")), CountingRunner())
    found = machine.timings(stage_keys(head="output", encode="stem/r0.5"), never)
    assert {each.source for each in found.values()} == {Source.RECORDED}
    assert (found["head"].p90_ms, found["head"].repeats, found["encode"].p50_ms) == (22.0, 40, 0.25)
    with pytest.raises(NotRecorded, match=r"has no head of 'layer1.0'; it knows these: stem, output"):
        machine.timings(stage_keys(head="layer1.0"), never)
    assert "recorded 2026-01-02" in machine.describe()["how"]


def test_what_a_recording_lacks_is_modelled_by_its_whole_network(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    machine = machine_for(recorded(tmp_path), StageTable(Store(tmp_path / "store")), CountingRunner())
    found = machine.timings(stage_keys(head="stem", pack="stem/r0.5/b1"), lambda: tmp_path)
    assert (found["pack"].p50_ms, found["pack"].warning) == (20.0, NO_NETWORK)  # whole: 20 there, 2 here
    assert found["head"].source == Source.RECORDED


def test_a_recording_may_name_another_network_for_what_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluators.latency.machine_for._folder", lambda folder, *rest: folder)
    reference = "{model: m, image_size: 8, latency_ms: 6, runtime: r, threads: 1, precision: p, source: s}"
    profile = recorded(tmp_path, f"{RECORDED}reference: {reference}\n")
    machine = machine_for(profile, StageTable(Store(tmp_path / "store")), CountingRunner())
    encoder = StageKey(key="stem/r0.25", work=Work(layers=1))
    found = machine.timings({"encode": encoder, **stage_keys(pack="x")}, lambda: tmp_path)
    assert found["encode"].p50_ms == pytest.approx(20.0)  # by the recorded network: 20 there, 2 here
    assert found["pack"].p50_ms == pytest.approx(6.0)  # by the reference: 6 there, 2 here


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("date: 2026-01-02\n", "", "device.date: nothing given"),
        ("kind: recorded", "kind: guessed", "device.kind: 'guessed' given; recorded and modelled"),
        ("stem: 3.5", "stem: fast", r"device.timings.head.stem: 'fast' given; milliseconds"),
        ("stem: 3.5", "stem: -1", r"device.timings.head.stem: -1 given"),
        ("stem: 3.5", "stem: {p50: 1}", r"device.timings.head.stem"),
        ("threads: 4", "threads: 4\ncores: 4", "device.cores"),
        ("name: my-board\n", "", "device.name: nothing given"),
    ],
)
def test_recordings_that_cannot_be(tmp_path, old, new, message):
    assert old in RECORDED
    with pytest.raises(SpecError, match=message):
        recorded(tmp_path, RECORDED.replace(old, new))


def test_a_recording_of_another_network_or_size_is_refused(tmp_path):
    profile = recorded(tmp_path)
    profile.check_fits("torchvision/resnet18", 32, "device")
    for model, size in (("torchvision/resnet50", 32), ("torchvision/resnet18", 64)):
        with pytest.raises(
            SpecError, match=r"my-board.*recording of torchvision/resnet18 at 32 pixels.*splitsearch prof"
        ):
            profile.check_fits(model, size, "device")


def test_a_fitted_machine_computes_networks_and_scales_the_rest(tmp_path):
    """The board's programs take 7.9216 and 341.868 ms; here 2 ms each, and so does packing."""
    machine = machine_for(
        load_machine("raspberry_pi_4b", "device"), StageTable(Store(tmp_path / "store")), CountingRunner()
    )
    work = Work(pointwise_macs=1_000_000, layers=1, layer_elements=1000)
    found = machine.timings({"head": StageKey(key="stem", work=work), **stage_keys(pack="x")}, lambda: tmp_path)
    assert found["head"].p50_ms == machine.fitting.fit.predict_ms(work) > 0 and found["head"].warning == ""
    assert found["pack"].p50_ms == pytest.approx((7.9216 * 341.868) ** 0.5) and found["pack"].warning == INTERPRETED
    assert {each.source for each in found.values()} == {Source.MODELLED}
    how = machine.describe()["how"]
    assert "median error" in how and "left out in turn" in how and "2 Python programs, error unknown" in how


def test_shipped_figures_of_interpreters_name_their_sources():
    for name in ("raspberry_pi_4b", "raspberry_pi_4b_resnet50"):
        interpreter = load_machine(name, "device").how.interpreter
        assert {each.program for each in interpreter} == set(PROGRAMS)
        assert all("Raspberry Pi 4" in each.source and "commit" in each.source for each in interpreter)


def test_timings_are_read_and_nonsense_is_refused():
    row = {"p50_ms": 1.5, "p90_ms": 2.0, "spread": 0.3, "interval_ms": [1.4, 1.6], "repeats": 40}
    row |= {"runs_ms": [1.4, 1.6]}
    answer = {"stages": {"head": row, "pack": row}, "throttling": ["under-voltage"], "others": 0.25}
    (found,) = read_timings(json.dumps(answer), ["head", "encode"]).values()
    assert (found.p50_ms, found.p90_ms, found.repeats, found.runs_ms) == (1.5, 2.0, 40, (1.4, 1.6))
    assert found.others == 0.25 and read_timings(json.dumps(answer | {"others": None}), ["head"])["head"].others == 0.0
    assert "slowed down (under-voltage)" in found.warning
    for text in ("", "[]", "{}", '{"throttling": [], "stages": {"head": {}}}', "Traceback"):
        with pytest.raises(MeasurementError, match="not readable"):
            read_timings(text, ["head"])


def test_what_is_doubtful():
    assert timing(1.0, spread=0.1, others=0.1).warning == "" and timing(1.0, spread=0.25).warning == "spread 25%"
    assert timing(1.0, spread=0.4).warning == "spread 40%, not to be relied on"
    assert timing(1.0, others=0.5).warning == "timed while other work took 50% of the processor"
    both = timing(1.0, spread=0.2, others=0.5).scaled(2.0, "a guess")
    assert both.warning == "timed while other work took 50% of the processor; spread 20%; a guess"
    slowed = timing(1.0, throttling=("throttled",))
    assert Timing.from_dict(json.loads(json.dumps(slowed.to_dict()))) == slowed
    assert slowed.scaled(2.0).warning == slowed.warning and slowed.scaled(2.0).p90_ms == 3.0


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
        stage_keys = [pool.submit(LocalRunner().measure, tmp_path, ["head"]) for _ in range(3)]
        assert [stage_key.result()["head"].p50_ms for stage_key in stage_keys] == [1.0] * 3


def test_a_folder_that_cannot_run_says_why(tmp_path):
    (tmp_path / "__main__.py").write_text("import sys; sys.exit('error: no such model')")
    assert sys.executable
    with pytest.raises(MeasurementError, match="no such model"):
        LocalRunner().measure(tmp_path, ["head"])


def test_nothing_else_is_measured_or_trained_while_a_folder_is(tmp_path, monkeypatch):
    """The folder runs inside the machine's own lock, which a second user of the machine can take as well."""
    running = []

    @contextlib.contextmanager
    def measuring():
        running.append("alone")
        yield
        running.append("over")

    monkeypatch.setattr(machine_lock, "measuring", measuring)
    (tmp_path / "__main__.py").write_text("print('done')")
    assert LocalRunner().run(tmp_path, []) == "done\n" and running == ["alone", "over"]


def test_statistics_keep_the_runs_and_survive_a_coarse_clock():
    found = measure.statistics([2.0, 1.0, 4.0])
    assert (found["p50_ms"], found["runs_ms"], found["repeats"]) == (2.0, [2.0, 1.0, 4.0], 3)
    assert measure.statistics([0.0] * 10)["spread"] == 0.0


# -- what else the machine did -----------------------------------------------------------------------------------------

STAT = """cpu  1000 0 500 9000 10 0 20 30 0 0
cpu0 {user} 5 100 9000 50 10 20 30 0 0
cpu1 700 0 0 9000 0 0 0 0 0 0
cpu2 900 0 0 0 0 0 0 0 0 0
intr 12345
"""


def times(monkeypatch, text, own_s):
    monkeypatch.setattr(circumstances, "_read", lambda path: text if path == "/proc/stat" else None)
    monkeypatch.setattr(circumstances, "_cores", lambda: [0, 1])
    monkeypatch.setattr(circumstances.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(circumstances.os, "times", lambda: (own_s, 0.25, 0.0, 0.0, 99.0))
    return circumstances.processor_times()


def test_other_work_is_what_the_cores_did_and_we_did_not(monkeypatch):
    """Other cores do not count, nor does waiting for disks; what a virtual machine's host takes does."""
    before = times(monkeypatch, STAT.format(user=100), own_s=1.0)
    assert before == {"busy_s": pytest.approx(2.65 + 7.0), "own_s": 1.25, "cores": 2}
    after = times(monkeypatch, STAT.format(user=400), own_s=3.0)  # 3 s of work, 2 of them ours, in 2 s of two cores
    assert circumstances.others_share(before, after, 2.0) == pytest.approx(0.25)
    assert circumstances.others_share(after, after, 2.0) == 0.0
    assert circumstances.others_share(before, {**after, "own_s": 99.0}, 2.0) == 0.0  # ticks are coarse


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3\n", "cpu0 1 2\n", "cpu0 a b c d e f g h\n"])
def test_a_machine_that_does_not_tell_is_not_marked(monkeypatch, text):
    assert times(monkeypatch, text, own_s=1.0) is None
    assert circumstances.others_share(None, None, 1.0) is None
