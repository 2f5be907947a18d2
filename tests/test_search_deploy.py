"""A bundle's server half that is started for a while."""

import time

from search import deploy

TALKS = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[0])
print(json.dumps({"event": "listening", "url": "http://127.0.0.1:1"}), file=sys.stderr, flush=True)
for _ in range(3000):
    print(json.dumps({"event": "request", "path": "/v2/models/demo/infer"}), file=sys.stderr, flush=True)
(folder / "said").touch()
time.sleep(600)
"""


def test_a_server_that_is_started_may_say_more_than_a_pipe_holds(tmp_path):
    """One line a request: with several hundred pictures to compare, it would stand still."""
    (tmp_path / "__main__.py").write_text(TALKS)
    with deploy.started(tmp_path) as url:
        end = time.monotonic() + 60
        while not (tmp_path / "said").exists():
            assert time.monotonic() < end, "the server waits for somebody to read what it says"
            time.sleep(0.02)
    assert url == "http://127.0.0.1:1"
