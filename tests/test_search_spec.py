"""Study files: what is accepted, and one precise message for everything else."""

import dataclasses
import datetime
from pathlib import Path

import pytest

from evaluators.edge.coders import CODERS
from search.spec import find_study, load_spec
from spaces.errors import SpecError

DATE = datetime.date(2024, 1, 1)


def change(data, key, value):
    *path, last = key.split(".")
    for part in path:
        data = data.setdefault(part, {})
    if value is ...:
        del data[last]
    else:
        data[last] = value


def test_a_good_file(write_study, study_dict):
    spec = load_spec(write_study(study_dict))
    assert spec.name == "demo" and spec.device.name == "local" and spec.link.rate_mb_per_s == 1.0
    assert spec.constraints.max_accuracy_drop_pp == 9.0 and spec.search.trials == 20
    assert spec.finetune.images == 4000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format: 2 given; 1 is the format known here"),
        ("format", ..., "format: nothing given"),
        ("name", "a/b", "name: 'a/b' given"),
        ("name", 3, "name: 3 given; a text"),
        ("modle", {}, "modle: {} given; no such key; did you mean 'model'"),
        ("model.weight", "x", "model.weight: 'x' given; no such key; did you mean 'weights'"),
        ("model.num_classes", "ten", "model.num_classes: 'ten' given; a whole number from 2"),
        pytest.param("link.rate_mb_per_s", 10**400, "0 given; a number above 0 is needed", id="long rate"),
        pytest.param("constraints.max_latency_ms", 10**400, "0 given; a number from 0 is needed", id="long limit"),
        ("model.num_classes", True, "model.num_classes: True given"),
        ("model", "resnet", "model: 'resnet' given; a mapping"),
        ("data.image_size", 0, "data.image_size: 0 given; a whole number from 8"),
        ("data.name", ..., "data.name: nothing given; this key is needed"),
        ("link", {"rate": 2.0}, "link.rate_mb_per_s: nothing given; this key is needed; 'rate' stands there"),
        ("data", {"nam": "digits"}, "data.name: nothing given; this key is needed; 'nam' stands there"),
        ("data", {"root": "x"}, "data.name: nothing given; this key is needed$"),
        ("link", ..., "link: nothing given"),
        pytest.param("device", "x" * 300, "given; no such profile; known: ", id="long profile"),
        ("link.name", 5, "link.name: 5 given; a text is needed"),
        ("link.rate_mb_per_s", 0, "link.rate_mb_per_s: 0 given; a number above 0"),
        ("device", "raspberry", "device: 'raspberry' given; no such profile; did you mean 'raspberry_pi_4b'"),
        ("space.bits", 0, "space.bits: 0 given; whole numbers from 1 to 8"),
        ("space.ae_ratio", 1.5, "space.ae_ratio: 1.5 given; numbers above 0 and up to 1"),
        ("space.ae_ratio", [0.5, 1.5], "space.ae_ratio: 1.5 given"),
        ("space.tcl", {"low": 1}, "space.tcl.high: nothing given"),
        ("space.tcl", -1, "space.tcl: -1 given"),
        ("space.partition", 3, "space.partition: 3 given"),
        ("space.partition", [], r"space.partition: \[\] given"),
        ("space.depth", 3, "space.depth: 3 given; no such key"),
        ("constraints.max_drop", 1, "constraints.max_drop: 1 given; no such key; known: max_accuracy_drop_pp"),
        ("constraints.max_latency_ms", "1s", "constraints.max_latency_ms: '1s' given; a number from 0"),
        ("finetune.scope", "head", "finetune.scope: 'head' given; bottleneck, tail and all"),
        ("finetune.quantization", "qat", "finetune.quantization: 'qat' given; post-training and straight-through"),
        ("finetune.ramp", "step", "finetune.ramp: 'step' given; cosine, linear and constant are allowed"),
        ("finetune.images", 0, "finetune.images: 0 given"),
        ("finetune.learning_rate", 0, "finetune.learning_rate: 0 given; a number above 0"),
        ("baseline.optimizer", "adam", "baseline.optimizer: 'adam' given; adamw and sgd are allowed"),
        ("baseline.learning_rate", 0, "baseline.learning_rate: 0 given; a number above 0"),
        ("search.sampler", "tpa", "search.sampler: 'tpa' given; did you mean 'tpe'"),
        ("search.trials", 0, "search.trials: 0 given"),
        ("search.seed", -1, "search.seed: -1 given; a whole number from 0"),
        ("search.seed", 2**32 - 1, "search.seed: 4294967295 given; a whole number from 0 to 2147483647 is needed"),
        ("model.options", {"a": {1: 2}}, r"model\.options\.a: 1 given; names of options are texts"),
        ("model.options", {"a": b"xy"}, r"model\.options\.a: b'xy' given; numbers, texts"),
    ],
)
def test_what_cannot_be_right_is_named(write_study, study_dict, key, value, message):
    change(study_dict, key, value)
    file = write_study(study_dict)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(file)
    assert str(caught.value).startswith(file)


def test_files_that_are_no_studies(write_study, tmp_path):
    for text in ("[1, 2]", "just words", "a: [1", ""):
        with pytest.raises(SpecError, match=r"demo\.yaml"):
            load_spec(write_study(text))
    with pytest.raises(SpecError, match="no such file"):
        load_spec(str(tmp_path / "absent.yaml"))
    with pytest.raises(SpecError, match="did you mean 'quickstart'"):
        load_spec("quickstar")


SHIPPED = [path.stem for path in sorted((Path(__file__).parent.parent / "studies").glob("*.yaml"))]


@pytest.mark.parametrize("name", [*SHIPPED, *(name.replace("_", "-") for name in SHIPPED)])
def test_shipped_studies_load_by_name(name):
    spec = load_spec(name)
    assert spec.file == find_study(name) and spec.name.replace("-", "_") == spec.file.stem


def test_code_of_ones_own_is_found_from_the_study(write_study, study_dict, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("")
    change(study_dict, "model.name", "python:mine.py:net")
    change(study_dict, "model.options", {"depth": 3, "since": DATE})
    change(study_dict, "data", {"name": "python:package.module:data", "image_size": 32, "download": True})
    file = write_study(study_dict)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = load_spec(file)
    assert spec.model.name == f"python:{tmp_path / 'mine.py'}:net"
    assert spec.model.options == {"depth": 3, "since": "2024-01-01"}  # a date is a text
    assert spec.data.name == "python:package.module:data" and spec.data.download
    change(study_dict, "model.weights", "pretrained")
    assert load_spec(write_study(study_dict)).model.weights == "pretrained"


def test_a_coder_whose_library_is_missing_is_refused(write_study, study_dict, monkeypatch):
    monkeypatch.setitem(CODERS, "brotli", dataclasses.replace(CODERS["brotli"], available=False))
    study_dict["space"] = {"coder": ["lzma", "brotli"]}
    with pytest.raises(SpecError, match=r"space.coder: 'brotli' given; it needs the package brotli: pip install"):
        load_spec(write_study(study_dict))


def test_digest_follows_everything_but_the_number_of_trials(write_study, study_dict):
    digest = load_spec(write_study(study_dict)).digest
    change(study_dict, "search.trials", 99)
    assert load_spec(write_study(study_dict)).digest == digest
    change(study_dict, "link.rtt_ms", 1)
    assert load_spec(write_study(study_dict)).digest != digest


def test_paths_are_found_from_the_current_folder_and_from_the_study(write_study, study_dict, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    change(study_dict, "data.root", "images")
    file = write_study(study_dict)
    assert load_spec(file).data.root == tmp_path / "images"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_spec(file).data.root == tmp_path / "images"


def test_a_key_s_old_name_is_read_and_the_new_one_said(write_study, study_dict, caplog):
    change(study_dict, "finetune.warm_start", 7)
    with caplog.at_level("WARNING", "splitsearch"):
        spec = load_spec(write_study(study_dict))
    assert spec.finetune.reconstruction_steps == 7
    assert "warm_start" in caplog.text and "reconstruction_steps" in caplog.text
    change(study_dict, "finetune.reconstruction_steps", 8)
    with pytest.raises(SpecError, match="warm_start"):
        load_spec(write_study(study_dict))


def test_a_study_file_that_is_not_there_names_one_that_is(write_study, study_dict):
    write_study(study_dict, "fruit.yaml")
    with pytest.raises(SpecError, match=r"STUDY: 'fruit\.yml' given; no such file; did you mean 'fruit\.yaml'\?$"):
        find_study("fruit.yml")
    with pytest.raises(SpecError, match=r"no such file$"):
        find_study("absent/birds.yaml")
    with pytest.raises(
        SpecError, match=r"STUDY: 'fruit' given; a path to a \.yaml file .*; did you mean 'fruit\.yaml'\?$"
    ):
        find_study("fruit")
    Path("folder.yaml").mkdir()
    with pytest.raises(SpecError, match=r"'folder\.yaml' given; no such file(?!.*'folder)"):
        find_study("folder.yaml")


def test_profiles_are_looked_up_as_every_path_is(write_study, study_dict, tmp_path, monkeypatch):
    shipped = Path(__file__).parents[1] / "hardware_profiles"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "board.yaml").write_text((shipped / "devices" / "raspberry_pi_4b.yaml").read_text())
    (tmp_path / "here" / "radio.yaml").write_text((shipped / "links" / "lte.yaml").read_text())
    (tmp_path / "here" / "known").touch()
    study_dict |= {"device": "board.yaml", "server": {"name": "board.yaml", "threads": 2}, "link": "radio.yaml"}
    study = write_study(study_dict, "here/demo.yaml")
    spec = load_spec(study)
    assert (spec.device.name, spec.server.threads, spec.link.name) == ("raspberry_pi_4b", 2, "lte")
    monkeypatch.chdir(tmp_path / "here")
    assert load_spec(study).digest == spec.digest
    monkeypatch.chdir(tmp_path)
    study_dict["device"] = {"name": "ssh://pi@camera", "known_hosts": "known", "key": "absent"}
    how = load_spec(write_study(study_dict, "here/demo.yaml")).device.how
    assert (how.known_hosts, how.key) == (tmp_path / "here" / "known", Path("absent"))
    study_dict["device"] = "absent.yaml"
    with pytest.raises(SpecError, match=r"device: 'absent\.yaml' given; no such profile"):
        load_spec(write_study(study_dict, "here/demo.yaml"))
