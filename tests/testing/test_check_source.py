"""check_source passes every built-in source, and names the slip of each broken one."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from advalign import Sampling, advantages, attacks, plugins, rewards, sources
from advalign.interfaces import Source, SourceRuntime
from advalign.sources._variants import Distractors
from advalign.testing import check_source
from advalign.testing._runs import QUESTIONS
from advalign.types import DemoRows, PairRows, RolloutRows

SHORT = Sampling(max_new_tokens=3)


@dataclass(frozen=True, kw_only=True)
class Shuffled(Source):
    """`batch_size` questions per draw, drawn with replacement."""

    data: Any = QUESTIONS
    batch_size: int = 4

    row_type: ClassVar[type] = DemoRows

    def start(self, context, name):
        return Runtime(self, context, name)


class Runtime(SourceRuntime):
    """The number of draws so far keys the next one."""

    def __init__(self, config, context, name):
        self.config, self.context, self.name, self.count = config, context, name, 0

    def draw(self, step, repeat):
        self.count += 1
        return self.rng(step).choices(self.config.data, k=self.config.batch_size)

    def rng(self, step):
        return self.context.random("source", self.name, step, self.count)

    def rows(self, items, encoder):
        return DemoRows(tokens=encoder.demos([x["prompt"] for x in items], [x["response"] for x in items]))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def slip(**members):
    """The source with a runtime in which these members are others."""
    runtime = type("Slip", (Runtime,), members)

    @dataclass(frozen=True, kw_only=True)
    class Broken(Shuffled):
        def start(self, context, name):
            return runtime(self, context, name)

    return Broken


@dataclass(frozen=True, kw_only=True)
class NoRowType(Source):
    def start(self, context, name):
        return Runtime(Shuffled(), context, name)


class OtherRows(Shuffled):
    row_type = PairRows


def sample(self, step, repeat):
    self.context.generate("policy", [], 1, SHORT, ("x", step))
    return Runtime.draw(self, step, repeat)


def wrong_rows(self, items, encoder):
    from dataclasses import replace

    rows = Runtime.rows(self, items, encoder)
    return replace(rows, tokens=replace(rows.tokens, key=rows.tokens.key * 0))


SLIPS = {
    "ignores the seed": (slip(rng=lambda self, step: random.Random(step)), "other seeds draw the same rows"),
    "global generator": (slip(rng=lambda self, step: random), "same seed draw different rows"),
    "no state": (
        slip(state_dict=lambda self: {}, load_state_dict=lambda self, state: None),
        "resumed from its state_dict draws other rows",
    ),
    "state of another source": (slip(load_state_dict=lambda self, state: state["position"]), "load_state_dict raised"),
    "state that no file holds": (slip(state_dict=lambda self: {"context": self.context}), "cannot be saved"),
    "empty": (slip(draw=lambda self, step, repeat: []), "a draw is empty"),
    "one key": (slip(rows=wrong_rows), "two rows have the same key"),
    "samples unsaid": (slip(draw=sample), "draws_before_updates is False"),
    "logs": (slip(logs={"text": "many"}), "logs hold 'text'"),
    "no row_type": (NoRowType, "row_type is not declared"),
    "other rows": (OtherRows, "rows are DemoRows, and row_type declares PairRows"),
}

demos = sources.Demos(data=QUESTIONS, batch_size=4)
sampled: dict[str, Any] = {
    "data": QUESTIONS,
    "batch_size": 3,
    "group_size": 2,
    "sampling": SHORT,
    "rewards": [rewards.Length()],
}
prompts = sources.Prompts(**sampled, advantage=advantages.Group())
game = sources.Game(**sampled, advantage=advantages.Group(), learner="attacker", answers=2, answer_sampling=SHORT)
pairs = sources.Pairs(data="task:arithmetic", batch_size=4, limit=20)
rewarded = [{"prompt": x["prompt"], "response": x["response"], "reward": i % 2} for i, x in enumerate(QUESTIONS)]

BUILT_IN = {
    "adversarial_prompts": lambda: (
        sources.AdversarialPrompts(
            **sampled, advantage=advantages.Group(), probes=1, candidates=2, distract=Distractors(alphabet=("one", "two"), length=2)
        ),
        {},
    ),
    "contrast": lambda: (sources.Contrast(real="chat", sampled="write", batch_size=3), {"sources": {"chat": demos, "write": prompts}}),
    "defender": lambda: (sources.Defender(game="game", advantage=advantages.Group()), {"sources": {"game": game}}),
    "demos": lambda: (demos, {}),
    "feedback": lambda: (sources.Feedback(data=QUESTIONS, batch_size=4), {}),
    "game": lambda: (game, {}),
    "labels": lambda: (sources.Labels(data=QUESTIONS, batch_size=4), {}),
    "pairs": lambda: (pairs, {"data": "task:arithmetic"}),
    "persistent_suffixes": lambda: (
        sources.PersistentSuffixes(source="pairs", size=3, batch_size=2, attack=attacks.RandomSearch(length=3, steps=2, goal="lower")),
        {"sources": {"pairs": pairs}, "data": "task:arithmetic"},
    ),
    "prompts": lambda: (prompts, {}),
    "rejection": lambda: (sources.Rejection(**sampled, collect=4), {}),
    "replay": lambda: (
        sources.Replay(source="write", advantage=advantages.Group(), batch_size=2),
        {"sources": {"write": prompts}},
    ),
    "self_vs_real": lambda: (sources.SelfVsReal(real="chat", batch_size=3, sampling=SHORT), {"sources": {"chat": demos}}),
    "trajectories": lambda: (sources.Trajectories(data=rewarded, advantage=advantages.Group(), batch_size=3), {}),
}


@pytest.mark.parametrize("kind", plugins.kinds("sources"))
def test_every_built_in_source_keeps_the_contract(kind):
    source, options = BUILT_IN[kind]()
    check_source(source, **options)


def test_a_source_of_ones_own_keeps_it():
    check_source(Shuffled())


def test_a_source_without_choices_says_so():
    fixed = slip(rng=lambda self, step: random.Random(step))()
    check_source(fixed, depends_on_seed=False)


@pytest.mark.parametrize(("cls", "says"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=says):
        check_source(cls())


def test_rollouts_are_rows_of_rollouts():
    assert prompts.row_type is RolloutRows
