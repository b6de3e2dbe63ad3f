"""What a discriminator compares: real, perturbed, corrupted and generated rows, and how they are paired."""

import json
import random
from dataclasses import replace

import pytest
from helpers.context import FakeContext
from helpers.runs import write
from helpers.sources import ExampleRuntime

from advalign.advantages.group import Group
from advalign.errors import ConfigError
from advalign.rewards.exact_answer import ExactAnswer
from advalign.sources._corrupt import CORRUPTIONS, corrupt
from advalign.sources.contrast import CORRUPTED, GENERATED, PERTURBED, REAL, Contrast
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.tasks.constraints import Constraints
from advalign.types import Example, Rollout, RolloutGroup


class Drawn(FakeContext):
    """A context with a fixed real side and a fixed draw of responses."""

    def __init__(self, real, groups=()):
        super().__init__(source_configs={"r": Demos(data="task:constraints"), "s": write()})
        self.sources["r"] = ExampleRuntime(real)
        self.groups = list(groups)

    def random(self, *key):
        return random.Random(str(key))

    def current_items(self, name):
        return self.groups or None

    def logprobs(self, learner, prompts, texts, finished, *, temperature=1.0):
        return [-float(len(text.split())) for text in texts]


def demo(prompt, response, verify=None):
    return Example(prompt=prompt, meta={"response": response}, verify=verify)


def group(prompt, *texts, verify=None):
    rollouts = [Rollout(response_ids=[1], sampler_logprobs=[0.0], text=text, finished=True) for text in texts]
    return RolloutGroup(example=Example(prompt=prompt, verify=verify), prompt_ids=[1], rollouts=rollouts)


def test_what_was_sampled_and_is_right_may_be_the_real_side():
    """By hand: of each draw the verified responses; where a draw has none, those of the draws before, and they survive a checkpoint."""

    class Sampled(Drawn):
        def __init__(self, groups):
            super().__init__([], groups)
            self.sources["s"] = ExampleRuntime([])
            self.source_configs["s"] = Prompts(data="task:constraints", rewards=[ExactAnswer()], advantage=Group())

    def answered(*texts):
        return replace(group("q", *texts), example=Example(prompt="q", id="q", verify=lambda text: float("ok" in text)))

    context = Sampled([answered("ok a", "no", "ok b")])
    runtime = Contrast(real="s", corrupt=("drop",), batch_size=5).start(context, "v")
    items = runtime.draw(0, 0)
    assert sorted((i.kind, i.text) for i in items if i.kind == 0) == [(0, "ok a"), (0, "ok b")]
    assert {i.text for i in items if i.kind == 3} == {"a", "b"}  # dropping the other word would leave them right
    context.groups = [answered("no", "nein")]
    assert {i.text for i in runtime.draw(1, 0) if i.kind == 0} == {"ok a", "ok b"}
    again = Contrast(real="s", corrupt=("drop",), batch_size=5).start(Sampled(context.groups), "v")
    with pytest.raises(ConfigError, match="none of its responses so far is right"):
        again.draw(1, 0)
    again.load_state_dict(json.loads(json.dumps(runtime.state_dict())))
    assert again.draw(2, 0) == runtime.draw(2, 0)


def test_real_rows_of_the_prompts_that_were_sampled():
    real = [demo(f"q{i}", f"a{i} {k}") for i in range(6) for k in range(2)]
    context = Drawn(real, [group("q1", "x", "y", "z"), group("q4", "u", "v"), group("q9", "w")])
    items = Contrast(real="r", sampled="s", match="prompt", group_size=2).start(context, "v").draw(0, 0)
    by_group = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    assert sorted({i.prompt for i in items}) == ["q1", "q4"]  # q9 has no real response
    for rows in by_group.values():
        assert len({i.prompt for i in rows}) == 1
        assert sorted(i.kind for i in rows) == [REAL, GENERATED, GENERATED]  # two at most of q1's three
    with pytest.raises(ConfigError, match="none of the prompts that 's' answered has a real response in 'r'"):
        Contrast(real="r", sampled="s", match="prompt").start(Drawn(real, [group("q9", "w")]), "v").draw(0, 0)


def test_length_matched_pairs():
    """Real lengths 5 5 6 6 7, generated 3 4 5 6 6: at tolerance 0 only 5, 6 and 6 have partners."""
    real = [demo(f"q{i}", " ".join(["r"] * n)) for i, n in enumerate((5, 5, 6, 6, 7))]
    context = Drawn(real, [group(f"p{i}", " ".join(["g"] * n)) for i, n in enumerate((3, 4, 5, 6, 6))])
    runtime = Contrast(real="r", sampled="s", lengths=0.0).start(context, "v")
    items = runtime.draw(0, 0)
    lengths = {kind: sorted(len(i.text.split()) for i in items if i.kind == kind) for kind in (REAL, GENERATED)}
    assert lengths == {REAL: [5, 6, 6], GENERATED: [5, 6, 6]}
    assert runtime.logs == {"length_matched": 3 / 5}
    # A quarter of the longer one: 3 still has no partner, 4 is within 0.25 * 5 = 1.25 of a 5, and 7 of a 6 (1 <= 1.75).
    loose = Contrast(real="r", sampled="s", lengths=0.25).start(context, "v").draw(0, 0)
    assert sorted(len(i.text.split()) for i in loose if i.kind == GENERATED) in ([4, 5, 6, 6], [5, 6, 6])


def test_where_no_length_fits_the_nearest_pair_stays():
    real = [demo("q", "r r r r"), demo("q2", "r r r r r r")]
    context = Drawn(real, [group("p", "g", "g g")])
    items = Contrast(real="r", sampled="s", lengths=0.0).start(context, "v").draw(0, 0)
    assert [len(i.text.split()) for i in items] == [4, 2]


def test_corrupted_texts_are_wrong_and_one_change_away():
    task = Constraints()
    examples = task.examples("train", 40, random.Random(0))
    for example in examples:
        text = task.demonstrate(example, random.Random(example.id))
        corrupted = corrupt(text, ("drop", "repeat", "swap"), random.Random(1), example.verify)
        assert corrupted is not None
        assert example.verify(corrupted) == 0
        assert abs(len(corrupted.split()) - len(text.split())) <= 1


@pytest.mark.parametrize(
    ("kind", "text", "possible"),
    [
        ("numbers", "x = 7", {f"x = {n}" for n in range(10) if n != 7}),
        ("operators", "3 + 4", {"3 - 4", "3 * 4", "3 / 4"}),
        ("operators", "no such thing", {None}),
        ("drop", "a b", {"a", "b"}),
        ("repeat", "a b", {"a a b", "a b b"}),
        ("swap", "a b c", {"b a c", "c b a", "a c b"}),
        ("swap", "a a", {None}),
        ("cut", "a b c", {"a", "a b"}),
        ("cut", "a", {None}),
    ],
)
def test_corruptions_by_hand(kind, text, possible):
    results = {CORRUPTIONS[kind](text, random.Random(seed)) for seed in range(200)}
    assert results <= possible
    assert len(results) == len(possible) or kind == "numbers"


def test_kinds_of_rows_and_what_is_subtracted_from_a_score():
    task = Constraints()
    real = [demo(e.prompt, task.demonstrate(e, random.Random(0)), e.verify) for e in task.examples("train", 3, random.Random(0))]
    whole = {e.prompt: e for e in task.examples("train", 400, random.Random(0))}
    real = [Example(prompt=e.prompt, meta={**whole[e.prompt].meta, **e.meta}, verify=e.verify) for e in real]
    source = Contrast(real="r", sampled="s", perturb=task, corrupt=("drop",), minus_logprob="policy", batch_size=3)
    items = source.start(Drawn(real, [group("p", "red blue")]), "v").draw(0, 0)
    counts = [sum(i.kind == kind for i in items) for kind in (REAL, PERTURBED, GENERATED, CORRUPTED)]
    assert counts == [3, 3, 1, 3]
    assert all(i.offset == -len(i.text.split()) for i in items)


def test_a_text_that_verifies_is_not_a_negative():
    context = Drawn([demo("q", "a")], [group("p", "good", "bad", verify=lambda text: float(text == "good"))])
    for override, kept in ((True, ["bad"]), (False, ["bad", "good"])):
        items = Contrast(real="r", sampled="s", override=override).start(context, "v").draw(0, 0)
        assert sorted(i.text for i in items if i.kind == GENERATED) == kept


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"match": "promt", "sampled": "s"}, "'promt'.*prompt"),
        ({"match": "prompt"}, "name it as sampled"),
        ({"corrupt": ("dorp",)}, "'dorp'.*drop"),
        ({"length_unit": "tokens"}, "'tokens'.*words"),
        ({"replay": 1.5}, "replay: 1.5 given; a number from 0 to 1"),
    ],
)
def test_contrast_refuses(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Contrast(real="r", **fields)
