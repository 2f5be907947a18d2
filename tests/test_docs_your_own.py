"""The studies of docs/your-own.md, as they stand there, on tiny pictures and with short trainings."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from loopback_sshd import loopback_sshd
from PIL import Image

from search.cli import run_command

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"```\w+\n# (\S+)\n(.*?)```", re.DOTALL)
_SHORT = {"images": 64, "epochs": 1, "reconstruction_steps": 5, "head_steps": 5}


def blocks():
    return dict(_BLOCK.findall((ROOT / "docs" / "your-own.md").read_text()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files of the page, their studies shortened, at one point each."""
    monkeypatch.chdir(tmp_path)
    for name, text in blocks().items():
        if name.endswith(".yaml"):
            study = yaml.safe_load(text)
            study["finetune"] = _SHORT
            study["baseline"] = {"epochs": 1}
            study["search"] = {"trials": 1}
            study["space"]["partition"] = "blocks.3.0" if name == "birds.yaml" else "3"
            study["space"]["ae_ratio"] = study["space"]["ae_ratio"][:1]
            text = yaml.safe_dump(study)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_page_has_three_studies():
    assert set(blocks()) == {"birds.yaml", "mine.py", "mine.yaml", "camera.yaml"}


@pytest.mark.architectures
def test_a_timm_model_on_a_folder_of_pictures(folder, capsys):
    pytest.importorskip("timm")
    generator = np.random.default_rng(0)
    for role, count in (("train", 8), ("val", 8), ("test", 4)):
        for label, level in (("dark", 60), ("light", 190)):
            place = folder / "pictures" / role / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(level - 50, level + 50, (64, 64, 3))
                Image.fromarray(pixels.astype("uint8")).save(place / f"{number}.png")
    for words in (["check"], ["run"], ["report"], ["front"]):
        assert run_command([*words, "birds.yaml"]) == 0, capsys.readouterr().err
    assert (folder / "runs" / "birds" / "report.html").exists()


@pytest.mark.architectures
def test_a_network_and_data_of_ones_own(folder, capsys):
    assert run_command(["run", "mine.yaml"]) == 0, capsys.readouterr().err
    assert run_command(["front", "mine.yaml"]) == 0
    assert "server-only, raw" in capsys.readouterr().out


@pytest.mark.architectures
def test_a_device_over_ssh(folder, tmp_path_factory, capsys):
    study = yaml.safe_load((folder / "camera.yaml").read_text())
    with loopback_sshd(tmp_path_factory.mktemp("sshd")) as server:
        target = server.target()
        study["device"] |= {
            "name": f"ssh://{target.user}@{target.host}:{target.port}",
            "threads": 1,
            "key": str(target.key),
            "known_hosts": str(target.known_hosts),
            "python": target.python,
        }
        (folder / "camera.yaml").write_text(yaml.safe_dump(study))
        assert run_command(["run", "camera.yaml"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run_command(["front", "camera.yaml", "--json"]) == 0
    assert '"device": "measured"' in capsys.readouterr().out
