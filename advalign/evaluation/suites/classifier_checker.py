"""Judgements about a classifier: its largest logit is the label's, or it is not."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.evaluation.suites.checker import (
    NOT_FINITE,
    AnswerChecker,
    Judgement,
    attempted_texts,
    check_finite,
    group_by_example,
)
from advalign.functional.escaping import code
from advalign.interfaces import Target
from advalign.metrics import utility
from advalign.targets.examples import paired_texts
from advalign.types import Example, Proposal


class ClassifierChecker(AnswerChecker):
    """Correct means: the largest logit is the label's. Only examples that are right before are attacked."""

    attacks_wrong = False

    def __init__(self, target: Target, names: Sequence[str] = ()) -> None:
        """`names`: of the classes, by index, which answers are shown by; empty: by index."""
        self.target, self.names = target, tuple(names)

    def clean(self, examples: Sequence[Example]) -> list[Judgement]:
        logits = self._logits(examples)
        for example in examples:
            if example.label is None or not 0 <= example.label < logits.shape[1]:  # of a model known by its answers
                raise ConfigError(
                    f"evaluation: example '{example.id}' has label {example.label}, and the model knows {logits.shape[1]} classes, 0 to "
                    f"{logits.shape[1] - 1}; map the labels, or load the model that was trained on them."
                )
        check_finite(examples, logits.softmax(1).isfinite().all(1).tolist(), "logits")
        return self._judgements(examples, logits)

    def after(
        self, examples: Sequence[Example], before: Sequence[Judgement], proposals: Sequence[Proposal], key: Sequence[object] = ()
    ) -> list[list[Judgement]]:
        rows = [(i, e.with_text(t)) for i, (e, p) in enumerate(zip(examples, proposals, strict=True)) for t in attempted_texts(e, p)]
        moved, order = [example for _, example in rows], [i for i, _ in rows]
        logits = self._logits(moved)
        edited = [r for r, i in enumerate(order) if proposals[i].edits is not None]
        if edited:
            logits[edited] = self.target.predict_edited([moved[r] for r in edited], [proposals[order[r]].edits or {} for r in edited])
        return group_by_example(len(examples), order, self._judgements(moved, logits))

    def utility(
        self, examples: Sequence[Example], judgements: Sequence[Judgement], benign_answers: Sequence[str] = ()
    ) -> tuple[dict[str, float], list[str]]:
        labels, shown = [self._name(e.label) for e in examples], [j.shown for j in judgements]
        failures = []
        if utility.constant(shown, labels):
            failures.append(
                f"**Constant predictions**: the model answers {code(max(set(shown), key=shown.count))} to almost everything. "
                "It is as accurate under any attack as without one, so its accuracy under attack means nothing."
            )
        accuracy = sum(j.correct for j in judgements) / len(judgements)
        chance = max(map(labels.count, labels)) / len(labels)
        if len(judgements) >= 30 and accuracy < 0.5 * chance:
            failures.append(
                f"**Labels disagree**: clean accuracy is {accuracy:.0%}, far below the {chance:.0%} of always giving the commonest label; "
                "the model's classes are probably in another order than the data's."
            )
        return {"accuracy": accuracy}, failures

    def by_class(self, examples: Sequence[Example], judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        rows = []
        for index, name in enumerate(self.names):
            shown = [j.shown for e, j in zip(examples, judgements, strict=True) if e.label == index]
            wrong = Counter(answer for answer in shown if answer != name)
            if shown:
                row = {"class": name, "examples": len(shown), "accuracy": shown.count(name) / len(shown)}
                rows.append(row | {"most often taken for": "".join(answer for answer, _ in wrong.most_common(1))})
        return rows

    def _name(self, index: int | None) -> str:
        """What a class is called in results."""
        return self.names[index] if index is not None and index < len(self.names) else str(index)

    def _logits(self, examples: Sequence[Example]) -> Float[Tensor, "B C"]:
        return self.target.predict([e.prompt for e in examples], paired_texts(examples)).clone()

    def _judgements(self, examples: Sequence[Example], logits: Float[Tensor, "B C"]) -> list[Judgement]:
        chosen = logits.argmax(1).tolist()
        confidence = logits.softmax(1)[range(len(chosen)), [e.label or 0 for e in examples]].tolist()
        return [
            Judgement(correct=True, shown="", undetermined=True, note=NOT_FINITE)
            if math.isnan(c)
            else Judgement(correct=k == e.label, shown=self._name(k), metrics={"probability": c})
            for k, c, e in zip(chosen, confidence, examples, strict=True)
        ]


__all__ = ["ClassifierChecker"]
