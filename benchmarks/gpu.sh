#!/usr/bin/env bash
# What splitsearch does on a GPU, in one call of under ten minutes, on a bare machine without an index of packages:
#
#     bash benchmarks/gpu.sh [WHEELS]          # PROVIDER=cpu rehearses it on a machine without a GPU
#
# Needs a python3 (3.11 or newer) with a torch that sees the GPU. WHEELS is a folder of wheels for what else is missing
# there, made beforehand, with that machine's Python and torch, by
#
#     pip download --only-binary=:all: -c constraints.txt -d WHEELS optuna typer rich filelock safetensors ...
#
# (pyproject.toml lists what is needed, and ultralytics needs polars; leave out what python3 there has). Results:
# $OUT/gpu-run.md, and $OUT/gpu-run.log with all that was said; OUT is the folder runs/ unless given. What is worth
# keeping of it goes to benchmarks/results/gpu.md by hand. Each step has its own limit, and one that fails says so in
# the table and does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD wheels=${1:-} provider=${PROVIDER:-cuda} out=${OUT:-runs}
mkdir -p "$out" && out=$(realpath "$out")
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
log=$out/gpu-run.log table=$out/gpu-run.md
: >"$log"

python=$(command -v python3) # as it is: a new environment would not see the packages of one that python3 lies in
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target "$place/packages" "$(realpath "$wheels")"/*.whl >>"$log" 2>&1 || exit 1
fi
export PYTHONPATH=$root:$place/packages SPLITSEARCH_CACHE=$place/cache SPLITSEARCH_LOCKS=$place
card=$("$python" -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')")
{
    echo "# On a GPU"
    echo
    echo "\`bash benchmarks/gpu.sh\`, $(date +%F): $card, $("$python" -c "import torch; print('torch', torch.__version__)")."
    echo
    echo "| step | came out | seconds |"
    echo "| --- | --- | ---: |"
} >"$table"

step() { # step LIMIT_S WHAT COMMAND...: runs it, one row of the table
    local limit=$1 what=$2 start=$SECONDS code said
    shift 2
    echo "== $what: $*" >>"$log"
    timeout "$limit" "$@" >"$place/said" 2>&1
    code=$? said=$(tail -n 1 "$place/said" | tr '|' '/' | cut -c 1-160)
    cat "$place/said" >>"$log"
    if [ $code = 0 ]; then said="done"; else said="exit code $code: $said"; fi
    echo "| $what | $said | $((SECONDS - start)) |" >>"$table"
}

cli() { "$python" -c "import sys; from search.cli import main; sys.exit(main())" "$@"; }
export -f cli
export python

study() { # study NAME FIELD VALUE...: a copy of a study with other values
    "$python" - "$root/studies/$1.yaml" "$place/$2.yaml" "${@:3}" <<'PYTHON'
import json, sys
from pathlib import Path
from spaces.yaml_text import read_yaml
source, target, *changes = sys.argv[1:]
study = read_yaml(Path(source))
for change in changes:
    name, _, value = change.partition("=")
    study[name] = json.loads(value)
Path(target).write_text(json.dumps(study))  # which is YAML as well
PYTHON
    echo "$place/$2.yaml"
}

cd "$place" || exit 1
torch_server="server={\"name\": \"local\", \"runtime\": \"torch\", \"provider\": \"$provider\"}"
small() { echo "space={\"partition\": [\"$1\"], \"ae_ratio\": [0.125], \"bits\": [1, 2], \"tcl\": 0, \"lzma\": [false, true]}"; }
step 60 "the tests of timing with torch" "$python" -m pytest -q -p no:cacheprovider -o filterwarnings= --rootdir "$root" "$root/tests/test_latency_torch.py"
step 240 "quickstart, 6 trials, server with torch ($provider)" \
    bash -c "cli run $(study quickstart quick 'name="gpu-quickstart"' "$torch_server" "$(small layer2.1)") --trials 6"
step 60 "its knee as a bundle" bash -c "cli export quick.yaml -o bundle"
if [ -d "$root/../shared/weights" ]; then cd "$root"; else cd "$root/studies"; fi # where ../shared is looked up from
if [ -d ../shared/weights ]; then
    step 180 "one trial of a ResNet-50, server with torch ($provider)" \
        bash -c "cli run $(study resnet50_tinyimagenet50 resnet 'name="gpu-resnet"' "$torch_server" "$(small layer2.3)") --trials 1 --out $place/resnet"
    step 120 "one epoch of a YOLOv10n and one trial" \
        bash -c "cli run $(study yolov10n_bccd yolo 'name="gpu-yolo"' "$torch_server" "$(small model.4)" 'baseline={"epochs": 1, "batch_size": 16}' \
            'constraints={}') --trials 1 --out $place/yolo"
else
    echo "| ResNet-50 and YOLOv10n | left out: no folder shared/ beside the checkout or in it | |" >>"$table"
fi
{
    echo
    "$python" - "$place" <<'PYTHON'
import sqlite3, sys
from pathlib import Path
for file in sorted(Path(sys.argv[1]).rglob("study.db")):
    rows = sqlite3.connect(file).execute(
        "select t.number, strftime('%s', t.datetime_complete) - strftime('%s', t.datetime_start) from trials t "
        "where t.state = 'COMPLETE' order by t.number"
    ).fetchall()
    print(f"Seconds of the trials of {file.parent.name}: {', '.join(str(seconds) for _, seconds in rows)}.")
PYTHON
} >>"$table"
cat "$table"
