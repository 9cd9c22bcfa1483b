"""Imports point one way, and the mathematics does not know detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "projects" / "MPCL" / "mpcl"
LAYERS = [
    {"utils", "views"},
    {"self_training", "prototypes", "losses"},
    {"data", "modeling"},
    {
        "evaluation",
        "config",
        "config_reading",
        "config_validation",
        "preflight",
        "pictures",
        "runs",
        "reporting",
        "submission",
    },
    {"engine"},
    {"predictor", "prediction_files", "network_arguments", "export", "visualization"},
]
PURE = [
    *sorted((PACKAGE / "utils").glob("*.py")),
    *sorted((PACKAGE / "self_training").glob("*.py")),
    *sorted((PACKAGE / "prototypes").glob("*.py")),
    *(
        PACKAGE / name
        for name in ("losses.py", "views.py", "data/rare_class.py", "data/sampler.py")
    ),
    *(PACKAGE / "engine" / name for name in ("step.py", "criterion.py", "metrics.py")),
    *(PACKAGE / "visualization" / name for name in ("canvas.py", "prototype_geometry.py")),
    *(PACKAGE / "engine" / name for name in ("prototype_learning.py", "gradient_share.py")),
]


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, relative level) of every import statement, nested ones included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or node.names[0].name, node.level))
    return found


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pure_module_imports_no_framework(path):
    foreign = {"detectron2", "fvcore", "timm", "torchvision", "cv2", "iopath"}
    assert not [name for name, _ in imports(path) if name.split(".")[0] in foreign]


def layer_of(part: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if part in layer), None)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(PACKAGE.rglob("*.py")) if p.parent != PACKAGE or p.stem != "__init__"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_point_one_way(path):
    inside = path.relative_to(PACKAGE)
    own = layer_of(inside.parts[0].removesuffix(".py"))
    assert own is not None, f"{inside} belongs to no layer"
    for name, level in imports(path):
        if level == len(inside.parts):  # relative to the package itself
            used = layer_of(name.split(".")[0])
            # `config` registers a user's data sets while it reads a file: the one import that looks
            # down late.
            assert used is not None and used <= own, f"{inside} imports {name} from a higher layer"
