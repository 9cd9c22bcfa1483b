"""The installer of Detectron2, with a small fake wheel and site-packages made here."""

import csv
import importlib.util
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


@pytest.fixture
def installer():
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpack_fake_wheel(folder):
    """What pip leaves of the wheel: the package, its metadata, and the stray ``tools``."""
    info = "sal_detectron2-0.7.2.dist-info"
    contents = {
        "detectron2/__init__.py": "__version__ = 'fake'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n",
        "tools/__init__.py": "",
        "tools/train_net.py": "print('the wheel')\n",
    }
    rows = []
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        rows.append([name, "sha256=...", str(len(text))])
    rows.append([f"{info}/RECORD", "", ""])
    with (folder / info / "RECORD").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def site_packages(tmp_path, installer, monkeypatch):
    """An empty site-packages that the installer takes for this Python's."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setattr(installer, "fetch", unpack_fake_wheel)
    monkeypatch.setattr(installer, "uninstall", lambda: None)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def say(*answer):
    return lambda: answer


def test_an_importable_detectron2_is_kept(installer, site_packages, monkeypatch, capsys):
    def refuse(folder):
        raise AssertionError("fetched although there is one")

    monkeypatch.setattr(installer, "fetch", refuse)
    monkeypatch.setattr(installer.util, "find_spec", lambda name: object())
    monkeypatch.setattr(installer, "run_check", say("0.6", "/elsewhere/detectron2/__init__.py"))
    assert installer.main([]) == 0
    assert "detectron2 0.6 works (was there already, kept): /elsewhere/detectron2" in (
        capsys.readouterr().out
    )
    assert names(site_packages) == []


def test_without_one_the_wheel_is_laid_without_its_stray_package(
    installer, site_packages, monkeypatch
):
    monkeypatch.setattr(installer.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installer, "run_check", say("0.7.2", "x/detectron2/__init__.py"))
    assert installer.main([]) == 0
    assert names(site_packages) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    record = (site_packages / "sal_detectron2-0.7.2.dist-info" / "RECORD").read_text()
    assert "detectron2/__init__.py" in record
    assert "tools/" not in record  # or `pip uninstall` would delete someone else's


def test_installing_leaves_a_foreign_tools_alone(installer, site_packages, monkeypatch):
    foreign = site_packages / "tools" / "train_net.py"
    foreign.parent.mkdir()
    foreign.write_text("print('mine')\n")
    monkeypatch.setattr(installer.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installer, "run_check", say("0.7.2", "x/detectron2/__init__.py"))
    assert installer.main([]) == 0
    assert foreign.read_text() == "print('mine')\n"
    assert names(foreign.parent) == ["train_net.py"]


def test_a_folder_in_the_way_is_reported_and_nothing_is_laid(installer, site_packages):
    (site_packages / "sal_detectron2-0.7.2.dist-info").mkdir()
    with pytest.raises(installer.InstallError, match=r"dist-info is in the way"):
        installer.install(site_packages)
    assert names(site_packages) == ["sal_detectron2-0.7.2.dist-info"]


def test_target_lays_the_wheel_into_a_folder_to_be_carried(
    installer, site_packages, tmp_path, capsys
):
    target = tmp_path / "new" / "carry"
    assert installer.main(["--target", str(target)]) == 0
    assert names(target) == ["detectron2", "sal_detectron2-0.7.2.dist-info"]
    assert names(site_packages) == []
    assert f"PYTHONPATH={target}" in capsys.readouterr().out


def test_a_broken_detectron2_is_reported_and_not_replaced(
    installer, site_packages, monkeypatch, capsys
):
    def broken():
        raise installer.InstallError("AttributeError: module 'PIL.Image' has no attribute 'LINEAR'")

    monkeypatch.setattr(installer.util, "find_spec", lambda name: object())
    monkeypatch.setattr(installer, "run_check", broken)
    assert installer.main([]) == 1
    message = capsys.readouterr().err
    assert "has no attribute 'LINEAR'" in message
    assert "--force" in message
    assert names(site_packages) == []


def test_force_uninstalls_only_after_the_wheel_is_fetched(installer, site_packages, monkeypatch):
    order = []
    monkeypatch.setattr(installer, "uninstall", lambda: order.append("uninstall"))
    monkeypatch.setattr(
        installer, "fetch", lambda folder: (order.append("fetch"), unpack_fake_wheel(folder))
    )
    monkeypatch.setattr(installer.util, "find_spec", lambda name: object())
    monkeypatch.setattr(installer, "run_check", say("0.7.2", "x/detectron2/__init__.py"))
    assert installer.main(["--force"]) == 0
    assert order == ["fetch", "uninstall"]


def test_pip_gets_the_hash_and_its_failure_is_explained(installer, tmp_path, monkeypatch):
    seen = {}

    def fail(command, env):
        seen["requirement"] = Path(command[-1]).read_text()
        seen["command"] = command
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(installer.subprocess, "run", fail)
    with pytest.raises(installer.InstallError, match="Without a network"):
        installer.fetch(tmp_path)
    assert seen["requirement"] == f"sal-detectron2==0.7.2 --hash=sha256:{installer.SHA256}\n"
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(seen["command"])


def test_the_check_fails_for_a_detectron2_that_lacks_its_parts(installer, tmp_path, monkeypatch):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(installer.InstallError, match=r"No module named 'detectron2.config'"):
        installer.run_check()
