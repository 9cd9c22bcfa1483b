"""Slim weights score the same; exported networks compute the same, at other sizes too."""

import os

import numpy as np
import pytest
import torch
from conftest import SMALLEST, draw_scene
from packaging.version import Version
from run_fixtures import save_run

import mpcl
from mpcl.engine.evaluate import evaluate_networks
from mpcl.predict import export
from mpcl.predict.export import export_network, save_slim
from mpcl.predict.loading import load_networks

SIZE = (64, 96)
torch_version = Version(torch.__version__)


@pytest.fixture(scope="module", autouse=True)
def one_program():
    """What torch.export and ONNX both start from is computed once: it takes a quarter of a minute.
    Runs of one config have equal weights, see ``save_run``."""
    programs, program = {}, export._program

    def shared(network, images, dynamic):
        key = type(network.network), images.shape
        if key not in programs:
            programs[key] = program(network, images, dynamic)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_program", shared)
        yield


@pytest.mark.parametrize("method", ["daformer_gauss", "hrda_gauss"])
def test_slim_weights_evaluate_to_identical_numbers(tiny_cfg, tmp_path, method):
    run = save_run(tiny_cfg(method, *SMALLEST))
    weights = ("MODEL.WEIGHTS", str(run / "model_final.pth"))
    whole = evaluate_networks(load_networks(tiny_cfg(method, *SMALLEST, *weights), resume=False))
    for student, task, role in (
        (False, "sem_seg", "teacher"),
        (True, "sem_seg_student", "student"),
    ):
        path = tmp_path / f"{task}.pth"
        number = save_slim(load_networks(run, student=student), path)
        assert number == len(torch.load(path, weights_only=True)["model"])
        output = tmp_path / f"{task}_of"
        options = ("MODEL.WEIGHTS", str(path), "OUTPUT_DIR", str(output))
        slim = evaluate_networks(load_networks(tiny_cfg(method, *SMALLEST, *options)))
        matrices = (output / "inference").rglob("*.json")
        assert [file.name for file in matrices] == [f"confusion_{role}.json"]
        assert set(slim) == {"sem_seg"}
        assert slim["sem_seg"] == pytest.approx(whole[task], abs=0, nan_ok=True)
    assert whole["sem_seg"] != whole["sem_seg_student"]


def test_a_slim_file_holds_one_network_its_config_and_nothing_of_this_machine(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("daformer_gauss"))
    save_slim(load_networks(run), tmp_path / "slim.pth")
    content = torch.load(tmp_path / "slim.pth", weights_only=True)
    assert set(content) == {"model", "config", "classes", "role"}
    assert content["role"] == "teacher"
    assert not any(name.startswith("prototype_head.") for name in content["model"])
    teacher = load_networks(run).teacher.model.state_dict()
    assert content["model"].keys() == teacher.keys()
    assert all(torch.equal(content["model"][name], tensor) for name, tensor in teacher.items())
    assert str(tmp_path) not in content["config"] and "tiny_" not in content["config"]
    assert (tmp_path / "slim.pth").stat().st_size < 0.5 * (run / "model_final.pth").stat().st_size


def test_a_slim_file_of_a_run_that_selects_on_labels_predicts(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("daformer", "TEST.SELECT_ON", "tiny_val", "TEST.EVAL_PERIOD", 1))
    save_slim(load_networks(run), tmp_path / "slim.pth")
    assert load_networks(tmp_path / "slim.pth").cfg.TEST.SELECT_ON == ""


def test_a_slim_file_can_be_made_slim_again(tiny_cfg, tmp_path):
    save_slim(load_networks(save_run(tiny_cfg("daformer"))), str(tmp_path / "one.pth"))
    save_slim(load_networks(tmp_path / "one.pth"), tmp_path / "two.pth")
    image, _ = draw_scene(np.random.default_rng(0), "target")
    one, two = (mpcl.Predictor(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert one.role == two.role == "teacher"
    assert torch.equal(one(image)["sem_seg"], two(image)["sem_seg"])


def images(height: int, width: int, number: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, height, width)).float()


def expected(predictor: mpcl.Predictor, batch: torch.Tensor) -> torch.Tensor:
    """What the evaluation computes of images at their own size."""
    records = [{"image": image.byte()} for image in batch]
    with torch.no_grad():
        return torch.stack([result["sem_seg"] for result in predictor.model(records)])


# torch.export and torch.onnx take the longer, the larger the graph is: one branch in the head, and
# of HRDA two detail windows. MPCL_TEST_FULL=1: more networks, each a quarter of a minute.
MIT = ("MODEL.SEM_SEG_HEAD.DILATIONS", (6,))
HRDA = ("TEST.INFERENCE", "whole", "MODEL.HRDA.DETAIL_SIZE", (64, 64))
FULL = pytest.mark.skipif(not os.getenv("MPCL_TEST_FULL"), reason="needs MPCL_TEST_FULL=1")


@pytest.mark.parametrize("opts", [(), SMALLEST], ids=["mit", "vit"])
def test_torchscript_computes_the_same_at_any_size(tiny_cfg, tmp_path, opts):
    run, path = save_run(tiny_cfg("daformer_gauss", *opts)), tmp_path / "network.pt"
    exported = export_network(load_networks(run), path, "torchscript", SIZE)
    assert exported.dynamic and len(exported.differences) == 2
    assert max(exported.differences.values()) < 1e-4
    network, predictor = torch.jit.load(path), mpcl.Predictor(run)
    for batch in (images(*SIZE), images(77, 130, 3), images(129, 64)):
        with torch.no_grad():
            found = network(batch)
        torch.testing.assert_close(found, expected(predictor, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch_version < Version("2.6"), reason="needs torch >= 2.6")
def test_an_exported_program_computes_the_same_at_any_size(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("daformer_gauss", *MIT))
    exported = export_network(load_networks(run), tmp_path / "network.pt2", "export", SIZE)
    assert exported.dynamic and list(exported.differences) == [(2, 3, 88, 137), (1, 3, *SIZE)]
    assert max(exported.differences.values()) < 1e-4
    batch = images(77, 130, 3)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "network.pt2").module()(batch)
    torch.testing.assert_close(found, expected(mpcl.Predictor(run), batch), rtol=1e-4, atol=1e-4)


def test_hrda_is_exported_at_one_size(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("hrda_gauss", *HRDA))
    exported = export_network(load_networks(run), tmp_path / "net.pt", "torchscript", (64, 72))
    assert not exported.dynamic and list(exported.differences) == [(1, 3, 64, 72)]
    batch, network = images(64, 72), torch.jit.load(tmp_path / "net.pt")
    with torch.no_grad():
        found = network(batch)
    torch.testing.assert_close(found, expected(mpcl.Predictor(run), batch), rtol=1e-4, atol=1e-4)
    for other in (images(64, 72, 2), images(64, 80)):  # it would be wrong there
        with pytest.raises(torch.jit.Error, match=r"this network takes \[1, 3, 64, 72\] alone"):
            network(other)


def test_an_export_that_fails_leaves_the_file_that_is_there(tiny_cfg, tmp_path, monkeypatch):
    run, path = save_run(tiny_cfg("daformer_gauss", *SMALLEST)), tmp_path / "network.pt"
    path.write_text("whole")

    def fill_the_disk(network, images, path, dynamic):
        path.write_text("ha")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mpcl.predict.export._torchscript", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        export_network(load_networks(run), path, "torchscript", SIZE)
    assert path.read_text() == "whole" and [file.name for file in tmp_path.glob(".export*")] == []


@pytest.mark.skipif(torch_version < Version("2.6"), reason="needs torch >= 2.6")
@pytest.mark.parametrize(
    ("method", "opts", "size"),
    [
        ("daformer_gauss", MIT, SIZE),
        # It is cut to size only where the 32 pixels of its patches do not divide that.
        pytest.param("daformer_gauss", SMALLEST, (96, 64), marks=FULL),
        pytest.param("hrda_gauss", HRDA, (64, 72), marks=FULL),
    ],
    ids=["daformer", "vit", "hrda"],
)
def test_onnxruntime_computes_the_same(tiny_cfg, tmp_path, method, opts, size):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    daformer = method == "daformer_gauss"
    run, path = save_run(tiny_cfg(method, *opts)), tmp_path / "network.onnx"
    exported = export_network(load_networks(run), path, "onnx", size)
    assert exported.dynamic == daformer
    assert max(exported.differences.values()) < 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert about == {"classes": '["ground", "hedge", "sky", "box"]', "role": "teacher"}
    axes = ["batch", 3, "height", "width"] if exported.dynamic else [1, 3, *size]
    (image_input,), (logits,) = session.get_inputs(), session.get_outputs()
    assert image_input.shape == axes and logits.shape == [axes[0], 4, *axes[2:]]
    batches = [images(*size)]
    batches += [images(77, 130, 3)] if exported.dynamic else []
    for batch in batches:
        (found,) = session.run(["logits"], {"images": batch.numpy()})
        wanted = expected(mpcl.Predictor(run), batch)
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_exported_is_refused(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("hrda_gauss"))
    loaded = load_networks(run)
    for options, message in (
        (("tflite", SIZE), "format is 'tflite'; expected one of torchscript, export, onnx"),
        (("export", (64, 90)), r"size is \(64, 90\); expected at least 64 .* multiples of 8"),
        (("export", (32, 96)), r"size is \(32, 96\)"),
    ):
        with pytest.raises(ValueError, match=message):
            export_network(loaded, tmp_path / "network", *options)
    by_prototypes = load_networks(run, opts=("TEST.OUTPUT", "prototypes"))
    with pytest.raises(ValueError, match=r"TEST\.OUTPUT is prototypes"):
        save_slim(by_prototypes, tmp_path / "slim.pth")
    assert not (tmp_path / "slim.pth").exists()


def test_a_slim_file_says_that_labels_have_chosen_its_weights(tiny_cfg, tmp_path):
    run = save_run(tiny_cfg("daformer", *SMALLEST))
    save_slim(load_networks(run), tmp_path / "slim.pth")
    assert load_networks(tmp_path / "slim.pth").selection == ""
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["selection"] = {"metric": "sem_seg/mIoU", "score": 30.0, "iterations": 2}
    torch.save(content, run / "model_final.pth")
    save_slim(load_networks(run), tmp_path / "slim.pth")
    assert "'score': 30.0" in load_networks(tmp_path / "slim.pth").selection
