"""The mixed step in one file, with torch and transformers alone: no engine, no plan, no code of the library.

    policy        loss = grpo(rollouts, reward = discriminator) + 0.5 sft(demos | pgd)
    discriminator loss = bce(real vs perturbed vs generated)

It is slow and rigid on purpose: a test runs it beside `advalign.Trainer` and requires the same parameters after three steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

Ids = list[int]


@dataclass
class Batch:
    """Everything one step reads, as token ids."""

    demos: list[tuple[Ids, Ids]]
    """(prompt, response)"""
    groups: list[tuple[Ids, list[Ids]]]
    """(prompt, its responses)"""
    contrast: list[tuple[Ids, int]]
    """(ids as the discriminator reads them, 1 real or 0 not)"""
    scored: list[Ids]
    """The discriminator's ids of every response, groups in order."""


def pad(rows: list[Ids]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def token_logprobs(policy: nn.Module, pairs: list[tuple[Ids, Ids]], delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """log p of every token given those before it, "B T-1", and the mask of response tokens."""
    ids, mask = pad([prompt + response for prompt, response in pairs])
    embeddings = policy.get_input_embeddings()(ids)
    logits = policy(inputs_embeds=embeddings if delta is None else embeddings + delta, attention_mask=mask).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    target = mask[:, 1:].clone()
    for row, (prompt, _) in enumerate(pairs):
        target[row, : len(prompt) - 1] = 0
    return logprobs, target


def sft(policy: nn.Module, demos: list[tuple[Ids, Ids]], delta: Tensor | None = None) -> Tensor:
    logprobs, target = token_logprobs(policy, demos, delta)
    return -(logprobs * target).sum() / target.sum()


def pgd(policy: nn.Module, demos: list[tuple[Ids, Ids]], radius: float, steps: int) -> Tensor:
    """Ascend the SFT loss: per-token L2 ball, steps of 2.5 / steps radii, from zero."""
    _, mask = pad([prompt + response for prompt, response in demos])
    table = policy.get_input_embeddings().weight
    reach = radius * table.detach().norm(dim=1).mean()
    delta = torch.zeros(*mask.shape, table.shape[1], dtype=table.dtype)
    for _ in range(steps):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(sft(policy, demos, delta), delta)
        size = gradient.norm(dim=2, keepdim=True)
        delta = delta.detach() + reach * 2.5 / steps * gradient / size.clamp(min=1e-30)
        size = delta.norm(dim=2, keepdim=True)
        delta = torch.where(size > reach, delta * reach / size, delta) * mask[..., None]
    return delta.detach()


def discriminator_scores(discriminator: nn.Module, head: nn.Module, rows: list[Ids]) -> Tensor:
    ids, mask = pad(rows)
    # Everything after the first separator (id 4) is the second segment.
    segments = (((ids == 4).cumsum(1) - (ids == 4).long()) > 0).long() * mask
    hidden = discriminator(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return head(mean).squeeze(1)


def grpo(policy: nn.Module, groups: list[tuple[Ids, list[Ids]]], rewards: Tensor) -> Tensor:
    """One update per draw: the ratio is 1, its gradient that of log pi; advantages are centred in their group."""
    pairs = [(prompt, response) for prompt, responses in groups for response in responses]
    sizes = [len(responses) for _, responses in groups]
    advantages = torch.cat([r - r.mean() for r in rewards.split(sizes)])
    logprobs, target = token_logprobs(policy, pairs)
    ratio = (logprobs - logprobs.detach()).exp()
    per_row = -(ratio * target).sum(1) / target.sum(1) * advantages
    return per_row.mean()


def step(
    policy: nn.Module, discriminator: nn.Module, head: nn.Module, optimizers: list[torch.optim.Optimizer], batch: Batch
) -> dict[str, float]:
    """Reward with the current discriminator, update the policy, then the discriminator."""
    with torch.no_grad():
        rewards = discriminator_scores(discriminator, head, batch.scored)
    delta = pgd(policy, batch.demos, radius=0.1, steps=2)
    loss = grpo(policy, batch.groups, rewards) + 0.5 * sft(policy, batch.demos, delta)
    descend(loss, optimizers[0])

    scores = discriminator_scores(discriminator, head, [ids for ids, _ in batch.contrast])
    labels = torch.tensor([float(real) for _, real in batch.contrast], dtype=scores.dtype)
    discriminator_loss = binary_cross_entropy_with_logits(scores, labels * 0.9)  # one-sided smoothing: real is 0.9
    descend(discriminator_loss, optimizers[1])
    return {"policy": float(loss.detach()), "discriminator": float(discriminator_loss.detach()), "reward": float(rewards.mean())}


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def main() -> None:
    """Three steps on made-up ids: tokens 5 to 14 are words, 2 ends a response, 3 and 4 are the discriminator's class and separator."""
    torch.manual_seed(0)
    shape = {"vocab_size": 15, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    policy = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=2))
    discriminator = BertModel(BertConfig(**shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    head = nn.Linear(32, 1)
    optimizers = [
        torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0),
        torch.optim.AdamW([*discriminator.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.0),
    ]
    demos = [([5, 6], [7, 8, 2]), ([6, 7], [9, 2])]
    for number in range(3):
        groups = [(prompt, [[*torch.randint(5, 15, (3,)).tolist(), 2] for _ in range(4)]) for prompt, _ in demos]
        scored = [[3, *prompt, 4, *response[:-1], 4] for prompt, responses in groups for response in responses]
        contrast = [([3, *p, 4, *r[:-1], 4], 1) for p, r in demos] + [(ids, 0) for ids in scored]
        print(number, step(policy, discriminator, head, optimizers, Batch(demos, groups, contrast, scored)))


if __name__ == "__main__":
    main()
