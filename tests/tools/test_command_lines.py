"""What the command lines of all tools have in common."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import DEBUG, add_network_arguments, command_line, make_parser

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAMES = sorted({file.stem for file in TOOLS.glob("*.py")} - {"__init__", "command_line"})
# Runs before there is anything to import; its errors are those of pip, which it shows as they are.
OWN_WAYS = {"install_detectron2", "gpu_check"}


# What the tools that take --config-file need beside it.
TAKE_A_CONFIG = {
    "doctor": [],
    "export": ["--format", "slim", "--output", "a.pth"],
    "inspect_prototypes": [],
    "predict": ["--input", "a", "--output", "b"],
    "run_seeds": ["--seeds", "0"],
    "submit": ["--dataset", "acdc_images_test"],
    "train_net": [],
    "visualize": ["rare-classes"],
}


def answer(name: str, *words: str) -> subprocess.CompletedProcess:
    """How a tool ends that needs nothing of what takes seconds to import."""
    code = """if True:
        import runpy, sys
        del sys.argv[0]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            print("imported:", *{"torch", "detectron2", "mpcl", "numpy"} & sys.modules.keys())
    """
    package = TOOLS.parent / "projects" / "MPCL"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TOOLS), str(package)])}
    command = [sys.executable, "-c", code, str(TOOLS / f"{name}.py"), *words]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout.endswith("imported:\n"), run.stdout
    return run


@pytest.mark.parametrize("name", NAMES)
def test_help_comes_without_torch_and_names_the_way_to_the_traceback(name):
    run = answer(name, "--help")
    assert run.returncode == 0, run.stderr
    assert name in TAKE_A_CONFIG or not re.search(r"^  --config-file", run.stdout, re.M)
    if name not in OWN_WAYS:
        assert re.search(r"^  --debug  +show the full tracebacks? of", run.stdout, re.M)


@pytest.mark.parametrize("name", sorted(TAKE_A_CONFIG.keys() - {"doctor", "submit"}))
def test_a_mistyped_config_is_told_with_what_is_called_alike(name, tmp_path, capsys):
    (tmp_path / "mic_gauss.yaml").touch()
    tool = importlib.import_module(name)
    main = tool.cli if name == "train_net" else tool.main
    with pytest.raises(SystemExit) as ended:
        main([*TAKE_A_CONFIG[name], "--config-file", str(tmp_path / "mic_gaus.yaml")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.search(
        rf"{name}\.py: error: .*mic_gaus.yaml does not exist .did you mean mic_g", said
    )


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
    level, words = doctor.logger.level, ["--config-file", str(tmp_path / "empty.yaml")]
    (tmp_path / "empty.yaml").touch()
    assert doctor.main(words) == 1 and "Traceback" not in capsys.readouterr().err
    assert doctor.main(["--debug", *words]) == 1
    assert "Traceback" in capsys.readouterr().err
    doctor.logger.handlers.clear()
    doctor.logger.setLevel(level)


def test_an_address_of_a_config_stays_one():
    parser = make_parser("A tool.")
    add_network_arguments(parser)
    address = "https://host/a.yaml"  # a Path would make one slash of the two
    assert parser.parse_args(["--config-file", address]).config_file == address
