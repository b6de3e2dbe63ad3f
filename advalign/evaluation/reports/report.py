"""One self-contained page: prose, headline numbers, tables that sort on a click, plots; and the same content as Markdown."""

import difflib
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import jinja2
from markdown_it import MarkdownIt

from advalign.evaluation.reports import plots

TEMPLATE = Path(__file__).with_name("report.html.j2")


class Report:
    """A page of blocks, in the order in which they were added. Every method returns the report, so that calls chain.

    Report("Title").text("Some *prose*.").table(rows).lines(curves).bars(groups).write("report.html")
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[dict[str, Any]] = []
        self._markdown: list[str] = []

    def text(self, markdown: str) -> Self:
        """CommonMark with tables; raw HTML in it is shown, not run."""
        return self._add(markdown, kind="html", html=_render(markdown))

    def warning(self, markdown: str) -> Self:
        """A sentence that is set apart."""
        return self._add(f"> **Warning.** {markdown}", kind="warning", html=_render(markdown))

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> Self:
        """Headline numbers: (label, value, note)."""
        shown = [dict(zip(("label", "value", "note"), card, strict=True)) for card in cards]
        lines = [f"* {c['label']}: **{c['value']}**" + (f" ({c['note']})" if c["note"] else "") for c in shown]
        return self._add("\n".join(lines), kind="cards", cards=shown)

    def table(self, rows: Sequence[Mapping[str, Any]], *, title: str = "", note: str = "", columns: Sequence[str] | None = None) -> Self:
        """One row per mapping; the columns are the keys, in the order of their first appearance. Numbers align right."""
        names = list(columns) if columns is not None else list(dict.fromkeys(k for row in rows for k in row))
        numeric = [all(_is_number(row.get(n)) or row.get(n) is None for row in rows) for n in names]
        cells = [[{"text": show(row.get(n)), "key": _key(row.get(n)), "number": is_n} for n, is_n in zip(names, numeric)] for row in rows]
        head = [{"name": n, "number": is_n} for n, is_n in zip(names, numeric)]
        return self._add(_titled(title, note, _table(names, rows)), kind="table", title=title, note=note, columns=head, rows=cells)

    def lines(
        self,
        series: Mapping[str, Sequence[Sequence[float]]],
        *,
        title: str,
        x_label: str,
        y_label: str,
        note: str = "",
        log_x: bool = False,
    ) -> Self:
        """{name: (x, y) or (x, y, low, high)}; low and high draw a band."""
        curves = {name: curve for name, curve in series.items() if len(curve[0])}
        key = f"{len(self._blocks)}/{title}"
        svg = plots.lines(curves, x_label=x_label, y_label=y_label, log_x=log_x, key=key)
        rows = [{"series": name, **_points(curve, x_label)} for name, curve in curves.items()]
        names = list(dict.fromkeys(k for row in rows for k in row))
        return self._add(_titled(title, note, _table(names, rows)), kind="figure", title=title, note=note, svg=svg)

    def bars(
        self, groups: Sequence[Mapping[str, Any]], *, title: str, x_label: str, note: str = "", limits: tuple[float, float] | None = None
    ) -> Self:
        """{label, value, low?, high?, series?} per bar; low and high draw an interval."""
        svg = plots.bars(groups, x_label=x_label, limits=limits, key=f"{len(self._blocks)}/{title}")
        names = list(dict.fromkeys(k for g in groups for k in g))
        return self._add(_titled(title, note, _table(names, groups)), kind="figure", title=title, note=note, svg=svg)

    def changes(self, rows: Sequence[Mapping[str, str]], *, title: str = "", note: str = "") -> Self:
        """Texts and their changed versions: {attack, text, changed, before, after} per row; differences are marked word by word."""
        shown = []
        for row in rows:
            parts = difference(row["text"], row["changed"]) if row.get("changed") else [("same", row["text"])]
            shown.append({**{name: row.get(name, "") for name in ("attack", "before", "after")}, "parts": parts})
        lines = [_marked(row) for row in shown]
        return self._add(_titled(title, note, "\n".join(lines)), kind="changes", title=title, note=note, rows=shown)

    def html(self) -> str:
        """The page."""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        return template.render(title=self.title, subtitle=self.subtitle, blocks=self._blocks, version=_version())

    def markdown(self) -> str:
        """The same content as Markdown."""
        head = [f"# {self.title}"] + ([self.subtitle] if self.subtitle else [])
        return "\n\n".join(head + self._markdown) + "\n"

    def write(self, path: str | Path) -> Path:
        """The page at `path`, and its Markdown beside it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        path.with_suffix(".md").write_text(self.markdown(), encoding="utf-8")
        return path

    def _add(self, markdown: str, **block: Any) -> Self:
        self._blocks.append(block)
        self._markdown.append(markdown)
        return self


def show(value: Any) -> str:
    """A value for a reader: three decimals, integers with thousands separators, nan and None as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0 or math.isinf(value):
            return "0" if value == 0 else str(value)
        if not 1e-3 <= abs(value) < 1e5:
            return f"{value:.2e}"
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def difference(first: str, second: str) -> list[tuple[str, str]]:
    """[("same" | "gone" | "new", words)] in reading order."""
    a, b = first.split(), second.split()
    parts: list[tuple[str, str]] = []
    for what, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append(("same", " ".join(a[i:j])))
            continue
        parts += [("gone", " ".join(a[i:j]))] if j > i else []
        parts += [("new", " ".join(b[k:m]))] if m > k else []
    return parts


def _marked(row: Mapping[str, Any]) -> str:
    signs = {"same": ("", ""), "gone": ("~~", "~~"), "new": ("**", "**")}
    text = " ".join(f"{signs[what][0]}{words}{signs[what][1]}" for what, words in row["parts"])
    return f"* {row['attack']}: {text} ({_oneline(row['before'])} → {_oneline(row['after'])})"


def _oneline(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _points(curve: Sequence[Sequence[float]], x_label: str, limit: int = 8) -> dict[str, float]:
    """A curve in one row of a table: at most `limit` points, evenly spread, with the first and the last."""
    count = len(curve[0])
    chosen = sorted({round(i * (count - 1) / (min(count, limit) - 1)) for i in range(min(count, limit))} if count > 1 else {0})
    return {f"{x_label} {show(curve[0][i])}": curve[1][i] for i in chosen}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Any) -> str:
    """What a column sorts by; missing values sort last."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if _is_number(value) else str(value)


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    numeric = [all(_is_number(row.get(n)) for row in rows) for n in names]
    rule = "|" + "|".join("---:" if is_n else "---" for is_n in numeric) + "|"
    return "\n".join([line(list(names)), rule, *(line([show(row.get(n)) for n in names]) for row in rows)])


def _titled(title: str, note: str, body: str) -> str:
    return "\n\n".join(part for part in (f"**{title}**" if title else "", note, body) if part)


def _render(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)


def _version() -> str:
    try:
        return metadata.version("advalign")
    except metadata.PackageNotFoundError:
        return ""


__all__ = ["Report", "difference", "show"]
