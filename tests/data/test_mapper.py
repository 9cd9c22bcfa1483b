import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpcl.config import get_cfg_from
from mpcl.data import mapper as mapper_module
from mpcl.data.decoding import BadFile
from mpcl.data.mapper import SourceMapper, TargetMapper, TestMapper, beyond_margins
from mpcl.data.resizing import keep_aspect_size
from mpcl.data.sampler import Draw

MEAN = (124, 116, 104)


def noise(height=64, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stripes(height=64, width=64, num_classes=4):
    """Vertical stripes of the classes 0, 1, 2, ..."""
    return np.tile(np.arange(width) * num_classes // width, (height, 1)).astype(np.uint8)


def write(folder: Path, image, label=None, name="a"):
    record = {"file_name": str(folder / f"{name}.png")}
    Image.fromarray(image).save(record["file_name"])
    if label is not None:
        record["sem_seg_file_name"] = str(folder / f"{name}_label.png")
        Image.fromarray(label).save(record["sem_seg_file_name"])
    return record


def source_mapper(**changes):
    settings = {
        "size": None,
        "crop_size": (32, 32),
        "flip": False,
        "single_category_max_area": 1.0,
        "min_crop_fraction": 0.0,
        "photometric_distortion": False,
        "pad_color": MEAN,
        "label_maps": {},
    }
    return SourceMapper(**(settings | changes))


def target_mapper(**changes):
    settings = {"size": None, "crop_size": (32, 32), "flip": False, "pad_color": MEAN}
    return TargetMapper(**(settings | changes))


def find(crop, image):
    """Top left corner of a crop in an image of noise."""
    places = [
        (y, x)
        for y in range(image.shape[0] - crop.shape[0] + 1)
        for x in range(image.shape[1] - crop.shape[1] + 1)
        if (image[y, x] == crop[0, 0]).all()
        and (image[y : y + crop.shape[0], x : x + crop.shape[1]] == crop).all()
    ]
    assert len(places) == 1
    return places[0]


def hwc(result):
    return result["image"].permute(1, 2, 0).numpy()


# ---- sizes and resampling


@pytest.mark.parametrize(
    ("native", "box", "expected"),
    [
        ((1052, 1914), (1280, 720), (704, 1280)),
        ((1046, 1914), (1280, 720), (700, 1280)),
        ((1052, 1914), (2560, 1440), (1407, 2560)),
        ((1046, 1914), (2560, 1440), (1399, 2560)),
        ((760, 1280), (1280, 760), (760, 1280)),
        ((760, 1280), (2560, 1520), (1520, 2560)),
        ((1024, 2048), (1024, 512), (512, 1024)),
        ((1080, 1920), (960, 540), (540, 960)),
        ((1914, 1052), (1280, 720), (1280, 704)),  # the box turns with the image
        ((33, 77), None, (33, 77)),
        ((33, 77), (0, 0), (33, 77)),
    ],
)
def test_sizes_are_those_of_the_published_pipelines(native, box, expected):
    assert keep_aspect_size(native, box) == expected


def test_halved_labels_keep_pixels_0_2_4(tmp_path):
    label = np.arange(64, dtype=np.uint8).reshape(1, 64).repeat(64, axis=0)
    record = write(tmp_path, noise(), label)
    result = source_mapper(size=(32, 32))(record, Draw(0, 0))
    assert result["sem_seg"][5].tolist() == list(range(0, 64, 2))


def test_images_shrunk_by_four_are_not_antialiased(tmp_path):
    # The four pixels around each sampling point count, the other twelve of 4 x 4 do not.
    image = noise()
    result = target_mapper(size=(16, 16), crop_size=(16, 16))(write(tmp_path, image), Draw(0, 0))
    middle = image.reshape(16, 4, 16, 4, 3)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    assert np.abs(hwc(result) - middle).max() <= 0.5


def test_images_are_rgb_uint8_and_labels_uint8(tmp_path):
    image = np.zeros((40, 50, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, 10
    result = source_mapper()(write(tmp_path, image, stripes(40, 50)), Draw(0, 0))
    assert result["image"].dtype == torch.uint8 and result["image"].shape == (3, 32, 32)
    assert result["image"][:, 0, 0].tolist() == [200, 0, 10]
    assert result["sem_seg"].dtype == torch.uint8 and result["sem_seg"].shape == (32, 32)
    # A view of the whole label would take all of it along to the trainer.
    assert result["sem_seg"].untyped_storage().nbytes() == 32 * 32
    assert (result["height"], result["width"]) == (40, 50)


# ---- crop, flip, padding


def test_image_and_label_are_cut_and_flipped_together(tmp_path):
    image = noise()
    record = write(tmp_path, image, image[..., 1].copy())
    mapper = source_mapper(flip=True)
    for seed in range(20):
        result = mapper(record, Draw(0, seed))
        assert torch.equal(result["image"][1].long(), result["sem_seg"])


def test_half_of_the_images_are_mirrored(tmp_path):
    image = noise(16, 16)
    record = write(tmp_path, image)
    mapper = target_mapper(crop_size=(16, 16), flip=True)
    mirrored = 0
    for seed in range(400):
        result = hwc(mapper(record, Draw(0, seed)))
        flipped = np.array_equal(result, image[:, ::-1])
        assert flipped or np.array_equal(result, image)
        mirrored += flipped
    assert abs(mirrored - 200) < 4 * 10  # four standard deviations


def test_crops_reach_every_place_evenly(tmp_path):
    image = noise(18, 17)
    record, mapper = write(tmp_path, image), target_mapper(crop_size=(16, 16))
    places = [find(hwc(mapper(record, Draw(0, seed))), image) for seed in range(600)]
    counts = [places.count((y, x)) for y in range(3) for x in range(2)]
    assert sum(counts) == 600
    # 100 expected of each, standard deviation (600 * 1/6 * 5/6) ** 0.5 = 9.1
    assert max(abs(count - 100) for count in counts) < 4 * 9.2


@pytest.mark.parametrize("build", [source_mapper, target_mapper])
def test_small_images_are_padded_below_and_right_with_the_mean(tmp_path, build):
    image, label = noise(20, 24), stripes(20, 24) if build is source_mapper else None
    result = build()(write(tmp_path, image, label), Draw(0, 0))
    assert np.array_equal(hwc(result)[:20, :24], image)
    assert (hwc(result)[20:] == MEAN).all() and (hwc(result)[:, 24:] == MEAN).all()
    if label is not None:
        found = result["sem_seg"].numpy()
        assert np.array_equal(found[:20, :24], label)
        assert (found[20:] == 255).all() and (found[:, 24:] == 255).all()


# ---- which crops are taken


def boxes_tried(monkeypatch, mapper, record, draw):
    """Runs the mapper and returns its result and the boxes that it drew."""
    boxes, draw_box = [], mapper_module._random_box
    monkeypatch.setattr(
        mapper_module, "_random_box", lambda *a: boxes.append(draw_box(*a)) or boxes[-1]
    )
    result = mapper(record, draw)
    monkeypatch.undo()
    return result, boxes


def test_crops_show_more_than_one_class_and_none_on_three_quarters(tmp_path):
    label = np.zeros((64, 64), np.uint8)
    label[:, 40:] = 1
    record = write(tmp_path, noise(), label)
    strict, free = source_mapper(single_category_max_area=0.75), source_mapper()
    shares = []
    for seed in range(30):
        assert 0.25 < (strict(record, Draw(0, seed))["sem_seg"] == 0).float().mean() < 0.75
        shares.append((free(record, Draw(0, seed))["sem_seg"] == 0).float().mean())
    assert max(shares) >= 0.75  # without the rule, some crops break it


def test_a_share_of_exactly_the_limit_is_refused_and_ignored_pixels_do_not_count():
    counts = np.zeros(256, np.int64)
    counts[[0, 1, 255]] = 75, 25, 10_000
    assert not mapper_module._is_mixed(counts, 0.75)
    counts[0] = 74
    assert mapper_module._is_mixed(counts, 0.75)
    counts[1] = 0
    assert not mapper_module._is_mixed(counts, 0.75)


@pytest.mark.parametrize("value", [3, 255])
def test_after_ten_refused_crops_the_eleventh_is_taken(tmp_path, monkeypatch, value):
    image, label = noise(), np.full((64, 64), value, np.uint8)  # one class, or none: never mixed
    mapper = source_mapper(single_category_max_area=0.75)
    result, boxes = boxes_tried(monkeypatch, mapper, write(tmp_path, image, label), Draw(0, 5))
    assert len(boxes) == 11
    assert np.array_equal(hwc(result), image[boxes[-1]])
    assert (result["sem_seg"] == value).all()


def test_crops_for_a_rare_class_show_enough_of_it(tmp_path):
    label = np.zeros((64, 64), np.uint8)
    label[8:40, 56:] = 7
    record = write(tmp_path, noise(), label)
    mapper = source_mapper(min_crop_fraction=0.1)
    aimed = [(mapper(record, Draw(0, s, 7))["sem_seg"] == 7).float().mean() for s in range(30)]
    blind = [(mapper(record, Draw(0, s))["sem_seg"] == 7).float().mean() for s in range(30)]
    # A crop shows more than 10 % in about one place of six, hence ten retries find one in 87 %.
    assert np.mean([share > 0.1 for share in aimed]) > 0.6
    assert np.mean([share > 0.1 for share in blind]) < 0.4


def test_the_rare_class_must_exceed_its_share_of_the_crop(tmp_path, monkeypatch):
    label = np.zeros((32, 32), np.uint8)
    label[0, :16] = 1  # 1/64 of the crop
    record = write(tmp_path, noise(32, 32), label)
    for fraction, expected in ((1 / 64, 11), (15 / 1024, 1)):
        mapper = source_mapper(min_crop_fraction=fraction)
        assert len(boxes_tried(monkeypatch, mapper, record, Draw(0, 0, 1))[1]) == expected


# ---- randomness


@pytest.mark.parametrize("distort", [False, True])
def test_the_seed_of_the_draw_alone_decides(tmp_path, distort):
    record = write(tmp_path, noise(), stripes())
    mapper = source_mapper(flip=True, photometric_distortion=distort, single_category_max_area=0.75)

    def states():
        numpy_state = np.random.get_state()[1].tolist()
        return random.getstate(), numpy_state, torch.get_rng_state().tolist()

    before = states()
    first = mapper(record, Draw(0, 1))
    assert states() == before
    random.random(), np.random.rand(), torch.rand(1)
    again, other = mapper(record, Draw(0, 1)), mapper(record, Draw(0, 2))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["sem_seg"], again["sem_seg"])
    assert not torch.equal(first["image"], other["image"])


def test_colour_distortion_changes_colours_but_neither_place_nor_label_nor_padding(tmp_path):
    record = write(tmp_path, noise(24, 64), stripes(24, 64))
    plain, distorted = source_mapper(), source_mapper(photometric_distortion=True)
    changed = 0
    for seed in range(10):
        a, b = plain(record, Draw(0, seed)), distorted(record, Draw(0, seed))
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        assert torch.equal(a["image"][:, 24:], b["image"][:, 24:])
        changed += not torch.equal(a["image"], b["image"])
    assert changed >= 5  # all four parts are left out with probability 1/16


# ---- target and test


def test_target_images_do_not_depend_on_the_label_files_beside_them(tmp_path, monkeypatch):
    record = write(tmp_path, noise())
    before = target_mapper()(record, Draw(0, 0))
    write(tmp_path, noise(), stripes())
    opened = []
    monkeypatch.setattr(mapper_module, "read_label", lambda *a: opened.append(a))
    after = target_mapper()(record, Draw(0, 0))
    assert torch.equal(before["image"], after["image"]) and not opened
    assert set(after) == {"image", "shown", "valid", "file_name", "height", "width"}


def test_the_padding_of_a_target_is_not_valid(tmp_path):
    item = target_mapper(size=(32, 24), crop_size=(48, 40))(
        write(tmp_path, noise(48, 64)), Draw(0, 0)
    )
    assert item["image"].shape == (3, 48, 40) and item["valid"].sum() == 24 * 32
    assert item["valid"][:24, :32].all() and torch.equal(item["shown"], item["valid"])


def test_a_source_without_labels_and_a_target_with_some_are_refused_by_name(tmp_path):
    labelled = write(tmp_path, noise(), stripes())
    with pytest.raises(ValueError, match=r"target record of .*a\.png names a label file"):
        target_mapper()(labelled, Draw(0, 0))
    del labelled["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"source record of .*a\.png names no label file.*TRAIN"):
        source_mapper()(labelled, Draw(0, 0))


def test_pixels_without_data_and_those_that_they_are_mixed_into_are_not_valid(tmp_path):
    image = noise(64, 64) // 2 + 1
    image[:, :21] = 0  # halved, columns 0..9 are bare and column 10 is a mixture
    record = {**write(tmp_path, image), "dataset": "tiles"}
    mapper = target_mapper(size=(32, 32), nodata={"tiles": (0, 0, 0)})
    assert mapper(record, Draw(0, 0))["valid"].all(0).tolist() == [False] * 11 + [True] * 21
    assert mapper({**record, "dataset": "other"}, Draw(0, 0))["valid"].all()


def test_test_images_are_whole_resized_and_remember_their_native_size(tmp_path):
    record = write(tmp_path, noise(48, 64), stripes(48, 64))
    result = TestMapper(size=(32, 24))(record)
    assert result["image"].shape == (3, 24, 32)
    assert (result["height"], result["width"]) == (48, 64)
    assert result["file_name"] == record["file_name"]
    assert np.array_equal(hwc(TestMapper(size=(0, 0))(record)), noise(48, 64))
    assert np.array_equal(result["label"], stripes(48, 64))  # as the file has it
    changed = TestMapper(size=(32, 24), label_map={0: 5})(record)["label"]
    assert np.array_equal(changed, np.where(stripes(48, 64) == 0, 5, 255))
    Path(record["sem_seg_file_name"]).write_bytes(b"broken")
    with pytest.raises(BadFile, match=r"_label\.png"):
        TestMapper(size=(32, 24))(record)


def test_source_target_and_test_images_are_resized_alike(tmp_path):
    record = write(tmp_path, noise(48, 64), stripes(48, 64))
    unlabelled = {"file_name": record["file_name"]}
    whole = {"size": (20, 15), "crop_size": (15, 20)}
    images = [
        source_mapper(**whole)(record, Draw(0, 0))["image"],
        target_mapper(**whole)(unlabelled, Draw(0, 0))["image"],
        TestMapper(size=(20, 15))(record)["image"],
    ]
    assert torch.equal(images[0], images[1]) and torch.equal(images[1], images[2])


# ---- configuration


def test_configuration_reaches_the_mappers(tmp_path):
    cfg = get_cfg_from()
    cfg.INPUT.SOURCE_SIZE, cfg.INPUT.TARGET_SIZE = (64, 48), (32, 24)
    cfg.INPUT.CROP.SIZE = (24, 32)
    cfg.DATASETS.TRAIN = ()
    source, target, test = (m.from_config(cfg) for m in (SourceMapper, TargetMapper, TestMapper))
    assert source.size == (64, 48) and target.size == test.size == (32, 24)
    assert source.crop_size == target.crop_size == (24, 32)
    assert source.pad_color == target.pad_color == MEAN
    assert source.min_crop_fraction == cfg.DATALOADER.RARE_CLASS.MIN_CROP_FRACTION
    assert source.flip and target.flip and not source.photometric_distortion


@pytest.mark.parametrize(
    ("margins", "rows", "columns"),
    [
        ((0, 0, 0, 0), [1, 1, 1, 1], [1, 1, 1, 1]),
        ((0.1, 0.1, 0, 0), [1, 1, 1, 1], [1, 1, 1, 1]),  # less than half a row is no row
        ((0.25, 0, 0, 0), [0, 1, 1, 1], [1, 1, 1, 1]),
        ((0, 0.25, 0, 0.5), [1, 1, 1, 0], [1, 1, 0, 0]),
        ((0.2, 0.45, 0.25, 0), [0, 1, 0, 0], [0, 1, 1, 1]),
    ],
)
def test_margins_are_whole_rows_and_columns_and_zero_is_none(margins, rows, columns):
    assert beyond_margins((4, 4), margins).tolist() == np.outer(rows, columns).tolist()


def test_margins_of_the_crop_are_its_rows_wherever_it_lies(tmp_path):
    # DAFormer's 15 and 120 rows of a 512 crop; the image is larger, and its margin is to the left.
    record = write(tmp_path, noise(640, 600))
    settings = {"crop_size": (512, 512), "crop_margins": (15 / 512, 120 / 512)}
    for seed in range(4):
        result = target_mapper(**settings)(record, Draw(0, seed))
        valid = result["valid"]
        assert valid[15:-120].all() and not valid[:15].any() and not valid[-120:].any()
        assert result["shown"].all()


def test_where_nothing_is_shown_is_mirrored_with_the_image_and_told_by_rgb(tmp_path):
    image = noise(32, 32)
    image[:, 20:] = (1, 2, 3)
    record = write(tmp_path, image) | {"dataset": "tiles"}
    mapper = target_mapper(flip=True, nodata={"tiles": (1, 2, 3)})
    seen = set()
    for seed in range(20):
        result = mapper(record, Draw(0, seed))
        empty = (result["image"] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all(0)
        assert torch.equal(result["valid"], ~empty) and torch.equal(result["shown"], ~empty)
        seen.add(bool(empty[0, 0]))
    assert seen == {True, False}
