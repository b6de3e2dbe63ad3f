"""What games over prompts share: where an attack is put, what it earns, and who plays whom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Reward, Scorer, SourceRuntime
from advalign.types import Example, RolloutGroup, Sampling

PLACEMENTS = ("prefix", "suffix", "rewrite")
PAYOFFS = ("failure", "regret", "learnability")


@dataclass(frozen=True, kw_only=True)
class Injection:
    """prefix: attack + separator + prompt; suffix: prompt + separator + attack; rewrite: the attack is the whole prompt.

    template: what the attacker is asked, with {prompt} for the prompt. allowed: a regular expression that the whole attack must match,
    so that it cannot change what is asked. A rewrite must keep the words of the prompt, in their order (`keep_words`): otherwise it would
    win by asking for something else. An empty attack is no attack.
    """

    template: str = "{prompt}"
    placement: str = "prefix"
    separator: str = " "
    allowed: str | None = None
    keep_words: bool = True

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise unknown("injection.placement", "placement", self.placement, PLACEMENTS)
        if "{prompt}" not in self.template:
            raise ConfigError(f"injection.template: '{self.template}' given; it must hold {{prompt}}, which stands for the prompt.")
        try:
            re.compile(self.allowed or "")
        except re.error as error:
            raise ConfigError(f"injection.allowed: '{self.allowed}' is no regular expression ({error}).") from error

    def ask(self, example: Example) -> Example:
        """What the attacker is asked. It carries no verifier: its text is no answer."""
        return Example(prompt=self.template.replace("{prompt}", example.prompt), id=example.id)

    def valid(self, attack: str, prompt: str) -> bool:
        if self.allowed is not None and re.fullmatch(self.allowed, attack) is None:
            return False
        if self.placement != "rewrite" or not self.keep_words:
            return True
        rest = iter(attack.split())
        return all(word in rest for word in prompt.split())

    def place(self, attack: str, prompt: str) -> str:
        if not attack or self.placement == "rewrite":
            return attack or prompt
        return self.separator.join((attack, prompt) if self.placement == "prefix" else (prompt, attack))


class PlayedGame:
    """Abstract: a source whose draw a `defender` source can take its half from. Its fields are those of `game`."""

    if TYPE_CHECKING:
        defender: str
        answers: int
        answer_sampling: Sampling
        rewards: Sequence[Reward]


class PlayedGameRuntime(SourceRuntime[RolloutGroup]):
    """Abstract: the runtime of such a source."""

    config: Any
    """Its `PlayedGame`."""
    examples: Sequence[Example]
    """The problems it is played over."""
    scorers: Sequence[Scorer]
    """The started rewards of the game."""
    answers: list[RolloutGroup]
    """The defender's own groups of the last draw, scored by the game's rewards."""
    attacked: list[bool]
    """Which of them carry an attack."""


@dataclass(frozen=True, kw_only=True)
class Payoff:
    """What an attack earns where the defender's answers score u_1 .. u_K in [0, 1] with mean p: `earned` less `length_cost` per token;
    an attack that is not allowed earns `invalid`."""

    form: str = "failure"
    length_cost: float = 0.0
    invalid: float = -1.0

    weight: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.form not in PAYOFFS:
            raise unknown("payoff.form", "payoff", self.form, PAYOFFS)
        if not math.isfinite(self.invalid) or not 0 <= self.length_cost < math.inf:
            raise ConfigError(f"payoff: length_cost {self.length_cost}, invalid {self.invalid}; finite numbers, the cost at least 0.")


def earned(of: str, scores: Sequence[float]) -> float:
    """failure: 1 - p, so that the game is zero-sum. regret: max u - p; of scores 0 or 1 that is 1 - p where some answer is right, else 0.
    learnability: 4 p (1 - p) K / (K - 1), which is largest where half of the answers are right; the factor makes it unbiased for scores
    0 or 1, since E[mean (1 - mean)] = p (1 - p) (K - 1) / K. nan without scores."""
    if not scores:
        return math.nan
    p = sum(scores) / len(scores)
    if of == "regret":
        return max(scores) - p
    if of == "learnability":
        return 4 * p * (1 - p) * len(scores) / (len(scores) - 1)
    return 1 - p


@dataclass(frozen=True, kw_only=True)
class Opponents:
    """Frozen copies that take part, and in which share of the examples: of the attacker (only the defender learns from those), and of
    the defender (only the attacker does). In the rest the two learners of now meet."""

    attackers: Mapping[str, float] = field(default_factory=dict)
    defenders: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = [*self.attackers.values(), *self.defenders.values()]
        if any(not 0 < share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"opponents: shares {shares} given; each is above 0, and together they are at most 1.")

    def pairs(self, attacker: str, defender: str, number: int) -> list[tuple[str, str, int]]:
        """(attacker, defender, how many of `number` examples they play), the learners of now first. Shares are rounded so that the
        counts add up."""
        found = [(name, defender, share) for name, share in self.attackers.items()]
        found += [(attacker, name, share) for name, share in self.defenders.items()]
        reached, used, counted = 0.0, 0, []
        for one, other, share in found:
            reached += share
            upto = math.floor(reached * number + 0.5 + 1e-9)
            counted.append((one, other, upto - used))
            used = upto
        return [(a, d, n) for a, d, n in ((attacker, defender, number - used), *counted) if n]


def asked(example: Example, prompt: str) -> Example:
    """The same problem, its verifier included, under another prompt."""
    return example if prompt == example.prompt else replace(example, prompt=prompt)


def extra(share: float, number: int) -> int:
    """How many must join `number` others to be `share` of all."""
    return math.floor(share / (1 - share) * number + 0.5)
