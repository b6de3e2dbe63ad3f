"""A run of tiny models around one plugin, and responses to score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from advalign.engine.learner import Learner
from advalign.interfaces import Objective, Source
from advalign.testing import _networks
from advalign.training.context import RunContext
from advalign.training.run_spec import Frozen, TrainingArguments
from advalign.training.trainer import Trainer
from advalign.types import Losses, Outputs, Rollout, RolloutGroup, Weights

QUESTIONS = tuple(
    {"prompt": e.prompt, "answer": e.answer, "response": e.answer, "id": e.id, "label": i % 2} for i, e in enumerate(_networks.questions())
)
"""The rows of `_networks.questions`, as data of a source."""


@dataclass(frozen=True, kw_only=True)
class _Likelihood(Objective):
    """l = 0 * log p: reads any rows, so that a run can be built around a source."""

    output: str = "logprobs"

    row_types: ClassVar[tuple[type, ...]] = ()

    @property
    def reads(self) -> Mapping[str, frozenset[str]]:
        return {self.view: frozenset({self.output})}

    def weights(self, rows: Any) -> Weights:
        number: Tensor = torch.ones(rows.tokens.ids.shape[0], dtype=torch.float64)
        return Weights(number, number.sum())

    def losses(self, rows: Any, views: Mapping[str, Outputs]) -> Losses:
        x = views[self.view].logprobs if self.output == "logprobs" else views[self.view].scores
        assert x is not None
        return Losses(0 * x.flatten(1).sum(1) if x.ndim > 1 else 0 * x)


def learner(head: str = "policy", data: Any = QUESTIONS) -> Learner:
    """A tiny learner whose tokenizer knows the words of `data`."""
    return Learner(
        model="scratch:tiny-gpt2?n_embd=16",
        head=head,
        tokenizer={"kind": "words", "data": data},
        max_length=64,
        dtype="float64",
        learning_rate=0.0,
    )


def started(
    sources: Mapping[str, Source],
    *,
    learners: Mapping[str, Learner] | None = None,
    scorers: Sequence[str] = (),
    frozen: Mapping[str, Frozen] | None = None,
    seed: int = 0,
    data: Any = QUESTIONS,
) -> Trainer:
    """A started run over these sources, with a policy, and a learner with head `score` for every name in `scorers`."""
    learners = {"policy": learner(data=data), **{name: learner("score", data) for name in scorers}, **(learners or {})}
    objectives = {f"read_{name}": _Likelihood(source=name) for name in sources}
    trainer = Trainer(
        learners=learners, sources=sources, objectives=objectives, frozen=frozen, args=TrainingArguments(seed=seed, max_steps=8)
    )
    trainer.start()
    return trainer


def context(scorers: Sequence[str] = ()) -> RunContext:
    """The context of a run over demonstrations."""
    from advalign.sources.demos import Demos

    return started({"demos": Demos(data=QUESTIONS)}, scorers=scorers).context


def rollout_groups(policy: Any) -> list[RolloutGroup]:
    """Right, wrong, long, empty and cut responses to three questions, with the ids of the policy's tokenizer."""
    examples = _networks.questions()[7:10]
    texts = (("three", "four", "three plus one"), ("four",), ("five five five five", "", "four"))
    return [
        RolloutGroup(
            example=example,
            prompt_ids=policy.encoder.prompt(example.prompt),
            rollouts=[_rollout(policy, text, finished=i != 2) for i, text in enumerate(responses)],
        )
        for example, responses in zip(examples, texts, strict=True)
    ]


def _rollout(policy: Any, text: str, finished: bool) -> Rollout:
    ids = policy.encoder.response(text)
    return Rollout(response_ids=ids, sampler_logprobs=[-1.0] * len(ids), text=text, finished=finished)
