"""One self-contained page: prose, headline numbers, tables that sort on a click, plots; and the same content as Markdown."""

import base64
import difflib
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import jinja2
from markdown_it import MarkdownIt

from advalign.evaluation.reports import plots
from advalign.functional import escaping

WORD = re.compile("[^ \t\n]+")
LOADS = re.compile(r"`[^`\n]*`|!(?=\[)|<(?=[A-Za-z/!?])")
TEMPLATE = Path(__file__).with_name("report.html.j2")
SCRIPT = Path(__file__).with_name("report.js")
SHOWN = 1_000
"""Characters of a text that a page shows; the results hold all of it."""
WORDS = 400
"""Words of which two texts are compared one by one; beyond, what they have in common at both ends is left out first."""
CONTEXT = 40
"""Words of that which are shown on either side."""


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
        """CommonMark with tables; raw HTML and images in it are shown, not run. What others wrote goes in by `escaping.markdown`."""
        return self._add(_inert(markdown), kind="html", html=_render(markdown))

    def warning(self, markdown: str) -> Self:
        """A sentence that is set apart."""
        return self._add(f"> **Warning.** {_inert(markdown)}", kind="warning", html=_render(markdown))

    def cards(self, cards: Sequence[tuple[str, str, str]]) -> Self:
        """Headline numbers: (label, value, note)."""
        shown = [dict(zip(("label", "value", "note"), card, strict=True)) for card in cards]
        lines = [_card(*map(escaping.markdown, card)) for card in cards]
        return self._add("\n".join(lines), kind="cards", cards=shown)

    def table(self, rows: Sequence[Mapping[str, Any]], *, title: str = "", note: str = "", columns: Sequence[str] | None = None) -> Self:
        """One row per mapping; the columns are the keys, in the order of their first appearance. Numbers align right."""
        names = list(columns) if columns is not None else list(dict.fromkeys(k for row in rows for k in row))
        numeric = [all(_is_number(row.get(n)) or row.get(n) is None for row in rows) for n in names]
        cells = [[{"text": show(row.get(n)), "key": _key(row.get(n)), "number": is_n} for n, is_n in zip(names, numeric)] for row in rows]
        head = [{"name": show(n), "number": is_n} for n, is_n in zip(names, numeric)]
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

    def changes(self, rows: Sequence[Mapping[str, Any]], *, title: str = "", note: str = "") -> Self:
        """Texts and their changed versions: {attack, text, changed, before, after} per row; differences are marked word by word."""
        shown = []
        for row in rows:
            text, changed = escaping.text(row["text"]), escaping.text(row.get("changed") or "")
            parts = difference(text, changed) if changed else [("same", escaping.text(text, SHOWN))]
            shown.append({**{name: escaping.text(row.get(name, ""), SHOWN) for name in ("attack", "before", "after")}, "parts": parts})
        lines = [_marked(row) for row in shown]
        return self._add(_titled(title, note, "\n".join(lines)), kind="changes", title=title, note=note, rows=shown)

    def html(self) -> str:
        """The page. Its policy lets a browser run its one script and load nothing, whatever is in it."""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        script = SCRIPT.read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        values = {"title": self.title, "subtitle": self.subtitle, "blocks": self._blocks, "version": _version()}
        return escaping.visible(template.render(**values, script=script, digest=digest))

    def markdown(self) -> str:
        """The same content as Markdown."""
        head = [f"# {escaping.markdown(self.title)}"] + ([escaping.markdown(self.subtitle)] if self.subtitle else [])
        return escaping.visible("\n\n".join(head + self._markdown) + "\n")

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
    if isinstance(value, int) and value.bit_length() <= escaping.MOST_BITS:
        return f"{value:,}"
    return escaping.text(value, SHOWN)


def difference(first: str, second: str) -> list[tuple[str, str]]:
    """[("same" | "gone" | "new", words)] in reading order. Of long texts, the surroundings of what differs."""
    a, b = ([_cut(word) for word in WORD.findall(text)] for text in (first, second))
    if max(len(a), len(b)) <= WORDS:
        return _aligned(a, b)
    start = _common(a, b)
    end = _common(a[start:][::-1], b[start:][::-1])
    head, tail = a[:start], a[len(a) - end :]
    sides = [side[start : len(side) - end] for side in (a, b)]
    before = ["…"] * (start > CONTEXT) + head[-CONTEXT:] if head else []
    after = ["…"] * (max(map(len, sides)) > WORDS) + tail[:CONTEXT] + ["…"] * (end > CONTEXT)
    around = [[("same", " ".join(words))] if words else [] for words in (before, after)]
    return around[0] + _aligned(*(side[:WORDS] for side in sides)) + around[1]


def _aligned(a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    for what, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if what == "equal":
            parts.append(("same", " ".join(a[i:j])))
            continue
        parts += [("gone", " ".join(a[i:j]))] if j > i else []
        parts += [("new", " ".join(b[k:m]))] if m > k else []
    return parts


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _cut(word: str) -> str:
    return word if len(word) <= SHOWN else word[:SHOWN] + "…"


def _card(label: str, value: str, note: str) -> str:
    return f"* {label}: **{value}**" + (f" ({note})" if note else "")


def _marked(row: Mapping[str, Any]) -> str:
    signs = {"same": ("", ""), "gone": ("~~", "~~"), "new": ("**", "**")}
    text = " ".join(f"{signs[what][0]}{escaping.markdown(words)}{signs[what][1]}" for what, words in row["parts"])
    attack, before, after = (escaping.markdown(_oneline(row[name])) for name in ("attack", "before", "after"))
    return f"* {attack}: {text} ({before} → {after})"


def _oneline(text: str, limit: int = 300) -> str:
    flat = escaping.one_line(text)
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
    return repr(value) if _is_number(value) and abs(value) < 1e300 else escaping.text(value, SHOWN)


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(escaping.markdown, cells)) + " |"

    numeric = [all(_is_number(row.get(n)) for row in rows) for n in names]
    rule = "|" + "|".join("---:" if is_n else "---" for is_n in numeric) + "|"
    return "\n".join([line(list(map(show, names))), rule, *(line([show(row.get(n)) for n in names]) for row in rows)])


def _titled(title: str, note: str, body: str) -> str:
    return "\n\n".join(part for part in (f"**{escaping.markdown(title)}**" if title else "", escaping.markdown(note), body) if part)


def _render(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(markdown)


def _inert(markdown: str) -> str:
    """Markdown without images and raw HTML outside code, for viewers that would load and run them."""
    return LOADS.sub(lambda m: m[0] if m[0].startswith("`") else "\\" + m[0], markdown)


def _version() -> str:
    try:
        return metadata.version("advalign")
    except metadata.PackageNotFoundError:
        return ""


__all__ = ["Report", "difference", "show"]
