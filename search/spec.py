"""``StudySpec``: a study file, read strictly."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import studies
from evaluators.edge.coders import CODERS
from evaluators.latency.links import LinkProfile, load_link
from evaluators.latency.profiles import MachineProfile, load_machine
from evaluators.result import Evaluation
from evaluators.settings import (
    PRETRAINED,
    BaselineSettings,
    DataSettings,
    FinetuneSettings,
    ModelSettings,
    Optimizer,
    Quantization,
    Ramp,
    Scope,
)
from evaluators.store import digest_of
from evaluators.tasks.archives import ENDINGS
from evaluators.user_code import without_folder
from search.identity import flat
from spaces.budget import Budget
from spaces.errors import SpecError, nearest
from spaces.partition import Choice, PartitionPoint, choose, model_mb
from spaces.section import Section
from spaces.space import SearchSpace
from spaces.yaml_text import read_yaml

FORMAT = 1
_STUDIES = Path(studies.__file__).parent
MEASURED_LINK = "measured"
SAMPLERS = ("front", "tpe", "nsga2", "nsga3", "gp", "random", "grid")
PRUNING = ("none", "rungs")
_CONFIRM_IMAGES, _CONFIRM_STEPS = 4, 2  # times what a trial learns from, and times its steps
NAME, NAME_WORDS = r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-' are allowed"
_PLACEHOLDER = ("any",)
_SSH_FILES = ("key", "known_hosts")  # of a device over SSH, on this machine
_LARGEST_SEED = 2**31 - 1  # samplers take up to 2**32 - 1, and a trial's number is added


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Limits that a point of the front must keep; None is no limit.

    The drop is against the uncut model as given. ``max_device_model_mb`` is for the weights on the device, head and
    encoder, as float32 in 10^6 bytes; it also says where the device has no room for the whole network.
    """

    max_accuracy_drop_pp: float | None = None
    max_latency_ms: float | None = None
    max_payload_bytes: float | None = None
    max_device_model_mb: float | None = None

    def excess(self, evaluation: Evaluation) -> dict[str, float]:
        """By how much each limit that is set is exceeded; 0 or less keeps it."""
        values = self._values(evaluation)
        return {name: values[name] - limit for name, limit in vars(self).items() if limit is not None}

    def broken(self, evaluation: Evaluation) -> list[str]:
        """The limits that are exceeded: ``max_device_model_mb: 44.8 > 5``."""
        values, over = self._values(evaluation), [name for name, by in self.excess(evaluation).items() if by > 0]
        return [f"{name}: {_told_apart(values[name], getattr(self, name))}" for name in over]

    @staticmethod
    def _values(evaluation: Evaluation) -> dict[str, float]:
        return {
            "max_accuracy_drop_pp": evaluation.accuracy_drop_pp,
            "max_latency_ms": evaluation.latency_ms,
            "max_payload_bytes": evaluation.payload_bytes,
            "max_device_model_mb": evaluation.details.get("device_model_mb", 0.0),
        }


def _told_apart(value: float, limit: float) -> str:
    """``44.7 > 5``, ``12288 > 1500`` and ``5.004 > 5``: three digits of a value, or as many as show that it is above
    its limit.
    """
    least = max(3, len(f"{min(value, 1e9):.0f}"))
    rounded = (float(f"{value:.{digits}g}") for digits in range(least, 18))
    return f"{next(each for each in rounded if each > limit):.12g} > {limit:.12g}"


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How to search.

    ``trials`` is the number of finished trials a study should come to. ``patience`` ends it earlier: when over so many
    trials the front's hypervolume has grown by less than ``min_growth`` of itself; None never does. ``pruning`` may
    stop a trial whose training so far says that it will not enter the front. ``warm_start`` names another study of the
    same model whose accuracies count, with a doubt.
    """

    sampler: str = "front"
    trials: int = 60
    seed: int = 0
    pruning: str = "none"
    patience: int | None = None
    min_growth: float = 0.01
    warm_start: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Everything a study file says, checked. ``raw`` is what stood there; a link of None is to be measured."""

    name: str
    file: Path
    model: ModelSettings
    data: DataSettings
    device: MachineProfile
    server: MachineProfile
    link: LinkProfile | None
    constraints: Constraints
    finetune: FinetuneSettings
    baseline: BaselineSettings
    search: SearchSettings
    confirm: Budget
    raw: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of all that shapes the results; how long to search does not, so a study can be made longer."""
        return digest_of(self.comparable())

    def comparable(self) -> dict[str, Any]:
        """All that the study file resolves to and that shapes the results, as dotted keys and JSON values.

        Defaults and the contents of profiles are in it, so that it tells when they change; places of files, words, how
        long to search (``trials``, ``patience``, ``min_growth``) and ``confirm`` are not. What files hold is the
        business of ``Evaluator.identity``.
        """
        return flat(
            {
                "model": replace(self.model, name=without_folder(self.model.name)),
                "data": _without(flat(replace(self.data, name=without_folder(self.data.name))), ("download",)),
                "device": _profile_values(self.device, self.raw.get("device")),
                "server": _profile_values(self.server, self.raw.get("server")),
                "link": MEASURED_LINK if self.link is None else _without(flat(self.link), ("name", "source")),
                "space": {"partition": self.raw["space"].get("partition", "auto"), **self._space_values()},
                "constraints": self.constraints,
                "finetune": self._finetune_values(),
                "baseline": self.baseline,
                "search": {name: getattr(self.search, name) for name in ("sampler", "seed", "pruning", "warm_start")},
            }
        )

    def _finetune_values(self) -> dict[str, Any]:
        """What is shared follows from the space."""
        once = {"once_per_cut": True} if self.finetune.shared else {}
        return _without(flat(self.finetune), ("shared",)) | once

    def _space_values(self) -> dict[str, Any]:
        space = SearchSpace.from_dict(self.raw["space"], _PLACEHOLDER)
        values: dict[str, Any] = {
            "ae_ratio": space.ae_ratios,
            "bits": space.bits,
            "tcl": space.tcl,
            "stride": space.strides,
        }
        return values | {"head": space.heads, "rate": space.rates, "coder": space.lossless}

    def choices(self, points: list[PartitionPoint]) -> list[Choice]:
        """Which of a model's partition points this study searches. Raises SpecError for a name that fits none."""
        try:
            choices = choose(points, self.raw["space"].get("partition", "auto"))
        except SpecError as error:
            raise _placed(error.inside("space"), self.file) from None
        return self._that_fit(choices)

    def _that_fit(self, choices: list[Choice]) -> list[Choice]:
        """Without the points whose head alone is too large for the device, unless a distilled head may stand in."""
        limit, kept = self.constraints.max_device_model_mb, [choice for choice in choices if choice.kept]
        if limit is None or set(SearchSpace.from_dict(self.raw["space"], _PLACEHOLDER).heads) != {"own"}:
            return choices
        smallest = min(kept, key=lambda choice: choice.point.head_params, default=None)
        if smallest is not None and model_mb(smallest.point.head_params) > limit:
            needs = f"no head that is asked for is so small; that of {smallest.point.name} has "
            needs += f"{model_mb(smallest.point.head_params):.3g} MB of weights"
            raise _placed(SpecError("constraints.max_device_model_mb", limit, needs), self.file)
        return [_fitting(choice, limit) for choice in choices]

    def space(self, points: list[PartitionPoint]) -> SearchSpace:
        """The search space over a model's partition points."""
        kept = [choice.point.name for choice in self.choices(points) if choice.kept]
        return SearchSpace.from_dict(self.raw["space"], kept)


def _fitting(choice: Choice, limit: float) -> Choice:
    mb = model_mb(choice.point.head_params)
    if not choice.kept or mb <= limit:
        return choice
    return replace(choice, kept=False, why=f"its head has {mb:.3g} MB of weights; max_device_model_mb is {limit:g}")


def find_study(study: str) -> Path:
    """The file behind a path, the name of a file in ``studies/``, or the ``name:`` in one.

    Raises:
        SpecError: there is none.
    """
    given = Path(study)
    if given.suffix in (".yaml", ".yml"):
        if given.is_file():
            return given
        files = [path.name for path in given.parent.glob("*.y*ml") if path.is_file()]
        near = difflib.get_close_matches(given.name, files, n=1)
        meant = f"; did you mean '{given.with_name(near[0])}'?" if near else ""
        raise SpecError("STUDY", study, f"no such file{meant}")
    shipped = {path.stem: path for path in sorted(_STUDIES.glob("*.yaml"))}
    by_name = {stem.replace("_", "-"): path for stem, path in shipped.items()}
    found = shipped.get(study) or by_name.get(study)
    if found is None:
        beside = next((file for ending in (".yaml", ".yml") if os.path.isfile(file := f"{study}{ending}")), None)
        meant = f"did you mean '{beside}'?" if beside else nearest(study, shipped)
        raise SpecError("STUDY", study, f"a path to a .yaml file or a shipped study is needed; {meant}")
    return found


def load_spec(study: str) -> StudySpec:
    """Read and check a study file.

    Raises:
        SpecError: anything that cannot be right: file, key, what was given, what is allowed.
    """
    path = find_study(study)
    raw = read_yaml(path)
    try:
        return _read(raw, path)
    except SpecError as error:
        raise _placed(error, path) from None


def _read(raw: Any, path: Path) -> StudySpec:
    top = Section("", raw)
    format_given = top.take("format")
    if format_given != FORMAT or isinstance(format_given, bool):
        raise SpecError("format", format_given, f"{FORMAT} is the format known here")
    name = top.text("name")
    if not re.fullmatch(NAME, name):
        raise SpecError("name", name, f"{NAME_WORDS}; it names a folder")
    space = top.section("space")
    model, data = _model(top.section("model"), path), _data(top.section("data"), path)
    finetune = _finetune(top.section("finetune", optional=True), space.rest())
    spec = StudySpec(
        name=name,
        file=path,
        model=model,
        data=data,
        device=_machine(top, "device", path, model, data),
        server=_machine(top, "server", path, model, data),
        link=None if (link := top.take("link")) == MEASURED_LINK else load_link(_found_file(link, path, "link")),
        constraints=_constraints(top.section("constraints", optional=True)),
        finetune=finetune,
        baseline=_baseline(top.section("baseline", optional=True)),
        search=_search(top.section("search", optional=True)),
        confirm=_confirm(top.section("confirm", optional=True), finetune),
        raw=raw,
    )
    top.finish()
    return spec


def _machine(top: Section, key: str, path: Path, model: ModelSettings, data: DataSettings) -> MachineProfile:
    given = top.take(key, "local")
    if isinstance(given, dict):
        given = {name: _found_file(value, path, f"{key}.{name}", name in _SSH_FILES) for name, value in given.items()}
    profile = load_machine(_found_file(given, path, key), key)
    profile.check_fits(model.name, data.image_size, key)
    return profile


def _found_file(given: Any, study: Path, key: str, is_file: bool = False) -> Any:
    """A value as it stands, but of a file its place; a text that ends in ``.yaml`` is one, a profile."""
    is_file = isinstance(given, str) and (is_file or given.endswith((".yaml", ".yml")))
    return str(locate(given, study, key)) if is_file else given


def _check_space(space: dict[str, Any]) -> None:
    wanted = space.get("partition", "auto")
    if not (
        isinstance(wanted, str) or (isinstance(wanted, list) and wanted and all(isinstance(w, str) for w in wanted))
    ):
        raise SpecError("space.partition", wanted, "auto, all, a name, a glob, or a list of names and globs is needed")
    try:
        coders = SearchSpace.from_dict(space, _PLACEHOLDER).lossless
    except SpecError as error:
        raise error.inside("space") from None
    for name in coders:
        if not CODERS[name].available:
            package = CODERS[name].library
            raise SpecError("space.coder", name, f"it needs the package {package}: pip install 'splitsearch[coders]'")


def _model(section: Section, path: Path) -> ModelSettings:
    weights, name = section.text("weights", None), _locate_code(section.text("name"), path, "model.name")
    settings = ModelSettings(
        name=name,
        num_classes=section.whole("num_classes", minimum=1 if name.startswith("ultralytics/") else 2),
        weights=weights if weights in (None, PRETRAINED) else locate(weights, path, "model.weights"),
        options=section.section("options", optional=True).rest(),
    )
    _check_json(settings.options, "model.options")
    section.finish()
    return settings


def _check_json(value: Any, key: str) -> None:
    """Refuse what YAML reads as something that is neither number nor text, such as a date."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise SpecError(key, name, "names of options are texts; put it in quotes")
            _check_json(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _check_json(inner, f"{key}.{number}")
    elif value is not None and not isinstance(value, str | int | float):
        needs = "numbers, texts, true, false, lists and mappings can be options; put it in quotes to give it as text"
        raise SpecError(key, value, needs)


def _data(section: Section, path: Path) -> DataSettings:
    root = section.text("root", None)
    settings = DataSettings(
        name=_locate_code(section.text("name"), path, "data.name"),
        image_size=section.whole("image_size", minimum=8),
        root=locate(root, path, "data.root", ENDINGS) if root is not None else None,
        download=section.flag("download", False),
    )
    section.finish()
    return settings


def _constraints(section: Section) -> Constraints:
    limits = Constraints(**{field.name: section.number(field.name, None, minimum=0) for field in fields(Constraints)})
    section.finish()
    return limits


def _finetune(section: Section, space: dict[str, Any]) -> FinetuneSettings:
    _check_space(space)
    default = FinetuneSettings()
    shared: tuple[tuple[float, int], ...] = ()
    if section.flag("once_per_cut", False):
        searched = SearchSpace.from_dict(space, _PLACEHOLDER)
        shared = tuple(itertools.product(sorted(searched.ae_ratios), sorted(searched.bits)))
    section.renamed("warm_start", "reconstruction_steps")
    settings = FinetuneSettings(
        images=section.whole("images", default.images),
        epochs=section.whole("epochs", default.epochs),
        reconstruction_steps=section.whole("reconstruction_steps", default.reconstruction_steps, minimum=0),
        head_steps=section.whole("head_steps", default.head_steps),
        batch_size=section.whole("batch_size", default.batch_size),
        learning_rate=section.number("learning_rate", default.learning_rate, above=0) or 0.0,
        tail_learning_rate=section.number("tail_learning_rate", default.tail_learning_rate, above=0) or 0.0,
        distillation=_share(section, "distillation", default.distillation),
        scope=section.choice("scope", default.scope, get_args(Scope)),  # type: ignore[arg-type]
        quantization=section.choice("quantization", default.quantization, get_args(Quantization)),  # type: ignore[arg-type]
        ramp=section.choice("ramp", default.ramp, get_args(Ramp)),  # type: ignore[arg-type]
        shared=shared,
    )
    section.finish()
    return settings


def _confirm(section: Section, finetune: FinetuneSettings) -> Budget:
    """Of confirmation; several times that of a trial unless given."""
    budget = Budget(
        images=section.whole("images", _CONFIRM_IMAGES * finetune.images),
        epochs=section.whole("epochs", finetune.epochs, minimum=0),
        reconstruction_steps=section.whole(
            "reconstruction_steps", _CONFIRM_STEPS * finetune.reconstruction_steps, minimum=0
        ),
        head_steps=section.whole("head_steps", _CONFIRM_STEPS * finetune.head_steps),
    )
    section.finish()
    return budget


def _share(section: Section, name: str, default: float) -> float:
    value = section.number(name, default, minimum=0) or 0.0
    if value > 1:
        raise SpecError(f"finetune.{name}", value, "a number from 0 to 1 is needed")
    return value


def _baseline(section: Section) -> BaselineSettings:
    default = BaselineSettings()
    settings = BaselineSettings(
        epochs=section.whole("epochs", default.epochs),
        batch_size=section.whole("batch_size", default.batch_size),
        optimizer=section.choice("optimizer", default.optimizer, get_args(Optimizer)),  # type: ignore[arg-type]
        learning_rate=section.number("learning_rate", default.learning_rate, above=0),
    )
    section.finish()
    return settings


def _search(section: Section) -> SearchSettings:
    default = SearchSettings()
    sampler = section.text("sampler", default.sampler)
    if sampler not in SAMPLERS:
        raise SpecError("search.sampler", sampler, nearest(sampler, SAMPLERS))
    settings = SearchSettings(
        sampler=sampler,
        trials=section.whole("trials", default.trials),
        seed=section.whole("seed", default.seed, minimum=0),
        pruning=section.choice("pruning", default.pruning, PRUNING),
        patience=section.whole("patience") if section.has("patience") else None,
        warm_start=section.text("warm_start", None),
        min_growth=section.number("min_growth", default.min_growth, minimum=0.0) or 0.0,
    )
    if settings.seed > _LARGEST_SEED:
        raise SpecError("search.seed", settings.seed, f"a whole number from 0 to {_LARGEST_SEED} is needed")
    if settings.warm_start is not None and settings.sampler != "front":
        allowed = f"only the sampler front can use another study; this one has {settings.sampler}"
        raise SpecError("search.warm_start", settings.warm_start, allowed)
    section.finish()
    return settings


def locate(given: str, study: Path, key: str, endings: Sequence[str] = ()) -> Path:
    """A path in a study file: absolute, or below the current folder, the study's folder or the folder above that.

    The first place where it exists counts, as it stands or with one of the endings (of archives, see ``archives.py``);
    the last place is what ``studies/`` in a checkout needs.
    """
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise SpecError(key, given, "there is no such user here; write the folder out in place of ~") from None
    for place in (Path.cwd(), study.resolve().parent, study.resolve().parent.parent):
        # Not Path.exists, which raises for names that are too long.
        if any(os.path.exists(f"{place / path}{ending}") for ending in ("", *endings)):
            return (place / path).resolve()
    return path


def _locate_code(name: str, study: Path, key: str) -> str:
    """A name ``python:file.py:function`` with the file's place; any other name as it is."""
    kind, _, rest = name.partition(":")
    file, _, function = rest.rpartition(":")
    return f"{kind}:{locate(file, study, key)}:{function}" if kind == "python" and file.endswith(".py") else name


# Where to find things and where numbers come from: no numbers.
_WORDS = ("key", "known_hosts", "python", "date", "source", "reference.source", "fit.source")


def _profile_values(profile: MachineProfile, given: Any) -> dict[str, Any]:
    """A profile's contents. ``threads`` that nobody gave follow the machine that reads the study, and are left out."""
    threads = {"threads": profile.threads} if isinstance(given, Mapping) and "threads" in given else {}
    return {"name": profile.name, "kind": type(profile.how).__name__, **threads, **_without(flat(profile.how), _WORDS)}


def _without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _placed(error: SpecError, file: Path) -> SpecError:
    error.file = error.file or str(file)
    return error


def with_trials(spec: StudySpec, trials: int | None) -> StudySpec:
    """The spec with another number of trials."""
    return spec if trials is None else replace(spec, search=replace(spec.search, trials=trials))
