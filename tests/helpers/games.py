"""A game between texts that the test gives, for tests of self-play."""

from helpers.context import FakeContext

from advalign.types import Rollout, RolloutGroup

SUMS = {"task": {"kind": "arithmetic", "digits": 1}}


class Table(FakeContext):
    """A run without models: `says[name](prompt)` are the texts of a learner or of a frozen copy; every call is recorded."""

    def __init__(self, **says):
        super().__init__()
        self.says, self.asked = says, []

    def generate(self, learner, examples, n, sampling, key):
        self.asked.append((learner, [e.prompt for e in examples], n, key))
        groups = []
        for example in examples:
            texts = self.says[learner](example.prompt)
            assert len(texts) == n
            rollouts = [
                Rollout(response_ids=[7] * max(len(t), 1), sampler_logprobs=[-1.0] * max(len(t), 1), text=t, finished=True) for t in texts
            ]
            groups.append(RolloutGroup(example=example, prompt_ids=[1], rollouts=rollouts))
        return groups


def answer(prompt):
    a, b = prompt.removesuffix(" =").split(" = ")[-1].split(" + ")
    return str(int(a) + int(b))
