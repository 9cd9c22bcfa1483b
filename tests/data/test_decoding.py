"""Which image files training takes, what it makes of them, and what it refuses."""

import pickle
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_files import bomb, write_tiff

from mpcl.data.decoding import BadFile, inspect_image, pixel_limit, read_image, to_bgr
from mpcl.data.labels import inspect_label, read_label

ORIENTATION = 0x0112


def smooth(height=40, width=60):
    """An RGB image that JPEG hardly changes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 2 * (x + y)], -1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_every_format_shows_the_same_picture(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    error = np.abs(read_image(path)[..., ::-1].astype(int) - smooth())
    assert error.mean() < (3 if suffix == "jpg" else 0.01)
    assert inspect_image(path).size == (40, 60)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA", "1"])
def test_palettes_become_colours_alpha_is_dropped_and_grey_is_repeated(tmp_path, mode):
    path = tmp_path / "a.png"
    image = Image.fromarray(smooth()).convert(mode)
    image.save(path)
    np.testing.assert_array_equal(read_image(path)[..., ::-1], np.array(image.convert("RGB")))
    assert inspect_image(path).mode == mode


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photo_lies_as_its_orientation_tag_says(tmp_path, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise by 90 degrees
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(smooth()).save(path, exif=exif)
    shown = np.rot90(smooth(), -1)
    error = np.abs(read_image(path)[..., ::-1].astype(int) - shown)
    assert error.mean() < 4 and inspect_image(path).size == (60, 40)


@pytest.mark.parametrize("extra", [(0,), (1,), (2,), ()])
def test_the_first_three_bands_count_as_they_are_stored_whatever_a_fourth_says(tmp_path, extra):
    pixels = np.full((4, 6, 4), (200, 100, 50, 64), np.uint8)
    path = write_tiff(tmp_path / "a.tif", pixels, extra)
    assert read_image(path)[0, 0].tolist() == [50, 100, 200]
    assert to_bgr(Image.open(path))[0, 0].tolist() == [50, 100, 200]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "a.png"))


def test_bands_that_are_not_said_to_be_colours_are_told_from_a_broken_file(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.zeros((4, 6, 3), np.uint8))
    content = path.read_bytes()
    tag = struct.pack("<HHII", 262, 3, 1, 2)  # photometric interpretation: RGB
    path.write_bytes(content.replace(tag, struct.pack("<HHII", 262, 3, 1, 1)))
    with pytest.raises(BadFile, match=r"TIFF of 3 bands that does not say .*PHOTOMETRIC=RGB"):
        read_image(path)


@pytest.mark.parametrize("bands", [5, 6, 8])  # of 8, Pillow has no mode
def test_more_than_four_bands_get_one_verdict_wherever_they_are_read(tmp_path, bands):
    extra = (0,) * (bands - 3)
    path = write_tiff(tmp_path / "a.tif", np.zeros((4, 6, bands), np.uint8), extra)
    for read in (read_image, inspect_image):
        with pytest.raises(BadFile, match=rf"a\.tif has {bands} bands, expected at most 4.*RGB$"):
            read(path)


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory")])
def test_too_little_memory_is_no_fault_of_the_file_but_names_it(tmp_path, monkeypatch, error):
    error.code = cv2.Error.StsNoMem
    Image.fromarray(smooth()).save(tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(MemoryError, match=r"a\.png does not fit"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "mode", "remedy"),
    [("a.tif", "F", "convert it to 8 bits"), ("a.jpg", "CMYK", "convert it to RGB")],
)
def test_modes_that_would_lose_their_meaning_are_refused_with_the_remedy(
    tmp_path, name, mode, remedy
):
    path = tmp_path / name
    Image.fromarray(smooth()).convert("L" if mode == "F" else "RGB").convert(mode).save(path)
    for read in (read_image, inspect_image):
        with pytest.raises(BadFile, match=f"mode '{mode}.*grey, palette or RGB; {remedy}") as e:
            read(path)
        assert e.value.file == str(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_image_is_never_read(tmp_path, suffix, part):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    for read in (read_image, inspect_image):
        with pytest.raises(BadFile, match=rf"cut\.{suffix} cannot be decoded.*download"):
            read(path)


def test_a_lenient_decoder_does_not_hide_a_truncated_jpeg(tmp_path, monkeypatch):
    # OpenCV 4 returns such images with their lower part grey.
    path = tmp_path / "cut.jpg"
    Image.fromarray(smooth(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((200, 200, 3), np.uint8))
    with pytest.raises(BadFile, match=r"truncated"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_rest_is_zeros_is_refused(tmp_path, progressive):
    # As an interrupted copy into a file of the final size leaves it; decoders show it with grey.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path, exif = tmp_path / "zeros.jpg", Image.Exif()
    exif[0x9286] = b"\xff\xd9" * 9  # no end of an image: within a segment
    Image.fromarray(noise).save(path, progressive=progressive, exif=exif)
    content = path.read_bytes()
    path.write_bytes(content + bytes(999))  # only padding
    for read in (read_image, inspect_image):
        read(path)
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(half))
    for read in (read_image, inspect_image):
        with pytest.raises(BadFile, match=r"zeros\.jpg cannot be decoded \(truncated"):
            read(path)


def test_images_that_exif_turns_into_others_of_their_size_are_told(tmp_path):
    path, found = tmp_path / "a.jpg", {}
    for side in (40, 60):
        for turn in (1, 2, 3, 6):
            exif = Image.Exif()
            exif[0x0112] = turn
            Image.fromarray(smooth(40, side)).save(path, exif=exif)
            found[side, turn] = inspect_image(path).turned
    turned = {key for key, value in found.items() if value}
    assert turned == {(40, 2), (40, 3), (40, 6), (60, 2), (60, 3)}


def test_a_file_of_several_images_is_refused_smaller_copies_are_none(tmp_path):
    pages = [Image.fromarray(smooth()), Image.fromarray(smooth())]
    for name in ("a.tif", "a.gif", "a.webp"):
        pages[1].paste((9, 9, 9), (0, 0, 20, 20))  # else an animation keeps one
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        for read in (read_image, inspect_image):
            with pytest.raises(BadFile, match=rf"{name} holds 2 images; expected one"):
                read(tmp_path / name)
    copy = pages[0].resize((20, 20))
    copy.encoderinfo = {"tiffinfo": {254: 1}}  # an overview
    pages[0].save(tmp_path / "o.tif", save_all=True, append_images=[copy])
    np.testing.assert_array_equal(read_image(tmp_path / "o.tif"), smooth()[..., ::-1])


def test_what_stands_behind_an_image_does_no_harm(tmp_path):
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(smooth()).save(path)
        whole = read_image(path)
        path.write_bytes(path.read_bytes() + b"made by a phone")
        np.testing.assert_array_equal(read_image(path), whole)


@pytest.mark.parametrize("read", [read_image, inspect_image, read_label, inspect_label])
def test_a_missing_file_a_folder_and_text_are_named(tmp_path, read):
    (tmp_path / "text.png").write_text("<html>404 Not Found</html>")
    (tmp_path / "folder.png").mkdir()
    for name in ("missing.png", "text.png", "folder.png"):
        with pytest.raises(BadFile, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("side", [17000, 60000])  # above our limit; above Pillow's own, too
@pytest.mark.parametrize("read", [read_image, inspect_image, read_label, inspect_label])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    with pytest.raises(BadFile, match=r"bomb\.png is above the limit of 268435456.*MPCL_MAX_IMAGE"):
        read(path)


def test_the_limit_admits_images_of_8k_and_can_be_set(tmp_path, monkeypatch):
    assert pixel_limit() > 7680 * 4320 * 3
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path)
    monkeypatch.setenv("MPCL_MAX_IMAGE_PIXELS", "2399")
    with pytest.raises(BadFile, match="limit of 2399"):
        read_image(path)
    monkeypatch.setenv("MPCL_MAX_IMAGE_PIXELS", "2400")
    assert read_image(path).shape == (40, 60, 3)
    for wrong in ("0", "-1", "many", "1e9", ""):
        monkeypatch.setenv("MPCL_MAX_IMAGE_PIXELS", wrong)
        with pytest.raises(ValueError, match="positive whole number"):
            pixel_limit()


def test_a_bad_file_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(BadFile("a.png", "is a poem")))
    assert (str(error), error.file, error.reason) == ("a.png is a poem", "a.png", "is a poem")
