"""What games over prompts share: where an attack is put, what it earns, and who plays against whom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

from advalign.bounded import PATTERNS_SECONDS, Allowance, Pattern
from advalign.checked import Checked
from advalign.errors import ConfigError
from advalign.interfaces import Scorer, Source, shrunk
from advalign.names import SamplerName
from advalign.ranges import AnyText, Count, Finite, NonNegative, OneOf, PositiveFraction, Text
from advalign.sources._rollouts import RolloutSource, Sampled
from advalign.sources._stream import StreamRuntime
from advalign.types import Example, Prompt, RolloutGroup, Sampling

PLACEMENTS = ("prefix", "suffix", "rewrite")
PAYOFFS = ("failure", "regret", "learnability")


@dataclass(frozen=True, kw_only=True)
class Injection(Checked, section="injection"):
    """Where an attack is put in a prompt, and which attacks are allowed. An empty attack leaves the prompt as it is."""

    template: Annotated[str, Text(holds="{prompt}")] = "{prompt}"
    """What the attacker is asked, with {prompt} for the prompt."""
    placement: Annotated[str, OneOf(PLACEMENTS, "placement")] = "prefix"
    """prefix: attack + separator + prompt; suffix: prompt + separator + attack; rewrite: the attack is the whole prompt."""
    separator: AnyText = " "
    """Between attack and prompt."""
    allowed: AnyText | None = None
    """Regular expression that the whole attack must match, so that it cannot change what is asked. None: any attack."""
    keep_words: bool = True
    """A rewrite must keep the words of the prompt, in their order: otherwise it would win by asking for something else."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.allowed or "")
        except re.error as error:
            raise ConfigError(f"injection.allowed: '{self.allowed}' is not a regular expression ({error}).") from error

    def ask(self, example: Example) -> Example:
        """What the attacker is asked. It has no verifier, since the attacker's text is not an answer."""
        return Example(prompt=self.template.replace("{prompt}", example.text), id=example.id)

    def valid(self, attack: str, prompt: str) -> bool:
        """Whether the attack is allowed on this prompt."""
        if self.allowed is not None:
            # What is matched in no bounded time is not allowed.
            matched = Pattern(pattern=self.allowed).fullmatch(attack, Allowance(PATTERNS_SECONDS))
            if not matched:
                return False
        if self.placement != "rewrite" or not self.keep_words:
            return True
        remaining = iter(attack.split())
        return all(word in remaining for word in prompt.split())

    def place(self, attack: str, prompt: str) -> str:
        """The attacked prompt."""
        if not attack or self.placement == "rewrite":
            return attack or prompt
        return self.separator.join((attack, prompt) if self.placement == "prefix" else (prompt, attack))


@dataclass(frozen=True, kw_only=True)
class PlayedGame(Sampled, RolloutSource):
    """Abstract base of a source whose draw a `defender` source can take its half from."""

    defender: SamplerName = "policy"
    """Learner (or frozen copy) that answers the attacked prompts."""
    answers: Count = 4
    """Answers to each attacked prompt."""
    answer_sampling: Sampling = field(default_factory=Sampling)
    """How the defender samples."""

    occasional_metrics: ClassVar[tuple[str, ...]] = ("rewards/*", "completions/mean_terminated_length", "attack_*", "accuracy/*")

    def smaller(self) -> Source:
        return shrunk(self, batch_size=2, group_size=2, answers=2)


class PlayedGameRuntime(StreamRuntime[RolloutGroup]):
    """Abstract runtime of such a source."""

    config: PlayedGame
    """Its configuration."""
    examples: Sequence[Example]  # type: ignore[assignment]
    """The problems it is played over."""
    scorers: Sequence[Scorer]
    """The started rewards of the game."""
    answers: list[RolloutGroup]
    """The defender's own groups of the last draw, scored by the game's rewards."""
    attacked: list[bool]
    """Which of them carry an attack."""


@dataclass(frozen=True, kw_only=True)
class Payoff(Checked, section="payoff"):
    """What an attack earns: `form` of the defender's scores, less a price on its length."""

    form: Annotated[str, OneOf(PAYOFFS, "payoff")] = "failure"
    """failure, regret or learnability: see `attack_payoff`."""
    length_cost: NonNegative = 0.0
    """Price per token of the attack."""
    invalid: Finite = -1.0
    """What an attack that is not allowed earns."""


def attack_payoff(form: str, scores: Sequence[float]) -> float:
    """A payoff of the scores u_1 .. u_K in [0, 1] of the answers to an attack, with mean p; nan without scores.

    failure: 1 - p, so that the game is zero-sum. regret: max u - p; of scores 0 or 1 that is 1 - p where some answer is right, else 0.
    learnability: 4 p (1 - p) K / (K - 1), which is largest where half of the answers are right; the factor makes it unbiased for scores
    0 or 1, since E[mean (1 - mean)] = p (1 - p) (K - 1) / K.
    """
    if not scores:
        return math.nan
    p = sum(scores) / len(scores)
    if form == "regret":
        return max(scores) - p
    if form == "learnability":
        return 4 * p * (1 - p) * len(scores) / (len(scores) - 1)
    return 1 - p


@dataclass(frozen=True, kw_only=True)
class Opponents(Checked, section="opponents"):
    """Frozen copies that take part, and in which fraction of the examples. In the remaining examples the two learners play each other."""

    attackers: Mapping[SamplerName, PositiveFraction] = field(default_factory=dict)
    """{copy of the attacker: fraction}; only the defender learns from these examples."""
    defenders: Mapping[SamplerName, PositiveFraction] = field(default_factory=dict)
    """{copy of the defender: fraction}; only the attacker learns from these examples."""

    def __post_init__(self) -> None:
        fractions = [*self.attackers.values(), *self.defenders.values()]
        if sum(fractions) > 1 + 1e-9:
            raise ConfigError(f"opponents: fractions {fractions} given; together they are at most 1.")

    def pairs(self, attacker: str, defender: str, number: int) -> list[tuple[str, str, int]]:
        """(attacker, defender, how many of `number` examples they play), the two learners first. Fractions are rounded so that the
        counts add up."""
        fractions = [(name, defender, fraction) for name, fraction in self.attackers.items()]
        fractions += [(attacker, name, fraction) for name, fraction in self.defenders.items()]
        cumulative, assigned, pairs = 0.0, 0, []
        for one, other, fraction in fractions:
            cumulative += fraction
            end = math.floor(cumulative * number + 0.5 + 1e-9)
            pairs.append((one, other, end - assigned))
            assigned = end
        return [(a, d, n) for a, d, n in ((attacker, defender, number - assigned), *pairs) if n]


def with_prompt(example: Example, prompt: Prompt) -> Example:
    """The same problem, its verifier included, under another prompt."""
    return example if prompt == example.prompt else replace(example, prompt=prompt)


def num_to_add(fraction: float, number: int) -> int:
    """How many must join `number` others to be `fraction` of all."""
    return math.floor(fraction / (1 - fraction) * number + 0.5)
