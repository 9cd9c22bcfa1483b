"""The small-scale study: what it would run, and how it runs it."""

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
with (folder / "calls").open("a") as calls:
    print("called", file=calls)
if seed == "7":
    sys.exit(1)
names = ["streets_target_sem_seg_val"]
test = {"DATASETS": {"TEST": names}, "TEST": {"CLASS_SUBSETS": []}}
solver = {"SOLVER": {"MAX_ITER": 3, "IMS_PER_BATCH": 2}}
(folder / "config.yaml").write_text(json.dumps({"SEED": int(seed), **solver, **test}))
row = {"iteration": 3, "sem_seg/mIoU": 40 + int(seed)}
(folder / "metrics.json").write_text(json.dumps(row))
"""


def planned(benchmark: str) -> dict[str, tuple]:
    """Name -> config of each run, as tools/run_seeds.py would read it, and its arguments."""
    args = tool.parse_args([benchmark, "--seeds", "0"])
    found = {}
    for name, seed in chain(*tool.plan(args)):
        words = run_seeds.parse_args(tool.command(name, seed, args)[2:])
        found[name] = get_cfg_from(words.config_file, words.opts), words
    return found


@pytest.mark.parametrize("benchmark", tool.BUDGETS)
def test_every_run_has_a_valid_config_and_goes_on_from_the_start_of_its_resolution(benchmark):
    runs, budget = planned(benchmark), tool.BUDGETS[benchmark]
    ladder = {*tool.LADDER, *tool.CEILING[benchmark]}
    assert set(runs) == {*tool.STARTS, *ladder, *tool.ABLATIONS}
    assert runs["start"][0].MODEL.WEIGHTS == ""
    for name, (cfg, _) in runs.items():
        two_scales = cfg.MODEL.META_ARCHITECTURE == "HRDASegmentor"
        adapts = name not in (*tool.STARTS, "oracle") and "source_only" not in name
        assert adapts == cfg.SELF_TRAINING.ENABLED
        if name not in tool.STARTS:
            start = runs["start_two_scales" if two_scales else "start"][1].output
            assert Path(cfg.MODEL.WEIGHTS) == start / "seed_0" / "model_final.pth"
            iterations = budget.two_scale_run if two_scales else budget.one_scale_run
            assert iterations == cfg.SOLVER.MAX_ITER
    assert runs["mic_gauss"][0].MODEL.META_ARCHITECTURE == "HRDASegmentor"


def test_an_ablation_changes_its_own_keys_only():
    runs = planned("streets")
    full = runs["daformer_gauss"][0]
    full.merge_from_list(["TEST.EVAL_PERIOD", 0])  # ablations are evaluated at their end only
    for name, opts in tool.ABLATIONS.items():
        changed = full.clone()
        changed.merge_from_list(list(opts))
        assert runs[name][0].dump() == changed.dump() != full.dump()
    assert len(set(tool.ABLATIONS.values())) == len(tool.ABLATIONS)


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


def test_a_run_that_fails_is_named_and_the_others_go_on(study, tmp_path, capsys):
    assert study("--only", "daformer", "--seeds", "7", "1") == 1
    text = capsys.readouterr().out
    assert "daformer seed 7: FAILED, see" in text and "daformer seed 1: done" in text


def test_listing_runs_nothing(study, tmp_path, capsys):
    assert study("--list", "--part", "ladder", "--set", "SOLVER.MAX_ITER", "5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3 * len(tool.LADDER) and not (tmp_path / "out").exists()
    assert all(line.endswith("SOLVER.MAX_ITER 5") for line in lines)
