"""What a causal family must give: everything beside plain transformers on the same folder (`reference.py`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from architectures import reference
from architectures.build import ROWS, Subject, close, close_gradients, named_gradients, pad, rows
from torch import Tensor
from transformers import GenerationConfig

from advalign.adversaries.pgd import PGD
from advalign.engine.learner import Learner, LearnerRuntime
from advalign.engine.plan import plan
from advalign.models import Network
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rollout.hf import HF
from advalign.types import DemoRows, Edit, Example, RolloutGroup, RolloutRows, Sampling, Tokens

PROMPTS = ([5, 6, 7, 8, 9], [5, 6], [30, 31, 32])
NEW_TOKENS = 6
SAMPLED = ([5, 6, 7, 8], [5, 6, 9, 10, 11], [30, 31, 33])
"""Rows of two prompts of two tokens each."""
ADVANTAGES = (1.0, -1.0, 0.5)
RATE, RADIUS = 1e-3, 0.1
TRAINED = 1e-5  # of log-probabilities after three steps: AdamW magnifies the last bits of a gradient that transformers computes in float32


def run(net: Network, tokens: Tokens, edits: Mapping[str, Edit] | None = None, temperature: float | None = None) -> Tensor:
    """Log-probabilities of the targets."""
    divisors = None if temperature is None else torch.full((len(tokens.ids),), temperature, dtype=net.dtype)
    outputs = net(tokens, frozenset({"logprobs"}), edits, divisors)
    assert outputs.logprobs is not None
    return outputs.logprobs[tokens.target].double()


def log_probabilities(subject: Subject, folder: Path) -> float:
    """The largest difference, at temperatures 1 and 0.7."""
    differences = []
    for temperature in (1.0, 0.7):
        right = torch.cat(reference.logprobs(subject, subject.plain, ROWS, temperature=temperature))
        ours = run(subject.net, rows(), temperature=None if temperature == 1 else temperature)
        close(ours, right, subject.tolerance)
        differences.append(float((ours - right).abs().max()))
    return max(differences)


def entropy_and_distribution(subject: Subject, folder: Path) -> None:
    tokens = rows()
    outputs = subject.net(tokens, frozenset({"entropy", "distribution"}), None, torch.full((3,), 0.7, dtype=subject.net.dtype))
    right = torch.cat([reference.logits(subject.plain, row) / 0.7 for row in ROWS])
    close(outputs.entropy[tokens.target], torch.distributions.Categorical(logits=right).entropy(), subject.tolerance)
    ours = outputs.distribution.head(outputs.distribution.hidden[tokens.target])
    close(ours.log_softmax(-1), right.log_softmax(-1), subject.tolerance)


def weights_of(values: Tensor) -> Tensor:
    return torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(1))


def gradients(subject: Subject, folder: Path) -> None:
    right = torch.cat(reference.logprobs(subject, subject.plain, ROWS))
    ours = run(subject.net, rows())
    weights = weights_of(right)
    theirs = named_gradients(subject.plain, right @ weights)
    close_gradients(named_gradients(subject.net.model, ours @ weights), theirs, subject.tolerance)


def change(subject: Subject, site: str, scale: float) -> Tensor:
    """What is added, "B T D", zero at padding."""
    mask = rows().mask
    noise = torch.randn(*mask.shape, subject.net.width(site), dtype=subject.net.dtype, generator=torch.Generator().manual_seed(2))
    return scale * noise * mask[..., None]


def expected_edited(subject: Subject, site: str, add: Tensor) -> Tensor:
    return torch.cat(reference.logprobs(subject, subject.plain, ROWS, {site: [x[: len(row)] for x, row in zip(add, ROWS, strict=True)]}))


def edits_at(site: str) -> Callable[[Subject, Path], None]:
    """Zero and not, with gradients with respect to what is added."""

    def check(subject: Subject, folder: Path) -> None:
        clean = torch.cat(reference.logprobs(subject, subject.plain, ROWS))
        close(run(subject.net, rows(), {site: Edit(add=change(subject, site, 0.0))}), clean, subject.tolerance)
        add = change(subject, site, 0.3).requires_grad_()
        ours, right = run(subject.net, rows(), {site: Edit(add=add)}), expected_edited(subject, site, add)
        close(ours, right, subject.tolerance)
        assert float((ours - clean).abs().max()) > 1e-3, f"an edit at {site} changes nothing"
        mine, theirs = (torch.autograd.grad(value @ weights_of(right), add)[0] for value in (ours, right))
        mask = rows().mask[..., None]
        close_gradients({site: mine * mask}, {site: theirs * mask}, subject.tolerance)

    return check


def checkpointing(subject: Subject, folder: Path) -> None:
    """The same numbers, and the blocks do run again: with an edit at the last site, in training mode."""
    net, site = subject.open(gradient_checkpointing=True).train(), subject.sites[-1]
    add, calls = change(subject, site, 0.3), []
    for module in net.backbone.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    ours, right = run(net, rows(), {site: Edit(add=add)}), expected_edited(subject, site, add)
    before, weights = len(calls), weights_of(right)
    mine = named_gradients(net.model, ours @ weights)
    assert len(calls) > before, "gradient checkpointing runs nothing again"
    close(ours, right, subject.tolerance)
    close_gradients(mine, named_gradients(subject.plain, right @ weights), subject.tolerance)


def packing(subject: Subject, folder: Path) -> str | None:
    """Rows without padding give what rows with padding give; or none are packed, and a promise that is not held is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net = subject.open()
    if not net.packs:
        (reason,) = [str(w.message) for w in said if str(w.message).startswith("packing: ")]
        return "off: " + reason.partition(" ")[2]
    tokens = pad(SAMPLED, (2, 2, 2), group=(0, 0, 1))
    packed = run(net, tokens)
    net._packs = False
    close(packed, run(net, tokens), subject.tolerance)
    return None


def rollouts(subject: Subject, number: int, options: Sampling) -> list[RolloutGroup]:
    groups = [RolloutGroup(example=Example(prompt=""), prompt_ids=list(ids), rollouts=[]) for ids in PROMPTS]
    return HF().extend(subject.net, groups, number, options, torch.Generator().manual_seed(0))


def sampling(subject: Subject, folder: Path) -> str | None:
    """Two responses to each of three ragged prompts; the sampler's log-probabilities, the trainer's, and those of plain transformers."""
    for options in (Sampling(max_new_tokens=NEW_TOKENS), Sampling(max_new_tokens=NEW_TOKENS, temperature=0.7, top_p=0.9)):
        groups = rollouts(subject, 2, options)
        tokens = subject.net.encoder.rollouts(groups)
        sampled = torch.tensor([x for g in groups for r in g.rollouts for x in r.sampler_logprobs], dtype=torch.float64)
        full = [[*g.prompt_ids, *r.response_ids] for g in groups for r in g.rollouts]
        starts = [len(g.prompt_ids) for g in groups for _ in g.rollouts]
        with torch.no_grad():
            right = [reference.row_logprobs(subject.plain, row, options.temperature) for row in full]
            trained = run(subject.net, tokens, temperature=options.temperature)
        close(sampled, torch.cat([v[start - 1 :] for v, start in zip(right, starts, strict=True)]), subject.tolerance)
        close(sampled, trained, subject.tolerance)
    return None if subject.net.caches else "reads whole rows at every token (its cache gives other hidden states)"


def greedy(subject: Subject, folder: Path) -> str | None:
    """The tokens of `generate`, prompt by prompt, and those of a loop without a cache."""
    subject.plain.generation_config = GenerationConfig()  # BART's forces the last token of a response to be an end
    options, differs = Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0), False
    for group in rollouts(subject, 1, options):
        prompt = torch.tensor([group.prompt_ids])
        try:
            tokens = subject.plain.generate(prompt, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=1, pad_token_id=0)
        except (RuntimeError, ValueError):  # xLSTM
            tokens = prompt
        ours, generated = group.rollouts[0].response_ids, tokens[0, len(group.prompt_ids) :].tolist()
        assert ours == reference.greedy(subject.plain, group.prompt_ids, NEW_TOKENS, 1), "not the likeliest tokens of its own forward"
        differs |= ours != generated
    assert differs == bool(subject.family.generate), "generate gives other tokens than the model's own forward"
    return subject.family.generate or None


def saving(subject: Subject, folder: Path) -> None:
    """A trained model, saved here, opened by transformers."""
    net = subject.open()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.01 * torch.randn_like(p) * (p != 0)  # transformers zeroes the row of padding when it loads some (Youtu)
    net.save_pretrained(folder / "saved")
    plain = subject.open_by_transformers(folder / "saved")
    right = torch.cat(reference.logprobs(subject, plain, ROWS))
    close(run(net, rows()), right, subject.tolerance)
    assert float((right - run(subject.net, rows())).abs().max()) > 1e-3


def adapters(subject: Subject, folder: Path) -> None:
    """LoRA on all linear modules: one step trains it; saved and opened here and by peft it gives the same numbers."""
    import peft

    net = subject.open(lora=subject.lora)
    before = run(net, rows()).detach()
    close(before, run(subject.net, rows()).detach(), subject.tolerance)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves B alone
        optimizer.zero_grad()
        (-run(net, rows()).mean()).backward()
        optimizer.step()
    trained = run(net, rows()).detach()
    assert float((trained - before).abs().max()) > 1e-4, "the adapter did not move"
    net.save_pretrained(folder / "adapter")
    again = subject.load(folder / "adapter")
    close(run(again, rows()).detach(), trained, subject.tolerance)
    theirs = peft.PeftModel.from_pretrained(subject.open_plain(), folder / "adapter").to(subject.family.torch_dtype).eval()
    close(torch.cat([reference.row_logprobs(theirs, row) for row in ROWS]).detach(), trained, subject.tolerance)


def mixed_steps(subject: Subject, folder: Path) -> None:
    """Three AdamW steps of GRPO + SFT + SFT under PGD at every site, beside the same in plain torch."""
    net, plain = subject.open(), subject.open_plain()
    objectives = {"policy": GRPO(source="math"), "imitate": SFT(source="chat"), "robust": SFT(source="chat", view="pgd", coef=0.5)}
    pgd = PGD(radius=RADIUS, steps=1, random_start=False, sites=subject.sites, relative_to="absolute")
    planned = plan("policy", objectives, {"pgd": pgd}, [])
    runtime = LearnerRuntime("policy", Learner(model="given", learning_rate=RATE), net, Accelerator(cpu=True), 3)
    data = {"chat": DemoRows(tokens=pad(ROWS, (2, 2, 2))), "math": sampled_rows()}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=RATE, weight_decay=0.0)
    before = torch.cat(reference.logprobs(subject, plain, ROWS)).detach()
    for step in range(3):
        runtime.update(planned, data, {}, budget=30, key=("update", step))
        optimizer.zero_grad()
        mixed_loss(subject, plain).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    net.eval()
    after = torch.cat(reference.logprobs(subject, plain, ROWS)).detach()
    assert float((after - before).abs().max()) > 1e-3
    close(run(net, rows()).detach(), after, max(TRAINED, subject.tolerance * 10))


def mixed_loss(subject: Subject, plain: object) -> Tensor:
    starts = (2, 2, 2)
    deltas = reference.ascended(subject, plain, ROWS, starts, RADIUS)
    loss = reference.policy_loss(reference.logprobs(subject, plain, SAMPLED), starts, ADVANTAGES)
    loss = loss + reference.mean_loss(reference.logprobs(subject, plain, ROWS), starts)
    return loss + 0.5 * reference.mean_loss(reference.logprobs(subject, plain, ROWS, deltas), starts)


def sampled_rows() -> RolloutRows:
    tokens = pad(SAMPLED, (2, 2, 2), group=(0, 0, 1))
    return RolloutRows(
        tokens=tokens,
        rewards=torch.zeros(3, 1),
        advantages=torch.tensor(ADVANTAGES)[:, None] * tokens.target,
        sampler_logprobs=torch.zeros(tokens.ids.shape),
        finished=torch.ones(3, dtype=torch.bool),
    )


CHECKS: dict[str, Callable[[Subject, Path], object]] = {
    "log-probabilities": log_probabilities,
    "entropy and distribution": entropy_and_distribution,
    "gradients": gradients,
    "edits at the embedding": edits_at("embedding"),
    "edits at a block": edits_at("layer:1"),
    "checkpointing": checkpointing,
    "packing": packing,
    "LoRA": adapters,
    "sampling": sampling,
    "greedy": greedy,
    "saving": saving,
    "three mixed steps": mixed_steps,
}
