"""Functions as rewards: those written for TRL run unchanged, and are called as TRL calls them."""

import asyncio
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.context import FakeContext

from advalign import data
from advalign.advantages import GDPO
from advalign.errors import ConfigError
from advalign.rewards import Function
from advalign.sources._rollouts import build_rows, without_abstentions
from advalign.sources._scoring import score, start_scorers, total_reward
from advalign.types import Rollout, RolloutGroup


def rollout(text):
    return Rollout(response_ids=[1, 2], sampler_logprobs=[0.0, 0.0], text=text, finished=True)


def groups_of(rows, *texts, **options):
    return [
        RolloutGroup(example=example, prompt_ids=[0], rollouts=[rollout(text) for text in texts])
        for example in data.examples(rows, **options)
    ]


def scores(fn, groups, context=None):
    return list(Function(fn=fn).start(context or FakeContext())(groups))


CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 1/3 ?"}]


# ------------------------------------------------------------------------------------------------- TRL's own rewards


@pytest.mark.parametrize("prompt", [CHAT, "what is 1/3 ?"], ids=["messages", "text"])
def test_trl_s_accuracy_reward_reads_the_column_solution(prompt):
    rewards = pytest.importorskip("trl.rewards")
    rows = [{"prompt": prompt, "solution": r"\frac{1}{3}"}, {"prompt": prompt, "solution": "no number here"}]
    texts = [r"My answer is \boxed{\frac{1}{3}}", r"My answer is \boxed{\frac{1}{2}}"]
    # TRL by hand: one completion is a list of one message; None where the solution cannot be parsed.
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    expected = [rewards.accuracy_reward(completions, [row["solution"]] * 2) for row in rows]
    assert expected == [[1.0, 0.0], [None, None]]
    result = scores(rewards.accuracy_reward, groups_of(rows, *texts))
    assert result[:2] == [1.0, 0.0]
    assert all(map(math.isnan, result[2:]))


def test_trl_s_format_and_length_rewards():
    rewards = pytest.importorskip("trl.rewards")
    texts = ["<think>\na\n</think>\nb", "<think>\na\nb"]
    assert scores(rewards.think_format_reward, groups_of([{"prompt": CHAT}], *texts)) == [1.0, 0.0]
    # Two ids, limit 4 with a margin of 3: allowed up to 1, so (1 - 2) / 3.
    punishment = rewards.get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=3)
    assert scores(punishment, groups_of([{"prompt": "p"}], "a")) == [pytest.approx(-1 / 3)]


# ------------------------------------------------------------------------------------------------------ the arguments


def test_every_column_of_the_data_is_an_argument_under_its_own_name():
    rows = [
        {"question": "q", "solution": "s", "answer": "so\n#### 72", "label": "pos", "level": 3, "completion": "c", "completion_ids": [9]}
    ]
    seen = {}

    def fn(prompts, completions, completion_ids, solution, level, **others):
        seen.update(others, prompts=prompts, solution=solution, level=level, ids=completion_ids)
        return [0.0] * len(completions)

    scores(fn, groups_of(rows, "a", "b"))
    assert seen["solution"] == ["s", "s"]
    assert seen["answer"] == ["so\n#### 72"] * 2  # the column, as TRL hands it over
    assert (seen["level"], seen["label"], seen["question"]) == ([3, 3], ["pos", "pos"], ["q", "q"])
    assert seen["ids"] == [[1, 2], [1, 2]]
    assert not {"prompt", "completion"} & set(seen)


def test_prompts_and_completions_are_messages_where_the_data_has_messages():
    def fn(prompts, completions):
        assert prompts == [CHAT, CHAT]
        assert completions == [[{"role": "assistant", "content": text}] for text in ("a", "bb")]
        return [len(completion[0]["content"]) for completion in completions]

    assert scores(fn, groups_of([{"prompt": CHAT}], "a", "bb")) == [1, 2]
    reference = [*CHAT, {"role": "assistant", "content": "the reference answer"}]
    assert scores(fn, groups_of([{"messages": reference}], "a", "bb")) == [1, 2]


def test_messages_are_those_of_the_data():
    """TRL: `prompts` are the values of the column, whatever keys and contents they have; an attacked prompt is what was asked."""
    system = {"role": "system", "content": "be polite", "name": "me"}
    parts = {"role": "user", "content": [{"type": "text", "text": "say "}, {"type": "text", "text": "red"}]}
    row = {"prompt": [system, parts], "tools": [{"name": "f"}], "chat_template_kwargs": {"enable_thinking": False}, "solution": "red"}
    seen = {}

    def fn(**columns):
        seen.update(columns)
        return [0.0]

    (group,) = groups_of([row], "a")
    scores(fn, [group])
    assert seen["prompts"] == [row["prompt"]]
    assert seen["completions"] == [[{"role": "assistant", "content": "a"}]]
    assert {key: seen[key] for key in row if key != "prompt"} == {key: [value] for key, value in row.items() if key != "prompt"}
    scores(fn, [replace(group, example=group.example.with_text("say blue"))])
    assert seen["prompts"] == [[system, {"role": "user", "content": "say blue"}]]


def test_a_function_without_annotations_gets_text_where_the_data_has_text():
    assert scores(
        lambda prompts, completions: [p == "hi" and c == "a" for p, c in zip(prompts, completions, strict=True)],
        [*groups_of([{"prompt": "hi"}], "a", "b")],
    ) == [1, 0]


def test_a_required_argument_that_is_no_column_is_named():
    def fn(completions, solutions):
        return [0.0]

    with pytest.raises(ConfigError, match=r"requires 'solutions'; data: no column 'solutions'\..*Did you mean 'solution'"):
        scores(fn, groups_of([{"prompt": "p", "solution": "s"}], "a"))


def test_defaults_partials_and_callable_objects():
    class Judge:
        def __call__(self, completions, scale=2, **kwargs):
            return [scale * len(c) for c in completions]

    groups = groups_of([{"prompt": "p"}], "abc")
    assert scores(Judge(), groups) == [6]
    assert scores(partial(Judge(), scale=5), groups) == [15]


def test_async_functions_are_awaited_on_one_loop():
    loops = []

    async def fn(completions, **kwargs):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return [len(c) if c else None for c in completions]

    class Judge:
        async def __call__(self, prompts, completions, **kwargs):
            return [1.0 for _ in completions]

    groups = groups_of([{"prompt": "p"}], "ab", "")
    first = scores(partial(fn), groups)
    assert first[0] == 2
    assert math.isnan(first[1])
    assert scores(Judge(), groups) == [1, 1]
    scores(fn, groups)
    assert loops[0] is loops[1]

    async def inside_a_loop():
        return scores(fn, groups)[0]

    assert asyncio.run(inside_a_loop()) == 2


def test_the_state_of_the_trainer_is_handed_over():
    context = FakeContext(total_steps=40)
    context.step = 7
    fn = lambda completions, trainer_state: [trainer_state.global_step / trainer_state.max_steps for _ in completions]  # noqa: E731
    assert scores(fn, groups_of([{"prompt": "p"}], "a"), context) == [7 / 40]


def test_metrics_and_extra_columns_are_logged():
    def fn(completions, log_metric, log_extra=None, **kwargs):
        log_metric("mean_chars", sum(map(len, completions)) / len(completions))
        log_extra("chars", [len(c) for c in completions])
        log_extra("upper", [c.upper() for c in completions])
        return [1.0 for _ in completions]

    rewards = [Function(fn=fn), Function(fn=lambda completions: [0.0 for _ in completions])]
    context = FakeContext()
    logs = score(
        groups_of([{"prompt": "p"}, {"prompt": "q"}], "a", "bbb"), rewards, start_scorers(rewards, context, (), "sources.s"), "sources.s"
    )
    assert logs["metrics/mean_chars"] == 2
    assert logs["extra/chars"] == 2
    assert logs["extra/upper/distinct"] == 2


class Ranks(FakeContext):
    """A context of `world_size` processes, one after the other: process r does items r, r + world_size, ..."""

    def __init__(self, world_size):
        super().__init__()
        self.world_size = world_size

    def map_across_ranks(self, items, work):
        joined = [None] * len(items)
        for rank in range(self.world_size):
            local_items = items[rank :: self.world_size]
            joined[rank :: self.world_size] = json.loads(json.dumps(work(local_items) if local_items else []))
        return joined


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_metrics_of_several_processes_are_means_over_their_calls(world_size):
    """TRL: the sum of the values that all processes logged, by their number; a process without rows logs none."""
    lengths = [1, 5, 2, 9, 4]

    def fn(completions, log_metric, log_extra):
        log_metric("longest", max(map(len, completions)))
        log_extra("chars", [len(c) for c in completions])
        return [float(len(c)) for c in completions]

    groups = [g for n in lengths for g in groups_of([{"prompt": "p"}], "x" * n)]
    logs = score(groups, [Function(fn=fn)], start_scorers([Function(fn=fn)], Ranks(world_size), (), "sources.s"), "sources.s")
    calls = [lengths[rank::world_size] for rank in range(world_size) if lengths[rank::world_size]]
    assert logs["metrics/longest"] == sum(map(max, calls)) / len(calls)
    assert logs["extra/chars"] == sum(lengths) / len(lengths)
    assert [g.rollouts[0].rewards for g in groups] == [[float(n)] for n in lengths]


# ------------------------------------------------------------------------------------------------------- abstentions


class Ids:
    """An encoder that joins the sampler's ids."""

    def rollouts(self, groups):
        from advalign.models.padding import pad

        rows = [[*g.prompt_ids, *r.response_ids] for g in groups for r in g.rollouts]
        return pad(rows, [1] * len(rows), 0, [i for i, g in enumerate(groups) for _ in g.rollouts])


def test_none_leaves_a_reward_out_of_the_row_s_sum_and_of_its_own_statistics():
    first = lambda completions: [1.0, None, 3.0, None]  # noqa: E731
    second = lambda completions: [4.0, 6.0, 8.0, None]  # noqa: E731
    rewards = [Function(fn=first, weight=2.0), Function(fn=second)]
    groups = groups_of([{"prompt": "p"}], "a", "b", "c", "d")
    score(groups, rewards, start_scorers(rewards, FakeContext(), (), "sources.s"), "sources.s")
    totals = [total_reward(r, [2.0, 1.0]) for r in groups[0].rollouts]
    # TRL: (rewards * weights).nansum, and nan where every reward is None.
    assert totals[:3] == [6, 6, 14]
    assert math.isnan(totals[3])
    kept, number = without_abstentions(groups)
    assert number == 1
    rows = build_rows(kept, Ids(), [2.0, 1.0], 1.0)
    assert rows.rewards.sum(1).tolist() == [6, 6, 14]
    assert rows.scored.tolist() == [[True, True], [False, True], [True, True]]
    # GDPO, whiten: none. First reward (2, -, 6): mean 4, std of ddof 1 sqrt(8); second (4, 6, 8): mean 6, std 2.
    per_token, _ = GDPO(whiten="none")(rows, None, lambda x: x)
    expected = torch.tensor([-2 / 8**0.5 - 1, 0.0, 2 / 8**0.5 + 1])
    assert torch.allclose(per_token[:, 1], expected)
