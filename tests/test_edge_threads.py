"""The threads of a half's networks: one pool in a process that runs nothing else, one for each network elsewhere."""

import shutil
import subprocess
import sys

import onnxruntime
import pytest
import tiny_bundle

from evaluators.edge import halves, main, seal
from search import bundle_commands, cli

CAN_SHARE = hasattr(onnxruntime, "set_global_thread_pool_sizes")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("threads") / "bundle", whole=True)


def options(half, model):
    half.open(model)
    return half._sessions[model].get_session_options()


def stops(half, model):
    """Whether a network's threads stop when it has returned."""
    return options(half, model).get_session_config_entry("session.force_spinning_stop") == "1"


def test_threads_of_one_network_do_not_wait_while_the_next_one_runs(bundle, tmp_path):
    half = halves.ServerHalf(bundle / "server")
    assert stops(half, "tail") and options(half, "tail").use_per_session_threads
    alone = shutil.copytree(bundle / "server", tmp_path / "alone")
    (alone / "decoder.onnx").unlink()
    (alone / seal.FILE).unlink()
    assert not stops(halves.ServerHalf(alone), "tail")  # a network by itself is in nobody's way


IN_ITS_OWN_PROCESS = """
import sys
import onnxruntime
from evaluators.edge import halves, main
folder = sys.argv[1]
sys.argv = ["server", "decode", f"{folder}/sample.payload"]
assert main.server(folder) == 0
half = halves.ServerHalf(folder)
for model in ("decoder", "tail"):
    half.open(model)
    assert not half._sessions[model].get_session_options().use_per_session_threads
onnxruntime.set_global_thread_pool_sizes(1, 1)
"""


@pytest.mark.skipif(not CAN_SHARE, reason=f"onnxruntime {onnxruntime.__version__} shares no threads from Python")
def test_in_a_process_of_their_own_they_share_one_pool(bundle):
    """onnxruntime itself says at the end that there is one."""
    done = subprocess.run([sys.executable, "-c", IN_ITS_OWN_PROCESS, bundle / "server"], capture_output=True, text=True)
    assert "Global thread pools have already been created" in done.stderr.splitlines()[-1], done.stderr


def test_who_is_called_from_a_program_leaves_its_process_alone(bundle, monkeypatch, capsys):
    monkeypatch.setattr(main.threads, "share", lambda: pytest.fail("this process has other networks"))
    assert main.server(bundle / "server", ["decode", str(bundle / "server" / "sample.payload")]) == 0
    assert cli.run_command(["verify", str(bundle / "nothing")]) == 1


@pytest.mark.parametrize(("line", "shares"), [("infer none", True), ("verify none", True), ("front infer", False)])
def test_the_command_line_knows_whose_process_it_is(line, shares, monkeypatch):
    taken = []
    monkeypatch.setattr(bundle_commands, "take_process", lambda: taken.append(True))
    monkeypatch.setattr(sys, "argv", ["splitsearch", *line.split()])
    with pytest.raises(SystemExit):
        cli.main()
    assert bool(taken) == shares


def test_an_onnxruntime_that_cannot_share_goes_on_as_before(bundle, monkeypatch):
    monkeypatch.delattr(onnxruntime, "set_global_thread_pool_sizes", raising=False)
    monkeypatch.setattr(main.threads, "_wanted", False)
    main.threads.share()
    assert stops(halves.ServerHalf(bundle / "server"), "tail")
