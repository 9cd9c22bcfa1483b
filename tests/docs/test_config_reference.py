"""docs/CONFIG.md tells the truth about the config."""

import re
from ast import literal_eval

import config_reference as tool
import pytest
from detectron2.config import get_cfg

from mpcl.config import add_mpcl_config, get_cfg_from
from mpcl.config.reading import get, leaves
from mpcl.modeling.mit import VARIANTS

ROW = re.compile(r"^\| `(?P<key>[A-Z0-9_.]+)` \| `(?P<default>.*?)` \| (?P<meaning>.*) \|$", re.M)
FIXED = {"INPUT.FORMAT", "INPUT.CROP.ENABLED", "INPUT.CROP.TYPE"}  # not to be set
LISTED = {row["key"]: row for row in ROW.finditer(tool.REFERENCE.read_text())}


def test_a_page_that_is_out_of_date_is_told_from_one_that_is_not(tmp_path, monkeypatch, capsys):
    assert tool.main(["--check"]) == 0, "run python dev/config_reference.py"
    monkeypatch.setattr(tool, "REFERENCE", tmp_path / "CONFIG.md")
    assert tool.main(["--check"]) == 1 and "out of date" in capsys.readouterr().out
    assert tool.main([]) == 0 and tool.main(["--check"]) == 0
    tool.REFERENCE.write_text(tool.REFERENCE.read_text().replace("`0.968`", "`0.97`"))
    assert tool.main(["--check"]) == 1


def test_every_key_that_the_project_adds_or_changes_is_there_with_its_default():
    detectron2, cfg = get_cfg(), get_cfg()
    add_mpcl_config(cfg)
    known = set(leaves(detectron2))
    for key in leaves(cfg):
        ours = key not in known or get(cfg, key) != get(detectron2, key)
        assert key in LISTED or key in FIXED or not ours, key
        if key in LISTED and key != "MODEL.DEVICE":  # depends on the machine
            assert literal_eval(LISTED[key]["default"]) == get(cfg, key), key
    assert set(LISTED) <= set(leaves(cfg)) and len(LISTED) > 80


@pytest.mark.parametrize("key", LISTED)
def test_meaning_is_there_and_names_all_choices(key, monkeypatch):
    monkeypatch.delitem(VARIANTS, "tiny")  # of the tests alone
    meaning = LISTED[key]["meaning"]
    assert len(meaning) >= 5
    if LISTED[key]["default"][0] in "\"'" and not meaning.startswith("Start from this weight"):
        try:
            get_cfg_from("", [key, "'no such choice'"])
        except ValueError as error:
            _, _, choices = str(error).partition("expected one of ")
            if "NAME" not in key and "ARCHITECTURE" not in key:  # registries grow
                assert all(choice in meaning for choice in choices.split(", ")), choices


@pytest.mark.parametrize("key", [k for k in LISTED if LISTED[k]["default"][0].isdigit()])
def test_no_number_may_be_nonsense(key):
    for value in ("-1", "1" + 400 * "0", "1e999"):
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            get_cfg_from("", [key, value])


def test_comments_belong_to_the_key_below_or_beside_them():
    source = """
def add_mpcl_config(cfg):
    _add_x_config(cfg)

def _add_x_config(cfg):
    # About the
    # group.
    cfg.X = CN()
    x = cfg.X
    x.A = 1  # beside
    # Above
    x.B = (2, 3)  # and behind.
    # A remark on what follows.

    x.C.D = "a|b"
"""
    assert list(tool.keys(source)) == [
        ("X", "CN()", "About the group."),
        ("X.A", "1", "beside"),
        ("X.B", "(2, 3)", "Above and behind."),
        ("X.C.D", '"a|b"', ""),
    ]
