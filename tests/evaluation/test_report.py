"""The report: self-contained, the same in HTML and Markdown, safe against what models write."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from advalign.evaluation import Report
from advalign.evaluation.reports.report import show


@pytest.fixture
def report():
    return (
        Report("A title", "and more")
        .text("## Heading\n\nSome **bold** text.")
        .warning("Mind this.")
        .cards([("accuracy", "84.5 %", "n = 872")])
        .table([{"attack": "pgd", "rate": 0.25, "n": 1200}, {"attack": "<script>alert(1)</script>", "rate": None, "n": 3}], title="Table")
        .lines(
            {"a": ([0, 1, 2], [0.1, 0.4, 0.2], [0.0, 0.3, 0.1], [0.2, 0.5, 0.3]), "b": ([0, 2], [1, 2])},
            title="Lines",
            x_label="x",
            y_label="y",
        )
        .bars([{"label": "clean", "value": 0.9, "low": 0.8, "high": 0.95}], title="Bars", x_label="rate")
    )


def test_page_asks_the_network_for_nothing_and_runs_nothing_it_was_given(report):
    html = report.html()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert "@import" not in html
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert html.count("<script>") == 1


def test_plots_are_valid_svg_in_the_page_s_own_colours(report):
    pictures = re.findall(r"<svg.*?</svg>", report.html(), flags=re.S)
    assert len(pictures) == 2
    identifiers = []
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "var(--s0)" in picture
        assert not re.search(r"#0[0-9a-b]0[0-9a-b]", picture)  # no placeholder colour left
        identifiers += re.findall(r'<(?:clipPath|path)[^>]* id="([^"]+)"', picture)
    assert len(identifiers) == len(set(identifiers))


def test_two_writes_are_the_same_bytes_and_markdown_holds_the_same_numbers(report, tmp_path):
    first = report.write(tmp_path / "a" / "report.html").read_bytes()
    assert report.write(tmp_path / "b" / "report.html").read_bytes() == first
    markdown = (tmp_path / "a" / "report.md").read_text()
    assert markdown.startswith("# A title\n\nand more\n\n## Heading")
    assert "| pgd | 0.250 | 1,200 |" in markdown
    assert "| clean | 0.900 | 0.800 | 0.950 |" in markdown


def test_missing_values_sort_last_and_show_as_a_dash():
    html = Report("t").table([{"x": 2.0}, {"x": None}, {"x": float("nan")}, {"x": 10.0}]).html()
    assert re.findall(r'data-key="([^"]*)">([^<]*)<', html) == [("2.0", "2.000"), ("", "–"), ("", "–"), ("10.0", "10.000")]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.12345, "0.123"), (1234.5, "1,234"), (2e-5, "2.00e-05"), (1200, "1,200"), (True, "yes"), ("x", "x")]
)
def test_numbers_as_a_reader_wants_them(value, text):
    assert show(value) == text
