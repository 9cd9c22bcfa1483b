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

SHORT = ("SOLVER.CHECKPOINT_PERIOD", 100, "VIS_PERIOD", 0, *SMALLEST)


def spoil(trainer, iterations, where: str) -> None:
    """Plants NaN or infinity in what the chosen iterations see or compute."""
    next_step, criterion = trainer.next_step, trainer.criterion

    def spoilt_step():
        step = next_step()
        if step.iteration in iterations and where in ("source", "target"):
            images = step.source.images if where == "source" else step.target
            images[0, :, :8, :8] = math.nan
        return step

    class SpoiltCriterion:
        of_masked = getattr(criterion, "of_masked", None)

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


def snapshot(trainer) -> dict[str, torch.Tensor]:
    """All that a step may change, but the teacher's average of the unchanged student."""
    state = {f"student.{k}": v.clone() for k, v in trainer.student.state_dict().items()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": v.clone() for k, v in values.items()}
    return state


def not_finite(content: dict) -> list[str]:
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *(("mic_gauss", where) for where in ("source", "target", "loss", "gradient")),
        ("daformer_centroid", "target"),  # the teacher alone sees it: the rest is pasted over
    ],
)
def test_spoilt_step_changes_nothing_and_is_counted(tiny_cfg, method, where):
    # Prototypes exist since iteration 2; batch norm of the teacher keeps statistics of its own.
    opts = ("SOLVER.MAX_ITER", 5, "SELF_TRAINING.TEACHER_STATISTICS", "target")
    cfg = tiny_cfg(method, *SHORT, *opts)
    seen = {}

    def plant(trainer):
        spoil(trainer, {3}, where)
        run_step = trainer.run_step

        def step():
            before = snapshot(trainer)
            run_step()
            after = snapshot(trainer)
            seen[trainer.iter] = [k for k in before if not torch.equal(before[k], after[k])]

        trainer.run_step = step

    trainer = train(cfg, before=plant)
    assert seen[3] == [] and seen[2] and seen[4]
    assert trainer.guard.total == 1
    assert not_finite(checkpoint(cfg.OUTPUT_DIR)) == []
    rows = metrics(cfg.OUTPUT_DIR)
    assert [rows[i]["skipped_steps"] for i in range(5)] == ["0.0", "0.0", "0.0", "1.0", "1.0"]
    assert "nan" not in str({k: v for i in range(5) for k, v in rows[i].items()})


def test_nothing_but_the_skipped_step_differs_from_a_run_that_sees_it(tiny_cfg, tmp_path):
    """The schedule and the random streams go on as if the step had been taken."""
    opts = (*SHORT, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR")
    plain = train(tiny_cfg("daformer", *opts, str(tmp_path / "plain")))
    spoilt = train(
        tiny_cfg("daformer", *opts, str(tmp_path / "spoilt")),
        before=lambda trainer: spoil(trainer, {1}, "source"),
    )
    assert spoilt.scheduler.state_dict() == plain.scheduler.state_dict()
    assert spoilt.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]


def test_gradient_whose_square_overflows_is_skipped(tiny_cfg):
    trainer = AdaptationTrainer(tiny_cfg("source_only", *SHORT, "SOLVER.MAX_ITER", 1))
    criterion = trainer.criterion
    trainer.criterion = lambda step: {k: v * 1e25 for k, v in criterion(step).items()}
    trainer.train()
    assert trainer.guard.total == 1
    assert all(v.isfinite().all() for v in snapshot(trainer).values())


def test_run_stops_after_too_many_in_a_row_and_names_the_files(tiny_cfg):
    cfg = tiny_cfg(
        "daformer", *SHORT, "SOLVER.MAX_SKIPPED", 3, "SOLVER.MAX_ITER", 9, "LOG_PERIOD", 2
    )
    with pytest.raises(Diverged, match="MAX_SKIPPED is 3") as error:
        train(cfg, before=lambda trainer: spoil(trainer, {1, 3, 4, 5, 6}, "source"))
    assert "loss_sem_seg" in str(error.value) and "source_" in str(error.value)
    report = json.loads(Path(cfg.OUTPUT_DIR, "diverged.json").read_text())
    (rank,) = report["skipped_by_rank"]
    assert [skipped["iteration"] for skipped in rank] == [3, 4, 5]
    assert all(len(skipped["files"]) == 4 for skipped in rank)  # two of each domain


def test_report_names_the_last_good_checkpoint(tiny_cfg):
    opts = (*SHORT, "SOLVER.MAX_SKIPPED", 2, "SOLVER.CHECKPOINT_PERIOD", 2)
    cfg = tiny_cfg("source_only", *opts)
    with pytest.raises(Diverged, match=r"model_0000003\.pth"):
        train(cfg, before=lambda trainer: spoil(trainer, {3, 4}, "source"))
    assert not_finite(checkpoint(cfg.OUTPUT_DIR, "model_0000003.pth")) == []


def test_steps_in_a_row_are_counted_across_a_resume(tiny_cfg):
    opts = (*SHORT, "SOLVER.MAX_SKIPPED", 3, "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 10)

    def plant(trainer):
        spoil(trainer, {0, 1, 2}, "source")

    cfg = tiny_cfg("source_only", *opts, "SOLVER.MAX_ITER", 2)
    train(cfg, before=plant)
    with pytest.raises(Diverged, match=r"0 to 2"):
        train(tiny_cfg("source_only", *opts, "SOLVER.MAX_ITER", 4), before=plant)


def test_overflow_of_half_precision_lowers_the_scale_and_is_skipped(tiny_cfg):
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16", "SOLVER.MAX_ITER", 2)
    trainer = AdaptationTrainer(tiny_cfg("source_only", *SHORT, *half))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    trainer.train()
    assert trainer.guard.total == 2 and trainer.grad_scaler.get_scale() == 2.0**118


def test_metric_that_is_absent_stops_nothing_and_is_left_out(tiny_cfg):
    # As a class without pixels has none; detectron2's own trainer ends at such a value.
    cfg = tiny_cfg("daformer_gauss", *SHORT, "SOLVER.MAX_ITER", 2)

    def plant(trainer):
        write_metrics = trainer.write_metrics

        def write(losses):
            trainer.metrics.add({"class/absent": torch.tensor(math.nan)})
            write_metrics(losses)

        trainer.write_metrics = write

    trainer = train(cfg, before=plant)
    rows = metrics(cfg.OUTPUT_DIR)
    assert trainer.guard.total == 0
    assert all("loss_sem_seg" in rows[i] and "class/absent" not in rows[i] for i in range(2))


def test_collapse_of_the_pseudo_labels_is_logged_and_warned_of(tiny_cfg, caplog):
    floors = ("SELF_TRAINING.COLLAPSE.MIN_ENTROPY", 1.0, "SELF_TRAINING.COLLAPSE.AFTER", 1)
    cfg = tiny_cfg("daformer", *SHORT, *floors, "SOLVER.MAX_ITER", 3)
    with caplog.at_level("WARNING"):
        train(cfg)
    assert caplog.text.count("class_entropy fell to") == 1 and "Iteration 1:" in caplog.text
    row = metrics(cfg.OUTPUT_DIR)[2]
    for name in ("class_entropy", "confident_fraction"):
        assert 0 <= float(row[f"pseudo_label/{name}"]) <= 1
