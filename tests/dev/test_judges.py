"""What teacher and prototypes know of pseudo-labels, by hand and on a run."""

import json

import judges
import pytest
import torch
from judges import Pixels

from mpcl.engine.evaluate import evaluate_networks
from mpcl.predict.loading import load_networks

# Two classes: the teacher is wrong twice, of which it is sure once; there the prototypes disagree.
PIXELS = Pixels(
    truth=torch.tensor([0, 0, 0, 1, 1, 1]),
    teacher=torch.tensor([0, 0, 1, 1, 1, 0]),
    prototypes=torch.tensor([0, 1, 1, 1, 1, 1]),
    both=torch.tensor([0, 0, 1, 1, 1, 1]),
    confidence=torch.tensor([0.99, 0.98, 0.6, 0.99, 0.7, 0.97]),
    posterior=torch.tensor([0.9, 0.4, 0.85, 0.9, 0.8, 0.1]),
)


def test_labels_and_judges_are_scored_as_by_hand():
    rows = judges.labels_by(PIXELS, num_classes=3)  # the third class is nowhere: not in the mean
    assert rows[0] == ["teacher", pytest.approx(50), pytest.approx(100 * 4 / 6)]
    assert rows[1] == [
        "prototypes",
        pytest.approx(100 * (1 / 3 + 3 / 5) / 2),
        pytest.approx(400 / 6),
    ]
    assert rows[2] == ["both", pytest.approx(100 * (2 / 3 + 3 / 4) / 2), pytest.approx(500 / 6)]
    # Pairs of a right and a wrong label whose right one has the larger value.
    expected = [(4 + 3) / 8, (2 + 4) / 8, (3 + 4) / 8]
    assert [row[1] for row in judges.judged_by(PIXELS)] == pytest.approx(expected)


def test_pixels_hold_what_both_say_of_labelled_ones():
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).log_softmax(0)
    prototypes = torch.tensor([[0.0, 3.0], [2.5, 0.0]]).log_softmax(0)
    truth = torch.tensor([[0, 1, 255]])
    maps = (torch.cat([x, x[:, :1]], 1)[None, :, None] for x in (teacher, prototypes))
    found = judges._pixels(*maps, truth)
    assert [column.tolist() for column in found[:4]] == [[0, 1], [0, 1], [1, 0], [1, 0]]
    torch.testing.assert_close(found.confidence, torch.stack([teacher[0, 0], teacher[1, 1]]).exp())
    torch.testing.assert_close(
        found.posterior, torch.stack([prototypes[0, 0], prototypes[1, 1]]).exp()
    )


def test_agreement_leaves_out_what_it_should():
    first, second, third, total = judges.trusted(PIXELS, 0.968, ["a", "b", "c"])
    assert first == ["a", *map(pytest.approx, (100, 200 / 3, 100 / 3, 100))]
    assert second == ["b", *map(pytest.approx, (100 / 3, 100, 100 / 3, 100))]
    assert third[1] != third[1]  # the teacher never says c
    assert total == ["all", *map(pytest.approx, (400 / 6, 75, 200 / 6, 100))]


def test_command_judges_a_run_as_its_evaluation_does(trained_runs, tmp_path, capsys):
    run = trained_runs["daformer_gauss"]
    judges.main([str(run), "--images", "3"])
    printed = capsys.readouterr().out
    pixels = judges.look(load_networks(run), number=3)
    by_teacher, by_prototypes, _ = judges.labels_by(pixels, num_classes=4)
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert by_teacher[1] == pytest.approx(last["sem_seg/mIoU"], abs=0.05)
    networks = load_networks(run, opts=["TEST.OUTPUT", "prototypes"])
    networks.cfg.OUTPUT_DIR = str(tmp_path)  # other tests read what the run's evaluation left
    found = evaluate_networks(networks)
    assert by_prototypes[1] == pytest.approx(found["sem_seg_student"]["mIoU"], abs=1e-3)
    assert f"{by_teacher[1]:.2f}" in printed and "ground" in printed


def test_a_run_without_prototypes_is_refused(trained_runs):
    with pytest.raises(ValueError, match="expected a run with a teacher and prototypes"):
        judges.look(load_networks(trained_runs["source_only"]), number=1)
