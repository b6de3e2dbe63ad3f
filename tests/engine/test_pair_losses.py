"""What an adversary is told about pairs: both rows together have the loss of the pair, once."""

from dataclasses import dataclass

import torch
from helpers import networks
from torch.nn import functional as F

from advalign.interfaces import Adversary
from advalign.objectives import DPO, SFT
from advalign.types import Edit

TOLD = []


@dataclass(frozen=True, kw_only=True)
class Still(Adversary):
    """delta = 0; notes the losses it is told."""

    radius: float = 0.1
    steps: int = 1
    starts_at_zero = True

    def start(self, context):
        return {site: torch.zeros(*context.allowed.shape, dim, dtype=context.dtype) for site, (_, dim) in context.shapes.items()}

    def ask(self, state):
        return {site: Edit(delta) for site, delta in state.items()}

    def tell(self, state, losses, gradients):
        TOLD.append(losses.clone())
        return state


def told(objective, rows, net):
    TOLD.clear()
    networks.update(networks.learner(net), {"x": objective}, {"s": rows}, {"still": Still()})
    return torch.cat(TOLD)


def test_the_rows_of_a_pair_share_its_loss_equally():
    """DPO by hand: l = -log sigmoid(beta (d_chosen - d_rejected)), mean over two pairs; each row is told half of its pair's share."""
    net = networks.network()
    rows = networks.pairs(net)
    with torch.no_grad():
        logp = net(rows.tokens, {"logprobs"}).logprobs
    d = ((logp - rows.ref_logprobs) * rows.tokens.target).sum(1)
    losses = -F.logsigmoid(0.1 * (d[::2] - d[1::2])) / 2
    found = told(DPO(source="s", view="still", beta=0.1), rows, net)
    torch.testing.assert_close(found, (losses / 2).repeat_interleave(2), rtol=0, atol=1e-12)
    assert float(found.sum()) == float(losses.sum()) or torch.isclose(found.sum(), losses.sum(), rtol=0, atol=1e-12)


def test_single_rows_are_told_their_own_loss():
    net = networks.network()
    rows = networks.demos(net)
    with torch.no_grad():
        nll = -(net(rows.tokens, {"logprobs"}).logprobs * rows.tokens.target).sum(1)
    found = told(SFT(source="s", view="still"), rows, net)
    torch.testing.assert_close(found, nll / rows.tokens.target.sum(), rtol=0, atol=1e-12)
