"""A `Context` without a trainer, for tests of sources and rewards: each test overrides what its models would do."""

import random
from types import MappingProxyType

from advalign.engine import rng
from advalign.errors import unknown
from advalign.interfaces import Context


class FakeContext(Context):
    """One process, no models. Random streams are functions of (seed, key); sources and draws are those the test puts there.

    `sources`, `source_configs`, `items`: {name: runtime | configuration | draw of the current step}."""

    def __init__(self, *, seed=0, total_steps=None, source_configs=MappingProxyType({})):
        self.seed, self.total_steps = seed, total_steps
        self.sources, self.source_configs, self.items = {}, dict(source_configs), {}

    def generator(self, *key):
        return rng.generator(self.seed, *key)

    def random(self, *key) -> random.Random:
        return rng.rng(self.seed, *key)

    def source(self, name):
        if name not in self.sources:
            raise unknown("sources", "source", name, self.sources)
        return self.sources[name]

    def source_config(self, name):
        if name not in self.source_configs:
            raise unknown("sources", "source", name, self.source_configs)
        return self.source_configs[name]

    def class_names(self, source):
        return ()

    def current_items(self, name):
        return self.items.get(name)

    def map_across_ranks(self, items, work):
        return list(work(items))

    def version(self, learner):
        return 0

    def encoder(self, learner):
        raise AssertionError(f"this test gives learner '{learner}' no encoder")

    def generate(self, learner, examples, n, sampling, key):
        raise AssertionError(f"this test gives learner '{learner}' no responses")

    def generate_later(self, learner, examples, n, sampling, key):
        groups = self.generate(learner, examples, n, sampling, key)
        return lambda: groups

    def score(self, learner, prompts, texts, finished):
        raise AssertionError(f"this test gives learner '{learner}' no scores")

    def score_tokens(self, learner, groups):
        raise AssertionError(f"this test gives learner '{learner}' no scores of tokens")

    def logprobs(self, learner, prompts, texts, finished, *, temperature=1.0):
        raise AssertionError(f"this test gives learner '{learner}' no log-probabilities")

    def target(self, learner):
        raise AssertionError(f"this test gives learner '{learner}' no target")
