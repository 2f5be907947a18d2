"""What keeps a bundle whole: damaged, changed and foreign halves are refused."""

import pytest
import tiny_bundle
from tiny_bundle import NOWHERE, edit_json, run_device

from evaluators.edge import halves, main, seal
from evaluators.edge.serving import server
from search.cli import run_command


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("sealed") / "bundle", whole=True)


def test_both_halves_of_a_bundle_have_one_fingerprint(bundle, tmp_path):
    device, server_half = halves.DeviceHalf(bundle / "device"), halves.ServerHalf(bundle / "server")
    assert device.sealed == server_half.sealed and device.sealed.name == "tiny"
    other = tiny_bundle.write(tmp_path / "other", seed=1)
    assert halves.ServerHalf(other / "server").wire.fingerprint == server_half.wire.fingerprint  # payloads look alike
    assert halves.ServerHalf(other / "server").sealed.fingerprint != server_half.sealed.fingerprint


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: flip(folder / "tail.onnx"), "tail.onnx.*SHA-256"),
        (lambda folder: flip(folder / "edge" / "wire.py"), "wire.py.*SHA-256"),
        (lambda folder: (folder / "decoder.onnx").unlink(), "decoder.onnx.*missing"),
        (lambda folder: (folder / "numpy.py").write_text("evil"), "numpy.py.*is not part of the bundle"),
        (lambda folder: (folder / "files.json").write_text("{"), "files.json.*damaged"),
        (lambda folder: edit_json(folder / "files.json", format=9), "format 9 given"),
        (lambda folder: edit_json(folder / "files.json", sha256=[]), "damaged"),
        (lambda folder: edit_json(folder / "files.json", name="other"), "does not fit the files"),
        (lambda folder: edit_json(folder / "files.json", sha256={"../../secret": "0"}), "leads out of the folder"),
        (lambda folder: edit_json(folder / "files.json", sha256={"/etc/passwd": "0"}), "leads out of the folder"),
        (lambda folder: linked(folder / "tail.onnx"), "leads out of the folder"),
    ],
)
def test_a_damaged_half_is_refused(tmp_path, damage, told, capsys):
    folder = tiny_bundle.write(tmp_path / "bundle") / "server"
    damage(folder)
    with pytest.raises(seal.SealError, match=told):
        halves.ServerHalf(folder)
    assert main.server(folder, ["serve", "--port", "0"]) == 1
    assert run_command(["serve", str(folder.parent), "--port", "0"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def linked(path):
    outside = path.parent.parent.parent / "elsewhere.onnx"
    path.rename(outside)
    path.symlink_to(outside)


def test_a_half_that_was_changed_and_sealed_anew_no_longer_fits_the_other(tmp_path):
    folder = tiny_bundle.write(tmp_path / "bundle")
    before = halves.DeviceHalf(folder / "device").sealed.fingerprint
    flip(folder / "server" / "tail.onnx")
    seal.write(folder, "tiny")
    assert seal.check(folder / "server", "server").fingerprint != before


def test_networks_that_do_not_open_are_told_before_anybody_asks(tmp_path, capsys):
    folder = tiny_bundle.write(tmp_path / "bundle", whole=True)
    for path in (folder / "server" / "tail.onnx", folder / "device" / "head.onnx"):
        path.write_bytes(b"junk")
    seal.write(folder, "tiny")
    with pytest.raises(ValueError, match=r"tail\.onnx: onnxruntime \S+ does not open it"):
        server.open_halves(folder / "server")
    told = run_device(folder, capsys, "infer", tiny_bundle.picture(tmp_path), *NOWHERE, code=1).err
    assert "head.onnx: onnxruntime" in told and "Traceback" not in told


def test_a_folder_that_is_only_measured_needs_no_seal(tmp_path):
    folder = tiny_bundle.write(tmp_path / "bundle") / "server"
    (folder / "files.json").unlink()
    half = halves.ServerHalf(folder)
    with pytest.raises(seal.SealError, match="no half of a bundle"):
        _ = half.sealed


@pytest.mark.parametrize("command", ["serve", "infer", "verify"])
def test_a_folder_that_is_no_bundle_is_told(tmp_path, command, capsys):
    more = [str(tiny_bundle.picture(tmp_path))] if command == "infer" else []
    assert run_command([command, str(tmp_path), *more]) == 1
    assert "'splitsearch export' makes one" in capsys.readouterr().err
    folder = tiny_bundle.write(tmp_path / "bundle")
    (folder / "bundle.json").write_text('{"format": 99}')
    assert run_command([command, str(folder), *more]) == 1
    assert "format 99 given" in capsys.readouterr().err
