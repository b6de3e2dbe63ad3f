"""docs/paper_index.md names every page and configuration, its links lead somewhere, and its values are those of the files."""

import re
from pathlib import Path

import pytest
import yaml

from advalign import config

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "paper_index.md"
TEXT = INDEX.read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| paper", "| configuration"))]
PAGES = sorted((ROOT / "docs" / "algorithms").glob("*.md"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def links(text):
    """(file, anchor) of every link."""
    return [((INDEX.parent / path).resolve(), anchor) for path, anchor in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", text)]


def papers(text):
    return set(re.findall(r"arXiv:(\d{4}\.\d{4,5})", text))


def leaves(tree, name=""):
    """(name, value) of every field that holds one, at any depth."""
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in leaves(value, key)]
    if isinstance(tree, list):
        return [leaf for value in tree for leaf in leaves(value, name)]
    return [(name, tree)]


def test_every_page_and_every_configuration_is_named():
    named = {path for path, _ in links("\n".join(ROWS))}
    assert [p.name for p in PAGES if p not in named] == []
    assert [str(p.relative_to(ROOT)) for p in CONFIGS if p not in named] == []


def test_links_lead_somewhere():
    assert len(links(TEXT)) > 60
    for path, anchor in links(TEXT):
        assert path.is_file(), path
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else [anchor]
        assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], (path.name, anchor)


def test_papers_are_named_where_their_row_points():
    for row in ROWS:
        behind = set().union(*(papers(path.read_text(encoding="utf-8")) for path, _ in links(row)))
        assert papers(row) <= behind, row


def test_papers_of_every_file_are_in_the_index():
    missing = {p.name: papers(p.read_text(encoding="utf-8")) - papers(TEXT) for p in (*PAGES, *CONFIGS)}
    assert {name: numbers for name, numbers in missing.items() if numbers} == {}


@pytest.mark.parametrize("row", [r for r in ROWS if re.search(r"`\w+=", r)], ids=lambda r: re.findall(r"\[([\w.]+\.yaml)\]", r)[0])
def test_values_are_those_of_the_file(row):
    (path,) = [path for path, _ in links(row) if path.suffix == ".yaml"]
    # Numbers are compared as numbers: 1e-6 is text for YAML, and inf is written .inf there.
    values = {(name, number(value)) for name, value in leaves(config.read(path))}
    stated = [(name, number(yaml.safe_load(value))) for name, value in re.findall(r"`(\w+)=([^`]+)`", row)]
    assert len(stated) == len(set(stated))
    assert [pair for pair in stated if pair not in values] == []


def number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
