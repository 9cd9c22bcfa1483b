"""What the command lines of all tools have in common."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import DEBUG, command_line, make_parser

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = sorted({file.stem for file in TOOLS.glob("*.py")} - {"__init__", "command_line"})
# Runs before there is anything to import; its errors are those of pip, which it shows as they are.
OWN_WAYS = {"install_detectron2", "gpu_check"}


@pytest.mark.parametrize("name", NAMES)
def test_help_comes_without_torch_and_names_the_way_to_the_traceback(name):
    code = """if True:
        import runpy, sys
        sys.argv = [sys.argv[1], "--help"]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
        print("imported:", *{"torch", "detectron2", "mpcl", "numpy"} & sys.modules.keys())
    """
    environment = os.environ | {"PYTHONPATH": str(TOOLS)}
    command = [sys.executable, "-c", code, str(TOOLS / f"{name}.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("imported:\n")
    if name not in OWN_WAYS:
        assert re.search(r"^  --debug  +show the full tracebacks? of", run.stdout, re.M)


def test_debug_may_stand_anywhere_and_a_mistake_is_a_message(capsys):
    def parse_args(words):
        parser = make_parser("what it does")
        parser.add_argument("rest", nargs="...")
        return parser.parse_args(words)

    @command_line(parse_args)
    def main(args):
        raise ValueError(f"not {args.rest}")

    with pytest.raises(SystemExit, match="2"):
        main(["KEY", "1"])
    assert "not ['KEY', '1']" in capsys.readouterr().err
    for words in ([DEBUG, "KEY", "1"], ["KEY", "1", DEBUG]):
        with pytest.raises(ValueError, match=r"not \['KEY', '1'\]"):
            main(words)


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
