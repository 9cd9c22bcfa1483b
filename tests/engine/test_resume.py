"""A run that is stopped and resumed ends as one that was not, to the last bit."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from faults import Stop
from processes import assert_equal_checkpoints, checkpoint, metrics, run, train

from mpcl.engine import AdaptationTrainer
from mpcl.engine.preemption import EXIT_PREEMPTED, Preempted

# Prototypes start in iteration 2. With a line every two iterations, stops fall between lines, too.
SHORT = ("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 100, "LOG_PERIOD", 2, "VIS_PERIOD", 0)
BEFORE, AT, AFTER = (0,), (1, 2), (3,)
CASES = [
    # every method x prototype type; 0 and 2 workers; stops before, at and after prototype start
    ("source_only", 0, BEFORE + AFTER),
    ("daformer", 2, BEFORE),
    ("daformer_centroid", 0, AT),
    ("daformer_gauss", 2, AFTER),
    ("hrda", 0, AT),
    ("hrda_centroid", 2, AT),
    ("hrda_gauss", 0, BEFORE + AFTER),
    ("mic", 0, AFTER),
    ("mic_centroid", 0, BEFORE),
    ("mic_gauss", 0, AT + AFTER),
]


def train_with_stops(cfg, stops):
    for stop in stops:
        with pytest.raises(Preempted) as stopped:
            train(cfg, before=Stop((stop,)))
        assert stopped.value.code == EXIT_PREEMPTED
    return train(cfg)


def assert_equal_runs(left: str, right: str):
    assert_equal_checkpoints(checkpoint(left), checkpoint(right))
    assert metrics(left) == metrics(right)


@pytest.mark.parametrize(("method", "workers", "stops"), CASES)
def test_stopped_run_equals_undisturbed_run(tiny_cfg, tmp_path, method, workers, stops):
    opts = (*SHORT, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR")
    train(tiny_cfg(method, *opts, str(tmp_path / "undisturbed")))
    train_with_stops(tiny_cfg(method, *opts, str(tmp_path / "stopped")), stops)
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "stopped")


def test_scaler_of_half_precision_is_resumed(tiny_cfg, tmp_path):
    half = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16")
    opts = (*SHORT, *half, "SOLVER.MAX_ITER", 3, "OUTPUT_DIR")
    train(tiny_cfg("daformer", *opts, str(tmp_path / "undisturbed")))
    trainer = train_with_stops(tiny_cfg("daformer", *opts, str(tmp_path / "stopped")), (0,))
    assert trainer.grad_scaler.is_enabled()
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("method", "workers", "stops"), [("hrda_centroid", 0, (0,)), ("mic_gauss", 2, (2,))]
)
def test_two_ranks_stopped_and_resumed_equal_undisturbed_ones(
    tiny_cfg, tiny_world, tmp_path, method, workers, stops
):
    # Batch norm over both ranks, so that their buffers are equal and the checkpoint holds all.
    ranks = ("MODEL.SEM_SEG_HEAD.NORM", "naiveSyncBN", "DATALOADER.NUM_WORKERS", workers)
    opts = (*SHORT, *ranks, "OUTPUT_DIR")
    undisturbed = tiny_cfg(method, *opts, str(tmp_path / "undisturbed"))
    stopped = tiny_cfg(method, *opts, str(tmp_path / "stopped"))
    assert run(undisturbed, tiny_world, world_size=2) == [0, 0]
    # The signal reaches rank 0 alone; both stop after the same iteration.
    preempted = run(stopped, tiny_world, world_size=2, before=Stop(stops))
    assert preempted == [EXIT_PREEMPTED] * 2
    assert run(stopped, tiny_world, world_size=2) == [0, 0]
    assert_equal_runs(undisturbed.OUTPUT_DIR, stopped.OUTPUT_DIR)
    left, right = (checkpoint(c.OUTPUT_DIR, "rank1.pth") for c in (undisturbed, stopped))
    assert_equal_checkpoints(left, right)


class Killed(BaseException):
    """Ends a run at once, as a kill would."""


@pytest.mark.parametrize("where", ["evaluation", "log line"])
def test_what_a_kill_after_the_checkpoint_prevented_is_made_up_for(
    tiny_cfg, tmp_path, monkeypatch, where
):
    opts = (*SHORT, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 2)
    opts = (*opts, "TEST.EVAL_PERIOD", 2, "OUTPUT_DIR")
    train(tiny_cfg("daformer", *opts, str(tmp_path / "undisturbed")))

    def killed(*_):
        raise Killed

    def plant(trainer):
        hook = trainer._hooks[-3] if where == "evaluation" else trainer._hooks[-1]
        hook.after_step = lambda: killed() if trainer.iter == 1 else None
        trainer.after_train = lambda: None

    with pytest.raises(Killed):
        train(tiny_cfg("daformer", *opts, str(tmp_path / "killed")), before=plant)
    train(tiny_cfg("daformer", *opts, str(tmp_path / "killed")))
    assert_equal_runs(tmp_path / "undisturbed", tmp_path / "killed")
    assert "sem_seg/mIoU" in metrics(tmp_path / "killed")[1]


def test_resuming_a_finished_run_changes_nothing(tiny_cfg, tmp_path):
    cfg = tiny_cfg("daformer", *SHORT)
    first = train(cfg)
    before, lines = checkpoint(cfg.OUTPUT_DIR), metrics(cfg.OUTPUT_DIR)
    again = train(cfg)
    assert again.start_iter == cfg.SOLVER.MAX_ITER
    assert again._last_eval_results == first._last_eval_results
    assert_equal_checkpoints(before, checkpoint(cfg.OUTPUT_DIR))
    assert metrics(cfg.OUTPUT_DIR) == lines


def test_lines_of_the_iterations_after_the_checkpoint_are_written_once(tiny_cfg):
    short = (*SHORT, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "LOG_PERIOD", 1)
    cfg = tiny_cfg("source_only", *short)
    train(cfg)
    expected = metrics(cfg.OUTPUT_DIR)
    file = Path(cfg.OUTPUT_DIR, "metrics.json")
    file.write_text(file.read_text() + '{"iteration": 3, "loss_sem_')  # cut off by a kill
    Path(cfg.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    train(cfg)
    assert metrics(cfg.OUTPUT_DIR) == expected
    assert sorted(expected) == [0, 1, 2, 3, 4]  # the last is the final evaluation


def test_another_run_in_the_folder_keeps_the_old_lines_aside_and_forgets_its_checkpoints(tiny_cfg):
    cfg = tiny_cfg("source_only", *SHORT, "SOLVER.MAX_ITER", 2)
    train(cfg)
    before = Path(cfg.OUTPUT_DIR, "metrics.json").read_text()
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.before_step = lambda: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        trainer.train()
    assert Path(cfg.OUTPUT_DIR, "metrics.old.json").read_text() == before
    assert not AdaptationTrainer(cfg).checkpointer.has_checkpoint()  # a restart begins anew


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SEED", 5), "SEED was 0 and is 5"),
        (("SOLVER.IMS_PER_BATCH", 4), "IMS_PER_BATCH was 2 and is 4"),
    ],
)
def test_changed_run_is_refused_or_resumed_deliberately(tiny_cfg, caplog, opts, message):
    short = (*SHORT, "SOLVER.MAX_ITER", 2)
    train(tiny_cfg("source_only", *short))
    trainer = AdaptationTrainer(tiny_cfg("source_only", *short, *opts))
    with pytest.raises(ValueError, match=message) as refused:
        trainer.resume_or_load(resume=True)
    assert "SOLVER.RESUME_CHANGED True" in str(refused.value)
    longer = (*short, *opts, "SOLVER.RESUME_CHANGED", True, "SOLVER.MAX_ITER", 3)
    assert train(tiny_cfg("source_only", *longer)).start_iter == 2
    assert message in caplog.text


def test_changed_number_of_processes_is_refused(tiny_cfg):
    cfg = tiny_cfg("source_only", *SHORT, "SOLVER.MAX_ITER", 1)
    train(cfg)
    file = Path(cfg.OUTPUT_DIR, "model_final.pth")
    content = torch.load(file, weights_only=True)
    content["trainer"]["run"]["number of processes"] = 2
    torch.save(content, file)
    with pytest.raises(ValueError, match="number of processes was 2 and is 1"):
        AdaptationTrainer(cfg).resume_or_load(resume=True)


def test_signals_are_as_before_once_training_is_over(tiny_cfg):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    train_with_stops(tiny_cfg("source_only", *SHORT), (1,))
    assert {number: signal.getsignal(number) for number in before} == before


def test_stop_leaves_no_half_line_and_no_temporary_file(tiny_cfg):
    cfg = tiny_cfg("source_only", *SHORT)
    with pytest.raises(Preempted):
        train(cfg, before=Stop((2,)))
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    assert {json.loads(line)["iteration"] for line in lines} <= {0, 1}
    assert not [name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".tmp")]
