"""What a field may hold, declared where the field is: `radius: NonNegative = 0.05`, `share: Annotated[str, OneOf(SHARES, "way to share")]`.

`advalign/checked.py` reads these annotations: the builder checks a configuration with them, and a dataclass that derives from `Checked`
checks itself, however it is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from advalign.errors import ConfigError, excerpt, unknown

FLOAT32_MAX = 3.4028234663852886e38
"""The largest finite number of float32: what is larger is infinite once it meets a tensor."""
INT32_MAX = 2**31 - 1
"""The largest count: sizes and indices of tensors and of other libraries."""
INT64_MAX = 2**63 - 1
"""The largest seed."""


class Range:
    """What the values of an annotation may be, beyond their type."""

    words: str = ""
    """The range in words, as in `a number above 0`; empty: those of the type."""

    def check(self, value: Any, path: str) -> None:
        """Raises ConfigError, in one sentence that begins with `path`."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Interval(Range):
    """Numbers from `low` to `high`; nan never, and infinity only where it is an end that belongs to the interval."""

    low: float = -math.inf
    """The lower end."""
    high: float = math.inf
    """The upper end."""
    low_open: bool = False
    """Whether the lower end is left out."""
    high_open: bool = False
    """Whether the upper end is left out."""
    unbounded: bool = False
    """Whether infinity is a value, where it is an end: no bound."""
    unit: str = "number"
    """What is counted or measured, in the sentence."""

    def check(self, value: Any, path: str) -> None:
        if not self._contains(value):
            most = f", at most {int(self.high)}," if self.high in (INT32_MAX, INT64_MAX) and value > self.high else ""
            raise ConfigError(f"{path}: {_plainly(value)} given; {self.words}{most} is expected.")

    def _contains(self, value: Any) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return self.unbounded and value in (self.low, self.high)
        if isinstance(value, float) and abs(value) > FLOAT32_MAX:
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

    @property
    def words(self) -> str:  # type: ignore[override]
        """The interval, as in `a number above 0 and at most 1`, `a number from 0 to 1`."""
        limit = math.inf if self.high in (INT32_MAX, INT64_MAX) else self.high
        if math.isfinite(self.low) and math.isfinite(limit) and not (self.low_open or self.high_open):
            return f"a {self.unit} from {self.low:g} to {self.high:g}" if self.low < self.high else f"{self.low:g}"
        ends = []
        if self.low > -math.inf:
            ends.append(f"{'above' if self.low_open else 'of at least'} {self.low:g}")
        if limit < math.inf:
            ends.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        finite = "" if self.unbounded or len(ends) == 2 else "finite "
        unit = f"{finite}{self.unit}" if self.unit == "number" else self.unit
        return f"a {' '.join([unit, ' and '.join(ends)]).strip()}" + (f", or {self._infinities} for no limit" if self.unbounded else "")

    @property
    def _infinities(self) -> str:
        return " or ".join(name for name, end in (("-.inf", self.low), (".inf", self.high)) if math.isinf(end))


@dataclass(frozen=True, eq=False)
class OneOf(Range):
    """One of a few names."""

    options: Iterable[str]
    """The names."""
    label: str = "choice"
    """What they are names of, in the sentence."""

    @property
    def words(self) -> str:  # type: ignore[override]
        """The names, as in `one of last, best`."""
        return f"one of {', '.join(self.options)}"

    def check(self, value: Any, path: str) -> None:
        if value not in (options := list(self.options)):
            raise unknown(path, self.label, value, options)


@dataclass(frozen=True, eq=False)
class Text(Range):
    """A text; with `empty` false, one that says something."""

    empty: bool = True
    """Whether an empty text, or one of blanks, is a value."""
    holds: str = ""
    """What the text must hold, such as a placeholder."""

    def check(self, value: Any, path: str) -> None:
        if not self.empty and not str(value).strip():
            raise ConfigError(f"{path}: {excerpt(repr(value))} given; a text that is not empty is expected.")
        if self.holds not in str(value):
            raise ConfigError(f"{path}: {excerpt(repr(value))} given; it must hold {self.holds}.")


@dataclass(frozen=True, eq=False)
class Matches(Range):
    """A text of a form."""

    pattern: str
    """A regular expression for the whole text."""
    form: str
    """The form in words, for the sentence."""

    @property
    def words(self) -> str:  # type: ignore[override]
        """The form."""
        return self.form.rstrip(",")

    def check(self, value: Any, path: str) -> None:
        if not re.fullmatch(self.pattern, value):
            raise ConfigError(f"{path}: '{excerpt(value)}' given; {self.form} is expected.")


@dataclass(frozen=True, eq=False)
class Length(Range):
    """How many entries a list or mapping has."""

    least: int = 1
    """The fewest entries."""

    def check(self, value: Any, path: str) -> None:
        if len(value) < self.least:
            entries = "entry is" if self.least == 1 else "entries are"
            raise ConfigError(f"{path}: {excerpt(repr(value))} given; at least {self.least} {entries} expected.")


@dataclass(frozen=True, eq=False)
class Distinct(Range):
    """No entry twice."""

    def check(self, value: Any, path: str) -> None:
        if twice := [entry for i, entry in enumerate(value) if entry in value[:i]]:
            raise ConfigError(f"{path}: {excerpt(repr(twice[0]))} is given twice; each entry counts once.")


@dataclass(frozen=True, eq=False)
class ExistingPath(Range):
    """A file or folder that is there."""

    suffixes: tuple[str, ...] = ()
    """How its name may end; empty: in any way."""

    def check(self, value: Any, path: str) -> None:
        file = Path(str(value)).expanduser()
        if not file.exists():
            raise ConfigError(f"{path}: there is no file or folder '{excerpt(value)}'.")
        if self.suffixes and not file.name.endswith(self.suffixes):
            raise ConfigError(f"{path}: '{value}' given; a name that ends in {' or '.join(self.suffixes)} is expected.")


@dataclass(frozen=True, eq=False)
class Satisfies(Range):
    """What a function, given value and path, has no objection to: it raises ConfigError."""

    function: Callable[[Any, str], None]
    """The check."""

    def check(self, value: Any, path: str) -> None:
        self.function(value, path)


def _plainly(value: float) -> str:
    """A number as people write it: 1 where a field made 1.0 of it."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Interval:
    """A finite number in [low, high]; the ends are left out with `above` and `below`."""
    return Interval(low=low, high=high, low_open=above, high_open=below)


def whole(low: float = -math.inf, high: int = INT32_MAX) -> Interval:
    """A whole number in [low, high]."""
    return Interval(low=low, high=high, unit="whole number")


Finite = Annotated[float, number()]
"""Any number that is one."""
Positive = Annotated[float, number(0, above=True)]
"""A number above 0."""
NonNegative = Annotated[float, number(0)]
"""A number, at least 0."""
PositiveBound = Annotated[float, Interval(low=0, low_open=True, unbounded=True)]
"""A bound above 0; infinity: none."""
Bound = Annotated[float, Interval(low=0, unbounded=True)]
"""A bound, at least 0; infinity: none."""
Threshold = Annotated[float, Interval(unbounded=True)]
"""A number that others are compared with; infinity: never reached."""
Fraction = Annotated[float, number(0, 1)]
"""A fraction or probability, both ends included."""
PositiveFraction = Annotated[float, number(0, 1, above=True)]
"""A fraction above 0."""
ProperFraction = Annotated[float, number(0, 1, below=True)]
"""A fraction below 1."""
OpenFraction = Annotated[float, number(0, 1, above=True, below=True)]
"""A fraction that is neither 0 nor 1."""
Count = Annotated[int, whole(1)]
"""At least one of something."""
Natural = Annotated[int, whole(0)]
"""A number of things, 0 included."""
Whole = Annotated[int, whole()]
"""Any whole number."""
Seed = Annotated[int, whole(0, INT64_MAX)]
"""A seed of random streams."""
AnyText = Annotated[str, Text()]
"""Any text, the empty one too."""
Words = Annotated[str, Text(empty=False)]
"""A text that is not empty: a name, a path, a sentence."""
