"""Every sub-command at tiny size: it runs, its rows add up, and its JSON says what was promised."""

import json

import benchmark
import pytest
import torch
from benchmarks import sinkhorn, timing
from conftest import CONFIGS

TINY = {
    "step": [
        *("--config-file", str(CONFIGS / "mic_gauss.yaml"), "--repeats", "1"),
        *("INPUT.CROP.SIZE", "(64,64)", "MODEL.HRDA.DETAIL_SIZE", "(32,32)"),
        *("MODEL.MIT.VARIANT", "tiny", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
        *("PROTOTYPES.DIM", "16", "PROTOTYPES.BANK.SIZE", "100", "PROTOTYPES.POOL_SIZE", "400"),
    ],
    "backbone": ["--size", "64", "--repeats", "1", "--variants", "tiny"],
    "sinkhorn": ["--pixels", "500", "--classes", "4", "--dim", "8", "--repeats", "1"],
    "loader": ["--images", "1", "--repeats", "1"],
    "inference": ["--size", "64", "96", "--window", "64", "--repeats", "1", "--variants", "tiny"],
    "evaluate": ["--images", "1", "--repeats", "1"],
}


@pytest.mark.parametrize("command", benchmark.COMMANDS)
def test_command_writes_rows_with_their_baseline(command, tmp_path, capsys):
    file = tmp_path / "rows.json"
    options = TINY[command]
    benchmark.main([command, "--device", "cpu", "--json", str(file), *options])
    rows = json.loads(file.read_text())
    keys = {"name", "value", "unit", "baseline", "ratio", "device"}
    assert rows and all(set(row) == keys for row in rows)
    compared = [row for row in rows if row["ratio"] is not None]
    assert compared
    for row in compared:
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"])
    assert rows[0]["name"] in capsys.readouterr().out
    if command == "step":
        phases = [row for row in rows if row["name"].startswith("phase: ")]
        assert len(phases) == 10 and all(row["value"] > 0 for row in phases)
        assert sum(row["ratio"] for row in phases) == pytest.approx(1)


def test_variants_take_turns_and_medians_are_compared(monkeypatch):
    calls, clock = [], {"a": [9.0, 1.0, 5.0, 2.0], "b": [9.0, 4.0, 4.0, 40.0]}

    def measured(call, device):
        name = call()
        calls.append(name)
        return clock[name].pop(0), 1.0

    monkeypatch.setattr(timing, "measure", measured)
    samples = timing.compare({"a": lambda: "a", "b": lambda: "b"}, device="cpu", repeats=3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples["a"].seconds == 2.0 and samples["b"].seconds == 4.0  # the first round is warm-up
    (row, _) = timing.against("a", samples, "b", "cpu")
    assert row.ratio == 0.5


def test_memory_of_a_call_is_seen():
    def call():
        first = torch.ones(64 * 2**20)  # 256 MiB
        del first
        return torch.ones(16 * 2**20)

    held = timing.compare({"call": call}, device="cpu", repeats=1)["call"].mebibytes
    assert held == pytest.approx(256, rel=0.05)


def test_the_loop_over_classes_computes_what_it_is_compared_with():
    problems = [sinkhorn.Problem(400, 7, 3, 16, "cpu") for _ in range(2)]
    for _ in range(2):
        sinkhorn.all_at_once(problems[0])
        sinkhorn.class_by_class(problems[1])
    mine, loop = (problem.prototypes for problem in problems)
    torch.testing.assert_close(mine.mean, loop.mean)
    torch.testing.assert_close(mine.variance, loop.variance)
