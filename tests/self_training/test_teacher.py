"""EMA teacher: momentum, structure, modes."""

import copy

import pytest
import torch
from torch import nn

from mpcl.self_training.teacher import EMATeacher


class Student(nn.Module):
    """Convolution, batch norm, dropout; and an auxiliary head with a big buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.auxiliary = nn.Linear(4, 2)
        self.auxiliary.register_buffer("bank", torch.zeros(1000))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student()


def randomize_(module: nn.Module) -> None:
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
        else:
            tensor.add_(3)


def test_momentum_warms_up_as_one_half_two_thirds_three_quarters(student):
    teacher = EMATeacher(student, momentum=0.999)
    expected = [1 / 2, 2 / 3, 3 / 4, 9 / 10, 99 / 100, 0.999, 0.999]
    assert [teacher.momentum_at(t) for t in (0, 1, 2, 8, 98, 998, 10**6)] == pytest.approx(expected)


def test_update_while_warming_up_is_the_mean_of_all_students():
    # alpha_t = 1 - 1/(t + 2) makes the teacher the plain mean of the start and of t + 1 students.
    student = nn.Linear(1, 1, bias=False).double()
    values = [4.0, -1.0, 0.5, 2.0, 7.0]
    student.weight.data.fill_(values[0])
    teacher = EMATeacher(student)
    for t, value in enumerate(values[1:]):
        student.weight.data.fill_(value)
        teacher.update_(student, t)
        assert teacher.model.weight.item() == pytest.approx(sum(values[: t + 2]) / (t + 2))


def test_update_keeps_momentum_of_parameters_and_statistics_and_copies_counters(student):
    teacher = EMATeacher(student, momentum=0.9)
    old = copy.deepcopy(teacher.model.state_dict())
    randomize_(student)
    teacher.update_(student, 1000)
    for name, current in student.state_dict().items():
        floating = current.is_floating_point()
        expected = 0.9 * old[name] + 0.1 * current if floating else current
        torch.testing.assert_close(teacher.model.state_dict()[name], expected)


def test_copy_makes_all_tensors_equal_and_leaves_none_shared(student):
    teacher = EMATeacher(student)
    randomize_(student)
    teacher.copy_(student)
    theirs = student.state_dict()
    for name, mine in teacher.model.state_dict().items():
        assert torch.equal(mine, theirs[name])
        assert mine.data_ptr() != theirs[name].data_ptr()


def test_left_out_modules_are_none_never_copied_and_the_rest_still_updates(student, monkeypatch):
    def fail(*_):
        raise AssertionError("copied")

    monkeypatch.setattr(nn.Linear, "__deepcopy__", fail, raising=False)
    with pytest.raises(AssertionError, match="copied"):
        EMATeacher(student)
    teacher = EMATeacher(student, without=["auxiliary"])
    assert teacher.model.auxiliary is None and student.auxiliary is not None
    assert not any("auxiliary" in name for name in teacher.state_dict())
    randomize_(student)
    teacher.copy_(student)
    teacher.update_(student, 0)
    assert torch.equal(teacher.model.body[0].weight, student.body[0].weight)


def test_tied_parameters_are_averaged_once():
    student = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    student[1].weight = student[0].weight
    student[0].weight.data.fill_(0.0)
    teacher = EMATeacher(student)
    student[0].weight.data.fill_(1.0)
    teacher.update_(student, 0)
    assert teacher.model[1].weight.item() == 0.5


def test_update_follows_tensors_that_were_rebound(student):
    teacher = EMATeacher(student)
    teacher.update_(student, 0)  # pairs are remembered from here on
    student.body[1].running_mean = torch.full((4,), 8.0)
    student.body[0].weight = nn.Parameter(torch.ones_like(student.body[0].weight))
    teacher.copy_(student)
    assert torch.equal(teacher.model.body[1].running_mean, torch.full((4,), 8.0))
    assert torch.equal(teacher.model.body[0].weight, torch.ones(4, 3, 1, 1))


def assert_normalised(images: torch.Tensor) -> None:
    """gamma = 1 and beta = 0: each channel comes out with mean 0 and variance 1."""
    variance, mean = torch.var_mean(images, (0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(4), atol=1e-3, rtol=0)


def test_training_mode_normalises_by_batch_statistics(student):
    assert_normalised(EMATeacher(student)(3 * torch.randn(2, 3, 8, 8) + 5))


@pytest.mark.parametrize("value", [1.0, torch.inf])
def test_forward_in_training_mode_leaves_every_buffer_as_it_was(student, value):
    teacher = EMATeacher(student)
    randomize_(teacher.model)
    before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    teacher(torch.full((2, 3, 4, 4), value))
    for name, buffer in teacher.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_synchronised_batch_norm_of_detectron2_keeps_its_statistics(monkeypatch):
    layers = pytest.importorskip("detectron2.layers.batch_norm")
    # Two ranks holding the same images: sums double, so the statistics stay those of one.
    monkeypatch.setattr(layers.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(layers.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(layers, "differentiable_all_reduce", lambda tensor: 2 * tensor)
    images = 3 * torch.randn(2, 4, 8, 8) + 5
    teacher = EMATeacher(nn.Sequential(layers.NaiveSyncBatchNorm(4)))
    assert_normalised(teacher(images))
    assert torch.equal(teacher.model[0].running_mean, torch.zeros(4))
    assert torch.equal(teacher.model[0].running_var, torch.ones(4))


def test_evaluation_mode_normalises_by_the_averaged_running_statistics(student):
    teacher = EMATeacher(student).eval()
    randomize_(student)
    teacher.copy_(student)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(teacher(images), student.eval()(images))


def test_the_students_batch_norm_keeps_tracking(student):
    EMATeacher(student)
    student(torch.randn(2, 3, 8, 8) + 5)
    assert student.body[1].num_batches_tracked == 1
    assert student.body[1].momentum == 0.1


def test_dropout_stays_off_whatever_the_mode(student):
    teacher = EMATeacher(student)
    for mode in (True, False, True):
        teacher.train(mode)
        assert teacher.training is mode
        assert teacher.model.body[1].training is mode
        assert not teacher.model.body[2].training
        images = torch.randn(2, 3, 4, 4)
        assert torch.equal(teacher(images), teacher(images))


def test_no_gradient_passes_through_the_teacher_and_the_student_is_no_part_of_it(student):
    teacher = EMATeacher(student)
    teacher.update_(student, 0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not teacher(torch.randn(2, 3, 4, 4, requires_grad=True)).requires_grad
    assert all(module is not student for module in teacher.modules())
    assert all(name.startswith("model.") for name in teacher.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"momentum": momentum}, r"momentum must be in \[0, 1\)")
            for momentum in (-0.1, 1.0, 2.0, float("nan"))
        ),
        ({"statistics": "source"}, r"student.*target"),
    ],
)
def test_bad_arguments_are_refused(student, options, message):
    with pytest.raises(ValueError, match=message):
        EMATeacher(student, **options)


def test_a_negative_iteration_is_refused(student):
    with pytest.raises(ValueError, match="iteration must not be negative, got -1"):
        EMATeacher(student).update_(student, -1)


def test_students_built_otherwise_are_refused(student):
    teacher = EMATeacher(student, without=["auxiliary"])
    extra, wide = copy.deepcopy(student), copy.deepcopy(student)
    extra.more = nn.Linear(1, 1)
    wide.body[0] = nn.Conv2d(3, 5, 1)
    for other in (extra, nn.Sequential(student), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"built like the one that was copied.* unknown"):
            teacher.update_(other, 0)
    with pytest.raises(ValueError, match=r"2 misshapen \(body.0.bias, body.0.weight\)"):
        teacher.copy_(wide)


def test_target_statistics_are_those_of_the_labelled_images():
    student = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    teacher = EMATeacher(student, momentum=0.9, statistics="target")
    teacher.copy_(student)
    torch.manual_seed(0)
    target = 3 * torch.randn(4, 1, 8, 8) + 5
    seen = teacher.model[0](target)
    teacher(target)
    norm = teacher.model[1]
    torch.testing.assert_close(norm.running_mean, 0.1 * seen.mean().view(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * seen.var().view(1))
    # The student's own statistics, of another domain, never enter; its weights do.
    student.train()
    student(torch.randn(4, 1, 8, 8) - 20)
    before = norm.running_mean.clone(), teacher.model[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    teacher.update_(student, iteration=0)
    assert torch.equal(norm.running_mean, before[0])
    torch.testing.assert_close(teacher.model[0].weight, before[1] + 0.5)


class NormEval(nn.Module):
    """An encoder that keeps its batch norm as it was trained."""

    def __init__(self):
        super().__init__()
        self.frozen, self.free = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


def test_the_teacher_keeps_in_evaluation_what_the_student_keeps_there():
    teacher = EMATeacher(NormEval(), momentum=0.9)
    assert not teacher.model.frozen.training and teacher.model.free.training
