"""Any Python function as a judge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from advalign import plugins
from advalign.errors import ConfigError
from advalign.interfaces import Judge
from advalign.types import Example


@dataclass(frozen=True, kw_only=True)
class FunctionJudge(Judge):
    """s = fn(prompt, response, example): True or 1 as it should be, False or 0 a violation, None or nan: it cannot tell.

    fn: a callable, or its dotted path. One answer at a time, so that one that fails leaves the others judged: the harness counts an
    exception as undetermined, names it in the report, and never takes it for a safe answer. This is also how a fine-tuned judge
    (HarmBench's, StrongREJECT's, Llama Guard) is plugged in: a few lines that load it and return what it says.
    """

    fn: Any = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.fn) and not (isinstance(self.fn, str) and self.fn.rpartition(".")[0]):
            raise ConfigError(f"judges.function.fn: {self.fn!r} is neither a function nor a dotted path such as my_lab.judges.polite.")

    def start(self) -> Callable[[Sequence[Example], Sequence[str]], Sequence[float]]:
        function = plugins.function(self.fn, "judges.function.fn")

        def score(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
            given = [function(e.prompt, text, e) for e, text in zip(examples, texts, strict=True)]
            return [math.nan if x is None else float(x) for x in given]

        return score


__all__ = ["FunctionJudge"]
