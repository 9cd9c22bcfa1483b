import math

import pytest
import torch
import torch.nn.functional as F

from mpcl.losses.criterion import Criterion, PrototypeCriterion
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.structures.step import AdaptationStep, PixelTargets
from mpcl.structures.view import Box, DetailOutputs, View, ViewOutputs

C, K, D = 3, 2, 4


def make_step(with_pixels=True):
    """Two views of one image, 8x8 pixels, on a 2x2 embedding grid; left half of the mixed view from
    the source."""
    generator = torch.Generator().manual_seed(0)
    step = AdaptationStep(0, make_view(generator), target=torch.zeros(1, 3, 8, 8))
    step.mixed = make_view(generator)
    step.mixed.weight = torch.full((1, 8, 8), 0.25)
    for name in ("source", "mixed"):
        logits = torch.randn(1, C, 2, 2, generator=generator).requires_grad_()
        embeddings = torch.randn(1, D, 2, 2, generator=generator).requires_grad_()
        step.outputs[name] = ViewOutputs(logits, embeddings, torch.zeros(1, 5, 1, 1))
        if with_pixels:
            step.pixels.setdefault("context", {})[name] = PixelTargets(
                label=torch.tensor([0, 1, 2, C]),
                weight=torch.ones(4) if name == "source" else torch.tensor([1.0, 0.25, 1.0, 0.25]),
                cluster=torch.tensor([0, K + 1, 2 * K, C * K]),
                from_source=torch.tensor([True, False, True, False]),
            )
    return step


def make_view(generator):
    label = torch.randint(0, C, (1, 8, 8), generator=generator)
    return View(torch.randn(1, 3, 8, 8, generator=generator), label, None, label >= 0)


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
    }
    prototype_criterion = (
        PrototypeCriterion(prototypes, **(options | changes)) if prototypes else None
    )
    return Criterion(
        num_classes=C,
        ignore_value=255,
        feature_distance_weight=0.005,
        feature_distance_classes=(1,),
        feature_distance_min_ratio=0.75,
        prototype_criterion=prototype_criterion,
    )


def slow_contrast(step, prototypes, view, weight):
    """Eq. (15), (17) pixel by pixel, from the definition."""
    points = step.outputs[view].embeddings[0].flatten(1).T
    total = 0.0
    for i, cluster in enumerate(step.pixels["context"][view].cluster.tolist()):
        if cluster == C * K:
            continue
        sims = [-((points[i] - p) ** 2).mean() / 0.5 for p in prototypes.mean.flatten(0, 1)]
        total += weight[i] * (torch.logsumexp(torch.stack(sims), 0) - sims[cluster])
    return total / len(points)


def test_segmentation_losses_are_weighted_means_over_all_pixels():
    step = make_step(with_pixels=False)
    losses = make_criterion()(step)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_mix"}
    for name, key, weight in (("source", "loss_sem_seg", 1.0), ("mixed", "loss_sem_seg_mix", 0.25)):
        logits = F.interpolate(step.outputs[name].logits, size=(8, 8), mode="bilinear")
        view = step.source if name == "source" else step.mixed
        expected = weight * F.cross_entropy(logits, view.label)
        torch.testing.assert_close(losses[key], expected)


def test_contrast_of_both_views_is_halved():
    step, prototypes = make_step(), make_prototypes()
    losses = make_criterion(prototypes)(step)
    terms = [
        slow_contrast(step, prototypes, name, step.pixels["context"][name].weight)
        for name in ("source", "mixed")
    ]
    torch.testing.assert_close(losses["loss_contrast"], 0.1 * sum(terms) / 2)


def test_target_view_leaves_out_the_source_pixels_of_the_mixed_view():
    step, prototypes = make_step(), make_prototypes()
    losses = make_criterion(prototypes, contrast_views=("target",))(step)
    expected = slow_contrast(step, prototypes, "mixed", torch.tensor([0.0, 0.25, 0.0, 0.25]))
    torch.testing.assert_close(losses["loss_contrast"], 0.1 * expected)


@pytest.mark.parametrize("weighted", [True, False])
def test_consistency_takes_the_best_prototype_of_each_class(weighted):
    step, prototypes = make_step(), make_prototypes()
    losses = make_criterion(prototypes, consistency_weighted=weighted)(step)
    points = step.outputs["mixed"].embeddings[0].flatten(1).T
    total = 0.0
    for i, label in enumerate([0, 1, 2]):
        scores = torch.stack(
            [
                max(-((points[i] - p) ** 2).mean() / 0.5 for p in prototypes.mean[c])
                for c in range(C)
            ]
        )
        weight = step.pixels["context"]["mixed"].weight[i] if weighted else 1.0
        total += weight * (torch.logsumexp(scores, 0) - scores[label])
    torch.testing.assert_close(losses["loss_consistency"], 0.2 * total / 4)


def test_before_prototypes_exist_their_losses_are_zero_and_attached():
    step = make_step(with_pixels=False)
    losses = make_criterion(make_prototypes())(step)
    (losses["loss_contrast"] + losses["loss_consistency"]).backward()
    assert losses["loss_contrast"] == losses["loss_consistency"] == 0
    for outputs in step.outputs.values():
        assert outputs.embeddings.grad.abs().sum() == 0


def test_source_only_step_has_the_supervised_loss_alone():
    step = make_step(with_pixels=False)
    step.mixed = None
    assert set(make_criterion()(step)) == {"loss_sem_seg"}


def test_feature_distance_enters_with_its_weight():
    step = make_step(with_pixels=False)
    step.source.label.fill_(1)
    step.outputs["source"].features = torch.full((1, 5, 1, 1), 3.0)
    step.reference_features = torch.zeros(1, 5, 1, 1)
    loss = make_criterion()(step)["loss_feature_distance"]
    torch.testing.assert_close(loss, torch.tensor(0.005 * math.sqrt(5 * 9)))


def add_detail(step, prototypes):
    """The upper left 4x4 pixels in detail; clusters of their own."""
    generator = torch.Generator().manual_seed(5)
    for name, outputs in step.outputs.items():
        embeddings = torch.randn(1, D, 2, 2, generator=generator)
        logits = torch.randn(1, C, 2, 2, generator=generator)
        outputs.detail = DetailOutputs(Box(0, 0, 4, 4), logits, embeddings)
        pixels = PixelTargets(
            label=torch.tensor([2, 2, 0, 1]),
            weight=torch.tensor([1.0, 0.5, 0.5, 1.0]),
            cluster=torch.tensor([2 * K, 2 * K + 1, 1, K]),
            from_source=torch.ones(4, dtype=torch.bool),
        )
        step.pixels.setdefault("detail", {})[name] = pixels
    return step


def one_scale(step, scale):
    """A single-resolution step that holds what ``scale`` sees."""
    alone = AdaptationStep(0, step.source, mixed=step.mixed)
    for name, outputs in step.outputs.items():
        seen = outputs if scale == "context" else outputs.detail
        alone.outputs[name] = ViewOutputs(seen.logits, seen.embeddings, outputs.features)
    alone.pixels = {"context": step.pixels[scale]}
    return alone


def test_prototype_losses_of_both_scales_are_weighted_by_lambda_d():
    prototypes = make_prototypes()
    step = add_detail(make_step(), prototypes)
    both = make_criterion(prototypes, detail_weight=0.3)(step)
    context = make_criterion(prototypes)(one_scale(step, "context"))
    detail = make_criterion(prototypes)(one_scale(step, "detail"))
    for name in ("loss_contrast", "loss_consistency"):
        torch.testing.assert_close(both[name], 0.7 * context[name] + 0.3 * detail[name])


def test_context_alone_keeps_its_full_weight():
    prototypes = make_prototypes()
    step = add_detail(make_step(), prototypes)
    del step.pixels["detail"]
    losses = make_criterion(prototypes, detail_weight=0.3)(step)
    expected = make_criterion(prototypes)(one_scale(step, "context"))
    torch.testing.assert_close(losses["loss_contrast"], expected["loss_contrast"])


def test_detail_of_a_multi_resolution_student_has_its_share_of_the_segmentation_loss():
    step = add_detail(make_step(), make_prototypes())
    criterion = make_criterion()
    criterion.detail_weight = 0.1
    loss = criterion(step)["loss_sem_seg"]
    out = step.outputs["source"]
    fused = F.interpolate(out.logits, size=(8, 8), mode="bilinear")
    detail = F.interpolate(out.detail.logits, size=(4, 4), mode="bilinear")
    expected = 0.9 * F.cross_entropy(fused, step.source.label)
    expected += 0.1 * F.cross_entropy(detail, step.source.label[:, :4, :4])
    torch.testing.assert_close(loss, expected)


def test_masked_loss_has_its_own_weight():
    step, criterion = make_step(), make_criterion()
    criterion.masked_weight = 0.5
    loss = criterion.of_masked(step.outputs["mixed"], step.mixed)["loss_sem_seg_masked"]
    torch.testing.assert_close(loss, 0.5 * criterion(step)["loss_sem_seg_mix"])
