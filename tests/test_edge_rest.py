"""Images and timing on the edge."""

import dataclasses
import io
import itertools
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from evaluators.edge import circumstances, main, measure, picture, picture_codecs
from evaluators.edge.boxes import Box

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


# -- any picture file --------------------------------------------------------------------------------------------------

# How a picture is stored whose EXIF orientation is the key (EXIF 2.3, tag 274: where row 0 and column 0 belong).
STORED = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[::-1].swapaxes(0, 1),
}


def scene():
    """Four fields of one colour each, 32 high and 64 wide: no turn or mirror image looks like it."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32], pixels[:16, 32:], pixels[16:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return pixels


def oriented(pixels, orientation, kind="JPEG", **how):
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(file, kind, exif=exif, **how)
    return file.getvalue()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("MPO", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_picture_is_turned_as_its_exif_says(orientation, kind, how):
    file = oriented(scene(), orientation, kind, **how)
    assert picture.upright_size(io.BytesIO(file)) == (64, 32)
    pixels = picture.open_picture(io.BytesIO(file), plain(64, letterbox=True))
    assert pixels.shape == (32, 64, 3) and np.abs(pixels.astype(int) - scene()).mean() < 3
    again = picture.upright(picture.open_upright(io.BytesIO(file)))
    assert np.array_equal(again, pixels)  # nothing is turned twice


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("text_first", [False, True])
def test_exif_after_the_pixels_of_a_png_counts(text_first):
    file = io.BytesIO()
    Image.fromarray(STORED[6](scene())).save(file, "PNG")
    start, end = file.getvalue()[:-12], file.getvalue()[-12:]
    exif = Image.Exif()
    exif[274] = 6
    between = chunk(b"tEXt", b"date:create\x002026-11-25") if text_first else b""
    file = start + between + chunk(b"eXIf", exif.tobytes()[6:]) + end
    assert picture.upright_size(io.BytesIO(file)) == (64, 32)
    assert np.array_equal(picture.open_picture(io.BytesIO(file), plain(64, letterbox=True)), scene())
    file = start + between + end
    assert picture.upright_size(io.BytesIO(file)) == (32, 64)


@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_damaged_exif_is_no_orientation(exif):
    file = io.BytesIO()
    Image.fromarray(scene()).save(file, "PNG", exif=exif)
    assert picture.upright_size(io.BytesIO(file.getvalue())) == (64, 32)
    assert np.array_equal(picture.open_picture(io.BytesIO(file.getvalue()), plain(64, letterbox=True)), scene())


@pytest.mark.parametrize("number", [0, 9, 200])
def test_an_orientation_that_does_not_exist_is_none(number):
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = number
    Image.fromarray(scene()).save(file, "PNG", exif=exif)
    assert picture.open_upright(io.BytesIO(file.getvalue())).size == (64, 32)


def test_a_size_comes_from_the_header_alone():
    for kind in ("JPEG", "PNG"):
        file = oriented(np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8), 6, kind)
        cut = file[: len(file) // 4]
        assert picture.upright_size(io.BytesIO(cut)) == (300, 200)
        with pytest.raises(picture.PictureError, match="not readable as a picture"):
            picture.open_upright(io.BytesIO(cut))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("depth", ["<u2", ">u2"])
def test_grey_of_16_bits_is_scaled(tmp_path, kind, depth):
    values = np.array([[0, 256, 30000], [32768, 65278, 65535]], depth)
    Image.fromarray(values).save(tmp_path / "deep", kind)
    pixels = picture.open_picture(tmp_path / "deep", plain(64, letterbox=True))
    assert pixels.dtype == np.uint8 and pixels.tolist() == [[0, 1, 117], [128, 254, 255]]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_grey_of_16_bits_is_scaled_in_every_mode(mode):
    image = Image.fromarray(np.array([[0, 30000, 65535]], np.int32))
    if mode != "I":
        image = Image.frombytes(
            mode, (3, 1), np.array([0, 30000, 65535], ">u2" if mode == "I;16B" else "<u2").tobytes()
        )
    assert image.mode == mode and np.asarray(picture.upright(image)).tolist() == [[0, 117, 255]]


def test_a_pgm_of_16_bits_is_scaled():
    file = b"P5 3 1 65535\n" + np.array([0, 30000, 65535], ">u2").tobytes()
    assert picture.open_picture(io.BytesIO(file), plain(8, letterbox=True)).tolist() == [[0, 117, 255]]


def test_transparency_is_dropped_and_colours_stay():
    red = np.full((4, 4, 3), (200, 10, 30), np.uint8)
    alpha = np.full((4, 4, 1), 7, np.uint8)
    palette = Image.fromarray(red).quantize(2)
    for transparency in (None, 0, bytes([0, 255])):
        if transparency is not None:
            palette.info["transparency"] = transparency
        assert np.array_equal(picture.upright(palette), red)
    assert np.array_equal(picture.upright(Image.fromarray(np.concatenate([red, alpha], axis=2))), red)
    grey = np.dstack([red[:, :, 0], alpha])
    assert np.array_equal(picture.upright(Image.fromarray(grey)), np.full((4, 4, 3), 200, np.uint8))
    assert np.array_equal(picture.upright(Image.new("CMYK", (4, 4), (55, 245, 225, 0))), red)
    assert np.asarray(picture.upright(Image.new("1", (2, 2), 1))).tolist() == [[255, 255], [255, 255]]


def test_pixels_without_a_defined_grey_are_refused():
    with pytest.raises(picture.PictureError, match="floating-point"):
        picture.upright(Image.new("F", (2, 2)))
    for value in (-1, 65536):
        with pytest.raises(picture.PictureError, match="8 or 16 bits"):
            picture.upright(Image.fromarray(np.full((2, 2), value, np.int32)))
    with pytest.raises(picture.PictureError, match="no pixels"):
        picture.upright(Image.new("RGB", (0, 5)))


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("gif", "png", "webp", "tiff"):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:])
        assert (np.abs(picture.open_picture(tmp_path / f"a.{kind}", plain(8)).astype(int) - 10) < 3).all()


def unreadable(folder):
    """Files that are no good, and what is said of each."""
    file = oriented(np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8), 1)
    (folder / "cut.jpg").write_bytes(file[:2000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    (folder / "folder.png").mkdir()
    Image.new("L", (3000, 3000)).save(folder / "huge.png")
    return {
        "cut.jpg": "not readable as a picture",
        "empty.jpg": "not a picture that Pillow can read",
        "text.png": "not a picture that Pillow can read",
        "folder.png": "not readable as a picture",
        "huge.png": "too large",
        "absent.png": "no such file",
    }


def test_a_picture_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for name, told in unreadable(tmp_path).items():
        with pytest.raises(picture.PictureError, match=told) as caught:
            picture.open_picture(str(tmp_path / name), plain(8))
        assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


# -- the device's command line -----------------------------------------------------------------------------------------


class Recorder:
    """In place of a half with its network: a payload that says which picture it was given."""

    def __init__(self, folder):
        self.picture, self.finds_boxes = plain(64, letterbox=True), True
        self.classes = ["dot"]

    def encode(self, pixels, picture_size):
        return json.dumps([list(picture_size), pixels[2, 2].tolist()]).encode()

    def boxes(self, payload, least_score):
        return [Box(0, 0.9, 32.0, 16.0, 63.0, 31.0)]


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(main.halves, "DeviceHalf", Recorder)
    monkeypatch.setattr(main.halves, "ServerHalf", Recorder)


def test_a_turned_picture_is_encoded_and_drawn_on_upright(tmp_path, recorder):
    (tmp_path / "photo.png").write_bytes(oriented(scene(), 6, "PNG"))
    assert main.device(tmp_path, ["encode", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 0
    payload = tmp_path / "out" / "photo.payload"
    assert json.loads(payload.read_bytes()) == [[64, 32], [250, 0, 0]]
    drawing = ["--draw", str(tmp_path / "drawn"), "--on", str(tmp_path / "photo.png")]
    assert main.server(tmp_path, ["decode", str(payload), *drawing]) == 0
    with Image.open(tmp_path / "drawn" / "photo.png") as drawn:
        assert drawn.size == (64, 32) and drawn.getpixel((2, 2)) == (250, 0, 0)
        assert drawn.getpixel((62, 28)) == (0xE6, 0x19, 0x4B)  # the box's right side, in the black field


def test_two_pictures_of_one_name_do_not_overwrite_each_other(tmp_path, recorder, capsys):
    for name in ("a/1.png", "b/1.png", "a/1.bmp", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scene()).save(tmp_path / name)
    out = tmp_path / "out"

    def encode(*names):
        return main.device(tmp_path, ["encode", *(str(tmp_path / name) for name in names), "--out", str(out)])

    for other in ("b/1.png", "a/1.bmp"):
        assert encode("a/1.png", "b/2.png", other) == 1
        told = capsys.readouterr().err
        assert str(tmp_path / "a/1.png") in told and str(tmp_path / other) in told and "nothing was written" in told
        assert not out.exists()
    assert encode("a/1.png", "b/2.png", "a/1.png") == 0  # one picture, given twice
    assert sorted(path.name for path in out.iterdir()) == ["1.payload", "2.payload"]
    (out / "more").mkdir()
    (out / "more" / "1.payload").write_bytes(b"")
    payloads = [str(out / "1.payload"), str(out / "more" / "1.payload")]
    drawing = ["--draw", str(tmp_path / "drawn"), "--on", str(tmp_path / "a/1.png"), str(tmp_path / "b/1.png")]
    assert main.server(tmp_path, ["decode", *payloads, *drawing]) == 1
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "drawn").exists()


def test_a_picture_that_cannot_be_encoded_is_named(tmp_path, recorder, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for name, told in unreadable(tmp_path).items():
        assert main.device(tmp_path, ["encode", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert name in said and told in said and "Traceback" not in said


# -- timing ------------------------------------------------------------------------------------------------------------


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


def test_ten_microseconds_are_precise_enough():
    clock, random = Clock(), np.random.default_rng(0)

    def stage():
        clock.now += random.uniform(0.06e-3, 0.14e-3)

    found = measure.time_stages({"decode": stage}, budget_s=1000.0, clock=clock)["decode"]
    low, high = found["interval_ms"]
    assert 0.04 * found["p50_ms"] < high - low <= 0.02 and found["repeats"] < 200


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
