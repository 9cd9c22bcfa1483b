import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from mpcl.evaluation import SegmentationEvaluator


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
    evaluator.reset()
    for i, prediction in enumerate(predictions):
        logits = torch.nn.functional.one_hot(torch.tensor(prediction), 3).permute(2, 0, 1).float()
        evaluator.process([{"file_name": f"{i}.png"}], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


def test_miou_counts_by_hand(dataset):
    predictions = [[[0, 0, 1], [1, 2, 1]], [[1, 1, 0], [0, 0, 1]]]
    # Labelled pixels: a: 5, of which 4 found, predicted 5; b: 5, of which 4 found, predicted 5.
    scores = evaluate(SegmentationEvaluator(dataset), predictions)
    assert scores["IoU-a"] == pytest.approx(100 * 4 / 6)
    assert scores["IoU-b"] == pytest.approx(100 * 4 / 6)
    assert scores["mIoU"] == pytest.approx(100 * 4 / 6)
    assert scores["pACC"] == pytest.approx(80)


def test_class_without_ground_truth_is_absent_not_nan(dataset):
    scores = evaluate(
        SegmentationEvaluator(dataset), [[[0, 0, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 1]]]
    )
    assert "IoU-c" not in scores
    assert all(np.isfinite(value) for value in scores.values())


def test_numbers_are_the_stock_evaluators(dataset, tmp_path):
    train_ids = tmp_path / "train_ids"
    train_ids.mkdir()
    predictions = [[[0, 1, 1], [0, 2, 1]], [[1, 2, 1], [0, 1, 1]]]
    ours = evaluate(SegmentationEvaluator(dataset), predictions)
    mapping = {10: 0, 20: 1, 30: 2, 99: 255}
    stock = SemSegEvaluator(
        dataset,
        sem_seg_loading_fn=lambda path, dtype=None: np.vectorize(mapping.get)(
            np.asarray(Image.open(path))
        ),
    )
    theirs = evaluate(stock, predictions)
    assert ours and all(theirs[name] == value for name, value in ours.items())
