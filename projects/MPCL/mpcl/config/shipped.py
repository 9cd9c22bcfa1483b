"""The project's own configs by their names, wherever the package is installed."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from detectron2.config import CfgNode

from .keys import get_cfg_from

_PACKAGE = Path(__file__).parents[1]


def get_config(name: str, opts: Sequence[str] = ()) -> CfgNode:
    """:func:`get_cfg_from` of a config of the project.

    Args:
        name: its path below ``projects/MPCL/configs`` without the ending: ``"mic_gauss"``,
            ``"streets/daformer"``.
        opts: ``KEY VALUE`` pairs.
    Raises:
        FileNotFoundError: the project has no such config; names similar ones.
        ValueError: as :func:`get_cfg_from`.
    """
    folder = config_folder()
    file = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        known = sorted(
            path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
        )
        similar = get_close_matches(name, known, n=3) or known
        raise FileNotFoundError(f"no config {name!r} in {folder}; there are {', '.join(similar)}")
    return get_cfg_from(str(file), opts)


def config_folder() -> Path:
    """``mpcl/configs`` of a wheel; in a checkout the folder beside the package."""
    packed = _PACKAGE / "configs"
    return packed if packed.is_dir() else _PACKAGE.parent / "configs"
