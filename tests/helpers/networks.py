"""What the engine tests share: small networks in float64, rows with everything an objective may read, one bare update."""

from dataclasses import fields

import torch
from accelerate import Accelerator

from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.interfaces import Adversary
from advalign.models import load
from advalign.types import DemoRows, Example, LabelRows, PairRows, Rollout, RolloutGroup, RolloutRows

TEXTS = ["a b c d e f g h i j k :"]


def network(head="policy", *, options=None, model=None):
    spec = model or ("scratch:encoder-tiny?hidden_size=32" if head == "classifier" else "scratch:tiny-gpt2?n_embd=32")
    return load(spec, head=head, tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, dtype="float64", options=options)


def learner(net, **fields):
    config = Learner(model="given", **{"learning_rate": 0.0, "max_grad_norm": 1e9, **fields})
    return LearnerRuntime("policy", config, net, Accelerator(), 10)


def demos(net):
    prompts = ["a b c :", "d :", "e f :", "g h i j k a :", "b :"]
    return DemoRows(tokens=net.encoder.demos(prompts, ["d e", "f g h i", "a", "b c", "j k a b c d"]))


def pairs(net):
    tokens = net.encoder.demos(["a :", "a :", "b c :", "b c :"], ["d e", "f", "g h i", "j"], group=[0, 0, 1, 1])
    return PairRows(tokens=tokens, ref_logprobs=-torch.rand(tokens.ids.shape, dtype=torch.float64) * tokens.target)


def rollouts(net, old=True):
    generator = torch.Generator().manual_seed(1)
    groups = []
    for prompt, responses in [("a b :", ["c d", "e", "f g h"]), ("c :", ["a", "b b b b", "d"])]:
        ids = [net.encoder.response(r) for r in responses]
        sampled = [
            Rollout(response_ids=i, sampler_logprobs=[-1.0] * len(i), text=r, finished=True) for i, r in zip(ids, responses, strict=True)
        ]
        groups.append(RolloutGroup(example=Example(prompt=prompt), prompt_ids=net.encoder.prompt(prompt), rollouts=sampled))
    tokens = net.encoder.rollouts(groups)

    def column(scale):
        return torch.randn(tokens.ids.shape, generator=generator, dtype=torch.float64) * scale * tokens.target

    # A policy that has moved a little: some ratios inside every clip range, some outside.
    logprobs = net(tokens, {"logprobs"}).logprobs.detach()
    return RolloutRows(
        tokens=tokens,
        rewards=torch.zeros(6, 1),
        advantages=column(1.0),
        sampler_logprobs=column(0.1) - 2,
        finished=torch.ones(6, dtype=torch.bool),
        old_logprobs=logprobs + column(0.3) if old else None,
        ref_logprobs=column(0.2) - 2.3 * tokens.target,
        values=column(0.3),
        returns=column(0.5),
    )


def labels(net):
    tokens = net.encoder.classify(["a b c", "d", "e f g h i", "j k", "a a a"])
    return LabelRows(tokens=tokens, labels=torch.tensor([0, 1, 1, 0, 1]))


def gradients(net):
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=p.dtype) for p in net.parameters()])


def update(runtime, objectives, rows, adversaries=None, *, budget=10_000, key=("update",)):
    """One update with a learning rate of zero: what is left is the gradient, unclipped."""
    frozen_plan = plan("policy", objectives, adversaries or {}, [])
    logs = runtime.update(frozen_plan, rows, {}, budget=budget, key=key)
    return gradients(runtime.network), logs


class Recorder(Adversary):
    """An adversary that remembers the last delta of every row, by the seed of the row's own generator."""

    def __init__(self, inside):
        super().__init__(**{field.name: getattr(inside, field.name) for field in fields(Adversary)})
        self.inside, self.deltas = inside, {}

    @property
    def starts_at_zero(self):
        return self.inside.starts_at_zero

    def start(self, context):
        return (context, self.inside.start(context))

    def ask(self, state):
        edits = self.inside.ask(state[1])
        for site, edit in edits.items():
            for row, generator in enumerate(state[0].generators):
                self.deltas[site, generator.initial_seed()] = edit.add[row][state[0].allowed[row]].detach().clone()
        return edits

    def tell(self, state, losses, gradients):
        return (state[0], self.inside.tell(state[1], losses, gradients))
