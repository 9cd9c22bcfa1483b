"""The whole training step on a tiny two-domain world."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.engine import AdaptationTrainer
from mpcl.engine.evaluate import evaluate_checkpoint

METHODS = ["source_only", "daformer", "daformer_centroid", "daformer_gauss", "mic_gauss"]


def train(cfg):
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def written_metrics(cfg) -> list[dict]:
    return [
        json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_and_evaluates(tiny_cfg, method):
    cfg = tiny_cfg(method)
    trainer = train(cfg)
    seen = set().union(*written_metrics(cfg))
    results = trainer._last_eval_results
    assert {"loss_sem_seg", "total_loss", "lr", "time", "data_time", "sem_seg/mIoU"} <= seen
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert ("sem_seg_student" in results) == (method != "source_only")
    assert ("loss_sem_seg_mix" in seen) == (method != "source_only")
    assert ("loss_contrast" in seen) == ("_" in method and method != "source_only")
    assert ("loss_sem_seg_masked" in seen) == method.startswith("mic")


def test_prototypes_start_at_their_iteration_and_then_move(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss")
    trainer = train(cfg)
    by_iteration = {}
    for row in written_metrics(cfg):
        by_iteration.setdefault(row["iteration"], {}).update(row)
    start = cfg.PROTOTYPES.INIT.ITER
    assert by_iteration[start - 1]["loss_contrast"] == 0
    assert by_iteration[start]["loss_contrast"] > 0 and by_iteration[start]["loss_consistency"] > 0
    prototypes = trainer.student.prototype_head.prototypes
    assert prototypes.started.all()
    assert torch.isfinite(prototypes.mean).all() and (prototypes.variance >= 0).all()
    logged = set().union(*by_iteration.values())
    assert {
        "pseudo_label/confident_fraction",
        "prototypes/marginal_violation",
        "prototypes/usage_entropy",
        "gradient_share/contrast",
        "gradient_share/consistency",
        "gradient_cosine/contrast",
        "teacher/momentum",
    } <= logged


def test_loss_falls_on_a_repeated_world(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss", "SOLVER.MAX_ITER", 40, "SOLVER.CHECKPOINT_PERIOD", 100)
    train(cfg)
    losses = [row["loss_sem_seg"] for row in written_metrics(cfg) if "loss_sem_seg" in row]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_eval_only_gives_the_scores_of_the_run(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss")
    expected = train(cfg)._last_eval_results
    assert evaluate_checkpoint(cfg, resume=True) == expected
    again = tiny_cfg("daformer_gauss", "MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert evaluate_checkpoint(again) == expected


def test_eval_only_without_a_checkpoint_says_what_is_missing(tiny_cfg):
    with pytest.raises(ValueError, match="name a checkpoint"):
        evaluate_checkpoint(tiny_cfg("daformer"))
    with pytest.raises(ValueError, match="no checkpoint in"):
        evaluate_checkpoint(tiny_cfg("daformer"), resume=True)


def test_prediction_by_prototypes_is_an_option_of_evaluation(tiny_cfg):
    cfg = tiny_cfg("daformer_centroid")
    by_classifier = train(cfg)._last_eval_results
    by_prototypes = evaluate_checkpoint(
        tiny_cfg("daformer_centroid", "TEST.OUTPUT", "prototypes"), resume=True
    )
    assert by_prototypes["sem_seg"] == by_classifier["sem_seg"]  # the teacher has none
    assert by_prototypes["sem_seg_student"] != by_classifier["sem_seg_student"]


def test_teacher_has_no_prototypes_and_starts_as_the_student(tiny_cfg):
    trainer = AdaptationTrainer(tiny_cfg("daformer_gauss", "SOLVER.MAX_ITER", 1))
    assert not [name for name, _ in trainer.teacher.named_modules() if "prototype" in name]
    with torch.no_grad():
        trainer.student.backbone.stages[0].norm.weight.fill_(7.0)  # as if weights were loaded late
    trainer.train()
    # After iteration 0 the teacher is the mean of its start and the updated student.
    expected = (7.0 + trainer.student.backbone.stages[0].norm.weight) / 2
    torch.testing.assert_close(trainer.teacher.model.backbone.stages[0].norm.weight, expected)


class NoHostReads(TorchDispatchMode):
    """Fails on operators that make the host wait for the device."""

    FORBIDDEN = (
        "_local_scalar_dense",
        "nonzero",
        "_unique",
        "unique_",
        "masked_select",
        "is_nonzero",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting_for_cuda():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("guard", "device"),
    [
        pytest.param(NoHostReads, "cpu", id="operators"),
        pytest.param(no_waiting_for_cuda, "cuda", id="cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("method", ["daformer_centroid", "daformer_gauss", "mic_gauss"])
def test_training_step_never_waits_for_the_device(tiny_cfg, method, guard, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    # Nothing is logged or measured in between; prototypes start at iteration 2, which reads
    # the bank's fill.
    quiet = ("LOG_PERIOD", 100, "PROTOTYPES.GRADIENT_SHARE_PERIOD", 0, "VIS_PERIOD", 0)
    # Images are decoded in another process, where reading tensors is no wait.
    quiet = (*quiet, "DATALOADER.NUM_WORKERS", 1)
    cfg = tiny_cfg(method, "SOLVER.MAX_ITER", 8, "MODEL.DEVICE", device, *quiet)
    trainer = AdaptationTrainer(cfg)
    run_step, checked = trainer.run_step, []

    def checked_step():
        if trainer.iter in (1, 4, 5):
            with guard():
                run_step()
            checked.append(trainer.iter)
        else:
            run_step()

    trainer.run_step = checked_step
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert checked == [1, 4, 5]
    assert trainer.student.prototype_head.prototypes.started.all()


def test_diverged_loss_stops_the_run_and_is_named(tiny_cfg):
    trainer = AdaptationTrainer(tiny_cfg("daformer", "SOLVER.MAX_SKIPPED", 2))
    with torch.no_grad():
        trainer.student.sem_seg_head.classifier.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="loss_sem_seg"):
        trainer.train()


def test_bfloat16_training_keeps_prototypes_in_float32(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss", "SOLVER.AMP.ENABLED", True)
    trainer = train(cfg)
    step = trainer.last_step
    assert step.outputs["mixed"].logits.dtype == torch.bfloat16
    assert step.outputs["mixed"].embeddings.dtype == torch.float32
    assert trainer.student.prototype_head.prototypes.mean.dtype == torch.float32


def test_pictures_of_the_step_reach_tensorboard(tiny_cfg):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = tiny_cfg("daformer")
    train(cfg)
    events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    expected = {"source/image", "target/image", "mixed/image", "target/pseudo_label"}
    assert expected | {"source/prediction", "mixed/prediction"} <= set(events.Tags()["images"])


def test_prototypes_of_both_scales_have_banks_of_their_own_and_one_update(tiny_cfg):
    trainer = train(tiny_cfg("hrda_gauss"))
    head, step = trainer.student.prototype_head, trainer.last_step
    assert list(head.banks) == ["context", "detail"] == list(step.pixels)
    assert not torch.equal(head.banks["context"].features, head.banks["detail"].features)
    for scale in ("context", "detail"):
        assert head.banks[scale].fill.sum() > 0
        assert set(step.pixels[scale]) == {"source", "mixed"}


def test_context_alone_is_an_option(tiny_cfg):
    trainer = train(tiny_cfg("hrda_gauss", "PROTOTYPES.SCALES", ("context",)))
    assert list(trainer.student.prototype_head.banks) == ["context"]
    assert list(trainer.last_step.pixels) == ["context"]


@pytest.mark.parametrize("method", ["mic_daformer", "mic"])
def test_masked_views_own_backward_adds_up_to_the_joint_gradient(tiny_cfg, method, monkeypatch):
    # Nothing random in the student; one box for all views. Batch norm uses batch statistics.
    from mpcl.modeling import hrda
    from mpcl.structures.view import Box

    monkeypatch.setattr(hrda, "sample_detail_box", lambda *_: Box(16, 8, 48, 40))
    quiet = (
        "MODEL.SEM_SEG_HEAD.DROPOUT",
        0.0,
        "MODEL.BACKBONE.DROP_PATH",
        0.0,
        "SOLVER.MAX_ITER",
        1,
    )
    trainer = AdaptationTrainer(tiny_cfg(method, *quiet))
    start = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    trainer.train()
    found = {name: p.grad.clone() for name, p in trainer.student.named_parameters()}

    trainer.student.load_state_dict(start)
    trainer.student.train()
    trainer.optimizer.zero_grad()
    step = trainer.last_step
    outputs = trainer.student({**step.images, "masked": step.masked.images})
    step.outputs = {name: outputs[name] for name in step.images}
    losses = trainer.criterion(step) | trainer.criterion.of_masked(outputs["masked"], step.masked)
    sum(losses.values()).backward()
    for name, parameter in trainer.student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_margins_of_the_image_take_the_weight_from_pseudo_labels(tiny_cfg):
    opts = ("SELF_TRAINING.IGNORE_TOP", 0.0, "SELF_TRAINING.IGNORE_BOTTOM", 0.0)
    opts = (*opts, "SELF_TRAINING.IGNORE_MARGINS", (0.25, 0.0, 0.0, 0.0), "SOLVER.MAX_ITER", 1)
    trainer = train(tiny_cfg("daformer", *opts, "SELF_TRAINING.CONFIDENCE_THRESHOLD", 0.0))
    # The 64-pixel crop spans the height of the image.
    valid, pseudo = trainer.last_step.target_valid, trainer.last_step.pseudo_label
    assert not valid[:, :16].any() and valid[:, 16:].all()
    assert (pseudo.weight[:, :16] == 0).all() and (pseudo.weight[:, 16:] == 1).all()
    assert not pseudo.confident[:, :16].any()


def test_the_encoders_that_train_are_compiled_and_keep_their_names(tiny_cfg, monkeypatch):
    calls = []

    def compile_(module):  # in the real one's place, which takes half a minute
        def call(*args, **kwargs):
            calls.append(module)
            return module._call_impl(*args, **kwargs)

        module._compiled_call_impl = call

    monkeypatch.setattr("torch.nn.Module.compile", compile_)
    plain = train(tiny_cfg("daformer", *SMALLEST, "SOLVER.MAX_ITER", 2))
    assert not calls
    trainer = train(tiny_cfg("daformer", *SMALLEST, "SOLVER.MAX_ITER", 2, "MODEL.COMPILE", True))
    assert {id(module) for module in calls} == {
        id(trainer.student.backbone),
        id(trainer.teacher.model.backbone),
    }
    assert trainer.student.state_dict().keys() == plain.student.state_dict().keys()
