"""The library's predictor: inputs of every kind, batches, channel order, which network predicts."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import NUM_CLASSES, SMALLEST, draw_scene
from detectron2.config import CfgNode
from PIL import Image
from run_fixtures import save_run

import mpcl
from mpcl.data.mapper import TestMapper
from mpcl.data.sets.classes import write_classes
from mpcl.predict.export import save_slim
from mpcl.predict.loading import load_networks


@pytest.fixture
def run(tiny_cfg):
    return save_run(tiny_cfg("daformer_gauss", *SMALLEST))


def scene(seed: int = 0, size=(64, 96)) -> np.ndarray:
    return draw_scene(np.random.default_rng(seed), "target", size)[0]


def evaluated(network, cfg, path) -> torch.Tensor:
    """What the evaluation sees of an image file."""
    with torch.no_grad():
        return network([TestMapper.from_config(cfg)({"file_name": str(path)})])[0]["sem_seg"]


def test_logits_are_those_of_the_evaluation(run, tmp_path):
    Image.fromarray(scene(size=(50, 130))).save(tmp_path / "a.png")
    cfg, student, teacher, *_ = load_networks(run)
    for chosen, expected in ((False, teacher.eval()), (True, student.eval())):
        predictor = mpcl.Predictor(run, student=chosen)
        found = predictor(str(tmp_path / "a.png"))["sem_seg"]
        assert found.shape == (NUM_CLASSES, 50, 130)
        torch.testing.assert_close(found, evaluated(expected, cfg, tmp_path / "a.png"))
        assert predictor.role == ("student" if chosen else "teacher")
        assert predictor.metadata.stuff_classes == ["ground", "hedge", "sky", "box"]


def test_every_kind_of_input_gives_the_same_turned_upright(run, tmp_path):
    rgb = scene()
    image = Image.fromarray(rgb)
    image.save(tmp_path / "a.png")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    predictor = mpcl.Predictor(run)
    expected = predictor(rgb)["sem_seg"]
    files = [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "turned.png"]
    for same in (image, Image.open(tmp_path / "turned.png"), rgb[:, ::1].copy(), *files):
        assert torch.equal(predictor(same)["sem_seg"], expected)
    bgr = mpcl.Predictor(run, channel_order="BGR")
    assert torch.equal(bgr(rgb[..., ::-1])["sem_seg"], expected)
    assert not torch.equal(bgr(rgb)["sem_seg"], expected)


@pytest.mark.parametrize("method", ["daformer", "hrda"])
def test_a_list_of_mixed_sizes_is_each_image_alone(tiny_cfg, method):
    predictor = mpcl.Predictor(save_run(tiny_cfg(method)), batch_size=3)
    sizes = [(64, 96), (70, 50), (64, 96), (3, 200), (64, 96), (1, 1)]
    images = [scene(i, (64, 96))[: h // 2 + 1, : w // 2 + 1] for i, (h, w) in enumerate(sizes)]
    passes, forwards = [], []
    predictor.model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    if method == "daformer":  # one encoder call an image size
        backbone = predictor.model.backbone
        backbone.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    together = predictor(images)
    assert passes == [3, 3] and forwards in ([], [2, 1, 1, 1, 1])
    for image, result in zip(images, together):
        assert result["sem_seg"].shape == (NUM_CLASSES, *image.shape[:2])
        torch.testing.assert_close(
            result["sem_seg"], predictor(image)["sem_seg"], rtol=1e-4, atol=1e-4
        )
    assert predictor([]) == []


def test_labels_and_confidence_are_argmax_and_softmax(run):
    predictor = mpcl.Predictor(run)
    logits = predictor(scene())["sem_seg"].double().numpy()
    labels = predictor.labels([scene()], confidence=True)[0]
    assert labels.ids.dtype == np.uint8
    np.testing.assert_array_equal(labels.ids, logits.argmax(0))
    probability = (np.exp(logits) / np.exp(logits).sum(0)).max(0)
    np.testing.assert_allclose(labels.confidence, probability, atol=1e-5)
    assert predictor.labels(scene()).confidence is None


def test_prototypes_predict_with_the_student_if_they_were_started(run, tiny_cfg, tmp_path):
    opts = ("TEST.OUTPUT", "prototypes")
    predictor = mpcl.Predictor(run, opts=opts)
    assert predictor.role == "student"
    by_classifier = mpcl.Predictor(run, student=True)
    assert not torch.equal(predictor(scene())["sem_seg"], by_classifier(scene())["sem_seg"])
    checkpoint = torch.load(run / "model_final.pth")
    checkpoint["model"]["prototype_head.prototypes.started"].zero_()
    torch.save(checkpoint, run / "model_final.pth")
    with pytest.raises(ValueError, match="before its prototypes started"):
        mpcl.Predictor(run, opts=opts)
    none = save_run(tiny_cfg("daformer", "OUTPUT_DIR", str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"needs PROTOTYPES\.TYPE"):
        mpcl.Predictor(none, opts=opts)


def test_sources_of_every_kind_load_the_same_network(run, tmp_path):
    expected = mpcl.Predictor(run)(scene())["sem_seg"]
    weights = run / "model_final.pth"
    save_slim(load_networks(run), tmp_path / "slim.pth")
    cfg = load_networks(run).cfg
    cfg.MODEL.WEIGHTS = str(weights)
    for predictor in (
        mpcl.Predictor(cfg),
        mpcl.Predictor(run / "config.yaml", weights),
        mpcl.Predictor(run, weights),
        mpcl.Predictor(weights),
        mpcl.Predictor(tmp_path / "slim.pth"),
    ):
        assert torch.equal(predictor(scene())["sem_seg"], expected)
        assert predictor.metadata.stuff_classes == ["ground", "hedge", "sky", "box"]
        assert not predictor.model.training


def test_classes_without_a_data_set_have_names_and_colours(tiny_cfg, tmp_path):
    nothing = ("DATASETS.TEST", (), "DATASETS.TRAIN", ())
    four = mpcl.Predictor(save_run(tiny_cfg("daformer", *nothing)))
    assert four.metadata.stuff_classes == [f"class {i}" for i in range(4)]
    assert len(set(four.metadata.stuff_colors)) == 4
    opts = (*nothing, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19, "OUTPUT_DIR", str(tmp_path / "19"))
    cityscapes = mpcl.Predictor(save_run(tiny_cfg("daformer", *opts)))
    assert cityscapes.metadata.stuff_classes[:2] == ["road", "sidewalk"]


def test_bad_arguments_are_named(run, tmp_path):
    predictor = mpcl.Predictor(run)
    for image, message in (
        (np.zeros((4, 4), np.uint8), r"\(4, 4\) of uint8"),
        (np.zeros((4, 4, 3), np.float32), "of float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (torch.zeros(3, 4, 4), "is a Tensor"),
        (Image.new("I;16", (4, 4)), "in mode 'I;16'"),
        (tmp_path / "nothing.png", r"nothing\.png"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(image)
    with pytest.raises(ValueError, match="channel_order is 'GRB'"):
        mpcl.Predictor(run, channel_order="GRB")
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        mpcl.Predictor(run, batch_size=0)
    with pytest.raises(FileNotFoundError, match="no run, config or weight file"):
        mpcl.Predictor(tmp_path / "nothing")
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "alone.pth")
    with pytest.raises(ValueError, match="comes without its config"):
        mpcl.Predictor(tmp_path / "alone.pth")


def test_the_config_in_a_weight_file_runs_no_code(run, tmp_path):
    save_slim(load_networks(run), tmp_path / "slim.pth")
    content = torch.load(tmp_path / "slim.pth", weights_only=True)
    trace = tmp_path / "trace"
    content["config"] += f"\nHARM: !!python/object/apply:os.mkdir ['{trace}']\n"
    torch.save(content, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match=r"its config is no valid YAML"):
        mpcl.Predictor(tmp_path / "harmful.pth")
    assert not trace.exists()
    yaml.unsafe_load(content["config"])
    assert trace.exists()  # it would have run
    content["config"] = "_BASE_: /etc/base.yaml"
    torch.save(content, tmp_path / "harmful.pth")
    with pytest.raises(ValueError, match=r"none of tools/export\.py"):
        mpcl.Predictor(tmp_path / "harmful.pth")


def test_a_slim_file_with_odd_parts_is_refused_by_name(run, tmp_path):
    save_slim(load_networks(run), tmp_path / "slim.pth")
    content = torch.load(tmp_path / "slim.pth", weights_only=True)
    for odd in (
        {"classes": None},
        {"classes": {"names": ["a"], "colors": []}},
        {"classes": {"names": ["a"], "colors": [[0, 0, 256]]}},
        {"classes": {"names": "a", "colors": [[0, 0, 0]]}},
        {"classes": {"names": ["a"], "colors": [[0, 0, 0]], "label_map": [[7, 0.0]]}},
        {"role": "judge"},
        {"classes": {"names": ["a"], "colors": [[0, 0, 0]]}},
        {"config": 5},
        {"config": "a: &a [*a]"},
        {"model": 5},
    ):
        torch.save(content | odd, tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=r"odd\.pth"):
            mpcl.Predictor(tmp_path / "odd.pth")


def test_the_student_of_a_slim_file_that_holds_the_teacher_is_refused(run, tmp_path):
    save_slim(load_networks(run), tmp_path / "slim.pth")
    with pytest.raises(ValueError, match=r"slim\.pth holds the teacher alone.*--student writes"):
        mpcl.Predictor(tmp_path / "slim.pth", student=True)
    save_slim(load_networks(run, student=True), tmp_path / "slim.pth")
    assert mpcl.Predictor(tmp_path / "slim.pth", student=True).role == "student"


def test_weights_keep_their_own_classes_beside_another_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    write_classes(run, load_networks(run).metadata)
    classes = json.loads((run / "classes.json").read_text())
    turned = {**classes, "names": classes["names"][::-1]}
    (tmp_path / "other" / "classes.json").write_text(json.dumps(turned))
    save_slim(load_networks(tmp_path / "other"), tmp_path / "slim.pth")
    for weights in (tmp_path / "other" / "model_final.pth", tmp_path / "slim.pth"):
        assert mpcl.Predictor(run, weights).metadata.stuff_classes == turned["names"]


def test_a_run_moves_to_the_device_that_is_there(run):
    config = CfgNode.load_cfg((run / "config.yaml").read_text())
    config.MODEL.DEVICE = "cuda:7"
    (run / "config.yaml").write_text(config.dump())
    predictor = mpcl.Predictor(run)
    assert ("cuda" if torch.cuda.is_available() else "cpu") == predictor.cfg.MODEL.DEVICE
    assert mpcl.Predictor(run, opts=("MODEL.DEVICE", "cpu")).cfg.MODEL.DEVICE == "cpu"
