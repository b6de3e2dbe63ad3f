"""How text that others wrote (models, data, exceptions, files) is shown: one function per format.

`visible` is the base of all: what moves a cursor, hides or reverses text, or cannot be encoded is written as its code, so that any text
can be shown and any file be written.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# C0 without tab and newline, DEL, C1, line and paragraph separators, embeddings, overrides and isolates of direction, lone surrogates,
# and the last code points of each plane, which are no characters.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
CODES = {number: f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" for number in range(1 << 16) if CONTROL.match(chr(number))}
# What JSON may hold as it is, but readers of lines or of scripts take for an end, and what UTF-8 cannot hold.
JSON_ONLY = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# Links that GitHub makes of bare addresses, and everything that has a meaning inside a line; an underscore inside a word has none.
MARKUP = re.compile(r"[\\`*\[\]<>&~|$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=\b[wW]{3})\.|(?<=\b[mM]ailto):|(?<=\b[xX]mpp):")
# Headings, lists, rules and underlines, at the beginning of a line alone.
BLOCK = re.compile(r"^(\s*)(#|[-+=](?=[\s=-]|$)|[0-9]{1,9}(?=[.)](?:\s|$)))")
SPACES = re.compile("[ \t\n]+")
MOST_BITS = 14_000
"""Of an integer that Python writes in decimal: 4,300 digits."""
PLOT_LENGTH = 80
"""Characters of a label, beyond which it would push the plot aside."""


def text(value: Any, limit: int | None = None) -> str:
    """Any value as a text of at most `limit` characters; what is left out is said."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("utf-8", "backslashreplace")
    shown = value if isinstance(value, str) else _text_of(value)
    if limit is None or len(shown) <= limit:
        return shown
    return f"{shown[:limit].rstrip()}… ({len(shown):,} characters)"


def visible(shown: str) -> str:
    """The text with control characters, changes of direction and lone surrogates as codes such as \\x1b and \\u202e."""
    return shown.translate(CODES) if CONTROL.search(shown) else shown


def terminal(shown: str) -> str:
    """For a terminal: nothing in it moves the cursor, colours, rings, sets a title or reverses what follows."""
    return visible(shown)


def one_line(shown: str) -> str:
    """Without line breaks and runs of spaces."""
    return SPACES.sub(" ", shown).strip(" ")


def markdown(shown: str) -> str:
    """For a line of Markdown: shown as it is, never as markup, link, image or mathematics."""
    line = MARKUP.sub(lambda m: "\\" + m[0], one_line(visible(shown)))
    return BLOCK.sub(lambda m: m[1] + (f"{m[2]}\\" if m[2].isdigit() else f"\\{m[2]}"), line)


def quoted(value: Any, limit: int = 300) -> str:
    """The beginning of what an attack, a judge or an exception said, for a sentence in Markdown."""
    return markdown(text(value, limit))


def code(shown: str) -> str:
    """For a line of Markdown, as code: the fence is longer than any run of backticks in it."""
    line = one_line(visible(shown))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if line[:1] == "`" or line[-1:] == "`" or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def plot_label(shown: Any) -> str:
    """For matplotlib: no mathematics, one line, at most `PLOT_LENGTH` characters, and no name that a legend leaves out."""
    line = one_line(visible(text(shown)))
    line = line if len(line) <= PLOT_LENGTH else line[: PLOT_LENGTH - 1] + "…"
    return ("\u200a" if line[:1] == "_" else "") + line.replace("$", r"\$")


def json_line(value: Any, **options: Any) -> str:
    """Strict JSON on one line, as every reader takes it: nan and infinity are null, what ends a line or cannot be encoded is escaped,
    and what JSON does not have is its text."""
    line = json.dumps(json_safe(value), ensure_ascii=False, allow_nan=False, default=text, **options)
    return JSON_ONLY.sub(lambda m: f"\\u{ord(m[0]):04x}", line)


def json_safe(value: Any) -> Any:
    """The value for JSON, which has neither nan nor infinity (they become null), nor integers of thousands of digits (a text)."""
    if isinstance(value, Mapping):
        return {name: json_safe(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return hex(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def exception(error: BaseException, limit: int = 300) -> str:
    """Kind and message of an exception."""
    return f"{type(error).__name__}: {message(error, limit)}"


def message(error: BaseException, limit: int = 300) -> str:
    """The message of an exception on one line, cut to `limit` characters, whatever reading it does."""
    try:
        said = one_line(str(error))
    except Exception as failure:
        said = f"its text cannot be read ({type(failure).__name__})"
    return said if len(said) <= limit else said[: limit - 1] + "…"


def well_formed(shown: str) -> str:
    """The text as UTF-8 can hold it: a lone surrogate becomes the replacement character."""
    return shown.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_of(value: Any) -> str:
    return hex(value) if isinstance(value, int) and value.bit_length() > MOST_BITS else str(value)
