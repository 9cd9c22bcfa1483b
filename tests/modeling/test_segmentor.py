import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from mpcl.prototypes.kmeans import random_prototypes

METHODS = ["daformer", "daformer_centroid", "daformer_gauss"]


def build(tiny_cfg, method="daformer_gauss", *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(method, *opts))


def record(height=64, width=96, **extra):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, **extra}


@pytest.mark.parametrize("method", METHODS)
def test_views_give_logits_embeddings_and_features(tiny_cfg, method):
    model = build(tiny_cfg, method)
    outputs = model({"source": torch.randn(2, 3, 64, 96), "mixed": torch.randn(2, 3, 64, 96)})
    assert list(outputs) == ["source", "mixed"]
    for view in outputs.values():
        assert view.logits.shape == (2, 4, 16, 24)
        assert view.features.shape == (2, 64, 2, 3)
        if method == "daformer":
            assert view.embeddings is None
        else:
            assert view.embeddings.shape == (2, 16, 16, 24)
            torch.testing.assert_close(
                view.embeddings.mean(1), torch.zeros(2, 16, 24), atol=1e-5, rtol=0
            )


def test_views_are_normalised_one_after_the_other(tiny_cfg):
    # In training, batch norm uses a view's own statistics: another view in the dict changes
    # nothing.
    model = build(
        tiny_cfg, "daformer", "MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BACKBONE.DROP_PATH", 0.0
    )
    images = torch.randn(2, 3, 64, 64)
    alone = model({"source": images})["source"].logits
    accompanied = model({"mixed": 5 * torch.randn(2, 3, 64, 64), "source": images})["source"].logits
    torch.testing.assert_close(alone, accompanied)


@pytest.mark.parametrize("method", METHODS[1:])
def test_inference_does_not_touch_the_prototype_parts(tiny_cfg, method):
    model = build(tiny_cfg, method).eval()
    batch = [record()]
    with torch.no_grad():
        expected = model(batch)[0]["sem_seg"]
        called = []
        model.prototype_head.register_forward_hook(lambda *_: called.append(1))
        for parameter in model.prototype_head.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(model(batch)[0]["sem_seg"], expected) and not called
        model.prototype_head = None
        assert torch.equal(model(batch)[0]["sem_seg"], expected)


def test_prediction_has_the_records_own_size(tiny_cfg):
    model = build(tiny_cfg).eval()
    with torch.no_grad():
        results = model([record(64, 96) | {"height": 130, "width": 200}, record(64, 64)])
    assert results[0]["sem_seg"].shape == (4, 130, 200)
    assert results[1]["sem_seg"].shape == (4, 64, 64)


def test_prediction_is_the_heads_logits_resized_twice(tiny_cfg):
    model = build(tiny_cfg).eval()
    item = record(64, 96) | {"height": 100, "width": 150}
    with torch.no_grad():
        images = (item["image"][None].float() - model.pixel_mean) / model.pixel_std
        logits = model.sem_seg_head(model.backbone(images))
        for size in ((64, 96), (100, 150)):
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model([item])[0]["sem_seg"], logits[0])


def test_sliding_window_is_an_option(tiny_cfg):
    slide = ("TEST.INFERENCE", "slide", "TEST.SLIDE.CROP", (64, 64), "TEST.SLIDE.STRIDE", (32, 32))
    whole, sliding = build(tiny_cfg).eval(), build(tiny_cfg, "daformer_gauss", *slide).eval()
    sliding.load_state_dict(whole.state_dict())
    item = record(64, 96)
    with torch.no_grad():
        left = whole([item | {"image": item["image"][:, :, :64], "width": 64}])[0]["sem_seg"]
        result = sliding([item])[0]["sem_seg"]
    # Columns 0-31 are seen by the first window alone.
    torch.testing.assert_close(result[:, :, :32], left[:, :, :32])


def test_dataset_dicts_in_training_give_detectron2_losses(tiny_cfg):
    model = build(tiny_cfg).train()
    labels = torch.randint(0, 4, (2, 64, 96)).byte()
    losses = model([record(sem_seg=label) for label in labels])
    assert set(losses) == {"loss_sem_seg"}
    losses["loss_sem_seg"].backward()
    assert model.backbone.stages[0].patch_embed.proj.weight.grad.abs().sum() > 0


def test_prediction_by_prototypes_picks_the_nearest_class(tiny_cfg):
    model = build(tiny_cfg, "daformer_centroid", "TEST.OUTPUT", "prototypes").eval()
    prototypes = model.prototype_head.prototypes
    mean, variance = random_prototypes(4, 3, 16, seed=1)
    prototypes.start_(torch.tensor([True, True, False, True]), mean, variance)
    item = record()
    with torch.no_grad():
        scores = model.score(model.normalize([item]))
        embeddings = model({"view": model.normalize([item])})["view"].embeddings
    points = embeddings.permute(0, 2, 3, 1).reshape(-1, 1, 16)
    distance = torch.stack([((points - mean[c]) ** 2).mean(-1).amin(1) for c in (0, 1, 3)])
    nearest = torch.tensor([0, 1, 3])[distance.argmin(0)]
    assert torch.equal(scores.argmax(1).flatten(), nearest)


@pytest.mark.parametrize("head", ["separate", "shared"])
def test_separate_prototype_head_leaves_the_decoder_alone(tiny_cfg, head):
    model = build(tiny_cfg, "daformer_gauss", "PROTOTYPES.HEAD", head)
    model({"source": torch.randn(2, 3, 64, 64)})["source"].embeddings.square().sum().backward()
    reached = [p.grad is not None for p in model.sem_seg_head.fusion.parameters()]
    assert all(reached) if head == "shared" else not any(reached)
    assert all(p.grad is not None for p in model.prototype_head.parameters())
    assert model.backbone.stages[0].patch_embed.proj.weight.grad is not None


def test_levels_that_the_backbone_lacks_are_named(tiny_cfg):
    levels = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "stage4"])
    with pytest.raises(ValueError, match=r"IN_FEATURES names res2, res3, res4; the backbone"):
        build_model(tiny_cfg("daformer", *levels))
