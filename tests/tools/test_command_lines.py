"""What the command lines of all tools have in common."""

import importlib
import re
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
# Runs before there is anything to import; its errors are those of pip, which it shows as they are.
OWN_WAYS = {"install_detectron2"}
WITH_ARGUMENTS = sorted(
    file.stem
    for file in TOOLS.glob("*.py")
    if re.search(r"ArgumentParser\(|argument_parser\(", file.read_text())
)


@pytest.mark.parametrize("name", [n for n in WITH_ARGUMENTS if n not in OWN_WAYS])
def test_help_names_the_way_to_the_traceback(name, capsys):
    tool = importlib.import_module(name)
    with pytest.raises(SystemExit, match="0"):
        getattr(tool, "cli", tool.main)(["--help"])
    assert re.search(r"^  --debug  +show the full tracebacks? of", capsys.readouterr().out, re.M)


def test_every_tool_is_looked_at():
    assert {file.stem for file in TOOLS.glob("*.py")} == set(WITH_ARGUMENTS)


@pytest.mark.parametrize(
    ("name", "words"),
    [("benchmark", ["step"]), ("soak", ["--steps", "2", "--nans", "0"])],
)
def test_a_config_that_is_not_there_is_a_message(name, words, tmp_path, capsys):
    tool = importlib.import_module(name)
    missing = [*words, "--config-file", str(tmp_path / "nothing.yaml")]
    if name == "soak":
        missing += ["--output", str(tmp_path / "soak")]
    with pytest.raises(SystemExit, match="2"):
        tool.main(missing)
    assert "nothing.yaml" in capsys.readouterr().err


def test_the_doctor_shows_tracebacks_when_asked(monkeypatch, capsys, tmp_path):
    doctor = importlib.import_module("doctor")
    monkeypatch.setattr(doctor, "examine", lambda config, opts: doctor.check_run(config, opts))
    monkeypatch.setattr(doctor.faulthandler, "enable", lambda: None)  # pytest has its own
    level, words = doctor.logger.level, ["--config-file", str(tmp_path / "nothing.yaml")]
    assert doctor.main(words) == 1 and "Traceback" not in capsys.readouterr().err
    assert doctor.main(["--debug", *words]) == 1
    assert "Traceback" in capsys.readouterr().err
    doctor.logger.handlers.clear()
    doctor.logger.setLevel(level)
