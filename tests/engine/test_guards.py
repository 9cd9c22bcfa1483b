"""A step that is not finite leaves no trace but its count."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST
from processes import checkpoint, metrics, train

from mpcl.engine import AdaptationTrainer
from mpcl.engine.guards import Diverged

SHORT = ("SOLVER.CHECKPOINT_PERIOD", 100, "VIS_PERIOD", 0, "DATASETS.TEST", (), *SMALLEST)


def spoil(trainer, iterations, where: str) -> None:
    """Plants NaN or infinity in what the chosen iterations see or compute."""
    next_step, criterion = trainer.next_step, trainer.criterion

    def spoilt_step():
        step = next_step()
        if step.iteration in iterations and where in ("source", "target"):
            getattr(step, where).images[0, :, :8, :8] = math.nan
        return step

    class SpoiltCriterion:
        of_masked = criterion.of_masked

        def __call__(self, step):
            losses = criterion(step)
            if step.iteration in iterations and where == "loss":
                losses["loss_sem_seg"] = losses["loss_sem_seg"] + math.inf  # its gradient is finite
            if step.iteration in iterations and where == "gradient":
                # The loss is 0 and finite, its gradient 0 * infinity.
                weight = trainer.student.sem_seg_head.classifier.weight
                losses["loss_sem_seg"] = losses["loss_sem_seg"] + (weight * 0).sum().sqrt()
            return losses

    trainer.next_step, trainer.criterion = spoilt_step, SpoiltCriterion()


def kept(trainer) -> dict[str, torch.Tensor]:
    """What a skipped step must not change: parameters, optimizer, statistics of batch norm."""
    state = {f"student.{k}": v.clone() for k, v in trainer.student.named_parameters()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": v.clone() for k, v in values.items()}
    for role in ("student", "teacher"):
        buffers = {} if getattr(trainer, role) is None else getattr(trainer, role).named_buffers()
        state |= {f"{role}.{k}": v.clone() for k, v in buffers if ".running_" in k}
    return state


def not_finite(content: dict) -> list[str]:
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *(("mic_gauss", "source"), ("daformer_gauss", "loss"), ("daformer_gauss", "gradient")),
        ("daformer_centroid", "target"),  # the teacher alone sees it: the rest is pasted over
    ],
)
def test_spoilt_step_changes_nothing_that_is_kept_and_is_counted(tiny_cfg, method, where):
    # Prototypes exist since iteration 2; batch norm of the teacher keeps statistics of its own.
    opts = ("SOLVER.MAX_ITER", 5, "SELF_TRAINING.TEACHER_STATISTICS", "target")
    cfg = tiny_cfg(method, *SHORT, *opts)
    changed = {}

    def plant(trainer):
        spoil(trainer, {3}, where)
        run_step = trainer.run_step

        def step():
            before = kept(trainer)
            run_step()
            after = kept(trainer)
            changed[trainer.iter] = [k for k in before if not torch.equal(before[k], after[k])]

        trainer.run_step = step

    trainer = train(cfg, before=plant)
    assert changed[3] == []
    for iteration in (2, 4):  # all of it does change
        for part in ("student.backbone", "optimizer.0", "student.sem_seg_head.fusion", "teacher."):
            assert any(k.startswith(part) for k in changed[iteration]), part
    assert trainer.guard.total == 1
    assert trainer.scheduler.last_epoch == 5  # goes on as if the step had been taken
    assert not_finite(checkpoint(cfg.OUTPUT_DIR)) == []  # prototypes and banks, too
    assert [metrics(cfg.OUTPUT_DIR)[i]["skipped_steps"] for i in range(5)] == [0, 0, 0, 1, 1]


def test_gradient_whose_square_overflows_is_skipped(tiny_cfg):
    trainer = AdaptationTrainer(tiny_cfg("source_only", *SHORT, "SOLVER.MAX_ITER", 1))
    criterion = trainer.criterion
    trainer.criterion = lambda step: {k: v * 1e25 for k, v in criterion(step).items()}
    trainer.train()
    assert trainer.guard.total == 1 and not_finite(kept(trainer)) == []


def test_run_stops_after_too_many_in_a_row_and_names_files_and_the_last_checkpoint(tiny_cfg):
    opts = ("SOLVER.MAX_SKIPPED", 3, "SOLVER.MAX_ITER", 9, "LOG_PERIOD", 2)
    cfg = tiny_cfg("daformer", *SHORT, *opts, "SOLVER.CHECKPOINT_PERIOD", 2)
    message = r"loss_sem_seg.*MAX_SKIPPED is 3.*source_.*model_0000003\.pth"
    with pytest.raises(Diverged, match=message):
        train(cfg, before=lambda trainer: spoil(trainer, {1, 3, 4, 5, 6}, "source"))
    report = json.loads(Path(cfg.OUTPUT_DIR, "diverged.json").read_text())
    assert report["last_good_checkpoint"].endswith("model_0000003.pth")
    (rank,) = report["skipped_by_rank"]
    assert [skipped["iteration"] for skipped in rank] == [3, 4, 5]
    assert all(len(skipped["files"]) == 4 for skipped in rank)  # two of each domain
    assert not_finite(checkpoint(cfg.OUTPUT_DIR, "model_0000003.pth")) == []


def test_steps_in_a_row_are_counted_across_a_resume(tiny_cfg):
    opts = (*SHORT, "SOLVER.MAX_SKIPPED", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 10)

    def plant(trainer):
        spoil(trainer, {0, 1, 2}, "source")

    train(tiny_cfg("source_only", *opts, "SOLVER.MAX_ITER", 2), before=plant)
    with pytest.raises(Diverged, match=r"0 to 2"):
        train(tiny_cfg("source_only", *opts, "SOLVER.MAX_ITER", 4), before=plant)


def test_collapse_of_the_pseudo_labels_is_logged_and_warned_of(tiny_cfg, caplog):
    floors = ("SELF_TRAINING.COLLAPSE.MIN_ENTROPY", 1.0, "SELF_TRAINING.COLLAPSE.AFTER", 1)
    cfg = tiny_cfg("daformer", *SHORT, *floors, "SOLVER.MAX_ITER", 3)
    with caplog.at_level("WARNING"):
        train(cfg)
    assert caplog.text.count("class_entropy fell to") == 1 and "Iteration 1:" in caplog.text
    row = metrics(cfg.OUTPUT_DIR)[2]
    assert all(0 <= row[f"pseudo_label/{n}"] <= 1 for n in ("class_entropy", "confident_fraction"))


def test_the_count_of_skipped_steps_goes_on_after_a_resume(tiny_cfg):
    opts = (*SHORT, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER")
    train(tiny_cfg("source_only", *opts, 2), before=lambda trainer: spoil(trainer, {0}, "source"))
    cfg = tiny_cfg("source_only", *opts, 4)
    assert train(cfg).guard.total == 1
    assert [metrics(cfg.OUTPUT_DIR)[i]["skipped_steps"] for i in range(4)] == [1, 1, 1, 1]
