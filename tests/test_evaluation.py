import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score, precision_recall_fscore_support

from mpcl.evaluation.evaluator import CLASS_SCORES, SegmentationEvaluator, check_class_subsets


@pytest.fixture
def dataset(tmp_path):
    """Two images whose raw ids 10, 20, 30, 99 mean class 0, 1, 2, ignore."""
    records = []
    raw = [[[10, 10, 20], [10, 99, 20]], [[20, 20, 20], [10, 10, 99]]]
    for i, label in enumerate(raw):
        path = tmp_path / f"{i}_label.png"
        Image.fromarray(np.array(label, np.uint8)).save(path)
        records.append({"file_name": f"{i}.png", "sem_seg_file_name": str(path), "image_id": i})
    name = "evaluation_test"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b", "c"],
        stuff_colors=[(0, 0, 0)] * 3,
        ignore_label=255,
        label_map={10: 0, 20: 1, 30: 2},
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate(evaluator, predictions):
    """Results of an evaluator that the predictions (H, W) of the images are shown to."""
    evaluator.reset()
    for i, prediction in enumerate(predictions):
        logits = torch.nn.functional.one_hot(torch.tensor(prediction), evaluator._num_classes)
        evaluator.process([{"file_name": f"{i}.png"}], [{"sem_seg": logits.permute(2, 0, 1)}])
    return evaluator.evaluate()


def test_miou_counts_by_hand(dataset):
    predictions = [[[0, 0, 1], [1, 2, 1]], [[1, 1, 0], [0, 0, 1]]]
    # Labelled pixels: a: 5, of which 4 found, predicted 5; b: 5, of which 4 found, predicted 5.
    scores = evaluate(SegmentationEvaluator(dataset), predictions)["sem_seg"]
    assert scores["IoU-a"] == pytest.approx(100 * 4 / 6)
    assert scores["IoU-b"] == pytest.approx(100 * 4 / 6)
    assert scores["mIoU"] == pytest.approx(100 * 4 / 6)
    assert scores["pACC"] == pytest.approx(80)


def test_numbers_are_the_stock_evaluators(dataset, tmp_path):
    train_ids = tmp_path / "train_ids"
    train_ids.mkdir()
    predictions = [[[0, 1, 1], [0, 2, 1]], [[1, 2, 1], [0, 1, 1]]]
    ours = evaluate(SegmentationEvaluator(dataset), predictions)["sem_seg"]
    mapping = {10: 0, 20: 1, 30: 2, 99: 255}
    stock = SemSegEvaluator(
        dataset,
        sem_seg_loading_fn=lambda path, dtype=None: np.vectorize(mapping.get)(
            np.asarray(Image.open(path))
        ),
    )
    theirs = evaluate(stock, predictions)["sem_seg"]
    assert {name.split("-")[0] for name in ours.keys() - theirs.keys()} == {
        *CLASS_SCORES,
        *CLASS_SCORES.values(),
    }
    assert all(value == theirs[name] for name, value in ours.items() if name in theirs)


def test_dice_precision_and_recall_are_sklearns(dataset, caplog):
    # b is never predicted; c is predicted but never shown, hence absent.
    predictions = [[[0, 0, 2], [2, 2, 0]], [[0, 0, 0], [0, 2, 0]]]
    truth = [0, 0, 1, 0, 1, 1, 1, 1, 0, 0]
    predicted = [0, 0, 2, 2, 0, 0, 0, 0, 0, 2]
    with caplog.at_level("INFO", "mpcl.evaluation.evaluator"):
        scores = evaluate(SegmentationEvaluator(dataset), predictions)["sem_seg"]
    *found, _ = precision_recall_fscore_support(truth, predicted, labels=[0, 1], zero_division=0)
    for kind, mean, values in zip(
        ("precision", "recall", "Dice"), ("mPrecision", "mRecall", "mDice"), found
    ):
        assert [scores[f"{kind}-{name}"] for name in "ab"] == pytest.approx(list(100 * values))
        assert scores[mean] == pytest.approx(100 * values.mean())
        assert f"{kind}-c" not in scores
    assert "IoU-c" not in scores and all(np.isfinite(value) for value in scores.values())
    assert scores["precision-b"] == 0 and scores["recall-a"] == scores["ACC-a"]
    lines = {line.split()[0]: line.split()[1:] for line in caplog.text.splitlines() if line}
    expected = [f"{scores[f'{kind}-a']:.2f}" for kind in ("IoU", "Dice", "precision", "recall")]
    assert lines["a"] == expected and lines["c"] == ["absent"] * 4
    assert lines["mean"][1:] == [f"{scores[m]:.2f}" for m in ("mDice", "mPrecision", "mRecall")]


def test_scores_that_are_no_numbers_are_told(dataset, caplog):
    evaluator = SegmentationEvaluator(dataset)
    record = DatasetCatalog.get(dataset)[0]
    evaluator.reset()
    scores = torch.zeros(3, 2, 3)
    with caplog.at_level("WARNING"):
        evaluator.process([record], [{"sem_seg": scores}])
        assert not caplog.text
        scores[1, 0, 2] = torch.nan
        evaluator.process([record], [{"sem_seg": scores}])
    assert f"{record['file_name']}: the network gives NaN" in caplog.text


CITYSCAPES = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
LACKING = {"terrain", "truck", "train"}
SYNTHIA = [
    ("16", [c for c in CITYSCAPES if c not in LACKING]),
    ("13", [c for c in CITYSCAPES if c not in LACKING | {"wall", "fence", "pole"}]),
]


@pytest.fixture
def random_world(tmp_path):
    """A set of six 19-class images in parts of two and four; (name, labels, predictions)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 19, (6, 40, 60)).astype(np.uint8)
    noise = rng.integers(0, 19, labels.shape)
    predictions = np.where(rng.random(labels.shape) < 0.6, labels, noise)
    labels[rng.random(labels.shape) < 0.1] = 255
    records = []
    for i, label in enumerate(labels):
        path = tmp_path / f"{i}_label.png"
        Image.fromarray(label).save(path)
        records.append({"file_name": f"{i}.png", "sem_seg_file_name": str(path), "image_id": i})
    sets = {"world_val": records, "world_fog_val": records[:2], "world_rain_val": records[2:]}
    for name, own in sets.items():
        DatasetCatalog.register(name, lambda own=own: own)
        MetadataCatalog.get(name).set(stuff_classes=CITYSCAPES, ignore_label=255, label_map=None)
    yield "world_val", labels, predictions
    for name in sets:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def independent_iou(labels, predictions):
    valid = labels != 255
    return 100 * jaccard_score(
        labels[valid], predictions[valid], labels=range(19), average=None, zero_division=0
    )


def test_synthia_means_are_of_16_and_13_classes_of_the_19_way_prediction(random_world, caplog):
    name, labels, predictions = random_world
    with caplog.at_level("INFO", "mpcl.evaluation.evaluator"):
        scores = evaluate(SegmentationEvaluator(name, class_subsets=SYNTHIA), predictions)[
            "sem_seg"
        ]
    iou = independent_iou(labels, predictions)
    sixteen = np.delete(iou, [9, 14, 16])
    thirteen = np.delete(iou, [3, 4, 5, 9, 14, 16])
    assert (len(sixteen), len(thirteen)) == (16, 13)
    assert scores["mIoU-16"] == pytest.approx(sixteen.mean())
    assert scores["mIoU-13"] == pytest.approx(thirteen.mean())
    assert scores["mIoU"] == pytest.approx(iou.mean())
    # Not the shortcut of scaling the mean of 19, which needs the others to be exactly 0.
    assert scores["mIoU-16"] != pytest.approx(scores["mIoU"] * 19 / 16)
    text = caplog.text
    assert f"{name}: mIoU-16 {sixteen.mean():.2f}" in text
    table = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert table["mean"][1:4] == [f"{scores[m]:.2f}" for m in ("mIoU-16", "mIoU-13", "mIoU")]
    assert table["terrain"][1:4] == ["absent", "absent", f"{iou[9]:.2f}"]
    assert table["wall"][1:4] == [f"{iou[3]:.2f}", "-", f"{iou[3]:.2f}"]
    assert "nan" not in text.lower()


def test_subset_class_without_ground_truth_is_left_out_of_the_mean(dataset):
    predictions = [[[0, 0, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 1]]]
    evaluator = SegmentationEvaluator(dataset, class_subsets=[("ac", ["a", "c"]), ("c", ["c"])])
    scores = evaluate(evaluator, predictions)["sem_seg"]
    assert scores["mIoU-ac"] == scores["IoU-a"] and "mIoU-c" not in scores
    assert all(np.isfinite(value) for value in scores.values())


def test_parts_of_a_set_are_scored_in_the_same_pass_as_if_alone(random_world):
    name, labels, predictions = random_world
    MetadataCatalog.get(name).set(parts=("world_fog_val", "world_rain_val"))
    results = evaluate(SegmentationEvaluator(name, class_subsets=SYNTHIA), predictions)
    assert list(results) == ["sem_seg", "world_fog_val", "world_rain_val"]
    chosen = {"sem_seg": slice(0, 6), "world_fog_val": slice(0, 2), "world_rain_val": slice(2, 6)}
    for task, images in chosen.items():
        iou = independent_iou(labels[images], predictions[images])
        found = [results[task][f"IoU-{c}"] for c in CITYSCAPES]
        np.testing.assert_allclose(found, iou)
        assert results[task]["mIoU-13"] == pytest.approx(
            np.delete(iou, [3, 4, 5, 9, 14, 16]).mean()
        )
    alone = SegmentationEvaluator("world_fog_val", class_subsets=SYNTHIA)
    assert evaluate(alone, predictions[:2])["sem_seg"] == results["world_fog_val"]


def test_evaluating_again_after_reset_counts_nothing_twice(random_world):
    name, labels, predictions = random_world
    MetadataCatalog.get(name).set(parts=("world_fog_val", "world_rain_val"))
    evaluator = SegmentationEvaluator(name)
    first = evaluate(evaluator, predictions)
    assert evaluate(evaluator, predictions) == first
    whole = confusion_matrix(labels[labels != 255], predictions[labels != 255], labels=range(19))
    np.testing.assert_array_equal(evaluator._conf_matrix[:-1, :-1], whole.T)


def test_a_part_of_ignored_pixels_alone_is_absent_everywhere(dataset, tmp_path):
    Image.fromarray(np.full((2, 3), 99, np.uint8)).save(tmp_path / "0_label.png")
    record = DatasetCatalog.get(dataset)[0]
    DatasetCatalog.register("ignored_part", lambda: [record])
    MetadataCatalog.get("ignored_part").set(
        stuff_classes=["a", "b", "c"], ignore_label=255, label_map={10: 0, 20: 1, 30: 2}
    )
    try:
        MetadataCatalog.get(dataset).set(parts=("ignored_part",))
        evaluator = SegmentationEvaluator(dataset, class_subsets=[("ab", ["a", "b"])])
        evaluator.reset()
        for i in range(2):
            evaluator.process([{"file_name": f"{i}.png"}], [{"sem_seg": torch.zeros(3, 2, 3)}])
        results = evaluator.evaluate()
        assert not [name for name in results["ignored_part"] if "mIoU" in name or "IoU-" in name]
        assert "mIoU-ab" in results["sem_seg"]
    finally:
        DatasetCatalog.remove("ignored_part")
        MetadataCatalog.remove("ignored_part")


@pytest.mark.parametrize(
    ("subsets", "match"),
    [
        ([("16", ["roda"])], r"subset '16' holds \['roda'\]"),
        ([("16", [])], "one or more of"),
        ([(16, ["road"])], "a number as name in quotes"),
        ([("16", ["road", "road"])], "each once"),
        ([("16", "road")], r"expected \[name"),
        (["16"], r"expected \[name"),
        ([5], r"expected \[name"),
        ([("16", 5)], r"expected \[name"),
        ([("16", ["road"]), ("16", ["car"])], "twice"),
    ],
)
def test_wrong_subsets_are_named(subsets, match):
    with pytest.raises(ValueError, match=match):
        check_class_subsets(subsets, CITYSCAPES)
