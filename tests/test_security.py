"""Files from elsewhere: none runs code, reads or writes outside its root, or unfolds to gigabytes.

Each test of code plants it: whoever opens the file the careless way creates a witness.
"""

import os
import pickle
import zipfile
from pathlib import Path

import compare
import convert_checkpoint
import numpy as np
import predict
import pytest
import submit
import torch
import train_net
import visualize
from conftest import CONFIGS, SMALLEST
from mistakes import World, refuse
from PIL import Image
from tiny_files import bomb

from mpcl.checkpoint.weight_files import read, read_zoo
from mpcl.config import get_cfg_from
from mpcl.data.sets.custom import register_from_yaml
from mpcl.data.statistics import class_statistics
from mpcl.evaluation.runs import read_run
from mpcl.predict.submission import check_submission, write_submission

pytest_plugins = ["mistakes"]


class Planted:
    """Unpickling it creates the witness."""

    def __init__(self, witness: Path) -> None:
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.fixture
def witness(tmp_path):
    """Must never exist; that the plant works is tried first."""
    place = tmp_path / "witness"
    pickle.loads(pickle.dumps(Planted(place)))
    assert place.is_dir()
    place.rmdir()
    yield place
    assert not place.exists()


def plant(path: Path, witness: Path) -> Path:
    """A weight file of the kind that the suffix says, with code beside its tensors."""
    content = {"model": {"backbone.a": torch.zeros(1)}, "code": Planted(witness)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".pth", ".bin", ".pyth"):
        torch.save(content, path)
    else:
        path.write_bytes(
            pickle.dumps({"model": {"a": np.zeros(1)}, "__author__": Planted(witness)})
        )
    return path


WEIGHTS = ["evil.pth", "evil.pkl", "evil.pyth", "evil.safetensors", "hub/pytorch_model.bin"]


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("flag", [[], ["--eval-only"]], ids=["train", "eval-only"])
def test_code_in_the_weights_of_a_config_is_refused(world, witness, capsys, name, flag):
    path = plant(world.root / name, witness)
    world.flags += flag
    path = path.parent if path.parent.name == "hub" else path
    message = refuse(lambda: train_net.cli(world.command("MODEL.WEIGHTS", path)), capsys)
    assert str(path) in message and not world.output.exists()


def test_code_in_the_old_format_of_torch_is_refused(tmp_path, witness):
    path = tmp_path / "old.pth"
    torch.save({"code": Planted(witness)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth.*could run code"):
        read(str(path))


@pytest.mark.parametrize(
    ("pointer", "refused"),
    [
        ("model_0000002.pth", True),
        # No checkpoints of this folder: passed over, and the run starts at its first iteration.
        ("../elsewhere.pth", False),
        ("evil.pkl", False),
    ],
)
def test_code_in_a_checkpoint_is_never_run_on_resume(world, witness, capsys, pointer, refused):
    world.output.mkdir()
    plant(world.output / pointer, witness)
    (world.output / "last_checkpoint").write_text(pointer)
    world.flags.append("--resume")
    command = world.command(*SMALLEST, "SOLVER.MAX_ITER", "1", "VIS_PERIOD", "0")
    if refused:
        before = sorted(world.output.iterdir())
        assert "could run code" in refuse(lambda: train_net.cli(command), capsys)
        assert sorted(world.output.iterdir()) == before
    else:
        train_net.cli(command)
        assert (world.output / "last_checkpoint").read_text() == "model_final.pth"


@pytest.fixture
def run_folder(world, witness):
    """The output of a run by someone else, with code in its checkpoint."""
    args = train_net.parse_args(world.command())
    world.output.mkdir()
    cfg = get_cfg_from(args.config_file, args.opts)
    (world.output / "config.yaml").write_text(cfg.dump())
    plant(world.output / "model_final.pth", witness)
    (world.output / "last_checkpoint").write_text("model_final.pth")
    return world.output


def acdc(root: Path, monkeypatch) -> None:
    """The test images of a benchmark: one of each condition."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    for condition in ("fog", "night", "rain", "snow"):
        folder = root / f"acdc/rgb_anon/{condition}/test/GOPR0400"
        folder.mkdir(parents=True)
        pixels = np.zeros((8, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{condition}_frame_000001_rgb_anon.png")


def test_code_in_the_checkpoint_of_a_run_is_refused_by_every_tool(
    run_folder, tmp_path, monkeypatch, capsys
):
    acdc(tmp_path, monkeypatch)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images/a.png")
    before = sorted(tmp_path.iterdir())
    for main, words in {
        visualize.main: ["compare", run_folder],
        submit.main: ["--run", run_folder, "--dataset", "acdc_images_test"],
        predict.main: ["--run", run_folder, "--output", "out", "--input", tmp_path / "images"],
    }.items():
        monkeypatch.chdir(tmp_path)
        message = refuse(lambda: main([str(word) for word in words]), capsys)  # noqa: B023
        assert "model_final.pth" in message
    assert sorted(path for path in tmp_path.iterdir() if path.name != "out") == before


@pytest.mark.parametrize(
    "name", [name for name in WEIGHTS if "pyth" not in name.rpartition(".")[2]]
)
def test_code_in_a_file_to_convert_is_refused_and_nothing_is_written(
    tmp_path, witness, capsys, name
):
    path = plant(tmp_path / name, witness)
    path = path.parent if path.parent.name == "hub" else path
    refuse(lambda: convert_checkpoint.main([str(path), str(tmp_path / "converted.pth")]), capsys)
    assert not (tmp_path / "converted.pth").exists()


def test_code_in_the_cache_of_class_statistics_is_not_run(world, witness, caplog):
    world.command()
    register_from_yaml(world.root / "world.yaml")
    name = f"{world.name}_sem_seg_source"
    counted = class_statistics(name)
    cache = next((world.root / "source_labels").glob("*.npz"))
    with np.load(cache) as content:
        key = content["key"]
    evil = np.array([Planted(witness)], dtype=object)
    np.savez(cache, key=key, counts=evil, sizes=evil)
    with caplog.at_level("WARNING"):
        np.testing.assert_array_equal(class_statistics(name).counts, counted.counts)
    assert "cannot be read" in caplog.text
    np.savez(cache, key=key, counts=counted.counts[:1], sizes=counted.sizes)  # of another shape
    np.testing.assert_array_equal(class_statistics(name).counts, counted.counts)


def test_a_pickle_of_arrays_cannot_name_anything_else(tmp_path, witness):
    path = tmp_path / "a.pkl"
    evil = np.array([Planted(witness)], dtype=object)  # inside an array, where numpy unpickles
    for content in ({"a": evil}, print, {"a": eval}, os.system):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"a\.pkl.*could run code"):
            read_zoo(str(path))


# ---- YAML

TAGS = [
    "!!python/object/apply:os.mkdir ['{witness}']",
    "!!python/object/new:os.mkdir ['{witness}']",
    "!!python/name:os.system",
    "!!python/module:antigravity",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("depth", [0, 2])
def test_python_tags_in_a_config_are_refused_at_any_depth_of_bases(
    world, witness, capsys, tag, depth
):
    world.config_file(f"SEED: {tag.format(witness=witness)}\n", f"base{depth}.yaml")
    for level in range(depth, 0, -1):
        world.config_file(f"_BASE_: base{level}.yaml\n", f"base{level - 1}.yaml")
    world.config = str(world.root / "base0.yaml")
    message = refuse(lambda: train_net.cli(world.command()), capsys)
    assert "base0.yaml" in message and "plain values" in message


def test_python_tags_in_a_list_of_bases_are_refused(world, witness, capsys):
    world.config_file(f"SEED: {TAGS[0].format(witness=witness)}\n", "evil.yaml")
    world.config_file(f"_BASE_: [{CONFIGS / 'daformer.yaml'}, evil.yaml]\n")
    assert "mine.yaml" in refuse(lambda: train_net.cli(world.command()), capsys)


def test_python_in_an_option_is_text(witness):
    code = f"__import__('os').mkdir('{witness}')"
    assert code == get_cfg_from("", ["OUTPUT_DIR", code]).OUTPUT_DIR


def test_python_tags_in_the_config_of_a_run_and_in_a_description_are_refused(
    tmp_path, witness, capsys
):
    evil = f"SEED: {TAGS[0].format(witness=witness)}\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(evil)
    (tmp_path / "run/last_checkpoint").write_text("model_final.pth")
    run = str(tmp_path / "run")
    for main, words in ((compare.main, [run]), (visualize.main, ["compare", run])):
        assert "config.yaml" in refuse(lambda: main(words), capsys)  # noqa: B023
    (tmp_path / "data.yaml").write_text(evil)
    with pytest.raises(ValueError, match=r"data\.yaml is no valid YAML"):
        register_from_yaml(tmp_path / "data.yaml")


NINE = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
NINE += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
BOMBS = {
    "aliases of aliases": ("\n".join(NINE), "unfolds to more than 100000 values"),
    "aliases of a long text": (f"a: &a '{'x' * 10000}'\nb: [{'*a,' * 2000}]", "unfolds to more"),
    "an alias of itself": ("a: &a [*a]", "nested too deep"),
    "deep": ("a: " + "[" * 1000, "nested too deep"),
    "deep by aliases": (
        "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 99))]),
        "nested too deep",
    ),
    "a long number": ("a: " + "1:" * 9999 + "1", "a number of 19999 characters"),
    "a long file": ("#" * 2**20 + "\n", "expected at most 1048576"),
    "no value of its tag": ("a: !!timestamp x", "no valid YAML"),
    "no text": (b"\xff\xfe\x00", "no text file"),
}


READERS = (
    register_from_yaml,
    lambda path: get_cfg_from(str(path)),
    lambda path: read_run(path.parent),
)


@pytest.mark.parametrize(("content", "message"), BOMBS.values(), ids=BOMBS)
def test_yaml_that_unfolds_is_refused_with_its_file_by_everything_that_reads_it(
    tmp_path, content, message
):
    file = tmp_path / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read_it in READERS:
        with pytest.raises(ValueError, match=message) as caught:
            read_it(file)
        assert "config.yaml" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_no_text_file(world, kind):
    file = world.root / "config.yaml"
    os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    for read_it in READERS:
        with pytest.raises(ValueError, match="is no regular file"):
            read_it(file)
    register_from_yaml(listed(world, ""))
    (world.root / "lists/images.txt").unlink()
    file.rename(world.root / "lists/images.txt")
    with pytest.raises(ValueError, match=r"images\.txt is no regular file"):
        records(world)


# ---- roots


def listed(world: World, line: str, **keys) -> Path:
    (world.root / "lists").mkdir(exist_ok=True)
    (world.root / "lists/images.txt").write_text(line)
    world.description["splits"]["target"] = {"images": "lists/images.txt", **keys}
    world.command()
    return world.root / "world.yaml"


def records(world: World) -> list[dict]:
    from mpcl.data.sets.registration import load_records

    return load_records(f"{world.name}_images_target")


@pytest.mark.parametrize("line", ["../target/0.png", "a/../../target/0.png", "{root}/target/0.png"])
def test_a_list_cannot_name_files_outside_its_folder(world, line):
    register_from_yaml(listed(world, line.replace("{root}", str(world.root))))
    with pytest.raises(ValueError, match=r"outside .*lists.*key root"):
        records(world)


@pytest.mark.parametrize("line", ["target/0.png", "{root}/target/0.png"])
def test_the_description_may_widen_the_root_of_a_list(world, line):
    register_from_yaml(listed(world, line.replace("{root}", str(world.root)), root="."))
    assert [r["file_name"] for r in records(world)] == [str(world.root / "target/0.png")]


def test_links_are_followed_as_data_sets_are_often_linked(world):
    (world.root / "lists").mkdir()
    (world.root / "lists/there").symlink_to(world.root / "target")
    register_from_yaml(listed(world, "there/0.png"))
    assert len(records(world)) == 1


@pytest.mark.parametrize(
    "names", ["../{folder}/{frame}.png", "/tmp/{frame}.png", "a/../../{frame}"]
)
def test_a_package_cannot_be_written_with_paths_that_lead_out_of_it(tmp_path, monkeypatch, names):
    acdc(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"inside the package"):
        write_submission(tmp_path / "p.zip", None, None, "acdc_fog_images_test", names)
    assert not list(tmp_path.glob("*.zip*"))


def test_a_package_is_checked_without_unpacking_bombs_or_leaving_it(tmp_path, monkeypatch):
    acdc(tmp_path, monkeypatch)
    package = tmp_path / "p.zip"
    name = "labelTrainIds/fog_frame_000001.png"
    before = sorted(tmp_path.rglob("*"))
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bomb(60000))
        archive.writestr("../../escaped.png", b"x")
    faults = check_submission(package, "acdc_fog_images_test")
    assert any("above the limit" in fault for fault in faults)
    assert any("escaped.png belongs to no image" in fault for fault in faults)
    monkeypatch.setenv("MPCL_MAX_IMAGE_PIXELS", "1000")
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bytes(5000))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    (fault,) = check_submission(package, "acdc_fog_images_test")
    assert "unfolds to 5000 bytes" in fault
    assert sorted(tmp_path.rglob("*")) == sorted([*before, package])


def test_a_damaged_or_encrypted_package_is_a_fault_not_a_traceback(tmp_path, monkeypatch):
    acdc(tmp_path, monkeypatch)
    package, name = tmp_path / "p.zip", "labelTrainIds/fog_frame_000001.png"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, bomb(8))
    content = package.read_bytes()
    for place in range(len(content)):
        for bit in (1, 8, 64):
            damaged = bytearray(content)
            damaged[place] ^= bit
            package.write_bytes(damaged)
            assert all(
                isinstance(f, str) for f in check_submission(package, "acdc_fog_images_test")
            )
    encrypted = bytearray(content)
    encrypted[6] |= 1  # the flag in the entry's header, and in the list of entries
    encrypted[content.index(b"PK\x01\x02") + 8] |= 1
    package.write_bytes(encrypted)
    (fault,) = check_submission(package, "acdc_fog_images_test")
    assert "cannot be unpacked" in fault and "encrypted" in fault
    package.unlink()
    os.mkfifo(package)
    with pytest.raises(ValueError, match=r"p\.zip is no regular file"):
        check_submission(package, "acdc_fog_images_test")


def test_a_bomb_among_the_images_stops_a_run_before_it_starts(world, capsys):
    (world.root / "target/0.png").write_bytes(bomb(60000))
    message = refuse(lambda: train_net.cli(world.command()), capsys)
    assert "target/0.png is above the limit of 268435456 pixels" in message
