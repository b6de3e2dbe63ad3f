"""Plain transformers and torch: what the checks expect. Every forward sees one row, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from architectures.build import Subject
from torch import Tensor, nn

Rows = Sequence[list[int]]
Edits = Mapping[str, Sequence[Tensor]]
"""{site: what is added to the hidden states of each row, "T D"}"""


def logits(model: Any, row: list[int]) -> Tensor:
    """At the positions that predict the tokens of a row."""
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1]  # type: ignore[no-any-return]


def row_logprobs(model: Any, row: list[int], temperature: float = 1.0) -> Tensor:
    """log_softmax(model(ids).logits / temperature) at each token but the first."""
    return (logits(model, row) / temperature).double().log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0]


def logprobs(subject: Subject, model: Any, rows: Rows, edits: Edits | None = None, temperature: float = 1.0) -> list[Tensor]:
    """Row after row, with `edits` added by hooks."""
    modules = {site: subject.module(model, site) for site in edits or {}}
    values = []
    for b, row in enumerate(rows):
        with ExitStack() as stack:
            for site, changes in (edits or {}).items():
                stack.enter_context(added(modules[site], changes[b][None]))
            values.append(row_logprobs(model, row, temperature))
    return values


@contextmanager
def added(module: nn.Module, change: Tensor) -> Iterator[None]:
    """The hook of plain torch: `change` is added to the hidden states that a module returns."""

    def add(module: nn.Module, inputs: object, output: Any) -> Any:
        hidden = output if isinstance(output, Tensor) else output[0]
        longer = hidden.shape[-2] - change.shape[-2]  # Longformer pads inside, to whole windows
        new = hidden + nn.functional.pad(change, (0, 0, 0, longer))
        return new if isinstance(output, Tensor) else type(output)([new, *output[1:]])

    hook = module.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def greedy(model: Any, prompt: list[int], number: int, end: int) -> list[int]:
    """The likeliest token after the whole row, again and again, without a cache."""
    row = list(prompt)
    for _ in range(number):
        with torch.no_grad():
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        if row[-1] == end:
            break
    return row[len(prompt) :]


def ascended(subject: Subject, model: Any, rows: Rows, starts: Sequence[int], radius: float) -> dict[str, list[Tensor]]:
    """One step of steepest ascent of the loss from zero, per token to the edge of its L2 ball, at every site of the family."""
    every = {"embedding": model.get_input_embeddings().weight.shape[1], "layer:1": subject.width(model)}
    widths = {site: every[site] for site in subject.sites}
    zeros = {
        site: [torch.zeros(len(r), width, dtype=subject.family.torch_dtype, requires_grad=True) for r in rows]
        for site, width in widths.items()
    }
    loss = mean_loss(logprobs(subject, model, rows, zeros), starts)
    steps = {}
    for site, deltas in zeros.items():
        slopes = torch.autograd.grad(loss, deltas, retain_graph=True)
        steps[site] = [radius * g / g.norm(dim=-1, keepdim=True).clamp(min=1e-30) for g in slopes]
    return steps


def mean_loss(values: Sequence[Tensor], starts: Sequence[int]) -> Tensor:
    """-log p, averaged over all tokens from `starts` on."""
    return -torch.cat([v[start - 1 :] for v, start in zip(values, starts, strict=True)]).mean()


def policy_loss(values: Sequence[Tensor], starts: Sequence[int], advantages: Sequence[float]) -> Tensor:
    """-A log p where the ratio is 1, averaged over the tokens of a response, then over responses."""
    rows = [v[start - 1 :] for v, start in zip(values, starts, strict=True)]
    return -torch.stack([a * (v - v.detach()).exp().mean() for a, v in zip(advantages, rows, strict=True)]).mean()
