"""Does the text have the required form?"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from advalign.errors import ConfigError
from advalign.interfaces import Context, Reward
from advalign.ranges import Words
from advalign.types import RolloutGroup

INSIDE = r"(?:(?!</?(?:think|answer)>).)*"
THINK_ANSWER = rf"(?s)<think>{INSIDE}</think>\s*<answer>{INSIDE}</answer>"


@dataclass(frozen=True, kw_only=True)
class Format(Reward):
    """r = 1[the whole text, outer white space aside, matches `pattern`].

    The format reward of DeepSeek-R1 (arXiv:2501.12948, section 2.2.2; tags of its table 1). Ours: each tag exactly once, in this order,
    and nothing around them (an answer tag inside the thoughts counts too); a pattern that merely occurs somewhere does not match.
    """

    pattern: Words = THINK_ANSWER
    """Regular expression; the default asks for <think>...</think><answer>...</answer>."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"rewards.format.pattern: '{self.pattern}' is not a regular expression ({error}).") from None

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        pattern = re.compile(self.pattern)

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            return [float(pattern.fullmatch(r.text.strip()) is not None) for g in groups for r in g.rollouts]

        return score


__all__ = ["Format"]
