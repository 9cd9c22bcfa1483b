"""Checkpoints made in the formats of others become ours, with the original's golden values."""

import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from checkpoint_fixtures import fill_golden_network_, golden_images, official_segmentor, summary
from conftest import CONFIGS
from detectron2.modeling import build_model
from packaging.version import Version
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from mpcl.checkpoint.foreign import convert_checkpoint, read_foreign
from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.config import get_cfg_from
from mpcl.engine.evaluate import evaluate_networks
from mpcl.predict.loading import load_networks

BN = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
MODELS = {"daformer": "DAFormer", "hrda": "HRDA", "mic": "HRDA"}


SMALL = ("MODEL.MIT.VARIANT", "tiny", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16)


def build(method: str, *opts):
    settings = ["MODEL.DEVICE", "cpu", "MODEL.HRDA.DETAIL_SIZE", (64, 64)]
    cfg = get_cfg_from(str(CONFIGS / f"{method}.yaml"), [*settings, *(opts or SMALL)])
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture(scope="module", params=["daformer", "hrda"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def released(method) -> dict[str, torch.Tensor]:
    return official_segmentor(build(method))


def prefixed(state, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state, shift: float) -> dict[str, torch.Tensor]:
    return {name: t + shift if t.is_floating_point() else t for name, t in state.items()}


def head_of_the_publications() -> set[str]:
    """Names inside ``decode_head.`` of DAFormer, written down from its publication's files."""
    names = {f"conv_seg.{p}" for p in ("weight", "bias")}
    names |= {f"embed_layers.{i}.proj.{p}" for i in range(4) for p in ("weight", "bias")}
    units = ["aspp_modules.0", "bottleneck"]
    units += [f"aspp_modules.{i}.{k}wise_conv" for i in (1, 2, 3) for k in ("depth", "point")]
    for unit in units:
        names |= {f"fuse_layer.{unit}.conv.weight", *(f"fuse_layer.{unit}.bn.{b}" for b in BN)}
    return names


def test_the_fixture_has_the_names_of_the_publications(released, method):
    found = {n.removeprefix("decode_head.") for n in released if n.startswith("decode_head.")}
    if method == "daformer":
        assert found == head_of_the_publications() and len(found) == 58
    else:
        attention = {n for n in found if n.startswith("scale_attention.")}
        assert found - attention == {f"head.{name}" for name in head_of_the_publications()}
        assert len(attention) == 16 and len(found) == 74


def write(path, state, **rest) -> str:
    torch.save({"state_dict": state, **rest}, path)
    return str(path)


LAYOUTS = {
    "published": lambda s: prefixed(s, "model."),
    "data parallel": lambda s: prefixed(s, "module.model."),
    "segmentor": lambda s: s,
    "training, teacher first": lambda s: {
        **prefixed(other(s, 1), "ema_model."),
        **prefixed(other(s, 2), "imnet_model."),
        **prefixed(s, "model."),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_checkpoint_has_the_released_student(method, released, layout, tmp_path):
    path = write(tmp_path / "latest.pth", LAYOUTS[layout](released), meta={"iter": 40000})
    foreign = convert_checkpoint(path, tmp_path / "ours.pth", part="student")
    assert foreign.kind == f"{MODELS[method]} (or MIC on it) MiT-tiny"
    plain = convert_checkpoint(
        write(tmp_path / "plain.pth", released), tmp_path / "x.pth", part="student"
    )
    student, expected = foreign.networks["student"], plain.networks["student"]
    assert len(student) == len(released) and not foreign.missing
    assert student.keys() == expected.keys()
    assert all(torch.equal(student[name], expected[name]) for name in student)


@torch.no_grad()
def test_a_released_student_is_the_golden_network(method, released, tmp_path):
    path = write(tmp_path / "latest.pth", LAYOUTS["published"](released), meta={"iter": 40000})
    convert_checkpoint(path, tmp_path / "ours.pth", part="student")
    golden = fill_golden_network_(build(method)).state_dict()
    for file in (path, str(tmp_path / "ours.pth")):
        model = build(method).double().eval()
        checkpointer = WeightsCheckpointer(model)
        checkpointer.load(file)
        assert checkpointer.initial == ()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, golden[name]) or name.endswith("tracked"), name


@torch.no_grad()
def test_a_released_daformer_computes_what_the_original_modules_do(tmp_path):
    b0 = ("MODEL.MIT.VARIANT", "b0")  # test_hrda.py has the values of HRDA
    path = write(tmp_path / "latest.pth", official_segmentor(build("daformer", *b0)))
    model = build("daformer", *b0).double().eval()
    WeightsCheckpointer(model).load(path)
    scores = model.score(golden_images(64, 96))
    logits = F.interpolate(scores, size=(64, 96), mode="bilinear", align_corners=False)
    # Mean, standard deviation, largest magnitude, first and last.
    expected = [-0.000842331, 0.096452807, 0.437504164, 0.160602889, -0.027216519]
    assert summary(logits) == pytest.approx(expected, abs=2e-9)


def test_teacher_and_student_of_a_training_checkpoint_keep_apart(method, released, tmp_path):
    path = write(tmp_path / "iter_40000.pth", LAYOUTS["training, teacher first"](released))
    foreign = convert_checkpoint(path, tmp_path / "both.pth")
    assert set(foreign.networks) == {"student", "teacher"}
    assert len(foreign.left_out) == len(released)
    assert all(name.startswith("imnet_model.") for name in foreign.left_out)
    both = torch.load(tmp_path / "both.pth", weights_only=True)
    assert both["model"].keys() == both["teacher"].keys() == build(method).state_dict().keys()
    bias = "sem_seg_head.classifier.bias"
    torch.testing.assert_close(both["teacher"][bias], both["model"][bias] + 1)
    convert_checkpoint(path, tmp_path / "teacher.pth", part="teacher")
    teacher = torch.load(tmp_path / "teacher.pth", weights_only=True)
    assert "teacher" not in teacher
    torch.testing.assert_close(teacher["model"][bias], both["teacher"][bias])


@pytest.mark.parametrize("name", MODELS)
def test_converted_files_evaluate_with_the_shipped_configs(tiny_cfg, name, tmp_path):
    small = official_segmentor(build_model(tiny_cfg(name)))
    state = {**prefixed(small, "model."), **prefixed(other(small, 0.01), "ema_model.")}
    path = write(tmp_path / "latest.pth", state)
    convert_checkpoint(path, tmp_path / "both.pth")
    results = evaluate_networks(
        load_networks(tiny_cfg(name, "MODEL.WEIGHTS", str(tmp_path / "both.pth")))
    )
    assert set(results) == {"sem_seg", "sem_seg_student"}
    convert_checkpoint(path, tmp_path / "teacher.pth", part="teacher")
    alone = evaluate_networks(
        load_networks(tiny_cfg(name, "MODEL.WEIGHTS", str(tmp_path / "teacher.pth")))
    )
    assert alone["sem_seg"] == pytest.approx(results["sem_seg"], nan_ok=True)


def test_a_part_that_is_not_there_is_refused(released, tmp_path):
    path = write(tmp_path / "latest.pth", prefixed(released, "model."))
    with pytest.raises(ValueError, match="no teacher, only the student"):
        convert_checkpoint(path, tmp_path / "ours.pth", part="teacher")
    with pytest.raises(ValueError, match=r"part is 'ema'.*both, student, teacher"):
        convert_checkpoint(path, tmp_path / "ours.pth", part="ema")
    assert list(tmp_path.glob("ours*")) == []


def test_damaged_heads_are_refused_with_the_names(released, method):
    head = "decode_head." if method == "daformer" else "decode_head.head."
    damaged = dict(released)
    del damaged[head + "embed_layers.2.proj.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(sem_seg_head\.fusion\.embed\.2\.bias\)"):
        read_foreign(damaged)
    further = {**released, head + "fuse_layer.image_pool.conv.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"1 unknown .*image_pool"):
        read_foreign(further)
    broken = {**released, head + "conv_seg.bias": torch.full((19,), float("nan"))}
    with pytest.raises(ValueError, match=r"not finite: sem_seg_head\.classifier\.bias"):
        read_foreign(broken)


def test_class_names_of_the_file_are_reported_and_must_fit(released, tmp_path):
    names = [f"class {i}" for i in range(19)]
    for classes in (names, tuple(names)):
        path = write(tmp_path / "latest.pth", released, meta={"CLASSES": classes, "iter": 7})
        assert "class 0, class 1" in convert_checkpoint(path, tmp_path / "ours.pth").note
    provenance = torch.load(tmp_path / "ours.pth", weights_only=True)["provenance"]
    assert provenance["iteration"] == 7 and re.fullmatch("[0-9a-f]{64}", provenance["sha256"])
    path = write(tmp_path / "latest.pth", released, meta={"CLASSES": names[:5]})
    with pytest.raises(ValueError, match="names 5 classes, but its classifier has 19"):
        convert_checkpoint(path, tmp_path / "ours.pth")


@pytest.mark.skipif(Version(torch.__version__) < Version("2.6"), reason="needs torch >= 2.6")
def test_numpy_scalars_in_the_metadata_pass_and_objects_do_not(released, tmp_path):
    scores = {"best_score": np.float64(73.8), "seed": np.int64(3), "loss": np.float32(0.5)}
    path = write(tmp_path / "latest.pth", released, meta={"hook_msgs": scores})
    convert_checkpoint(path, tmp_path / "ours.pth")
    path = write(tmp_path / "latest.pth", released, meta={"config": tmp_path})
    with pytest.raises(ValueError, match="could run code"):
        convert_checkpoint(path, tmp_path / "ours.pth")


def test_of_whole_segformer_models_the_encoder_is_taken_and_the_head_named(tmp_path):
    config = SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=7)
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "segformer")
    foreign = convert_checkpoint(tmp_path / "segformer", tmp_path / "ours.pth")
    assert foreign.missing == "the decode head"
    assert len(foreign.networks["student"]) == len(build("daformer").backbone.state_dict())
    assert "another architecture" in foreign.note and "decode_head." in foreign.note
    assert all(name.startswith("decode_head.") for name in foreign.left_out)
    model = build("daformer")
    head = model.sem_seg_head.classifier.weight.clone()
    WeightsCheckpointer(model).load(str(tmp_path / "ours.pth"))
    assert torch.equal(model.sem_seg_head.classifier.weight, head)


def test_a_timm_encoder_is_told_by_name_or_by_the_folders_config(tmp_path):
    torch.manual_seed(1)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    folder = tmp_path / "test_vit"
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no Mix Transformer"):
        convert_checkpoint(folder, tmp_path / "ours.pth")
    by_name = convert_checkpoint(folder, tmp_path / "named.pth", timm_name="test_vit")
    (folder / "config.json").write_text('{"architecture": "test_vit"}')
    by_config = convert_checkpoint(folder, tmp_path / "config.pth")
    assert by_name.kind == by_config.kind == "timm test_vit"
    assert {"head.weight", "head.bias"} <= set(by_name.left_out)
    options = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_vit")
    model = build("daformer", *options, *SMALL[2:])
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(tmp_path / "named.pth"))
    norm = "blocks.0.norm1.weight"
    assert torch.equal(model.backbone.timm.state_dict()[norm], state[norm])
    assert not any(name.startswith("backbone.timm.") for name in checkpointer.initial)


def test_our_own_checkpoints_need_no_conversion(tmp_path):
    torch.save({"model": build("daformer").state_dict()}, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match="of this project already"):
        convert_checkpoint(tmp_path / "model_final.pth", tmp_path / "ours.pth")
