"""What the documentation points to is there: files, headings, functions."""

import importlib
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest
import yaml
from pages import FENCE, PAGES, ROOT, read

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Paths in code that the reader has, or makes.
NOT_OURS = re.compile(
    r"^(output|weights|my_data|datasets/(leaves|gta5|cityscapes|acdc|synthia|streets)|carried)(/|$)"
)
TOP = {path.name for path in ROOT.iterdir()} - {".git"}


def text_of(page: Path) -> str:
    return FENCE.sub("", read(page))


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in LINK.findall(text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    for code in CODE.findall(text_of(page)):
        first = code.split("/")[0]
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", code) and first in TOP
        if is_path and not NOT_OURS.match(code):
            assert (ROOT / code).exists(), f"{page.name}: {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_that_are_named_exist(page):
    named = set(re.findall(r"`(test_\w+)`", text_of(page)))
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named <= there, f"{page.name}: {named - there}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_config_keys_that_are_named_exist(page):
    from mpcl.config import get_cfg_from
    from mpcl.config.reading import get

    cfg = get_cfg_from()
    groups = "|".join(key for key, value in cfg.items() if hasattr(value, "keys"))
    for key in re.findall(rf"`((?:{groups})\.[A-Z0-9_.]+[A-Z0-9_])[ `=]", text_of(page)):
        try:
            get(cfg, key)
        except KeyError:
            raise AssertionError(f"{page.name}: {key}") from None


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(text_of(page)))
        pages = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        waiting += [other for other in pages - reached if other in PAGES]
    assert set(PAGES) <= reached


def test_citation_and_licence_agree_with_the_readme_and_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for needed in ("cff-version", "message", "title", "authors"):
        assert citation[needed]
    paper = citation["preferred-citation"]
    readme = read(ROOT / "README.md")
    for part in (paper["title"], paper["journal"], str(paper["volume"]), str(paper["year"])):
        assert f"{{{part}}}" in readme
    assert citation["license"] == "Apache-2.0" and 'license="Apache-2.0"' in read(ROOT / "setup.py")
    assert "Apache License" in read(ROOT / "LICENSE").splitlines()[1]


def test_pictures_of_the_documentation_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert pictures and all(picture.stat().st_size < 200_000 for picture in pictures)


PAPER_TO_CODE = ROOT / "projects" / "MPCL" / "README.md"
TABLE = re.search(r"## Equation to function\n\n(.*?)\n\n", read(PAPER_TO_CODE), re.S)[1]


def test_every_equation_of_the_paper_has_a_function():
    numbers = set(map(int, re.findall(r"\((\d+)\)", TABLE)))
    assert numbers == set(range(1, 22))


@pytest.mark.parametrize("row", TABLE.splitlines()[2:], ids=lambda row: row.split("|")[1].strip())
def test_functions_of_the_paper_to_code_table_exist_in_the_file_named(row):
    _, _, functions, file = (cell.strip() for cell in row.strip("|").split("|"))
    path = (PAPER_TO_CODE.parent / LINK.search(file)[1]).resolve()
    module_name = path.relative_to(PAPER_TO_CODE.parent).with_suffix("").as_posix()
    module = importlib.import_module(module_name.replace("/", "."))
    names = CODE.findall(functions)
    assert names
    for name in names:
        found = reduce(getattr, name.split("."), module)
        if not isinstance(found, property):
            assert inspect.isfunction(found) or inspect.isclass(found), name


def test_files_to_read_and_their_order_exist():
    section = re.search(r"## What to read.*?\n\n(.*?)\n\n", read(PAPER_TO_CODE), re.S)[1]
    assert len(section.splitlines()) == 6
