"""The run as sources and rewards see it: random streams by name, other sources, sampling and scoring by learner."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from advalign.engine import rng
from advalign.engine.learner import LearnerRuntime
from advalign.engine.process_group import SINGLE_PROCESS, ProcessGroup
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Context, Objective, RolloutEngine, Source, SourceRuntime
from advalign.models import Network
from advalign.models.encode import Encoder
from advalign.models.inference import score_texts
from advalign.models.sharding import gathered, units
from advalign.targets import NetworkTarget, network_target
from advalign.training import class_labels
from advalign.training.ahead import Background, with_version
from advalign.training.columns import columns
from advalign.training.distributed_rollout import DistributedRolloutEngine
from advalign.training.frozen_copies import FrozenCopies
from advalign.types import DemoRows, Example, Prompt, Response, RolloutGroup, Sampling, TokenRows, Tokens


class RunContext(Context):
    """The `Context` of a run. Each of several processes samples and scores a part, and all are given everything."""

    def __init__(
        self,
        seed: int,
        rollout_engine: RolloutEngine | None,
        budget: int,
        processes: ProcessGroup = SINGLE_PROCESS,
        *,
        total_steps: int | None = None,
        source_configs: Mapping[str, Source] | None = None,
    ) -> None:
        """`budget`: tokens of one forward. Without a `rollout_engine` nothing can be sampled."""
        self.seed, self.rollout_engine, self.budget, self.processes = seed, rollout_engine, budget, processes
        self.total_steps = total_steps
        self.source_configs = dict(source_configs or {})
        self.learners: Mapping[str, LearnerRuntime] = {}
        self.objectives: Mapping[str, Objective] = {}
        self.copies: FrozenCopies | None = None
        self.sources: dict[str, SourceRuntime[Any]] = {}
        """Those that are started."""
        self.items: dict[str, Sequence[Any]] = {}
        """{source: what it drew in the current step}"""
        self.background = Background(rollout_engine)
        self.num_truncated = 0
        """Responses so far that the max_length of their learner has cut."""

    # --------------------------------------------------------------------------------------- streams and sources

    def generator(self, *key: object) -> torch.Generator:
        return rng.generator(self.seed, *key)

    def random(self, *key: object) -> random.Random:
        return rng.rng(self.seed, *key)

    def source(self, name: str) -> SourceRuntime[Any]:
        if name not in self.sources:
            raise unknown("sources", "source", name, self.sources)
        return self.sources[name]

    def source_config(self, name: str) -> Source:
        if name not in self.source_configs:
            raise unknown("sources", "source", name, self.source_configs)
        return self.source_configs[name]

    def class_names(self, source: str) -> tuple[str, ...]:
        return class_labels.names_for(source, self.objectives, self.learners)

    def current_items(self, name: str) -> Sequence[Any] | None:
        return self.items.get(name)

    def map_across_ranks(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        return self.processes.map_across_ranks(items, work)

    # -------------------------------------------------------------------------------------------------- learners

    def learner(self, name: str) -> LearnerRuntime:
        """A learner by name."""
        if name not in self.learners:
            raise unknown("learners", "learner", name, self.learners)
        return self.learners[name]

    def network(self, name: str) -> tuple[Network, int]:
        """The network of a learner or a frozen copy, and the version of its weights."""
        if self.copies is not None and name not in self.learners and name in self.copies.specs:
            return self.copies.get(name), self.copies.versions[name]
        runtime = self.learner(name)
        return runtime.network, runtime.version

    def encoder(self, learner: str) -> Encoder:
        return self.network(learner)[0].encoder

    def count_truncated(self) -> int:
        """Rows so far that learners' encoders have cut, and responses that max_length has cut."""
        encoders = {id(runtime.network.encoder): runtime.network.encoder for runtime in self.learners.values()}
        return self.num_truncated + sum(encoder.truncation.num_truncated for encoder in encoders.values())

    def version(self, learner: str) -> int:
        return self.network(learner)[1]

    @contextmanager
    def target(self, learner: str) -> Iterator[NetworkTarget]:
        network, _ = self.network(learner)
        if units(network):
            raise ConfigError(f"learners.{learner}: its weights are sharded (fsdp), and an attack needs gradients through all of them.")
        yield network_target(network)

    # -------------------------------------------------------------------------------------------------- sampling

    def generate(self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple) -> list[RolloutGroup]:
        assert self.rollout_engine is not None
        network, version = self.network(learner)
        sampling = _within(network.encoder, sampling)
        with gathered(network):
            rollout_engine = DistributedRolloutEngine(self.rollout_engine, self.processes)
            rollout_engine.sync(network, version)
            groups = rollout_engine.generate(network, examples, n, sampling, self.generator(*key))
        return self._counted(with_version(groups, version), sampling)

    def generate_later(
        self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple
    ) -> Callable[[], list[RolloutGroup]]:
        if self.processes.world_size > 1:
            raise ConfigError(
                f"sources: ahead is for one process, and the run has {self.processes.world_size}; set ahead: 0, or give the sampling to a "
                "vLLM server (rollout: {kind: vllm, url: ...})."
            )
        network, version = self.network(learner)
        sampling = _within(network.encoder, sampling)
        wait = self.background.submit(network, version, examples, n, sampling, self.generator(*key))
        return lambda: self._counted(wait(), sampling)

    def _counted(self, groups: list[RolloutGroup], sampling: Sampling) -> list[RolloutGroup]:
        """The groups, after their responses that `max_length` has cut were counted."""
        assert sampling.max_length is not None
        for group in groups:
            full = sampling.max_length - len(group.prompt_ids)
            cut = [r for r in group.rollouts if not r.finished and full <= len(r.response_ids) < sampling.max_new_tokens]
            self.num_truncated += len(cut)
        return groups

    # --------------------------------------------------------------------------------------------------- scoring

    def score(
        self, learner: str, prompts: Sequence[Prompt], texts: Sequence[Response], finished: Sequence[bool]
    ) -> tuple[list[float], int]:
        network, version = self.network(learner)
        distinct = list(dict.fromkeys(zip(prompts, texts, finished, strict=True)))
        with gathered(network):
            scores = self.map_across_ranks(distinct, lambda rows: score_texts(network, rows, self.budget))
        score_of = dict(zip(distinct, scores, strict=True))
        return [score_of[row] for row in zip(prompts, texts, finished, strict=True)], version

    def score_tokens(self, learner: str, groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], int]:
        network, version = self.network(learner)
        tokens = network.encoder.rollouts(groups)
        self._check_ids(learner, network.encoder, tokens, groups)
        scores = columns(network, DemoRows(tokens=tokens), {"token_scores"}, self.budget, self.processes)["token_scores"]
        return [row[target].double().tolist() for row, target in zip(scores, tokens.target, strict=True)], version

    def _check_ids(self, learner: str, encoder: Encoder, tokens: Tokens, groups: Sequence[RolloutGroup]) -> None:
        """Refuses a scorer for which the sampler's ids mean something else, or which cuts responses off."""
        group = groups[0]
        if encoder.bidirectional or encoder.prompt(group.example.prompt) != group.prompt_ids:
            raise ConfigError(
                f"learners.{learner}: scores per token need the sampler's tokenizer, and this learner has another one; "
                "use rewards.discriminator.level: segment."
            )
        lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
        if tokens.target.sum(1).tolist() != lengths:
            raise ConfigError(f"learners.{learner}.max_length: {encoder.max_length} cuts responses off; scores per token need all of them.")

    def logprobs(
        self, learner: str, prompts: Sequence[Prompt], texts: Sequence[Response], finished: Sequence[bool], *, temperature: float = 1.0
    ) -> list[float]:
        network, _ = self.network(learner)
        rows = _TextRows(tokens=network.encoder.scored_pairs(prompts, texts, finished), temperature=temperature)
        return columns(network, rows, {"logprobs"}, self.budget, self.processes)["logprobs"].double().sum(1).tolist()


def _within(encoder: Encoder, sampling: Sampling) -> Sampling:
    """Responses are no longer than the rows that they become: what is rewarded is what is trained."""
    return replace(sampling, max_length=min(sampling.max_length or encoder.max_length, encoder.max_length))


@dataclass(frozen=True, kw_only=True)
class _TextRows(TokenRows):
    """Texts whose log-probabilities are those of a sampling temperature."""

    temperature: float
    """0, greedy, counts as 1."""

    @property
    def softmax_temperature(self) -> float:
        return self.temperature or 1.0
