import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from processes import FORKS, statuses
from torch import nn

from mpcl.checkpoint.training import TrainingCheckpointer
from mpcl.utils import atomic_write


def make(folder, size: int = 4, **options) -> TrainingCheckpointer:
    return TrainingCheckpointer(nn.Linear(size, size), str(folder), **options)


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    weight = content.index(torch.load(path)["model"]["weight"].numpy().tobytes())
    content[weight] ^= 1
    path.write_bytes(content)


def test_saved_checkpoint_is_found_and_nothing_else_is_left_or_taken_for_one(tmp_path):
    assert make("").get_checkpoint_file() == ""
    others = ["model_0000009.pth.tmp", "model_best.pth", "rank0.pth"]
    for name in others:
        (tmp_path / name).write_bytes(b"?")
    assert make(tmp_path).get_checkpoint_file() == "" and not make(tmp_path).has_checkpoint()
    make(tmp_path).save("model_0000004", iteration=4)
    assert make(tmp_path).get_checkpoint_file() == str(tmp_path / "model_0000004.pth")
    assert names(tmp_path) == sorted(["last_checkpoint", "model_0000004.pth", *others])
    assert torch.load(tmp_path / "model_0000004.pth", weights_only=True)["iteration"] == 4


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
def test_broken_checkpoint_is_passed_over_for_the_newest_whole_one(tmp_path, damage, caplog):
    for iteration in range(3):
        make(tmp_path).save(f"model_{iteration:07d}", iteration=iteration)
    damage(tmp_path / "model_0000002.pth")
    assert make(tmp_path).get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert make(tmp_path).resume_or_load("")["iteration"] == 1
    assert make(tmp_path).has_checkpoint()
    told = caplog.text.count("model_0000002.pth is no weight file")  # once a start, not a question
    assert told == (damage != Path.unlink)


def test_what_is_taken_for_whole_can_be_loaded_whichever_byte_is_damaged(tmp_path):
    """Checksums do not cover an archive's headers."""
    make(tmp_path / "run").save("model_0000000", iteration=0)
    make(tmp_path / "run").save("model_0000001", iteration=1)
    first, second = (tmp_path / f"run/model_000000{i}.pth" for i in (0, 1))
    content, passed_over = second.read_bytes(), 0
    weight = torch.load(second)["model"]["weight"]
    for place in range(0, len(content), 37):
        second.write_bytes(content[:place] + bytes([content[place] ^ 0x24]) + content[place + 1 :])
        os.utime(second, ns=(place, place))
        found = make(tmp_path / "run").get_checkpoint_file()
        checkpointer = make(tmp_path / "run")
        assert checkpointer.load(found)["iteration"] == int(found == str(second))
        passed_over += found == str(first)
        if found == str(second):
            assert torch.equal(checkpointer.model.weight, weight)
    assert passed_over > 7


def test_where_no_checkpoint_is_whole_nothing_starts_over(tmp_path):
    make(tmp_path).save("model_0000000")
    truncate(tmp_path / "model_0000000.pth")
    with pytest.raises(ValueError, match=r"none of .*can be read.*model_0000000\.pth.*--overwrite"):
        make(tmp_path).resume_or_load("")


def test_kill_between_checkpoint_and_pointer_loses_nothing(tmp_path, monkeypatch):
    make(tmp_path).save("model_0000000")
    checkpointer = make(tmp_path)
    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", lambda _: None)
    checkpointer.save("model_0000001")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    assert make(tmp_path).get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


@pytest.mark.parametrize("pointer", [b"model_0000000.pth\n", b"", b"\xff\xfe\x00", None])
@pytest.mark.parametrize("clock", [1, -1, 0], ids=["forward", "backward", "copied"])
def test_the_iteration_decides_not_the_clock_nor_a_pointer_that_is_behind(tmp_path, pointer, clock):
    for name, iteration in {"model_0000000": 0, "model_final": 9, "model_0000007": 7}.items():
        make(tmp_path).save(name, iteration=iteration)
        os.utime(tmp_path / f"{name}.pth", (1000 + clock * iteration,) * 2)
    if pointer is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_bytes(pointer)
    assert make(tmp_path).get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_training_state_of_another_kind_is_refused_by_name(tmp_path):
    content = {"model": nn.Linear(4, 4).state_dict(), "optimizer": 5}
    torch.save(content, tmp_path / "model_final.pth")
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = TrainingCheckpointer(model, str(tmp_path), optimizer=optimizer)
    with pytest.raises(ValueError, match=r"model_final\.pth: its training state"):
        checkpointer.resume_or_load("")


@pytest.mark.parametrize("absolute", [False, True])
def test_pointer_cannot_lead_out_of_its_folder(tmp_path, absolute):
    make(tmp_path / "run").save("model_0000000")
    make(tmp_path / "other").save("model_0000007")
    other = tmp_path / "other" if absolute else Path("../other")
    (tmp_path / "run/last_checkpoint").write_text(str(other / "model_0000007.pth"))
    found = make(tmp_path / "run").get_checkpoint_file()
    assert found == str(tmp_path / "run/model_0000000.pth")


def test_run_that_starts_afresh_does_not_go_on_from_an_earlier_one(tmp_path):
    make(tmp_path).save("model_final")
    checkpointer = make(tmp_path)
    checkpointer.start_afresh()
    assert not checkpointer.has_checkpoint()
    assert names(tmp_path) == ["model_final.old.pth"]
    checkpointer.save("model_0000000")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000000.pth")


@pytest.mark.parametrize(("keep", "kept"), [(0, [0, 1, 2, 3]), (1, [3]), (3, [1, 2, 3])])
def test_as_many_checkpoints_stay_as_the_config_says(tmp_path, keep, kept):
    for iteration in range(4):
        make(tmp_path, keep=keep).save(f"model_{iteration:07d}")  # a new process each time
    make(tmp_path, keep=keep).save("model_final")
    expected = [f"model_{iteration:07d}.pth" for iteration in kept]
    assert names(tmp_path) == ["last_checkpoint", *expected, "model_final.pth"]


def test_remains_of_a_kill_are_removed(tmp_path):
    for name in ("model_0000001.pth.tmp", "last_checkpoint.tmp", "notes.tmp"):
        (tmp_path / name).touch()
    make(tmp_path).remove_unfinished()
    assert names(tmp_path) == ["notes.tmp"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_earlier_checkpoint_whole_and_is_named(tmp_path, monkeypatch, call):
    make(tmp_path).save("model_0000000")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_write.os, call, full)
    with pytest.raises(OSError, match="No space left on device") as error:
        make(tmp_path).save("model_0000001")
    assert error.value.errno == errno.ENOSPC
    assert "model_0000001.pth" in str(error.value)
    assert f"{tmp_path / 'model_0000000.pth'} is whole" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def save_beyond_the_limit(folder: Path, tell) -> None:
    """A limit on the size of files is a full disk without root's rights: write(2) fails midway."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpointer = make(folder, size=200)
    checkpointer.save("model_0000000")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        checkpointer.save("model_0000001")
    except OSError as error:
        tell.send(str(error))


def test_write_that_the_kernel_refuses_halfway_is_reported_as_such(tmp_path):
    # In a process of its own, as the limit cannot be raised again.
    told, tell = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=save_beyond_the_limit, args=(tmp_path, tell))
    process.start()
    assert statuses([process]) == [0]
    message = told.recv()
    assert os.strerror(errno.EFBIG) in message and "model_0000000.pth is whole" in message
    assert names(tmp_path) == ["last_checkpoint", "model_0000000.pth"]


def test_fault_that_is_no_failed_write_keeps_its_own_error(tmp_path):
    def broken(_file):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        atomic_write.write_atomically(tmp_path / "file", broken)
        atomic_write.write_atomically(tmp_path / "file", broken)
    assert names(tmp_path) == []


def test_a_failed_write_names_its_file(tmp_path):
    with pytest.raises(OSError, match="there/file") as raised:
        atomic_write.write_atomically(tmp_path / "there" / "file", b"")
    assert raised.value.errno == errno.ENOENT
