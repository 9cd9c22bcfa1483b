"""What has to be said about runs that stand beside each other in a table."""

from collections.abc import Iterator, Sequence

from .run_record import read_confusions, read_sessions
from .runs import NETWORKS, Experiment, Run, differences, scored_classes

_FAR_APART = 3.0  # points between teacher and student from which on a reader should know of it
# Settings that must agree for scores to be comparable; others are what is compared.
_SHARED = (
    *("DATASETS.TEST", "TEST.CLASS_SUBSETS", "TEST.AUG.ENABLED"),
    *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH"),
)


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """Sentences on what is left out, and on what does not stand for the same thing."""
    found = [note for experiment in experiments for note in _notes_on_seeds(experiment)]
    first, *others = [experiment for experiment in experiments if experiment.finished] or [None]
    for experiment in others:
        found += _notes_on_pair(first, experiment)
    return list(dict.fromkeys(found))


def _notes_on_seeds(experiment: Experiment) -> Iterator[str]:
    for run in experiment.runs:
        if run.scores is None and not run.config["DATASETS"]["TEST"]:
            yield (
                f"{experiment.name}, seed {run.seed} ({run.folder}) has no scores, DATASETS.TEST "
                "being empty, and is left out."
            )
        elif run.scores is None:
            yield (
                f"{experiment.name}, seed {run.seed} ({run.folder}) is unfinished, iteration "
                f"{run.iteration} of {run.max_iter}, and left out."
            )
    for run in experiment.finished:
        yield from _notes_on_networks(experiment, run)
        for session in read_sessions(run.folder):
            for key, (then, now) in (session.get("resumed_with") or {}).items():
                yield (
                    f"{experiment.name}, seed {run.seed} went on with another {key}: {then} before "
                    f"{session['started']}, {now} after it."
                )
        first = experiment.finished[0]
        for key, (one, other) in differences(first.config, run.config).items():
            yield (
                f"{experiment.name}: seeds {first.seed} and {run.seed} differ in {key}, "
                f"{one} and {other}; their mean mixes both."
            )


def _notes_on_networks(experiment: Experiment, run: Run) -> Iterator[str]:
    """Where the two networks of a run are far from each other, and what that comes from."""
    headline = run.metrics[0]
    for dataset, networks in run.scores.items():
        teacher, student = (networks.get(name, {}).get(headline) for name in NETWORKS)
        if teacher is None or student is None or abs(teacher - student) < _FAR_APART:
            continue
        statistics = run.config.get("SELF_TRAINING", {}).get("TEACHER_STATISTICS")
        if teacher < student:
            reason = "The teacher averages the student's weights, and lags behind in a short run"
        elif statistics == "target":
            reason = (
                "The teacher's batch norm knows the target, the student's mixes both domains "
                "(SELF_TRAINING.TEACHER_STATISTICS target)"
            )
        else:
            reason = "The teacher averages the student's weights, which swing from step to step"
        yield (
            f"{experiment.name}, seed {run.seed}: teacher {teacher:.2f} and student {student:.2f} "
            f"{headline} on {dataset} are far apart. {reason}."
        )


def _notes_on_pair(first: Experiment, other: Experiment) -> Iterator[str]:
    """What keeps two experiments from being comparable."""
    subject = f"NOT COMPARABLE as it stands: {first.name} and {other.name}"
    one, two = first.finished[0], other.finished[0]
    if not {run.seed for run in first.finished} & {run.seed for run in other.finished}:
        yield f"{first.name} and {other.name} have no seed in common: nothing can be paired."
    changed = differences(one.config, two.config)
    for key in _SHARED:
        if key in changed:
            yield f"{subject} differ in {key}, {changed[key][0]} and {changed[key][1]}."
    for dataset in one.scores:
        classes = [set(scored_classes([run], dataset)) for run in (one, two)]
        if dataset in two.scores and classes[0] != classes[1]:
            yield f"{subject} were scored on other classes of {dataset}."
    truths = [_labelled_pixels(run) for run in (one, two)]
    for dataset in truths[0].keys() & truths[1].keys():
        if truths[0][dataset] != truths[1][dataset]:
            yield f"{subject} were scored on other labels, or other images, of {dataset}."


def _labelled_pixels(run: Run) -> dict[str, list[int]]:
    """Of each set that the run was scored on last, the pixels of each class."""
    found = read_confusions(run.folder)
    return {each.dataset: [sum(row) for row in each.matrix] for each in found}
