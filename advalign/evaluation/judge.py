"""The harness's judgement: right or wrong before, within budget, right or wrong after. Attacks have no say in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from advalign.engine.views import region
from advalign.errors import ConfigError
from advalign.evaluation import utility
from advalign.evaluation.target import ClassifierTarget, GeneratorTarget
from advalign.functional import balls
from advalign.models import Network
from advalign.rewards.exact_answer import grade
from advalign.types import Budget, Example, Proposal, RolloutGroup, Sampling


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`shown`: the prediction or the answer, for the reader of the results."""

    correct: bool
    shown: str
    metrics: Mapping[str, float] = field(default_factory=dict)


class ClassifierJudge:
    """Correct means: the largest logit is the label's. Only examples that are right before are attacked."""

    attacks_wrong = False

    def __init__(self, network: Network) -> None:
        self.target = ClassifierTarget(network)

    def clean(self, examples: Sequence[Example]) -> list[Verdict]:
        for example in examples:
            if example.label is None:
                raise ConfigError(f"evaluation: example '{example.id}' has no label; a classifier is judged by labels.")
        return self._verdicts(examples, self._logits(examples))

    def after(self, examples: Sequence[Example], before: Sequence[Verdict], proposals: Sequence[Proposal]) -> list[Verdict]:
        edited = [i for i, p in enumerate(proposals) if p.edits is not None]
        texts = [replace(e, prompt=e.prompt if p.text is None else p.text) for e, p in zip(examples, proposals, strict=True)]
        logits = self._logits(texts)
        if edited:
            logits[edited] = self.target.predict_edited([texts[i] for i in edited], [proposals[i].edits or {} for i in edited])
        return self._verdicts(examples, logits)

    def utility(self, examples: Sequence[Example], verdicts: Sequence[Verdict]) -> tuple[dict[str, float], list[str]]:
        """Clean numbers, and what is suspicious about them."""
        labels, shown = [str(e.label) for e in examples], [v.shown for v in verdicts]
        flags = []
        if utility.constant(shown, labels):
            flags.append(
                f"**Constant predictions**: the model answers `{max(set(shown), key=shown.count)}` to almost everything. "
                "It is as accurate under any attack as without one, so its accuracy under attack means nothing."
            )
        return {"accuracy": sum(v.correct for v in verdicts) / len(verdicts)}, flags

    def _logits(self, examples: Sequence[Example]) -> torch.Tensor:
        pairs = [e.pair or "" for e in examples] if examples[0].pair is not None else None
        return self.target.predict([e.prompt for e in examples], pairs).clone()

    def _verdicts(self, examples: Sequence[Example], logits: torch.Tensor) -> list[Verdict]:
        chosen = logits.argmax(1).tolist()
        confidence = logits.softmax(1)[range(len(chosen)), [e.label or 0 for e in examples]].tolist()
        return [
            Verdict(correct=k == e.label, shown=str(k), metrics={"probability": c})
            for k, c, e in zip(chosen, confidence, examples, strict=True)
        ]


class GeneratorJudge:
    """Correct means: the greedy answer verifies (`verify`, or the exact answer). Where an example can be verified by neither,
    or the edit reaches into the response, an attack succeeds when it halves the reference response's per-token probability
    (its mean negative log-likelihood rises by log 2). Wrong examples are attacked too: their loss is part of the curve."""

    attacks_wrong = True

    def __init__(self, network: Network, sampling: Sampling) -> None:
        self.target = GeneratorTarget(network)
        self.sampling = sampling

    def clean(self, examples: Sequence[Example]) -> list[Verdict]:
        groups = self.target.generate(examples, 1, replace(self.sampling, temperature=0.0), ("clean",))
        texts = [g.rollouts[0].text for g in groups]
        return self._verdicts(examples, texts, self._nll(examples))

    def after(self, examples: Sequence[Example], before: Sequence[Verdict], proposals: Sequence[Proposal]) -> list[Verdict]:
        edited = [i for i, p in enumerate(proposals) if p.edits is not None]
        texts = [i for i, p in enumerate(proposals) if p.edits is None]
        replaced = [replace(examples[i], prompt=proposals[i].text or examples[i].prompt) for i in texts]
        found = dict(zip(texts, self.clean(replaced) if texts else [], strict=True))
        if edited:
            edits = [proposals[i].edits or {} for i in edited]
            found |= dict(zip(edited, self._edited([examples[i] for i in edited], [before[i] for i in edited], edits), strict=True))
        return [found[i] for i in range(len(examples))]

    def utility(self, examples: Sequence[Example], verdicts: Sequence[Verdict]) -> tuple[dict[str, float], list[str]]:
        names = dict.fromkeys(name for v in verdicts for name in v.metrics)
        means = {name: _mean([v.metrics[name] for v in verdicts if name in v.metrics]) for name in names}
        scored = [v for v in verdicts if "score" in v.metrics]
        clean = {"accuracy": sum(v.correct for v in scored) / len(scored)} if scored else {}
        flags = []
        if utility.constant([v.shown for v in verdicts], [e.prompt for e in examples]):
            flags.append(
                "**Constant answers**: the model gives one answer to almost every prompt; robustness of such a model means nothing."
            )
        return clean | means, flags

    def _edited(self, examples: Sequence[Example], before: Sequence[Verdict], edits: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        nll = self.target.nll(examples, edits).tolist()
        prompts = [len(self.target.network.encoder.prompt(e.prompt)) for e in examples]
        answered = [i for i, v in enumerate(before) if "score" in v.metrics and not any(x[prompts[i] :].any() for x in edits[i].values())]
        texts = self._continued([examples[i] for i in answered], [edits[i] for i in answered])
        found = dict(zip(answered, self._verdicts([examples[i] for i in answered], texts, [nll[i] for i in answered]), strict=True))
        for i, (verdict, loss) in enumerate(zip(before, nll, strict=True)):
            halved = loss >= verdict.metrics["nll"] + math.log(2)
            found.setdefault(i, Verdict(correct=verdict.correct and not halved, shown=f"nll {loss:.3f}", metrics={"nll": loss}))
        return [found[i] for i in range(len(examples))]

    def _continued(self, examples: Sequence[Example], edits: Sequence[Mapping[str, Any]]) -> list[str]:
        return self.target.continue_edited(examples, edits, self.sampling.max_new_tokens) if examples else []

    def _nll(self, examples: Sequence[Example]) -> list[float]:
        known = [i for i, e in enumerate(examples) if e.meta.get("response", e.answer) is not None]
        values = dict(zip(known, self.target.nll([examples[i] for i in known]).tolist(), strict=True)) if known else {}
        return [values.get(i, math.nan) for i in range(len(examples))]

    def _verdicts(self, examples: Sequence[Example], texts: Sequence[str], nll: Sequence[float]) -> list[Verdict]:
        found = []
        for example, text, loss in zip(examples, texts, nll, strict=True):
            score = grade(example, text, tolerance=1e-6, symbolic=False)
            metrics = {name: x for name, x in (("score", score), ("nll", loss)) if not math.isnan(x)}
            found.append(Verdict(correct=math.isnan(score) or score >= 1 - 1e-9, shown=text, metrics=metrics))
        return found


def judge_of(network: Network, sampling: Sampling) -> ClassifierJudge | GeneratorJudge:
    return ClassifierJudge(network) if network.head == "classifier" else GeneratorJudge(network, sampling)


def distance(network: Network, target: Any, attack: Any, example: Example, proposal: Proposal) -> float:
    """In the attack's own unit: the norm of the edit over the unit of its radius (largest over sites and balls), or the share of
    words changed. Infinite for an edit outside of the attack's stated threat model."""
    if proposal.edits is None:
        return changed_words(example.prompt, example.prompt if proposal.text is None else proposal.text)
    threat = attack.threat
    allowed = region(threat.where, target.tokens([example]))[0]
    sizes = [0.0]
    for site, add in proposal.edits.items():
        # Attacks hand over the tokens of the example alone, so a delta that is longer or off its region breaks the rules.
        if site not in threat.sites or add.shape[0] != allowed.shape[0] or bool(add[~allowed].abs().sum() != 0):
            return math.inf
        sizes.append(float(balls.norm(add[None].double(), ball=threat.ball, scope=threat.scope).max()) / target.unit(threat))
    return max(sizes)


def violation(budget: Budget, *, size: float, edited: bool, queries: int, seconds: float) -> str:
    """What a proposal overspent, in words; empty where it kept its budget."""
    limits = [
        ("queries", queries, budget.queries),
        ("radius", size if edited else 0.0, budget.radius),
        ("share of words changed", 0.0 if edited else size, budget.edits),
        ("seconds", seconds, budget.seconds),
    ]
    # A float32 delta of norm r may measure r (1 + 1e-7) in float64.
    over = [f"{name} {spent:.6g} of {limit:.6g}" for name, spent, limit in limits if limit is not None and spent > limit * (1 + 1e-5)]
    return "; ".join(over)


def changed_words(first: str, second: str) -> float:
    """Levenshtein distance in words over the number of words of the first text."""
    a, b = first.split(), second.split()
    previous = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        current = [i]
        for j, other in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (word != other)))
        previous = current
    return previous[-1] / max(len(a), 1)


def generation(network: Network, examples: Sequence[Example], *, samples: int, sampling: Sampling, seed: int = 0) -> dict[str, float]:
    """Sampled utility: score, pass@1, pass@k, diversity per prompt and entropy of the distributions sampled from."""
    target = GeneratorTarget(network)
    groups = target.generate(examples, samples, sampling, (seed, "generation"))
    return {**graded(groups), "entropy": target.entropy(groups).double().mean().item()}


def graded(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    texts = [[r.text for r in g.rollouts] for g in groups]
    scores = [[grade(g.example, t, tolerance=1e-6, symbolic=False) for t in ts] for g, ts in zip(groups, texts, strict=True)]
    found = {"unique": utility.unique_fraction(texts), "distinct_2": utility.distinct_n([t for ts in texts for t in ts], 2)}
    if any(math.isnan(s) for row in scores for s in row):
        return found
    correct, k = [sum(s >= 1 - 1e-9 for s in row) for row in scores], len(scores[0])
    rates = {f"pass@{n}": utility.pass_at_k(correct, k, n) for n in dict.fromkeys((1, k))}
    return {"score": _mean([s for row in scores for s in row]), **rates, **found}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


__all__ = ["ClassifierJudge", "GeneratorJudge", "Verdict", "changed_words", "distance", "generation", "judge_of", "violation"]
