"""A run as its leaves see it: streams by name, other sources, sampling and scoring by learner."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from advalign.engine import rng
from advalign.engine.learner import LearnerRuntime
from advalign.engine.process_group import ProcessGroup
from advalign.errors import ConfigError, unknown
from advalign.interfaces import Source
from advalign.models import Network
from advalign.models.inference import score_texts
from advalign.models.sharding import gathered, local_shard, reshard, units
from advalign.targets.target import target_of
from advalign.training.ahead import Background, with_version
from advalign.training.annotate import columns
from advalign.types import DemoRows, Example, RolloutGroup, Sampling, from_json, to_json


class RunContext:
    """Implements `interfaces.Context`. `items` is what the current step has drawn so far; `copies` are the run's frozen copies;
    `total_steps`: how many steps the run has at most. With several processes each samples and scores its share, and all are given everything,
    so that a source need not know of them."""

    def __init__(self, seed: int, engine: Any, budget: int, ranks: ProcessGroup | None = None) -> None:
        self.seed, self.engine, self.budget, self.ranks = seed, engine, budget, ranks
        self.learners: dict[str, LearnerRuntime] = {}
        self.sources: dict[str, Any] = {}
        self.items: dict[str, Any] = {}
        self.copies: FrozenCopies | None = None
        self.total_steps: int | None = None
        self.source_configs: Mapping[str, Source] = {}
        self.background = Background(engine)

    def generator(self, *key: object) -> torch.Generator:
        return rng.generator(self.seed, *key)

    def random(self, *key: object) -> random.Random:
        return rng.rng(self.seed, *key)

    def source(self, name: str) -> Any:
        if name not in self.sources:
            raise unknown("sources", "source", name, self.sources)
        return self.sources[name]

    def source_config(self, name: str) -> Source:
        if name not in self.source_configs:
            raise unknown("sources", "source", name, self.source_configs)
        return self.source_configs[name]

    def current_items(self, name: str) -> Any:
        return self.items.get(name)

    def learner(self, name: str) -> LearnerRuntime:
        if name not in self.learners:
            raise unknown("learners", "learner", name, self.learners)
        return self.learners[name]

    def network(self, name: str) -> tuple[Network, int]:
        """A learner's network, or a frozen copy's, and the version of its weights."""
        if self.copies is not None and name not in self.learners and name in self.copies.known:
            return self.copies.get(name), self.copies.versions[name]
        runtime = self.learner(name)
        return runtime.network, runtime.version

    def generate(self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple) -> list[RolloutGroup]:
        network, version = self.network(learner)
        with gathered(network):
            engine = DistributedRolloutEngine(self.engine, self.ranks)
            engine.sync(network, version)
            return with_version(engine.generate(network, examples, n, sampling, self.generator(*key)), version)

    def generate_later(
        self, learner: str, examples: Sequence[Example], n: int, sampling: Sampling, key: tuple
    ) -> Callable[[], list[RolloutGroup]]:
        if self.ranks is not None and self.ranks.number > 1:
            raise ConfigError(
                f"sources: ahead is for one process, and the run has {self.ranks.number}; set ahead: 0, or give the sampling to a vLLM "
                "server (rollout: {kind: vllm, url: ...})."
            )
        network, version = self.network(learner)
        return self.background.submit(network, version, examples, n, sampling, self.generator(*key))

    def map_across_ranks(self, items: Sequence[Any], work: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        return list(work(items)) if self.ranks is None else self.ranks.map_across_ranks(items, work)

    def encoder(self, learner: str) -> Any:
        return self.network(learner)[0].encoder

    def version(self, learner: str) -> int:
        return self.network(learner)[1]

    def score(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> tuple[list[float], int]:
        network, version = self.network(learner)
        asked = list(dict.fromkeys(zip(prompts, texts, finished, strict=True)))
        with gathered(network):
            found = self.map_across_ranks(asked, lambda rows: score_texts(network, rows, self.budget))
        known = dict(zip(asked, found, strict=True))
        return [known[row] for row in zip(prompts, texts, finished, strict=True)], version

    def score_tokens(self, learner: str, groups: Sequence[RolloutGroup]) -> tuple[list[list[float]], int]:
        network, version = self.network(learner)
        tokens = network.encoder.rollouts(groups)
        self._check_ids(learner, tokens, groups)
        found = columns(network, DemoRows(tokens=tokens), {"token_scores"}, self.budget, self.ranks)["token_scores"]
        return [row[target].double().tolist() for row, target in zip(found, tokens.target, strict=True)], version

    def _check_ids(self, learner: str, tokens: Any, groups: Sequence[RolloutGroup]) -> None:
        """Ids mean the same to the sampler and to whoever scores them, and none was cut off."""
        encoder = self.network(learner)[0].encoder
        group = groups[0]
        if encoder.bidirectional or encoder.prompt(group.example.prompt) != group.prompt_ids:
            raise ConfigError(
                f"learners.{learner}: scores per token need the sampler's tokenizer, and this learner has another one; "
                "use rewards.discriminator.level: segment."
            )
        lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
        if tokens.target.sum(1).tolist() != lengths:
            raise ConfigError(f"learners.{learner}.max_length: {encoder.max_length} cuts responses off; scores per token need all of them.")

    def logprobs(self, learner: str, prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[float]:
        network, _ = self.network(learner)
        tokens = network.encoder.scored_pairs(prompts, texts, finished)
        return columns(network, DemoRows(tokens=tokens), {"logprobs"}, self.budget, self.ranks)["logprobs"].double().sum(1).tolist()

    @contextmanager
    def target(self, learner: str) -> Iterator[Any]:
        network, _ = self.network(learner)
        if units(network):
            raise ConfigError(f"learners.{learner}: its weights are shared out (fsdp), and an attack needs gradients through all of them.")
        yield target_of(network)


class DistributedRolloutEngine:
    """A rollout engine whose prompts are answered by all processes, each a share; every one is given all answers. An engine that can
    `skip` the draws of responses before its share answers as one process would; another one is handed a stream for each share."""

    def __init__(self, engine: Any, ranks: ProcessGroup | None) -> None:
        self.engine, self.ranks = engine, ranks

    def sync(self, network: Any, version: int) -> None:
        """Every process tells an engine of its own; one that stands elsewhere (`url`) is told by the first."""
        elsewhere = self.ranks is not None and self.engine.is_remote
        with gathered(network):
            if self.ranks is None or not elsewhere or self.ranks.main:
                self.engine.sync(network, version)
        if self.ranks is not None and elsewhere:
            self.ranks.wait()

    def generate(
        self, network: Any, examples: Sequence[Example], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        ranks = self.ranks
        if ranks is None or ranks.number == 1:
            return self.engine.generate(network, examples, n, sampling, generator)
        share = ranks.share(len(examples))
        if share.start and not self.engine.skip(generator, share.start * n, sampling):
            generator = rng.generator(generator.initial_seed(), "share", share.start)
        mine = examples[share.start : share.stop]
        with gathered(network):
            groups = self.engine.generate(network, mine, n, sampling, generator) if mine else []
        parts = ranks.plain([to_json(group) for group in groups])
        received = [from_json(values) for part in parts for values in part]
        # Each process has the examples themselves, with their verifiers.
        return [replace(group, example=example) for example, group in zip(examples, received, strict=True)]


class FrozenCopies:
    """Frozen copies of learners by name, made when they are first needed. `versions`: of the weights they hold."""

    def __init__(self, known: Mapping[str, Any], learners: Mapping[str, LearnerRuntime]) -> None:
        self.known, self.learners = known, learners
        self.networks: dict[str, Network] = {}
        self.versions: dict[str, int] = {}

    def get(self, name: str) -> Network:
        if name not in self.networks:
            spec = self.known[name]
            self.networks[name] = self.learners[spec.learner].frozen(moving=spec.ema is not None or spec.refresh is not None)
            self.versions[name] = self.learners[spec.learner].version
        return self.networks[name]

    @torch.no_grad()
    def average(self, learner: str) -> None:
        """After a step of `learner`: averages follow it."""
        for name, spec in self.known.items():
            if spec.learner == learner and spec.ema is not None:
                self._blend(name, 1 - spec.ema)

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Before step `step`: copies that are renewed every so many steps are."""
        for name, spec in self.known.items():
            if name in self.networks and spec.refresh is not None and step % spec.refresh == 0:
                self._blend(name, 1.0)

    def _blend(self, name: str, share: float) -> None:
        runtime = self.learners[self.known[name].learner]
        copy, now = self.get(name), runtime.network
        reshard(copy)
        reshard(now)
        for mean, value in zip(copy.parameters(), now.parameters(), strict=True):
            local_shard(mean).copy_(local_shard(value)) if share == 1 else local_shard(mean).lerp_(local_shard(value), share)
        for kept, buffer in zip(copy.buffers(), now.buffers(), strict=True):
            kept.copy_(buffer)
        self.versions[name] = runtime.version
