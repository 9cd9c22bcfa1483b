"""Imports point one way, and the mathematics does not know detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "projects" / "MPCL" / "mpcl"
# A room imports from those before it.
ROOMS = [
    "utils",
    "data",
    "structures",
    "self_training",
    "prototypes",
    "losses",
    "modeling",
    "checkpoint",
    "config",
    "evaluation",
    "predict",
    "engine",
    "visualization",
]
PURE = ("utils", "structures", "self_training", "prototypes", "losses")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(module: Path) -> list[tuple[str, int]]:
    """(module, relative level) of every import statement, nested ones included."""
    found = []
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or node.names[0].name, node.level))
    return found


def test_no_module_lies_outside_the_rooms():
    assert {module.parts[0] for module in MODULES} == {*ROOMS, "__init__.py"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in PURE], ids=str)
def test_pure_module_imports_no_framework(module):
    foreign = {"detectron2", "fvcore", "timm", "torchvision", "cv2", "iopath"}
    assert not [name for name, _ in imports(module) if name.split(".")[0] in foreign]


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ROOMS], ids=str)
def test_imports_point_one_way(module):
    own = ROOMS.index(module.parts[0])
    for name, level in imports(module):
        if level == len(module.parts):  # relative to the package itself
            used = name.split(".")[0]
            assert ROOMS.index(used) <= own, f"{module} imports {name} from a higher room"
