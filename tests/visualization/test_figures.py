"""The figures and the inspection of a small trained run, through the tools."""

import inspect as python
import json
from importlib import import_module
from itertools import islice
from types import SimpleNamespace

import inspect_prototypes
import numpy as np
import pytest
import report
import torch
import visualize
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from run_fixtures import write_run
from scipy.spatial.distance import cdist

from mpcl.data.build import build_paired_loader
from mpcl.data.labels import read_label
from mpcl.evaluation.runs import read_experiments
from mpcl.predict.loading import load_networks
from mpcl.self_training.pseudo_label import PseudoLabels
from mpcl.visualization import feature_map
from mpcl.visualization.activations import activation_maps
from mpcl.visualization.clusterings import fit
from mpcl.visualization.feature_map import most_frequent, project, sample_pixels
from mpcl.visualization.prototype_inspection import inspect
from mpcl.visualization.rare_classes import Frequencies, frequencies, rare_class_figure
from mpcl.visualization.scenes import embed, evenly_spaced, load_scenes, pixel_features
from mpcl.visualization.score_curves import score_curve, score_figure
from mpcl.visualization.training_views import class_mix_figure, pseudo_label_figure

NO_TEST = ["DATASETS.TEST", "()"]


@pytest.fixture
def gauss(trained_runs):
    return load_networks(trained_runs["daformer_gauss"])


@pytest.mark.parametrize(
    "words",
    [
        ["activations", "--class-name", "sky", "--images", "2"],
        ["features", "--method", "pca", "--images", "2", "--pixels", "20"],
        ["features", "--method", "tsne", "--images", "2", "--pixels", "8", "--classes", "sky"],
        ["clusterings", "--method", "pca", "--images", "2", "--prototypes", "2"],
        ["class-mix", "--images", "3"],
        ["pseudo-labels", "--images", "2"],
        ["rare-classes"],
    ],
    ids=lambda words: "-".join(words[:3:2]),
)
def test_each_figure_is_written(trained_runs, tmp_path, words, capsys):
    file = tmp_path / "folder" / "figure.png"
    options = ["--run", str(trained_runs["daformer_gauss"]), "--output", str(file)]
    visualize.main([words[0], *options, *words[1:]])
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert capsys.readouterr().out.strip() == str(file)


@pytest.mark.parametrize("margins", [(0, 0, 0, 0, 0, 0), (0.25, 0, 0, 0.5, 0, 0.125)])
def test_pseudo_labels_of_a_labelled_set_are_counted_against_the_truth(gauss, margins):
    *of_image, top, bottom = map(float, margins)
    cfg = gauss.cfg.clone()
    cfg.merge_from_list(["DATASETS.TRAIN_TARGET", ("tiny_val",)])
    truth, label, probability, inside = [], [], [], []
    for scene in load_scenes(cfg, "tiny_val", 3):
        height, width = scene.truth.shape
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        lowest = height - max(of_image[1], bottom) * height
        kept = (rows >= max(of_image[0], top) * height) & (rows < lowest)
        inside.append((kept & (columns < width - of_image[3] * width)).flatten())
        posterior = gauss.teacher.model([scene.record])[0]["sem_seg"].softmax(0)
        truth.append(torch.from_numpy(scene.truth).flatten())
        label.append(posterior.argmax(0).flatten())
        probability.append(posterior.amax(0).flatten())
    truth, label, probability, inside = map(torch.cat, (truth, label, probability, inside))
    threshold = float(probability.median())
    st = ("CONFIDENCE_THRESHOLD", threshold), ("IGNORE_TOP", top), ("IGNORE_BOTTOM", bottom)
    st = (*st, ("IGNORE_MARGINS", tuple(of_image)))
    cfg.merge_from_list([word for key, value in st for word in (f"SELF_TRAINING.{key}", value)])
    known, sure, right = truth < 4, (probability >= threshold) & inside, label == truth
    masks = (sure[known], right[known], right[known & sure])
    _, found = pseudo_label_figure(gauss._replace(cfg=cfg), number=3)
    assert 0 < found.confident < 1
    assert found == pytest.approx([float(mask.float().mean()) for mask in masks])
    assert pseudo_label_figure(gauss, number=1)[1] is None


@pytest.mark.parametrize(
    ("threshold", "text"), [("0.0", "% of all pseudo-labels, "), ("1.0", "; none is confident")]
)
def test_the_share_of_right_pseudo_labels_is_printed(
    trained_runs, tmp_path, capsys, threshold, text
):
    words = ["--run", str(trained_runs["daformer_gauss"]), "--output", str(tmp_path / "x.png")]
    labelled = ["DATASETS.TRAIN_TARGET", "('tiny_val',)"]
    sure = ["SELF_TRAINING.CONFIDENCE_THRESHOLD", threshold]
    visualize.main(["pseudo-labels", *words, "--images", "1", *labelled, *sure])
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("Right: ") and text in line


def test_a_figure_of_the_source_needs_one(trained_runs, capsys):
    words = ["--run", str(trained_runs["daformer_gauss"]), "DATASETS.TRAIN", "()"]
    with pytest.raises(SystemExit):
        visualize.main(["features", "--method", "pca", *words])
    assert "DATASETS.TRAIN is empty; expected the labelled set" in capsys.readouterr().err


def test_checkpoints_of_a_run_are_compared_side_by_side_on_a_named_set(trained_runs, tmp_path):
    file, run = tmp_path / "comparison.png", trained_runs["daformer_gauss"]
    words = [str(run / "model_0000001.pth"), str(run), "--dataset", "tiny_source", "--errors"]
    visualize.main(["compare", *words, "--images", "1", "--output", str(file)])
    picture = np.asarray(Image.open(file))
    assert picture.shape[1] == 4 * 96 + 3 * 4
    source = np.asarray(Image.open(load_scenes(load_networks(run).cfg, "tiny_source", 1)[0].file))
    assert np.array_equal(picture[20 : 20 + 64, :96], source)


def seeds_with_scores(folder, by_seed, max_iter=20, tests=("tiny_val",)):
    """Output folders as of a training with an evaluation each 10 iterations; by seed (row's
    iteration, teacher's mIoU or None, student's)."""
    for seed, evaluations in by_seed.items():
        rows = [{"iteration": 11, "total_loss": 1.0}]
        for iteration, teacher, student in evaluations:
            both = {"sem_seg/mIoU": teacher, "sem_seg_student/mIoU": student}
            scores = {"sem_seg/mIoU": student} if teacher is None else both
            rows.append({"iteration": iteration, **scores})
        config = {"SEED": seed, "SOLVER": {"MAX_ITER": max_iter}, "TEST": {"EVAL_PERIOD": 10}}
        config |= {"DATASETS": {"TEST": list(tests)}, "SELF_TRAINING": {"ENABLED": True}}
        write_run(folder / f"seed_{seed}", rows, **config)
    return read_experiments([folder])[0].runs


def test_curves_are_the_mean_and_the_deviation_over_seeds_at_each_evaluation(tmp_path):
    scores = {0: [(9, 30.0, 1.0), (20, 40.0, 2.0)], 1: [(9, 34.0, 1.0), (20, 46.0, 2.0)]}
    runs = seeds_with_scores(tmp_path / "seeds", scores)
    curve = score_curve(runs, "teacher", "mIoU")
    assert curve.iterations.tolist() == [10, 20] and curve.mean.tolist() == [32.0, 43.0]
    np.testing.assert_allclose(curve.sd, [8**0.5, 18**0.5])
    assert score_curve(runs, "student", "mIoU").mean.tolist() == [1.0, 2.0]
    assert score_curve(runs, "student", "mIoU").sd.tolist() == [0.0, 0.0]


def test_curves_of_resumed_extended_and_unfinished_runs_and_of_runs_without_a_teacher(tmp_path):
    # Seed 0 was trained to 20, then to 30, and evaluated twice at 10; seed 1 stopped after 20.
    scores = {0: [(9, None, 5.0), (9, None, 6.0), (20, None, 7.0), (30, None, 8.0)]}
    scores[1] = [(9, None, 4.0), (19, None, 9.0)]
    runs = seeds_with_scores(tmp_path / "seeds", scores, max_iter=30)
    curve = score_curve(runs, "teacher", "mIoU")
    assert curve.iterations.tolist() == [10, 20] and curve.mean.tolist() == [5.0, 8.0]


def test_an_unfinished_seed_does_not_cut_the_curve_of_the_finished_ones(tmp_path):
    scores = {0: [(9, 30.0, 1.0), (20, 40.0, 2.0)], 1: [(9, 36.0, 1.0)]}
    seeds_with_scores(tmp_path / "seeds", scores, max_iter=20)
    (axes,) = score_figure(read_experiments([tmp_path / "seeds"])).axes
    assert axes.lines[0].get_xdata().tolist() == [10, 20]
    assert axes.lines[0].get_ydata().tolist() == [30.0, 40.0]
    assert axes.get_legend().get_texts()[0].get_text() == "seeds (1)"


def test_curves_of_different_data_sets_or_of_none_are_refused(tmp_path):
    for name, tests in (("a", ("tiny_val",)), ("b", ("other_val",)), ("c", ())):
        scores = {0: [(20, 40.0, 2.0)] if tests else []}
        seeds_with_scores(tmp_path / name, scores, tests=tests)
    with pytest.raises(ValueError, match=r"different data sets.*other_val.*tiny_val"):
        score_figure(read_experiments([tmp_path / "a", tmp_path / "b"]))
    with pytest.raises(ValueError, match=r"seed_0/metrics\.json has no mIoU"):
        score_figure(read_experiments([tmp_path / "c"]))


def test_curves_of_runs_are_drawn_and_a_score_that_is_not_there_is_named(
    trained_runs, tmp_path, capsys
):
    file, runs = tmp_path / "curves.png", [str(run) for run in trained_runs.values()]
    visualize.main(["curves", *runs, "--output", str(file)])
    assert Image.open(file).width > 600
    figure = score_figure(read_experiments([*trained_runs.values()]))
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["source_only (1, student)", "daformer_gauss (1)"]
    assert axes.lines[0].get_xdata().tolist() == [2, 4]
    with pytest.raises(SystemExit, match="2"):
        visualize.main(["curves", *runs, "--metric", "mIuO", "--output", str(file)])
    assert "has no mIuO" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("daformer_gauss", ["activations", "--class-name", "moon"], "expected one of ground"),
        ("source_only", ["activations", "--class-name", "sky"], "no prototypes"),
        ("source_only", ["clusterings", "--pixels", "1"], "expected 10 or more"),
        ("source_only", ["class-mix"], "no teacher"),
        ("source_only", ["pseudo-labels"], "no teacher"),
        ("daformer_gauss", ["features", "--classes", "moon"], "unknown classes"),
        ("daformer_gauss", ["features", *NO_TEST], "DATASETS.TEST is empty"),
        ("daformer_gauss", ["activations", "--class-name", "sky", *NO_TEST], "TEST is empty"),
        ("daformer_gauss", ["class-mix", "--images", "0"], "must be positive, got 0"),
        ("daformer_gauss", ["class-mix", "--images", "-1"], "must be positive, got -1"),
    ],
)
def test_what_a_checkpoint_cannot_show_is_said(trained_runs, tmp_path, capsys, run, words, message):
    options = ["--run", str(trained_runs[run]), "--output", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit, match="2"):
        visualize.main([words[0], *options, *words[1:]])
    assert message in capsys.readouterr().err


def test_folder_without_a_run_and_a_missing_network_are_named(tmp_path, capsys):
    for words, message in (
        (["compare", str(tmp_path)], "no config.yaml"),
        (["class-mix"], "name a network"),
        (["rare-classes"], "name a config"),
    ):
        with pytest.raises(SystemExit, match="2"):
            visualize.main(words)
        assert message in capsys.readouterr().err


def test_evenly_spaced_indices_reach_from_the_first_to_the_last():
    assert evenly_spaced(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced(2, 5) == [0, 1]
    assert evenly_spaced(7, 1) == [0]
    with pytest.raises(ValueError, match="positive"):
        evenly_spaced(3, 0)


def test_activation_maps_are_the_similarities_of_the_places(gauss):
    (scene,) = load_scenes(gauss.cfg, "tiny_val", 1)
    maps = activation_maps(gauss.student, scene, 2)
    embeddings = embed(gauss.student, scene.record)
    prototypes = gauss.student.prototype_head.prototypes
    row, column = 3, 5
    mean = prototypes.mean[2].double()
    variance = prototypes.variance[2].double().clamp_min(prototypes.min_variance)
    density = torch.distributions.Normal(mean, variance.sqrt())
    expected = density.log_prob(embeddings[:, row, column].double()).mean(-1)
    torch.testing.assert_close(maps[:, row, column].double(), expected, rtol=1e-4, atol=1e-4)


def test_sampled_pixels_have_the_class_and_domain_that_they_are_said_to_have(gauss):
    domains = [load_scenes(gauss.cfg, name, 2) for name in ("tiny_source", "tiny_val")]
    sample = sample_pixels(gauss.student, domains, [0, 2], per_class=5)
    for domain, scenes in enumerate(domains):
        for index in (0, 2):
            own = sample.embeddings[(sample.label == index) & (sample.domain == domain)]
            assert len(own) == 5
            all_pixels = np.concatenate(
                [
                    embed(gauss.student, s.record).flatten(1).t()[_grid(s.truth).ravel() == index]
                    for s in scenes
                ]
            )
            nearest = np.abs(all_pixels[None] - own[:, None]).max(-1).min(1)
            assert (nearest < 1e-6).all()


def test_the_classes_shown_are_the_most_frequent_of_those_with_prototypes():
    labels = [np.repeat(np.arange(12, dtype=np.uint8), np.arange(12, 0, -1)), np.full(50, 9)]
    assert most_frequent(labels, range(12)) == [9, 0, 1, 2, 3, 4, 5, 6]
    assert most_frequent(labels, [8, 1, 9, 10, 11, 7, 5, 6, 4, 3]) == [9, 1, 3, 4, 5, 6, 7, 8]
    assert most_frequent(labels, [2]) == [2]


def test_the_feature_map_chooses_among_the_classes_with_prototypes(gauss, monkeypatch):
    asked = []
    monkeypatch.setattr(
        feature_map, "most_frequent", lambda labels, classes: asked.append(classes) or [0]
    )
    gauss.student.prototype_head.prototypes.started.copy_(torch.tensor([True, False, True, True]))
    feature_map.feature_figure(gauss, method="pca", number=1, per_class=5)
    assert asked == [[0, 2, 3]]


def test_features_of_a_network_without_prototypes_are_those_that_its_classifier_reads(trained_runs):
    networks = load_networks(trained_runs["source_only"])
    scene = load_scenes(networks.cfg, "tiny_val", 1)[0]
    fused = []
    hook = networks.student.sem_seg_head.classifier.register_forward_pre_hook(
        lambda module, inputs: fused.append(inputs[0])
    )
    networks.student.predict([scene.record])
    hook.remove()
    rows = fused[0][0].permute(1, 2, 0)
    expected = torch.nn.functional.layer_norm(rows, rows.shape[2:], eps=1e-6)
    features = pixel_features(networks.student, scene.record).permute(1, 2, 0)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    figure = feature_map.feature_figure(networks, method="pca", number=1, per_class=5)
    assert "stars" not in figure.axes[0].get_title()


def test_several_gaussians_describe_what_one_centroid_cannot():
    """Two classes on one line, each with two modes: a-b-a-b; and a wide class beside a narrow."""
    rng = np.random.default_rng(0)
    modes = [(0, -3.0, 0.2), (1, -1.0, 0.2), (0, 1.0, 0.2), (1, 3.0, 0.2)]
    points = np.concatenate([rng.normal(mean, std, (200, 2)) for _, mean, std in modes])
    label = np.repeat([index for index, *_ in modes], 200)
    one, centroids, gaussians = fit(points.astype(np.float32), label, ["a", "b"], 2)
    right = [
        (each.similarity(points).max(2).argmax(1) == label).mean()
        for each in (one, centroids, gaussians)
    ]
    assert right[0] < 0.6 and right[1] > 0.99 and right[2] > 0.99
    normal = torch.distributions.Normal(
        torch.tensor(gaussians.means), torch.tensor(gaussians.variances).sqrt()
    )
    density = normal.log_prob(torch.tensor(points)[:, None, None]).sum(-1)
    constant = density - torch.tensor(gaussians.similarity(points))
    torch.testing.assert_close(constant, torch.full_like(constant, -np.log(2 * np.pi)))


@pytest.mark.parametrize("margins", [(0.0, 0.0, 0.0, 0.0), (0.25, 0.0, 0.0, 0.5)])
def test_class_mix_shows_the_first_crops_of_the_run_and_their_margins(
    trained_runs, monkeypatch, margins
):
    opts = ["SELF_TRAINING.IGNORE_MARGINS", margins, "SELF_TRAINING.IGNORE_TOP", 0.0]
    opts += ["SELF_TRAINING.IGNORE_BOTTOM", 0.0]
    networks = load_networks(trained_runs["daformer_gauss"], opts=opts)
    seen = []
    label = PseudoLabels.__call__

    def spy(pseudo_labels, logits, target):
        seen.append(target)
        return label(pseudo_labels, logits, target)

    monkeypatch.setattr(PseudoLabels, "__call__", spy)
    batches = islice(build_paired_loader(networks.cfg), 2)
    class_mix_figure(networks, number=3)  # of two iterations
    for target, batch in zip(seen, batches, strict=True):
        assert torch.equal(target.images, networks.student.normalize(batch["target"]))
        valid = [r.get("valid", torch.ones(64, 64)).float() for r in batch["target"]]
        assert torch.equal(target.weight, torch.stack(valid))
        assert target.weight.all() != any(margins)


def _grid(truth):
    return truth[2::4, 2::4]  # the pixel in the middle of each cell


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projection_keeps_two_far_groups_apart(method):
    points = np.random.default_rng(0).normal(0, 0.1, (20, 6)).astype(np.float32)
    points[::2] += 20
    plane = project(points, method)
    assert plane.shape == (20, 2)
    inner = max(np.ptp(plane[::2], axis=0).max(), np.ptp(plane[1::2], axis=0).max())
    assert np.linalg.norm(plane[::2].mean(0) - plane[1::2].mean(0)) > inner


def test_projection_refuses_unknown_methods_and_too_few_points():
    with pytest.raises(ValueError, match=r"tsne.*pca"):
        project(np.zeros((9, 3), np.float32), "umap")
    with pytest.raises(ValueError, match="at least 4"):
        project(np.zeros((3, 3), np.float32), "pca")


def test_frequencies_are_those_of_the_labels(gauss):
    found = frequencies(gauss.cfg, draws=2000)
    scenes = load_scenes(gauss.cfg, "tiny_source", 6)
    pixels = np.array([[(s.truth == c).sum() for c in range(4)] for s in scenes])
    np.testing.assert_allclose(found.pixels, pixels.sum(0) / pixels.sum())
    share = found.pixels
    temperature = gauss.cfg.DATALOADER.RARE_CLASS.TEMPERATURE
    expected = np.exp((1 - share) / temperature - ((1 - share) / temperature).max())
    np.testing.assert_allclose(found.asked, expected / expected.sum())
    assert found.images.tolist() == (pixels > 0).sum(0).tolist()
    np.testing.assert_allclose(found.shown, (pixels > 0).mean(0), atol=0.05)


def test_where_no_class_is_asked_for_there_is_nothing_to_show(tiny_cfg):
    with pytest.raises(ValueError, match=r"RARE_CLASS\.ENABLED is False: every image"):
        frequencies(tiny_cfg("daformer", "DATALOADER.RARE_CLASS.ENABLED", False))


@pytest.mark.parametrize("images", [1, 1000])
def test_the_legend_of_rare_classes_covers_neither_the_axis_nor_its_label(tiny_cfg, images):
    share = np.array([0.6, 0.2, 0.15, 0.05])
    found = Frequencies(pixels=share, asked=share, shown=share, images=np.full(4, images))
    figure = rare_class_figure(tiny_cfg("daformer"), found)
    FigureCanvasAgg(figure).draw()
    (axes,), (legend,) = figure.axes, figure.legends
    boxes = [axes.xaxis.label.get_window_extent(), axes.get_window_extent()]
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)


def test_usage_and_nearest_pixels_are_those_of_a_slow_loop(gauss):
    bank = gauss.student.prototype_head.prototypes
    bank.started.copy_(torch.tensor([True, True, True, False]))
    found = inspect(gauss, number=6, patches=2)
    names = gauss.metadata.stuff_classes
    assert [*found.by_class, *found.waiting] == list(names) and found.waiting == ["box"]
    count, best, won = {}, {}, {}
    for role, name in (("source", "tiny_source"), ("target", "tiny_val")):
        for scene in load_scenes(gauss.cfg, name, 6):
            pixels = embed(gauss.student, scene.record).flatten(1).t()
            similarity = bank.similarity(pixels)
            for n, c in enumerate(_grid(scene.truth).ravel()):
                if c != 255 and bank.started[c]:
                    k = int(similarity[n, c].argmax())
                    key = (names[c], k + 1)
                    count.setdefault(key, {"source": 0, "target": 0})[role] += 1
                    best[key] = max(best.get(key, -1e9), float(similarity[n, c, k]))
                    likeness = similarity[n].clone()
                    likeness[~bank.started] = -1e9
                    winner = divmod(int(likeness.argmax()), likeness.shape[1])
                    won.setdefault((role, *winner), []).append(winner[0] == c)
    for role, accuracy in found.accuracy.items():
        right = [each for key, pixels in won.items() if key[0] == role for each in pixels]
        assert accuracy == pytest.approx(np.mean(right))
    for prototype in found.prototypes:
        key = (prototype.class_name, prototype.number)
        assert prototype.pixels == count.get(key, {"source": 0, "target": 0})
        place = (names.index(key[0]), prototype.number - 1)
        purity = {r: np.mean(won[(r, *place)]) for r in ("source", "target") if (r, *place) in won}
        assert prototype.purity == pytest.approx(purity)
        if key in best:
            assert prototype.nearest[0].similarity == pytest.approx(best[key])
            assert len({patch.file for patch in prototype.nearest}) == len(prototype.nearest)
            place = prototype.nearest[0]
            truth = read_label(place.file.replace(".png", "_label.png"))
            height, width = truth.shape
            at = truth[int(place.y * height) // 4 * 4 + 2, int(place.x * width) // 4 * 4 + 2]
            assert names[at] == prototype.class_name
        else:
            assert not prototype.used and prototype.spread is None


def test_distances_and_neighbours_are_scipys(gauss):
    bank = gauss.student.prototype_head.prototypes
    bank.started.copy_(torch.tensor([True, True, True, False]))
    found = inspect(gauss, number=1)
    mean = bank.mean[:3].flatten(0, 1).double().numpy()
    distance = cdist(mean, mean) / np.sqrt(mean.shape[1])  # root mean square over channels
    np.testing.assert_allclose(found.distances, distance, atol=1e-12)
    owner = np.array([p.class_name for p in found.prototypes])
    for prototype, own in zip(found.prototypes, distance):
        same = owner == prototype.class_name
        nearest = np.where(same, np.inf, own).argmin()
        assert prototype.sibling == pytest.approx(np.sort(own[same])[1])  # the first is itself
        assert (prototype.other, prototype.other_class) == (own[nearest], owner[nearest])
    bank.started.copy_(torch.tensor([True, False, False, False]))
    assert {(p.other, p.other_class) for p in inspect(gauss, number=1).prototypes} == {(None, None)}


def test_drift_is_the_root_mean_square_of_the_way_since_the_start_and_since_a_checkpoint(
    gauss, tmp_path
):
    """Four channels: way (3, 0, 0, 0) is 1.5 a channel, (1, 1, 1, 1) is 1."""
    bank = gauss.student.prototype_head.prototypes
    bank.started.copy_(torch.tensor([True, True, True, False]))
    bank.mean.zero_()
    bank.start_mean.zero_()
    bank.start_mean[0, 0, : bank.mean.shape[-1] // 4] = 3.0
    earlier = torch.zeros_like(bank.mean)
    earlier[0, 1], earlier[1, 2] = 1.0, -2.0
    names = ("prototype_head.prototypes.mean", "prototype_head.prototypes.started")
    then = dict(zip(names, (earlier, torch.tensor([True, True, False, False]))))
    torch.save({"model": then}, tmp_path / "before.pth")
    found = inspect(gauss, number=1, weights=[tmp_path / "before.pth"])
    drift = {(p.class_name, p.number): p.drift for p in found.prototypes}
    assert found.waiting == ["box"] and len(drift) == 9
    assert drift["ground", 1] == {"start": 1.5, "before": 0.0}
    assert drift["ground", 2] == {"start": 0.0, "before": 1.0}
    assert drift["hedge", 3] == {"start": 0.0, "before": 2.0}
    assert drift["sky", 1] == {"start": 0.0}


def test_inspection_is_written_as_table_json_and_pictures(trained_runs, tmp_path, capsys):
    run = str(trained_runs["daformer_gauss"])
    words = ["--run", run, "--images", "2", "--output", str(tmp_path / "out")]
    inspect_prototypes.main(words)
    text = capsys.readouterr().out
    content = json.loads((tmp_path / "out/prototypes.json").read_text())
    for word in ("usage", "drift from", "start", "model_0000001", "Dead: none"):
        assert word in text
    assert "model_0000003" not in text  # is model_final.pth: a drift of 0 by construction
    assert max(map(len, text.splitlines())) <= 130
    assert len(content["distances"]) == len(content["prototypes"])
    for name in ("gallery.png", "distances.png"):
        assert Image.open(tmp_path / "out" / name).width > 300


def test_drift_is_measured_from_earlier_checkpoints_of_the_run_alone(tmp_path):
    for number in ("0000001", "0000003", "0000005"):
        (tmp_path / f"model_{number}.pth").touch()
    (tmp_path / "model_0000002.old.pth").touch()  # of the run that this one has replaced

    def found(*words: str) -> list[str]:
        args = inspect_prototypes.parse_args(["--run", str(tmp_path), *words])
        return [path.stem for path in inspect_prototypes.earlier_checkpoints(args)]

    assert found() == ["model_0000001", "model_0000003"]
    assert found("--weights", str(tmp_path / "model_0000003.pth")) == ["model_0000001"]
    selected = tmp_path / "model_selected_on_labels.pth"
    torch.save({"model": {}, "trainer": {"iteration": 3}}, selected)
    assert found("--weights", str(selected)) == ["model_0000001"]
    (tmp_path / "model_final.pth").touch()
    assert found() == ["model_0000001", "model_0000003", "model_0000005"]


def test_inspection_of_a_run_without_prototypes_is_refused(trained_runs, capsys):
    with pytest.raises(SystemExit, match="2"):
        inspect_prototypes.main(["--run", str(trained_runs["source_only"])])
    assert "no prototypes" in capsys.readouterr().err


def test_inspection_of_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        inspect_prototypes.main(["--run", str(tmp_path / "typo")])
    assert "no run, config or weight file at" in capsys.readouterr().err


class Asked(Exception):
    """Ends a tool where its figure would be made."""


def asked(monkeypatch, main, words, function: str) -> dict:
    """The arguments, by name, with which a tool calls a function of mpcl."""
    module, _, name = f"mpcl.{function}".rpartition(".")
    signature = python.signature(getattr(import_module(module), name))

    def spy(*args, **options):
        raise Asked(signature.bind(*args, **options).arguments)

    network = SimpleNamespace(cfg=SimpleNamespace(DATASETS=SimpleNamespace(TEST=("first_val",))))
    monkeypatch.setattr("mpcl.predict.loading.load_networks", lambda *_, **__: network)
    monkeypatch.setattr(f"{module}.{name}", spy)
    with pytest.raises(Asked) as caught:
        main(words)
    return caught.value.args[0]


RUN = ["--run", "somewhere"]
FIGURES = {
    "compare": (
        ["compare", "one", "two", "--images", "7", "--width", "99", "--errors"],
        "visualization.comparison.comparison",
        {"number": 7, "width": 99, "errors": True},
    ),
    "activations": (
        ["activations", *RUN, "--class-name", "sky", "--images", "7", "--dataset", "other_val"],
        "visualization.activations.activation_figure",
        {"class_name": "sky", "number": 7, "dataset": "other_val"},
    ),
    "activations of the first set": (
        ["activations", *RUN, "--class-name", "sky"],
        "visualization.activations.activation_figure",
        {"dataset": "first_val"},
    ),
    "features": (
        ["features", *RUN, "--method", "pca", "--images", "7", "--pixels", "9", "--classes", "sky"],
        "visualization.feature_map.feature_figure",
        {"method": "pca", "number": 7, "per_class": 9, "classes": ["sky"]},
    ),
    "clusterings": (
        ["clusterings", *RUN, "--images", "7", "--pixels", "9", "--prototypes", "4"],
        "visualization.clusterings.clustering_figure",
        {"number": 7, "per_class": 9, "prototypes": 4},
    ),
    "class-mix": (
        ["class-mix", *RUN, "--images", "7"],
        "visualization.training_views.class_mix_figure",
        {"number": 7},
    ),
    "pseudo-labels": (
        ["pseudo-labels", *RUN, "--images", "7"],
        "visualization.training_views.pseudo_label_figure",
        {"number": 7},
    ),
}


@pytest.mark.parametrize(("words", "function", "expected"), FIGURES.values(), ids=FIGURES)
def test_what_a_command_line_asks_for_reaches_the_figure(
    tmp_path, monkeypatch, words, function, expected
):
    output = ["--output", str(tmp_path / "x.png")]
    found = asked(monkeypatch, visualize.main, [words[0], *output, *words[1:]], function)
    assert {key: found[key] for key in expected} == expected


def test_curves_are_of_the_network_and_metric_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mpcl.evaluation.runs.read_experiments", lambda runs: [])
    words = ["curves", "run", "--network", "student", "--metric", "IoU-sky"]
    words += ["--output", str(tmp_path / "x.png")]
    found = asked(monkeypatch, visualize.main, words, "visualization.score_curves.score_figure")
    assert (found["network"], found["metric"]) == ("student", "IoU-sky")


def test_rare_classes_are_drawn_as_the_command_line_says(tiny_cfg, tmp_path, monkeypatch):
    config = tmp_path / "mine.yaml"
    config.write_text(tiny_cfg("source_only").dump())
    words = ["rare-classes", "--config-file", str(config), "--output", str(tmp_path / "x.png")]
    words += ["DATALOADER.RARE_CLASS.TEMPERATURE", "0.125"]
    found = asked(monkeypatch, visualize.main, words, "visualization.rare_classes.frequencies")
    assert found["cfg"].DATALOADER.RARE_CLASS.TEMPERATURE == 0.125


def test_an_inspection_looks_at_what_is_asked_for(tmp_path, monkeypatch):
    since = [tmp_path / "a.pth", tmp_path / "b.pth"]
    words = ["--run", str(tmp_path), "--images", "7", "--patches", "2"]
    words += ["--output", str(tmp_path / "out"), "--since", *map(str, since)]
    function = "visualization.prototype_inspection.inspect"
    found = asked(monkeypatch, inspect_prototypes.main, words, function)
    assert (found["number"], found["patches"], found["weights"]) == (7, 2, since)


def test_a_report_shows_as_many_and_as_wide_pictures_as_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mpcl.evaluation.runs.find_runs", lambda folders: folders)
    words = [str(tmp_path), "--images", "7", "--patches", "2", "--width", "99"]
    found = asked(monkeypatch, report.main, words, "visualization.report.page.write_report")
    assert {key: found[key] for key in ("images", "patches", "width")} == {
        **{"images": 7, "patches": 2, "width": 99}
    }
    assert found["output"] == tmp_path / "report.html"
