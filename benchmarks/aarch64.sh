#!/usr/bin/env bash
# The device half under an emulated aarch64 Python: does it run there, and are its payloads the same bytes?
#
#     bash benchmarks/aarch64.sh [FOLDER]    # as root on Debian, some ten minutes (emulation is slow); FOLDER keeps what was fetched
#
# Fetches Debian's arm64 Python and the aarch64 wheels of numpy, pillow and onnxruntime in the versions that .venv has,
# runs them with qemu's user mode, and compares with the same folders run natively. Outcome: benchmarks/results/aarch64.md.
# It says nothing of speed: an emulated millisecond is none.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.venv/bin/python
WORK=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$WORK"' EXIT
ROOT=$WORK/root SITE=$WORK/site FOLDERS=$WORK/folders
mkdir -p "$WORK"

if ! command -v qemu-aarch64-static >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq qemu-user-static debootstrap >/dev/null
fi

# Packages are only unpacked: configuring them would run arm64 programs, for which the kernel needs binfmt_misc.
if [ ! -e "$ROOT/usr/bin/python3.11" ]; then
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$ROOT" >/dev/null
    for package in "$ROOT"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$ROOT"; done
fi

version() { "$PYTHON" -c "from importlib.metadata import version; print(version('$1'))"; }
if [ ! -d "$SITE" ]; then
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$WORK/wheels" \
        --only-binary=:all: --python-version 3.11 --platform manylinux2014_aarch64 \
        --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
        "numpy==$(version numpy)" "onnxruntime==$(version onnxruntime)" "pillow==$(version pillow)"
    for wheel in "$WORK"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$SITE"; done
fi

# onnxruntime looks up its processor in /proc/cpuinfo while it is imported, and crashes (a null pointer) on that of an x86
# machine, which qemu passes on. Files under qemu's prefix are seen in place of the machine's own: what a Raspberry Pi 4
# says there.
mkdir -p "$ROOT/proc"
{
    for core in 0 1 2 3; do
        printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n' "$core"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
    done
    printf 'Model\t\t: emulated Cortex-A72\n'
} >"$ROOT/proc/cpuinfo"
emulated() {
    PYTHONPATH=$SITE PYTHONDONTWRITEBYTECODE=1 \
        qemu-aarch64-static -cpu cortex-a72 -L "$ROOT" "$ROOT/usr/bin/python3.11" "$@"
}

[ -d "$FOLDERS" ] || PYTHONPATH=. "$PYTHON" benchmarks/link_check.py folders "$FOLDERS"
mkdir -p "$WORK/photos" "$WORK/payloads"
PYTHONPATH=.:benchmarks "$PYTHON" - "$WORK/photos" <<'END'
import sys
from pathlib import Path

from link_check import read_photos
from PIL import Image

for number, pixels in enumerate(read_photos()[:3]):
    Image.fromarray(pixels).save(Path(sys.argv[1]) / f"photo-{number}.png")
END

for folder in "$FOLDERS"/*/device; do
    out=$WORK/payloads/$(basename "$(dirname "$folder")")
    mkdir -p "$out"
    if [ -e "$folder/encoder.onnx" ]; then
        "$PYTHON" "$folder" encode "$WORK"/photos/*.png --out "$out/native" >/dev/null
        emulated "$folder" encode "$WORK"/photos/*.png --out "$out/emulated" >/dev/null
    fi
    case $folder in # the deeper heads take half a minute each time, and measuring repeats them
        */stem*) emulated "$folder" measure --json --budget 0.1 >"$out/measured.json" ;;
    esac
done

PYTHONPATH=. "$PYTHON" - "$WORK/payloads" "$FOLDERS" "$(qemu-aarch64-static --version | head -1 | cut -d"(" -f1)" <<'END' | tee benchmarks/results/aarch64.md
"""Compare payloads, picture by picture and symbol by symbol, and print the outcome."""

import json
import sys
from pathlib import Path

import numpy as np

from evaluators.edge import wire

payloads, folders, qemu = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rows = []
for place in sorted(path.parent for path in payloads.glob("*/native")):
    form = wire.WireFormat.from_dict(json.loads((folders / place.name / "device" / "device.json").read_text())["wire"])
    natives = sorted((place / "native").iterdir())
    same, apart = 0, []
    for native in natives:
        pair = native.read_bytes(), (place / "emulated" / native.name).read_bytes()
        same += pair[0] == pair[1]
        here, there = (
            wire.unpack(wire.decompress(wire.unframe(each, form), form), form.bits, form.elements).astype(int)
            for each in pair
        )
        apart.append(np.abs(here - there))
    stages = "not run"
    if (place / "measured.json").exists():
        measured = json.loads((place / "measured.json").read_text())
        about, stages = measured["machine"], ", ".join(measured["stages"])
    differ = np.concatenate(apart)
    rows.append(
        f"| {place.name.replace('-', ' ')} | {same} of {len(natives)} | {np.count_nonzero(differ)} of {differ.size:,} "
        f"| {differ.max()} | {stages} |"
    )
print(f"""# The device half on aarch64

`bash benchmarks/aarch64.sh`: {qemu.strip()}, processor cortex-a72. Inside: {about["system"]},
Python {about["python"]}, numpy {about["numpy"]}, ONNX Runtime {about["onnxruntime"]}, Pillow {about["pillow"]}. {len(natives)} pictures at
224 px through ResNet-50's heads with `python device encode`, there and natively on x86-64, one thread each; `python
device measure --json` ran there too, but its milliseconds are the emulator's and are not kept.

| device folder | payloads equal byte for byte | symbols that differ | by how many levels at most | stages measured |
| --- | ---: | ---: | ---: | --- |""")
print("\n".join(rows))
print("""
Where symbols differ, an activation lies so near the border between two levels that float32 sums in another order (other
vector instructions) fall on its other side; looked at by hand once, at layer3.5: 0.000004 of a level away.

Importing onnxruntime needs a /proc/cpuinfo like a Raspberry Pi's: on that of the x86 machine, which the emulator passes
on, it crashes with a segmentation fault (see the script).""")
END
