"""Does the text have the required form?"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

from advalign.bounded import PATTERNS_SECONDS, Allowance, Pattern
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
    and nothing around them (an answer tag inside the thoughts counts too); a pattern that merely occurs somewhere does not match. A match
    of a pattern of one's own that takes more than a second of processor time is none; after 30 in one draw the rest abstains.
    """

    pattern: Words = THINK_ANSWER
    """Regular expression; the default asks for <think>...</think><answer>...</answer>."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"rewards.format.pattern: '{self.pattern}' is not a regular expression ({error}).") from error

    def start(self, context: Context) -> Callable[[Sequence[RolloutGroup]], Sequence[float]]:
        own, given = re.compile(THINK_ANSWER), Pattern(pattern=self.pattern)

        def score(groups: Sequence[RolloutGroup]) -> list[float]:
            texts, allowance = [r.text.strip() for g in groups for r in g.rollouts], Allowance(PATTERNS_SECONDS)
            if self.pattern == THINK_ANSWER:  # takes time in proportion to the text
                return [float(own.fullmatch(text) is not None) for text in texts]
            return [nan if allowance.used_up else float(given.fullmatch(text, allowance) is True) for text in texts]

        return score


__all__ = ["Format"]
