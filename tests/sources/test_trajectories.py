"""Offline rollouts from a file: groups, rewards, log-probabilities, and what is refused."""

import copy
import json
import math

import pytest
import torch
from helpers.networks import network
from helpers.runs import game, policy, spy
from helpers.sources import Scripted, names, slow_logprobs

from advalign import TrainingArguments
from advalign.advantages.group import Group
from advalign.advantages.leave_one_out import LeaveOneOut
from advalign.errors import BudgetError, ConfigError
from advalign.objectives._policy import Correction
from advalign.objectives.grpo import GRPO
from advalign.sources.trajectories import Trajectories
from advalign.types import RolloutRows

CENTRED = Group(scale="none")


def offline(data, net=None, **fields):
    context = Scripted(net=net or network())
    runtime = Trajectories(**{"data": data, "advantage": CENTRED, "batch_size": 2, **fields}).start(context, "past")
    return runtime, context


def advantages(runtime, context, estimator=CENTRED):
    """{text: advantage of its tokens}."""
    items = runtime.draw(0, 0)
    rows = runtime.rows(items, context.encoder("policy"))
    values, _ = estimator(rows, None, lambda x: x)
    each = (values.sum(1) / rows.tokens.target.sum(1)).tolist()
    return dict(zip([r.text for g in items for r in g.rollouts], each, strict=True))


ROWS = [
    {"prompt": "a :", "response": "b", "reward": 1},
    {"prompt": "c :", "response": "d", "reward": 0.5},
    {"prompt": "a :", "response": "c", "reward": 0},
    {"prompt": "a :", "response": "d e", "reward": 0.0},
    {"prompt": "a :", "response": "f", "reward": 0},
]


def test_trajectories_of_a_prompt_are_a_group_and_their_advantages_are_those_of_its_rewards():
    # Prompt "a :" has the rewards (1, 0, 0, 0): mean 1/4. Against the mean of the other three: 1 - 0 and 0 - 1/3. "c :" stands alone.
    found = advantages(*offline(ROWS))
    assert found == pytest.approx({"b": 3 / 4, "c": -1 / 4, "d e": -1 / 4, "f": -1 / 4, "d": 0.0}, abs=1e-6)
    found = advantages(*offline(ROWS), LeaveOneOut())
    assert found == pytest.approx({"b": 1.0, "c": -1 / 3, "d e": -1 / 3, "f": -1 / 3, "d": 0.0}, abs=1e-6)


def test_a_list_of_rewards_is_summed_and_a_group_column_goes_before_the_prompt():
    data = [
        {"question": "a :", "answer": "b", "scores": [1, 0.5], "trial": 1},
        {"question": "a :", "answer": "c", "scores": [0, 0.5], "trial": 1},
        {"question": "a :", "answer": "d", "scores": [0, 0.25], "trial": 2},
        {"question": "a :", "answer": "e", "scores": [1, 0.75], "trial": 2},
    ]
    columns = {"reward": "scores", "group": "trial", "response": "answer"}
    # MetricAccumulator (1.5, 0.5) and (0.25, 1.75): means 1 and 1.
    assert advantages(*offline(data, columns=columns)) == pytest.approx({"b": 0.5, "c": -0.5, "d": -0.75, "e": 0.75}, abs=1e-6)
    wrong = [*data, {"question": "b :", "answer": "e", "scores": [1, 0], "trial": 2}]
    with pytest.raises(ConfigError, match=r"^sources.past: row '5' is in group '2' with another prompt; a group answers one prompt\.$"):
        offline(wrong, columns=columns)


def test_trajectories_read_a_file_and_limit_whole_groups(tmp_path):
    file = tmp_path / "tried.jsonl"
    file.write_text("".join(json.dumps({**row, "prompt": f"{p} :"}) + "\n" for p in "abcdef" for row in ROWS[2:]))
    runtime, _ = offline(str(file), limit=4, batch_size=4)
    drawn = runtime.draw(0, 0)
    assert len(set(names(drawn))) == 4
    assert all([r.text for r in g.rollouts] == ["c", "d e", "f"] for g in drawn)
    assert names(offline(str(file), limit=4, batch_size=4)[0].draw(0, 0)) == names(drawn)
    assert len({tuple(names(offline(str(file), limit=4, batch_size=4, seed=s)[0].draw(0, 0))) for s in range(4)}) > 1


def test_logprobs_of_the_file_are_the_old_policy_and_stand_at_their_tokens():
    # "b c" and its end are three tokens, "d" and its end two; a cut response has no end.
    data = [
        {"prompt": "a :", "response": "b c", "reward": 1, "logprobs": [-1, -2, -0.5]},
        {"prompt": "a :", "response": "d", "reward": 0, "logprobs": [-3, -0.25]},
        {"prompt": "a :", "response": "d", "reward": 0, "logprobs": [-4], "finished": False},
    ]
    runtime, context = offline(data, batch_size=1, temperature=0.5)
    encoder = context.encoder("policy")
    rows = runtime.rows(runtime.draw(0, 0), encoder)
    assert isinstance(rows, RolloutRows)
    assert rows.temperature == 0.5
    assert rows.finished.tolist() == [True, True, False]
    start = len(encoder.prompt("a :"))
    assert [row[start:].tolist() for row in rows.old_logprobs] == [[-1, -2, -0.5], [-3, -0.25, 0], [-4, 0, 0]]
    assert not rows.old_logprobs[:, :start].any()
    assert rows.tokens.ids[1, start:].tolist() == [*encoder.response("d"), encoder.pad_id]
    assert rows.tokens.target.sum(1).tolist() == [3, 2, 1]


WRONG = {
    "logprobs": ([{**ROWS[0], "logprobs": [-1, -2, -3]}], r"row '1' has 3 logprobs for a response of 2 tokens, its end included; .*"),
    "some logprobs": ([{**ROWS[0], "logprobs": [-1, -2]}, ROWS[1]], r"1 of 2 rows have no logprobs; give them to every row, or to none"),
    "text for logprobs": ([{**ROWS[0], "logprobs": "low"}], r"row '1': logprobs: 'low' given; finite numbers are expected"),
    "no reward": ([{"prompt": "a :", "response": "b"}], r"row '1' has no reward; name its column with columns: {reward: ...}"),
    "a reward that is nan": ([{**ROWS[0], "reward": math.nan}], r"row '1': reward: \[nan\] given; finite numbers are expected"),
    "other rewards": ([{**ROWS[0], "reward": [1, 2]}, ROWS[1]], r"some rows have 2 rewards and others do not; .*"),
    "no response": ([{"prompt": "a :", "reward": 1}], r"row '1' has no response; name its column with columns: {response: ...}"),
    "empty": ([], r"the data is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_cannot_be_learned_from_is_a_sentence(case):
    data, sentence = WRONG[case]
    with pytest.raises(ConfigError, match=rf"^sources.past: {sentence}\.$"):
        offline(data)
    with pytest.raises(ConfigError, match="Did you mean 'response'"):
        offline(ROWS, columns={"respose": "response"})


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("known", [True, False])
def test_offline_rewards_move_the_policy_by_the_ratio_to_whoever_sampled(known, monkeypatch):
    prompt, texts = "length 3 with red :", {"red blue red": 1.0, "blue blue blue": 0.0}
    data = [{"prompt": prompt, "response": t, "reward": r} | ({"logprobs": [-0.5] * 4} if known else {}) for t, r in texts.items()]
    sources = {"past": Trajectories(data=data, advantage=CENTRED, batch_size=1)}
    objectives = {"policy": GRPO(source="past", clip_low=1.0, clip_high=1e9)}
    args = TrainingArguments(max_steps=3)
    learners = {"policy": policy(learning_rate=1e-2, epochs=2)}
    trainer = game(learners=learners, sources=sources, objectives=objectives, adversaries={}, args=args)
    encoder = trainer.model.encoder
    before, ratios = copy.deepcopy(trainer.model), []
    spy(monkeypatch, before=lambda runtime, rows: ratios.append(slow(runtime.network)))

    def slow(net):
        responses = [encoder.response(t) for t in texts]
        now = [v for r in responses for v in slow_logprobs(net, encoder.prompt(prompt), r)]
        return torch.tensor(now)

    history = trainer.train(progress=False)
    # Two updates per draw: at the first the ratio is 1 where nobody said who sampled, at the second it has moved.
    for step, entry in enumerate(history):
        first, second = ratios[2 * step : 2 * step + 2]
        then = torch.full_like(first, -0.5) if known else first
        expected = ((first - then).exp().mean() + (second - then).exp().mean()) / 2
        assert entry["policy/ratio"] == pytest.approx(float(expected), abs=1e-9)
        assert entry["past/reward"] == 0.5
    gain = [sum(slow_logprobs(trainer.model, encoder.prompt(prompt), encoder.response(t))) for t in texts]
    start = [sum(slow_logprobs(before, encoder.prompt(prompt), encoder.response(t))) for t in texts]
    assert gain[0] > start[0]
    assert gain[0] - start[0] > gain[1] - start[1]


def test_a_correction_has_nothing_to_correct_where_nobody_knows_who_sampled():
    prompt, texts = "length 3 with red :", {"red blue red": 1.0, "blue blue blue": 0.0}

    def losses(**fields):
        data = [{"prompt": prompt, "response": t, "reward": r} for t, r in texts.items()]
        sources = {"past": Trajectories(data=data, advantage=CENTRED, batch_size=1)}
        history = game(
            learners={"policy": policy()}, sources=sources, objectives={"policy": GRPO(source="past", **fields)}, adversaries={}
        ).train(progress=False)
        return [entry["policy/grad_norm"] for entry in history]

    # Weights 1 (a sampler's nan is taken to be the policy of now), and the ratio exactly 1 as without an annotation.
    assert losses(correction=Correction(mode="mask", low=0.99, high=1.01)) == pytest.approx(losses(), rel=1e-9)


def test_a_response_that_no_row_holds_is_refused_before_the_first_step():
    data = [*ROWS, {"prompt": "a :", "response": "b " * 100, "reward": 1}]
    with pytest.raises(BudgetError, match=r"^sources\.past: row '6': encoder: a prompt of \d+ tokens and a sampled response of 101 are"):
        offline(data)
