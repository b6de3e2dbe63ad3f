"""Chunked two-view divergences against the dense B x T x V computation."""

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional.divergence import BETWEEN
from advalign.models import heads
from advalign.types import Distribution

B, T, D, V = 3, 5, 4, 7
TARGET = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()


@pytest.fixture
def two(double: None):
    g = torch.Generator().manual_seed(0)
    hidden = [torch.randn(B, T, D, generator=g).requires_grad_() for _ in range(2)]
    weight = torch.randn(V, D, generator=g).requires_grad_()
    p, q = (Distribution(hidden=h, head=lambda x: 4 * torch.tanh(x @ weight.t() / 4)) for h in hidden)
    return p, q, hidden, weight


@pytest.mark.parametrize("kind", sorted(BETWEEN))
@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_equals_the_dense_one_with_gradients_into_both_views_and_the_head(two, kind, chunk):
    p, q, hidden, weight = two
    mine = heads.divergence(p, q, TARGET, kind=kind, chunk=chunk)
    assert float(mine.detach()[~TARGET].abs().sum()) == 0.0
    logits = [4 * torch.tanh(h @ weight.t() / 4) for h in hidden]
    dense = BETWEEN[kind](*[x[TARGET] for x in logits])
    torch.testing.assert_close(mine[TARGET], dense, rtol=0, atol=1e-14)
    pull = torch.linspace(-1, 1, int(TARGET.sum()))
    leaves = [*hidden, weight]
    ours = torch.autograd.grad((mine[TARGET] * pull).sum(), leaves)
    theirs = torch.autograd.grad((dense * pull).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_stop_keeps_the_gradient_out_of_p_and_of_its_head(two):
    p, q, hidden, weight = two
    loss = heads.divergence(p, q, TARGET, kind="kl", stop=True).sum()
    first, second, head = torch.autograd.grad(loss, [*hidden, weight], allow_unused=True)
    constant = (4 * torch.tanh(hidden[0] @ weight.t() / 4)).detach()
    dense = BETWEEN["kl"](constant[TARGET], (4 * torch.tanh(hidden[1] @ weight.t() / 4))[TARGET]).sum()
    want = torch.autograd.grad(dense, [hidden[1], weight])
    assert first is None or float(first.abs().max()) == 0.0
    torch.testing.assert_close(second, want[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(head, want[1], rtol=0, atol=1e-13)


def test_no_logits_of_all_tokens_are_ever_made(double):
    rows = []
    target = torch.ones(2, 8, dtype=torch.bool)

    def head(x):
        rows.append(x.shape[0])
        return x

    p, q = (Distribution(hidden=torch.randn(2, 8, 3, requires_grad=True), head=head) for _ in range(2))
    heads.divergence(p, q, target, kind="kl", chunk=3).sum().backward()
    assert max(rows) == 3
    assert sum(rows) == 2 * 2 * 16  # two views, once forward and once again in backward


def test_nothing_to_compare_is_zero_with_a_graph(two):
    p, q, hidden, _ = two
    loss = heads.divergence(p, q, torch.zeros(B, T, dtype=torch.bool))
    assert float(loss.detach().abs().sum()) == 0.0
    assert float(torch.autograd.grad(loss.sum(), hidden[1])[0].abs().sum()) == 0.0


def test_unknown_kind(two):
    with pytest.raises(ConfigError, match=r"no kind 'jss'.*Did you mean 'js'"):
        heads.divergence(two[0], two[1], TARGET, kind="jss")
