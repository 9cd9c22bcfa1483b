import itertools
import os
import pickle
import signal
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from mpcl.config import get_cfg_from
from mpcl.data import build, paired_loader
from mpcl.data.build import build_paired_loader, build_test_loader, rare_class_sampler
from mpcl.data.decoding import BadFile
from mpcl.data.paired_loader import DomainStream, PairedLoader
from mpcl.data.sampler import UniformDraws
from mpcl.data.statistics import ClassStatistics
from mpcl.data.worker_death import explain_death

NUM_IMAGES = 6


def write_images(folder, num_images=NUM_IMAGES, labelled=True, num_classes=3):
    """64x64 images of noise; class 2 only in the first of them."""
    rng = np.random.default_rng(len(folder.name))
    folder.mkdir()
    records = []
    for i in range(num_images):
        record = {"file_name": str(folder / f"{i}.png"), "image_id": str(i)}
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(record["file_name"])
        if labelled:
            record["sem_seg_file_name"] = str(folder / f"{i}_label.png")
            label = rng.integers(0, num_classes if i == 0 else 2, (64, 64), dtype=np.uint8)
            Image.fromarray(label).save(record["sem_seg_file_name"])
        records.append(record)
    return records


@pytest.fixture
def register():
    """Registers records under a new name, for as long as the test runs."""
    names = []

    def add(records, **metadata):
        names.append(f"paired_loader_{uuid.uuid4().hex}")
        DatasetCatalog.register(names[-1], lambda: records)
        described = {"stuff_classes": ["a", "b", "c"], "ignore_label": 255, "label_map": None}
        MetadataCatalog.get(names[-1]).set(**(described | metadata))
        return names[-1]

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(tmp_path, register):
    cfg = get_cfg_from()
    cfg.DATASETS.TRAIN = (register(write_images(tmp_path / "source")),)
    cfg.DATASETS.TRAIN_TARGET = (register(write_images(tmp_path / "target", labelled=False)),)
    cfg.INPUT.SOURCE_SIZE = cfg.INPUT.TARGET_SIZE = (48, 48)
    cfg.INPUT.CROP.SIZE = (32, 32)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    return cfg


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.keys() == b.keys()
        for x, y in zip(itertools.chain(*a.values()), itertools.chain(*b.values())):
            assert x.keys() == y.keys() and x["file_name"] == y["file_name"]
            assert torch.equal(x["image"], y["image"])
            assert "sem_seg" not in x or torch.equal(x["sem_seg"], y["sem_seg"])


def test_a_batch_holds_labelled_source_and_unlabelled_target_images(cfg):
    (batch,) = take(build_paired_loader(cfg), 1)
    assert set(batch) == {"source", "target"}
    assert len(batch["source"]) == len(batch["target"]) == 4
    for image in batch["source"] + batch["target"]:
        assert image["image"].shape == (3, 32, 32) and image["image"].dtype == torch.uint8
    assert all(image["sem_seg"].shape == (32, 32) for image in batch["source"])
    assert not any("sem_seg" in image for image in batch["target"])


def test_without_self_training_there_is_no_target(cfg):
    cfg.SELF_TRAINING.ENABLED = False
    cfg.DATASETS.TRAIN_TARGET = ("a set that does not exist",)
    (batch,) = take(build_paired_loader(cfg), 1)
    assert set(batch) == {"source"}


@pytest.mark.parametrize("distort", [False, True])
def test_workers_do_not_change_a_byte(cfg, distort):
    cfg.INPUT.COLOR_AUG_SSD = distort
    alone = take(build_paired_loader(cfg), 5)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(alone, take(build_paired_loader(cfg), 5))


@pytest.mark.parametrize("domain", ["source", "target"])
def test_the_seed_moves_files_and_crops(cfg, domain):
    cfg.DATALOADER.RARE_CLASS.ENABLED = False
    seen = []
    for cfg.SEED in (0, 1):
        images = [image for batch in take(build_paired_loader(cfg), 3) for image in batch[domain]]
        crops = {image["file_name"]: image["image"] for image in images}
        seen.append(([image["file_name"] for image in images], crops))
    (files, crops), (other_files, other_crops) = seen
    assert files != other_files
    assert any(not torch.equal(crops[name], other_crops[name]) for name in crops)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sought_loader_goes_on_like_a_straight_one(cfg, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers
    straight = take(build_paired_loader(cfg), 7)
    resumed = build_paired_loader(cfg)
    iterator = iter(resumed)
    resumed.seek(4)  # after iter(), before the first batch
    assert_same(straight[4:], [next(iterator) for _ in range(3)])


def test_source_and_target_are_drawn_independently(cfg):
    cfg.DATALOADER.RARE_CLASS.ENABLED = False
    batches = take(build_paired_loader(cfg), 3)
    order = {
        domain: [image["file_name"][-5] for batch in batches for image in batch[domain]]
        for domain in ("source", "target")
    }
    assert order["source"] != order["target"]
    for names in order.values():  # twelve draws of six images: two epochs
        assert sorted(names[:6]) == sorted(names[6:]) == list("012345")


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_batches_of_one_process(cfg, monkeypatch, world_size):
    whole = take(build_paired_loader(cfg), 3)
    parts = []
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(take(build_paired_loader(cfg), 3))
    joined = [
        {d: [image for part in batch for image in part[d]] for d in ("source", "target")}
        for batch in zip(*parts)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(cfg, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers
    torch.manual_seed(3), np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(build_paired_loader(cfg), 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_nothing_is_read_before_the_first_batch(cfg, monkeypatch):
    cfg.DATALOADER.RARE_CLASS.ENABLED = False
    monkeypatch.setattr(paired_loader, "DataLoader", None)
    iterator = iter(build_paired_loader(cfg))
    with pytest.raises(TypeError):
        next(iterator)


def test_rare_classes_are_drawn_from_the_images_that_show_them(cfg):
    # Class 2 has a third of one of six images, and DAFormer's temperature makes it near certain.
    batches = take(build_paired_loader(cfg), 3)
    assert {image["file_name"][-5] for batch in batches for image in batch["source"]} == {"0"}


def test_statistics_and_records_of_several_sets_stay_in_step(cfg, tmp_path, register):
    cfg.DATASETS.TRAIN = (
        register(write_images(tmp_path / "none_of_class_2", num_classes=2)),
        *cfg.DATASETS.TRAIN,
    )
    cfg.DATALOADER.RARE_CLASS.TEMPERATURE = 1e-6  # the rarest class alone
    batches = take(build_paired_loader(cfg), 2)
    drawn = {image["file_name"] for batch in batches for image in batch["source"]}
    assert drawn == {str(tmp_path / "source" / "0.png")}


def test_sets_with_shares_are_drawn_in_them_and_the_log_says_so(cfg, tmp_path, register, caplog):
    more = register(write_images(tmp_path / "none_of_class_2", num_classes=2))
    target = register(write_images(tmp_path / "more", labelled=False))
    cfg.DATASETS.TRAIN = (*cfg.DATASETS.TRAIN, more)
    cfg.DATASETS.TRAIN_TARGET = (*cfg.DATASETS.TRAIN_TARGET, target)
    cfg.DATASETS.SHARES = [[cfg.DATASETS.TRAIN[0], 1e-9], [more, 1.0]]
    with caplog.at_level("INFO"):
        batches = take(build_paired_loader(cfg), 2)
    drawn = {image["file_name"] for batch in batches for image in batch["source"]}
    assert {Path(file).parent.name for file in drawn} == {"none_of_class_2"}
    assert len(drawn) > 2  # its own rare classes, as if it were alone
    scaled = "scaled by 0.75 (0.75 to 0.75)"
    assert f"{more}: 6 images, 100.0% of the draws; {scaled}; no pixel of c" in caplog.text
    assert f"{target}: 6 images, 50.0% of the draws; {scaled}" in caplog.text


def test_each_source_set_has_its_own_label_map(cfg, tmp_path, register):
    swapped = register(write_images(tmp_path / "swapped"), label_map={0: 1, 1: 0, 2: 2})
    cfg.DATASETS.TRAIN = (*cfg.DATASETS.TRAIN, swapped)
    cfg.DATALOADER.RARE_CLASS.ENABLED = False
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.SOURCE_SIZE, cfg.INPUT.CROP.SIZE = (0, 0), (64, 64)
    seen = set()
    for image in itertools.chain(*(b["source"] for b in take(build_paired_loader(cfg), 3))):
        raw = np.array(Image.open(image["file_name"].replace(".png", "_label.png")))
        folder = image["file_name"].split("/")[-2]
        expected = np.array([1, 0, 2])[raw] if folder == "swapped" else raw
        assert np.array_equal(image["sem_seg"].numpy(), expected)
        seen.add(folder)
    assert seen == {"source", "swapped"}


def test_a_labelled_target_set_is_refused(cfg):
    cfg.DATASETS.TRAIN_TARGET = cfg.DATASETS.TRAIN
    with pytest.raises(ValueError, match="TRAIN_TARGET"):
        take(build_paired_loader(cfg), 1)


def test_only_the_first_rank_counts_before_the_others_read(cfg, monkeypatch):
    for is_main in (True, False):
        events = []
        count = build.class_statistics
        monkeypatch.setattr(comm, "is_main_process", lambda is_main=is_main: is_main)
        monkeypatch.setattr(comm, "synchronize", lambda events=events: events.append("wait"))
        monkeypatch.setattr(
            build,
            "class_statistics",
            lambda *a, events=events, count=count: events.append("count") or count(*a),
        )
        build_paired_loader(cfg)
        assert events == (["count", "wait"] if is_main else ["wait", "count"])
        monkeypatch.undo()


def test_streams_can_be_sent_to_a_worker_of_any_start_method(cfg):
    loader = pickle.loads(pickle.dumps(build_paired_loader(cfg)))
    assert_same(take(build_paired_loader(cfg), 2), take(loader, 2))


def test_the_test_loader_shows_every_image_once_at_the_target_size(cfg, tmp_path, register):
    cfg.INPUT.TARGET_SIZE = (32, 32)
    name = register(write_images(tmp_path / "val"))
    images = [image for batch in build_test_loader(cfg, name) for image in batch]
    assert [image["file_name"][-5] for image in images] == list("012345")
    for image in images:
        assert image["image"].shape == (3, 32, 32)
        assert (image["height"], image["width"]) == (64, 64)


def spoil(folder, *numbers):
    """Cuts images in half; returns their files."""
    files = [folder / f"{number}.png" for number in numbers]
    for file in files:
        file.write_bytes(file.read_bytes()[:6000])
    return [str(file) for file in files]


@pytest.mark.parametrize(("workers", "domain"), [(0, "source"), (2, "target")])
def test_a_corrupt_image_ends_training_with_the_same_words_in_any_process(
    cfg, tmp_path, workers, domain
):
    bad = spoil(tmp_path / domain, *range(NUM_IMAGES))
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(BadFile) as caught:
        take(build_paired_loader(cfg), 1)
    assert caught.value.file in bad and "worker" not in str(caught.value)
    assert str(caught.value).startswith(f"{caught.value.file} cannot be decoded")


def test_skipped_files_are_replaced_counted_and_reported(cfg, tmp_path):
    bad = {*spoil(tmp_path / "target", 1, 4), *spoil(tmp_path / "source", 2)}
    cfg.DATALOADER.ON_BAD_FILE, cfg.DATALOADER.RARE_CLASS.ENABLED = "skip", False
    loader = build_paired_loader(cfg)
    batches = take(loader, 6)
    shown = [
        image["file_name"] for batch in batches for images in batch.values() for image in images
    ]
    assert len(shown) == 2 * 6 * 4 and not bad & set(shown)
    assert all("bad_files" not in image for batch in batches for image in batch["source"])
    assert set(loader.bad_files.counts) == bad
    # 24 draws of each domain are four epochs: each bad file comes four times, or instead of others
    assert all(count >= 4 for count, _ in loader.bad_files.counts.values())
    report = loader.bad_files.report()
    assert "3 files" in report and all(file in report for file in bad)


@pytest.mark.parametrize("rare", [False, True])
def test_with_skipped_files_batches_depend_on_seed_and_position_alone(cfg, tmp_path, rare):
    spoil(tmp_path / "target", 0, 5)
    spoil(tmp_path / "source", 3)
    cfg.DATALOADER.ON_BAD_FILE, cfg.DATALOADER.RARE_CLASS.ENABLED = "skip", rare
    whole = build_paired_loader(cfg)
    expected = take(whole, 5)
    cfg.DATALOADER.NUM_WORKERS = 2
    resumed = build_paired_loader(cfg)
    resumed.seek(2)
    assert_same(take(resumed, 3), expected[2:])
    cfg.DATALOADER.NUM_WORKERS = 0
    halves = []
    for rank in range(2):
        loader = build_paired_loader(cfg)
        loader.rank, loader.world_size = rank, 2
        halves.append(take(loader, 5))
    joined = [{d: a[d] + b[d] for d in a} for a, b in zip(*halves)]
    assert_same(joined, expected)


def test_more_bad_files_than_the_limit_end_training_with_their_names(cfg, tmp_path):
    bad = spoil(tmp_path / "target", 0, 1, 2)
    cfg.DATALOADER.ON_BAD_FILE, cfg.DATALOADER.MAX_BAD_FILES = "skip", 2
    with pytest.raises(ValueError, match=r"MAX_BAD_FILES 2") as caught:
        take(build_paired_loader(cfg), 6)
    assert all(file in str(caught.value) for file in bad)


def test_a_set_of_nothing_but_bad_files_ends_training(cfg, tmp_path):
    spoil(tmp_path / "target", *range(NUM_IMAGES))
    cfg.DATALOADER.ON_BAD_FILE = "skip"
    with pytest.raises(BadFile, match=r"target/\d\.png"):
        take(build_paired_loader(cfg), 1)


def test_a_corrupt_label_is_skipped_where_classes_are_counted_and_not_forgotten(cfg, tmp_path):
    label = tmp_path / "source" / "1_label.png"
    whole = label.read_bytes()
    label.write_bytes(whole[:100])
    with pytest.raises(BadFile, match=r"1_label\.png"):
        build_paired_loader(cfg)
    cfg.DATALOADER.ON_BAD_FILE = "skip"
    for _ in range(2):  # not cached: the second start names it again
        assert list(build_paired_loader(cfg).bad_files.counts) == [str(label)]
    label.write_bytes(whole)
    loader = build_paired_loader(cfg)
    assert not loader.bad_files.counts
    # Known from a run with a higher limit, and repaired since: good images do not end it.
    loader.bad_files.limit = 0
    loader.bad_files.load_state_dict({str(label): [1, "cut"]})
    take(loader, 1)


def test_a_label_with_an_unknown_id_is_refused_where_no_class_is_counted(cfg, tmp_path):
    cfg.DATALOADER.RARE_CLASS.ENABLED, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = False, 2
    with pytest.raises(BadFile, match=r"0_label\.png holds the ids \[2\].*below 2"):
        take(build_paired_loader(cfg), 2)


class _Suicide:
    """A mapper whose process the kernel ends."""

    def __init__(self, number):
        self.number = number

    def __call__(self, record, draw):
        os.kill(os.getpid(), self.number)
        time.sleep(5)


@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGKILL, "SIGKILL.*memory runs out"), (signal.SIGSEGV, "SIGSEGV.*decoder")],
)
def test_the_death_of_a_worker_is_explained(number, cause):
    stream = DomainStream([{}], UniformDraws(1, seed=0), _Suicide(number))
    loader = PairedLoader({"source": stream}, batch_size=1, num_workers=1)
    with pytest.raises(RuntimeError, match=f"loader worker 0 was killed by {cause}"):
        next(iter(loader))


def test_a_worker_that_exits_is_told_from_one_that_was_killed():
    assert "worker 1 ended with status 3" in explain_death([None, 3])
    assert "lost" in explain_death([None, None])


def test_the_share_that_makes_an_image_a_candidate_is_that_of_images_not_of_crops(cfg):
    rare = cfg.DATALOADER.RARE_CLASS
    rare.MIN_IMAGE_FRACTION, rare.MIN_CROP_FRACTION = 0.2, 0.4
    counts, sizes = np.array([[70, 30], [85, 15]]), np.full((2, 2), 10)
    sampler = rare_class_sampler(cfg, [ClassStatistics(("a.png", "b.png"), counts, sizes)])
    assert sampler.candidates[1].tolist() == [0]


def test_a_class_that_no_source_shows_is_refused_unless_one_of_them_says_so(
    cfg, tmp_path, register
):
    names = [register(write_images(tmp_path / name, num_classes=2)) for name in ("one", "two")]
    cfg.DATASETS.TRAIN = tuple(names)
    said = rf"no label of {names[0]}, {names[1]} has a pixel of c; .*says so: absent"
    with pytest.raises(ValueError, match=said):
        build_paired_loader(cfg)
    MetadataCatalog.get(names[1]).absent = ("c",)
    build_paired_loader(cfg)
