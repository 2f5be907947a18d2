"""A bundle: the chosen point as two halves that run, with the evidence for it."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluators.base import Evaluator
from evaluators.edge import seal
from evaluators.edge.coders import CODERS
from evaluators.edge.verify import write_prediction
from evaluators.store import file_digest, whole_folder
from evaluators.triton import repository
from search import bundle_points
from search.choosing import Chosen
from search.confirm import Confirmed
from search.front import Point
from search.spec import StudySpec
from spaces.errors import SplitsearchError

FORMAT = 1
FORMS = ("bundle", "triton")

_README = """# {name}

A split network made by splitsearch: `{label}`, trial {trial} of study `{study}`.

| | |
| --- | --- |
| {metric} | {accuracy:.2%} on {images} search-validation images ({drop:+.2f} pp against the uncut model) |
{confirmed}| payload | {payload:,.0f} bytes in the mean, header included |
| latency | {latency:.2f} ms: device {device}, server {server}, link {link} |
| the halves together | same answer as the trial on {agreement:.2%} of those images |

## On the device

Needs Python 3.9 or newer with {packages}; copy the folder `device/` there.

    python device infer picture.jpg --server http://SERVER:8500{whole}
    python device verify --server http://SERVER:8500
    python device encode picture.jpg --out payloads
    python device measure

## On the server

The same packages, and `starlette` and `uvicorn` for `serve`; copy the folder `server/` there. Beyond loopback `serve`
wants a token (`--token-file`) and TLS (`--cert`, `--key`); it speaks the Open Inference Protocol, model `{name}`.

    python server serve
    python server decode payloads/picture.payload{drawing}
    python server measure

{points}`bundle.json` holds the configuration, the circumstances of every number above and the SHA-256 of every file.
"""

_DRAWING = """
    python server decode payloads/picture.payload --draw drawn --on picture.jpg"""

_WHOLE = """
    python device infer picture.jpg               # without a server: the whole network, on the device"""

_POINTS = """The bundle has further points for links of other rates: `python device infer` measures the link and takes
the one that is fastest over it. To the server they are versions of the model. From which rate on, in MB/s:

| from | version | trial | |
| ---: | --- | ---: | --- |
{rows}
"""


def write_bundle(
    chosen: Chosen,
    spec: StudySpec,
    evaluator: Evaluator,
    environment: dict[str, Any],
    target: Path,
    *,
    form: str = "bundle",
    with_whole: bool = False,
) -> dict[str, Any]:
    """Write a bundle; it appears at ``target`` whole or not at all.

    Confirmed points are exported as they were trained then, with the first of their seeds. Among several ``infer``
    chooses by the link as it is. The form ``triton`` has the server half as a Triton model repository too.
    ``with_whole`` puts the uncut network beside the device half, for when no server can be reached.

    Returns:
        What ``bundle.json`` says.

    Raises:
        SplitsearchError: the target exists already.
    """
    check_target(target)
    point, confirmed, config = chosen.first, chosen.confirmed, chosen.first.evaluation.config
    assert config is not None
    with whole_folder(target) as folder:
        budget, seed = (confirmed.budget, confirmed.seeds[0]) if confirmed else (None, None)
        if confirmed:  # what is said of the halves is of these very ones, not of the search's
            point = replace(point, evaluation=evaluator.evaluate(config, budget=budget, seed=seed))
        evidence = evaluator.export(config, folder, budget=budget, seed=seed)
        whole = evaluator.export_whole(folder) if with_whole else None
        found, metric = point.evaluation, environment.get("metric", "top-1")
        parts, sources = found.latency.to_dict(), found.sources.to_dict()
        write_prediction(folder / "device", parts, sources, found.payload_bytes, environment.get("link", {}))
        # By what they were chosen by: of a confirmed point the means over seeds, as of the others.
        table = bundle_points.write_points(
            folder, chosen.first, chosen.others, evaluator, environment, chosen.max_drop_pp
        )
        fingerprint = seal.write(folder, spec.name)
        packages = _packages([point, *(other for other, _ in chosen.others)])
        readme = _readme(point, spec, evidence, metric, confirmed, whole, table, packages)
        if form == "triton":
            repository.write_repository(folder / "server", folder / "triton", spec.name)
            own = " and ".join(f"`{each}`" for each in ("numpy", CODERS[config.lossless].library) if each)
            readme += repository.README.format(name=spec.name, packages=own)
        (folder / "README.md").write_text(readme)
        bundle = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "study": spec.name,
            "study_sha256": spec.digest,
            "trial": point.trial,
            "seed": confirmed.seeds[0] if confirmed else spec.search.seed,
            "config": config.to_dict(),
            "model": spec.raw["model"],
            "data": spec.raw["data"],
            "evidence": {**found.to_dict(), "halves": evidence, "whole": whole},
            **table,
            "confirmed": confirmed.to_dict() if confirmed else None,
            "environment": environment,
            "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "sha256": {
                str(path.relative_to(folder)): file_digest(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts
            },
        }
        (folder / "bundle.json").write_text(json.dumps(bundle, indent=2) + "\n")
        if target.exists():
            target.rmdir()  # empty, as checked above
    return bundle


def check_target(target: Path) -> None:
    """Raise SplitsearchError unless a bundle may be written there: the folder is absent or empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SplitsearchError(f"{target} exists already; give -o a folder that does not, or remove it")


def _readme(
    point: Point,
    spec: StudySpec,
    evidence: dict[str, Any],
    metric: str,
    confirmed: Confirmed | None,
    whole: dict[str, Any] | None,
    table: dict[str, Any],
    packages: str,
) -> str:
    found = point.evaluation
    return _README.format(
        confirmed=_confirmed_row(confirmed) if confirmed else "",
        metric="accuracy (top-1)" if metric == "top-1" else metric,
        whole=_WHOLE if whole else "",
        points=_POINTS.format(rows=bundle_points.rate_rows(table)) if table else "",
        drawing="" if metric == "top-1" else _DRAWING,
        packages=packages,
        name=spec.name,
        study=spec.name,
        label=found.name,
        trial=point.trial,
        accuracy=found.accuracy,
        images=evidence["images"],
        drop=-found.accuracy_drop_pp,
        payload=found.payload_bytes,
        latency=found.latency_ms,
        agreement=evidence["agreement_with_trial"],
        **{place: str(source) for place, source in found.sources.to_dict().items()},
    )


def _packages(points: Sequence[Point]) -> str:
    """What the halves of all these points need, in words."""
    coders = {CODERS[each.evaluation.config.lossless].library for each in points if each.evaluation.config}
    *most, last = [f"`{name}`" for name in ("numpy", "pillow", "onnxruntime", *sorted(coders - {""}))]
    return f"{', '.join(most)} and {last}"


def _confirmed_row(confirmed: Confirmed) -> str:
    low, high = confirmed.interval
    return (
        f"| confirmed | {statistics.fmean(confirmed.test):.2%} (95 %: {low:.2%} to {high:.2%}) on "
        f"{confirmed.test_images:,} test images, mean of {len(confirmed.seeds)} seeds; the halves are of the first |\n"
    )
