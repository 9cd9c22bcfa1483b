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


def test_an_installed_package_brings_its_configs_and_types(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
    subprocess.run([*build, "--build-lib", str(tmp_path / "lib")], cwd=ROOT, check=True)
    packed = tmp_path / "lib/mpcl"
    assert {p.relative_to(packed / "configs") for p in (packed / "configs").rglob("*.yaml")} == {
        p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml")
    }
    assert (packed / "py.typed").is_file()
    ask = (
        "import mpcl; print(mpcl.__file__, mpcl.get_config('streets/mic').MODEL.META_ARCHITECTURE)"
    )
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ask],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.split() == [str(packed / "__init__.py"), "HRDASegmentor"]


def test_an_installed_package_brings_the_tools_as_commands(tmp_path):
    setup = [sys.executable, "setup.py", "-q"]
    build = ["build", "--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "lib")]
    info = ["egg_info", "--egg-base", str(tmp_path)]
    subprocess.run([*setup, *build, *info], cwd=ROOT, check=True)
    commands = PathDistribution(tmp_path / "mpcl.egg-info").entry_points.select(
        group="console_scripts"
    )
    assert {"mpcl-train", "mpcl-predict", "mpcl-install-detectron2"} <= commands.names
    for command in commands:
        call = f"import sys; sys.argv[1:] = ['--help']; import {command.module}; "
        said = subprocess.run(
            [sys.executable, "-c", f"{call}{command.module}.{command.attr}()"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")},
            check=True,
            capture_output=True,
            text=True,
        )
        assert said.stdout.startswith(f"usage: {command.attr}.py "), command


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
