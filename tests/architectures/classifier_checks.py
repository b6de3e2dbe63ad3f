"""What a family of classifiers must give: everything beside plain transformers on the same folder, one row at a time, without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from architectures.build import Subject, close, close_gradients, named_gradients
from architectures.reference import added
from torch import Tensor
from torch.nn.functional import cross_entropy

from advalign.adversaries.pgd import PGD
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.models import Network
from advalign.objectives.classify import Classify
from advalign.types import Edit, LabelRows, Tokens

TEXTS = ("w5 w6 w7 w8 w9 w10", "w5 w6", "w30 w31 w32")
SECOND = ("w11 w12", "w20 w21 w22 w23", "w33")
LABELS = (0, 2, 1)
RATE, RADIUS = 1e-3, 0.1
TRAINED = 1e-5

Edits = Mapping[str, Sequence[Tensor]]
"""{site: what is added to the hidden states of each row, "T D"}"""


def own_logits(subject: Subject, model: Any, pairs: bool = False, edits: Edits | None = None) -> Tensor:
    """Of plain transformers on what the tokenizer gives for each row, with `edits` added by hooks."""
    accepted = subject.accepted(model)
    modules = {site: subject.module(model, site) for site in edits or {}}
    parts = []
    for b, text in enumerate(TEXTS):
        inputs = subject.tokenizer(text, SECOND[b] if pairs else None, return_tensors="pt")
        with ExitStack() as stack:
            for site, changes in (edits or {}).items():
                stack.enter_context(added(modules[site], changes[b][None]))
            parts.append(model(**{name: x for name, x in inputs.items() if name in accepted}).logits)
    return torch.cat(parts)


def rows(net: Network, pairs: bool = False) -> Tokens:
    return net.encoder.classify(TEXTS, SECOND if pairs else None)


def run(net: Network, tokens: Tokens, edits: Mapping[str, Edit] | None = None) -> Tensor:
    logits = net(tokens, frozenset({"class_logits"}), edits).class_logits
    assert logits is not None
    return logits


def logits(subject: Subject, folder: Path) -> float:
    """Of single texts; the largest difference."""
    ours, right = run(subject.net, rows(subject.net)), own_logits(subject, subject.plain)
    close(ours, right, subject.tolerance)
    return float((ours - right).abs().max())


def pairs(subject: Subject, folder: Path) -> None:
    """Of texts with a second one, with the token types of the tokenizer where the model has them."""
    close(run(subject.net, rows(subject.net, pairs=True)), own_logits(subject, subject.plain, pairs=True), subject.tolerance)


def gradients(subject: Subject, folder: Path) -> None:
    weights = torch.randn(len(TEXTS), 3, dtype=subject.net.dtype, generator=torch.Generator().manual_seed(1))
    ours, right = (run(subject.net, rows(subject.net)) * weights).sum(), (own_logits(subject, subject.plain) * weights).sum()
    close_gradients(named_gradients(subject.net.model, ours), named_gradients(subject.plain, right), subject.tolerance)


def change(subject: Subject, site: str, scale: float) -> Tensor:
    """What is added, "B T D", zero at padding."""
    mask = rows(subject.net).mask
    noise = torch.randn(*mask.shape, subject.net.width(site), dtype=subject.net.dtype, generator=torch.Generator().manual_seed(2))
    return scale * noise * mask[..., None]


def cropped(subject: Subject, add: Tensor) -> list[Tensor]:
    return [x[: int(length)] for x, length in zip(add, rows(subject.net).lengths, strict=True)]


def edits_at(site: str) -> Callable[[Subject, Path], None]:
    """Zero and not, with gradients with respect to what is added."""

    def check(subject: Subject, folder: Path) -> None:
        tokens = rows(subject.net)
        clean = own_logits(subject, subject.plain)
        close(run(subject.net, tokens, {site: Edit(add=change(subject, site, 0.0))}), clean, subject.tolerance)
        add = change(subject, site, 0.3).requires_grad_()
        ours = run(subject.net, tokens, {site: Edit(add=add)})
        right = own_logits(subject, subject.plain, edits={site: cropped(subject, add)})
        close(ours, right, subject.tolerance)
        assert float((ours - clean).abs().max()) > 1e-3, f"an edit at {site} changes nothing"
        mine, theirs = (torch.autograd.grad(value.sin().sum(), add)[0] for value in (ours, right))
        close_gradients({site: mine * tokens.mask[..., None]}, {site: theirs * tokens.mask[..., None]}, subject.tolerance)

    return check


def checkpointing(subject: Subject, folder: Path) -> None:
    net = subject.open(gradient_checkpointing=True).train()
    calls: list[int] = []
    for module in net.backbone.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    ours, right = run(net, rows(net)).sin().sum(), own_logits(subject, subject.plain).sin().sum()
    before = len(calls)
    mine = named_gradients(net.model, ours)
    assert len(calls) > before, "gradient checkpointing runs nothing again"
    close(ours, right, subject.tolerance)
    close_gradients(mine, named_gradients(subject.plain, right), subject.tolerance)


def saving(subject: Subject, folder: Path) -> None:
    """A changed model, saved here, opened by transformers."""
    net = subject.open()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.01 * torch.randn_like(p) * (p != 0)  # transformers zeroes the row of padding when it loads some (Youtu)
    net.save_pretrained(folder / "saved")
    right = own_logits(subject, subject.open_by_transformers(folder / "saved"))
    close(run(net, rows(net)), right, subject.tolerance)
    assert float((right - own_logits(subject, subject.plain)).abs().max()) > 1e-4


def adapters(subject: Subject, folder: Path) -> None:
    """LoRA and the head, trained for two steps, saved, opened here and by peft."""
    import peft

    net = subject.open(lora=subject.lora)
    before = run(net, rows(net)).detach()
    close(before, own_logits(subject, subject.plain).detach(), subject.tolerance)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        cross_entropy(run(net, rows(net)), torch.tensor(LABELS)).backward()
        optimizer.step()
    trained = run(net, rows(net)).detach()
    assert float((trained - before).abs().max()) > 1e-4, "the adapter did not move"
    net.save_pretrained(folder / "adapter")
    again = subject.load(folder / "adapter")
    close(run(again, rows(again)).detach(), trained, subject.tolerance)
    theirs = peft.PeftModel.from_pretrained(subject.open_plain(), folder / "adapter").to(subject.family.torch_dtype).eval()
    close(own_logits(subject, theirs).detach(), trained, subject.tolerance)


def mixed_steps(subject: Subject, folder: Path) -> None:
    """Three AdamW steps of cross entropy, clean and under PGD at the embedding, beside the same in plain torch."""
    net, plain = subject.open(), subject.open_plain()
    objectives = {"clean": Classify(source="labels"), "robust": Classify(source="labels", view="pgd", coef=0.5)}
    pgd = PGD(radius=RADIUS, steps=1, random_start=False, relative_to="absolute")
    runtime = LearnerRuntime("model", Learner(model="given", head="classifier", learning_rate=RATE), net, Accelerator(cpu=True), 3)
    data = {"labels": LabelRows(tokens=rows(net), labels=torch.tensor(LABELS))}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.0)
    before = own_logits(subject, plain).detach()
    for step in range(3):
        runtime.update(plan("model", objectives, {"pgd": pgd}, []), data, {}, budget=16, key=("update", step))
        optimizer.zero_grad()
        mixed_loss(subject, plain).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    net.eval()
    after = own_logits(subject, plain).detach()
    assert float((after - before).abs().max()) > 1e-3
    close(run(net, rows(net)).detach(), after, max(TRAINED, subject.tolerance * 10))


def mixed_loss(subject: Subject, plain: Any) -> Tensor:
    labels, width = torch.tensor(LABELS), plain.get_input_embeddings().weight.shape[1]
    lengths = rows(subject.net).lengths.tolist()
    zeros = [torch.zeros(length, width, dtype=subject.family.torch_dtype, requires_grad=True) for length in lengths]
    slopes = torch.autograd.grad(cross_entropy(own_logits(subject, plain, edits={"embedding": zeros}), labels), zeros)
    deltas = [RADIUS * g / g.norm(dim=-1, keepdim=True).clamp(min=1e-30) for g in slopes]
    attacked = own_logits(subject, plain, edits={"embedding": deltas})
    return cross_entropy(own_logits(subject, plain), labels) + 0.5 * cross_entropy(attacked, labels)


CHECKS: dict[str, Callable[[Subject, Path], object]] = {
    "logits": logits,
    "pairs": pairs,
    "gradients": gradients,
    "edits at the embedding": edits_at("embedding"),
    "edits at a block": edits_at("layer:1"),
    "checkpointing": checkpointing,
    "LoRA": adapters,
    "saving": saving,
    "three mixed steps": mixed_steps,
}
