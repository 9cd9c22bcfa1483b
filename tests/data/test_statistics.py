import logging
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_files import write_label

from mpcl.data import statistics
from mpcl.data.sets.registration import load_records, set_metadata
from mpcl.data.statistics import class_statistics, class_table

NAME = "test_statistics_sem_seg_train"
SHAPES = [(4, 6), (3, 5), (1, 1)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three labels of classes 0..2 and 255, registered in an order other than that of the names."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    labels = [rng.choice([0, 1, 2, 255], shape) for shape in SHAPES]
    files = [write_label(tmp_path / f"gt/{i}.png", label) for i, label in enumerate(labels)]
    records = [
        {"file_name": f"{i}.png", "image_id": str(i), "sem_seg_file_name": str(file)}
        for i, file in enumerate(files)
    ]
    DatasetCatalog.register(NAME, lambda: records[::-1])
    set_metadata(NAME, ["a", "b", "c"], [(0, 0, 0), (1, 1, 1), (2, 2, 2)], label_map=None)
    yield labels, files, records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def reads(monkeypatch):
    """The label files that are decoded in this process."""
    seen = []
    read = statistics.inspect_label
    monkeypatch.setattr(statistics, "inspect_label", lambda *a: (seen.append(a[0]), read(*a))[1])
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_counts_are_those_of_a_slow_loop_in_the_order_of_the_records(world, num_workers):
    labels, files, _ = world
    result = class_statistics(NAME, num_workers)
    assert result.files == tuple(str(file) for file in files)
    assert list(result.files) == [r["sem_seg_file_name"] for r in load_records(NAME)]
    slow = [[sum(v == c for v in label.ravel()) for c in range(3)] for label in labels]
    np.testing.assert_array_equal(result.counts, slow)
    np.testing.assert_array_equal(result.sizes, SHAPES)
    assert result.counts.dtype == result.sizes.dtype == np.int64


def test_the_second_call_decodes_nothing(world, reads, tmp_path):
    first = class_statistics(NAME)
    assert len(reads) == 3
    second = class_statistics(NAME)
    assert len(reads) == 3
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.sizes, second.sizes)
    assert (tmp_path / f"gt/class_statistics_{NAME}.npz").is_file()


def test_data_and_cache_may_be_moved_together(world, reads, tmp_path):
    _, _, records = world
    class_statistics(NAME)
    (tmp_path / "gt").rename(tmp_path / "moved")
    for record in records:
        record["sem_seg_file_name"] = record["sem_seg_file_name"].replace("/gt/", "/moved/")
    assert str(tmp_path / "moved/0.png") == class_statistics(NAME).files[0]
    assert len(reads) == 3


def described(classes: str, label_map=None):
    MetadataCatalog.remove(NAME)
    set_metadata(NAME, list(classes), [(0, 0, 0)] * len(classes), label_map=label_map)


CHANGES = {
    "time": lambda files, records: os.utime(files[0], ns=(1, 1)),
    "list": lambda files, records: records.pop(0),
    "map": lambda files, records: described("abc", {0: 2, 1: 1, 2: 0}),
    "classes": lambda files, records: described("abcd"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_is_counted_again(world, reads, change):
    _, files, records = world
    class_statistics(NAME)
    reads.clear()
    change(files, records)
    result = class_statistics(NAME)
    assert len(reads) == len(records) == len(result.files)


def test_a_broken_cache_is_counted_again(world, reads, tmp_path, caplog):
    class_statistics(NAME)
    (tmp_path / f"gt/class_statistics_{NAME}.npz").write_bytes(b"PK\x03\x04 cut")
    with caplog.at_level(logging.WARNING):
        class_statistics(NAME)
    assert "counting again" in caplog.text
    assert len(reads) == 6


def test_a_read_only_data_folder_is_cached_in_the_users_cache(world, reads, tmp_path, monkeypatch):
    write = statistics.write_atomically

    def refuse_data_folder(place, content):
        if place.parent == tmp_path / "gt":
            raise PermissionError(13, "read-only", str(place))
        write(place, content)

    monkeypatch.setattr(statistics, "write_atomically", refuse_data_folder)
    class_statistics(NAME)
    assert len(list((tmp_path / "cache/mpcl").glob("*.npz"))) == 1
    class_statistics(NAME)
    assert len(reads) == 3


def test_an_interrupted_write_leaves_nothing_behind(world, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupt)
    with pytest.raises(KeyboardInterrupt):
        class_statistics(NAME)
    assert sorted(p.name for p in (tmp_path / "gt").iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_id_that_is_no_class_is_refused_with_its_file(world):
    _, files, _ = world
    write_label(files[1], [[0, 3, 254]])
    with pytest.raises(ValueError, match=r"gt/1\.png holds the ids \[3, 254\].*below 3"):
        class_statistics(NAME)


def test_an_image_only_set_is_refused(world):
    _, _, records = world
    for record in records:
        del record["sem_seg_file_name"]
    with pytest.raises(ValueError, match="expects a labelled set"):
        class_statistics(NAME)


def test_the_table_shows_shares_of_pixels_and_of_files():
    lines = class_table(["road", "rider"], np.array([[30, 0], [45, 25]])).splitlines()
    assert lines[1].split()[:3] == ["road", "75.0000%", "100.0%"]
    assert lines[2].split()[:3] == ["rider", "25.0000%", "50.0%"]
    assert lines[1].count("█") == 40
    assert lines[2].count("█") == 13  # 40 / 3


def test_a_file_that_was_replaced_within_the_clocks_tick_is_counted_again(world):
    _, files, _ = world
    class_statistics(NAME)
    status = os.stat(files[0])
    write_label(files[0], np.zeros((40, 50)))  # another size of the file
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert class_statistics(NAME).counts[0].tolist() == [2000, 0, 0]
