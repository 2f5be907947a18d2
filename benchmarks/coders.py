"""Bytes and microseconds of every lossless coder on real payloads, against the entropy of their symbols.

    python benchmarks/squeeze.py --plan few-bits    # trains the candidates that this reads
    python benchmarks/coders.py                     # then this, on a quiet machine
    python benchmarks/coders.py --coder context    # one coder anew; the others' rows and the last table stay

ResNet-50 on 50 classes of TinyImageNet, candidates trained with TCL and straight-through, search-validation images
(the first 300 for bytes, one for times). Per cut and bit-width: mean bytes of the body, without the header, and median
microseconds to compress and to decompress one. ``order 0`` is the entropy of each channel's symbols on their own, with
probabilities counted on these very images: what a coder without context cannot beat. The last table is the whole of
packing and unpacking beside the head. Results go to benchmarks/results/coders.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from squeeze import PLANS, STORE, Bench, Run

from evaluators.edge import wire
from evaluators.edge.circumstances import machine
from evaluators.models.onnx_export import OnnxNetwork
from evaluators.store import Store
from spaces.config import CODERS

RESULTS = Path(__file__).parent / "results" / "coders.json"
PICTURES = 300
REPEATS = 200
RUNS = [run for run in PLANS["few-bits"] if run.tcl and run.quantization == "straight-through"]
LAYOUTS = ("bit planes", "planes, channels last", "whole symbols", "whole, channels last")


def main() -> None:
    """Measure all, or some coders anew; write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coder", choices=CODERS, action="append", help="measure this one anew; all by default")
    coders = parser.parse_args().coder or CODERS
    bench = Bench(Run().model)
    rows = [row for run in RUNS for row in rows_of(bench, run, coders)]
    result = {"machine": machine(), "images": PICTURES, "rows": rows}
    if coders is CODERS:
        result["beside_the_head"] = beside_the_head(bench)
    else:
        kept = json.loads(RESULTS.read_text())
        result["rows"] = [row for row in kept["rows"] if row["coder"] not in coders] + rows
        result["beside_the_head"] = kept["beside_the_head"]
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


def rows_of(bench: Bench, run: Run, coders: Sequence[str]) -> list[dict]:
    """One row for each of the coders."""
    budget, trainer = run.settings.budget, bench.trainer(run)
    if Store(STORE).find(trainer.key(run.config, budget, run.seed)) is None:
        print(f"left out, since benchmarks/squeeze.py has not trained it: {run.config.label}")
        return []
    features = [tensor[:PICTURES] for tensor in bench.cache.features(run.partition, "validation")]
    rows = []
    for coder in coders:
        with_coder = replace(run.config, lossless=coder)
        candidate = trainer.train(with_coder, budget, run.seed)
        form = candidate.wire_format(with_coder)
        with torch.no_grad():
            activations = candidate.bottleneck.encoder(*features)[0].numpy()
        packed = [wire.pack_tensors([picture], form) for picture in activations]
        bodies = [wire.compress(each, form) for each in packed]
        assert all(wire.decompress(body, form) == each for body, each in zip(bodies, packed, strict=True))
        row = {"cut": run.partition, "ae_ratio": run.ae_ratio, "bits": run.bits, "coder": coder}
        row |= {"date": f"{date.today()}", "bytes": float(np.mean([len(body) for body in bodies]))}
        if coder != "packed":
            row |= {"compress_us": median_us(wire.compress, packed[0], form)}
            row |= {"decompress_us": median_us(wire.decompress, bodies[0], form)}
        else:
            row |= {"order_0_bytes": order_0_bytes(wire.quantize(activations, form.tensors[0], run.bits), run.bits)}
            row |= {"lzma_bytes_by_layout": layouts(wire.quantize(activations, form.tensors[0], run.bits), run.bits)}
        rows.append(row)
    return rows


def order_0_bytes(symbols: np.ndarray, bits: int) -> float:
    """Entropy of symbols (N, K, ...), each channel by itself, in bytes a picture."""
    total = 0.0
    for channel in symbols.swapaxes(0, 1):
        shares = np.bincount(channel.ravel(), minlength=2**bits) / channel.size
        total -= channel[0].size * (shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    return float(total / 8)


def layouts(symbols: np.ndarray, bits: int) -> dict[str, float]:
    """Mean LZMA bytes of symbols (N, K, H, W) as bit planes or whole, channel by channel or place by place."""
    levels = wire.TensorLevels((1,), np.zeros(1), np.ones(1))
    lzma = wire.WireFormat(bits=bits, tensors=(levels,), coder="lzma")
    packed: dict[str, Callable[[np.ndarray], bytes]] = {
        "bit planes": lambda picture: wire.pack(picture, bits),
        "planes, channels last": lambda picture: wire.pack(np.moveaxis(picture, 0, -1), bits),
        "whole symbols": lambda picture: side_by_side(picture, bits),
        "whole, channels last": lambda picture: side_by_side(np.moveaxis(picture, 0, -1), bits),
    }
    return {
        layout: float(np.mean([len(wire.compress(packed[layout](picture), lzma)) for picture in symbols]))
        for layout in LAYOUTS
    }


def side_by_side(symbols: np.ndarray, bits: int) -> bytes:
    """All bits of one symbol, then those of the next."""
    return np.packbits(np.unpackbits(symbols.reshape(-1, 1), axis=1)[:, -bits:]).tobytes()


def beside_the_head(bench: Bench) -> list[dict]:
    """Median time of quantizing, packing, unpacking and dequantizing a batch of stem maps, over that of their heads."""
    path = STORE / "stem.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    OnnxNetwork(bench.split).save_part("input", "stem", path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    picture = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    head_us = median_us(session.run, None, {name: picture})
    rows = []
    for channels in (16, 64):
        for bits in (1, 2, 3):
            shape = (channels, 16, 16)
            ones = np.ones(channels, np.float32)
            form = wire.WireFormat(bits=bits, tensors=(wire.TensorLevels(shape, -ones, ones),))
            values = np.tanh(np.random.default_rng(1).normal(size=shape)).astype(np.float32)
            symbols = wire.quantize(values, form.tensors[0], bits)
            packed = wire.pack(symbols, bits)
            rows.append({
                "channels": channels, "bits": bits, "head_us": head_us,
                "pack_us": median_us(wire.pack, symbols, bits),
                "unpack_us": median_us(wire.unpack, packed, bits, symbols.size),
                "quantize_us": median_us(wire.quantize, values, form.tensors[0], bits),
                "dequantize_us": median_us(wire.dequantize, symbols, form.tensors[0], bits),
            })  # fmt: skip
    return rows


def median_us(work: Callable[..., object], *arguments: object) -> float:
    """Median of many runs, after some that do not count."""
    times = []
    for _ in range(REPEATS + 20):
        start = time.perf_counter()
        work(*arguments)
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times[20:])


def tables(result: dict) -> str:
    """Markdown."""
    rows = result["rows"]
    lines = [
        "| cut | AE | bits | order 0 | " + " | ".join(CODERS) + " |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * 5,
    ]
    times = ["| cut | AE | bits | " + " | ".join(CODERS[1:]) + " |", "| --- | ---: | ---: |" + " ---: |" * 4]
    orders = ["| cut | AE | bits | " + " | ".join(LAYOUTS) + " |", "| --- | ---: | ---: |" + " ---: |" * len(LAYOUTS)]
    for cut, ratio, bits in dict.fromkeys((row["cut"], row["ae_ratio"], row["bits"]) for row in rows):
        found = {row["coder"]: row for row in rows if (row["cut"], row["bits"]) == (cut, bits)}
        start = f"| {cut} | {ratio:g} | {bits} | "
        sizes = " | ".join(f"{found[coder]['bytes']:,.0f}" for coder in CODERS)
        lines.append(start + f"{found['packed']['order_0_bytes']:,.0f} | {sizes} |")
        both = (f"{found[coder]['compress_us']:,.0f} / {found[coder]['decompress_us']:,.0f}" for coder in CODERS[1:])
        times.append(start + " | ".join(both) + " |")
        layout = found["packed"]["lzma_bytes_by_layout"]
        orders.append(start + " | ".join(f"{layout[name]:,.0f}" for name in LAYOUTS) + " |")
    head = ["| channels | bits | head us | pack | unpack | quantize | dequantize | pack + unpack over head |"]
    head.append("| ---: |" + " ---: |" * 7)
    for row in result["beside_the_head"]:
        times_us = [row[name] for name in ("head_us", "pack_us", "unpack_us", "quantize_us", "dequantize_us")]
        share = (row["pack_us"] + row["unpack_us"]) / row["head_us"]
        cells = " | ".join(f"{us:,.1f}" for us in times_us)
        head.append(f"| {row['channels']} | {row['bits']} | {cells} | {share:.1%} |")
    parts = ["Mean bytes of the body:", "", *lines, "", "Microseconds to compress / decompress one:", "", *times, ""]
    parts += ["LZMA bytes by layout of the packed symbols:", "", *orders, "", "Packing beside the head:", "", *head]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
