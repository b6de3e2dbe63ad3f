"""The contract of an adversary: it stays in its threat model, climbs, and does to a row what it would do to the row alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advalign.engine.ascent import allowed_positions
from advalign.functional import balls
from advalign.interfaces import Adversary, Memory, PerturbationContext
from advalign.models import Network
from advalign.testing import _networks
from advalign.testing._rules import explained, is_plugin, require, same, seed_global_generators, snapshot
from advalign.types import Edit, Tokens, fit

Edits = dict[str, Edit]
LossOf = Callable[[Edits], Tensor]
LENGTHS, TARGETS, WIDTH = (6, 3, 5), (2, 1, 2), 6


def check_adversary(adversary: Adversary[Any], network: Network | None = None) -> None:
    """Raises AssertionError for the first rule that the adversary breaks.

    `family` continuous: its deltas climb a linear model. Other families are run on `network` (default: a small untrained policy in
    float64), and replaced tokens are held to `where`.
    """
    is_plugin(adversary, Adversary, "adversaries")
    case = _Case(adversary, network or _networks.network("policy", dtype="float64"))
    _declarations(adversary)
    _reproducible(case)
    if adversary.family == "continuous":
        _stays_inside(case)
        _climbs(case)
        _alone_as_in_company(case)
        _numerics(case)
    else:
        _replaces(case)
    _memory(case)


@dataclass(frozen=True)
class _Case:
    """Three rows of unequal length, with one random stream each."""

    adversary: Adversary[Any]
    network: Network

    def tokens(self, width: int = WIDTH) -> Tokens:
        examples = _networks.questions()[7:10]
        rows = torch.tensor(
            [(self.network.encoder.prompt(e.prompt) + self.network.encoder.response(e.answer or "") + [3] * 6)[:WIDTH] for e in examples]
        )
        place, lengths = torch.arange(WIDTH)[None], torch.tensor(LENGTHS)[:, None]
        mask = place < lengths
        target = mask & (place >= lengths - torch.tensor(TARGETS)[:, None])
        number = torch.arange(3)
        return Tokens(ids=rows * mask, mask=mask, target=target, group=number, key=number).fit(width)

    def context(
        self, rows: tuple[int, ...] = (0, 1, 2), *, width: int = WIDTH, radius: float | None = None, **options: Any
    ) -> PerturbationContext:
        """What the engine hands to the adversary for these rows."""
        threat, tokens = self.adversary.threat, self.tokens(width).index(torch.tensor(rows))
        never = () if threat.special else self.network.encoder.special_ids
        scale = self.network.mean_embedding_norm() if threat.relative_to == "mean_embedding_norm" else 1.0
        arguments: dict[str, Any] = {
            "shapes": {site: (width, self.network.width(site)) for site in threat.sites},
            "allowed": allowed_positions(threat.where, tokens, never),
            "radius": threat.radius * scale if radius is None else radius,
            "dtype": torch.float64,
            "generators": [torch.Generator().manual_seed(100 + row) for row in rows],
            "tokens": tokens,
            "names": tuple(f"train/{row}" for row in rows),
            "key": (0, "update", "policy", 0, 0, 0, 0),
            "network": self.network,
        }
        return PerturbationContext(**arguments | options)

    def loss(self, rows: tuple[int, ...] = (0, 1, 2)) -> LossOf:
        """softplus(-margin) of a linear model on mean-pooled hidden states: what the adversary climbs, convex and never flat. An
        adversary whose memory is global climbs what all rows have in common."""
        sign = torch.ones(3) if self.adversary.memory_scope == "global" else torch.tensor([1.0, -1.0, 1.0])

        def loss_of(edits: Edits) -> Tensor:
            margin = torch.zeros(len(rows), dtype=torch.float64)
            for site, edit in edits.items():
                direction = torch.linspace(-1.0, 2.0, self.network.width(site), dtype=torch.float64)
                assert edit.add is not None
                lengths = torch.tensor(LENGTHS)[list(rows)]
                margin = margin + (edit.add.double() @ direction).sum(1) / lengths
            return F.softplus(-sign[list(rows)] * (margin + 0.3))

        return loss_of

    def run(self, context: PerturbationContext, loss_of: LossOf) -> tuple[Edits, list[Edits]]:
        """One update: ask, losses, gradients, tell, and the last ask. Returns the final edits, and those of every pass."""
        adversary, passes = self.adversary, []
        with explained(adversary, "its loop raised (start, ask, tell, end_update)"):
            state = adversary.start(context)
            for _ in range(adversary.passes):
                edits = self.edits_of(state)
                passes.append(edits)
                leaves = {site: e.add.detach().requires_grad_() for site, e in edits.items() if e.add is not None}
                losses = loss_of({site: replace(edit, add=leaves.get(site)) for site, edit in edits.items()})
                by_leaf = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True) if leaves else ()
                gradients = {s: torch.zeros_like(x) if g is None else g for (s, x), g in zip(leaves.items(), by_leaf, strict=True)}
                state = adversary.tell(state, losses.detach(), gradients)
            if adversary.memory_scope == "global":  # it moves when the update ends
                adversary.end_update(context.memory, lambda x: x)
                state = adversary.start(context)
            return self.edits_of(state), passes

    def edits_of(self, state: Any) -> Edits:
        """The edits of the next pass, at sites that the adversary declares."""
        adversary = self.adversary
        edits = dict(adversary.ask(state))
        for site, edit in edits.items():
            require(isinstance(edit, Edit), adversary, f"ask gives a {type(edit).__name__} at '{site}', not an advalign.types.Edit.")
        if adversary.family == "continuous":
            _deltas(adversary, edits)
        return edits

    def climb(self, rows: tuple[int, ...] = (0, 1, 2), **options: Any) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """The same on the linear model, as deltas."""
        final, passes = self.run(self.context(rows, **options), self.loss(rows))
        return _deltas(self.adversary, final), [_deltas(self.adversary, edits) for edits in passes]


def _deltas(adversary: Adversary[Any], edits: Edits) -> dict[str, Tensor]:
    sites = adversary.threat.sites
    require(set(edits) <= set(sites), adversary, f"it edits {sorted(set(edits) - set(sites))}, and its sites are {list(sites)}.")
    for site, edit in edits.items():
        require(edit.add is not None, adversary, f"family 'continuous' adds to hidden states, and the edit at '{site}' has no `add`.")
    return {site: edit.add for site, edit in edits.items() if edit.add is not None}


def _declarations(adversary: Adversary[Any]) -> None:
    scopes = ("none", "rows", "global")
    require(adversary.memory_scope in scopes, adversary, f"memory_scope is '{adversary.memory_scope}'; it is one of {', '.join(scopes)}.")
    require(adversary.passes >= 0, adversary, f"passes is {adversary.passes}; a number of forwards is at least 0.")
    require(not adversary.trains_every_pass or adversary.passes >= 1, adversary, "it trains in every pass, and has none; set `passes`.")


def _reproducible(case: _Case) -> None:
    """Randomness comes from the generators of the context alone."""
    finals = []
    for seed in (0, 1):
        seed_global_generators(seed)
        loss_of = case.loss() if case.adversary.family == "continuous" else _network_loss(case)
        before = case.context()
        tokens = snapshot(before.tokens)
        finals.append(case.run(before, loss_of)[0])
        require(same(tokens, before.tokens), case.adversary, "it writes into the tokens of its rows.")
    require(
        same(finals[0], finals[1]), case.adversary, "two runs with equal generators differ; draw from context.generators, one per delta."
    )


def _stays_inside(case: _Case) -> None:
    adversary, context = case.adversary, case.context()
    final, passes = case.climb()
    for deltas in (*passes, final):
        for site, delta in deltas.items():
            shape, want = tuple(delta.shape), (3, *context.shapes[site])
            require(shape == want, adversary, f"the delta at '{site}' has shape {shape}, not (N, T, D) = {want}.")
            size = float(balls.norm(delta.double(), ball=adversary.ball, scope=adversary.scope).max())
            text = (
                f"the delta at '{site}' has {adversary.ball} norm {size:.6g} per {adversary.scope}, and the radius is {context.radius:.6g}"
            )
            require(size <= context.radius * (1 + 1e-9), adversary, f"{text}; project it (functional.balls.project).")
            off = float(delta[~context.allowed].abs().sum())
            require(off == 0.0, adversary, f"the delta at '{site}' moves positions that are not allowed; use functional.balls.masked.")
            require(
                delta.dtype == context.dtype, adversary, f"the delta at '{site}' is {delta.dtype}, and context.dtype is {context.dtype}."
            )
    zero, _ = case.climb(radius=0.0)
    require(all(float(x.abs().max()) < 1e-12 for x in zero.values()), adversary, "with radius 0 the delta is not zero.")


def _climbs(case: _Case) -> None:
    adversary = case.adversary
    start, loss_of = adversary.start(case.context()), case.loss()
    first = dict(adversary.ask(start))
    zero = all(float(x.abs().sum()) == 0.0 for x in _deltas(adversary, first).values())
    says = f"starts_at_zero is {adversary.starts_at_zero}, and its first delta is {'zero' if zero else 'not zero'}"
    require(zero == adversary.starts_at_zero, adversary, f"{says}; a divergence has no gradient at zero, so the engine must know.")
    if adversary.passes == 0:
        return
    final, _ = case.run(case.context(), loss_of)
    raised = bool((loss_of(final) > loss_of(first)).all())
    require(
        raised,
        adversary,
        "it does not raise the loss of a linear model; does tell() go up the gradient? (An adversary without steps declares steps 0.)",
    )


def _alone_as_in_company(case: _Case) -> None:
    """A delta is the row's own: padding, order and the split into micro-batches change nothing."""
    if case.adversary.memory_scope == "global":
        return
    want, _ = case.climb()
    wide, _ = case.climb(width=WIDTH + 3)
    order = (2, 0, 1)
    moved, _ = case.climb(order)
    alone, _ = case.climb((1,))
    for site, delta in want.items():
        same_width = torch.allclose(wide[site][:, :WIDTH], delta, rtol=0, atol=1e-12)
        require(same_width, case.adversary, "deltas depend on the padding of the batch; draw and normalise over allowed positions alone.")
        company = torch.allclose(moved[site], delta[list(order)], rtol=0, atol=1e-12) and torch.allclose(
            alone[site], delta[1:2], rtol=0, atol=1e-12
        )
        require(company, case.adversary, "the delta of a row depends on the other rows of its micro-batch; delta n reads row n alone.")


def _numerics(case: _Case) -> None:
    adversary = case.adversary
    single = _deltas(adversary, dict(adversary.ask(adversary.start(case.context(dtype=torch.float32)))))
    for site, delta in single.items():
        require(delta.dtype == torch.float32, adversary, f"for a bfloat16 model the delta at '{site}' is {delta.dtype}, not float32.")
    if adversary.passes == 0:
        return
    loss_of = case.loss()
    scaled, _ = case.run(case.context(), lambda edits: loss_of(edits) / 4096)
    for site, delta in case.climb()[0].items():
        close = torch.allclose(_deltas(adversary, scaled)[site], delta, rtol=1e-9, atol=1e-9)
        sentence = "deltas depend on the scale of the loss, a mean over the whole update; normalise gradients (functional.balls.steepest)."
        require(close, adversary, sentence)
    context = case.context()
    state = adversary.start(context)
    edits = _deltas(adversary, dict(adversary.ask(state)))
    nothing = {site: torch.where(context.allowed[..., None], 0.0, torch.nan).expand(x.shape).clone() for site, x in edits.items()}
    after = _deltas(adversary, dict(adversary.ask(adversary.tell(state, torch.zeros(3, dtype=torch.float64), nothing))))
    finite = all(bool(x.isfinite().all()) for x in after.values())
    require(finite, adversary, "a gradient that is zero, or nan where no delta is allowed, makes a delta that is not finite.")


def _network_loss(case: _Case) -> LossOf:
    """The negative log-likelihood of each row under edits, from the model itself."""
    tokens = case.tokens()
    return lambda edits: -case.network(tokens, {"logprobs"}, edits).logprobs.sum(1)  # type: ignore[union-attr]


def _replaces(case: _Case) -> None:
    """Tokens that may not be changed are where `origin` says, and any row comes out as it would alone."""
    adversary, context = case.adversary, case.context()
    final, _ = case.run(context, _network_loss(case))
    edit = final.get("embedding", Edit())
    if edit.tokens is None:
        return
    require(adversary.family == "discrete", adversary, f"family '{adversary.family}' replaces tokens; declare family 'discrete'.")
    tokens, new = case.tokens(), edit.tokens
    require(edit.origin is not None, adversary, "an edit with `tokens` has no `origin`, which says where each position went (-1: gone).")
    assert edit.origin is not None
    for b, t in (tokens.mask & ~context.allowed).nonzero().tolist():
        place = int(edit.origin[b, t])
        stays = place >= 0 and int(new.ids[b, place]) == int(tokens.ids[b, t])
        require(stays, adversary, "a token changed where its threat model (`where`, `special`) does not allow it.")
    padded = bool((new.mask.long().diff(dim=1) <= 0).all())
    require(padded, adversary, "replaced rows are not right padded.")
    narrow = fit(new.ids, WIDTH)
    require(narrow.shape[0] == 3, adversary, "the number of rows changed.")


def _memory(case: _Case) -> None:
    """What is kept between updates is declared, and a checkpoint can hold it."""
    adversary = case.adversary
    memory: Memory = {}
    loss_of = case.loss() if adversary.family == "continuous" else _network_loss(case)
    context = case.context(memory=memory)
    case.run(context, loss_of)
    declared = adversary.memory_scope != "none"
    require(declared or not memory, adversary, "it keeps something in context.memory, and memory_scope is 'none'; declare rows or global.")
    if adversary.memory_scope == "rows":
        for place in adversary.row_memory(memory):
            ends = place.endswith(context.names)
            require(ends, adversary, f"row_memory has an entry '{place}', which does not end in the name of a row (context.names).")
    if adversary.memory_scope != "global":
        adversary.end_update(memory, lambda x: x)
    file = io.BytesIO()
    with explained(adversary, "a checkpoint cannot hold its memory; keep tensors, numbers and dictionaries of those by string"):
        torch.save(memory, file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)


__all__ = ["check_adversary"]
