"""Images and timing on the edge."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from evaluators.edge import circumstances, measure, picture, picture_codecs

FORMAT = picture.PictureFormat(8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def plain(size, **more):
    return picture.PictureFormat(size, (0, 0, 0), (1, 1, 1), **more)


def test_input_is_normalised_rgb():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    tensor = picture.to_input(pixels, FORMAT)
    assert tensor.shape == (1, 3, 8, 8) and tensor.dtype == np.float32
    assert tensor[0, 2, 5, 6] == pytest.approx((pixels[5, 6, 2] / 255 - 0.3) / 0.1, abs=1e-5)


def test_greyscale_becomes_three_equal_channels_and_small_pictures_grow():
    tensor = picture.to_input(np.full((4, 4), 255, np.uint8), picture.PictureFormat(8, (0, 0, 0), (1, 1, 1)))
    assert tensor.shape == (1, 3, 8, 8) and np.allclose(tensor, 1)


def test_open_crops_the_middle_and_scales_down(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = picture.open_picture(str(tmp_path / "wide.png"), plain(8))
    assert pixels.shape == (8, 8, 3) and pixels.min() == 255
    Image.fromarray(wide[:, :, 0]).save(tmp_path / "grey.png")
    assert picture.open_picture(str(tmp_path / "grey.png"), plain(64)).shape == (20, 20)


def pictures(shape, count=8):
    """Smooth colours with some noise on them, as photographs have."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, *shape[2:]), np.uint8))
        smooth = np.asarray(coarse.resize(shape[1::-1], Image.Resampling.BICUBIC)).astype(int)
        found.append(np.clip(smooth + random.integers(-8, 9, shape), 0, 255).astype(np.uint8))
    return found


@pytest.mark.parametrize("shape", [(48, 64, 3), (48, 64), (8, 8)], ids=["colour", "grey", "tiny grey"])
@pytest.mark.parametrize("name", picture_codecs.CODECS)
def test_a_picture_codec_gives_the_picture_back_the_better_the_more_bytes(name, shape):
    codec = picture_codecs.CODECS[name]
    if not codec.available:
        pytest.skip(codec.lacking)
    originals, sizes, errors = pictures(shape), [], []
    for quality in picture_codecs.QUALITIES:
        files = [codec.encode(pixels, quality) for pixels in originals]
        decoded = [codec.decode(data) for data in files]
        assert {Image.open(io.BytesIO(data)).format for data in files} == {codec.label.upper()}
        grey = len(shape) == 2 and name != "webp"  # which knows colour alone
        assert {pixels.shape for pixels in decoded} == {shape[:2] if grey else (*shape[:2], 3)}
        assert all(pixels.dtype == np.uint8 for pixels in decoded)
        wanted = [picture.to_rgb(pixels, shape[0]).astype(int) for pixels in originals]
        found = [picture.to_rgb(pixels, shape[0]) for pixels in decoded]
        errors.append(np.mean([np.abs(one - other).mean() for one, other in zip(wanted, found)]))
        sizes.append(np.mean([len(data) for data in files]))
    slack = 4 if min(shape[:2]) == 8 else 0  # bytes: libwebp spends two more on 8 pixels at quality 20 than at 30
    assert all(few <= more + slack for few, more in itertools.pairwise(sizes)) and sizes[0] < sizes[-1]
    assert errors[-1] < 4 and errors[-1] < errors[0]


def test_a_picture_coding_is_kept_in_manifests():
    coding = picture_codecs.PictureCoding(picture_codecs.CODECS["webp"], 50)
    assert picture_codecs.PictureCoding.from_dict(coding.to_dict()) == coding and coding.label == "WebP 50"
    with pytest.raises(ValueError, match="picture codec 'gif' given; jpeg, webp, avif are known here"):
        picture_codecs.PictureCoding.from_dict({"name": "gif", "quality": 1})


def test_a_codec_that_pillow_lacks_is_not_available(monkeypatch):
    codec = dataclasses.replace(picture_codecs.CODECS["avif"], name="none", label="NoSuchFormat")
    monkeypatch.setitem(picture_codecs.CODECS, "none", codec)
    assert not codec.available and "has no NoSuchFormat; its own builds have it from 11.3 on" in codec.lacking


class Clock:
    """Time that only moves when a stage says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_steady_stage_needs_few_runs():
    clock = Clock()

    def stage():
        clock.now += 0.010

    timed = measure.time_stages({"head": stage}, budget_s=0.9, clock=clock)["head"]
    assert timed["p50_ms"] == pytest.approx(10) and timed["p90_ms"] == pytest.approx(10)
    assert timed["spread"] == pytest.approx(0, abs=1e-9) and timed["interval_ms"] == pytest.approx([10, 10])
    assert timed["repeats"] == measure.LEAST_REPEATS


def test_an_unsteady_stage_runs_until_its_median_is_known_or_the_budget_ends():
    def run(budget_s):
        clock, random = Clock(), np.random.default_rng(0)

        def stage():
            clock.now += random.uniform(0.006, 0.014)

        return measure.time_stages({"head": stage}, budget_s=budget_s, clock=clock)["head"], clock

    short, clock = run(1.0)
    assert 1.0 <= clock.now - 0.5 <= 1.1  # half a second of warm-up
    low, high = short["interval_ms"]
    assert low < short["p50_ms"] < high and high - low > 0.04 * short["p50_ms"]
    long, clock = run(1000.0)
    assert clock.now < 500 and np.subtract(*long["interval_ms"][::-1]) <= 0.04 * long["p50_ms"]
    assert long["p50_ms"] == pytest.approx(10, rel=0.03) and long["p90_ms"] == pytest.approx(13.2, rel=0.03)


def test_a_medians_interval_holds_it_19_times_of_20():
    random = np.random.default_rng(0)
    found = [measure.statistics(random.normal(10, 1, 40).tolist())["interval_ms"] for _ in range(1000)]
    assert 0.93 <= np.mean([low <= 10 <= high for low, high in found]) <= 0.99


@pytest.mark.parametrize(
    ("word", "now", "since_boot"),
    [
        (0x0, [], []),
        (0x50005, ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        (0x80000, [], ["soft temperature limit"]),
    ],
)
def test_a_raspberry_pi_says_what_slows_it_down(tmp_path, monkeypatch, word, now, since_boot):
    tool = tmp_path / "vcgencmd"
    tool.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled={word:#x}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = circumstances.state()
    assert found["throttling"] == now and found["throttling_since_boot"] == since_boot


def test_throttling_counts_only_if_it_happened_in_between():
    calm = {"throttling": [], "throttling_since_boot": ["throttled"], "throttle_count": 3.0}
    assert circumstances.throttling_between(calm, calm) == []
    for change, found in (
        ({"throttling": ["under-voltage"]}, ["under-voltage"]),
        ({"throttling_since_boot": ["throttled", "frequency capped"]}, ["frequency capped"]),
        ({"throttle_count": 4.0}, ["throttled"]),
    ):
        assert circumstances.throttling_between(calm, {**calm, **change}) == found


def test_stages_run_in_turn_and_no_less_than_ten_times():
    clock, order = Clock(), []

    def make(name, seconds):
        def stage():
            order.append(name)
            clock.now += seconds

        return stage

    timed = measure.time_stages({"a": make("a", 1.0), "b": make("b", 2.0)}, budget_s=0.3, clock=clock)
    assert order == ["a", "b"] * (1 + measure.LEAST_REPEATS)
    assert timed["a"]["p50_ms"] == pytest.approx(1000) and timed["b"]["repeats"] == measure.LEAST_REPEATS
