"""The whole training step on a tiny two-domain world."""

import copy
import json
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST
from detectron2.data import Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_backbone
from packaging.version import Version
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mpcl.data.sets.classes import classes_of, write_classes
from mpcl.engine import AdaptationTrainer
from mpcl.engine.evaluate import evaluate_networks
from mpcl.engine.training_pictures import TrainingPictures
from mpcl.modeling import hrda
from mpcl.predict.loading import load_networks
from mpcl.prototypes import learner
from mpcl.structures import Box
from mpcl.utils.pictures import GAP

QUIET = ("DATASETS.TEST", (), "VIS_PERIOD", 0)


def train(cfg, cls=AdaptationTrainer):
    trainer = cls(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def written_metrics(cfg) -> dict[int, dict]:
    """The lines of metrics.json by iteration."""
    rows = map(json.loads, Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines())
    return {row["iteration"]: row for row in rows}


@pytest.mark.parametrize("method", ["source_only", "daformer_centroid", "mic_gauss"])
def test_method_trains_logs_and_evaluates(tiny_cfg, method):
    cfg = tiny_cfg(method, *SMALLEST)
    trainer = train(cfg)
    rows, results = written_metrics(cfg), trainer._last_eval_results
    seen, adapts = set().union(*rows.values()), method != "source_only"
    clusters = method.endswith(("centroid", "gauss"))
    assert {"loss_sem_seg", "total_loss", "lr", "time", "data_time", "sem_seg/mIoU"} <= seen
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    for row in (row for row in rows.values() if "total_loss" in row):
        losses = [value for name, value in row.items() if name.startswith("loss_")]
        assert row["total_loss"] == pytest.approx(sum(losses), rel=1e-4)
    assert ("sem_seg_student" in results) == adapts
    for name, expected in {
        "loss_sem_seg_mix": adapts,
        "pseudo_label/confident_fraction": adapts,
        "teacher/momentum": adapts,
        "loss_sem_seg_masked": method.startswith("mic"),
        "loss_contrast": clusters,
        "prototypes/marginal_violation": clusters,
        "prototypes/usage_entropy": clusters,
        "gradient_share/fused/contrast": False,  # they share no decoder
        "gradient_share/encoder/consistency": clusters,
        "gradient_cosine/encoder/contrast": clusters,
    }.items():
        assert (name in seen) == expected, name
    if clusters:  # they start at their iteration
        start = cfg.PROTOTYPES.INIT.ITER
        assert rows[start - 1]["loss_contrast"] == 0
        assert rows[start]["loss_contrast"] > 0 and rows[start]["loss_consistency"] > 0
        prototypes = trainer.student.prototype_head.prototypes
        assert prototypes.started.all() and torch.isfinite(prototypes.mean).all()
        assert not torch.equal(prototypes.mean, prototypes.start_mean)
        # Their head's moments begin with them: before, its gradients were zeros.
        steps = {
            name: int(trainer.optimizer.state[parameter]["step"])
            for name, parameter in trainer.student.named_parameters()
        }
        since_start = cfg.SOLVER.MAX_ITER - start
        assert steps["prototype_head.projection.weight"] == since_start
        assert steps["sem_seg_head.classifier.weight"] == cfg.SOLVER.MAX_ITER
    events = EventAccumulator(cfg.OUTPUT_DIR).Reload()
    assert events.Tags()["images"] == ["training step"]
    strips = events.Images("training step")
    assert [strip.step for strip in strips] == [0, 3, 5]  # VIS_PERIOD is 3; the last one
    shown = {"source", "source label", "source prediction"}
    if adapts:
        shown |= {"target", "pseudo-label", "mixed", "mixed label", "mixed prediction"}
    (hook,) = (hook for hook in trainer._hooks if isinstance(hook, TrainingPictures))
    pictures = hook.pictures()
    assert set(pictures) == shown
    side = cfg.INPUT.CROP.SIZE[1]
    assert {strip.width for strip in strips} == {len(pictures) * (side + GAP) - GAP}


def test_moments_begin_with_the_first_prototypes_also_where_they_start_late(tiny_cfg, monkeypatch):
    monkeypatch.setattr(learner, "LOOK_EVERY", 2)
    looks, start = [], learner.PrototypeLearner._start_ready_classes

    def late(self, iteration):
        looks.append(iteration)
        if iteration > 1:
            start(self, iteration)

    monkeypatch.setattr(learner.PrototypeLearner, "_start_ready_classes", late)
    options = ("SOLVER.MAX_ITER", 7, "PROTOTYPES.INIT.ITER", 1, "VIS_PERIOD", 0)
    trainer = AdaptationTrainer(tiny_cfg("daformer_gauss", *SMALLEST, *options))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert looks == [1, 3]
    weight = trainer.student.prototype_head.projection.weight
    assert int(trainer.optimizer.state[weight]["step"]) == 7 - 3


def test_a_subclass_chooses_its_loader_and_its_evaluator_of_tests(tiny_cfg):
    calls = []

    class Evaluator(DatasetEvaluator):  # none of ours: it has no confusion matrix
        def process(self, inputs, outputs):
            self.classes = len(outputs[0]["sem_seg"])

        def evaluate(self):
            return {"sem_seg": {"classes": self.classes}}

    class Own(AdaptationTrainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            calls.append(("loader", dataset_name))
            return super().build_test_loader(cfg, dataset_name)

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            calls.append(("evaluator", dataset_name))
            return Evaluator()

    cfg = tiny_cfg("daformer", *SMALLEST, "SOLVER.MAX_ITER", 1, "VIS_PERIOD", 0)
    trainer, expected = train(cfg, Own), {"classes": 4}
    of_both = [*[("evaluator", "tiny_val")] * 2, ("loader", "tiny_val")]  # one for both networks
    assert trainer._last_eval_results == {"sem_seg": expected, "sem_seg_student": expected}
    assert sorted(calls) == of_both
    assert written_metrics(cfg)[1]["sem_seg/classes"] == 4
    calls.clear()
    assert trainer.evaluate() == {"sem_seg": expected, "sem_seg_student": expected}
    assert sorted(calls) == of_both


def test_loss_falls_on_a_repeated_world(tiny_cfg):
    short = ("SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 0.001, "SOLVER.CHECKPOINT_PERIOD", 100)
    cfg = tiny_cfg("daformer_gauss", *SMALLEST, *QUIET, *short)
    train(cfg)
    rows = written_metrics(cfg).values()
    losses = [row["loss_sem_seg"] for row in rows if "loss_sem_seg" in row]
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_eval_only_gives_the_scores_of_the_run(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss", *SMALLEST, "SOLVER.MAX_ITER", 3)
    expected = train(cfg)._last_eval_results
    assert evaluate_networks(load_networks(cfg, resume=True)) == expected
    weights = ("MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert (
        evaluate_networks(load_networks(tiny_cfg("daformer_gauss", *SMALLEST, *weights)))
        == expected
    )


def test_eval_only_refuses_a_set_whose_classes_have_changed_places(tiny_cfg):
    cfg = tiny_cfg("source_only", *SMALLEST, "SOLVER.MAX_ITER", 1, "VIS_PERIOD", 0)
    train(cfg)
    kept = classes_of(cfg)
    swapped = [*kept.stuff_classes[1::-1], *kept.stuff_classes[2:]]
    write_classes(cfg.OUTPUT_DIR, Metadata(stuff_classes=swapped, stuff_colors=kept.stuff_colors))
    with pytest.raises(
        ValueError, match=r"class 0 is 'ground', which .* to call 1; expected .*hed"
    ):
        evaluate_networks(load_networks(cfg, resume=True))


def test_eval_only_without_a_checkpoint_says_what_is_missing(tiny_cfg):
    with pytest.raises(ValueError, match="name a checkpoint"):
        evaluate_networks(load_networks(tiny_cfg("daformer")))
    with pytest.raises(ValueError, match="no checkpoint in"):
        evaluate_networks(load_networks(tiny_cfg("daformer"), resume=True))


def test_prediction_by_prototypes_is_an_option_of_evaluation(tiny_cfg):
    opts = ("daformer_centroid", *SMALLEST, "SOLVER.MAX_ITER", 3)
    by_classifier = train(tiny_cfg(*opts))._last_eval_results
    by_prototypes = evaluate_networks(
        load_networks(tiny_cfg(*opts, "TEST.OUTPUT", "prototypes"), resume=True)
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


@pytest.mark.parametrize("scales", [("context", "detail"), ("context",)])
def test_each_scale_has_a_bank_of_its_own(tiny_cfg, scales):
    short = (*SMALLEST, *QUIET, "SOLVER.MAX_ITER", 3)
    trainer = train(tiny_cfg("hrda_gauss", *short, "PROTOTYPES.SCALES", scales))
    banks, step = trainer.student.prototype_head.banks, trainer.last_step
    assert list(banks) == list(step.pixels) == list(scales)
    assert all(bank.fill.sum() > 0 for bank in banks.values())
    assert len({bank.features.sum().item() for bank in banks.values()}) == len(scales)
    assert all(set(views) == {"source", "mixed"} for views in step.pixels.values())
    embedded = step.outputs["source"].detail.embeddings is not None
    assert embedded == ("detail" in scales)  # what nobody clusters costs nothing


def test_a_run_that_starts_from_a_runs_weights_starts_its_prototypes_anew(tiny_cfg, tmp_path):
    first = train(tiny_cfg("daformer_gauss", *SMALLEST, *QUIET))
    weights = str(Path(first.cfg.OUTPUT_DIR, "model_final.pth"))
    opts = (*SMALLEST, *QUIET, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "second"))
    opts = (*opts, "PROTOTYPES.NUM_PER_CLASS", 2)
    second = AdaptationTrainer(tiny_cfg("daformer_gauss", *opts))
    second.resume_or_load(resume=False)
    head, before = second.student.prototype_head, first.student.prototype_head
    assert torch.equal(head.projection.weight, before.projection.weight)
    assert before.prototypes.started.all() and not head.prototypes.started.any()
    second.train()
    rows, start = written_metrics(second.cfg), second.cfg.PROTOTYPES.INIT.ITER
    assert rows[start - 1]["loss_consistency"] == rows[start - 1]["loss_contrast"] == 0
    assert rows[start]["loss_consistency"] > 0
    assert head.prototypes.started.all()
    assert all(
        bank.fill.sum() < 2 * before.banks[name].fill.sum() for name, bank in head.banks.items()
    )


@pytest.mark.parametrize("whole", [False, True])
def test_gradients_are_compared_where_an_encoder_is_frozen(tiny_cfg, whole):
    short = (*SMALLEST, *QUIET, "SOLVER.MAX_ITER", 1, "PROTOTYPES.HEAD", "shared")
    trainer = AdaptationTrainer(tiny_cfg("daformer_gauss", *short))
    frozen = trainer.student.backbone if whole else trainer.student.backbone.timm.patch_embed
    frozen.requires_grad_(False)
    trainer.train()
    row = written_metrics(trainer.cfg)[0]
    assert "gradient_share/fused/contrast" in row
    assert ("gradient_share/encoder/contrast" in row) == (not whole)


def test_gradients_are_compared_as_the_scaler_of_half_precision_scales_them(tiny_cfg, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "mpcl.engine.trainer.gradient_share", lambda losses, _: given.update(losses) or {}
    )
    trainer = AdaptationTrainer(tiny_cfg("daformer_gauss", *SMALLEST, *QUIET, "SOLVER.MAX_ITER", 1))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train()
    row = written_metrics(trainer.cfg)[0]
    assert given["loss_sem_seg"].item() == pytest.approx(1024 * row["loss_sem_seg"], rel=1e-5)


@pytest.mark.parametrize("method", ["mic_daformer", "mic"])
def test_masked_views_own_backward_adds_up_to_the_joint_gradient(tiny_cfg, method, monkeypatch):
    # Nothing random in the student; one box for all views. Batch norm uses batch statistics.
    monkeypatch.setattr(hrda, "sample_detail_box", lambda *_: Box(16, 8, 48, 40))
    quiet = ("MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BACKBONE.DROP_PATH", 0.0)
    quiet = (*quiet, *QUIET, "SOLVER.MAX_ITER", 1)
    trainer = AdaptationTrainer(tiny_cfg(method, *quiet))
    start = copy.deepcopy(trainer.student.state_dict())
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


@pytest.mark.parametrize("method", ["mic_daformer", "mic"])
def test_statistics_that_tests_are_normalised_by_are_of_whole_images(tiny_cfg, method, monkeypatch):
    monkeypatch.setattr(hrda, "sample_detail_box", lambda *_: Box(16, 8, 48, 40))
    encoder = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_efficientnet")
    trainer = AdaptationTrainer(tiny_cfg(method, *encoder, *QUIET, "SOLVER.MAX_ITER", 1))
    start = copy.deepcopy(trainer.student.state_dict())
    trainer.train()
    found = {n: b.clone() for n, b in trainer.student.named_buffers() if "running_" in n}
    trainer.student.load_state_dict(start)
    trainer.student.train()
    assert trainer.last_step.masked is not None
    trainer.student(trainer.last_step.images)
    expected = dict(trainer.student.named_buffers())
    assert {name.partition(".")[0] for name in found} >= {"backbone", "sem_seg_head"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_random_numbers_depend_on_seed_rank_and_iteration_alone(tiny_cfg, monkeypatch):
    def drawn(seed: int, rank: int, iteration: int) -> int:
        trainer = AdaptationTrainer(tiny_cfg("daformer", *SMALLEST, *QUIET, "SEED", seed))
        monkeypatch.setattr("mpcl.engine.trainer.comm.get_rank", lambda: rank)
        monkeypatch.setattr(trainer, "next_step", lambda: 1 / 0)
        trainer.iter = iteration
        with pytest.raises(ZeroDivisionError):
            trainer.run_step()
        monkeypatch.undo()
        return torch.initial_seed()

    seeds = [drawn(*state) for state in [(5, 0, 3), (5, 0, 4), (5, 1, 3), (6, 0, 3)]]
    assert len(set(seeds)) == 4 and drawn(5, 0, 3) == seeds[0]


def test_margins_of_the_image_take_the_weight_from_pseudo_labels(tiny_cfg):
    opts = ("SELF_TRAINING.IGNORE_TOP", 0.0, "SELF_TRAINING.IGNORE_BOTTOM", 0.0)
    opts = (*opts, "SELF_TRAINING.IGNORE_MARGINS", (0.25, 0.0, 0.0, 0.0), "SOLVER.MAX_ITER", 1)
    opts = (*opts, *SMALLEST, *QUIET)
    trainer = train(tiny_cfg("daformer", *opts, "SELF_TRAINING.CONFIDENCE_THRESHOLD", 0.0))
    # The 64-pixel crop spans the height of the image.
    target = trainer.last_step.target
    assert (target.weight[:, :16] == 0).all() and (target.weight[:, 16:] == 1).all()
    assert not target.trusted[:, :16].any() and target.trusted[:, 16:].all()


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="MODEL.COMPILE needs it")
def test_blocks_are_compiled_once_a_stage_and_batch_and_not_at_evaluation(
    tiny_cfg, tmp_path, monkeypatch
):
    def trace(module, **options):  # in the real one's place, which takes a minute
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)

    monkeypatch.setattr("torch.nn.Module.compile", trace)
    torch._dynamo.reset()
    counters, graphs = torch._dynamo.utils.counters, []
    counters.clear()
    cfg = tiny_cfg("daformer", "SOLVER.MAX_ITER", 2, "VIS_PERIOD", 0, "MODEL.COMPILE", True)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "encoder.pth")
    distance = cfg.SELF_TRAINING.FEATURE_DISTANCE
    distance.WEIGHT, distance.CLASSES = 0.005, (1, 2)
    weights = {f"backbone.{k}": v for k, v in build_backbone(cfg).state_dict().items()}
    torch.save({"model": weights}, cfg.MODEL.WEIGHTS)

    class Counted(AdaptationTrainer):
        def run_step(self):
            super().run_step()
            graphs.append(counters["stats"]["unique_graphs"])

        def evaluate(self):
            results = super().evaluate()
            graphs.append(counters["stats"]["unique_graphs"])
            return results

    trainer = train(cfg, Counted)
    # Four stages of the student, and of teacher and frozen encoder, which have one size of batch.
    assert graphs == [8, 8, 8]
    assert not [name for name in trainer.student.state_dict() if "_orig_mod" in name]
    torch._dynamo.reset()


def test_blocks_that_are_computed_again_count_their_images_once(tiny_cfg, tmp_path):
    opts = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_efficientnet")
    opts = (*opts, *QUIET, "SOLVER.MAX_ITER", 2, "PROTOTYPES.INIT.ITER", 1)
    found = []
    for name, checkpoint in (("plain", False), ("again", True)):
        more = ("MODEL.BACKBONE.CHECKPOINT", checkpoint, "OUTPUT_DIR", str(tmp_path / name))
        torch.manual_seed(0)
        found.append(train(tiny_cfg("daformer_gauss", *opts, *more)).student.state_dict())
    statistics = [name for name in found[0] if name.endswith("running_var") and "timm" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_the_last_iterations_are_logged_also_where_the_period_does_not_divide_them(tiny_cfg):
    cfg = tiny_cfg("source_only", *SMALLEST, *QUIET, "SOLVER.MAX_ITER", 3, "LOG_PERIOD", 2)
    train(cfg)
    rows = written_metrics(cfg)
    assert [iteration for iteration, row in rows.items() if "loss_sem_seg" in row] == [1, 2]
