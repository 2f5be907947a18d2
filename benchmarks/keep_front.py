"""Keep a finished study's front under benchmarks/results/, with the circumstances that made it.

    splitsearch run resnet50_tinyimagenet50 --trials 40
    python benchmarks/keep_front.py resnet50_tinyimagenet50

Needs the data and weights that the study file names. The result holds what ``splitsearch front --json`` prints, the
date, the versions and the machine, and every trial's configuration and score.
"""

import argparse
import json
from pathlib import Path

from search.front import front_json, judged, pareto_front
from search.points import baseline_points, environment, trial_points
from search.spec import load_spec
from search.storage import open_study, run_folder
from search.verdict import verdicts

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Read the study, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study")
    parser.add_argument("--out", type=Path, help="the study's results, when not in runs/<name>")
    options = parser.parse_args()
    spec = load_spec(options.study)
    study = open_study(spec, run_folder(spec, options.out))
    trials, baselines = trial_points(study), judged(baseline_points(study), spec.constraints)
    front = pareto_front(trials)
    kept = {
        "command": f"splitsearch run {options.study} --trials {len(trials)}",
        "environment": environment(study),
        "spec_sha256": spec.digest,
        "verdicts": verdicts(trials, baselines),
        "front": front_json(spec.name, front, baselines),
        "trials": [point.to_dict() for point in trials],
    }
    target = RESULTS / f"{spec.name}.json"
    target.write_text(json.dumps(kept, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
