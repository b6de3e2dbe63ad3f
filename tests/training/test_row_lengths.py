"""Responses and the rows that they become: what is rewarded is what is trained, and what max_length cuts is counted and said."""

import pytest
import torch
from helpers.runs import WORDS, imitation, policy, write

from advalign import Sampling, TrainingArguments
from advalign.errors import BudgetError
from advalign.objectives.grpo import GRPO
from advalign.objectives.value import Value
from advalign.rewards.function import Function
from advalign.training.trainer import Trainer

SEEN = []


def words_of(completions, **_):
    """A reward: the number of words of every response."""
    SEEN.append(completions)
    return [float(len(text.split())) for text in completions]


def run(sampling, max_length=14, steps=2, **sections):
    SEEN.clear()
    reward = Function(fn=words_of)
    sources = {"write": write(sampling=sampling, rewards=[reward])}
    trainer = Trainer(
        **{
            "model": policy(max_length=max_length, dtype="float32"),
            "sources": sources,
            "objectives": {"policy": GRPO(source="write")},
            "args": TrainingArguments(max_steps=steps),
            **sections,
        }
    )
    return trainer, trainer.train(progress=False)


def test_what_is_rewarded_is_what_is_trained():
    # Prompts have up to eight words and the policy is untrained, so most of 20 tokens do not fit in rows of 14.
    with pytest.warns(
        UserWarning, match=r"^sources\.write: prompts of up to \d+ tokens and sampling\.max_new_tokens 20 do not fit in max_le"
    ):
        trainer, logs = run(Sampling(max_new_tokens=20))
    groups = trainer.context.items["write"]
    rows = trainer.context.sources["write"].rows(groups, trainer.context.encoder("policy"))
    rollouts = [r for g in groups for r in g.rollouts]
    assert rows.tokens.target.sum(1).tolist() == [len(r.response_ids) for r in rollouts]
    assert SEEN[-1] == [r.text for r in rollouts]
    lengths = [len(g.prompt_ids) + len(r.response_ids) for g in groups for r in g.rollouts]
    assert max(lengths) == 14
    cut = [not r.finished for r in rollouts]
    assert cut == [length == 14 and not r.finished for length, r in zip(lengths, rollouts, strict=True)]
    assert rows.finished.tolist() == [r.finished for r in rollouts]
    assert logs[-1]["num_truncated"] == sum(cut) > 0


def test_what_fits_is_sampled_as_before_and_nothing_is_counted(recwarn):
    _, logs = run(Sampling(max_new_tokens=6), max_length=32)
    assert [entry["num_truncated"] for entry in logs] == [0, 0]
    assert not [w for w in recwarn if "do not fit" in str(w.message) or "longer than" in str(w.message)]
    _, again = run(Sampling(max_new_tokens=6, max_length=30), max_length=32)
    assert [e["policy/loss"] for e in again] == [e["policy/loss"] for e in logs]


@pytest.mark.filterwarnings("ignore:sources.write")
def test_a_learner_that_takes_shorter_rows_is_refused():
    learners = {"policy": policy(max_length=24), "critic": policy(head="value", max_length=12)}
    objectives = {"policy": GRPO(source="write"), "critic": Value(source="write", learner="critic")}
    with pytest.raises(BudgetError, match=r"rows of \d+ tokens, and this model has 12 positions; rows of rollouts are built once, so give"):
        run(Sampling(max_new_tokens=20), model=None, learners=learners, objectives=objectives, max_length=24)


def test_every_line_of_the_log_counts():
    logs = imitation(3).train(progress=False)
    assert [entry["num_truncated"] for entry in logs] == [0, 0, 0]
    assert torch.isfinite(torch.tensor([entry["imitate/loss"] for entry in logs])).all()
    assert WORDS["kind"] == "words"
