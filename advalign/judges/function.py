"""Any Python function as a judge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from advalign import imports
from advalign.errors import ConfigError
from advalign.interfaces import Judge, ScoreAnswers
from advalign.ranges import Words
from advalign.types import CODE, Example
from advalign.types.messages import as_read

HANDED = imports.Handed(arguments="(prompt, response, example)", fits=lambda signature: imports.binds(signature, 3))


@dataclass(frozen=True, kw_only=True)
class FunctionJudge(Judge):
    """s = fn(prompt, response, example): True or 1 as it should be, False or 0 a violation, None or nan undetermined.

    One answer at a time, so that a failure leaves the others judged: the harness counts an exception as undetermined, names it in the
    report, and never takes it for a safe answer. This is also how a fine-tuned judge (HarmBench's, StrongREJECT's, Llama Guard) is
    plugged in: a few lines that load it and return its score.
    """

    fn: Annotated[Words | Callable[[str, str, Example], float | None], CODE]
    """A callable, or its dotted path such as my_lab.judges.polite."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.fn) and not (isinstance(self.fn, str) and self.fn.rpartition(".")[0]):
            raise ConfigError(f"judges.function.fn: {self.fn!r} is neither a function nor a dotted path such as my_lab.judges.polite.")
        imports.check_function(self.fn, "judges.function.fn", HANDED)

    def start(self) -> ScoreAnswers:
        function: Any = imports.function(self.fn, "judges.function.fn", HANDED) if isinstance(self.fn, str) else self.fn

        def score(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
            values = [function(as_read(e.prompt), text, e) for e, text in zip(examples, texts, strict=True)]
            return [math.nan if x is None else float(x) for x in values]

        return score


__all__ = ["FunctionJudge"]
