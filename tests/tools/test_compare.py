"""Statistics over seeds, on run folders written as training writes them."""

import csv
import json
from pathlib import Path

import compare as tool
import numpy as np
import pytest
from run_fixtures import write_run
from scipy import stats

from mpcl.evaluation.run_record import write_confusion
from mpcl.evaluation.runs import (
    find_runs,
    read_experiment,
    read_experiments,
    read_run,
    scores_by_dataset,
)
from mpcl.evaluation.tables import compare, mean_and_sd, summary

SUBSETS = [["16", ["road", "wall"]], ["13", ["road"]]]


def write_scores(
    folder: Path, seed: int, scores: dict, *, finished=True, max_iter=100, **test
) -> None:
    """``scores``: flattened final results; before them an earlier evaluation and losses."""
    rows = [{"iteration": 49, "loss_sem_seg": 1.0}, dict.fromkeys(scores, 1.0) | {"iteration": 50}]
    write_run(
        folder,
        [*rows, {"iteration": max_iter, **scores}] if finished else rows,
        SEED=seed,
        DATASETS={"TEST": test.get("sets", ["cityscapes_fine_sem_seg_val"])},
        TEST={"CLASS_SUBSETS": test.get("subsets", []), "OUTPUT": test.get("output", "classifier")},
        SELF_TRAINING={"TEACHER_STATISTICS": test.get("statistics", "student")},
        SOLVER={"MAX_ITER": max_iter, "IMS_PER_BATCH": 2, "BASE_LR": test.get("lr", 0.1)},
    )
    with (folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 1')  # cut by a kill


def flat(teacher: float | None, student: float, metric: str = "mIoU") -> dict[str, float]:
    if teacher is None:
        return {f"sem_seg/{metric}": student}
    return {f"sem_seg/{metric}": teacher, f"sem_seg_student/{metric}": student}


@pytest.fixture
def two_methods(tmp_path):
    teacher = {"base": [60.0, 62.5, 61.0], "ours": [63.0, 63.5, 66.0]}
    student = {"base": [59.0, 60.0, 61.5], "ours": [62.0, 64.0, 63.0]}
    for name in teacher:
        for seed, scores in enumerate(zip(teacher[name], student[name])):
            write_scores(tmp_path / name / f"seed_{seed}", seed, flat(*scores))
    return tmp_path / "base", tmp_path / "ours", teacher, student


def find(rows, run, network, metric="mIoU"):
    (row,) = [r for r in rows if (r.run, r.network, r.metric) == (run, network, metric)]
    return row


def test_mean_and_sample_deviation_are_scipys(two_methods):
    base, ours, teacher, student = two_methods
    rows = compare(read_experiments([base, ours]))
    for network, values in (("teacher", teacher), ("student", student)):
        for run in ("base", "ours"):
            row = find(rows, run, network)
            expected = stats.describe(values[run])  # ddof = 1
            assert row.n == 3 and row.mean == pytest.approx(expected.mean)
            assert row.sd == pytest.approx(np.sqrt(expected.variance))
            assert row.dataset == "cityscapes_fine_sem_seg_val"


def test_differences_are_paired_by_seed_as_in_the_paired_t_test(two_methods):
    base, ours, teacher, _ = two_methods
    row = find(compare(read_experiments([base, ours])), "ours", "teacher")
    t = stats.ttest_rel(teacher["ours"], teacher["base"]).statistic
    assert (row.reference, row.pairs) == ("base", 3)
    assert row.difference / (row.difference_sd / np.sqrt(3)) == pytest.approx(t)
    reference = find(compare(read_experiments([base, ours])), "base", "teacher")
    assert reference.reference is reference.difference is reference.pairs is None


def test_only_common_seeds_are_paired_and_unfinished_runs_are_named(tmp_path, capsys):
    for seed in (0, 1):
        write_scores(tmp_path / "base" / f"seed_{seed}", seed, flat(50.0 + seed, 40.0))
    write_scores(tmp_path / "ours" / "seed_1", 1, flat(54.0, 40.0))
    write_scores(tmp_path / "ours" / "seed_2", 2, flat(60.0, 40.0))
    write_scores(tmp_path / "ours" / "seed_0", 0, flat(99.0, 99.0), finished=False)
    row = find(compare(read_experiments([tmp_path / "base", tmp_path / "ours"])), "ours", "teacher")
    assert (row.n, row.mean, row.pairs, row.difference) == (2, 57.0, 1, 3.0)
    assert row.difference_sd is None
    tool.main([str(tmp_path / "base"), str(tmp_path / "ours")])
    text = capsys.readouterr().out
    assert "+3.00" in text and "± -" not in text and "99" not in text
    assert f"ours, seed 0 ({tmp_path}/ours/seed_0) is unfinished, iteration 50 of 100" in text


def test_seeds_of_which_none_is_common_are_not_paired(tmp_path, capsys):
    write_scores(tmp_path / "base" / "seed_0", 0, flat(50.0, 40.0))
    write_scores(tmp_path / "ours" / "seed_1", 1, flat(54.0, 40.0))
    tool.main([str(tmp_path / "base"), str(tmp_path / "ours")])
    assert "base and ours have no seed in common" in capsys.readouterr().out


def test_a_seed_that_went_on_with_other_settings_is_noted(tmp_path, capsys):
    folder = tmp_path / "ours" / "seed_0"
    write_scores(folder, 0, flat(50.0, 40.0))
    session = dict.fromkeys(("started", "device", "processes"), "then")
    session |= {"command": [], "versions": {}, "resumed_with": {"SOLVER.BASE_LR": [0.1, 0.2]}}
    (folder / "run.json").write_text(json.dumps({"sessions": [session]}))
    tool.main([str(tmp_path / "ours")])
    expected = "ours, seed 0 went on with another SOLVER.BASE_LR: 0.1 before then, 0.2 after it"
    assert expected in capsys.readouterr().out


def test_a_metric_that_no_run_has_is_refused(two_methods, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(two_methods[0]), "--metric", "mIoU", "--metric", "nonsense"])
    error = capsys.readouterr().err
    assert "no run has the metric nonsense; known: mIoU" in error


def test_a_run_without_test_sets_is_not_called_unfinished(tmp_path, capsys):
    write_scores(tmp_path / "none", 0, {}, sets=[])
    tool.main([str(tmp_path / "none")])
    said = capsys.readouterr().out
    assert "has no scores, DATASETS.TEST being empty" in said and "unfinished" not in said


def test_classes_of_own_data_keep_their_order(tmp_path, capsys):
    scores = {f"sem_seg/IoU-{name}": 50.0 for name in ("apple", "box", "road")}
    write_scores(tmp_path / "own", 0, scores | flat(None, 50.0), sets=["own_val"])
    classes = {"names": ["road", "box", "apple"], "colors": [[0, 0, 0]] * 3, "label_map": None}
    (tmp_path / "own" / "classes.json").write_text(json.dumps(classes))
    tool.main([str(tmp_path / "own"), "--per-class"])
    table = capsys.readouterr().out.split("class IoU")[1]
    assert table.index("road") < table.index("box") < table.index("apple")


def test_one_run_has_no_deviation_and_no_reference(tmp_path, capsys):
    write_scores(tmp_path / "alone", 4, flat(None, 43.21))
    tool.main([str(tmp_path / "alone")])
    text = capsys.readouterr().out
    assert "43.21" in text and "student mIoU" in text and "One seed each" in text
    assert not any(word in text for word in ("±", "teacher", "in use", "Minus"))
    assert mean_and_sd([]) == (None, None)


def test_subsets_come_first_and_beside_each_other(tmp_path, capsys):
    scores = flat(60.0, 59.0, "mIoU-16") | flat(70.0, 69.0, "mIoU-13") | flat(50.0, 49.0)
    scores |= flat(80.0, 79.0, "IoU-road") | flat(40.0, 39.0, "IoU-wall")
    scores |= flat(7.77, 8.88, "IoU-terrain")
    write_scores(tmp_path / "synthia", 0, scores, subsets=SUBSETS)
    tool.main([str(tmp_path / "synthia"), "--per-class"])
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "teacher" in line)
    names = [cell.strip() for cell in header.split("|")[3:6]]
    assert names == ["teacher mIoU-16", "teacher mIoU-13", "teacher mIoU"]
    cells = {line.split("|")[1].strip(): line for line in lines if line.count("|") > 2}
    assert cells["terrain"].count("absent") == 2 and "7.77" not in "".join(lines)
    assert "80.00" in cells["road"] and "39.00" in cells["wall"]
    # In the order of the classes, not of the alphabet.
    assert list(cells).index("road") < list(cells).index("wall") < list(cells).index("terrain")


def test_each_data_set_has_a_table_of_its_own(tmp_path, capsys):
    several = {
        "acdc_sem_seg_val/sem_seg/mIoU": 50.0,
        "acdc_sem_seg_val/sem_seg_student/mIoU": 49.0,
        "acdc_fog_sem_seg_val/sem_seg/mIoU": 60.0,
        "acdc_fog_sem_seg_val/sem_seg_student/mIoU": 59.0,
    }
    write_scores(tmp_path / "both", 0, several, sets=["acdc_sem_seg_val"])
    write_scores(tmp_path / "one", 0, flat(40.0, 39.0), sets=["acdc_sem_seg_val"])
    tool.main([str(tmp_path / "both"), str(tmp_path / "one")])
    whole, fog = capsys.readouterr().out.split("## acdc_fog_sem_seg_val")
    assert "50.00" in whole and "40.00" in whole and "-10.00" in whole
    assert "60.00" in fog and "40.00" not in fog


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"max_iter": 200}, "SOLVER.MAX_ITER, 100 and 200"),
        ({"sets": ["acdc_sem_seg_val"]}, "DATASETS.TEST"),
        ({"subsets": SUBSETS}, "TEST.CLASS_SUBSETS"),
    ],
)
def test_runs_that_do_not_stand_for_the_same_are_not_mixed_silently(tmp_path, capsys, change, key):
    write_scores(tmp_path / "a", 0, flat(40.0, 39.0))
    write_scores(tmp_path / "b", 0, flat(50.0, 49.0), **change)
    tool.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert f"NOT COMPARABLE as it stands: a and b differ in {key}" in capsys.readouterr().out


def test_other_labels_of_the_same_set_are_noted(tmp_path, capsys):
    dataset, matrices = (
        "cityscapes_fine_sem_seg_val",
        {"a": [[5, 1], [0, 4]], "b": [[4, 2], [4, 0]]},
    )
    for name, matrix in {**matrices, "c": [[9, 1], [0, 4]]}.items():
        write_scores(tmp_path / name, 0, flat(40.0, 39.0))
        folder = tmp_path / name / "inference" / dataset
        write_confusion(folder, "teacher", ["road", "wall"], np.array(matrix), 1.0)
    tool.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "NOT COMPARABLE" not in capsys.readouterr().out
    tool.main([str(tmp_path / "a"), str(tmp_path / "c")])
    assert f"were scored on other labels, or other images, of {dataset}" in capsys.readouterr().out


def test_other_classes_of_the_same_set_are_noted(tmp_path, capsys):
    write_scores(tmp_path / "a", 0, flat(40.0, 39.0, "IoU-road"))
    write_scores(tmp_path / "b", 0, flat(40.0, 39.0, "IoU-sky"))
    tool.main([str(tmp_path / "a"), str(tmp_path / "b"), "--per-class"])
    assert "a and b were scored on other classes" in capsys.readouterr().out


def test_seeds_that_differ_in_more_than_the_seed_are_noted(tmp_path, capsys):
    write_scores(tmp_path / "a" / "seed_0", 0, flat(40.0, 39.0))
    write_scores(tmp_path / "a" / "seed_1", 1, flat(40.0, 39.0), lr=0.2)
    write_scores(tmp_path / "b", 2, flat(50.0, 49.0))
    tool.main([str(tmp_path / "a"), str(tmp_path / "b")])
    text = capsys.readouterr().out
    assert "seeds 0 and 1 differ in SOLVER.BASE_LR, 0.1 and 0.2" in text
    assert "Minus" not in text  # there are no common seeds


def test_csv_holds_all_digits_and_agrees_with_the_rows(two_methods, tmp_path, capsys):
    base, ours, teacher, _ = two_methods
    file = tmp_path / "table.csv"
    tool.main([str(base), str(ours), "--network", "teacher", "--csv", str(file)])
    assert "student mIoU  " not in capsys.readouterr().out
    one, other = csv.DictReader(file.open())
    assert (one["run"], one["reference"], one["difference"]) == ("base", "", "")
    assert float(other["mean"]) == np.mean(teacher["ours"])
    assert float(other["difference_sd"]) == pytest.approx(
        np.std(np.subtract(teacher["ours"], teacher["base"]), ddof=1)
    )


def test_metric_chooses_one(tmp_path, capsys):
    write_scores(tmp_path / "a", 0, flat(40.0, 39.0) | flat(90.0, 89.0, "pACC"))
    tool.main([str(tmp_path / "a"), "--metric", "pACC"])
    text = capsys.readouterr().out
    assert "90.00" in text and "40.00" not in text


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("one", "two"):
        write_scores(tmp_path / parent / "daformer", 0, flat(40.0, 39.0))
    folders = [tmp_path / parent / "daformer" for parent in ("one", "two")]
    assert [e.name for e in read_experiments(folders)] == list(map(str, folders))


def test_a_run_that_holds_others_is_refused(two_methods):
    folder = two_methods[0]
    run = next(folder.glob("*/config.yaml"))
    (folder / "config.yaml").write_text(run.read_text())
    for read in (read_experiments, find_runs):
        with pytest.raises(ValueError, match=rf"{folder.name} is a run, and holds others, such as"):
            read([folder])


def test_wrong_folders_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err
    for name in ("seed_0", "copy"):
        write_scores(tmp_path / "a" / name, 0, flat(40.0, 39.0))
    with pytest.raises(ValueError, match="have the same SEED 0"):
        read_experiment(tmp_path / "a")
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        read_run(tmp_path)


def test_results_of_one_and_of_several_sets_read_alike():
    one = scores_by_dataset({"sem_seg/IoU-a/b": 1.0, "total_loss": 2.0}, ["x_sem_seg_val"])
    assert one == {"x_sem_seg_val": {"student": {"IoU-a/b": 1.0}}}
    many = scores_by_dataset(
        {"x_sem_seg_val/sem_seg/mIoU": 1.0, "x_sem_seg_val/sem_seg_student/mIoU": 2.0}, ["y"]
    )
    assert many == {"x_sem_seg_val": {"teacher": {"mIoU": 1.0}, "student": {"mIoU": 2.0}}}


def test_summary_never_puts_validation_and_test_in_one_column():
    scores = {f"x_sem_seg_{s}": {"student": {"mIoU": v}} for s, v in (("val", 1.5), ("test", 2.5))}
    val, test = summary(scores, ["mIoU"]).split("\n\n")
    assert "1.50" in val and "2.50" not in val and "set (val)" in val
    assert "2.50" in test and "1.50" not in test and "set (test)" in test


def test_each_run_is_compared_by_the_network_that_it_is_used_with(tmp_path, capsys):
    write_scores(tmp_path / "source_only", 0, flat(None, 15.9))
    write_scores(tmp_path / "daformer", 0, flat(42.5, 2.375))
    tool.main([str(tmp_path / "source_only"), str(tmp_path / "daformer")])
    means, differences = capsys.readouterr().out.split("Minus source_only")
    assert means.index("in use mIoU") < means.index("student mIoU")
    assert differences.index("+26.60") < differences.index("-13.53")
    assert "In use: the teacher where a run has one" in differences
    write_scores(tmp_path / "prototypes", 0, flat(50.0, 40.0), output="prototypes")
    rows = compare(read_experiments([tmp_path / "daformer", tmp_path / "prototypes"]))
    assert find(rows, "prototypes", "in use").mean == 40.0  # prototypes are the student's


@pytest.mark.parametrize(
    ("teacher", "student", "statistics", "reason"),
    [
        (42.5, 38.0, "target", "batch norm knows the target"),
        (42.5, 38.0, "student", "swing from step to step"),
        (30.0, 38.0, "target", "lags behind in a short run"),
        (42.5, 40.0, "target", None),
    ],
)
def test_networks_of_a_run_that_are_far_apart_are_explained(
    tmp_path, capsys, teacher, student, statistics, reason
):
    write_scores(tmp_path / "a", 0, flat(teacher, student), statistics=statistics)
    tool.main([str(tmp_path / "a")])
    text = capsys.readouterr().out
    if reason is None:
        assert "far apart" not in text
    else:
        assert f"a, seed 0: teacher {teacher:.2f} and student {student:.2f} mIoU" in text
        assert reason in text


def test_other_augmentation_or_batches_keep_runs_from_being_comparable(tmp_path, capsys):
    for name, augmented, batch in (("a", False, 2), ("b", True, 4)):
        write_run(
            tmp_path / name,
            [{"iteration": 100, **flat(40.0, 39.0)}],
            SOLVER={"MAX_ITER": 100, "IMS_PER_BATCH": batch},
            TEST={"CLASS_SUBSETS": [], "AUG": {"ENABLED": augmented}},
        )
    tool.main([str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr().out
    for key in ("TEST.AUG.ENABLED, False and True.", "SOLVER.IMS_PER_BATCH, 2 and 4."):
        assert f"NOT COMPARABLE as it stands: a and b differ in {key}" in said
