"""``confirm``: points that a search found, trained anew with more budget and several seeds, and tested once."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from scipy.special import stdtrit

from evaluators.base import Evaluator
from evaluators.result import FINE_TUNED, Evaluation
from evaluators.tasks.intervals import score_interval
from search.fitting_table import FittingTable
from search.front import Point, pareto_front
from search.patience import Patience
from search.storage import OwnStudy
from search.tables import LEAST_WORDS
from spaces.budget import Budget
from spaces.config import SplitConfig
from spaces.errors import InfeasibleSplit

CONFIRMED = "confirmed:"  # begins attributes of a study, one for each trial
BASELINES_TESTED = "baselines-on-test"  # an attribute of a study
_MOST_NEAR_MISSES = 3
_SURE = 0.95
_ENDLESS = 1e9  # degrees of freedom; with as many, Student's t is normal


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A point after its confirmation. Everything by seed is in the order of ``seeds``.

    Attributes:
        trial: where the search found it.
        config: what was trained.
        budget: how much.
        seeds: of the trainings.
        searched: the search's accuracy, with which it was chosen.
        validation, validation_drop_pp: on search-validation images, by seed; points are chosen by these.
        test, test_drop_pp: on test images, by seed; nothing is chosen by these.
        test_images: number of them.
        payload_bytes, latency_ms: means over seeds.
        reason: why it could not be trained; then nothing is known by seed.
    """

    trial: int
    config: SplitConfig
    budget: Budget
    seeds: tuple[int, ...] = ()
    searched: float = 0.0
    validation: tuple[float, ...] = ()
    validation_drop_pp: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    test_drop_pp: tuple[float, ...] = ()
    test_images: int = 0
    payload_bytes: float = 0.0
    latency_ms: float = 0.0
    reason: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean test accuracy, 95 %: for other seeds and for other images of the same kind."""
        return mean_interval(self.test, self.test_images)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``interval`` is given beside what it follows from."""
        own = {**asdict(self), "config": self.config.to_dict(), "budget": self.budget.to_dict()}
        return own | ({"test_interval": list(self.interval)} if self.test else {})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Confirmed:
        """The inverse of :meth:`to_dict`."""
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
            if name != "test_interval"
        }
        own |= {"config": SplitConfig.from_dict(data["config"]), "budget": Budget(**data["budget"])}
        return cls(**own)


@dataclass(frozen=True, kw_only=True)
class ConfirmedBaseline:
    """A baseline on test images, with the network that the search compared with. It was chosen among dozens of others
    by its accuracy on search-validation images, as a point of the front is.

    Attributes:
        name: of the baseline.
        searched: its accuracy on search-validation images.
        test, test_drop_pp, test_images: on test images, and their number.
        payload_bytes, latency_ms: on search-validation images.
    """

    name: str
    searched: float
    test: float
    test_drop_pp: float
    test_images: int
    payload_bytes: float
    latency_ms: float

    @property
    def interval(self) -> tuple[float, float]:
        """Of the test accuracy, 95 %: for other images of the same kind. The network is one training's."""
        return mean_interval([self.test], self.test_images)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``interval`` is given beside what it follows from."""
        return asdict(self) | {"test_interval": list(self.interval)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConfirmedBaseline:
        """The inverse of :meth:`to_dict`."""
        return cls(**{name: value for name, value in data.items() if name != "test_interval"})


def mean_interval(shares: Sequence[float], images: int) -> tuple[float, float]:
    """A 95 % interval for the mean of shares of the same images, one for each seed.

    Seeds and images scatter independently: the variance of the mean is the seeds' own over their number, and that of a
    share of so many images. Student's t with the degrees of freedom of the sum (Satterthwaite, Biometrics Bulletin 2,
    1946), those of images endless. With one seed only the images count. Where neither scatters, since no image or every
    one was right, it is as wide as for a share of images that was never met among so many.
    """
    mean = statistics.fmean(shares)
    of_images = mean * (1.0 - mean) / images if images else 0.0
    of_seeds = statistics.variance(shares) / len(shares) if len(shares) > 1 else 0.0
    if images and of_images + of_seeds == 0:
        unseen = score_interval(0, 0, images)[1]
        return max(0.0, mean - unseen), min(1.0, mean + unseen)
    freedom = (len(shares) - 1) * ((of_seeds + of_images) / of_seeds) ** 2 if of_seeds > 0 else math.inf
    half = float(stdtrit(min(freedom, _ENDLESS), 0.5 + _SURE / 2)) * math.sqrt(of_images + of_seeds)
    return max(0.0, mean - half), min(1.0, mean + half)


def to_confirm(points: Sequence[Point]) -> list[Point]:
    """The front, and the points nearest to it that are so within the error of their accuracy; fastest first."""
    front = pareto_front(points)
    in_front = {point.trial for point in front}

    def missing(point: Point) -> float:
        """How much more accurate the front is, in standard deviations of the difference."""
        reached = max((other.accuracy for other in front if other.latency_ms <= point.latency_ms), default=0.0)
        error = math.hypot(point.evaluation.accuracy_error, point.evaluation.accuracy_error)
        return (reached - point.accuracy) / error if error > 0 else math.inf

    others = [point for point in points if point.feasible and point.trial not in in_front]
    near = sorted((point for point in others if missing(point) <= 1.0), key=missing)[:_MOST_NEAR_MISSES]
    return sorted([*front, *near], key=lambda point: point.latency_ms)


def confirm_points(
    study: OwnStudy,
    points: Sequence[Point],
    evaluator: Evaluator,
    budget: Budget,
    seeds: Sequence[int],
    say: Callable[[str], None],
    begin: Callable[[], None] = lambda: None,
) -> list[Confirmed]:
    """Train each point with each seed and test it. What was confirmed before with the same budget is not repeated.

    Args:
        study: keeps each point as it is done, so that a stop loses one training at most. A storage that does not
            answer is waited for.
        points: of trials.
        evaluator: prepared.
        budget: of each training.
        seeds: of the trainings.
        say: told what is going on.
        begin: called before the first training, if there is any.
    """
    found, patient, begun = [], Patience(study.backend), False
    known = {each.trial: each for each in confirmed_points(study)}
    for number, point in enumerate(points, 1):
        config, trial = point.evaluation.config, point.trial
        assert config is not None and trial is not None
        done = known.get(trial)
        if done is None or done.budget != budget or done.reason:
            done = Confirmed(trial=trial, config=config, budget=budget, searched=point.accuracy)
        for seed in seeds:
            if seed in done.seeds:
                continue
            if not begun:
                begin()
                begun = True
            say(f"{point.title}, seed {seed} ({number} of {len(points)})")
            done = _with_seed(done, evaluator, seed)
            patient(functools.partial(study.set_user_attr, f"{CONFIRMED}{trial}", done.to_dict()))
            if done.reason:
                break
        found.append(done)
    return found


def confirm_baselines(
    study: OwnStudy,
    baselines: Sequence[Point],
    evaluator: Evaluator,
    say: Callable[[str], None],
    begin: Callable[[], None] = lambda: None,
) -> list[ConfirmedBaseline]:
    """Score baselines on test images; nothing is trained that the study did not train. What was tested before is not
    repeated.

    Args:
        study: keeps what is found.
        baselines: of the study.
        evaluator: prepared.
        say: told what is going on.
        begin: called before anything is scored, if there is anything to score.
    """
    known = {each.name: each for each in confirmed_baselines(study)}
    if missing := [point for point in baselines if point.name not in known]:
        begin()
        say("the baselines on test images")
        names = [point.name for point in missing]
        found = {each.name: each for each in evaluator.baselines(trained=True, split="test", only=names)}
        known |= {
            point.name: ConfirmedBaseline(
                name=point.name,
                searched=point.accuracy,
                test=found[point.name].accuracy,
                test_drop_pp=found[point.name].accuracy_drop_pp,
                test_images=_images(found[point.name]),
                payload_bytes=point.evaluation.payload_bytes,
                latency_ms=point.latency_ms,
            )
            for point in missing
            if point.name in found
        }
        kept = [each.to_dict() for each in known.values()]
        Patience(study.backend)(functools.partial(study.set_user_attr, BASELINES_TESTED, kept))
    return [known[point.name] for point in baselines if point.name in known]


def confirmed_baselines(study: optuna.Study) -> list[ConfirmedBaseline]:
    """The baselines that were tested so far, fastest first."""
    found = [ConfirmedBaseline.from_dict(each) for each in study.user_attrs.get(BASELINES_TESTED, ())]
    return sorted(found, key=lambda each: each.latency_ms)


def confirmed_points(study: optuna.Study) -> list[Confirmed]:
    """What was confirmed so far, by trial."""
    attributes = study.user_attrs.items()
    found = [Confirmed.from_dict(value) for name, value in attributes if name.startswith(CONFIRMED)]
    return sorted(found, key=lambda each: each.trial)


def as_searched(confirmed: Sequence[Confirmed], points: Sequence[Point]) -> list[Point]:
    """Confirmed points as points of the search, their figures on search-validation images the means over seeds."""
    by_trial = {point.trial: point for point in points}
    found = []
    for each in confirmed:
        point = by_trial.get(each.trial)
        if point is None or not each.validation:
            continue
        evaluation = replace(
            _with_payload(point.evaluation, each.payload_bytes),
            accuracy=statistics.fmean(each.validation),
            accuracy_drop_pp=statistics.fmean(each.validation_drop_pp),
        )
        found.append(replace(point, evaluation=evaluation))
    return found


def _with_payload(found: Evaluation, payload_bytes: float) -> Evaluation:
    """The same over the same link with a payload of another mean size, as a lossless coder makes of other weights."""
    more_ms = found.link_busy_ms * (payload_bytes / found.payload_bytes - 1.0) if found.payload_bytes else 0.0
    return replace(
        found,
        payload_bytes=payload_bytes,
        latency=replace(found.latency, link_ms=found.latency.link_ms + more_ms),
        link_busy_ms=found.link_busy_ms + more_ms,
        link_p90_ms=found.link_p90_ms + more_ms if found.link_p90_ms else 0.0,
    )


def confirmed_table(confirmed: Sequence[Confirmed], baselines: Sequence[ConfirmedBaseline] = ()) -> FittingTable:
    """One line a point, fastest first, the baselines below, and what the search promised too much."""
    table = FittingTable("confirmed", ("seeds", "searched", "bytes", "drop pp"))
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("what", overflow="fold", min_width=LEAST_WORDS)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in sorted(confirmed, key=lambda each: each.latency_ms):
        table.add_row(*cells(each))
    table.add_section()
    for rival in baselines:
        table.add_row(*baseline_cells(rival))
    table.caption = promised(confirmed) or None
    return table


HEADINGS = ("searched", "confirmed", "test (95 %)", "drop pp", "seeds", "bytes", "latency ms")


def cells(each: Confirmed) -> list[str]:
    """Its trial, what it is, and what stands below ``HEADINGS``."""
    if each.reason:  # of any length, so where there is room for words
        return [str(each.trial), f"{each.config.label}  ({each.reason})", f"{each.searched:.1%}", *[""] * 6]
    low, high = each.interval
    return [
        str(each.trial),
        each.config.label,
        f"{each.searched:.1%}",
        f"{statistics.fmean(each.validation):.1%}",
        f"{statistics.fmean(each.test):.1%} ({low:.1%} to {high:.1%})",
        f"{statistics.fmean(each.test_drop_pp):+.1f}",
        str(len(each.seeds)),
        f"{each.payload_bytes:,.0f}",
        f"{each.latency_ms:.2f}",
    ]


def baseline_cells(each: ConfirmedBaseline) -> list[str]:
    """The same of a baseline, whose network has one seed."""
    low, high = each.interval
    return [
        "",
        each.name,
        f"{each.searched:.1%}",
        "",
        f"{each.test:.1%} ({low:.1%} to {high:.1%})",
        f"{each.test_drop_pp:+.1f}",
        "1" if each.name.endswith(FINE_TUNED) else "",
        f"{each.payload_bytes:,.0f}",
        f"{each.latency_ms:.2f}",
    ]


def promised(confirmed: Sequence[Confirmed]) -> str:
    """How far the search's accuracies are from those on test images: chance chooses too, and more budget helps."""
    known = [each for each in confirmed if each.test]
    if not known:
        return ""
    over = statistics.fmean(100 * (each.searched - statistics.fmean(each.test)) for each in known)
    again = statistics.fmean(100 * (each.searched - statistics.fmean(each.validation)) for each in known)
    return (
        f"In the mean, searched accuracies are {_by(over)} those on test images, and {_by(again)} those of the same "
        "images after this training."
    )


def _by(difference_pp: float) -> str:
    return f"{abs(difference_pp):.1f} pp {'above' if difference_pp >= 0 else 'below'}"


def _with_seed(done: Confirmed, evaluator: Evaluator, seed: int) -> Confirmed:
    try:
        validation, test = (
            evaluator.evaluate(done.config, budget=done.budget, seed=seed, split=split)
            for split in ("validation", "test")
        )
    except InfeasibleSplit as reason:
        return replace(done, reason=str(reason))
    seeds = len(done.seeds)

    def joined(mean: float, new: float) -> float:
        return (seeds * mean + new) / (seeds + 1)

    return replace(
        done,
        seeds=(*done.seeds, seed),
        validation=(*done.validation, validation.accuracy),
        validation_drop_pp=(*done.validation_drop_pp, validation.accuracy_drop_pp),
        test=(*done.test, test.accuracy),
        test_drop_pp=(*done.test_drop_pp, test.accuracy_drop_pp),
        test_images=_images(test),
        payload_bytes=joined(done.payload_bytes, validation.payload_bytes),
        latency_ms=joined(done.latency_ms, validation.latency_ms),
    )


def _images(found: Evaluation) -> int:
    return int(found.details.get("scored_images", 0))
