"""A table of all objectives; rows and views with exactly the fields that an objective declares, as random float64 leaves."""

from functools import partial

import torch

from advalign import plugins
from advalign.errors import ConfigError
from advalign.interfaces import Objective
from advalign.objectives._policy import Correction
from advalign.objectives.capo import CAPO
from advalign.objectives.cat import CAT
from advalign.objectives.circuit_breaker import CircuitBreaker
from advalign.objectives.cispo import CISPO
from advalign.objectives.clip_cov import ClipCov
from advalign.objectives.consistency import Consistency
from advalign.objectives.dapo import DAPO
from advalign.objectives.dft import DFT
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
from advalign.objectives.gmpo import GMPO
from advalign.objectives.gradient_penalty import GradientPenalty
from advalign.objectives.grpo import GRPO
from advalign.objectives.gspo import GSPO
from advalign.objectives.ipo import IPO
from advalign.objectives.kl import KL
from advalign.objectives.kl_cov import KLCov
from advalign.objectives.kto import KTO
from advalign.objectives.lat import LAT
from advalign.objectives.latent import Latent
from advalign.objectives.luffy import LUFFY
from advalign.objectives.orpo import ORPO
from advalign.objectives.ppo import PPO
from advalign.objectives.reinforce import REINFORCE
from advalign.objectives.reward_model import RewardModel
from advalign.objectives.sapo import SAPO
from advalign.objectives.sft import SFT
from advalign.objectives.simpo import SimPO
from advalign.objectives.target import TargetString as Target
from advalign.types import DemoRows, Distribution, FeedbackRows, LabelRows, Outputs, PairRows, RolloutRows, ScoreReader, Tokens

B, T, V, D = 8, 7, 5, 3
REQUIRED = {"dr_grpo": {"length": 7}, "latent": {"site": "layer:1"}}


def default(cls: type[Objective]) -> Objective:
    required = REQUIRED.get(plugins.kind_of(cls), {})
    try:
        return cls(source="s", **required)
    except ConfigError:  # a comparison of two views needs another than clean
        return cls(source="s", view="pgd")


TABLE = [
    *(default(cls) for cls in plugins.all("objectives")),
    SFT(source="s", view="pgd", weighting="sequence"),
    GRPO(source="s", view="pgd"),
    GRPO(source="s", view="pgd", ratio="view", dual_clip=3.0),
    DAPO(source="s", view="pgd", mask_truncated=True),
    KL(source="s", estimator="k2", weighting="sequence"),
    PPO(source="s", top_entropy=0.4),
    PPO(source="s", correction=Correction(level="geometric", mode="reject", low=0.5, high=2.0)),
    GSPO(source="s", form="token", clip_low=0.2, clip_high=0.3),
    *(cls(source="s", view="pgd") for cls in (GSPO, SAPO, CISPO, REINFORCE, GMPO, ClipCov, KLCov, LUFFY)),
    LUFFY(source="s", length=7, clip=0.2),
    DPO(source="s", view="pgd", label_smoothing=0.1),
    DPO(source="s", flip_rate=0.1),
    IPO(source="s", view="pgd", normalize=True),
    *(cls(source="s", view="pgd") for cls in (ORPO, SimPO, KTO, RewardModel, DFT)),
    *(Consistency(source="s", view="pgd", divergence=name, stop=stop) for name in ("kl", "js") for stop in (True, False)),
    Consistency(source="s", view="pgd", output="tokens", divergence="mse"),
    Consistency(source="s", view="pgd", output="tokens", stop=True),
    *(cls(source="s", view="pgd") for cls in (CAT, CAPO, LAT)),
    Target(source="s", view="pgd", wanted="chosen", away_weight=0.5),
    CircuitBreaker(source="s", role="retain", layers=(0, 2), where="response"),
    *(Discriminate(source="s", loss=loss, view=view) for loss, view in (("hinge", "clean"), ("bradley_terry", "pgd"))),
    *(Discriminate(source="s", loss=loss, score_l2=0.1) for loss in ("relativistic", "wasserstein", "least_squares")),
    *(Discriminate(source="s", loss=loss, level="token", score_l2=0.1) for loss in ("bce", "wasserstein")),
    GradientPenalty(source="s", view="pgd", rows="all", target=1.0, every=1),
    GradientPenalty(source="s", rows="other", target=3.0, one_sided=True),
    Latent(source="s", site="layer:0", side="rejected", view="pgd"),
]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(empty: tuple[int, ...] = ()) -> Tokens:
    lengths = torch.tensor([7, 4, 5, 6, 3, 7, 4, 6])
    lengths[list(empty)] = 0
    positions = torch.arange(T)[None]
    mask = positions < lengths[:, None]
    return Tokens(
        ids=torch.zeros(B, T, dtype=torch.long), mask=mask, target=mask & (positions >= 2), group=torch.arange(B) // 4, key=torch.arange(B)
    )


def build(term: Objective, **kwargs):
    """Rows of the first class the objective reads and accepts."""
    t, nll = tokens(**kwargs), lambda seed: -random(B, T, seed=seed).abs()
    makers = {
        DemoRows: lambda: DemoRows(tokens=t),
        PairRows: lambda: PairRows(tokens=t, ref_logprobs=nll(1), margin=random(B // 2, seed=10).abs().repeat_interleave(2)),
        FeedbackRows: lambda: FeedbackRows(
            tokens=t, desirable=torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]).bool(), ref_logprobs=nll(1), anchor=torch.full((B,), 0.3).double()
        ),
        LabelRows: lambda: LabelRows(tokens=t, labels=torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]), kind=torch.tensor([0, 1, 2, 0, 1, 0, 2, 2])),
        RolloutRows: lambda: RolloutRows(
            tokens=t, rewards=random(B, 2, seed=2), advantages=random(B, T, seed=3) * t.target, sampler_logprobs=nll(4),
            finished=torch.tensor([1, 0, 1, 1, 1, 1, 0, 1]).bool(), old_logprobs=nll(5), ref_logprobs=nll(6),
            values=random(B, T, seed=7), returns=random(B, T, seed=8), old_entropy=-nll(9),
        ),
    }  # fmt: skip
    for cls in term.row_types:
        rows = makers[cls]()
        try:
            term.weights(rows)
        except ConfigError:
            continue
        return rows
    raise AssertionError(f"{term} reads none of {term.row_types}")


HEAD = random(V, D, seed=20)


def outputs(term: Objective) -> tuple[dict[str, Outputs], dict[tuple[str, str], torch.Tensor]]:
    """Views with the declared fields, and their leaves."""
    leaves: dict[tuple[str, str], torch.Tensor] = {}
    for i, (view, names) in enumerate(sorted(term.reads.items())):
        for j, name in enumerate(sorted(names)):
            wide = name in ("distribution", "score_gradients") or name.startswith("hidden:")
            shape = (B, T, D) if wide else {"scores": (B,), "class_logits": (B, V), "reader": (D,)}.get(name, (B, T))
            x = random(*shape, seed=30 + 10 * i + j)
            leaves[view, name] = (-x.abs() if name == "logprobs" else x).requires_grad_()
    return views(leaves), leaves


def views(leaves: dict[tuple[str, str], torch.Tensor]) -> dict[str, Outputs]:
    columns: dict[str, dict] = {}
    for (view, name), x in leaves.items():
        fields_read = columns.setdefault(view, {})
        if name.startswith("hidden:"):
            fields_read.setdefault("hidden", {})[name.removeprefix("hidden:")] = x
        elif name == "reader":
            fields_read[name] = ScoreReader(score=partial(mean_along, x.detach()))
        else:
            fields_read[name] = Distribution(hidden=x, head=lambda h: h @ HEAD.t()) if name == "distribution" else x
    return {view: Outputs(**fields_read) for view, fields_read in columns.items()}


def mean_along(direction: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A discriminator of hidden states that is not linear: the mean of tanh(h . direction) over real tokens."""
    weight = torch.tanh(torch.where(mask[..., None], hidden, 0.0) @ direction)
    return torch.where(mask, weight, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def total(term: Objective, rows, views, weights=None) -> torch.Tensor:
    weights = weights or term.weights(rows)
    return (weights.values / weights.count * term.losses(rows, views).values).sum()
