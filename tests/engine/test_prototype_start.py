"""The record of where prototypes started."""

from types import SimpleNamespace

import pytest
import torch

from mpcl.engine.prototype_start import PrototypeStart, read_start
from mpcl.prototypes.centroid import CentroidPrototypes


def hook_of(prototypes, file, start_iter=0) -> PrototypeStart:
    hook = PrototypeStart(prototypes, file, first=2, period=5)
    hook.trainer = SimpleNamespace(iter=0, start_iter=start_iter)
    hook.before_train()
    return hook


def test_each_class_is_kept_as_it_started_whatever_comes_after(tmp_path):
    file = tmp_path / "run" / "prototypes_start.pth"
    prototypes = CentroidPrototypes(3, 2, 4, momentum=0.9)
    hook = hook_of(prototypes, file)
    expected = torch.zeros(3, 2, 4)
    for iteration in range(12):
        if iteration == 2:
            prototypes.start_(torch.tensor([True, False, False]), torch.ones(3, 2, 4), None)
            expected[0] = 1
        if iteration == 9:  # a look at late classes
            prototypes.start_(torch.tensor([False, False, True]), 5 * torch.ones(3, 2, 4), None)
            expected[2] = 5
        hook.trainer.iter = iteration
        hook.after_step()
        prototypes.mean.add_(0.1 * prototypes.started.view(-1, 1, 1))  # the updates that follow
        if iteration == 6:  # a resumed run goes on with the file
            hook = hook_of(prototypes, file, start_iter=7)
    mean, started = read_start(file)
    assert started.tolist() == [True, False, True]
    torch.testing.assert_close(mean, expected)


def test_a_new_run_in_the_same_folder_forgets_the_old_start(tmp_path):
    file = tmp_path / "prototypes_start.pth"
    torch.save({"mean": torch.zeros(1, 1, 1), "started": torch.tensor([True])}, file)
    hook_of(CentroidPrototypes(1, 1, 1, momentum=0.9), file)
    assert read_start(file) is None


def test_what_started_before_a_resumed_run_without_its_record_is_unknown(tmp_path):
    file = tmp_path / "run" / "prototypes_start.pth"
    prototypes = CentroidPrototypes(2, 1, 3, momentum=0.9)
    prototypes.start_(torch.tensor([True, False]), torch.ones(2, 1, 3), None)
    hook = hook_of(prototypes, file, start_iter=4)
    prototypes.start_(torch.tensor([False, True]), 5 * torch.ones(2, 1, 3), None)
    hook.trainer.iter = 4  # a look at late classes
    hook.after_step()
    mean, started = read_start(file)
    assert started.tolist() == [True, True]
    assert mean[0].isnan().all() and (mean[1] == 5).all()


def test_a_run_resumed_before_anything_started_has_its_record_still_to_come(tmp_path):
    file = tmp_path / "prototypes_start.pth"
    hook_of(CentroidPrototypes(2, 1, 3, momentum=0.9), file, start_iter=1)
    assert read_start(file) is None


@pytest.mark.parametrize("content", [{"model": torch.ones(1)}, {"mean": 1.0, "started": True}])
def test_another_torch_file_is_named(tmp_path, content):
    file = tmp_path / "prototypes_start.pth"
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"prototypes_start\.pth is no record of where"):
        read_start(file)


def test_nothing_is_read_from_the_device_between_the_looks(tmp_path):
    hook = hook_of(None, tmp_path / "start.pth")  # None: looking at it would fail
    for iteration in (0, 1, 3, 5, 8):
        hook.trainer.iter = iteration
        hook.after_step()
