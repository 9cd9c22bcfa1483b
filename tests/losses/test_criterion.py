import math

import pytest
import torch
import torch.nn.functional as F

from mpcl.losses.criterion import Criterion
from mpcl.losses.prototype import PrototypeLosses
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.structures import Box, Detail, Outputs, Pixels, Step, View

C, K, D = 3, 2, 4


def make_step():
    """Two views of one image, 8x8 pixels, on 2x2 grids of the whole and of its upper left quarter;
    of the mixed view's pixels every other one is the source's."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, requires_grad=True)

    step = Step(0, source=None, pixels={"context": {}, "detail": {}})
    from_source = torch.tensor([[[True, False], [True, False]]])
    for name, unsure in (("source", 1.0), ("mixed", 0.25)):
        label = torch.randint(0, C, (1, 8, 8), generator=generator)
        everywhere, weight = label >= 0, torch.full((1, 8, 8), unsure)
        setattr(step, name, View(torch.zeros(1, 3, 8, 8), label, weight, everywhere, everywhere))
        deep = torch.zeros(1, 5, 1, 1)
        detail = Detail(Box(0, 0, 4, 4), randn(1, C, 2, 2), randn(1, D, 2, 2), deep)
        outputs = Outputs(randn(1, C, 2, 2), randn(1, D, 2, 2), deep, deep, detail)
        step.outputs[name] = outputs
        weight = torch.where(from_source, 1.0, unsure)
        for scale, seen, cells, cluster in (
            ("context", outputs, [[0, 1], [2, C]], [[0, K + 1], [2 * K, C * K]]),
            ("detail", detail, [[2, 2], [0, 1]], [[2 * K, 2 * K + 1], [1, K]]),
        ):
            cells, cluster = torch.tensor([cells]), torch.tensor([cluster])
            pixels = Pixels(seen.embeddings, cells, weight, cells < C, from_source, cluster)
            step.pixels[scale][name] = pixels
    return step


def at_one_scale(step, scale="context"):
    """The step of a student with a single resolution, which sees what ``scale`` does."""
    step.pixels = {"context": step.pixels[scale]}
    for outputs in step.outputs.values():
        outputs.detail = None
    return step


def make_prototypes():
    prototypes = CentroidPrototypes(C, K, D, momentum=0.9)
    mean = torch.randn(C, K, D, generator=torch.Generator().manual_seed(1))
    prototypes.start_(torch.ones(C, dtype=torch.bool), mean, torch.ones(C, K, D))
    return prototypes


def make_criterion(prototypes=None, **changes):
    options = {
        "temperature": 0.5,
        "contrast_weight": 0.1,
        "consistency_weight": 0.2,
        "contrast_views": ("source", "mixed"),
        "in_class_negatives": True,
        "consistency_weighted": True,
        "detail_weight": 0.3,
    }
    losses = prototypes and PrototypeLosses(prototypes=prototypes, **(options | changes))
    return Criterion(
        num_classes=C,
        detail_weight=0.1,
        masked_weight=0.5,
        distance_weight=0.005,
        distance_classes=(1,),
        distance_min_ratio=0.75,
        prototype_losses=losses,
    )


def slow_contrast(pixels, prototypes, weight):
    """Eq. (15), (17) pixel by pixel, from the definition."""
    total = 0.0
    for point, cluster, w in zip(pixels.rows, pixels.cluster.flatten(), weight.flatten()):
        if cluster < C * K:
            sims = [-((point - p) ** 2).mean() / 0.5 for p in prototypes.mean.flatten(0, 1)]
            total += w * (torch.logsumexp(torch.stack(sims), 0) - sims[cluster])
    return total / len(pixels.rows)


def test_segmentation_losses_are_weighted_means_over_all_pixels():
    step = at_one_scale(make_step())
    losses = make_criterion()(step)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_mix"}
    for name, key, weight in (("source", "loss_sem_seg", 1.0), ("mixed", "loss_sem_seg_mix", 0.25)):
        logits = F.interpolate(step.outputs[name].logits, size=(8, 8), mode="bilinear")
        expected = weight * F.cross_entropy(logits, step.views[name].label)
        torch.testing.assert_close(losses[key], expected)


def test_contrast_is_the_sum_of_its_views_and_the_target_leaves_the_source_pixels_out():
    step, prototypes = at_one_scale(make_step()), make_prototypes()
    views = step.pixels["context"]
    source, mixed = (slow_contrast(view, prototypes, view.weight) for view in views.values())
    only_target = views["mixed"].weight * ~views["mixed"].from_source
    target = slow_contrast(views["mixed"], prototypes, only_target)
    for names, expected in {
        ("mixed",): mixed,
        ("source", "mixed"): source + mixed,
        ("target",): target,
        ("source", "target"): source + target,
    }.items():
        loss = make_criterion(prototypes, contrast_views=names)(step)["loss_contrast"]
        torch.testing.assert_close(loss, 0.1 * expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_consistency_takes_the_best_prototype_of_each_class(weighted):
    step, prototypes = at_one_scale(make_step()), make_prototypes()
    losses = make_criterion(prototypes, consistency_weighted=weighted)(step)
    mixed, total = step.pixels["context"]["mixed"], 0.0
    for point, label, weight in zip(mixed.rows, mixed.label.flatten(), mixed.weight.flatten()):
        if label < C:
            best = [max(-((point - p) ** 2).mean() / 0.5 for p in of) for of in prototypes.mean]
            lack = torch.logsumexp(torch.stack(best), 0) - best[label]
            total += (weight if weighted else weight > 0) * lack  # 0 in the margins
    torch.testing.assert_close(losses["loss_consistency"], 0.2 * total / 4)


def test_before_prototypes_exist_their_losses_are_zero_and_attached():
    step = make_step()
    for views in step.pixels.values():
        for view in views.values():
            view.cluster.fill_(C * K)
    losses = make_criterion(CentroidPrototypes(C, K, D, momentum=0.9))(step)
    (losses["loss_contrast"] + losses["loss_consistency"]).backward()
    assert losses["loss_contrast"] == losses["loss_consistency"] == 0
    for outputs in step.outputs.values():
        for embeddings in (outputs.embeddings, outputs.detail.embeddings):
            assert embeddings.grad.abs().sum() == 0


def test_source_only_step_has_the_supervised_loss_alone():
    step = make_step()
    step.mixed, step.pixels = None, {}
    assert set(make_criterion(make_prototypes())(step)) == {"loss_sem_seg"}


def test_feature_distance_enters_with_its_weight():
    step = make_step()
    step.source.label.fill_(1)
    step.outputs["source"].features = torch.full((1, 5, 1, 1), 3.0)
    step.reference_features = torch.zeros(1, 5, 1, 1)
    loss = make_criterion()(step)["loss_feature_distance"]
    torch.testing.assert_close(loss, torch.tensor(0.005 * math.sqrt(5 * 9)))


def test_prototype_losses_of_both_scales_are_weighted_by_lambda_d():
    criterion = make_criterion(make_prototypes())
    both = criterion(make_step())
    context, detail = (criterion(at_one_scale(make_step(), s)) for s in ("context", "detail"))
    alone = make_step()
    del alone.pixels["detail"]
    for name in ("loss_contrast", "loss_consistency"):
        torch.testing.assert_close(both[name], 0.7 * context[name] + 0.3 * detail[name])
        assert criterion(alone)[name] == context[name]  # context alone keeps its full weight


def test_detail_and_masked_view_have_their_weights():
    step, criterion = make_step(), make_criterion()
    outputs, view = step.outputs["mixed"], step.mixed
    fused = F.interpolate(outputs.logits, size=(8, 8), mode="bilinear")
    detail = F.interpolate(outputs.detail.logits, size=(4, 4), mode="bilinear")
    expected = 0.9 * F.cross_entropy(fused, view.label)
    expected += 0.1 * F.cross_entropy(detail, view.label[:, :4, :4])
    torch.testing.assert_close(criterion(step)["loss_sem_seg_mix"], 0.25 * expected)
    masked = criterion.of_masked(outputs, view)
    torch.testing.assert_close(masked, {"loss_sem_seg_masked": 0.5 * 0.25 * expected})
