"""Several pictures at once: when a batch pays, and that everyone gets their own answer out of it."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle

from evaluators.edge import halves, staged
from evaluators.edge.serving import batching


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("batched") / "bundle", whole=True)


class Timed:
    """A half whose tail takes a given time for each number of pictures."""

    def __init__(self, seconds):
        levels = SimpleNamespace(shape=(2,))
        self.now, self.wire, self._seconds = 0.0, SimpleNamespace(tensors=[levels]), seconds

    def run(self, model, tensors):
        if model == "tail":
            if len(tensors[0]) not in self._seconds:
                raise RuntimeError("bad shape")
            self.now += self._seconds[len(tensors[0])]
        return tensors


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.1, 8: 1.2}, 8),
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 6.0}, 4),
        ({1: 1.0, 2: 1.6, 4: 3.2, 8: 6.4}, 1),  # 1.25 times the throughput
        ({1: 1.0, 2: 1.9, 4: 3.9, 8: 5.5}, 1),  # 1.45 times, but the median waits 1.22 times as long
        ({1: 1.0}, 1),
    ],
)
def test_a_batch_has_to_pay(seconds, size):
    half = Timed(seconds)
    decision = batching.decide(half, clock=lambda: half.now)
    assert decision.size == size and decision.why


@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (4, 1), (8, 3)])
def test_everyone_gets_their_own_answer_out_of_a_batch(bundle, size, lanes):
    half, device = halves.ServerHalf(bundle / "server"), halves.DeviceHalf(bundle / "device")
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    payloads, sizes = [device.encode(pixels) for pixels in pictures], []
    batcher, found = batching.Batcher(half, size, lanes, sizes.append), {}

    def ask(number):
        found[number] = staged.decode(half, payloads[number], batcher)[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    with batcher._lock:  # so that many wait
        for thread in threads:
            thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sum(sizes) == 40 and max(sizes) <= size
    for number, payload in enumerate(payloads):
        assert np.allclose(found[number], half.decode(payload), atol=1e-6)


def test_what_fails_in_a_batch_fails_for_all_in_it():
    half = Timed({})
    with pytest.raises(RuntimeError, match="bad shape"):
        batching.Batcher(half, 4, 1)([np.zeros(2, np.float32)])
