"""A run that is stopped and resumed ends as one that was not, to the last bit."""

import os
import signal
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from conftest import SMALLEST
from detectron2.data import DatasetCatalog, MetadataCatalog
from faults import Stop, at_iteration
from processes import assert_equal_checkpoints, checkpoint, metrics, run, start_all, statuses, train

from mpcl.data.build import build_paired_loader
from mpcl.engine import AdaptationTrainer
from mpcl.engine.preemption import EXIT_PREEMPTED, Preempted

# Prototypes start in iteration 2. With a line every two iterations, stops fall between lines, too.
SHORT = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 100, "LOG_PERIOD", 2, "VIS_PERIOD", 0)
BEFORE, AT, AFTER = (0,), (1, 2), (3,)
# Each value of each factor: method, prototypes, loader workers, iterations in which the run is
# stopped; and, below, two processes. MPCL_TEST_FULL=1 tests all combinations, stopped after every
# iteration, in about ten minutes.
CASES = [
    ("hrda_centroid", 2, AT, SMALLEST),
    ("mic", 0, BEFORE + AFTER, SMALLEST),
    ("daformer_gauss", 0, AT, ()),  # Mix Transformer
]
RANKS_CASES = [("daformer_gauss", 2, BEFORE + AFTER)]
if os.getenv("MPCL_TEST_FULL"):
    METHODS = [f"{m}{p}" for m in ("daformer", "hrda", "mic") for p in ("", "_centroid", "_gauss")]
    RANKS_CASES = list(product(METHODS, (0, 2), (BEFORE + AT + AFTER,)))
    CASES = [(*case, SMALLEST) for case in RANKS_CASES]


def train_with_stops(cfg, stops):
    for stop in stops:
        with pytest.raises(Preempted) as stopped:
            train(cfg, before=Stop((stop,)))
        assert stopped.value.code == EXIT_PREEMPTED
    return train(cfg)


def assert_equal_runs(left: Path, right: Path):
    """Weights, optimizer, prototypes, banks and all else in a checkpoint; not the log."""
    assert_equal_checkpoints(checkpoint(left), checkpoint(right))
    assert metrics(right).keys() >= {5}  # the final scores; no iteration has two lines


@pytest.mark.parametrize(("method", "workers", "stops", "encoder"), CASES)
def test_stopped_run_equals_undisturbed_run(tiny_cfg, tmp_path, method, workers, stops, encoder):
    opts = (*SHORT, *encoder, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR")
    train(tiny_cfg(method, *opts, str(tmp_path / "undisturbed")))
    train_with_stops(tiny_cfg(method, *opts, str(tmp_path / "stopped")), stops)
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "stopped")


def test_scaler_of_half_precision_is_resumed(tiny_cfg, tmp_path):
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16")
    opts = (*SHORT, *SMALLEST, *half, "INPUT.CROP.SIZE", (32, 32), "OUTPUT_DIR")

    def lower_scale(trainer):  # so that it is not what a new scaler starts with
        trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)

    train(tiny_cfg("source_only", *opts, str(tmp_path / "undisturbed")), before=lower_scale)
    cfg = tiny_cfg("source_only", *opts, str(tmp_path / "stopped"))
    with pytest.raises(Preempted):
        train(cfg, before=lambda trainer: (lower_scale(trainer), Stop((0,))(trainer)))
    assert train(cfg).grad_scaler.get_scale() == 1024.0
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "stopped")


@pytest.fixture
def spoilt_world(tiny_world, tmp_path):
    """The tiny world with a truncated image in the source and in the target."""
    world = dict(tiny_world)
    for role in ("source", "target"):
        records = DatasetCatalog.get(tiny_world[role])
        whole = Path(records[1]["file_name"])
        records[1]["file_name"] = str(tmp_path / f"spoilt_{whole.name}")
        Path(records[1]["file_name"]).write_bytes(whole.read_bytes()[:200])
        name = world[role] = f"tiny_spoilt_{role}"
        DatasetCatalog.register(name, lambda records=records: [dict(r) for r in records])
        meta = MetadataCatalog.get(tiny_world[role]).as_dict() | {"name": name}
        MetadataCatalog.get(name).set(**meta)
    yield world
    for role in ("source", "target"):
        DatasetCatalog.remove(world[role])
        MetadataCatalog.remove(world[role])


@pytest.mark.parametrize(("method", "workers", "stops"), RANKS_CASES)
def test_two_ranks_stopped_and_resumed_equal_undisturbed_ones(
    tiny_cfg, spoilt_world, tmp_path, method, workers, stops
):
    ranks = ("DATALOADER.NUM_WORKERS", workers)
    sets = ("DATASETS.TRAIN", (spoilt_world["source"],), "DATASETS.TRAIN_TARGET")
    sets = (*sets, (spoilt_world["target"],), "DATALOADER.ON_BAD_FILE", "skip")
    opts = (*SHORT, *SMALLEST, *ranks, *sets, "OUTPUT_DIR")
    undisturbed = tiny_cfg(method, *opts, str(tmp_path / "undisturbed"))
    stopped = tiny_cfg(method, *opts, str(tmp_path / "stopped"))
    # The signal reaches rank 0 alone; both stop after the same iteration.
    runs = [(undisturbed, None), *((stopped, Stop((stop,))) for stop in stops), (stopped, None)]
    assert statuses(start_all(runs, spoilt_world, world_size=2)) == [0, 0]
    assert_equal_runs(undisturbed.OUTPUT_DIR, stopped.OUTPUT_DIR)
    both = [checkpoint(undisturbed.OUTPUT_DIR, f"rank{rank}.pth") for rank in range(2)]
    assert_equal_checkpoints(*both)  # student, teacher and prototypes are equal on both ranks
    assert_equal_checkpoints(both[1], checkpoint(stopped.OUTPUT_DIR, "rank1.pth"))
    if undisturbed.PROTOTYPES.TYPE != "none":
        assert both[0]["['student']['prototype_head.prototypes.started']"].all()
    # What both ranks have skipped is what one process skips that draws the whole batches.
    loader = build_paired_loader(undisturbed)
    list(islice(loader, undisturbed.SOLVER.MAX_ITER))
    saved = torch.load(Path(stopped.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    total = saved["trainer"]["hooks"]["BadFiles"]
    assert total == {file: list(entry) for file, entry in loader.bad_files.counts.items()}
    assert len(total) == 2


def test_stop_of_two_ranks_ends_both_with_its_status(tiny_cfg, tiny_world):
    cfg = tiny_cfg("source_only", *SHORT, *SMALLEST)
    preempted = run(cfg, tiny_world, world_size=2, before=Stop((1,)))
    assert preempted == [EXIT_PREEMPTED] * 2
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000001.pth"


def test_resuming_a_finished_run_evaluates_it_and_changes_nothing(tiny_cfg):
    cfg = tiny_cfg("daformer", *SHORT, *SMALLEST)
    first = train(cfg)
    before, lines = checkpoint(cfg.OUTPUT_DIR), metrics(cfg.OUTPUT_DIR)
    again = train(cfg)
    assert again.start_iter == cfg.SOLVER.MAX_ITER
    assert again._last_eval_results == first._last_eval_results
    assert_equal_checkpoints(before, checkpoint(cfg.OUTPUT_DIR))
    assert metrics(cfg.OUTPUT_DIR).keys() == lines.keys()


def test_run_whose_last_iterations_are_lost_goes_on_from_the_checkpoint_before_them(tiny_cfg):
    cfg = tiny_cfg("daformer_gauss", *SHORT, *SMALLEST, "SOLVER.CHECKPOINT_PERIOD", 2)
    train(cfg)
    before, expected = checkpoint(cfg.OUTPUT_DIR), metrics(cfg.OUTPUT_DIR)
    file = Path(cfg.OUTPUT_DIR, "metrics.json")
    file.write_text(file.read_text() + '{"iteration": 3, "loss_sem_')  # cut off by a kill
    for later in set(Path(cfg.OUTPUT_DIR).glob("model_*.pth")) - {
        Path(cfg.OUTPUT_DIR, "model_0000001.pth")
    }:
        later.unlink()
    assert train(cfg).start_iter == 2
    assert_equal_checkpoints(before, checkpoint(cfg.OUTPUT_DIR))
    assert metrics(cfg.OUTPUT_DIR).keys() == expected.keys()  # and each once


def test_another_run_in_the_folder_keeps_the_old_lines_aside_and_forgets_its_checkpoints(tiny_cfg):
    cfg = tiny_cfg("source_only", *SMALLEST, *SHORT, "SOLVER.MAX_ITER", 2)
    train(cfg)
    before = Path(cfg.OUTPUT_DIR, "metrics.json").read_text()
    with pytest.raises(ZeroDivisionError):
        train(cfg, resume=False, before=lambda trainer: at_iteration(trainer, 0, lambda: 1 / 0))
    assert Path(cfg.OUTPUT_DIR, "metrics.old.json").read_text() == before
    assert not AdaptationTrainer(cfg).checkpointer.has_checkpoint()  # a restart begins anew


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SEED", 5), "SEED was 0 and is 5"),
        (("SOLVER.IMS_PER_BATCH", 4), "IMS_PER_BATCH was 2 and is 4"),
        ((), "number of processes was 2 and is 1"),
    ],
)
def test_changed_run_is_refused_or_resumed_deliberately(tiny_cfg, caplog, opts, message):
    short = (*SHORT, *SMALLEST, "SOLVER.MAX_ITER")
    cfg = tiny_cfg("source_only", *short, 2)
    train(cfg)
    if not opts:
        file = Path(cfg.OUTPUT_DIR, "model_final.pth")
        content = torch.load(file, weights_only=True)
        content["trainer"]["run"]["number of processes"] = 2
        torch.save(content, file)
    trainer = AdaptationTrainer(tiny_cfg("source_only", *short, 2, *opts))
    with pytest.raises(ValueError, match=message) as refused:
        trainer.resume_or_load(resume=True)
    assert "SOLVER.RESUME_CHANGED True" in str(refused.value)
    longer = tiny_cfg("source_only", *short, 3, *opts, "SOLVER.RESUME_CHANGED", True)
    assert train(longer).start_iter == 2
    assert message in caplog.text


def test_a_resumed_run_has_the_rates_of_its_config_at_its_place_in_the_schedule(tiny_cfg):
    """A smaller rate is what helps a run that has diverged."""
    opts = (*SMALLEST, *SHORT, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER")
    train(tiny_cfg("source_only", *opts, 2))
    changed = ("SOLVER.BASE_LR", 1e-5, "SOLVER.HEAD_LR_FACTOR", 7.0, "SOLVER.WEIGHT_DECAY", 0.5)
    trainer = AdaptationTrainer(tiny_cfg("source_only", *opts, 4, *changed))
    trainer.resume_or_load(resume=True)
    groups = trainer.optimizer.param_groups
    # Two of four iterations are done: half of the rate is left.
    assert sorted({group["lr"] for group in groups}) == pytest.approx([0.5e-5, 3.5e-5])
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    trainer.train()
    assert metrics(trainer.cfg.OUTPUT_DIR)[3]["lr"] == pytest.approx(0.25e-5)


def test_a_checkpoint_without_a_teacher_is_not_resumed_with_a_random_one(tiny_cfg):
    opts = (*SMALLEST, *SHORT, "SOLVER.MAX_ITER", 2)
    train(tiny_cfg("source_only", *opts))
    trainer = AdaptationTrainer(tiny_cfg("daformer", *opts))
    with pytest.raises(ValueError, match=r"model_final\.pth.*state of teacher.*SELF_TRAINING"):
        trainer.resume_or_load(resume=True)


def test_stop_restores_the_signals_and_leaves_no_half_line_and_no_temporary_file(tiny_cfg):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    cfg = tiny_cfg("source_only", *SMALLEST, *SHORT)
    with pytest.raises(Preempted):
        train(cfg, before=Stop((2,)))
    assert {number: signal.getsignal(number) for number in before} == before
    assert metrics(cfg.OUTPUT_DIR).keys() <= {0, 1, 2}
    assert not [name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".tmp")]
