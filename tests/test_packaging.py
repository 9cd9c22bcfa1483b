"""What someone gets who installs the package instead of working in a checkout."""

import os
import re
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml
from conftest import CONFIGS

import mpcl
from mpcl.config.shipped import config_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where setup.py has laid the package, its commands and nothing of the checkout."""
    root = tmp_path_factory.mktemp("installed")
    build = ["build", "--build-base", str(root / "build"), "--build-lib", str(root / "lib")]
    setup = [sys.executable, "setup.py", "-q", *build, "egg_info", "--egg-base", str(root)]
    subprocess.run(setup, cwd=ROOT, check=True)
    return root


# Every command's --help in one process, which imports everything once; each says where it begins.
SCRIPT = """
import contextlib, importlib, sys
import mpcl
print(mpcl.__file__, mpcl.get_config("streets/mic").MODEL.META_ARCHITECTURE)
module, *functions = sys.argv[1:]
sys.argv[1:] = ["--help"]
for function in functions:
    with contextlib.suppress(SystemExit):
        getattr(importlib.import_module(module), function)()
"""


def test_an_installed_package_brings_its_configs_types_and_commands(installed):
    packed = installed / "lib/mpcl"
    assert {p.relative_to(packed / "configs") for p in (packed / "configs").rglob("*.yaml")} == {
        p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml")
    }
    assert (packed / "py.typed").is_file()
    entry_points = PathDistribution(installed / "mpcl.egg-info").entry_points
    commands = entry_points.select(group="console_scripts")
    assert {"mpcl-train", "mpcl-predict", "mpcl-install-detectron2"} <= commands.names
    (module,) = {command.module for command in commands}
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, module, *(command.attr for command in commands)],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed / "lib")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stderr == ""  # importing the package gives no warnings
    first, *helps = said.stdout.splitlines()
    assert first.split() == [str(packed / "__init__.py"), "HRDASegmentor"]
    usages = [line.split()[1] for line in helps if line.startswith("usage: ")]
    assert usages == [f"{command.attr}.py" for command in commands]


def test_a_config_of_a_checkout_is_found_by_its_name():
    assert config_folder() == CONFIGS
    file = str(CONFIGS / "synthia/hrda_gauss.yaml")
    assert mpcl.get_config("synthia/hrda_gauss", ["SEED", "7"]) == mpcl.get_cfg_from(
        file, ["SEED", "7"]
    )


@pytest.mark.parametrize("name", ["mic_gaus", "../../../setup", ""])
def test_a_config_that_is_not_there_is_refused(name):
    with pytest.raises(FileNotFoundError, match=r"no config .*mic_gauss"):
        mpcl.get_config(name)


def test_one_version_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert mpcl.__version__ == cited == newest
