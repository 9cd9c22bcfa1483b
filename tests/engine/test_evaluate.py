"""Evaluation of both networks on one set, on several, and on the parts of a set."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALLEST
from detectron2.data import DatasetCatalog, MetadataCatalog

from mpcl.data import mapper
from mpcl.data.decoding import BadFile
from mpcl.engine import AdaptationTrainer
from mpcl.engine import trainer as trainer_module
from mpcl.engine.evaluate import evaluate_networks, headline_key
from mpcl.evaluation import evaluator
from mpcl.evaluation.runs import differences, read_run
from mpcl.predict.loading import load_networks

SUBSETS = [["3", ["ground", "hedge", "sky"]], ["1", ["box"]]]
SHORT = (*SMALLEST, "SOLVER.MAX_ITER", 2, "VIS_PERIOD", 0, "TEST.CLASS_SUBSETS", SUBSETS)


@pytest.fixture
def parts(tiny_world):
    """``tiny_val`` in parts of one and two images."""
    records = DatasetCatalog.get(tiny_world["val"])
    own = {"tiny_fog_val": records[:1], "tiny_rain_val": records[1:]}
    classes = MetadataCatalog.get(tiny_world["val"]).stuff_classes
    for name, some in own.items():
        DatasetCatalog.register(name, lambda some=some: [dict(r) for r in some])
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255, label_map=None)
    MetadataCatalog.get(tiny_world["val"]).parts = tuple(own)
    yield tuple(own)
    del MetadataCatalog.get(tiny_world["val"]).parts
    for name in own:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(cfg) -> AdaptationTrainer:
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def last_row(cfg) -> dict[str, float]:
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    return json.loads(lines[-1])


def test_parts_are_reported_like_sets_that_were_evaluated_alone(tiny_cfg, parts, caplog):
    cfg = tiny_cfg("daformer", *SHORT)
    passes = []
    trainer = AdaptationTrainer(cfg)
    trainer.student.register_forward_pre_hook(
        lambda module, inputs: passes.append(inputs) if not module.training else None
    )
    with caplog.at_level("INFO"):
        trainer.train()
    assert len(passes) == 3  # each image once, whatever the number of parts
    results = trainer._last_eval_results
    assert list(results) == ["tiny_val", *parts]
    for task in ("sem_seg", "sem_seg_student"):
        for name in ("tiny_val", *parts):
            scores = results[name][task]
            assert scores["mIoU-1"] == scores["IoU-box"]
            assert last_row(cfg)[f"{name}/{task}/mIoU-3"] == pytest.approx(scores["mIoU-3"])
    alone = tiny_cfg("daformer", *SHORT, "DATASETS.TEST", parts)
    several = evaluate_networks(load_networks(alone, resume=True))
    assert several == {name: results[name] for name in parts}
    for network in ("teacher", "student"):  # each table says whose it is
        assert f"tiny_val, {network}: " in caplog.text
    summary = caplog.text.split("In percent:")[1]
    row = next(line for line in summary.splitlines() if "tiny_rain_val  teacher" in line)
    means = [results["tiny_rain_val"]["sem_seg"][m] for m in ("mIoU-3", "mIoU-1", "mIoU")]
    assert re.findall(r"\d+\.?\d*", row) == [f"{mean:.2f}".rstrip() for mean in means]
    assert "nan" not in summary.lower()


def test_both_networks_see_an_image_and_its_label_that_are_read_once(tiny_cfg, monkeypatch):
    reads = []

    def counted(read):
        def call(file, *args):
            reads.append(Path(file).name)
            return read(file, *args)

        return call

    trainer = AdaptationTrainer(tiny_cfg("daformer", *SHORT))
    for module, name in ((mapper, "read_image"), (mapper, "read_label"), (evaluator, "read_label")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    trainer.student.train()
    results = trainer.evaluate()
    assert sorted(reads) == sorted(f"val_{i}{end}.png" for i in range(3) for end in ("", "_label"))
    assert results.keys() == {"sem_seg", "sem_seg_student"}
    assert trainer.student.training and trainer.student.sem_seg_head.dropout.training
    assert not trainer.teacher.model.sem_seg_head.dropout.training  # its own way to train


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
def test_file_that_a_worker_cannot_read_is_named(tiny_cfg, tiny_world, tmp_path, key):
    (tmp_path / "broken.png").write_bytes(b"broken")
    record = DatasetCatalog.get(tiny_world["val"])[0]
    broken = {**record, key: str(tmp_path / "broken.png")}
    DatasetCatalog.register("tiny_broken", lambda: [broken])
    MetadataCatalog.get("tiny_broken").set(
        **{k: v for k, v in MetadataCatalog.get(tiny_world["val"]).as_dict().items() if k != "name"}
    )
    try:
        opts = ("DATASETS.TEST", ("tiny_broken",), "DATALOADER.NUM_WORKERS", 1)
        trainer = AdaptationTrainer(tiny_cfg("source_only", *SHORT, *opts))
        with pytest.raises(BadFile, match=r"broken\.png") as raised:
            trainer.evaluate()
        assert "\n" not in str(raised.value)
    finally:
        DatasetCatalog.remove("tiny_broken")
        MetadataCatalog.remove("tiny_broken")


def test_a_finished_run_reads_back_what_it_reported(tiny_cfg, parts):
    for method, networks in (("source_only", {"student"}), ("daformer", {"teacher", "student"})):
        folder = f"{tiny_cfg(method).OUTPUT_DIR}_{method}"
        cfg = tiny_cfg(method, *SHORT, "OUTPUT_DIR", folder)
        results = train(cfg)._last_eval_results
        run = read_run(Path(cfg.OUTPUT_DIR))
        assert run.seed == cfg.SEED and run.iteration == 2
        assert list(run.scores) == ["tiny_val", *parts]
        for name in run.scores:
            assert set(run.scores[name]) == networks
            assert (
                run.scores[name]["student"]
                == results[name]["sem_seg_student" if len(networks) == 2 else "sem_seg"]
            )
        # Subsets keep their order through the file, so the headline stays the headline.
        assert [name for name, _ in run.config["TEST"]["CLASS_SUBSETS"]] == ["3", "1"]
        loaded, _, teacher, *_ = load_networks(Path(cfg.OUTPUT_DIR))
        assert differences(yaml.safe_load(loaded.dump()), yaml.safe_load(cfg.dump())) == {}
        assert loaded.OUTPUT_DIR == cfg.OUTPUT_DIR and (teacher is None) == (len(networks) == 1)


def test_the_headline_is_of_the_network_in_use(tiny_cfg):
    assert headline_key(tiny_cfg("daformer_gauss"), "tiny_val").startswith("sem_seg/mIoU")
    cfg = tiny_cfg("daformer_gauss", "TEST.OUTPUT", "prototypes")  # which no teacher has
    assert headline_key(cfg, "tiny_val").startswith("sem_seg_student/mIoU")


def test_the_best_checkpoint_is_kept_on_request_and_called_selection_on_labels(
    tiny_cfg, monkeypatch, caplog
):
    opts = (*SHORT, *SMALLEST, "SOLVER.MAX_ITER", 5, "TEST.EVAL_PERIOD", 1)
    cfg = tiny_cfg("daformer", *opts, "TEST.SELECT_ON", "tiny_val", "SOLVER.CHECKPOINT_PERIOD", 1)
    scores = iter([10.0, 30.0, 20.0, 25.0, 15.0])
    evaluate = trainer_module.evaluate_models

    def scored(*args, **kwargs):
        results = evaluate(*args, **kwargs)
        results["sem_seg"]["mIoU-3"] = next(scores)
        return results

    monkeypatch.setattr(trainer_module, "evaluate_models", scored)
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.max_iter = 3
    with caplog.at_level("INFO"):
        trainer.train()
    selected = Path(cfg.OUTPUT_DIR) / "model_selected_on_labels.pth"
    expected = {"metric": "sem_seg/mIoU-3", "score": 30.0, "iterations": 2}
    assert torch.load(selected)["selection"] == expected
    assert torch.load(selected)["trainer"]["iteration"] == 1
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_final.pth"
    said = [record.getMessage() for record in caplog.records if "30.00000" in record.getMessage()]
    assert said and all(text.startswith("Selection on labels: ") for text in said)
    # A resumed run does not put a worse one in its place; a new one puts it aside.
    resumed = AdaptationTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert torch.load(selected)["selection"] == expected
    with caplog.at_level("WARNING"):
        evaluate_networks(
            load_networks(tiny_cfg("daformer", *opts, "MODEL.WEIGHTS", str(selected)))
        )
    chosen = "{'iterations': 2, 'metric': 'sem_seg/mIoU-3', 'score': 30.0}"
    assert f"Selection on labels: these weights were chosen by {chosen}" in caplog.text
    resumed.checkpointer.start_afresh()
    assert not selected.exists() and selected.with_suffix(".old.pth").exists()


def test_without_a_test_set_nothing_is_evaluated(tiny_cfg):
    cfg = tiny_cfg("daformer", *SHORT, "DATASETS.TEST", ())
    assert train(cfg)._last_eval_results == {}
    assert read_run(Path(cfg.OUTPUT_DIR)).scores is None


def test_subsets_can_be_given_on_the_command_line_and_unknown_classes_are_refused(tiny_cfg):
    cfg = tiny_cfg("daformer", "TEST.CLASS_SUBSETS", "[['3', ['ground', 'sky']]]")
    assert cfg.TEST.CLASS_SUBSETS == (["3", ["ground", "sky"]],)
    with pytest.raises(ValueError, match=r"subset '2' holds \['hedgehog'\]"):
        tiny_cfg("daformer", "TEST.CLASS_SUBSETS", [["2", ["ground", "hedgehog"]]])


def test_the_headline_is_called_as_metrics_json_calls_it(tiny_cfg):
    """Else the selection on labels would wait for a score that never comes."""
    subsets = ("TEST.CLASS_SUBSETS", SUBSETS)
    assert headline_key(tiny_cfg("daformer", *subsets), "tiny_val") == "sem_seg/mIoU-3"
    two = tiny_cfg("daformer", *subsets, "DATASETS.TEST", ("tiny_source", "tiny_val"))
    assert headline_key(two, "tiny_val") == "tiny_val/sem_seg/mIoU-3"


def test_the_headline_of_a_set_with_parts_names_the_set(tiny_cfg, parts):
    assert headline_key(tiny_cfg("daformer"), "tiny_val") == "tiny_val/sem_seg/mIoU"
