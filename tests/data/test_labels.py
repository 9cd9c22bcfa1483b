import numpy as np
import pytest
from PIL import Image
from tiny_files import write_grey, write_label, write_palette_label

from mpcl.data.decoding import BadFile
from mpcl.data.labels import identity_except, inspect_label, lookup_table, read_label

IDS = [[0, 7, 8], [33, 255, 11]]


def test_of_a_palette_label_the_index_counts_and_not_the_colour(tmp_path):
    path = write_palette_label(tmp_path / "a.png", IDS)
    np.testing.assert_array_equal(read_label(path), IDS)
    assert not np.array_equal(np.array(Image.open(path).convert("L")), IDS)


def test_a_palette_of_two_bits_a_pixel_keeps_its_indices(tmp_path):
    ids = [[0, 1], [2, 3]]
    image = Image.fromarray(np.array(ids, np.uint8))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    image.save(tmp_path / "a.png", bits=2)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


def test_a_one_bit_mask_has_the_ids_0_and_1(tmp_path):
    ids = np.array([[0, 1, 1], [0, 0, 1]])
    Image.fromarray(ids.astype(bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)
    counts, *_ = inspect_label(tmp_path / "a.png")
    assert (counts[0], counts[1], counts.sum()) == (3, 3, 6)


def test_a_tiff_that_is_lossy_or_inverted_is_refused(tmp_path):
    ids = Image.fromarray(np.random.default_rng(0).integers(0, 4, (32, 32)).astype(np.uint8))
    ids.save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_label(tmp_path / "a.tif"), np.array(ids))
    ids.save(tmp_path / "j.tif", compression="jpeg")
    with pytest.raises(BadFile, match=r"j\.tif.*is a JPEG inside"):
        read_label(tmp_path / "j.tif")
    for name, image in (("1.tif", ids.convert("1")), ("8.tif", ids)):
        image.save(tmp_path / name, tiffinfo={262: 0})  # min is white
        with pytest.raises(BadFile, match=r"save it with 0 as black"):
            read_label(tmp_path / name)


@pytest.mark.parametrize("label_map", [{-1: 0}, {256: 0}, {0: 256}, {0: -1}])
def test_a_map_outside_8_bits_is_refused(label_map):
    with pytest.raises(ValueError, match=r"label_map expects ids and class indices in \[0, 255\]"):
        lookup_table(label_map)


def test_the_map_is_applied_and_unnamed_ids_are_ignored(tmp_path):
    path = write_label(tmp_path / "a.png", IDS)
    expected = [[255, 0, 1], [18, 255, 2]]
    np.testing.assert_array_equal(read_label(path, {7: 0, 8: 1, 11: 2, 33: 18}), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1)])
def test_the_map_keeps_the_shape_of_thin_labels(tmp_path, shape):
    path = write_label(tmp_path / "a.png", np.full(shape, 3))
    np.testing.assert_array_equal(read_label(path, {3: 1}), np.full(shape, 1))


def test_the_identity_except_some_ids_leaves_strange_ids_visible():
    table = lookup_table(identity_except(11))
    assert (table[11], table[10], table[12], table[255]) == (255, 10, 12, 255)


@pytest.mark.parametrize("bits", [2, 4])
def test_2_and_4_bit_grey_is_refused_because_its_ids_would_be_spread(tmp_path, bits):
    path = write_grey(tmp_path / "a.png", [[1, 2, 0, 3]], bits)
    step = 255 // (2**bits - 1)
    assert np.array(Image.open(path)).tolist() == [[step, 2 * step, 0, 3 * step]]
    with pytest.raises(BadFile, match=rf"mode 'L;{bits}'.*the same ids with 8 bits"):
        read_label(path)


@pytest.mark.parametrize("write", [write_label, write_palette_label])
def test_the_histogram_counts_raw_ids_and_gives_the_size(tmp_path, write):
    ids = np.random.default_rng(0).integers(0, 256, (33, 17))
    counts, size, _ = inspect_label(write(tmp_path / "a.png", ids))
    np.testing.assert_array_equal(counts, np.bincount(ids.ravel(), minlength=256))
    assert size == (33, 17)
