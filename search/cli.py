"""The command line: one small function a command, over functions that tests call directly."""

from __future__ import annotations

import gc
import json
import logging
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from evaluators.edge.console import print_any_name
from search import bundle_commands, wiring
from spaces.errors import MeasurementError, SplitsearchError
from spaces.wording import counted

_INTERRUPTED = 130  # as shells say it: 128 and the number of the signal

app = typer.Typer(
    help="Find where to cut a vision network between a device and a server, and how hard to squeeze what crosses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_talk = Console(stderr=True, markup=False, emoji=False)  # names and paths may have brackets in them

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in studies/.")]
OutOption = Annotated[
    Optional[Path], typer.Option("--out", help="Folder of the results; runs/<study name> unless given.", metavar="DIR")
]
StorageOption = Annotated[
    Optional[str],
    typer.Option(
        "--storage",
        help="Where the study is kept; an SQLite file in the folder unless given. For several machines: "
        "postgresql://user@host/name, a journal on a shared disk (study.log or journal:///shared/study.log), or "
        "Optuna's gRPC proxy (grpc://host:13000).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:
    from importlib import metadata

    if asked:
        sys.stdout.write(f"splitsearch {metadata.version('splitsearch')}\n")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works after a command too.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """``--debug`` is taken out of the arguments by :func:`main`; stands here for ``--help``."""


@app.command()
def check(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Load everything, list partition points, distilled heads and baselines; train nothing, keep timings alone."""
    from evaluators.result import Source
    from search import checking, spec

    loaded = spec.load_spec(study)
    with tempfile.TemporaryDirectory(prefix="splitsearch-check-") as scratch:
        evaluator = wiring.build_evaluator(loaded, Path(scratch))
        loaded.space(list(evaluator.partition_points()))  # says at once that a name in it is none
        wiring.rehearse(evaluator, loaded)
        if loaded.device.source == Source.MEASURED:
            _talk.print(f"timing the heads on the device ({loaded.device.name}); the first time takes a minute or two")
        found = checking.check(loaded, evaluator)
    if as_json:
        _print_json(found.to_dict())
        return
    for renderable in checking.tables_of(found):
        _show(renderable)


@app.command()
def run(
    study: StudyArgument,
    trials: Annotated[
        Optional[int], typer.Option(min=1, help="Finished trials to come to, instead of the file's.")
    ] = None,
    timeout: Annotated[
        Optional[float], typer.Option(min=0, help="Start no trial after so many seconds.", metavar="S")
    ] = None,
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Processes that share the trials; each has its share of the cores.")
    ] = None,
    on: Annotated[
        Optional[str], typer.Option(help="Start the workers on a Dask cluster: dask://scheduler:8786.", metavar="URL")
    ] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Run the study, or go on with it where it stopped; ends with the front."""
    from search import dashboard, launch, points, progress, report, running, verdict
    from search.spec import with_trials

    scheduler = None if on is None else launch.check_cluster(on, storage)
    job = running.Job(
        study=study, trials=trials, timeout_s=timeout, storage=storage, out=None if out is None else str(out)
    )
    opened = running.open_run(job)
    try:
        with progress.run_progress(opened.study, with_trials(opened.spec, opened.wanted), _talk) as shown:
            if scheduler is None:  # on a cluster one of the workers does it, on the machine that is timed
                opened.prepare(shown.say)
            shown.start_trials()
            if scheduler is None and workers in (None, 1):
                opened.run_trials(shown.advance)
            else:
                _run_workers(opened, workers, scheduler, shown)
    except KeyboardInterrupt:
        again = shlex.join(sys.argv[1:] if sys.argv[1:2] == ["run"] else ["run", study])
        raise _Interrupted(f"interrupted; {_kept(opened)}. 'splitsearch {again}' goes on from there") from None
    except MeasurementError as error:
        raise SplitsearchError(f"{error}. {_kept(opened)}; run again to go on") from error
    target = opened.folder / "report.html"
    report.write_report(opened.study, opened.spec, target)
    dashboard.publish(opened.study, opened.spec, opened.folder)
    _print_front(opened.study, opened.spec)
    _talk.print(f"report: {target}", soft_wrap=True)
    scored, finished = points.trial_points(opened.study), len(points.finished_trials(opened.study))
    for line in verdict.next_steps(_named(study, storage, out), scored, finished):
        _talk.print(line, soft_wrap=True, highlight=False)


def _kept(opened: Any) -> str:
    from search import points

    done = len(points.finished_trials(opened.study))
    return f"{counted(done, 'finished trials')} {'is' if done == 1 else 'are'} kept in {opened.folder}"


def _run_workers(opened: Any, count: int | None, scheduler: str | None, shown: Any) -> None:
    """Start workers here or on a cluster, and show what they do until there is nothing left to do."""
    from dataclasses import replace

    from evaluators.latency.profiles import cores
    from search import launch, points, workers

    job = replace(opened.job, study=str(opened.spec.file.resolve()), out=str(opened.folder.resolve()))
    if scheduler is None:
        here = count or 1
        advice = workers.unwise(here, cores(), on_cpu=opened.evaluator.describe().get("compute") == "cpu")
        if advice:
            _talk.print(advice, highlight=False, soft_wrap=True)
        started: Any = workers.Workers(here, replace(job, sharing=here), opened.folder)
    else:
        started = launch.DaskWorkers(count, job, scheduler)
    with started:
        ends = started.watch(shown.look, shown.say)
    workers.check_ends(ends, len(points.finished_trials(opened.study)), opened.wanted, opened.folder)


@app.command()
def front(
    study: StudyArgument,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the baselines that others beat; JSON and CSV always hold them.")
    ] = False,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """The front and the baselines."""
    from search import front as fronts
    from search import points, tables

    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    loaded, opened = _open(study, storage, out)
    front = fronts.pareto_front(points.trial_points(opened))
    baselines = fronts.judged(points.baseline_points(opened), loaded.constraints)
    if as_json:
        _print_json(fronts.front_json(loaded.name, front, baselines))
    elif as_csv:
        sys.stdout.write(tables.to_csv(front, baselines))
    else:
        _print_front(opened, loaded, everything)


@app.command()
def replay(
    study: StudyArgument,
    device: Annotated[Optional[str], typer.Option(help="Another device profile.")] = None,
    server: Annotated[Optional[str], typer.Option(help="Another server profile.")] = None,
    link: Annotated[Optional[str], typer.Option(help="Another link profile, or RATE:RTT as in 2:10.")] = None,
    rates: Annotated[Optional[str], typer.Option(help="Several link rates in MB/s, as in 1,2,5,10.")] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """The finished study on other hardware or another link; nothing is trained."""
    from search import points
    from search import replay as replays

    loaded, opened = _open(study, storage, out)
    changes = replays.read_changes(loaded, points.environment(opened), device, server, link, rates)
    results = replays.replay_study(opened, loaded, changes)
    if as_json:
        _print_json({"format": 1, "study": loaded.name, "replays": [result.to_dict() for result in results]})
        return
    for result in results:
        _print_points(result.trials, result.baselines, result.hardware, loaded)


@app.command()
def confirm(
    study: StudyArgument,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each point.")] = 3,
    trial: Annotated[
        Optional[list[int]],
        typer.Option(help="Number of a trial, instead of the front and its near misses; may be given several times."),
    ] = None,
    as_json: JsonOption = False,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Train the front and its near misses anew, with more budget and several seeds, and test them."""
    from search import confirm as confirms
    from search import front as fronts
    from search import points as all_points
    from search import report as reports
    from search import storage as storages

    loaded, opened = _open(study, storage, out)
    scored = all_points.trial_points(opened)
    if trial:
        points = [fronts.find_trial(scored, number) for number in dict.fromkeys(trial)]
    else:
        points = confirms.to_confirm(scored)
    if not points:
        raise SplitsearchError(all_points.why_no_front(opened))
    folder = storages.run_folder(loaded, out)
    evaluator = wiring.build_evaluator(loaded, folder)
    storages.check_contents(opened, loaded, folder, storage, evaluator.identity())
    evaluator.prepare(None, _talk.print)
    wanted = [loaded.search.seed + number for number in range(seeds)]

    def begin() -> None:
        storages.check_writable(opened, folder, storage)

    found = confirms.confirm_points(opened, points, evaluator, loaded.confirm, wanted, _talk.print, begin)
    rivals = fronts.baseline_front(fronts.judged(all_points.baseline_points(opened), loaded.constraints))
    beside = confirms.confirm_baselines(opened, rivals, evaluator, _talk.print, begin)
    reports.write_report(opened, loaded, folder / "report.html")
    if as_json:
        confirmed, baselines = ([each.to_dict() for each in some] for some in (found, beside))
        _print_json({"format": 1, "study": loaded.name, "confirmed": confirmed, "baselines": baselines})
        return
    _show(confirms.confirmed_table(found, beside))


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="The file; report.html in the results unless given.")
    ] = None,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Write one self-contained HTML page."""
    from search import report as reports
    from search import storage as storages

    loaded, opened = _open(study, storage, out)
    target = output or storages.run_folder(loaded, out) / "report.html"
    reports.write_report(opened, loaded, target)
    _stdout().print(str(target), soft_wrap=True)


@app.command()
def dashboard(
    study: StudyArgument,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 8080,
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Open optuna-dashboard on the study's storage."""
    from search import dashboard as dashboards
    from search import report as reports
    from search import storage as storages

    loaded, opened = _open(study, storage, out)
    folder = storages.run_folder(loaded, out)
    reports.write_report(opened, loaded, folder / "report.html")
    dashboards.publish(opened, loaded, folder)
    address = f"http://127.0.0.1:{port}/dashboard/studies/{opened._study_id}/note"
    _talk.print(f"{address} (Ctrl-C ends it)", soft_wrap=True)
    dashboards.serve(opened, port, folder)


@app.command()
def export(
    study: StudyArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the bundle; must not exist yet.", metavar="DIR")
    ],
    trial: Annotated[Optional[int], typer.Option(help="Number of a trial, instead of --pick.")] = None,
    pick: Annotated[
        Optional[str], typer.Option(help="knee, fastest or most-accurate; the knee unless given.", show_default=False)
    ] = None,
    max_drop_pp: Annotated[Optional[float], typer.Option(help="Highest accuracy drop in percentage points.")] = None,
    max_latency_ms: Annotated[Optional[float], typer.Option(help="Highest latency.")] = None,
    with_whole: Annotated[
        bool, typer.Option("--with-whole", help="Also the whole network, for a device that reaches no server.")
    ] = False,
    points: Annotated[int, typer.Option(min=1, help="So many in one bundle, for links of other rates.")] = 1,
    form: Annotated[
        str, typer.Option("--as", help="bundle; or triton, which adds a model repository for Triton.")
    ] = "bundle",
    storage: StorageOption = None,
    out: OutOption = None,
) -> None:
    """Write a bundle that runs: device half, server half, evidence."""
    from search import choosing
    from search import dashboard as dashboards
    from search import export as exports
    from search import front as fronts
    from search import points as all_points
    from search import storage as storages

    if pick is not None and trial is not None:
        raise typer.BadParameter(
            f"'{pick}' given besides --trial {trial}, which is a point; leave one out", param_hint="--pick"
        )
    if pick not in (None, *fronts.PICKS):
        raise typer.BadParameter(f"'{pick}' given; {', '.join(fronts.PICKS)} are allowed", param_hint="--pick")
    if form not in exports.FORMS:
        raise typer.BadParameter(f"'{form}' given; {', '.join(exports.FORMS)} are allowed", param_hint="--as")
    loaded, opened = _open(study, storage, out)
    wish = choosing.Wish(
        trial=trial, pick=pick or "knee", max_drop_pp=max_drop_pp, max_latency_ms=max_latency_ms, points=points
    )
    chosen = choosing.choose(opened, loaded, wish, _named(study, storage, out))
    for line in chosen.advice:
        _talk.print(line, highlight=False, soft_wrap=True)
    exports.check_target(output)
    folder = storages.run_folder(loaded, out)
    evaluator = wiring.build_evaluator(loaded, folder)
    storages.check_contents(opened, loaded, folder, storage, evaluator.identity())
    evaluator.prepare(None, _talk.print)
    bundle = exports.write_bundle(
        chosen, loaded, evaluator, all_points.environment(opened), output, form=form, with_whole=with_whole
    )
    first, halves = chosen.first, bundle["evidence"]["halves"]
    assert first.trial is not None
    try:
        dashboards.attach_bundle(opened, folder, first.trial, output)
    except OSError as error:  # results that may only be read, or a full disk: the bundle is whole all the same
        _talk.print(f"the dashboard will not offer this bundle: {error}", soft_wrap=True, highlight=False)
    _stdout().print(f"trial {first.trial} ({first.name}) exported to {output}", soft_wrap=True)
    _stdout().print(
        f"the two halves agree with the trial on {halves['agreement_with_trial']:.2%} of {halves['images']} images"
    )


for _command in bundle_commands.COMMANDS:
    app.command()(_command)


@app.command()
def profile(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="local, or ssh://user@host:port.")],
    study: Annotated[
        Optional[str], typer.Option(help="Record what this study needs: its model, points, AE ratios and bit-widths.")
    ] = None,
    model: Annotated[str, typer.Option(help="Without --study: the network.")] = "torchvision/resnet50",
    image_size: Annotated[int, typer.Option(min=8, help="Without --study: side of its input in pixels.")] = 224,
    role: Annotated[str, typer.Option(help="device (heads), server (tails) or both.")] = "device",
    threads: Annotated[Optional[int], typer.Option(min=1, help="Threads there; all cores unless given.")] = None,
    runtime: Annotated[Optional[str], typer.Option(help="Of a local machine: onnxruntime (default) or torch.")] = None,
    provider: Annotated[Optional[str], typer.Option(help="Of a local machine: cpu (default) or cuda.")] = None,
    key: Annotated[Optional[Path], typer.Option(help="SSH identity file.")] = None,
    known_hosts: Annotated[Optional[Path], typer.Option(help="SSH known-hosts file.")] = None,
    python: Annotated[
        Optional[str], typer.Option(help="A Python there that has numpy, pillow and onnxruntime; made there if not.")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Also measure the link from there to here.")] = False,
    name: Annotated[Optional[str], typer.Option(help="Of the profile.")] = None,
    output: Annotated[
        Optional[Path], typer.Option("-o", "--output", help="The file; in hardware_profiles/devices unless given.")
    ] = None,
) -> None:
    """Measure a device and write a hardware profile."""
    from search import profiling

    there = {"threads": threads, "key": key, "known_hosts": known_hosts, "python": python}
    there |= {"runtime": runtime, "provider": provider}
    settings = {"name": target} | {option: value for option, value in there.items() if value is not None}
    asked = profiling.Asked(settings=settings, study=study, model=model, image_size=image_size, role=role, name=name)
    _stdout().print(str(profiling.record_machine(asked, output, _talk.print)), soft_wrap=True)
    if link:
        _stdout().print(str(profiling.record_link(asked, _talk.print)), soft_wrap=True)


@app.command()
def cache(
    prune: Annotated[
        Optional[str],
        typer.Option(help="Remove the least recently used until no more than this is kept: 5GB, 500MB, 0."),
    ] = None,
) -> None:
    """Show what the store holds, trainings and archives for all studies, or make room in it."""
    from search import caching

    limit = None if prune is None else caching.parse_size(prune)
    for renderable in caching.shown() if limit is None else caching.pruned(limit):
        _stdout().print(renderable, soft_wrap=isinstance(renderable, str), highlight=False)


class _Interrupted(SplitsearchError):
    """The user stopped a run."""

    exit_code = _INTERRUPTED


def main() -> None:
    """The console script. Turns errors into one line on stderr and an exit code; ``--debug`` shows the traceback."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("splitsearch").setLevel(logging.INFO)  # downloads say how far they are
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    print_any_name()
    if any(arguments[:1] == [command.__name__] for command in bundle_commands.COMMANDS):
        bundle_commands.take_process()
    sys.exit(run_command(arguments, debug))


def run_command(arguments: list[str], debug: bool = False) -> int:
    """Run one command line and return its exit code."""
    try:
        # Typer turns Ctrl-C into an exit code, which it returns.
        code = app(arguments, standalone_mode=False)
        return _fail("interrupted", _INTERRUPTED) if code == _INTERRUPTED else int(code or 0)
    except typer.Exit as stop:
        return stop.exit_code
    except (SplitsearchError, OSError) as error:
        if debug:
            raise
        code = error.exit_code if isinstance(error, SplitsearchError) else 1
        return _fail(str(error), code)
    except typer.BadParameter as error:
        return _fail(error.format_message(), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if type(error).__module__.startswith(("click", "typer")):  # wrong usage: unknown option, missing argument
            said = getattr(error, "format_message", error.__str__)()
            return _fail(said, 2) if said else 2  # without a command the help was shown, and there is nothing to add
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    _talk.print(f"error: {' '.join(message.split())}", soft_wrap=True, highlight=False)
    return code


def _open(study: str, storage: str | None, out: Path | None) -> tuple[Any, Any]:
    from search import spec
    from search import storage as storages

    loaded = spec.load_spec(study)
    opened = storages.open_study(loaded, storages.run_folder(loaded, out), storage)
    gc.freeze()  # what was read stays to the end: it need not be looked through for garbage again and again
    return loaded, opened


def _named(study: str, storage: str | None, out: Path | None) -> str:
    """A study as the user names it, with the options that say where it is kept."""
    places = [*(["--storage", storage] if storage else []), *(["--out", str(out)] if out else [])]
    return shlex.join([study, *places])


def _print_front(opened: Any, loaded: Any, everything: bool = False) -> None:
    from search import points, tables

    hardware = tables.hardware_line(points.environment(opened))
    _print_points(points.trial_points(opened), points.baseline_points(opened), hardware, loaded, everything)
    if told := points.could_not_run(opened):
        _stdout().print(told, highlight=False)


def _print_points(trials: Any, baselines: Any, hardware: str, loaded: Any, everything: bool = False) -> None:
    from search import front as fronts
    from search import tables, verdict

    points, baselines = fronts.pareto_front(trials), fronts.judged(baselines, loaded.constraints)
    chosen = fronts.knee(points) if points else None
    title = f"{loaded.name}: front of {counted(len(trials), 'trials')}, then baselines"
    console = _stdout()
    _show(tables.front_table(points, baselines, chosen, title, everything=everything))
    console.print(hardware, style="dim", highlight=False)
    for line in verdict.verdicts(trials, baselines, loaded.constraints.max_latency_ms):
        console.print(line, highlight=False)
    console.print()


def _stdout() -> Console:
    # Made anew so that it follows a redirected stdout. Piped, it keeps a table's rows on one line each.
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(width=max(console.width, 160), markup=False, emoji=False)


def _show(renderable: Any) -> None:
    from search.fitting_table import FittingTable

    if isinstance(renderable, FittingTable):
        renderable.print_on(_stdout())
    else:
        _stdout().print(renderable)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
