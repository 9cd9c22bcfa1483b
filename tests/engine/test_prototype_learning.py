"""Start, assignment and update of prototypes over iterations, on embeddings made by hand."""

import pytest
import torch

from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.learner import PrototypeLearner
from mpcl.structures.step import AdaptationStep
from mpcl.structures.view import View, ViewOutputs

C, K, D = 3, 2, 4
CENTERS = torch.tensor(
    [[[3.0, 0, 0, 0], [-3, 0, 0, 0]], [[0, 3, 0, 0], [0, -3, 0, 0]], [[0, 0, 3, 0], [0, 0, -3, 0]]]
)


def make_learner(kind=CentroidPrototypes, bank_size=200, **changes):
    options = {
        "pool": "bank",
        "pool_size": 600,
        "epsilon": 0.05,
        "sweeps": 10,
        "start_iter": 2,
        "start_method": "kmeans",
        "start_samples": 10,
        "dead_after": 5,
        "revive": False,
        "check_period": 2,
        "ignore_value": 255,
        "seed": 0,
    }
    bank = FeatureBank(C, bank_size, D, samples_per_image=64)
    return PrototypeLearner(kind(C, K, D, momentum=0.9), {"context": bank}, **(options | changes))


def make_step(iteration, classes=(0, 1, 2), trusted=True, size=16):
    """One source and one mixed image whose embeddings lie near the centres of their pixels'
    classes."""
    generator = torch.Generator().manual_seed(iteration)
    step = AdaptationStep(iteration, None)
    for name in ("source", "mixed"):
        pick = torch.randint(0, len(classes), (1, size, size), generator=generator)
        label = torch.tensor(classes)[pick]
        mode = torch.randint(0, K, (1, size, size), generator=generator)
        points = CENTERS[label.clamp(max=C - 1), mode]
        points = points + 0.1 * torch.randn(points.shape, generator=generator)
        known = torch.full_like(label, True, dtype=torch.bool)
        is_trusted = known & (trusted or name == "source")
        view = View(
            torch.zeros(1, 3, size, size), label, torch.ones(1, size, size), is_trusted, known
        )
        setattr(step, name, view)
        step.outputs[name] = ViewOutputs(
            torch.zeros(1, C, size, size), points.permute(0, 3, 1, 2), None
        )
    return step


def run(learner, iterations, **options):
    for iteration in iterations:
        step = make_step(iteration, **options)
        scalars = learner(step)
    return step, scalars


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_prototypes_find_the_modes_of_each_class(kind):
    learner = make_learner(kind)
    step, scalars = run(learner, range(5))
    assert learner.prototypes.started.all()
    found = learner.prototypes.mean
    for c in range(C):
        order = found[c].sum(-1).argsort(descending=True)
        torch.testing.assert_close(found[c][order], CENTERS[c], atol=0.1, rtol=0)
    assert scalars["prototypes/usage_entropy"] > 0.95
    # Each pixel belongs to the prototype of its own mode.
    pixels = step.pixels["context"]["mixed"]
    points = step.outputs["mixed"].embeddings.permute(0, 2, 3, 1).flatten(0, 2)
    nearest = torch.cdist(points, found.flatten(0, 1)).argmin(1)
    assert (pixels.cluster == nearest).float().mean() > 0.95


def test_nothing_is_asked_of_pixels_before_the_start():
    learner = make_learner()
    step, scalars = run(learner, range(2))
    assert not step.pixels and not scalars
    assert learner.banks["context"].fill.min() > 0


def test_class_that_appears_late_starts_late():
    learner = make_learner()
    step, _ = run(learner, range(6), classes=(0, 1))
    assert learner.prototypes.started.tolist() == [True, True, False]
    assert (step.pixels["context"]["mixed"].cluster < 2 * K).all()
    step, _ = run(learner, range(6, 10))
    assert learner.prototypes.started.all()
    assert (
        step.pixels["context"]["mixed"].cluster[step.pixels["context"]["mixed"].label == 2] >= 2 * K
    ).all()


def test_late_class_takes_no_part_until_it_starts():
    learner = make_learner(bank_size=600, start_samples=1000)  # a full ring is enough
    step, _ = run(learner, range(3))
    assert not learner.prototypes.started.any()
    assert (step.pixels["context"]["source"].cluster == C * K).all()
    run(learner, range(3, 10))
    assert learner.prototypes.started.all()


def test_untrusted_pixels_are_assigned_but_move_nothing():
    learner, twin = make_learner(), make_learner()
    step, disturbed = make_step(4, trusted=False), make_step(4, trusted=False)
    disturbed.outputs["mixed"].embeddings.mul_(-7)
    for each, last in ((learner, step), (twin, disturbed)):
        torch.manual_seed(0)
        run(each, range(4), trusted=False)
        each(last)
    assert torch.equal(learner.prototypes.mean, twin.prototypes.mean)
    assert torch.equal(learner.banks["context"].features, twin.banks["context"].features)
    assert (step.pixels["context"]["mixed"].cluster < C * K).all()


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_all_ignored_batch_changes_no_prototype(kind):
    learner = make_learner(kind)
    run(learner, range(4))
    before = learner.prototypes.mean.clone()
    step = make_step(4)
    for view in (step.source, step.mixed):
        view.label.fill_(255)
        view.trusted.zero_()
    scalars = learner(step)
    assert torch.equal(learner.prototypes.mean, before)
    assert (step.pixels["context"]["mixed"].label == C).all() and (
        step.pixels["context"]["mixed"].cluster == C * K
    ).all()
    assert all(torch.isfinite(value).all() for value in scalars.values())


def test_random_start_needs_no_bank():
    learner = make_learner(start_method="random", start_iter=0)
    run(learner, [0])
    assert learner.prototypes.started.all()


def test_dead_prototype_is_revived_when_asked():
    learner = make_learner(revive=True)
    run(learner, range(4))
    with torch.no_grad():
        learner.prototypes.mean[0, 1] = 100.0  # no pixel is near it
    learner.pool, learner.epsilon = "batch", 1e-3
    learner.prototypes.idle[0, 1] = 5
    learner(make_step(5))
    assert learner.prototypes.mean[0, 1].abs().max() < 10


def test_labels_are_taken_in_the_middle_of_the_cells_of_the_grid():
    learner = make_learner()
    step = make_step(0)
    big = torch.full((1, 64, 64), 255)
    big[:, 2::4, 2::4] = step.source.label
    step.source.label, step.source.trusted = big, big != 255
    step.source.weight, step.source.from_source = torch.ones(1, 64, 64), None
    learner(step)
    assert learner.banks["context"].fill.sum() > 0
