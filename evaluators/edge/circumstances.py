"""What a timing is worth nothing without: which machine it was, which versions, and whether it was slowed down.

What a machine does not tell is None: containers and virtual machines know little of temperatures and governors.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Optional

import numpy as np
import onnxruntime
import PIL

# Bits of ``vcgencmd get_throttled`` on a Raspberry Pi (raspberrypi.com, documentation of vcgencmd); the same names hold
# sixteen bits further up for "has happened since boot".
_PI_FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
_SINCE_BOOT = 16
_TIMEOUT_S = 5.0
# Of a line of /proc/stat: user, nice, system, irq, softirq, steal (proc(5)). Idle and iowait are no work.
_BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)


def machine() -> dict:
    """Processor, cores, versions: what does not change while measuring."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pillow": PIL.__version__,
    }


def state() -> dict:
    """What may change while measuring, JSON-ready.

    Returns:
        ``governor``: of the first core; ``temperature_c``: of the first thermal zone; ``load``: runnable processes,
        mean over the last minute; ``throttling``: what a Raspberry Pi complains of right now, and
        ``throttling_since_boot`` (lists of names); ``throttle_count``: of the first core of an x86 machine.
    """
    word = _pi_word()
    return {
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": _scaled(_read("/sys/class/thermal/thermal_zone0/temp"), 1000.0),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "throttling": _flags(word, 0),
        "throttling_since_boot": _flags(word, _SINCE_BOOT),
        "throttle_count": _scaled(_read("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"), 1.0),
    }


def throttling_between(before: dict, after: dict) -> list:
    """Names of what slowed a machine down between two states of it, sorted; empty if nothing is known to have."""
    found = set(before["throttling"]) | set(after["throttling"])
    found |= set(after["throttling_since_boot"]) - set(before["throttling_since_boot"])
    if (after["throttle_count"] or 0) > (before["throttle_count"] or 0):
        found.add("throttled")
    return sorted(found)


def processor_times() -> Optional[dict]:
    """Seconds that this machine's processor has worked so far, for :func:`others_share`; None where it does not tell.

    Returns:
        ``busy_s``: of the cores that this process may run on, for whomever they worked, a virtual machine's host
        included; ``own_s``: for this process and those that it started and that have ended; ``cores``: their number.
    """
    cores = _cores()
    rows = [line.split() for line in (_read("/proc/stat") or "").splitlines()]
    times = [row[1:] for row in rows if row and row[0] in {f"cpu{core}" for core in cores}]
    try:
        ticks = sum(int(row[column]) for row in times for column in _BUSY_COLUMNS)
        busy_s = ticks / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError, OSError):
        return None
    return {"busy_s": busy_s, "own_s": sum(os.times()[:4]), "cores": len(times)} if times else None


def others_share(before: Optional[dict], after: Optional[dict], seconds: float) -> Optional[float]:
    """Share of the processor's time that others took between two :func:`processor_times`, 0 to 1; None if not known.

    Args:
        before, after: what it returned.
        seconds: that passed between them.
    """
    if not before or not after or seconds <= 0:
        return None
    others_s = (after["busy_s"] - before["busy_s"]) - (after["own_s"] - before["own_s"])
    return min(max(others_s / (seconds * after["cores"]), 0.0), 1.0)


def _cores() -> list:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _flags(word: Optional[int], first: int) -> list:
    return [] if word is None else [name for bit, name in enumerate(_PI_FLAGS) if word >> (first + bit) & 1]


def _pi_word() -> Optional[int]:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_TIMEOUT_S
        )
        return int(done.stdout.decode().strip().split("=")[1], 16)  # throttled=0x50000
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def _read(path: str) -> Optional[str]:
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None


def _scaled(text: Optional[str], unit: float) -> Optional[float]:
    try:
        return None if text is None else float(text) / unit
    except ValueError:
        return None


def _processor() -> str:
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or "unknown"
