"""The step in half precision agrees with float32's, and its overflows leave no trace."""

import shutil

import pytest
import torch
from conftest import CONFIGS, SMALLEST, TINY
from processes import checkpoint, train
from test_guards import kept, not_finite

from mpcl.config import get_cfg_from
from mpcl.engine.job import precision_in_words
from mpcl.prototypes.base import Prototypes

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Between a step in bfloat16 and the same in float32; float16 has three more bits: a quarter.
TOLERANCE = {
    "losses": 1e-2,  # relative
    # 1 - cosine, and relative length; pixels with another prototype pull elsewhere.
    "gradient": 2e-2,
    "pseudo-labels": 5e-3,  # share of pixels with another label
    "assignments": 3e-2,  # share of pixels with another prototype
    "embeddings": 1e-2,  # root mean square; they have 1
    "prototypes": 5e-4,  # largest change of a mean or variance, of about 1
}
ITERATIONS = 6  # in float32, before the one that is compared: prototypes have started


def precision(name: str) -> list:
    return ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", name] if name in HALF else []


class Recorded:
    """One step of a trainer: what it computed, and in which types."""

    def __init__(self) -> None:
        self.dtypes: dict[str, set[torch.dtype]] = {}

    def __call__(self, trainer) -> None:
        criterion, run_step = trainer.criterion, trainer.run_step

        def losses_of(step):
            self.losses = criterion(step)
            return self.losses

        def step():
            with pytest.MonkeyPatch.context() as patch:
                for name in ("similarity", "own_similarity", "class_similarity"):
                    patch.setattr(Prototypes, name, self.watch(name))
                run_step()

        if trainer.grad_scaler.is_enabled():  # the usual first scale may overflow once
            trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        trainer.criterion, trainer.run_step = losses_of, step

    def watch(self, name: str):
        method = getattr(Prototypes, name)

        def watched(prototypes, *args):
            result = method(prototypes, *args)
            self.dtypes.setdefault(name, set()).add(result.dtype)
            return result

        return watched


@pytest.fixture(scope="module")
def steps(tiny_world, tmp_path_factory):
    """The same step of the same run, in each precision: trainer and what was recorded."""
    root = tmp_path_factory.mktemp("precision")
    opts = [*TINY, *SMALLEST, "VIS_PERIOD", 0, "SOLVER.CHECKPOINT_PERIOD", 100]
    opts += ["DATASETS.TRAIN", (tiny_world["source"],), "DATASETS.TEST", ()]
    opts += ["DATASETS.TRAIN_TARGET", (tiny_world["target"],)]
    opts += ["PROTOTYPES.GRADIENT_SHARE_PERIOD", 0, "OUTPUT_DIR"]
    config = str(CONFIGS / "daformer_gauss.yaml")
    start = get_cfg_from(config, [*opts, str(root / "start"), "SOLVER.MAX_ITER", ITERATIONS])
    train(start)
    results = {}
    for name in ("float32", *HALF):
        folder = shutil.copytree(root / "start", root / name)
        more = [str(folder), "SOLVER.MAX_ITER", ITERATIONS + 1, *precision(name)]
        recorded = Recorded()
        results[name] = train(get_cfg_from(config, opts + more), before=recorded), recorded
    return results


@pytest.fixture(params=HALF)
def pair(request, steps):
    """Step and trainer in float32 and in half precision, and the tolerances of the latter."""
    half = request.param
    factor = {"bfloat16": 1, "float16": 1 / 4}[half]
    trainers = [steps[name][0] for name in ("float32", half)]
    assert [trainer.guard.total for trainer in trainers] == [0, 0]
    assert trainers[1].last_step.outputs["mixed"].logits.dtype == HALF[half]
    return *trainers, {name: factor * value for name, value in TOLERANCE.items()}


def test_losses_agree(steps):
    expected = {name: loss.item() for name, loss in steps["float32"][1].losses.items()}
    assert min(expected.values()) > 0.01 and "loss_contrast" in expected
    for half, factor in (("bfloat16", 1), ("float16", 1 / 4)):
        losses = steps[half][1].losses
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        found = {name: loss.item() for name, loss in losses.items()}
        assert found == pytest.approx(expected, rel=factor * TOLERANCE["losses"])


def test_gradients_agree(pair):
    exact, half, tolerance = pair
    expected, found = (
        torch.cat([p.grad.flatten() for p in trainer.student.parameters()])
        for trainer in (exact, half)
    )
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected, dim=0) > 1 - tolerance["gradient"]
    assert found.norm().item() == pytest.approx(expected.norm().item(), rel=tolerance["gradient"])


def test_pseudo_labels_and_assignments_agree(pair):
    exact, half, tolerance = pair[0].last_step, pair[1].last_step, pair[2]
    assert len(exact.target.label.unique()) > 1
    other = exact.target.label != half.target.label
    assert other.float().mean() < tolerance["pseudo-labels"]
    for name, expected in exact.pixels["context"].items():
        assert len(expected.cluster.unique()) > 6
        other = half.pixels["context"][name].cluster != expected.cluster
        assert other.float().mean() < tolerance["assignments"]


def test_embeddings_and_prototypes_agree_and_are_float32(pair):
    exact, half, tolerance = pair
    for name, outputs in half.last_step.outputs.items():
        difference = outputs.embeddings - exact.last_step.outputs[name].embeddings
        assert outputs.embeddings.dtype == torch.float32
        assert difference.square().mean().sqrt() < tolerance["embeddings"]
    found, expected = (t.student.prototype_head.prototypes for t in (half, exact))
    assert expected.started.all() and not torch.equal(expected.mean, expected.start_mean)
    for name in ("mean", "variance"):
        assert getattr(found, name).dtype == torch.float32
        difference = getattr(found, name) - getattr(expected, name)
        assert difference.abs().max() < tolerance["prototypes"]


@pytest.mark.parametrize("half", HALF)
def test_clustering_and_gaussian_terms_are_float32_and_so_is_what_is_kept(steps, half):
    trainer, recorded = steps[half]
    names = ("similarity", "own_similarity", "class_similarity")  # losses, batch, bank
    assert recorded.dtypes == {name: {torch.float32} for name in names}
    (bank,) = trainer.student.prototype_head.banks.values()
    assert bank.features.dtype == torch.float16  # its storage, whatever the precision
    for network in (trainer.student, trainer.teacher):
        kept = [*network.parameters(), *(b for b in network.buffers() if b is not bank.features)]
        assert {t.dtype for t in kept if t.is_floating_point()} == {torch.float32}
    states = trainer.optimizer.state.values()
    assert {value.dtype for state in states for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("where", ["activations", "gradients"])
def test_overflow_of_float16_is_nowhere_kept_and_training_goes_on(tiny_cfg, where):
    last, factor = (6, 1) if where == "activations" else (9, 2.0**10)
    opts = ("SOLVER.MAX_ITER", last, "DATASETS.TEST", (), "VIS_PERIOD", 0)
    opts = (*opts, "INPUT.CROP.SIZE", (32, 32), "PROTOTYPES.GRADIENT_SHARE_PERIOD", 0)
    opts = (*opts, "SELF_TRAINING.TEACHER_STATISTICS", "target", *precision("float16"))
    cfg = tiny_cfg("daformer_gauss", *SMALLEST, *opts)
    first, changed, scales = 4, [], []

    def plant(trainer):
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        next_step, run_step = trainer.next_step, trainer.run_step

        def large_step():
            step = next_step()
            if trainer.iter == first and where == "activations":
                for view in (step.source, step.target):
                    view.images *= 1e6  # finite, but the first convolution's output is not
            return step

        def watched():
            if trainer.iter == first:
                trainer.grad_scaler._scale *= factor  # too much, until it is backed off
            scale, before = trainer.grad_scaler.get_scale(), kept(trainer)
            run_step()
            scales.append(trainer.grad_scaler.get_scale() / scale)
            after = kept(trainer)
            changed.append({k for k, v in before.items() if not torch.equal(after[k], v)})

        trainer.next_step, trainer.run_step = large_step, watched

    trainer = train(cfg, before=plant)
    overflows = [i for i in range(last) if scales[i] == 0.5]
    assert first == overflows[0] and len(overflows) == trainer.guard.total < last - first
    assert (len(overflows) == 1) == (where == "activations")
    moving = ["classifier.weight", "exp_avg", ".running_mean", ".running_var"]
    for iteration in range(3, last):
        if iteration in overflows:
            assert changed[iteration] == set()
        else:
            assert all(any(k.endswith(m) for k in changed[iteration]) for m in moving)
            assert any(k.startswith("teacher.") for k in changed[iteration])
            assert scales[iteration] == 1
    assert not_finite(checkpoint(cfg.OUTPUT_DIR)) == []


def test_run_goes_on_in_another_precision(tiny_cfg):
    short = ("VIS_PERIOD", 0, "DATASETS.TEST", (), *SMALLEST, "SOLVER.MAX_ITER")
    for iteration, name in enumerate(("float32", "float16", "bfloat16")):
        trainer = train(tiny_cfg("source_only", *short, iteration + 1, *precision(name)))
        assert trainer.start_iter == iteration
        assert trainer.grad_scaler.is_enabled() == (name == "float16")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_log_says_where_float32_is_rounded_to_tf32(monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    opts = ["SOLVER.AMP.ENABLED", False]
    cfg = get_cfg_from(str(CONFIGS / "source_only.yaml"), [*opts, "MODEL.DEVICE", "cuda"])
    assert ("TF32" in precision_in_words(cfg)) == allowed
    cfg.MODEL.DEVICE = "cpu"
    assert precision_in_words(cfg) == "float32"
    cfg.SOLVER.AMP.ENABLED = True
    assert precision_in_words(cfg).startswith("bfloat16 autocast")
