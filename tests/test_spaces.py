"""Configurations, partition points and search spaces: bounds, round trips, what is searched."""

import math
import random

import optuna
import pytest

from spaces.config import SplitConfig
from spaces.errors import SpecError, nearest
from spaces.partition import PartitionPoint, choose, warn_of_encoders
from spaces.space import SearchSpace, TclRange
from spaces.wording import counted
from spaces.yaml_text import read_yaml

GOOD = {"partition": "stem", "ae_ratio": 0.25, "bits": 2, "tcl": 10.0, "lzma": True}


NOT_A_NUMBER, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("bits", [0, 9, 2.0, True]),
        ("ae_ratio", [0, 1.5, "1", NOT_A_NUMBER]),
        ("tcl", [-1, NOT_A_NUMBER, INFINITE]),
        ("lzma", [1, "yes"]),
    ],
)
def test_config_refuses(key, bad):
    for value in bad:
        with pytest.raises(SpecError, match=key):
            SplitConfig.from_dict({**GOOD, key: value})


def test_config_round_trip():
    config = SplitConfig.from_dict(GOOD)
    assert SplitConfig.from_dict(config.to_dict()) == config


def test_another_coder_takes_the_place_of_lzma():
    config = SplitConfig.from_dict({**GOOD, "lzma": False, "coder": "context"})
    assert config.lossless == "context" and config.label.endswith("context")
    assert SplitConfig.from_dict(config.to_dict()) == config
    assert "coder" not in SplitConfig.from_dict(GOOD).to_dict() and SplitConfig.from_dict(GOOD).lossless == "lzma"
    assert SplitConfig.from_dict({**GOOD, "lzma": False}).lossless == "packed"
    with pytest.raises(SpecError, match="one lossless coder at a time"):
        SplitConfig.from_dict({**GOOD, "coder": "zstd"})
    with pytest.raises(SpecError, match="did you mean 'zstd'"):
        SplitConfig.from_dict({**GOOD, "lzma": False, "coder": "zst"})


def test_stride_is_named_only_where_there_is_one():
    config = SplitConfig.from_dict({**GOOD, "stride": 2})
    assert SplitConfig.from_dict(config.to_dict()) == config and "stride 2" in config.label
    plain = SplitConfig.from_dict(GOOD)
    assert config.training_key != plain.training_key
    assert "stride" not in plain.to_dict()
    with pytest.raises(SpecError, match="stride: 0 given; whole numbers from 1 to 8"):
        SplitConfig.from_dict({**GOOD, "stride": 0})
    space = SearchSpace.from_dict({**SPACE, "stride": [1, 2]}, ["stem"])
    grid = list(space.grid())
    assert space.size == len(set(grid)) == 16 and {each.stride for each in grid} == {1, 2}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.suggest(study.ask()).stride for _ in range(20)} == {1, 2}


def test_heads_and_rates_are_named_only_where_they_are_not_the_usual():
    config = SplitConfig.from_dict({**GOOD, "head": "distilled", "rate": 0.5})
    assert SplitConfig.from_dict(config.to_dict()) == config
    assert "distilled head" in config.label
    assert "rate 0.5" in config.label
    assert not {"head", "rate"} & SplitConfig.from_dict(GOOD).to_dict().keys()
    with pytest.raises(SpecError, match="head: 'distiled' given; did you mean 'distilled'"):
        SplitConfig.from_dict({**GOOD, "head": "distiled"})
    with pytest.raises(SpecError, match="rate: -1 given; numbers from 0"):
        SplitConfig.from_dict({**GOOD, "rate": -1})


def test_a_space_has_both_heads_and_no_rate_unless_it_says_so():
    space = SearchSpace.from_dict({key: value for key, value in SPACE.items() if key != "head"}, ["stem"])
    assert space.heads == ("own", "distilled")
    assert space.rates == (0.0,)
    space = SearchSpace.from_dict({**SPACE, "head": ["own", "distilled-wide"], "rate": [0.0, 0.1]}, ["stem"])
    assert {(each.head, each.rate) for each in space.grid()} == {
        (head, rate) for head in ("own", "distilled-wide") for rate in (0.0, 0.1)
    }


def test_training_key_ignores_the_coder_and_nothing_else():
    config = SplitConfig.from_dict(GOOD)
    assert SplitConfig.from_dict({**GOOD, "lzma": False, "coder": "zstd"}).training_key == config.training_key
    assert SplitConfig.from_dict({**GOOD, "lzma": False}).training_key == config.training_key
    for key, other in {
        "partition": "layer1",
        "ae_ratio": 0.5,
        "bits": 3,
        "tcl": 10.000001,
        "head": "distilled",
        "rate": 0.1,
    }.items():
        assert SplitConfig.from_dict({**GOOD, key: other}).training_key != config.training_key


def points(**macs_and_elements):
    ends = {"input": (0, 10), **macs_and_elements, "output": (100, 1)}
    return [
        PartitionPoint(name=name, shapes=((elements, 1, 1),), head_macs=macs, tail_macs=100 - macs)
        for name, (macs, elements) in ends.items()
    ]


def point(name, macs, *shapes, axes=()):
    return PartitionPoint(name=name, shapes=shapes, head_macs=macs, tail_macs=100 - macs, channel_axes=axes)


def kept(choices):
    return [choice.point.name for choice in choices if choice.kept]


def test_auto_drops_what_costs_no_less_and_sends_more():
    found = choose(points(a=(10, 64), b=(10, 16), c=(20, 32), d=(30, 16), e=(40, 8)), "auto")
    assert kept(found) == ["b", "d", "e"]
    assert found[1].why == "b costs the device no more and sends less at every AE ratio and stride"
    assert all(choice.why for choice in found)


# Shapes and millions of operations of ResNet-50 at 64 pixels.
RESNET50 = [
    point("relu", 9, (64, 32, 32)),
    point("stem", 9, (64, 16, 16)),
    point("layer1.0", 28, (256, 16, 16)),
    point("layer1.2", 64, (256, 16, 16)),
    point("layer2.0", 95, (512, 8, 8)),
    point("layer2.3", 148, (512, 8, 8)),
    point("layer3.5", 267, (1024, 4, 4)),
    point("layer4.2", 334, (2048, 2, 2)),
    point("avgpool", 334, (2048, 1, 1)),
]


def test_auto_keeps_smaller_maps_of_more_channels():
    """Which of them sends less at equal accuracy only training tells; layer2.3 is the best cut known at 64 pixels."""
    assert kept(choose(RESNET50, "auto")) == ["stem", "layer2.0", "layer2.3", "layer3.5", "avgpool"]


@pytest.mark.parametrize("ae_ratio", [0.0625, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_auto_drops_sends_no_less_at_any_squeeze(ae_ratio, stride):
    def sent(point):
        pairs = zip(point.channels, point.maps)
        return sum(max(1, round(ae_ratio * c)) * math.prod(math.ceil(side / stride) for side in m) for c, m in pairs)

    rng = random.Random(0)
    for _ in range(300):
        cuts = [point(str(i), rng.randint(1, 4), *((rng.choice([4, 8, 16]), side, rng.choice([side, 8]))
                for side in rng.choices([2, 4, 8], k=rng.randint(1, 3)))) for i in range(4)]  # fmt: skip
        choices = choose(cuts, "auto")
        assert kept(choices)
        for choice in choices:
            rival = next((each for each in cuts if each.name == choice.why.split()[0]), None)
            if not choice.kept:
                assert rival.head_macs <= choice.point.head_macs and sent(rival) <= sent(choice.point)
                assert rival.elements < choice.point.elements


def test_auto_sets_tensor_against_tensor():
    one, two = (4, 8, 8), (8, 4, 4)
    assert kept(choose([point("a", 1, one), point("b", 2, one, two)], "auto")) == ["a"]
    assert kept(choose([point("a", 1, one, two), point("b", 2, (8, 8, 8), two)], "auto")) == ["a"]
    assert kept(choose([point("a", 1, two, one), point("b", 2, (4, 8, 8), (16, 4, 4))], "auto")) == ["a"]
    assert kept(choose([point("a", 1, one, two), point("b", 2, (8, 16, 16))], "auto")) == ["a", "b"]
    assert kept(choose([point("a", 1, (4, 4, 4), two), point("b", 2, one, (16, 2, 2))], "auto")) == ["a", "b"]


def test_auto_compares_no_tokens_with_places():
    """ViT's class token makes its tokens one more than the places of its patches."""
    patches, tokens = point("patches", 1, (8, 4, 4)), point("tokens", 2, (17, 8), axes=(-1,))
    assert kept(choose([patches, tokens, point("pooled", 3, (8,))], "auto")) == ["patches", "tokens", "pooled"]
    more = point("more", 2, (34, 8), axes=(-1,))
    assert kept(choose([tokens, more], "auto")) == ["tokens"]


def test_named_points():
    all_points = points(stem=(1, 4), **{"layer1.0": (2, 4), "layer1.1": (3, 4)})
    assert kept(choose(all_points, "all")) == ["stem", "layer1.0", "layer1.1"]
    assert kept(choose(all_points, "layer1.*")) == ["layer1.0", "layer1.1"]
    assert kept(choose(all_points, ["stem", "layer1.1"])) == ["stem", "layer1.1"]
    with pytest.raises(SpecError, match=r"did you mean 'layer1\.0'"):
        choose(all_points, "layer1.00")


def test_encoders_that_cost_much_are_pointed_out():
    # 64 channels at 16x16: 64 * 64 * 256 operations at AE 1.
    point = PartitionPoint(name="stem", shapes=((64, 16, 16),), head_macs=9_600_000, tail_macs=1)
    assert point.encoder_macs(1.0) == 64 * 64 * 256 and point.encoder_macs(0.25) == 16 * 64 * 256
    tokens = PartitionPoint(name="a", shapes=((50, 8), (4, 5)), head_macs=1, tail_macs=1, channel_axes=(-1, 1))
    assert tokens.channels == [8, 4] and tokens.encoder_macs(0.5) == 50 * 8 * 4 + 4 * 5 * 2
    (warned,) = warn_of_encoders(choose([point], "all"), [0.25, 1.0])
    assert warned.warning == "at AE 1 its encoder takes 11% of the head's MACs"
    assert not warn_of_encoders(choose([point], "all"), [0.25])[0].warning


SPACE = {"partition": "auto", "ae_ratio": [0.25, 0.5], "bits": [1, 2], "tcl": [0, 10], "lzma": False, "head": "own"}


def test_space_size_and_grid_agree():
    space = SearchSpace.from_dict(SPACE, ["stem", "deep"])
    grid = list(space.grid())
    assert space.size == len(grid) == len(set(grid)) == 16


def test_a_space_of_coders():
    data = {key: value for key, value in SPACE.items() if key != "lzma"} | {"coder": ["packed", "lzma", "context"]}
    space = SearchSpace.from_dict(data, ["stem"])
    grid = list(space.grid())
    assert space.size == len(grid) == len(set(grid)) == 24
    assert {config.lossless for config in grid} == {"packed", "lzma", "context"}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.suggest(study.ask()).lossless for _ in range(40)} == {"packed", "lzma", "context"}


def test_continuous_space_has_no_size():
    space = SearchSpace.from_dict({**SPACE, "tcl": {"low": 1.0, "high": 100.0}}, ["stem"])
    assert space.size is None
    with pytest.raises(ValueError, match="continuous"):
        list(space.grid())


def test_suggest_covers_the_space_and_nothing_else():
    space = SearchSpace.from_dict({**SPACE, "tcl": {"low": 1.0, "high": 100.0, "off": True}}, ["stem", "deep"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.suggest(study.ask()) for _ in range(60)]
    assert {config.partition for config in configs} == {"stem", "deep"}
    assert {config.bits for config in configs} == {1, 2}
    strengths = {config.tcl for config in configs}
    assert 0.0 in strengths and all(value == 0 or 1 <= value <= 100 for value in strengths)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"bits": [0]}, "bits"),
        ({"bits": []}, "bits"),
        ({"bits": [1, 1]}, "bits"),
        ({"ae_ratio": 1.5}, "ae_ratio"),
        ({"tcl": {"low": 1.0}}, "tcl.high"),
        ({"tcl": {"low": 5.0, "high": 1.0}}, "tcl"),
        ({"tcl": {"low": 0.0, "high": 1.0}}, "tcl"),
        ({"tcl": {"low": 1.0, "high": 2.0, "of": True}}, "tcl.of"),
        ({"lzma": "yes"}, "lzma"),
        ({"bitz": [1]}, "did you mean 'bits'"),
        ({"coder": ["zstd"]}, "give lzma or coder, not both"),
    ],
)
def test_space_refuses(change, key):
    with pytest.raises(SpecError, match=key):
        SearchSpace.from_dict({**SPACE, **change}, ["stem"])


@pytest.mark.parametrize(("coder", "message"), [(["zip"], "known: "), ([], "empty list"), (["zstd", "zstd"], "once")])
def test_space_refuses_coders(coder, message):
    with pytest.raises(SpecError, match=message):
        SearchSpace.from_dict({"coder": coder}, ["stem"])


def test_tcl_range_on_a_linear_scale_may_start_at_zero():
    assert TclRange(low=0.0, high=1.0, log=False).low == 0.0


def test_nearest_names_everything():
    assert nearest("resnet5", ["resnet50", "vgg"]) == "did you mean 'resnet50'? known: resnet50, vgg"


def test_yaml_reads_off_as_a_word_and_exponents_as_numbers(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("tcl: {off: true, low: 1e-3}\non: yes\nn: [1, -2, 0.5, 1.0]\n")
    assert read_yaml(file) == {"tcl": {"off": True, "low": 0.001}, "on": "yes", "n": [1, -2, 0.5, 1.0]}


@pytest.mark.parametrize("text", [b"a: 1\na: 2\n", b"a: [1\n", b"\xff\xfe\x00", b"a: !!python/object:os.system {}"])
def test_yaml_refuses(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_bytes(text)
    with pytest.raises(SpecError, match=r"a\.yaml"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("032", 32),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("~", None),
        ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}),
        ("[&one {a: 1}, *one]", [{"a": 1}, {"a": 1}]),
    ],
)
def test_yaml_is_of_version_1_2(tmp_path, text, value):
    file = tmp_path / "a.yaml"
    file.write_text(f"x: {text}\n")
    found = read_yaml(file)["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["a: &x [*x]", "{a: 1, a: 2}", "x: {<<: 3}", "[" * 3000])
def test_yaml_that_makes_no_sense_is_refused(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match="not YAML"):
        read_yaml(file)


def test_a_label_has_no_exponent():
    config = SplitConfig(partition="stem", ae_ratio=0.5, bits=1, tcl=999.96)
    assert config.label == "stem, AE 0.5, 1 bit, TCL 1000"


@pytest.mark.parametrize(("count", "said"), [(0, "0 trials"), (1, "1 trial"), (1250, "1,250 trials")])
def test_one_of_a_thing_is_no_plural(count, said):
    assert counted(count, "trials") == said
