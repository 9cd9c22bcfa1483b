import copy

import pytest
import torch
import torch.nn.functional as F
from checkpoint_fixtures import fill_golden_network_, golden_images, summary
from detectron2.modeling import build_model

from mpcl.losses.segmentation import pixel_cross_entropy, segmentation_loss
from mpcl.modeling import hrda
from mpcl.modeling.daformer_head import DAFormerHead
from mpcl.modeling.mit import MixTransformer
from mpcl.self_training.teacher import EMATeacher
from mpcl.structures import Box, View

METHODS = ["hrda", "hrda_gauss", "mic_centroid"]


@pytest.fixture(scope="module")
def golden():
    backbone = MixTransformer(variant="b0")
    shape = backbone.output_shape()
    model = hrda.HRDASegmentor(
        backbone=backbone,
        sem_seg_head=DAFormerHead(shape, num_classes=19),
        prototype_head=None,
        scale_attention=hrda.ScaleAttention(
            shape, num_classes=19, channels=256, dropout=0.1, norm="BN"
        ),
        detail_size=(64, 64),
        pixel_mean=(0, 0, 0),
        pixel_std=(1, 1, 1),
    ).eval()
    return fill_golden_network_(model)


@torch.no_grad()
def test_golden_values_of_the_original_attention(golden):
    attention = golden.scale_attention(golden.encode(golden_images(128, 128)))
    mean, std, largest, first, last = summary(attention)
    assert attention.shape == (2, 19, 16, 16)
    expected = (0.500074560, 0.025089816, 0.555807888, 0.506067041, 0.495217820)
    assert (mean, std, largest, first, last) == pytest.approx(expected, abs=2e-9)


@torch.no_grad()
def test_golden_values_of_the_original_pseudo_label_logits(golden):
    single = copy.deepcopy(golden).float()  # a tenth of the time
    scores = single.score(golden_images(128, 128).float()).double()
    logits = F.interpolate(scores, size=(128, 128), mode="bilinear", align_corners=False)
    expected = [0.002411444, 0.098251596, 0.478779770, 0.122909551, 0.076649627]
    assert summary(logits) == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_golden_losses_of_the_original(golden, monkeypatch):
    box = Box(32, 16, 96, 80)
    monkeypatch.setattr(hrda, "sample_detail_box", lambda *_: box)
    outputs = golden({"source": golden_images(128, 128)})["source"]
    index = torch.arange(2 * 128 * 128)
    label = (index // 7 % 20).reshape(2, 128, 128)
    label[label == 19] = 255
    view = View.of_source(golden_images(128, 128), label)
    view.weight = (0.5 + 0.5 * torch.sin(0.003 * index.double())).reshape(label.shape)
    part = view.crop(box)
    # The losses here compute in float32.
    fused = 0.9 * pixel_cross_entropy(outputs.logits, label, view.weight)
    detail = 0.1 * pixel_cross_entropy(outputs.detail.logits, part.label, part.weight)
    assert fused.item() == pytest.approx(1.282302330, abs=1e-6)
    assert detail.item() == pytest.approx(0.142182958, abs=1e-7)
    total = segmentation_loss(outputs, view, detail_weight=0.1)
    assert total.item() == pytest.approx(1.282302330 + 0.142182958, abs=1e-6)


def build(tiny_cfg, method, *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(method, *opts))


@pytest.mark.parametrize("method", METHODS)
def test_views_give_both_scales(tiny_cfg, method):
    model = build(tiny_cfg, method)
    view = model({"source": torch.randn(2, 3, 64, 64)})["source"]
    assert view.logits.shape == (2, 4, 16, 16)
    assert view.features.shape == (2, 64, 1, 1)
    assert view.detail.logits.shape == (2, 4, 8, 8)
    if method == "hrda":
        assert view.embeddings is None and view.detail.embeddings is None
    else:
        assert view.embeddings.shape == view.detail.embeddings.shape == (2, 16, 8, 8)


def test_each_view_draws_a_box_of_its_own_and_nothing_is_kept(tiny_cfg):
    model = build(tiny_cfg, "hrda")
    images = {"source": torch.zeros(1, 3, 64, 64), "mixed": torch.zeros(1, 3, 64, 64)}
    boxes = [tuple(out.detail.box for out in model(images).values()) for _ in range(8)]
    assert any(source != mixed for source, mixed in boxes) and len(set(boxes)) > 1
    model.eval()
    with torch.no_grad():  # a forward in between does not change what is predicted
        before = model.score(images["source"])
        model(images)
        assert torch.equal(model.score(images["source"]), before)


def test_detail_equals_the_single_scale_model_on_the_crop(tiny_cfg):
    model = build(tiny_cfg, "hrda").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        detail = model({"source": images})["source"].detail
        alone = model.sem_seg_head(model.backbone(detail.box.crop(images)))
    torch.testing.assert_close(detail.logits, alone)


@torch.no_grad()
def test_features_and_embeddings_are_those_of_their_scale(tiny_cfg):
    opts = ("MODEL.HRDA.DETAIL_SIZE", (32, 48), "PROTOTYPES.HEAD", "shared")
    model = build(tiny_cfg, "hrda_gauss", *opts).eval()
    images = torch.randn(2, 3, 64, 64)
    outputs = model({"source": images})["source"]
    for found, view in (
        (outputs, model.encoder_input(images)),
        (outputs.detail, outputs.detail.box.crop(images)),
    ):
        alone = model.forward_features(model.backbone(view))
        torch.testing.assert_close(found.embeddings, alone.embeddings)
        torch.testing.assert_close(found.fused, alone.fused)
        if found is outputs:
            torch.testing.assert_close(found.features, alone.features)


@pytest.mark.parametrize("size", [(64, 96), (77, 90), (130, 65)])
@torch.no_grad()
def test_prediction_has_the_images_size_also_off_the_grid(tiny_cfg, size):
    model = build(tiny_cfg, "hrda_gauss").eval()
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    result = model([{"image": image, "height": size[0], "width": size[1]}])[0]["sem_seg"]
    assert result.shape == (4, *size) and torch.isfinite(result).all()


@torch.no_grad()
def test_prediction_by_prototypes_fuses_both_scales(tiny_cfg):
    model = build(tiny_cfg, "hrda_gauss", "TEST.OUTPUT", "prototypes").eval()
    prototypes = model.prototype_head.prototypes
    prototypes.start_(torch.ones(4, dtype=torch.bool), torch.randn(4, 3, 16), torch.ones(4, 3, 16))
    images = torch.randn(1, 3, 64, 64)
    by_prototypes = model.score(images)
    model.predict_by_prototypes = False
    assert by_prototypes.shape == model.score(images).shape
    assert not torch.allclose(by_prototypes, model.score(images))


def test_detectron2s_training_contract_has_the_fused_and_the_detail_loss(tiny_cfg):
    model = build(tiny_cfg, "hrda")
    batch = [
        {"image": torch.randint(0, 256, (3, 64, 64)), "sem_seg": torch.randint(0, 4, (64, 64))}
    ] * 2
    losses = model(batch)
    losses["loss_sem_seg"].backward()
    for part in (model.backbone, model.sem_seg_head, model.scale_attention):
        assert all(p.grad is not None for p in part.parameters())


def test_whole_images_pass_context_first_as_in_hrda(tiny_cfg, monkeypatch):
    model, sizes = build(tiny_cfg, "hrda"), []
    monkeypatch.setattr(
        model.sem_seg_head.classifier, "forward", lambda x: sizes.append(len(x)) or x[:, :4]
    )
    with torch.no_grad():
        model.eval().score(torch.randn(2, 3, 64, 64))
    assert sizes == [2, 2 * 9]  # images, then all windows of all images


@pytest.mark.parametrize("size, calls", [((64, 64), [2 + 2 * 9]), ((64, 96), [2, 2 * 15])])
def test_context_and_windows_of_one_size_share_an_encoder_call(tiny_cfg, monkeypatch, size, calls):
    model, images = build(tiny_cfg, "hrda").eval(), torch.randn(2, 3, *size)
    encode, found = model.backbone.forward, []
    monkeypatch.setattr(model.backbone, "forward", lambda x: found.append(len(x)) or encode(x))
    with torch.no_grad():
        together = model.score(images)
        assert found == calls
        model.encoder_has_batch_norm = True  # one after the other
        torch.testing.assert_close(model.score(images), together)
    assert found[len(calls) :] == [2, calls[-1] - 2 * (len(calls) == 1)]


def test_teacher_normalises_all_windows_together(tiny_cfg):
    # Context and windows: two calls of the head's batch norm, one of the attention's.
    model = build(tiny_cfg, "hrda")
    teacher = EMATeacher(model, statistics="target")
    with torch.no_grad():
        teacher.model.score(torch.randn(2, 3, 64, 64))
    assert teacher.model.sem_seg_head.fusion.bottleneck.bn.num_batches_tracked == 2
    assert teacher.model.scale_attention.fusion.bn.num_batches_tracked == 1


def test_the_detail_is_as_high_and_as_wide_as_its_key_says(tiny_cfg, monkeypatch):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("hrda", "MODEL.HRDA.DETAIL_SIZE", (32, 48)))  # height, width
    images, windows = torch.randn(2, 3, 64, 96), []
    detail = model({"source": images})["source"].detail
    box = detail.box
    assert (box.bottom - box.top, box.right - box.left) == (32, 48)
    assert detail.logits.shape == (2, 4, 8, 12)
    slide = hrda.sliding_window
    monkeypatch.setattr(
        hrda,
        "sliding_window",
        lambda *args, **options: windows.append(options) or slide(*args, **options),
    )
    with torch.no_grad():
        assert model.eval().score(images).shape == (2, 4, 16, 24)
    assert [(each["crop"], each["stride"]) for each in windows] == [((32, 48), (16, 24))]
