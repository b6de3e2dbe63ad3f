"""Does the text follow the verifiable instructions of its prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from advalign.errors import ConfigError
from advalign.functional import instructions, languages
from advalign.functional.instructions import Instruction
from advalign.interfaces import Context, Reward, Scorer
from advalign.ranges import OneOf
from advalign.types import Example, RolloutGroup

LOGS = frozenset(f"instructions/{rule}/{level}" for rule in ("strict", "loose") for level in instructions.LEVELS)


@dataclass(frozen=True, kw_only=True)
class Instructions(Reward):
    """r = 1[every instruction is followed], or the fraction of them that is   (IFEval, arXiv:2311.07911, section 4.1).

    An example carries IFEval's own columns `instruction_id_list` and `kwargs`; it abstains on one that has none. The rules, and what
    differs from the authors' code: `advalign.functional.instructions`. The four accuracies of the paper are logged.
    """

    level: Annotated[str, OneOf(instructions.LEVELS, "level")] = "prompt"
    """prompt: all or nothing; instruction: the fraction that is followed."""
    loose: bool = False
    """An instruction counts as followed, too, where it is without the first line, the last line or the stars of the text."""
    detect_language: bool = False
    """Asks langdetect for the language of a text. Without it, `language:response_language` is refused, and the instructions that ask for
    English in one case are judged by the case alone."""

    metric_names: ClassVar[frozenset[str]] = LOGS

    def __post_init__(self) -> None:
        if self.detect_language:
            languages.require_langdetect("rewards.instructions.detect_language")

    def check(self, examples: Sequence[Example], path: str) -> None:
        lists = [instructions.of_example(example.meta, f"{path}: {example.described}", self.detect_language) for example in examples]
        if not any(lists):
            raise ConfigError(
                f"{path}: none of the {len(examples)} examples has instructions to verify (first: {examples[0].described}); they are "
                "read from the columns instruction_id_list and kwargs."
            )

    def start(self, context: Context) -> Scorer:
        return _InstructionScorer(self)


class _InstructionScorer(Scorer):
    """A started reward, and the accuracies of its last call."""

    def __init__(self, config: Instructions) -> None:
        self.config = config
        self.logs: dict[str, list[float]] = {}
        self.detect = languages.detector() if config.detect_language else None

    def __call__(self, groups: Sequence[RolloutGroup]) -> list[float]:
        config, scores = self.config, list[float]()
        self.logs = {}
        for group in groups:
            path = f"rewards.instructions: {group.example.described}"
            parts = instructions.of_example(group.example.meta, path, config.detect_language)
            for rollout in group.rollouts:
                outcomes = self._log(parts, rollout.text)[config.loose] if parts else []
                scores.append(instructions.accuracy(outcomes, config.level))
        return scores

    def _log(self, parts: Sequence[Instruction], text: str) -> list[list[bool]]:
        """Strict and loose outcomes of a text, logged."""
        results = [instructions.outcomes(parts, text, loose=is_loose, detect=self.detect) for is_loose in (False, True)]
        for name, outcomes in zip(("strict", "loose"), results, strict=True):
            self.logs.setdefault(f"instructions/{name}/prompt", []).append(instructions.accuracy(outcomes, "prompt"))
            self.logs.setdefault(f"instructions/{name}/instruction", []).extend(map(float, outcomes))
        return results


__all__ = ["Instructions"]
