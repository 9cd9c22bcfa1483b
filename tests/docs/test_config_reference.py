"""docs/CONFIG.md tells the truth about the config."""

import re
from ast import literal_eval

import config_reference as tool
import pytest
from detectron2.config import CfgNode, get_cfg

from mpcl.config import add_mpcl_config
from mpcl.config.validation import expectations

ROW = re.compile(r"^\| `(?P<key>[A-Z0-9_.]+)` \| `(?P<default>.*?)` \| (?P<rest>.*) \|$", re.M)


@pytest.fixture(scope="module")
def page() -> str:
    return tool.REFERENCE.read_text()


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for name, value in node.items():
        inner = leaves(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {}
        found |= inner or {prefix + name: value}
    return found


def test_the_page_is_what_the_code_says_now():
    assert tool.main(["--check"]) == 0, "run python dev/config_reference.py"


def test_a_page_that_is_out_of_date_is_told_from_one_that_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "REFERENCE", tmp_path / "CONFIG.md")
    assert tool.main(["--check"]) == 1 and "out of date" in capsys.readouterr().out
    assert tool.main([]) == 0 and tool.main(["--check"]) == 0
    tool.REFERENCE.write_text(tool.REFERENCE.read_text().replace("`0.968`", "`0.97`"))
    assert tool.main(["--check"]) == 1


def test_every_key_that_the_project_adds_or_changes_is_there_with_its_default(page):
    before = leaves(get_cfg())
    cfg = get_cfg()
    add_mpcl_config(cfg)
    ours = {key: value for key, value in leaves(cfg).items() if before.get(key, tool) != value}
    listed = {row["key"]: row["default"] for row in ROW.finditer(page)}
    assert set(ours) <= set(listed) and len(ours) > 80
    for key, value in ours.items():
        if key != "MODEL.DEVICE":  # depends on the machine
            assert literal_eval(listed[key]) == value, key
    assert set(listed) <= set(leaves(cfg))


def test_every_key_has_a_meaning_and_its_choices(page):
    rows = {row["key"]: row["rest"] for row in ROW.finditer(page)}
    assert [key for key, rest in rows.items() if len(rest.rpartition(" | ")[2]) < 5] == []
    for key, expected in expectations().items():
        assert expected.removeprefix("one of ") in rows[key], key


def test_comments_belong_to_the_key_below_or_beside_them():
    source = """
def _add_x_config(cfg):
    # About the
    # group.
    cfg.X = CN()
    x = cfg.X
    x.A = 1  # beside
    # Above
    x.B = (
        2,  # and within.
    )
    # A remark on what follows.

    x.C.D = "a|b"

def elsewhere(cfg):
    cfg.NOT = 1
"""
    assert [tuple(key) for key in tool.keys(source)] == [
        ("X", None, "About the group."),
        ("X.A", "1", "beside"),
        ("X.B", "(2,)", "Above and within."),
        ("X.C.D", "'a|b'", ""),
    ]
