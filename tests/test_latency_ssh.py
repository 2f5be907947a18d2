"""Measuring over SSH, against a real sshd on this machine."""

import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from loopback_sshd import SYSTEM_PATH, free_port, loopback_sshd, make_key, parent
from onnx import TensorProto, helper

from evaluators import folders
from evaluators.edge.picture import PictureFormat
from evaluators.edge.wire import TensorLevels, WireFormat
from evaluators.latency import remote_agent, ssh
from evaluators.latency.link_probe import measure_link
from evaluators.latency.profiles import MachineProfile
from evaluators.latency.ssh import SshRunner, SshTarget
from spaces.errors import MeasurementError, SpecError

PATIENCE_S = 60.0
ANSWER = {"throttling": [], "stages": {"head": {"p50_ms": 1.0, "p90_ms": 1.0, "spread": 0.0, "repeats": 1}}}
ANSWERS = f"import json\nprint(json.dumps({ANSWER}))\n"
PICTURE = PictureFormat(8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


@pytest.fixture
def server(tmp_path):
    """A running sshd, with a home, a cache and keys of its own."""
    with loopback_sshd(tmp_path) as running:
        yield running


class Watched(SshRunner):
    """Remembers which steps it took on the far side."""

    def __init__(self, target, **limits):
        super().__init__(target, **limits)
        self.steps = []

    def run_far(self, command, request=None, data=(), timeout_s=ssh.STEP_S):
        sent = len(request["contents"]) if command == "receive" else None
        self.steps.append(command if sent is None else f"{command} {sent}")
        return super().run_far(command, request, data, timeout_s)


@pytest.fixture
def make_folder(tmp_path):
    """Makes a folder whose measurement is the given script."""

    def make(script=ANSWERS, **files):
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        (folder / "__main__.py").write_text(script)
        for name, content in files.items():
            (folder / f"{name}.bin").write_bytes(content)
        return folder

    return make


@pytest.fixture
def change_far_side(tmp_path, monkeypatch):
    """Lets another far side be sent, with pieces of its text replaced."""

    def change(*pieces):
        text = Path(remote_agent.__file__).read_text()
        for old, new in zip(pieces[::2], pieces[1::2]):
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "remote_agent.py").write_text(text)
        monkeypatch.setattr(ssh, "_PROGRAM", tmp_path / "remote_agent.py")

    return change


@pytest.fixture
def device_folder(tmp_path):
    """A device folder as the stage_timer writes it, around two very small networks."""
    channels = helper.make_tensor("weight", TensorProto.FLOAT, [4, 3, 1, 1], np.linspace(-1, 1, 12))
    levels = TensorLevels((4, 8, 8), -np.ones(4), np.ones(4))
    manifest = {
        "picture": PICTURE.to_dict(),
        "threads": 1,
        "wire": WireFormat(bits=2, tensors=(levels,), coder="lzma").to_dict(),
    }
    folder = folders.write_device(tmp_path / "device", manifest, np.zeros((8, 8, 3), np.uint8))
    save_network(folder / "head.onnx", helper.make_node("Conv", ["in", "weight"], ["out"]), 3, [channels])
    save_network(folder / "encoder.onnx", helper.make_node("Tanh", ["in"], ["out"]), 4)
    return folder


def save_network(path, node, channels, weights=()):
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, 8, 8])
        for name, count in (("in", channels), ("out", 4))
    ]
    graph = helper.make_graph([node], "small", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def store(server):
    """Where the far side keeps its things."""
    return server.cache / "splitsearch" / "device"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def wait_for(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def refused(runner, folder=Path()):
    """The one line that a user sees when measuring fails."""
    with pytest.raises(MeasurementError) as caught:
        runner.measure(folder, ["head"]) if folder != Path() else runner.machine()
    message = str(caught.value)
    assert message.startswith(f"{runner.target.label}: ") and "\n" not in message
    return message


# The whole path


def test_a_device_folder_is_measured_and_the_second_time_nothing_is_sent(server, device_folder):
    runner = Watched(server.target())
    stages = ["head", "encode", "pack", "compress"]
    first = runner.measure(device_folder, stages)
    assert list(first) == stages and all(timing.p50_ms > 0 and timing.repeats >= 10 for timing in first.values())
    files = len([path for path in device_folder.rglob("*") if path.is_file() and path.suffix != ".pyc"])
    assert runner.steps == ["look", f"receive {files - duplicates(device_folder)}", "run"]
    assert runner.machine()["onnxruntime"] and set(runner.states()) == {"before", "after"}
    assert runner.steps[3:] == []  # known from the measurement

    runner.steps.clear()
    assert list(runner.measure(device_folder, ["head"])) == ["head"]
    assert runner.steps == ["look", "run"]
    (device_folder / "encoder.onnx").unlink()
    save_network(device_folder / "encoder.onnx", helper.make_node("Sin", ["in"], ["out"]), 4)
    runner.steps.clear()
    assert list(runner.measure(device_folder, stages)) == stages
    assert runner.steps == ["look", "receive 1", "run"]
    assert not list((store(server) / "folders").iterdir())


def duplicates(folder):
    """Files with the content of another one."""
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return len(contents) - len(set(contents))


@pytest.mark.architectures
@pytest.mark.slow
def test_a_new_device_gets_an_environment_once(server, device_folder, monkeypatch):
    server.script("python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    runner = Watched(server.target(python=""))
    assert set(runner.machine()) == {"system", "processor", "cores", "python"}
    # What an installation that was broken off may have left.
    request = {"files": {}, "requirements": list(ssh.PACKAGES)}
    assert not runner.run_far("look", request)["ready"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(server.cache))
    broken = remote_agent._environment(list(ssh.PACKAGES))
    (broken / "bin").mkdir(parents=True)
    (broken / "bin" / "python").write_text("half a file")

    runner.steps.clear()
    assert runner.measure(device_folder, ["head"])["head"].p50_ms > 0
    assert runner.steps[0] == "look" and runner.steps[2:] == ["install", "run"]
    assert (broken / "complete").exists() and runner.machine()["numpy"]
    runner.steps.clear()
    assert runner.measure(device_folder, ["head"])["head"].p50_ms > 0
    assert runner.steps == ["look", "run"]


def test_coders_bring_their_package(tmp_path):
    runner = SshRunner(SshTarget(host="nowhere.invalid"))
    assert runner._requirements(tmp_path) == ["numpy", "onnxruntime", "pillow"]
    (tmp_path / "device.json").write_text(json.dumps({"wire": {"coder": "zstd"}}))
    assert runner._requirements(tmp_path) == ["numpy", "onnxruntime", "pillow", "zstandard"]
    (tmp_path / "device.json").write_text(json.dumps({"wire": None}))
    (tmp_path / "server.json").write_text(json.dumps({"wire": {"coder": "context"}}))
    assert runner._requirements(tmp_path) == ["numpy", "onnxruntime", "pillow"]
    assert SshRunner(SshTarget(host="x", python="/opt/python"))._requirements(tmp_path) is None


def test_what_a_login_prints_does_no_harm(server, make_folder):
    server.script("python3", f'#!/bin/sh\necho Welcome, and mind the step.\nexec {sys.executable} "$@"\n')
    runner = SshRunner(server.target(python="python3"))
    assert runner.measure(make_folder(), ["head"])["head"].p50_ms == 1.0


def test_files_unused_for_long_go(server, make_folder):
    runner = Watched(server.target())
    runner.measure(make_folder(a=b"used again", b=b"not any more"), ["head"])
    stored = store(server) / "files"
    old = time.time() - remote_agent.UNUSED_S - 60
    for path in stored.iterdir():
        os.utime(path, (old, old))
    (stored / ".partial").write_text("what a broken transfer left")
    folder = make_folder(c=b"new")
    (folder / "b.bin").unlink()
    runner.measure(folder, ["head"])
    assert sorted(path.read_bytes() for path in stored.iterdir()) == sorted([ANSWERS.encode(), b"new", b"used again"])


def test_a_file_that_a_power_cut_emptied_is_sent_again(server, make_folder):
    runner = Watched(server.target())
    folder = make_folder(a=b"content")
    runner.measure(folder, ["head"])
    (store(server) / "files" / digest(b"content")).write_bytes(b"")
    runner.measure(folder, ["head"])
    assert runner.steps[3:] == ["look", "receive 1", "run"]


def test_a_cache_without_hard_links_copies(server, make_folder, change_far_side):
    change_far_side(
        "os.link(", "os.no_links_here(", "import os\n", "import os\nos.no_links_here = lambda *_: os.mkdir('/')\n"
    )
    assert SshRunner(server.target()).measure(make_folder(), ["head"])["head"].p50_ms == 1.0


def test_the_link_to_a_server_over_ssh_ends_there(server):
    """This machine sends, and the probe that listens runs on the far side."""
    far = MachineProfile(name="rack", how=server.target(), threads=1)
    found = measure_link(MachineProfile(name="local", threads=1), far)
    assert found.rate_mb_per_s > 0 and found.rtt_ms > 0 and found.name == "local to rack"


def test_an_address_is_what_ssh_makes_of_a_name(tmp_path):
    assert SshTarget(host="nowhere.invalid").address() == "nowhere.invalid"
    assert SshTarget(host="127.0.0.1", user="pi", port=2222).address() == "127.0.0.1"


# One at a time


def test_measurements_on_one_device_wait_for_each_other(server, make_folder):
    folder = make_folder(
        "import pathlib, time\n"
        f"busy = pathlib.Path({str(server.home / 'busy')!r})\n"
        "busy.mkdir()\n"  # fails if it is there
        "time.sleep(0.5)\n"
        "busy.rmdir()\n" + ANSWERS
    )
    with ThreadPoolExecutor(3) as pool:
        stage_keys = [pool.submit(SshRunner(server.target()).measure, folder, ["head"]) for _ in range(3)]
        assert [stage_key.result()["head"].p50_ms for stage_key in stage_keys] == [1.0] * 3


def test_waiting_has_an_end(server, make_folder):
    runner = SshRunner(server.target(), wait_s=0.2)
    folder = make_folder()
    runner.measure(folder, ["head"])
    with open(store(server) / "busy.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "others have kept this device busy for 0.2 s; try again" in refused(runner, folder)
    runner.measure(folder, ["head"])


# The connection is cut in the middle


SLEEPS = (
    "import os, pathlib, time\npathlib.Path(os.environ['HOME'], 'pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
)


def started(server):
    """The process id of a measurement that has begun, when there is one."""
    path = server.home / "pid"
    return path.exists() and path.read_text()


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_cut_while_measuring(server, make_folder):
    runner = SshRunner(server.target())
    with ThreadPoolExecutor(1) as pool:
        stage_key = pool.submit(refused, runner, make_folder(SLEEPS))
        wait_for(lambda: started(server))
        server.cut()
        assert "the connection ended before the answer came" in stage_key.result(PATIENCE_S)
    pid = started(server)
    wait_for(lambda: not is_running(pid))  # the far side has stopped it, and the device is free
    assert runner.measure(make_folder(), ["head"])["head"].p50_ms == 1.0


def test_a_link_that_goes_silent_while_measuring(server, make_folder, monkeypatch):
    monkeypatch.setattr(ssh, "ALIVE_S", 1)
    runner = SshRunner(server.target())
    with ThreadPoolExecutor(1) as pool:
        stage_key = pool.submit(refused, runner, make_folder(SLEEPS))
        wait_for(lambda: started(server))
        server.cut(signal.SIGSTOP)
        assert "not responding" in stage_key.result(PATIENCE_S)


def test_cut_while_sending(server, make_folder, monkeypatch):
    runner = Watched(server.target())
    # Files go in the order of their digests: the large one shall be the last.
    small, *_, large = sorted((bytes([number]) * (1 << 20) for number in range(64)), key=digest)
    folder = make_folder(a=small, b=large)
    stored = store(server) / "files"

    def contents_until_cut(path):
        content = path.read_bytes()
        yield content[: len(content) // 2]
        if content == large:
            wait_for((stored / f".{digest(large)}").exists)  # it has begun to arrive
            server.cut()
        yield content[len(content) // 2 :]

    honest = ssh.contents
    monkeypatch.setattr(ssh, "contents", contents_until_cut)
    assert "the connection ended before the answer came" in refused(runner, folder)
    # The far side may still be about to notice.
    wait_for(lambda: not list(stored.glob(".*")))
    arrived = {path.name for path in stored.iterdir()}
    assert digest(small) in arrived and digest(large) not in arrived
    assert all(digest(path.read_bytes()) == path.name for path in stored.iterdir())

    monkeypatch.setattr(ssh, "contents", honest)
    runner.steps.clear()
    assert runner.measure(folder, ["head"])["head"].p50_ms == 1.0
    assert runner.steps == ["look", f"receive {3 - len(arrived)}", "run"]


def test_a_caller_that_goes_silent_while_sending(server, make_folder, monkeypatch, change_far_side):
    change_far_side("STALL_S = 60", "STALL_S = 1")
    told = threading.Event()

    def contents_until_told(path):
        yield b"x"
        told.wait(PATIENCE_S)

    monkeypatch.setattr(ssh, "contents", contents_until_told)
    with ThreadPoolExecutor(1) as pool:
        stage_key = pool.submit(refused, SshRunner(server.target()), make_folder())
        wait_for(lambda: (store(server) / "busy.lock").exists())
        wait_for(lambda: not server.sessions())
        told.set()
        assert "nothing arrived for 1 s" in stage_key.result(PATIENCE_S)


def test_the_far_side_itself_is_killed(server, make_folder):
    runner = SshRunner(server.target())
    with ThreadPoolExecutor(1) as pool:
        stage_key = pool.submit(refused, runner, make_folder(SLEEPS))
        wait_for(lambda: started(server))
        measuring = int(started(server))
        os.kill(parent(measuring), signal.SIGKILL)
        assert "the connection ended before the answer came" in stage_key.result(PATIENCE_S)
    # What it was measuring goes on, and the device counts as busy until that has ended.
    runner.wait_s = 0.2
    assert "others have kept this device busy" in refused(runner, make_folder())
    os.kill(measuring, signal.SIGKILL)
    wait_for(lambda: not is_running(measuring))
    assert runner.measure(make_folder(), ["head"])["head"].p50_ms == 1.0


def test_the_caller_goes_away_while_measuring(server, make_folder):
    code = (
        "import sys; from pathlib import Path; from evaluators.latency.ssh import SshRunner, SshTarget\n"
        f"target = {server.target()!r}\n".replace("PosixPath", "Path")
        + f"SshRunner(target).measure(Path({str(make_folder(SLEEPS))!r}), ['head'])\n"
    )
    root = Path(ssh.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as caller:
        wait_for(lambda: started(server))
        caller.kill()
    wait_for(lambda: not is_running(started(server)))


# What can go wrong


def test_no_such_host():
    assert "there is no host of this name" in refused(SshRunner(SshTarget(host="nowhere.invalid")))


def test_nothing_listens(server):
    assert "nothing listens at this port" in refused(SshRunner(server.target(port=free_port())))


def test_something_listens_that_never_answers(server, monkeypatch):
    monkeypatch.setattr(ssh, "CONNECT_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = server.target(port=silent.getsockname()[1])
        assert "it does not answer" in refused(SshRunner(target))


def test_an_unknown_host_key(server, tmp_path):
    (tmp_path / "empty").touch()
    message = refused(SshRunner(server.target(known_hosts=tmp_path / "empty")))
    assert "its host key is not known here; connect once by hand" in message and f"-p {server.port}" in message


def test_a_changed_host_key(server, tmp_path):
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{server.port} {other}")
    message = refused(SshRunner(server.target(known_hosts=tmp_path / "changed")))
    assert "is not the known one" in message and f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in message


def test_a_key_that_is_not_let_in(server, tmp_path):
    other = make_key(tmp_path / "other")
    message = refused(SshRunner(server.target(key=other)))
    assert "the login was refused" in message and f"ssh-copy-id -i {other} -p {server.port}" in message


def test_a_key_file_that_cannot_be_used(server, tmp_path):
    assert "there is no key file" in refused(SshRunner(server.target(key=tmp_path / "none")))
    server.key.chmod(0o644)
    assert f"chmod 600 {server.key}" in refused(SshRunner(server.target()))


def test_no_ssh_here(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no ssh program here" in refused(SshRunner(server.target()))


def test_no_python_there(server, tmp_path):
    message = refused(SshRunner(server.target(python="/opt/none/python")))
    assert "there is no /opt/none/python to run on the device" in message
    (tmp_path / "bare").mkdir()
    with loopback_sshd(tmp_path / "bare", path="") as bare:
        assert "there is no python3 to run on the device" in refused(SshRunner(bare.target(python="")))


def pretend(server, statement):
    """Let python3 there be the Python that runs the tests, after a statement."""
    server.script(
        "python3", f'#!/bin/sh\nshift 2\ncode="$1"\nshift\nexec {sys.executable} -c "{statement}; $code" "$@"\n'
    )


def test_an_old_python(server):
    pretend(server, "import sys; sys.version_info = (3, 7, 3)")
    message = refused(SshRunner(server.target(python="")))
    assert "Python 3.9 or newer is needed on the device, python3 is 3.7.3" in message


def test_a_python_without_venv(server, make_folder):
    says = "The virtual environment was not created successfully because ensurepip is not available."
    server.script("bare", f"#!/bin/sh\necho {says}\nexit 1\n")
    pretend(server, f"import sys; sys.executable = '{server.programs / 'bare'}'")
    assert "sudo apt install python3-venv" in refused(SshRunner(server.target(python="")), make_folder())


def test_pip_cannot_install(server, make_folder):
    server.script(
        "bare",
        "#!/bin/sh\n"
        'mkdir -p "$3/bin"\n'  # -m venv FOLDER
        'printf "#!/bin/sh\\necho ERROR: No matching distribution found for onnxruntime >&2; exit 1\\n"'
        ' >"$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n',
    )
    pretend(server, f"import sys; sys.executable = '{server.programs / 'bare'}'")
    message = refused(SshRunner(server.target(python="")), make_folder())
    assert "pip cannot install numpy, onnxruntime, pillow" in message
    assert "No matching distribution found for onnxruntime" in message
    assert not list((store(server) / "environments").glob("*/complete"))


def test_a_python_without_the_packages(server, make_folder):
    message = refused(SshRunner(server.target()), make_folder("import no_such_package"))
    assert "lacks a package there" in message and "no_such_package" in message


@pytest.fixture
def small_disk(tmp_path):
    """Mounted where the sessions' cache will be; needs root."""
    cache = tmp_path / "cache"
    cache.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", cache]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root and a system that lets it mount")
    yield cache
    subprocess.run(["umount", "--lazy", cache], check=True)


def test_a_full_disk(small_disk, server, make_folder):
    runner, folder = SshRunner(server.target()), make_folder(a=os.urandom(1 << 20))
    assert "the disk is full there" in refused(runner, folder)
    assert not list((store(server) / "files").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert runner.measure(folder, ["head"])["head"].p50_ms == 1.0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL there; out of memory?"),
        ("import os; os.kill(os.getpid(), 15)", "ended by SIGTERM there; try again"),
        ("import sys; sys.exit('error: no such model')", "measuring failed there: error: no such model"),
        ("print('hello')", "the measurement is not readable"),
        ("", "the measurement is not readable"),
    ],
)
def test_measurements_that_come_to_nothing(server, make_folder, script, message):
    assert message in refused(SshRunner(server.target()), make_folder(script))


def test_a_measurement_that_takes_too_long(server, make_folder):
    runner = SshRunner(server.target(), measure_s=0.5)
    assert "measuring took over 0.5 s" in refused(runner, make_folder(SLEEPS))
    wait_for(lambda: not is_running(started(server)))


def test_no_answer_in_time(server):
    server.script("python3", "#!/bin/sh\nexec sleep 600\n")
    runner = SshRunner(server.target(python=""))
    with pytest.raises(MeasurementError, match="no answer within 2 s"):
        runner.run_far("describe", timeout_s=2)
    wait_for(lambda: not server.sessions())


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo hello", "what came back is no answer (exit code 0, 'hello')"),
        ("echo this account is closed >&2; exit 1", "(exit code 1, 'this account is closed')"),
        ("echo; echo splitsearch-answer 100; echo '{'", "the connection ended before the answer came"),
    ],
)
def test_something_else_answers(server, script, message):
    server.script("python3", f"#!/bin/sh\n{script}\n")
    assert message in refused(SshRunner(server.target(python="")))


def test_mistakes_of_the_far_side_are_told(server):
    with pytest.raises(MeasurementError, match="unexpectedly KeyError: 'files'"):
        SshRunner(server.target()).run_far("look")


def test_a_file_that_changes_while_it_is_sent(server, make_folder, monkeypatch):
    monkeypatch.setattr(ssh, "contents", lambda path: [b"x" * path.stat().st_size])
    assert "arrived changed" in refused(SshRunner(server.target()), make_folder())
    monkeypatch.setattr(ssh, "contents", lambda path: [b"x"])
    monkeypatch.setattr(ssh, "_feed", functools.partial(closed_afterwards, ssh._feed))
    assert "the files ended early" in refused(SshRunner(server.target()), make_folder())
    assert not list((store(server) / "files").iterdir())


def closed_afterwards(feed, pipe, data, ended):
    """Feed, and close the input as if the caller had ended."""
    ended.set()
    feed(pipe, data, ended)


# Targets


def test_targets_from_urls():
    target = SshTarget.from_url("ssh://pi@Camera-3.local:2222")
    assert target == SshTarget(host="Camera-3.local", user="pi", port=2222)
    assert target.label == "ssh://pi@Camera-3.local:2222" and target.by_hand() == "ssh -p 2222 pi@Camera-3.local"
    assert SshTarget.from_url("ssh://pi/") == SshTarget(host="pi")
    for url in ("ssh://camera", "ssh://[fe80::1]:22", "ssh://a%40b@camera"):
        assert SshTarget.from_url(url).label == url
    assert replace(target, user=None, port=None).label == "ssh://Camera-3.local"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ssh://pi:raspberry@camera", r"'ssh://pi:\*\*\*@camera' given; a password cannot be given"),
        ("ssh://camera:0", "a port is a number from 1 to 65535"),
        ("ssh://camera:65536", "a port is a number"),
        ("ssh://camera:ssh", "a port is a number"),
        ("ssh://camera:", "a port is a number"),
        ("ssh://", "target: 'ssh://' given; ssh://host"),
        ("ssh://@camera", "ssh://user@host"),
        ("ssh://pi@:22", "is needed"),
        ("ssh://camera/home/pi", "is needed"),
        ("ssh://camera?x=1", "is needed"),
        ("ssh://camera#x", "is needed"),
        ("ssh://fe80::1", "an IPv6 address stands in brackets"),
        ("ssh://-oProxyCommand=sh", "is needed"),
        ("ssh://-l@camera", "is needed"),
        ("ssh://a b", "is needed"),
        ("ssh://%0a@camera", "is needed"),
        ("http://camera", "is needed"),
        ("camera", "is needed"),
    ],
)
def test_urls_that_cannot_be(url, message):
    with pytest.raises(SpecError, match=message):
        SshTarget.from_url(url)


def test_a_python_in_the_home_folder(server):
    python = server.home / "my own" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert SshRunner(server.target(python="~/my own/python")).machine()["python"]


def test_keys_and_known_hosts_may_lie_anywhere(server, tmp_path):
    odd = tmp_path / "50% of all"
    odd.mkdir()
    for path in (server.key, server.known_hosts):
        path.rename(odd / path.name)
    target = server.target(key=odd / server.key.name, known_hosts=odd / server.known_hosts.name)
    assert SshRunner(target).machine()["python"]


def test_the_far_side_needs_only_the_standard_library_of_python_3_9():
    tree = ast.parse(Path(remote_agent.__file__).read_text(), feature_version=(3, 9))
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imports | modules} <= {"__future__", *sys.stdlib_module_names}


def test_no_session_without_its_own_path(server):
    """That the tests' sessions see neither this user's home nor its cache."""
    command = [*server.target().command()[:-1], "echo $HOME $XDG_CACHE_HOME $PATH"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S).stdout
    assert said.split() == [str(server.home), str(server.cache), f"{server.programs}:{SYSTEM_PATH}"]
