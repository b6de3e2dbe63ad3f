"""A suite of attacks on one model: clean utility first; then every attack proposes and the harness re-queries, checks the
budget and judges. One JSON line per attack and example, written at once: a killed run that is started again continues and
ends with the same file, bit for bit."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf
from rich.progress import track

from advalign import builder
from advalign import data as loading
from advalign.errors import ConfigError, unknown
from advalign.evaluation.suites import certified as certificates
from advalign.evaluation.suites.benign import Benign, over_refusal
from advalign.evaluation.suites.harness import Arm, Harness
from advalign.evaluation.suites.judging import generation, judge_of
from advalign.evaluation.suites.log import ResultLog, fingerprint, model_fingerprint
from advalign.evaluation.suites.result import SuiteResult
from advalign.evaluation.suites.workers import spread
from advalign.interfaces import Attack, Judge
from advalign.targets.black_box import needs_model
from advalign.targets.cache import AnswerCache
from advalign.targets.target import by_name, named
from advalign.types import Budget, Example, Sampling


@dataclass(frozen=True, kw_only=True)
class Suite:
    """`data`: examples, or a reference to them (see `advalign.data`). Clean utility is measured on all of them, attacks on
    `examples` of them, drawn with `seed`. Every attack that has a radius is run at each of `radii`, in its own unit.
    `samples` > 0 adds pass@k, diversity and entropy of a generator. `certified`: what to prove about the vote of noisy or masked
    copies of a classifier, on the attacked examples (`{name: {kind: smoothing | ranmask, ...}}`, docs/certified.md). `judge`: what reads
    a generator's answers (`{kind: refusal}`, see `advalign list judges`); without one they verify. `benign`: prompts that ought to be
    answered, the twins of those that ought not. `seen`: names of attacks that training knew; the others are reported apart."""

    data: Any
    attacks: Mapping[str, Attack]
    examples: int = 100
    radii: Sequence[float] = ()
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    samples: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    certified: Mapping[str, certificates.Smoothing | certificates.Masking] = field(default_factory=dict)
    judge: Judge | None = None
    benign: Benign | None = None
    seen: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in self.seen:
            if name not in self.attacks:
                raise unknown("suite.seen", "attack", name, self.attacks)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """From a YAML file or a mapping of the same shape; attacks are `{name: {kind: ..., ...}}`."""
        config: Any = source if isinstance(source, Mapping) else OmegaConf.to_container(OmegaConf.load(source), resolve=True)
        if not isinstance(config, Mapping):
            raise ConfigError(f"suite: {source} holds no mapping of fields; a suite has data and attacks.")
        config = dict(config)
        if "certified" in config:
            config["certified"] = certificates.build(config["certified"])
        suite: Self = builder.build_dataclass(cls, config, "suite")
        return suite

    @property
    def arms(self) -> list[Arm]:
        """An attack once, or once per radius."""
        return [
            Arm(name=name if radius is None else f"{name}@{radius:g}", attack=name, radius=radius, draws=attack.draws)
            for name, attack in self.attacks.items()
            for radius in (self.radii if self.radii and attack.at_radius(self.radii[0]) is not None else [None])
        ]

    def run(
        self,
        network: Any,
        output_dir: str | Path | None = None,
        *,
        progress: bool = False,
        workers: int = 1,
        cache: str | Path | None = None,
    ) -> SuiteResult:
        """Attack `network`, a loaded model or what is known by its answers alone (`AnsweringClassifier`, `AnsweringGenerator`).

        With `output_dir`: results.jsonl, timings.jsonl, summary.json, report.html and report.md there; run again after a kill, it goes
        on where it was. workers: processes that share the work (on a CPU); the results do not depend on it. cache: an SQLite file of
        a classifier's answers, shared by attacks and runs. Raises ConfigError before the first attack for what cannot be run.
        """
        needs_model(self.attacks, network)
        examples, head = self._examples(network), network.head
        mark = fingerprint(self, network, examples)
        judge = judge_of(network, self.sampling, self.judge)
        judgements = judge.clean(examples)
        twins = None if self.benign is None else over_refusal(self.benign, judge, seed=self.seed)
        clean, failures = judge.utility(examples, judgements, () if twins is None else twins.answers)
        if self.samples and head == "policy":
            clean |= generation(network, examples, samples=self.samples, sampling=self.sampling, seed=self.seed)
        chosen = self._chosen(len(examples))
        work = [(arm, chunk) for arm in self.arms for chunk in _chunks(chosen, self.attacks[arm.attack].examples_at_once or 1)]
        log = ResultLog(output_dir, mark, [[(a.name, examples[i].id) for i in c] for a, c in work])
        proven = certificates.run(self.certified, network, [examples[i] for i in chosen], seed=self.seed, folder=output_dir)
        answers = None if cache is None else AnswerCache(cache, model_fingerprint(network))
        harness = Harness(network=network, judge=judge, attacks=self.attacks, budget=self.budget, seed=self.seed, cache=answers)
        left = [(arm, [examples[i] for i in chunk], [judgements[i] for i in chunk]) for arm, chunk in work[log.num_chunks :]]
        for results in track(spread(harness, left, workers), total=len(left), description="attacks", disable=not progress):
            log.append(results)
        result = SuiteResult(
            head=head,
            arms=self.arms,
            clean=clean,
            num_clean=len(examples),
            failures=[*failures, *([] if twins is None else twins.failures)],
            before={examples[i].id: judgements[i] for i in chosen},
            prompts={examples[i].id: examples[i].prompt for i in chosen},
            results=log.results,
            certified=[row for name, found in proven.items() for row in certificates.rates(name, self.certified[name], found)],
            benign=twins,
            seen=tuple(self.seen),
            judge=self.judge,
        )
        if output_dir is not None:
            result.save(Path(output_dir))
        return result

    def _examples(self, network: Any) -> list[Example]:
        given, head = self.data, network.head
        if isinstance(given, str | Mapping):
            # A judge reads the answers themselves; without one, the reference response is what is measured.
            read = loading.examples if head == "classifier" or self.judge is not None else loading.demonstrations
            given = read(given, split="test", seed=self.seed)
        examples = named([Example(**e) if isinstance(e, Mapping) else e for e in given])
        examples = by_name(examples, network) if head == "classifier" else examples
        if not examples:
            raise ConfigError("suite.data: no examples.")
        repeated = len(examples) - len({e.id for e in examples})
        if repeated:
            raise ConfigError(f"suite.data: {repeated} examples share the id of another; ids name the lines of results.jsonl.")
        return examples

    def _chosen(self, number: int) -> list[int]:
        return sorted(random.Random(self.seed).sample(range(number), min(self.examples, number)))


def _chunks(chosen: Sequence[int], size: int) -> list[Sequence[int]]:
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


__all__ = ["Suite"]
