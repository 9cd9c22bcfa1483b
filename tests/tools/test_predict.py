"""What tools/predict.py writes, refuses, skips and reports."""

from pathlib import Path

import cv2
import numpy as np
import predict as tool
import pytest
import torch
from camera import open_capture
from conftest import COLORS, SMALLEST, draw_scene
from detectron2.data import MetadataCatalog
from PIL import Image, TiffImagePlugin
from run_fixtures import save_run

import mpcl
from mpcl.data.labels import identity_except
from mpcl.data.sets.driving_classes import CITYSCAPES_IDS
from mpcl.predict.export import save_slim
from mpcl.predict.inputs import find_images, is_camera
from mpcl.predict.loading import load_networks
from mpcl.predict.prediction_files import OverlayVideo, PredictionWriter


@pytest.fixture
def run(tiny_cfg) -> Path:
    return save_run(tiny_cfg("daformer_gauss", *SMALLEST))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two images of one size, and one of another in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name, size in (("a.png", (64, 96)), ("b.jpg", (64, 96)), ("deep/c.png", (51, 75))):
        image, _ = draw_scene(np.random.default_rng(len(name)), "target", size)
        Image.fromarray(image).save(folder / name)
    return folder


def predict(run: Path, out: Path, *inputs, more=()) -> int:
    """``more`` is what follows the options: KEY VALUE pairs come last."""
    arguments = ["--run", str(run), "--input", *map(str, inputs), "--output", str(out), *more]
    return tool.main(arguments)


def files(folder: Path) -> set[str]:
    """But the legend, which every folder of overlays has."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert ("overlay/legend.png" in found) == (folder / "overlay").exists()
    return found - {"overlay/legend.png"}


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_a_folder_becomes_overlays_and_train_ids_of_the_same_names(run, photos, tmp_path, capsys):
    assert predict(run, tmp_path / "out", photos) == 0
    names = {"a", "b", "deep/c"}
    expected = {f"overlay/{n}.jpg" for n in names} | {f"train_ids/{n}.png" for n in names}
    assert files(tmp_path / "out") == expected
    predictor = mpcl.Predictor(run)
    for name, file in (("a", "a.png"), ("deep/c", "deep/c.png")):
        ids = read(tmp_path / "out" / "train_ids" / f"{name}.png")
        assert ids.dtype == np.uint8
        labels = predictor.labels(photos / file).ids
        assert ids.shape == labels.shape and (ids == labels).mean() > 0.999
    overlay, image = read(tmp_path / "out/overlay/a.jpg"), read(photos / "a.png")
    height, width = image.shape[:2]
    assert overlay.shape == (height, 2 * width, 3)
    left = overlay[:, :width].astype(float)
    assert np.abs(left - image).mean() < 12  # JPEG of noise
    ids = read(tmp_path / "out" / "train_ids" / "a.png")
    colors = np.array(predictor.metadata.stuff_colors)[ids]
    right = 0.4 * image + 0.6 * colors
    assert np.abs(overlay[:, width:].astype(float) - right).mean() < 12
    legend = read(tmp_path / "out/overlay/legend.png").reshape(-1, 3)
    assert {tuple(c) for c in predictor.metadata.stuff_colors} <= {tuple(c) for c in legend}
    out = capsys.readouterr().out
    assert "teacher: 3 images predicted" in out and "images/s" in out
    assert f"train_ids  3 files in {tmp_path / 'out' / 'train_ids'}" in out


def test_student_and_prototypes_predict_otherwise(run, photos, tmp_path, capsys):
    ids = {}
    for name, options in (
        ("teacher", ()),
        ("student", ("--student",)),
        ("prototypes", ("--prototype-output",)),
    ):
        predict(run, tmp_path / name, photos / "a.png", more=options)
        ids[name] = read(tmp_path / name / "train_ids" / "a.png")
    assert not np.array_equal(ids["teacher"], ids["student"])
    assert not np.array_equal(ids["prototypes"], ids["student"])
    assert capsys.readouterr().out.count("student: 1 images") == 2


def test_confidence_is_written_where_it_is_asked_for(run, photos, tmp_path):
    slide = ("TEST.INFERENCE", "slide")
    arguments = ["--run", str(run), "--input", str(photos / "a.png"), "--write", "confidence"]
    assert tool.main([*arguments, "--output", str(tmp_path / "out"), *slide]) == 0
    assert files(tmp_path / "out") == {"confidence/a.png"}
    predictor = mpcl.Predictor(run, opts=slide)
    expected = predictor.labels(photos / "a.png", confidence=True).confidence
    found = read(tmp_path / "out" / "confidence" / "a.png")
    np.testing.assert_allclose(found / 255, expected, atol=0.51 / 255)


def test_cityscapes_models_write_label_ids(tiny_cfg, photos, tmp_path):
    opts = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19, "DATASETS.TEST", (), "DATASETS.TRAIN", ())
    run = save_run(tiny_cfg("daformer", *opts))
    predict(run, tmp_path / "out", photos / "a.png")
    train_ids, label_ids = (
        read(tmp_path / "out" / kind / "a.png") for kind in ("train_ids", "label_ids")
    )
    to_train_id = np.full(256, 255)
    to_train_id[[i for i in CITYSCAPES_IDS if i >= 0]] = [
        t for i, t in CITYSCAPES_IDS.items() if i >= 0
    ]
    np.testing.assert_array_equal(to_train_id[label_ids], train_ids)


BOX, SKY = (200, 40, 40), (0, 0, 255)


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        ({70: 2, 9: 0, 255: 3, 8: 0, 40: 1, 7: 255}, [9, 40, 70, 255]),
        ({BOX: 3, SKY: 2, (0, 0, 0): 0, (9, 9, 9): 1}, [(0, 0, 0), (9, 9, 9), SKY, BOX]),
        (None, [0, 1, 2, 3]),
        (identity_except(9), [0, 1, 2, 3]),
    ],
)
def test_label_ids_are_those_of_the_users_label_files_also_from_a_slim_file(
    run, photos, tmp_path, monkeypatch, caplog, label_map, expected
):
    monkeypatch.setitem(vars(MetadataCatalog.get("tiny_source")), "label_map", label_map)
    save_slim(load_networks(run), tmp_path / "slim.pth")
    monkeypatch.setitem(vars(MetadataCatalog.get("tiny_source")), "label_map", {5: 0})
    arguments = ["--weights", str(tmp_path / "slim.pth"), "--write", "train_ids", "label_ids"]
    arguments += ["--input", str(photos / "a.png"), "--output", str(tmp_path / "out")]
    assert tool.main(arguments) == 0
    train_ids, label_ids = (
        read(tmp_path / "out" / kind / "a.png") for kind in ("train_ids", "label_ids")
    )
    assert len(np.unique(train_ids)) > 1
    np.testing.assert_array_equal(label_ids, np.array(expected, np.uint8)[train_ids])
    assert ("written is ground 9 (of 9, 8)" in caplog.text) == (expected[0] == 9)


def test_a_class_without_an_id_of_its_own_is_refused(run, photos, tmp_path, monkeypatch, capsys):
    metadata = vars(MetadataCatalog.get("tiny_source"))
    monkeypatch.setitem(metadata, "label_map", {1: 0, 2: 1, 3: 2})
    arguments = ["--run", str(run), "--input", str(photos), "--write", "label_ids"]
    with pytest.raises(SystemExit):
        tool.main([*arguments, "--output", str(tmp_path / "out")])
    assert "no id in label_map means box" in capsys.readouterr().err


GEO = {  # tag -> TIFF type and value: doubles, shorts, text
    33550: (12, (0.1, 0.1, 0.0)),
    33922: (12, (0.0, 0.0, 0.0, 440720.123456789, 3751320.987654321, 0.0)),
    34735: (3, (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1)),
    34736: (12, (298.257223563,)),
    34737: (2, "WGS 84 / UTM zone 11N|"),
}


def save_geotiff(image: np.ndarray, path: Path, **more) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in {**GEO, **more.get("tags", {})}.items():
        tags.tagtype[tag] = kind
        tags[tag] = value
    Image.fromarray(image).save(path, tiffinfo=tags)


def test_masks_of_a_geotiff_lie_where_it_lies(run, photos, tmp_path, caplog):
    image = read(photos / "a.png")
    save_geotiff(image, photos / "geo.tif", tags={42113: (2, "0")})  # no-data of the image alone
    Image.fromarray(image).save(photos / "plain.tif")
    save_geotiff(image, photos / "turned.tif", tags={274: (3, 3)})
    kinds = ("--write", "overlay", "train_ids", "confidence", "label_ids")
    inputs = [photos / name for name in ("geo.tif", "plain.tif", "turned.tif", "a.png")]
    assert predict(run, tmp_path / "out", *inputs, more=kinds) == 0
    masks = ("train_ids", "label_ids", "confidence")
    assert files(tmp_path / "out") == {
        *(f"overlay/{name}.jpg" for name in ("geo", "plain", "turned", "a")),
        *(f"{kind}/geo.tif" for kind in masks),
        *(f"{kind}/{name}.png" for kind in masks for name in ("plain", "turned", "a")),
    }
    for kind in masks:
        with Image.open(tmp_path / "out" / kind / "geo.tif") as mask:
            held = mask.tag_v2
            for tag, (form, value) in GEO.items():
                assert held.tagtype[tag] == form and np.array_equal(held[tag], np.squeeze(value))
            assert 42113 not in held and mask.mode == "L"
            png = tmp_path / "out" / kind / "plain.png"
            np.testing.assert_array_equal(np.array(mask), read(png))
    assert "turned.tif is turned by its orientation tag" in caplog.text
    assert predict(run, tmp_path / "out", *inputs, more=(*kinds, "--existing", "skip")) == 0
    with pytest.raises(SystemExit):
        predict(run, tmp_path / "out", photos / "geo.tif", more=("--write", "train_ids"))


def test_an_image_too_wide_for_a_jpeg_has_its_ids_and_a_smaller_overlay(run, photos, tmp_path):
    wide = np.tile(read(photos / "a.png")[:40], (1, 350, 1))
    Image.fromarray(wide).save(photos / "wide.png")
    assert predict(run, tmp_path / "out", photos / "wide.png") == 0
    assert read(tmp_path / "out/train_ids/wide.png").shape == (40, 33600)
    height, width, _ = read(tmp_path / "out/overlay/wide.jpg").shape
    assert 65490 <= width <= 65500 and height == int(40 * 65500 / 67200)


def test_large_images_are_predicted_by_tiles_one_at_a_time(run, photos, tmp_path, capsys):
    whole, tiled = tmp_path / "whole", tmp_path / "tiled"
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:2000])  # header whole
    kinds = ("--write", "train_ids", "confidence")
    options = ("INPUT.TARGET_SIZE", "(0,0)", "TEST.INFERENCE", "slide", "TEST.SLIDE.CROP")
    options += ("(32,32)", "TEST.SLIDE.STRIDE", "(16,16)")
    assert predict(run, whole, photos, more=(*kinds, "--tile", "4096", *options)) == 1
    assert predict(run, tiled, photos, more=(*kinds, "--tile", "70", *options)) == 1
    assert "broken.png" in capsys.readouterr().out.split("FAULT")[-1]
    assert files(whole) == files(tiled) and len(files(tiled)) == 6
    for file in files(tiled):
        difference = read(tiled / file).astype(int) - read(whole / file)
        assert (np.abs(difference) <= ("confidence" in file)).mean() > 0.999


def test_existing_outputs_are_kept_unless_asked_otherwise(run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    predict(run, out, photos / "a.png")
    mine = out / "train_ids" / "a.png"
    Image.fromarray(np.full((2, 2), 9, np.uint8)).save(mine)
    with pytest.raises(SystemExit):
        predict(run, out, photos)
    assert "2 outputs exist already" in capsys.readouterr().err
    assert files(out) == {"overlay/a.jpg", "train_ids/a.png"}
    predict(run, out, photos, more=("--existing", "skip"))
    assert (
        "2 images predicted" in (said := capsys.readouterr().out) and "1 were there already" in said
    )
    assert read(mine).shape == (2, 2)
    kinds = ("--write", "train_ids", "confidence")
    predict(run, out, photos / "a.png", more=(*kinds, "--existing", "skip"))
    assert read(mine).shape == (2, 2) and read(out / "confidence" / "a.png").shape == (64, 96)
    predict(run, out, photos, more=("--existing", "overwrite"))
    assert read(mine).shape == (64, 96)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_predicted(
    run, photos, tmp_path, capsys
):
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    assert predict(run, tmp_path / "out", photos) == 1
    out = capsys.readouterr().out
    assert "FAULT" in out and "broken.png" in out and "3 images predicted" in out
    assert len(files(tmp_path / "out")) == 6


def test_a_file_without_a_header_is_named_where_images_are_resized(run, photos, tmp_path, capsys):
    (photos / "text.png").write_text("no image")
    size = ("INPUT.TARGET_SIZE", "(96,64)")
    assert predict(run, tmp_path / "out", photos, more=size) == 1
    out = capsys.readouterr().out
    assert "text.png" in out.split("FAULT")[-1] and "1 could not be read" in out


def test_globs_find_what_they_match_and_keep_folders(photos):
    found = {(image.name, Path(image.path).name) for image in find_images([f"{photos}/**/*.png"])}
    assert found == {("a", "a.png"), ("deep/c", "c.png")}
    assert [i.name for i in find_images([f"{photos}/a.*", str(photos / "a.png")])] == ["a"]
    Image.fromarray(np.zeros((51, 75, 3), np.uint8)).save(photos / "aa.png")
    sizes = [Image.open(image.path).size for image in find_images([str(photos)])]
    assert sizes == sorted(sizes)  # so that images of one size come together


def test_inputs_that_are_not_there_or_share_a_name_are_refused(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image, folder or video at"):
        find_images([str(tmp_path / "nothing.png")])
    with pytest.raises(FileNotFoundError, match="no image matches"):
        find_images([f"{photos}/*.gif"])
    (tmp_path / "a.zip").write_bytes(b"PK")
    for inside in ("a.zip", "a.zip/images", "a.zip/images/*.png"):
        with pytest.raises(ValueError, match=r"a\.zip is an archive.*unpack it"):
            find_images([str(tmp_path / inside)])
    (photos / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes\.txt is neither an image nor a video"):
        find_images([str(photos / "notes.txt")])
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (4, 4)).save(other / "a.png")
    with pytest.raises(ValueError, match="would both be written as a"):
        find_images([str(photos), str(other)])


def write_video(path: Path, frames: int, fps: float = 10.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (96, 64))
    for i in range(frames):
        writer.write(draw_scene(np.random.default_rng(i), "target")[0][..., ::-1].copy())
    writer.release()


def frames_of(path: Path) -> tuple[int, float, tuple[int, int]]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read_frame := capture.read())[0]:
        frames.append(read_frame[1])
    return len(frames), capture.get(cv2.CAP_PROP_FPS), frames[0].shape[:2]


def test_a_video_becomes_a_video_of_overlays_and_images_of_ids(run, tmp_path, capsys):
    write_video(tmp_path / "drive.mp4", 5)
    assert predict(run, tmp_path / "out", tmp_path / "drive.mp4") == 0
    ids = {f"train_ids/drive/{i:06d}.png" for i in range(5)}
    assert files(tmp_path / "out") == {"overlay/drive.mp4", *ids}
    assert frames_of(tmp_path / "out" / "overlay" / "drive.mp4") == (5, 10.0, (64, 192))
    assert "5 images predicted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        predict(run, tmp_path / "out", tmp_path / "drive.mp4")
    assert "2 outputs exist already" in capsys.readouterr().err
    few = ("--existing", "overwrite", "--max-frames", "2")
    predict(run, tmp_path / "out", tmp_path / "drive.mp4", more=few)
    assert frames_of(tmp_path / "out" / "overlay" / "drive.mp4")[0] == 2


def test_an_interrupted_video_counts_as_nothing_and_is_predicted_anew(
    run, tmp_path, monkeypatch, capsys
):
    write_video(tmp_path / "drive.mp4", 5)
    labels = mpcl.Predictor.labels

    def interrupt(self, images, **options):
        if len(list((tmp_path / "out/train_ids").rglob("*.png"))) == 4:
            raise KeyboardInterrupt
        return labels(self, images, **options)

    monkeypatch.setattr(mpcl.Predictor, "labels", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tool.main.__wrapped__(tool.parse_args(arguments(run, tmp_path)))
    found = files(tmp_path / "out")
    assert found and all(".partial" in name for name in found)
    monkeypatch.undo()
    assert tool.main(arguments(run, tmp_path)) == 0
    assert "5 images predicted" in capsys.readouterr().out
    ids = {f"train_ids/drive/{i:06d}.png" for i in range(5)}
    assert files(tmp_path / "out") == {"overlay/drive.mp4", *ids}
    assert tool.main(arguments(run, tmp_path)) == 0
    assert "0 images predicted (nothing to do), 1 were there already" in capsys.readouterr().out
    mine = tmp_path / "out/train_ids/drive/000000.png"
    mine.write_bytes(b"corrected")
    kinds = ("--write", "train_ids", "confidence")
    assert tool.main([*arguments(run, tmp_path), *kinds]) == 0
    assert mine.read_bytes() == b"corrected"
    names = {p.name for p in (tmp_path / "out/confidence/drive").iterdir()}
    assert names == {f"{i:06d}.png" for i in range(5)}


def arguments(run: Path, folder: Path) -> list[str]:
    names = ["--run", run, "--input", folder / "drive.mp4", "--output", folder / "out"]
    return [*map(str, names), "--existing", "skip"]


def test_a_shorter_video_leaves_no_frames_of_a_longer_one(run, tmp_path):
    ids = tmp_path / "out/train_ids/drive"
    overwrite = ("--existing", "overwrite")
    for frames in (5, 2):
        write_video(tmp_path / "drive.mp4", frames)
        predict(run, tmp_path / "out", tmp_path / "drive.mp4", more=overwrite)
        (ids / "notes.txt").write_text("mine")
    assert {p.name for p in ids.iterdir()} == {"000000.png", "000001.png", "notes.txt"}


def test_a_video_that_breaks_off_is_a_fault(run, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "drive.mp4", 3, fps=2.0)
    assert predict(run, tmp_path / "whole", tmp_path / "drive.mp4") == 0
    capture = cv2.VideoCapture

    class Promising:
        """The file's frames, and a promise of six."""

        def __init__(self, name: str) -> None:
            self._capture, self._input = capture(name), "out" not in Path(name).parts
            self.isOpened, self.read = self._capture.isOpened, self._capture.read
            self.release = self._capture.release

        def get(self, key: int) -> float:
            promised = key == cv2.CAP_PROP_FRAME_COUNT and self._input
            return 6.0 if promised else self._capture.get(key)

    monkeypatch.setattr(cv2, "VideoCapture", Promising)
    assert predict(run, tmp_path / "out", tmp_path / "drive.mp4") == 1
    assert "drive.mp4 breaks off: 3 of its 6 frames can be read" in capsys.readouterr().out
    assert "overlay/drive.mp4" in files(tmp_path / "out")


def test_a_video_of_which_the_encoder_loses_frames_is_not_called_whole(tmp_path, monkeypatch):
    video = OverlayVideo(tmp_path / "lost.mp4", 5)
    video.add(np.zeros((32, 48, 3), np.uint8))
    video.add(np.zeros((64, 48, 3), np.uint8))  # OpenCV drops it without a word
    with pytest.raises(OSError, match=r"lost\.mp4 holds 1 of 2 frames: is the disk full"):
        video.close()


def test_outputs_are_no_inputs_and_share_no_folder(run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = photos / "out"
    assert predict(run, inside, "photos") == 0
    with pytest.raises(SystemExit):
        predict(run, inside, "photos", more=("--existing", "skip"))
    assert (
        "photos/out/train_ids/deep/c.png is among the images to predict" in capsys.readouterr().err
    )
    write_video(tmp_path / "deep.mp4", 2)
    with pytest.raises(SystemExit):
        predict(run, tmp_path / "other", photos / "deep", photos, tmp_path / "deep.mp4")
    assert "would lie in one folder" in capsys.readouterr().err


def test_nan_is_no_prediction(run, photos, tmp_path, capsys):
    file = next(run.glob("*.pth"))
    content = torch.load(file, weights_only=True)
    for tensor in content["teacher"].values():
        tensor.fill_(torch.nan) if tensor.is_floating_point() else None
    torch.save(content, file)
    with pytest.raises(SystemExit):
        predict(run, tmp_path / "out", photos)
    assert "the network gives NaN" in capsys.readouterr().err


def test_a_camera_runs_until_it_is_interrupted_and_keeps_its_video(run, tmp_path, monkeypatch):
    assert is_camera("0") and not is_camera("0.mp4")
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", open_capture)
    assert predict(run, tmp_path / "out", "0") == 0
    monkeypatch.setattr(cv2, "VideoCapture", capture)
    assert frames_of(tmp_path / "out" / "overlay" / "camera_0.mp4") == (2, 25.0, (48, 128))


def test_a_video_that_cannot_be_opened_is_named_and_the_rest_is_predicted(run, tmp_path, capsys):
    (tmp_path / "no.mp4").write_text("no video")
    write_video(tmp_path / "drive.mp4", 2)
    assert predict(run, tmp_path / "out", tmp_path / "no.mp4", tmp_path / "drive.mp4") == 1
    said = capsys.readouterr().out
    assert "no.mp4 cannot be opened" in said and "2 images predicted" in said


def test_an_overlay_video_of_odd_sides_loses_a_row_not_the_video(tmp_path):
    video = OverlayVideo(tmp_path / "odd.mp4", 5)
    video.add(np.zeros((33, 50, 3), np.uint8))
    video.close()
    assert frames_of(tmp_path / "odd.mp4") == (1, 5.0, (32, 50))


def test_unknown_kinds_and_opacities_are_refused(tiny_world, tmp_path):
    metadata = MetadataCatalog.get(tiny_world["val"])
    with pytest.raises(ValueError, match=r"unknown kinds \['depth'\]; known: overlay"):
        PredictionWriter(tmp_path, ["depth"], metadata)
    with pytest.raises(ValueError, match="opacity is 2"):
        PredictionWriter(tmp_path, ["overlay"], metadata, opacity=2)


def test_a_network_must_be_named_once(tmp_path, capsys):
    for arguments in ([], ["--run", "a", "--config-file", "b"]):
        with pytest.raises(SystemExit):
            tool.main([*arguments, "--input", "x.png", "--output", str(tmp_path)])
        assert "name a network" in capsys.readouterr().err


def test_overlays_are_as_strong_as_is_asked_for(run, photos, tmp_path):
    halves = {}
    for opacity in ("0", "1"):
        predict(run, tmp_path / opacity, photos / "a.png", more=("--opacity", opacity))
        overlay = read(tmp_path / opacity / "overlay/a.jpg").astype(float)
        halves[opacity] = np.hsplit(overlay, 2)
    image, uncovered = halves["0"]
    assert np.abs(uncovered - image).mean() < 4
    ids = read(tmp_path / "1/train_ids/a.png")
    colors = np.array(COLORS["source"])[ids]
    assert np.abs(halves["1"][1] - colors).mean() < 12 < np.abs(halves["1"][1] - image).mean()


def test_as_many_images_pass_together_as_are_asked_for(run, photos, tmp_path, monkeypatch):
    passes, labels = [], mpcl.Predictor.labels

    def spy(self, images, **options):
        passes.append(len(images))
        return labels(self, images, **options)

    monkeypatch.setattr(mpcl.Predictor, "labels", spy)
    for number, expected in ((None, [1, 2]), (1, [1, 1, 1])):  # two of the three have one size
        passes.clear()
        more = ("--batch-size", str(number)) if number else ()
        predict(run, tmp_path / f"out{number}", photos, more=("--write", "train_ids", *more))
        assert passes == expected
