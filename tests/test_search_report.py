"""The report in a browser: it shows every trial, and its sliders say what Python's own verdict says."""

import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from browser import CHROMIUM, NO_CHROMIUM
from browser import page as browser_page
from conftest import STUDY, finish

from evaluators.latency.links import LinkProfile
from evaluators.result import Evaluation, LatencyParts, Source, Sources, Timing
from search.front import Point, judged
from search.other_links import rate_table
from search.points import baseline_points, trial_points
from search.replay import replay
from search.report import doubts, report_html
from search.spec import Constraints, load_spec
from search.storage import open_study
from search.verdict import recommended
from spaces.config import SplitConfig

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
RATES = [*np.geomspace(1e-3, 1e3, 25), 1.0]
DROPS_PP = [0.0, 0.7, 1.0, 2.5, 10.0]
LINK = LinkProfile(rate_mb_per_s=1.0, rtt_ms=2.0, jitter_ms=0.5)
HOW = Sources(device=Source.MEASURED, server=Source.RECORDED, link=Source.MEASURED)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study of the fake evaluator, and its page."""
    folder = tmp_path_factory.mktemp("report")
    results = finish(STUDY, folder) / "demo"
    spec = load_spec(str(folder / "demo.yaml"))
    study = open_study(spec, results)
    return SimpleNamespace(
        study=study,
        spec=spec,
        trials=trial_points(study),
        baselines=baseline_points(study),
        file=results / "report.html",
    )


@pytest.fixture(scope="module")
def page(done):
    """The page in a browser, drawn."""
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with browser_page() as page:
        page.open(done.file.as_uri(), "document.body?.dataset.ready")
        yield page
        assert page.errors == []


def random_study(seed):
    """Trials and baselines over a link with jitter, and limits of which some points break one."""
    rng = random.Random(seed)

    def point(number):
        payload, head_ms = rng.choice([(0, 30), (30, 15), (400, 8), (900, 4), (5000, 1), (12000, 0.1)])
        parts = {"head_ms": head_ms * rng.uniform(0.8, 1.2), "tail_ms": rng.uniform(0, 1)}
        evaluation = Evaluation(
            name=f"way {number}",
            config=SplitConfig(partition="stem", ae_ratio=0.5, bits=1) if number < 20 else None,
            accuracy=rng.uniform(0.8, 0.9),
            payload_bytes=payload,
            latency=LatencyParts(**parts, link_ms=LINK.latency_ms(payload) if payload else 0.0),
            sources=HOW,
            link_busy_ms=LINK.busy_ms(payload),
            link_p90_ms=LINK.p90_ms(payload) if payload else 0.0,
            details={"device_model_mb": rng.choice([1.0, 9.0])},
        )
        return Point(trial=number if number < 20 else None, evaluation=evaluation)

    points = [point(number) for number in range(26)]
    return points[:20], points[20:], Constraints(max_device_model_mb=5.0, max_latency_ms=rng.choice([None, 25.0]))


def by_python(trials, baselines, limits, link, drop_pp):
    """The winner of the whole study replayed over a link; None if nothing keeps the limits."""
    again = replay([*trials, *baselines], limits, link=link)
    usable = [point for point in judged(again, limits) if point.feasible]
    return recommended(usable, drop_pp / 100) if usable else None


@needs_chromium
@pytest.mark.parametrize("seed", range(6))
def test_the_page_computes_what_a_replay_over_that_link_does(page, seed):
    trials, baselines, limits = random_study(seed)
    table = json.dumps(rate_table(trials, baselines, limits, LINK.describe()))
    found = page.run(
        f"""(() => {{ const table = {table};
        return {json.dumps(RATES)}.map((rate) => {json.dumps(DROPS_PP)}.map((drop) => {{
          const point = winnerAt(table, rate, drop / 100), busy = point && point.payload_bytes / (1000 * rate);
          return point && [point.title, latencyAt(point, rate), point.fixed_p90_ms + busy];
        }})); }})()"""
    )
    for rate, row in zip(RATES, found, strict=True):
        for drop, cell in zip(DROPS_PP, row, strict=True):
            best = by_python(trials, baselines, limits, LINK.at_rate(rate), drop)
            assert (cell is None) == (best is None)
            if best is not None:
                assert cell[0] == best.title
                assert cell[1:] == pytest.approx([best.latency_ms, best.evaluation.latency_p90_ms])
    assert len({cell[0] for row in found for cell in row if cell}) > 2  # rate and drop do change the winner


@needs_chromium
def test_the_page_finds_the_rates_at_which_the_winner_changes(page):
    trials, baselines, _ = random_study(0)
    limits = Constraints()
    table = json.dumps(rate_table(trials, baselines, limits, LINK.describe()))
    spans = page.run(
        f"spansOf({table}, 0.1).map(({{point, low, high}}) => [point.title, low, high === Infinity ? 0 : high])"
    )
    assert len(spans) > 2 and spans[0][1] == 0 and spans[-1][2] == 0
    for title, low, high in spans:
        for rate in (low * 1.0001 or 1.01e-3, high * 0.9999 or 999.0):
            assert by_python(trials, baselines, limits, LINK.at_rate(rate), 10.0).title == title


def test_a_doubt_is_told_once_with_all_that_it_is_about():
    slowed = replace(Timing.single(1.0, Source.MEASURED), throttling=("<hot>",))
    front, baselines, _ = random_study(0)
    points = [*front[:3], baselines[0]]
    points = [replace(each, evaluation=replace(each.evaluation, timings={"pack": slowed})) for each in points]
    said = doubts([*points, front[4]])
    assert said.count("<li>") == 1
    assert "pack: timed while slowed down (&lt;hot&gt;) (trial 0; trial 1; trial 2; way 20)</li>" in said
    assert doubts([front[4]]) == ""


@needs_chromium
def test_the_plot_shows_every_trial_once(page, done):
    counts = page.run(
        "Object.fromEntries(document.getElementById('pareto').data.map((trace) => [trace.name, trace.x.length]))"
    )
    groups = ("trial over a limit", "trial", "front")
    assert sum(counts.get(name, 0) for name in groups) == len(done.trials) > 15
    seen = [name for name in counts if name != "other baselines"]  # which wait in the legend
    drawn = page.run("document.querySelectorAll('#pareto .scatterlayer .points path').length")
    assert drawn == sum(counts[name] for name in seen)


@needs_chromium
def test_a_point_says_what_it_is_under_the_mouse(page):
    x, y, text = page.run(
        """(() => { const plot = document.getElementById("pareto"); plot.scrollIntoView();
        const front = plot.data.find((trace) => trace.name === "front"), box = plot.getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout;
        return [box.left + xaxis._offset + xaxis.l2p(front.x[0]), box.top + yaxis._offset + yaxis.l2p(front.y[0]),
                front.hovertext[0]]; })()"""
    )
    page.point_at(x - 40, y)
    page.point_at(x, y)
    page.wait("document.querySelector('#pareto .hoverlayer .hovertext')")
    shown = page.run("document.querySelector('#pareto .hoverlayer .hovertext').textContent")
    assert re.match(r"<b>trial \d+</b><br>partition: ", text)
    assert shown.startswith(re.sub("<[^>]*>", "", text)[:40])


@needs_chromium
def test_the_sliders_begin_with_the_studys_own_verdict_and_change_it(page, done):
    page.run("document.getElementById('reset').click()")
    limits, drawn = done.spec.constraints, "document.getElementById('winner').querySelector('b').textContent"
    own = recommended([p for p in [*done.trials, *judged(done.baselines, limits)] if p.feasible])
    assert page.run(drawn) == own.title
    winners = set()
    for share in (0.05, 0.5, 0.95):
        x, y = page.run(
            f"""(() => {{ const slider = document.getElementById("rate"); slider.scrollIntoView();
            const box = slider.getBoundingClientRect();
            return [box.left + {share} * box.width, box.top + box.height / 2]; }})()"""
        )
        page.click(x, y)
        rate = page.run("Number(document.getElementById('rate-number').value)")
        best = by_python(done.trials, done.baselines, limits, LinkProfile(rate_mb_per_s=rate), 1.0)
        assert page.run(drawn) == best.title
        assert f"{best.latency_ms:.2f} ms;" in page.run("document.getElementById('winner').textContent")
        marked = page.run("document.getElementById('pareto').data.at(-1).y[0]")
        assert marked == best.accuracy
        assert page.run("document.querySelector('#spans tr.now td:nth-child(2)').textContent") == best.title
        winners.add(best.title)
    assert len(winners) > 1


@needs_chromium
def test_where_nothing_keeps_the_limits_the_page_says_so(page, done):
    trials, baselines, _ = random_study(0)
    for limits in (Constraints(max_device_model_mb=0.1), Constraints(max_latency_ms=5.5)):
        table = json.dumps(rate_table(trials, baselines, limits, LINK.describe()))
        page.run(f"showAll({table}, 0.002, 0.01)")
        assert page.run("document.getElementById('winner').textContent") == "Nothing keeps the limits at this rate."
        now = page.run("document.querySelector('#spans tr.now').textContent")
        assert now.endswith("nothing keeps the limits")
    assert page.run("document.querySelectorAll('#spans tr').length") > 1  # with a faster link something does
    page.run("document.getElementById('reset').click()")


@needs_chromium
def test_the_page_asks_nobody_for_anything(page):
    assert page.run("performance.getEntriesByType('resource').map((each) => each.name)") == []
    assert page.run("document.querySelectorAll('#pareto .modebar-btn').length") > 0
    assert (
        page.run("[...document.querySelectorAll('.modebar-btn')].some((b) => /share/i.test(b.dataset.title))") is False
    )


def test_a_page_is_less_than_half_of_what_plotlys_library_takes(done):
    assert done.file.stat().st_size < 2_300_000
    assert "plotly.com" not in re.sub(r"<script type='text/plain'.*?</script>", "", done.file.read_text())


def test_no_text_of_a_study_ends_a_script(done):
    evaluation = replace(done.trials[0].evaluation, name="</script><b>&'")
    table = rate_table([Point(trial=1, evaluation=evaluation)], [], Constraints(), LINK.describe())
    assert table["points"][0]["title"] == "trial 1 (</script><b>&')"
    html = report_html(done.study, done.spec)
    for body in re.findall(r"<script type='application/json' id='[a-z-]+'>(.*?)</script>", html):
        assert "<" not in body and isinstance(json.loads(body), dict)


def test_a_point_over_another_limit_never_wins_and_one_over_the_latency_may(done):
    fast = done.trials[0].evaluation
    heavy, light = (replace(fast, details={"device_model_mb": mb}) for mb in (9.0, 1.0))
    limits = Constraints(max_device_model_mb=5.0, max_latency_ms=0.001)
    points = [Point(trial=1, evaluation=heavy, feasible=False), Point(trial=2, evaluation=light, feasible=False)]
    table = rate_table(points, [], limits, LINK.describe())
    assert [point["title"].split(" (")[0] for point in table["points"]] == ["trial 2"]
    assert table["max_latency_ms"] == 0.001 and table["rate_mb_per_s"] == 1.0
