"""The fake evaluator for workers, which are other processes: it takes its time, and keeps results in a store.

``PACED_FAKE`` in the environment is JSON: ``seconds`` of each trial, and ``stored``, whether a result is a training
that the store keeps.
"""

import json
import os
import time

from evaluators.fake import FakeEvaluator
from evaluators.store import StoreKey, shared_store


class PacedFake(FakeEvaluator):
    def __init__(self, seconds=0.0, stored=False):
        self._seconds, self._stored = seconds, stored

    def evaluate(self, config, **options):
        if not self._stored:
            time.sleep(self._seconds)
            return super().evaluate(config, **options)
        shared_store().get(StoreKey("candidate", {"config": config.to_dict()}), self._train, config.label)
        return super().evaluate(config, **options)

    def _train(self, folder):
        """Writes slowly, so that there is a middle to be killed in."""
        for part in range(5):
            (folder / f"{part}.bin").write_bytes(os.urandom(20_000))
            time.sleep(self._seconds / 5)


def build(spec, folder):
    return PacedFake(**json.loads(os.environ.get("PACED_FAKE", "{}")))
