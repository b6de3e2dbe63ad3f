"""Line, bar and point plots as inline SVG. Colours are CSS variables, so that one file suits a light and a dark background."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from advalign.functional.escaping import plot_label

# matplotlib is given placeholder colours that nothing else uses; they become variables of the page afterwards.
INK, SOFT, GRID = "#010203", "#040506", "#070809"
SERIES = tuple(f"#0a0b{16 + i:02x}" for i in range(8))
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES)}
LARGEST = 1e100
COLOUR = re.compile("|".join(VARIABLES))
# Colours of standalone plots; a report's page has the same (report.html.j2).
LIGHT, DARK = (
    dict(zip(("--ink", "--soft", "--grid", *(f"--s{i}" for i in range(8))), colours.split(), strict=True))
    for colours in (
        "#1d2129 #5c6470 #ebe9e4 #1f5fa8 #d1495b #2a8c6e #b07c00 #7a4fa3 #3a9fbf #8a6d5a #6b7280",
        "#e7e5e0 #a0a6b0 #2a2e35 #7fb2ee #f0808f #63c9a6 #e6b84c #bd97e0 #79cfe8 #c2a48f #a3abb8",
    )
)
SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.9,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def lines(series: Mapping[str, Sequence[Sequence[float]]], *, x_label: str, y_label: str, log_x: bool = False, key: str = "") -> str:
    """{name: (x, y) or (x, y, low, high)}: one line each, with a band where low and high are given. `key` fixes the ids inside."""
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": key}):
        figure, axes = _canvas(7.4, 3.5)
        for i, (name, curve) in enumerate(series.items()):
            colour = SERIES[i % len(SERIES)]
            dashes = "-" if i < len(SERIES) else "--"
            x, y, *band = (list(map(_drawn, side)) for side in curve)
            axes.plot(x, y, color=colour, label=plot_label(name), linestyle=dashes, marker="o" if len(x) <= 12 else None, markersize=4.5)
            if band:
                axes.fill_between(x, *band, color=colour, alpha=0.16, linewidth=0)
        if log_x:
            axes.set_xscale("symlog", linthresh=min((v for c in series.values() for v in c[0] if _drawn(v) > 0), default=1.0))
        axes.set_xlabel(plot_label(x_label))
        axes.set_ylabel(plot_label(y_label))
        axes.margins(x=0.02)
        if len(series) > 1:
            _legend(figure, axes, len(series))
        return _svg(figure)


def bars(groups: Sequence[Mapping[str, Any]], *, x_label: str, limits: tuple[float, float] | None = None, key: str = "") -> str:
    """Horizontal bars with intervals: {label, value, low?, high?, series?}; bars of one label are adjacent."""
    labels = list(dict.fromkeys(str(g["label"]) for g in groups))
    names = list(dict.fromkeys(str(g.get("series", "")) for g in groups))
    height = 0.72 / len(names)
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": key, "axes.grid.axis": "x", "axes.spines.left": False}):
        figure, axes = _canvas(7.4, max(1.5, 0.75 + len(labels) * (0.22 + 0.24 * len(names))))
        for i, name in enumerate(names):
            series = [g for g in groups if str(g.get("series", "")) == name]
            places = [labels.index(str(g["label"])) + (i - (len(names) - 1) / 2) * height for g in series]
            values, look = [_drawn(g["value"], 0.0) for g in series], {"color": SERIES[i % len(SERIES)], "label": plot_label(name)}
            axes.barh(places, values, height=height * 0.86, **look)
            for y, g in zip(places, series, strict=True):
                if g.get("low") is not None and g.get("high") is not None:
                    ends = [_drawn(g["low"]), _drawn(g["high"])]
                    axes.plot(ends, [y, y], color=INK, linewidth=1.3, solid_capstyle="butt")
                    axes.plot(ends, [y, y], color=INK, linestyle="none", marker="|", markersize=6)
        axes.set_yticks(range(len(labels)), list(map(plot_label, labels)), color=INK)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel(plot_label(x_label))
        if limits is not None:
            axes.set_xlim(*limits)
        if len(names) > 1:
            _legend(figure, axes, len(names))
        return _svg(figure)


def points(series: Mapping[str, Sequence[float]], *, x_label: str, y_label: str, key: str = "") -> str:
    """{name: (x, y) or (x, y, low, high)}: named points, with the interval of y where there is one; a line joins the Pareto front
    (larger is better)."""
    dominated = {n for n, p in series.items() if any(q[0] >= p[0] and q[1] >= p[1] and list(q[:2]) != list(p[:2]) for q in series.values())}
    front = [name for name in series if name not in dominated]
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": key}):
        figure, axes = _canvas(7.4, 4.2)
        edge = sorted((_drawn(series[name][0]), _drawn(series[name][1])) for name in front)
        axes.plot(*zip(*edge, strict=True), color=SERIES[0], linewidth=1.2, linestyle="--")
        for name, values in series.items():
            x, y, *interval = map(_drawn, values)
            colour = SERIES[0] if name in front else SOFT
            if interval:
                axes.plot([x, x], interval, color=colour, linewidth=1.0)
            axes.plot([x], [y], color=colour, marker="o", markersize=5.5, linestyle="none")
            axes.annotate(plot_label(name), (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9.5)
        axes.set_xlabel(plot_label(x_label))
        axes.set_ylabel(plot_label(y_label))
        axes.margins(x=0.1)
        return _svg(figure)


def standalone(svg: str) -> str:
    """A plot as a file of its own, with the colours a page would give it, for a light and a dark background."""
    light, dark = (";".join(f"{name}:{colour}" for name, colour in palette.items()) for palette in (LIGHT, DARK))
    style = f"<style>svg{{{light}}} @media (prefers-color-scheme: dark){{svg{{{dark}}}}}</style>"
    head, tag, tail = svg.partition("<defs>")
    return f"{head}{style}{tag}{tail}"


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    # The object interface, not pyplot: no global state and no window system.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Any, axes: Any, number: int) -> None:
    columns = min(number, 4)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.4, columnspacing=1.6, fontsize=9.5)


def _drawn(value: float, otherwise: float = math.nan) -> float:
    """The value, where a plot can hold it; matplotlib's ticks overflow long before a float does."""
    return value if abs(value) < LARGEST else otherwise


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The page shows text as text, in the reader's fonts: which glyphs the fonts at hand have does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # In tags alone: a label may be the name of a colour.
    return re.sub("<[^>]*>", lambda tag: COLOUR.sub(lambda colour: VARIABLES[colour[0]], tag[0]), text)


__all__ = ["bars", "lines", "points", "standalone"]
