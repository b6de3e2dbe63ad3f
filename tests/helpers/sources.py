"""Source runtimes without data, and a context whose responses the test gives, for tests of sources."""

import torch
from helpers.context import FakeContext

from advalign.interfaces import SourceRuntime
from advalign.types import Example, Rollout, RolloutGroup


class ExampleRuntime(SourceRuntime):
    """A source over a list of examples that only other sources read."""

    def __init__(self, examples):
        self.examples = list(examples)

    def draw(self, step, repeat):
        raise AssertionError("this test draws nothing from it")

    def rows(self, items, encoder):
        raise AssertionError("this test builds no rows of it")

    def sample(self, number, rng):
        return rng.sample(self.examples, min(number, len(self.examples)))


class Scripted(FakeContext):
    """A run without a trainer: the test gives what is sampled and what other sources drew."""

    def __init__(self, seed=0, net=None, answers=None):
        super().__init__(seed=seed)
        self.net, self.answers, self.updates, self.asked = net, answers, 0, []

    def version(self, learner):
        return self.updates

    def encoder(self, learner):
        return self.net.encoder

    def generate(self, learner, examples, n, sampling, key):
        """`answers(prompt)` -> texts, each one token per word; no tokenizer is involved."""
        self.asked.append([e.prompt for e in examples])
        groups = []
        for example in examples:
            texts = self.answers(example.prompt)
            assert len(texts) == n
            rollouts = [Rollout(response_ids=ids(t), sampler_logprobs=[-1.0] * len(ids(t)), text=t, finished=True) for t in texts]
            groups.append(RolloutGroup(example=example, prompt_ids=ids(example.prompt), rollouts=rollouts))
        return groups


def ids(text):
    """One number above 100 per word: ids that no tokenizer of these tests would give."""
    return [100 + sum(map(ord, word)) for word in text.split()]


def group(prompt, *, version=0, rewards=(1.0, 0.0), offpolicy=False):
    def rollout(number, reward):
        logprobs = [-0.1 * (number + 1), -1 / 3]
        return Rollout(response_ids=[5, 6], sampler_logprobs=logprobs, text="c d", finished=True, policy_version=version, rewards=[reward])

    rollouts = [rollout(i, r) for i, r in enumerate(rewards)]
    if offpolicy:
        rollouts.append(Rollout(response_ids=[7], sampler_logprobs=[0.0], text="e", finished=True, rewards=[1.0], offpolicy=True))
    example = Example(prompt=prompt, id=prompt, meta={"cards": (1, 2)}, verify=lambda text: 1.0)
    return RolloutGroup(example=example, prompt_ids=[5], rollouts=rollouts)


def names(groups):
    return sorted(g.example.prompt for g in groups)


def slow_logprobs(net, prompt, response):
    """log p of every response token, one forward per token over its prefix."""
    logprobs = []
    for place, token in enumerate(response):
        logits = net.model(input_ids=torch.tensor([[*prompt, *response[:place]]])).logits[0, -1]
        logprobs.append(float(logits.log_softmax(-1)[token].detach()))
    return logprobs
