"""A rollout engine without a model, for tests of what reads responses."""

from advalign.interfaces import RolloutEngine
from advalign.types import Rollout, RolloutGroup


class TextEngine(RolloutEngine):
    """Answers with prepared texts: `answer(example, i)` is the i-th response to an example."""

    def __init__(self, answer):
        self.answer = answer

    def sync(self, network, version):
        pass

    def generate(self, network, examples, n, sampling, generator):
        groups = []
        for example in examples:
            texts = [self.answer(example, i) for i in range(n)]
            rollouts = [
                Rollout(response_ids=ids, sampler_logprobs=[0.0] * len(ids), text=text, finished=True)
                for ids, text in zip(network.encoder.responses(texts), texts, strict=True)
            ]
            groups.append(RolloutGroup(example=example, prompt_ids=network.encoder.prompt(example.prompt), rollouts=rollouts))
        return groups

    def extend(self, network, groups, n, sampling, generator):
        raise AssertionError("this test extends no responses")
