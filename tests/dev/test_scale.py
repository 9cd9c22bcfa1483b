"""What a step costs on several GPUs, computed, against steps that are made."""

import pytest
import scale
from benchmarks import step
from conftest import CONFIGS, TINY
from torch.utils.flop_counter import FlopCounterMode

from mpcl.config import get_cfg_from

MIC = CONFIGS / "mic_gauss.yaml"
SIZES = [*TINY, "INPUT.CROP.SIZE", "(256, 256)", "MODEL.HRDA.DETAIL_SIZE", "(128, 128)"]


def test_arithmetic_is_that_of_a_counted_step(tmp_path):
    trainer = step.build(MIC, [*SIZES, "OUTPUT_DIR", str(tmp_path)])
    with FlopCounterMode(display=False, custom_mapping=step.FLOPS) as counter:
        trainer.step_once()
    costs = scale.StepCosts(get_cfg_from(str(MIC), [*SIZES, "MODEL.DEVICE", "meta"]), gpus=1)
    # The clustering itself is left out, and a CPU pads the grids of dilated convolutions.
    assert sum(costs.flops.values()) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_gradients_of_a_ring_are_sent_almost_twice(capsys):
    opts = [*TINY, "SOLVER.IMS_PER_BATCH", "8"]
    scale.main(["--config-file", str(CONFIGS / "daformer.yaml"), "--gpus", "8", *opts])
    cells = [line.rsplit(None, 2) for line in capsys.readouterr().out.splitlines()]
    values = {cell[0]: float(cell[1]) for cell in cells[3:]}
    parameters = values["trained parameters"]  # millions
    assert values["sent: gradients"] == pytest.approx(4 * parameters * 2 * 7 / 8, rel=1e-3)
    assert values["loaded in a step"] == 2
    assert "sent: feature bank" not in values


def test_one_gpu_sends_nothing():
    cfg = get_cfg_from(str(CONFIGS / "source_only.yaml"), [*TINY, "MODEL.DEVICE", "meta"])
    costs = scale.StepCosts(cfg, gpus=1)
    assert costs.messages == {}
    assert list(costs.flops) == ["student on source, forward and backward"]


def test_batch_that_cannot_be_split_is_refused(capsys):
    with pytest.raises(SystemExit):
        scale.main(["--config-file", str(MIC), "--gpus", "4"])
    assert "IMS_PER_BATCH is 2; expected a multiple of the 4 GPUs" in capsys.readouterr().err
