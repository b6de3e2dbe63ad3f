"""Does an answer follow the verifiable instructions of its prompt?"""

from collections.abc import Sequence
from dataclasses import dataclass

from advalign.functional import instructions, languages
from advalign.functional.instruction_rules import Detect
from advalign.interfaces import Judge, ScoreAnswers
from advalign.types import Example


@dataclass(frozen=True, kw_only=True)
class InstructionsJudge(Judge):
    """s = 1[every instruction of the example is followed]   (IFEval, arXiv:2311.07911, section 4.1); nan where it has none.

    The rules of the reward of the same name, on the same columns `instruction_id_list` and `kwargs`.
    """

    loose: bool = False
    """An instruction counts as followed, too, where it is without the first line, the last line or the stars of the text."""
    detect_language: bool = False
    """Asks langdetect for the language of a text, which `language:response_language` needs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.detect_language:
            languages.require_langdetect("judges.instructions.detect_language")

    def start(self) -> ScoreAnswers:
        detect = languages.detector() if self.detect_language else None

        def score(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
            return [self._score(e, text, detect) for e, text in zip(examples, texts, strict=True)]

        return score

    def _score(self, example: Example, text: str, detect: Detect | None) -> float:
        parts = instructions.of_example(example.meta, f"judges.instructions: {example.described}", self.detect_language)
        return instructions.accuracy(instructions.outcomes(parts, text, loose=self.loose, detect=detect), "prompt")


__all__ = ["InstructionsJudge"]
