"""Start, assignment and update of prototypes over iterations, on embeddings made by hand."""

import copy
import math

import pytest
import torch
from detectron2.modeling import build_backbone
from steps import make_step

from mpcl.modeling.prototype_head import PrototypeHead
from mpcl.prototypes import learner as module
from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.learner import PrototypeLearner
from mpcl.prototypes.sinkhorn import assign, balance
from mpcl.structures import Box, Detail

C, K, D = 3, 2, 4
NONE = C * K
EPSILON = 0.05
MODES = 3 * torch.eye(C, D).unsqueeze(1) * torch.tensor([1.0, -1]).view(1, K, 1)
KINDS = pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
POOLS = pytest.mark.parametrize("pool", ["batch", "bank"])


def make_learner(kind=CentroidPrototypes, started=None, bank_size=500, **changes):
    """A learner; with ``started``, the mask of classes that have prototypes already."""
    prototypes = kind(C, K, D, momentum=0.9)
    if started is not None:
        torch.manual_seed(0)
        prototypes.start_(torch.tensor(started), torch.randn(C, K, D), torch.ones(C, K, D))
    options = {"pool_size": 600, "start_iter": 2, "start_samples": 10, "seed": 0}
    options |= {"banks": {"context": FeatureBank(C, bank_size, D)}, "epsilon": EPSILON}
    return PrototypeLearner(prototypes=prototypes, **(options | changes))


def make_pixels():
    """Embeddings (1, D, 20, 20), label and trusted of random pixels."""
    torch.manual_seed(1)
    label = torch.randint(0, C + 1, (1, 20, 20))
    return torch.randn(1, D, 20, 20), label, (torch.rand(1, 20, 20) < 0.7) & (label < C)


def learn(learner, embeddings, label, trusted):
    """The cluster of each pixel, and the scalars, of an iteration that starts nothing."""
    step = make_step(4, source=(embeddings, label, trusted))
    torch.manual_seed(5)
    scalars = learner(step)
    return step.pixels["context"]["source"].cluster, scalars


def modes_step(iteration, classes=range(C)):
    """One source and one mixed image whose embeddings lie near the modes of their classes."""
    generator = torch.Generator().manual_seed(iteration)
    views = {}
    for name in ("source", "mixed"):
        picked = torch.randint(0, len(classes), (1, 16, 16), generator=generator)
        label = torch.tensor(list(classes))[picked]
        points = MODES[label, torch.randint(0, K, label.shape, generator=generator)]
        points = points + 0.1 * torch.randn(points.shape, generator=generator)
        views[name] = points.permute(0, 3, 1, 2), label, label < C
    return make_step(iteration, **views)


def run(learner, iterations, **options):
    for iteration in iterations:
        step = modes_step(iteration, **options)
        scalars = learner(step)
    return step.pixels["context"]["mixed"], scalars


@KINDS
def test_the_batch_balances_each_class_by_itself_and_trusted_pixels_move_prototypes(kind):
    learner, pixels = make_learner(kind, [True] * C, pool="batch"), make_pixels()
    before = copy.deepcopy(learner.prototypes)
    cluster, _ = learn(learner, *pixels)
    rows = pixels[0].permute(0, 2, 3, 1).flatten(0, 2)
    label, trusted = (pixel_map.flatten() for pixel_map in pixels[1:])
    similarity, expected = before.similarity(rows), torch.full_like(label, NONE)
    for c in range(C):
        mine = label == c
        own = similarity[mine, c]
        table = balance(own.t().unsqueeze(1), trusted[mine].unsqueeze(0), epsilon=EPSILON)
        of_one = torch.zeros(len(own), dtype=torch.int64)
        expected[mine] = c * K + assign(own, of_one, table.potentials, EPSILON)
    assert torch.equal(cluster.flatten(), expected)
    before.update_(rows, torch.where(trusted, expected, NONE))
    for ours, reference in zip(learner.prototypes.buffers(), before.buffers(), strict=True):
        assert torch.equal(ours, reference)


@POOLS
def test_untrusted_pixels_are_assigned_but_influence_nothing(pool):
    embeddings, label, trusted = make_pixels()
    disturbed = torch.where(trusted.unsqueeze(1), embeddings, 3 + 5 * torch.randn(1, D, 20, 20))
    learners = [make_learner(started=[True] * C, pool=pool) for _ in range(2)]
    (one, scalars), (other, disturbed_scalars) = (
        learn(learner, points, label, trusted)
        for learner, points in zip(learners, (embeddings, disturbed))
    )
    assert torch.equal(one[trusted], other[trusted]) and scalars == disturbed_scalars
    assert torch.equal(one < NONE, label < C) and torch.equal(other < NONE, label < C)
    for a, b in (
        (learner.prototypes.mean for learner in learners),
        (learner.banks["context"].features for learner in learners),
    ):
        assert torch.equal(a, b)


@POOLS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unstarted_classes_ignored_and_non_finite_pixels_have_no_cluster(pool, bad):
    learner = make_learner(started=[True, False, True], pool=pool)
    embeddings, label, trusted = make_pixels()
    label[0, 0, :3], trusted[0, 0, :2] = torch.tensor([0, 2, C]), True
    embeddings[0, 3, 0, :3] = bad
    cluster, scalars = learn(learner, embeddings, label, trusted)
    without = (label == 1) | (label == C)
    without[0, 0, :3] = True
    assert torch.equal(cluster == NONE, without)
    assert torch.equal(cluster[~without] // K, label[~without])
    assert all(value.isfinite() for value in scalars.values())
    assert learner.prototypes.mean.isfinite().all()


def test_the_bank_keeps_a_one_sided_batch_from_being_torn_apart():
    # The batch shows one of the class's two modes; the bank has seen both.
    share = {}
    for pool in ("batch", "bank"):
        bank = FeatureBank(C, 600, D, samples_per_image=600)
        learner = make_learner(pool=pool, banks={"context": bank}, pool_size=6000, epsilon=1.0)
        learner.prototypes.start_(torch.ones(C, dtype=torch.bool), MODES, torch.ones(C, K, D))
        seen = MODES[0].repeat(300, 1) + 0.3 * torch.randn(600, D)
        bank.push_(seen.t().view(1, D, 1, 600), torch.zeros(1, 1, 600, dtype=torch.int64))
        points = MODES[0, 1].view(1, D, 1, 1) + 0.3 * torch.randn(1, D, 6, 10)
        label = torch.zeros(1, 6, 10, dtype=torch.int64)
        cluster, _ = learn(learner, points, label, label == 0)
        share[pool] = (cluster == 1).float().mean()
    assert share["batch"] < 0.6 and share["bank"] > 0.9


def test_a_pool_with_room_for_every_pixel_and_an_empty_bank_is_the_batch(monkeypatch):
    monkeypatch.setattr(FeatureBank, "push_", lambda *_: None)
    pixels, everything = make_pixels(), [True] * C
    batch, scalars = learn(make_learner(started=everything, pool="batch"), *pixels)
    pooled, others = learn(make_learner(started=everything, pool_size=2 * C * 400), *pixels)
    assert torch.equal(pooled, batch)
    violation = "prototypes/marginal_violation"
    torch.testing.assert_close(others[violation], scalars[violation], atol=1e-5, rtol=1e-3)


@KINDS
@POOLS
@pytest.mark.parametrize("case", ["nothing started", "all ignored", "nothing trusted"])
def test_where_nothing_takes_part_nothing_moves(kind, pool, case):
    learner = make_learner(kind, [case != "nothing started"] * C, pool=pool)
    embeddings, label, trusted = make_pixels()
    if case == "all ignored":
        label = label.fill_(255)
    if case != "nothing started":
        trusted = trusted.zero_()
    before = learner.prototypes.mean.clone()
    cluster, scalars = learn(learner, embeddings, label, trusted)
    assert torch.equal(learner.prototypes.mean, before)
    assert torch.equal(cluster < NONE, (label < C) & (case == "nothing trusted"))
    assert scalars["prototypes/marginal_violation"] == 0
    assert all(value.isfinite() for value in scalars.values())


def test_the_order_of_pixels_does_not_matter():
    pixels, order = make_pixels(), torch.randperm(400)
    shuffled = [part.flatten(-2)[..., order].view_as(part) for part in pixels]
    one, _ = learn(make_learner(started=[True] * C, pool="batch"), *pixels)
    other, _ = learn(make_learner(started=[True] * C, pool="batch"), *shuffled)
    assert torch.equal(one.flatten()[order], other.flatten())


def test_embeddings_keep_their_graph_and_nothing_else_has_one():
    embeddings, label, trusted = make_pixels()
    step = make_step(4, source=(embeddings.requires_grad_(), label, trusted))
    learner = make_learner(started=[True] * C)
    assert not any(value.requires_grad for value in learner(step).values())
    assert step.pixels["context"]["source"].embeddings.requires_grad
    assert not any(buffer.requires_grad for buffer in learner.prototypes.buffers())


def test_both_scales_are_clustered_each_on_its_own_and_move_the_prototypes_together():
    banks = {scale: FeatureBank(C, 100, D) for scale in ("context", "detail")}
    learner = make_learner(started=[True] * C, pool="batch", banks=banks)
    before = copy.deepcopy(learner.prototypes)
    step = make_step(4, source=make_pixels(), mixed=make_pixels())
    box = Box(0, 4, 8, 12)
    for outputs in step.outputs.values():
        outputs.detail = Detail(box, outputs.logits, torch.randn(1, D, 8, 8), outputs.fused)
    scalars = learner(step)
    assert torch.equal(step.pixels["detail"]["mixed"].label, box.crop(step.mixed.label))
    assert {"prototypes/bank_fill_min", "prototypes/bank_fill_min_detail"} < set(scalars)
    views = [view for scale in step.pixels.values() for view in scale.values()]
    moves = [torch.where(view.trusted, view.cluster, NONE).flatten() for view in views]
    before.update_(torch.cat([view.rows for view in views]), torch.cat(moves))
    torch.testing.assert_close(learner.prototypes.mean, before.mean)
    assert all(bank.fill.min() > 0 for bank in banks.values())


def test_each_scale_is_balanced_with_its_own_bank(monkeypatch):
    banks = {scale: FeatureBank(C, 100, D) for scale in ("context", "detail")}
    learner = make_learner(started=[True] * C, banks=banks)
    step = make_step(4, source=make_pixels())
    outputs = step.outputs["source"]
    outputs.detail = Detail(Box(0, 4, 8, 12), None, torch.randn(1, D, 8, 8), None)
    drawn, sample = [], FeatureBank.sample
    monkeypatch.setattr(
        FeatureBank, "sample", lambda self, count: drawn.append(self) or sample(self, count)
    )
    learner(step)
    assert [id(bank) for bank in drawn] == [id(bank) for bank in banks.values()]


@KINDS
def test_prototypes_find_the_modes_of_each_class(kind):
    learner = make_learner(kind)
    pixels, scalars = run(learner, range(5))
    found = learner.prototypes.mean
    for c in range(C):
        order = found[c].sum(-1).argsort(descending=True)
        torch.testing.assert_close(found[c][order], MODES[c], atol=0.1, rtol=0)
    assert scalars["prototypes/usage_entropy"] > 0.95
    # Each pixel belongs to the prototype of its own mode.
    nearest = torch.cdist(pixels.rows, found.flatten(0, 1)).argmin(1)
    assert (pixels.cluster.flatten() == nearest).float().mean() > 0.95
    if kind is GaussianPrototypes:  # the noise of an embedding has a deviation of 0.1
        torch.testing.assert_close(
            learner.prototypes.variance, torch.full((C, K, D), 0.01), atol=0.005, rtol=0
        )
    # Where the prototypes started is kept, on the modes too, while they moved on.
    start = learner.prototypes.start_mean
    torch.testing.assert_close(start, found, atol=0.1, rtol=0)
    assert not torch.equal(start, found)


def test_before_the_start_the_bank_fills_and_no_pixel_has_a_cluster():
    learner = make_learner()
    pixels, scalars = run(learner, range(2))
    assert (pixels.cluster == NONE).all() and not scalars
    assert learner.banks["context"].fill.min() > 0


def test_class_that_appears_late_starts_late(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 2)
    learner = make_learner()
    pixels, _ = run(learner, range(6), classes=(0, 1))
    assert learner.prototypes.started.tolist() == [True, True, False]
    assert (pixels.cluster < 2 * K).all()
    early_start = learner.prototypes.start_mean.clone()
    pixels, _ = run(learner, range(6, 10))
    assert learner.prototypes.started.all()
    assert torch.equal(pixels.cluster // K, pixels.label)
    assert torch.equal(learner.prototypes.start_mean[:2], early_start[:2])


def test_classes_wait_for_enough_embeddings_or_a_full_ring(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 2)
    learner = make_learner(bank_size=600, start_samples=1000)
    pixels, _ = run(learner, range(3))
    assert not learner.prototypes.started.any() and (pixels.cluster == NONE).all()
    run(learner, range(3, 10))
    assert learner.prototypes.started.all()


def test_classes_wait_for_enough_embeddings_of_each_prototype(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 1)
    learner = make_learner(bank_size=600, start_samples=200)
    for iteration in range(2, 20):
        run(learner, [iteration])
        enough = learner.banks["context"].fill >= 200 * K
        assert torch.equal(learner.prototypes.started, enough)
        if enough.all():
            break
    assert 2 < iteration < 19


def test_prototypes_start_from_the_banks_of_both_scales():
    # The context holds one mode of each class, the detail the other; neither is enough alone.
    banks = {scale: FeatureBank(C, 500, D) for scale in ("context", "detail")}
    learner = make_learner(banks=banks, start_samples=100)
    label = torch.arange(C).view(1, C, 1).expand(3, C, 50).contiguous()
    for mode, (scale, bank) in enumerate(banks.items()):
        points = MODES[label, mode] + 0.1 * torch.randn(3, C, 50, D)
        bank.push_(points.permute(0, 3, 1, 2), label)
        learner._start_ready_classes(2)
        assert learner.prototypes.started.all() == (scale == "detail")
    for c in range(C):
        order = learner.prototypes.mean[c].sum(-1).argsort(descending=True)
        torch.testing.assert_close(learner.prototypes.mean[c][order], MODES[c], atol=0.1, rtol=0)


@POOLS
def test_a_few_pixels_of_a_class_go_to_their_nearest_prototypes(pool):
    # Balanced, both modes would get one of two pixels that lie near the same one.
    learner = make_learner(started=[True] * C, pool=pool)
    learner.prototypes.mean.copy_(MODES)
    label = torch.full((1, 4, 4), C)
    label[0, 0, :2] = 1
    embeddings = (MODES[1, 0] + 0.1).view(1, D, 1, 1).expand(1, D, 4, 4).clone()
    embeddings[0, :, 0, 1] -= 0.3
    cluster, _ = learn(learner, embeddings, label, label < C)
    assert cluster[0, 0, :2].tolist() == [K, K]


def test_once_all_classes_have_started_nothing_is_looked_at(monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 1)
    learner = make_learner()
    run(learner, range(4))
    assert learner.num_started == C
    monkeypatch.setattr(PrototypeLearner, "_start_ready_classes", None)  # calling it would fail
    run(learner, range(4, 6))
    again = make_learner(started=[True, False, True])
    again.count_started()
    assert again.num_started == 2


def test_random_start_needs_no_bank():
    learner = make_learner(start_method="random", start_iter=0)
    run(learner, [0], classes=(0,))
    assert learner.prototypes.started.all()


@pytest.mark.parametrize("config", ["daformer_centroid", "daformer_gauss"])
def test_each_type_has_its_entropic_weight_whatever_config_it_is_chosen_in(tiny_cfg, config):
    for options, expected in (
        (("PROTOTYPES.TYPE", "centroid"), 0.05),
        (("PROTOTYPES.TYPE", "gauss"), 0.1),
        (("PROTOTYPES.SINKHORN.EPSILON", 0.3), 0.3),
    ):
        cfg = tiny_cfg(config, *options)
        head = PrototypeHead(cfg, build_backbone(cfg).output_shape())
        assert PrototypeLearner.from_config(cfg, head).epsilon == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "queue"}, r"'queue'.*bank.*batch"),
        ({"start_method": "zero"}, r"'zero'.*kmeans.*random"),
        ({"pool_size": 23}, "pool_size is 23, expected at least 24"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_learner(**options)


def test_a_start_follows_the_seed_of_the_run():
    starts = []
    for seed in (0, 0, 1):
        learner = make_learner(start_method="random", start_iter=0, seed=seed)
        run(learner, [0])
        starts.append(learner.prototypes.start_mean)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])


def test_the_emptiest_class_of_the_bank_is_logged_beside_the_mean():
    learner = make_learner(started=[True] * 3, bank_size=500)
    _, scalars = run(learner, [4], classes=(0, 1))  # class 2 has no pixel
    fill = learner.banks["context"].fill / 500
    assert scalars["prototypes/bank_fill_min"] == 0 < scalars["prototypes/bank_fill_mean"]
    torch.testing.assert_close(scalars["prototypes/bank_fill_mean"], fill.mean())
