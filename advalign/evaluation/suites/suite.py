"""A suite of attacks on one model: clean utility first; then every attack proposes, and the harness asks the model again, checks the
budget and judges. One JSON line per attack and example, written at once: a killed run that is started again continues and ends with
the same file, bit for bit."""

import contextlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

from rich.progress import track

from advalign import builder, imports, interpolation, names, yaml_files
from advalign import data as loading
from advalign import overrides as overriding
from advalign.checked import Checked
from advalign.errors import ConfigError, unknown
from advalign.evaluation.suites import certified as certificates
from advalign.evaluation.suites import goals
from advalign.evaluation.suites.benign import Benign, OverRefusal, over_refusal
from advalign.evaluation.suites.certified import Certificate, CertificateMethod
from advalign.evaluation.suites.checker import AnswerChecker, Judgement
from advalign.evaluation.suites.classifier_checker import ClassifierChecker
from advalign.evaluation.suites.data import Data, read_examples
from advalign.evaluation.suites.fingerprint import model_fingerprint, suite_fingerprint, suite_settings
from advalign.evaluation.suites.generator_checker import GeneratorChecker
from advalign.evaluation.suites.harness import Arm, Harness
from advalign.evaluation.suites.log import PATH, ResultLog
from advalign.evaluation.suites.result import SuiteResult
from advalign.evaluation.suites.sampled_utility import sampled_utility
from advalign.evaluation.suites.workers import run_chunks
from advalign.interfaces import Attack, Judge
from advalign.models import Network
from advalign.ranges import Count, Natural, NonNegative, OneOf, Seed, Words
from advalign.run_folder import locked
from advalign.targets import AnswerCache, BlackBoxModel, target_of
from advalign.targets.black_box import check_access
from advalign.targets.examples import class_names, labelled_reader, with_label_indices
from advalign.types import NEUTRAL, AttackResult, Budget, Example, Sampling
from advalign.types.messages import ATTACKED_TURNS, with_attacked_turn


@dataclass(frozen=True, kw_only=True)
class _CleanUtility:
    """What is measured before any attack."""

    head: str
    """Of the model."""
    examples: Sequence[Example]
    """All of them."""
    judgements: Sequence[Judgement]
    """One per example."""
    numbers: Mapping[str, float]
    """By name."""
    failures: Sequence[str]
    """Sentences about what makes them meaningless."""
    benign: OverRefusal | None
    """What is refused among benign prompts."""
    classes: Sequence[Mapping[str, Any]] = ()
    """One row per class that has a name."""


RESERVED = ("clean", "worst case")
"""Names of rows of reports, which no attack may have."""


@dataclass(frozen=True, kw_only=True)
class Suite(Checked, section="suite"):
    """Attacks on one model, and what is measured beside them."""

    data: Annotated[Data, NEUTRAL]
    """Examples, or a reference to them (see `advalign.data`); clean utility is measured on all of them."""
    attacks: Mapping[Words, Attack]
    """By name."""
    examples: Count = 100
    """How many of the examples are attacked, drawn with `seed`."""
    radii: Sequence[NonNegative] = ()
    """Every attack that has a radius runs at each of these, in its own unit; empty: at its own radius."""
    budget: Budget = field(default_factory=Budget)
    """Of every attack, per example."""
    seed: Seed = 0
    """Of the choice of examples and of every random stream."""
    samples: Natural = 0
    """Sampled responses per prompt of a generator, for pass@k, diversity and entropy; 0: none."""
    sampling: Sampling = field(default_factory=Sampling)
    """How responses are sampled; its `max_new_tokens` also limits greedy ones."""
    certified: Mapping[str, CertificateMethod] = field(default_factory=dict)
    """What to certify about the vote of noisy or masked copies of a classifier, on the attacked examples (docs/certified.md)."""
    judge: Judge | None = None
    """What judges a generator's answers (see `advalign list judges`); None: they are verified."""
    benign: Benign | None = None
    """Prompts that should be answered, beside those that should not."""
    seen: Annotated[Sequence[Words], NEUTRAL] = ()
    """Names of attacks used in training; the others are reported apart."""
    attacked_turn: Annotated[str, OneOf(ATTACKED_TURNS, "role")] = field(default="user", repr=False)
    """Of prompts that are conversations: the role whose last turn attacks on texts rewrite. user; tool or system where an attacker writes
    there (injected instructions)."""

    def __post_init__(self) -> None:
        for name in self.seen:
            if name not in self.attacks:
                raise unknown("suite.seen", "attack", name, self.attacks)
        for name in set(RESERVED).intersection(self.attacks):
            raise ConfigError(f"suite.attacks.{name}: given as a name, which reports have for something else; rename the attack.")
        names = Counter(arm.name for arm in self.arms)
        for name, number in names.items():
            if number > 1:
                raise ConfigError(f"suite: {number} attacks or radii are called '{name}', which names rows of results; rename one.")

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """From a YAML file or a mapping of the same shape, with dotted overrides; attacks are `{name: {kind: ..., ...}}`."""
        document, known = None, names.declared(Suite)
        values: Any = source
        if not isinstance(source, Mapping):
            document = yaml_files.read(source, "a suite has data and attacks")
            document.check_names("field of a suite", known)
            imports.search_beside(document.path)
            values = document.values
        config = overriding.apply(values, overrides, known, "field of a suite")
        if document is not None:
            config = interpolation.resolve(config, document.where)
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
        model: Network | BlackBoxModel,
        output_dir: str | Path | None = None,
        *,
        progress: bool = False,
        workers: int = 1,
        cache: str | Path | None = None,
        resume: bool = True,
        overwrite: bool = False,
    ) -> SuiteResult:
        """Attack `model`, a network or one known only by its answers (`AnsweringClassifier`, `AnsweringGenerator`).

        With `output_dir`: results.jsonl, timings.jsonl, summary.json, report.html and report.md there; run again after a kill, it
        resumes, unless `resume` is False. A folder with results of anything else is refused, unless `overwrite` clears it, and so is one
        that another evaluation writes to. `workers`: processes that share the work (on a CPU); the results do not depend on it. `cache`:
        an SQLite file of a classifier's answers, shared by attacks and runs. Raises ConfigError before the first attack for what cannot
        be run.
        """
        check_access(self.attacks, target_of(model))
        examples, checker = self.examples_for(model), self._checker(model)
        if not self.attacks and not self.certified:
            raise ConfigError("suite.attacks: none given, so the suite would show nothing; give at least one attack, or a certificate.")
        chosen = sorted(random.Random(self.seed).sample(range(len(examples)), min(self.examples, len(examples))))
        attacked = [examples[i] for i in chosen]
        aims = self._aimed(model, checker, attacked)
        suite = replace(self, attacks=aims.attacks)
        with contextlib.nullcontext() if output_dir is None else locked(output_dir, PATH):
            names = [[(arm.name, e.id) for e in part] for arm, part in self._parts(attacked)]
            benign = () if self.benign is None else self.benign.examples(seed=self.seed)
            settings = suite_settings(suite, attacked) | {"results": [arm.name for arm in self.arms]}
            fingerprint = suite_fingerprint(suite, model, examples, benign)
            log = ResultLog(output_dir, fingerprint, names, settings, resume=resume, overwrite=overwrite)
            clean = self._clean_utility(model, checker, examples)
            certified = certificates.run(self.certified, model, attacked, seed=self.seed, folder=output_dir)
            answers = None if cache is None else AnswerCache(cache, model_fingerprint(model))
            harness = Harness(model=model, checker=checker, attacks=aims.attacks, budget=self.budget, seed=self.seed, cache=answers)
            before = {examples[i].id: clean.judgements[i] for i in chosen}
            rest = [(arm, part, [before[e.id] for e in part]) for arm, part in self._parts(attacked)[log.num_chunks :]]
            for results in track(run_chunks(harness, rest, workers), total=len(rest), description="attacks", disable=not progress):
                log.append(results)
            result = replace(self._result(clean, attacked, log.results, certified), notes=aims.notes)
            if output_dir is not None:
                result.save(Path(output_dir))
        return result

    def examples_for(self, model: Network | BlackBoxModel) -> list[Example]:
        """The examples of `data`, as this model needs them: with ids, and labels as indices of its classes."""
        if model.head == "classifier":
            examples = with_label_indices(read_examples(self.data, labelled_reader(model), seed=self.seed), model)
        else:  # a judge reads the answers themselves; without one, the reference response is what is measured
            examples = read_examples(self.data, loading.demonstrations if self.judge is None else loading.examples, seed=self.seed)
            wanted = None if self.judge is None else self.judge.wanted
            if wanted is not None:
                examples = [e if e.reference is not None else replace(e, meta={**e.meta, "response": wanted}) for e in examples]
        if not examples:
            raise ConfigError("suite.data: no examples.")
        examples = [replace(e, prompt=with_attacked_turn(e.prompt, self.attacked_turn, "suite.attacked_turn")) for e in examples]
        repeated = len(examples) - len({e.id for e in examples})
        if repeated:
            raise ConfigError(f"suite.data: {repeated} examples share the id of another; ids name the lines of results.jsonl.")
        return examples

    def _checker(self, model: Network | BlackBoxModel) -> AnswerChecker:
        if model.head != "classifier":
            return GeneratorChecker(target_of(model), self.sampling, self.judge)
        if self.judge is not None:
            raise ConfigError("suite.judge: given, but the model is a classifier, which is judged by its labels; leave it out.")
        return ClassifierChecker(target_of(model), class_names(model))

    def _aimed(self, model: Network | BlackBoxModel, checker: AnswerChecker, examples: Sequence[Example]) -> goals.Aimed:
        """The attacks, with the goals that follow from what is judged."""
        if not isinstance(checker, GeneratorChecker):
            return goals.Aimed(attacks=self.attacks)
        goals.check_beginnings(self.attacks, model, checker, examples)
        return goals.aimed(self.attacks, checker, examples)

    def _clean_utility(self, model: Network | BlackBoxModel, checker: AnswerChecker, examples: Sequence[Example]) -> _CleanUtility:
        judgements = checker.clean(examples)
        if model.head != "classifier" and self.judge is None and all(j.undetermined for j in judgements):
            raise ConfigError(
                "suite.judge: none given, and nothing else can judge the answers: no example verifies them or has an answer, and no loss "
                "of a reference response is known; give a judge."
            )
        benign = None if self.benign is None else over_refusal(self.benign, checker, seed=self.seed)
        numbers, failures = checker.utility(examples, judgements, () if benign is None else benign.answers)
        if self.samples and isinstance(model, Network) and model.head == "policy":
            numbers |= sampled_utility(model, examples, samples=self.samples, sampling=self.sampling, seed=self.seed)
        failures = [*failures, *([] if benign is None else benign.failures)]
        classes = checker.by_class(examples, judgements)
        return _CleanUtility(
            head=model.head, examples=examples, judgements=judgements, numbers=numbers, failures=failures, benign=benign, classes=classes
        )

    def _result(
        self,
        clean: _CleanUtility,
        attacked: Sequence[Example],
        results: Sequence[AttackResult],
        certified: Mapping[str, Sequence[Certificate]],
    ) -> SuiteResult:
        before = dict(zip((e.id for e in clean.examples), clean.judgements, strict=True))
        return SuiteResult(
            head=clean.head,
            arms=self.arms,
            clean=clean.numbers,
            num_clean=len(clean.judgements),
            classes=clean.classes,
            failures=clean.failures,
            before={e.id: before[e.id] for e in attacked},
            prompts={e.id: e.text for e in attacked},
            results=results,
            certified=[row for name, rows in certified.items() for row in certificates.rates(name, self.certified[name], rows)],
            benign=clean.benign,
            seen=tuple(self.seen),
            judge=self.judge,
        )

    def _parts(self, examples: Sequence[Example]) -> list[tuple[Arm, Sequence[Example]]]:
        """Every arm on all examples, as many at once as its attack takes."""
        parts: list[tuple[Arm, Sequence[Example]]] = []
        for arm in self.arms:
            size = self.attacks[arm.attack].examples_at_once or 1
            parts += [(arm, examples[i : i + size]) for i in range(0, len(examples), size)]
        return parts


__all__ = ["Suite"]
