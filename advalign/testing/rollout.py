"""The contract of a rollout engine: what it says of its responses is what the policy says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.testing import _networks
from advalign.testing._rules import explained, is_plugin, require, same, seed_global_generators
from advalign.types import Example, RolloutGroup, Sampling

TOKENS = 5
SAMPLED, GREEDY = Sampling(max_new_tokens=TOKENS), Sampling(max_new_tokens=TOKENS, temperature=0.0)


def check_rollout_engine(engine: RolloutEngine, network: Network | None = None, tolerance: float = 1e-4) -> None:
    """Raises AssertionError for the first rule that the engine breaks.

    `tolerance`: by how many nats per token log-probabilities may differ.
    """
    is_plugin(engine, RolloutEngine, "rollout")
    case = _Case(engine, network or _networks.network("policy"))
    groups = case.generate(3, SAMPLED)
    _responses(case, groups)
    _logprobs(case, groups, tolerance)
    _random(case)
    _extend(case)
    logs = all(isinstance(name, str) and isinstance(x, int | float) for name, x in engine.logs.items())
    require(logs, engine, "logs hold something else than numbers by name.")


@dataclass(frozen=True)
class _Case:
    engine: RolloutEngine
    network: Network

    @property
    def examples(self) -> list[Example]:
        return _networks.questions()[:4]

    def generate(self, n: int, sampling: Sampling, seed: int = 0, examples: Sequence[Example] | None = None) -> list[RolloutGroup]:
        generator = torch.Generator().manual_seed(seed)
        with explained(self.engine, "sync or generate raised"):
            self.engine.sync(self.network, 0)
            return self.engine.generate(self.network, self.examples if examples is None else examples, n, sampling, generator)


def _ids(groups: Sequence[RolloutGroup]) -> list[list[list[int]]]:
    return [[r.response_ids for r in g.rollouts] for g in groups]


def _responses(case: _Case, groups: Sequence[RolloutGroup]) -> None:
    engine, encoder = case.engine, case.network.encoder
    require(len(groups) == len(case.examples), engine, f"{len(groups)} groups for {len(case.examples)} examples.")
    for group, example in zip(groups, case.examples, strict=True):
        require(group.example.id == example.id, engine, "groups are not in the order of the examples.")
        require(group.prompt_ids == encoder.prompt(example.prompt), engine, "prompt_ids are not those of the policy's encoder.")
        require(len(group.rollouts) == 3, engine, f"{len(group.rollouts)} rollouts where 3 were asked for.")
        for rollout in group.rollouts:
            number = len(rollout.response_ids)
            require(0 < number <= TOKENS, engine, f"a response of {number} ids, and max_new_tokens is {TOKENS}.")
            require(len(rollout.sampler_logprobs) == number, engine, f"{len(rollout.sampler_logprobs)} log-probabilities for {number} ids.")
            finite = all(math.isfinite(x) and x <= 1e-6 for x in rollout.sampler_logprobs)
            require(finite, engine, "a log-probability is above 0, or not finite.")
            require(rollout.finished or number == TOKENS, engine, "a response is shorter than max_new_tokens and not finished.")


def _logprobs(case: _Case, groups: Sequence[RolloutGroup], tolerance: float) -> None:
    tokens = case.network.encoder.rollouts(groups)
    with torch.no_grad():
        outputs = case.network(tokens, {"logprobs"}).logprobs
    assert outputs is not None
    stated = torch.tensor([x for g in groups for r in g.rollouts for x in r.sampler_logprobs])
    furthest = float((outputs[tokens.target].float() - stated).abs().max())
    sentence = f"sampler_logprobs differ from the policy's by up to {furthest:.2g} nats; they are log p of the sampled ids."
    require(furthest <= tolerance, case.engine, sentence)


def _random(case: _Case) -> None:
    engine = case.engine
    seed_global_generators(0)
    first = _ids(case.generate(3, SAMPLED))
    seed_global_generators(1)
    require(first == _ids(case.generate(3, SAMPLED)), engine, "equal generators sample different responses; draw from the generator given.")
    require(first != _ids(case.generate(3, SAMPLED, seed=1)), engine, "the generator decides nothing: another one samples the same.")
    greedy = _ids(case.generate(1, GREEDY))
    require(greedy == _ids(case.generate(1, GREEDY, seed=1)), engine, "temperature 0 is not greedy: it depends on the generator.")
    generator = torch.Generator().manual_seed(0)
    if engine.skip(generator, 3 * 2, SAMPLED):
        second = engine.generate(case.network, case.examples[2:], 3, SAMPLED, generator)
        require(
            same(_ids(second), first[2:]),
            engine,
            "skip(generator, 6) leaves out other draws than 6 responses take; return False if it cannot.",
        )


def _extend(case: _Case) -> None:
    encoder = case.network.encoder
    start = encoder.response("three")[:1]
    groups = [RolloutGroup(example=e, prompt_ids=[*encoder.prompt(e.prompt), *start], rollouts=[]) for e in case.examples]
    with explained(case.engine, "extend raised"):
        extended = case.engine.extend(case.network, groups, 2, SAMPLED, torch.Generator().manual_seed(0))
    counts = [len(g.rollouts) for g in extended]
    require(counts == [2] * len(groups), case.engine, f"extend gives {counts} rollouts where 2 per group were asked for.")


__all__ = ["check_rollout_engine"]
