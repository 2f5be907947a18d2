"""The threads that networks run on: one pool for all networks of a process, or one for each.

A half runs two networks in turn. With a pool each, the first one's threads either keep the cores busy, waiting for more
work, while the second one runs, or sleep and have to be woken for every picture; ``benchmarks/spinning.py`` has what
both cost. One pool has neither trouble. onnxruntime makes it once for a whole process, and from then on takes no
network with threads of its own, so that only programs that run nothing but halves have it.
"""

from __future__ import annotations

from typing import Optional

import onnxruntime

_wanted = False
_pool: Optional[int] = None  # the threads in it


def share() -> None:
    """Have all networks that halves open from now on use one pool; only the program that a process was started for may
    decide this. Without effect where onnxruntime cannot do it from Python.
    """
    global _wanted
    _wanted = hasattr(onnxruntime, "set_global_thread_pool_sizes")


def configure(options: onnxruntime.SessionOptions, threads: int, *, alone: bool) -> None:
    """Set the threads of a network.

    Args:
        options: of the network's session.
        threads: 0 is one for each core. In a shared pool, those of the first network that was opened.
        alone: no other network runs in turn with this one.
    """
    global _pool
    if not _wanted:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "0" if alone else "1")
        return
    if _pool is None:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool = threads
    options.use_per_session_threads = False
