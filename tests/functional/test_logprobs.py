"""Chunked log-probabilities against log_softmax, finite differences, and a count of what is held in memory."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advalign.functional import logprobs

N, D, V = 6, 3, 11


@pytest.fixture
def given(double: None) -> dict:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden": torch.randn(N, D, generator=g, requires_grad=True),
        "weight": torch.randn(V, D, generator=g, requires_grad=True),
        "bias": torch.randn(V, generator=g, requires_grad=True),
        "ids": torch.tensor([0, 10, 3, 4, 3, 7]),
    }


def dense(hidden, weight, bias, ids, temperature):
    logp = ((hidden @ weight.t() + (0 if bias is None else bias)) / temperature).log_softmax(1)
    return logp[torch.arange(len(ids)), ids], -(logp.exp() * logp).sum(1)


@pytest.mark.parametrize("chunk", [1, 4, 11, 8192])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_is_log_softmax_with_its_gradients(given, chunk, temperature, with_bias):
    hidden, weight, ids = given["hidden"], given["weight"], given["ids"]
    bias = given["bias"] if with_bias else None
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    mine = logprobs.linear(hidden, weight, bias, ids, temperature=temperature, chunk=chunk)
    want = dense(hidden, weight, bias, ids, temperature)
    pull = torch.randn(2, N)  # both outputs at once, with unequal weights
    for a, b in zip(mine, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    ours = torch.autograd.grad((pull[0] * mine[0] + pull[1] * mine[1]).sum(), leaves)
    theirs = torch.autograd.grad((pull[0] * want[0] + pull[1] * want[1]).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_linear_gradients_by_finite_differences(given):
    assert torch.autograd.gradcheck(
        lambda h, w, b: logprobs.linear(h, w, b, given["ids"], temperature=0.7, chunk=4), (given["hidden"], given["weight"], given["bias"])
    )


def test_linear_of_a_uniform_head():
    # W = 0: every token has probability 1/V, so log p = -log V and H = log V; scaling logits changes neither.
    lp, entropy = logprobs.linear(torch.randn(4, D), torch.zeros(V, D), None, torch.tensor([0, 1, 5, 10]), temperature=3.0, chunk=2)
    log_v = torch.full((4,), float(V)).log()
    torch.testing.assert_close(lp, -log_v)
    torch.testing.assert_close(entropy, log_v)


def test_linear_with_logits_far_apart_does_not_overflow(double):
    # logits (1000, 0): p = (1, 0), log p of the second is -1000, entropy 0.
    lp, entropy = logprobs.linear(torch.ones(2, 1), torch.tensor([[1000.0], [0.0]]), None, torch.tensor([0, 1]), chunk=1)
    assert lp.tolist() == [0.0, -1000.0]
    assert entropy.tolist() == [0.0, 0.0]


class Largest(TorchDispatchMode):
    """The largest number of elements any operation returned, and the matrix products among them."""

    def __init__(self):
        super().__init__()
        self.numel, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.mm.default
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_linear_never_holds_n_by_v():
    n, v, d, chunk = 64, 512, 4, 32
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    with Largest() as largest:
        lp, entropy = logprobs.linear(hidden, weight, None, torch.randint(v, (n,)), chunk=chunk)
        (lp + entropy).sum().backward()
    assert largest.numel <= max(n * chunk, v * d)  # a chunk of logits, or the gradient of W; n * v would be 32768
    assert hidden.grad is not None


def test_gradient_of_the_head_is_not_computed_for_upstream_inputs_alone():
    # Per chunk: 1 product for the logits again, 1 for the hidden states; the third, for W, only in a full backward.
    hidden, weight = torch.randn(5, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    edit = torch.zeros(5, D, requires_grad=True)
    ids, chunks = torch.zeros(5, dtype=torch.long), 3
    lp, _ = logprobs.linear(hidden + edit, weight, None, ids, chunk=4)
    with Largest() as inner:
        (gradient,) = torch.autograd.grad(lp.sum(), [edit], retain_graph=True)
    with Largest() as full:
        lp.sum().backward()
    assert (inner.products, full.products) == (2 * chunks, 3 * chunks)
    torch.testing.assert_close(gradient, hidden.grad)
    # asked for by name, a leaf's gradient is there
    lp, _ = logprobs.linear(hidden, weight, None, ids, chunk=4)
    torch.testing.assert_close(torch.autograd.grad(lp.sum(), [weight])[0], weight.grad)


def test_half_precision_is_summed_in_float32():
    # 4096 equal logits: summing exp in bfloat16 would stall at 256 (8 bits), giving log 256; float32 gives log 4096.
    hidden, weight = torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(4096, 1, dtype=torch.bfloat16)
    lp, entropy = logprobs.linear(hidden, weight, None, torch.tensor([7]), chunk=1)
    assert lp.dtype == torch.float32
    torch.testing.assert_close(lp, -torch.tensor([4096.0]).log())
    torch.testing.assert_close(entropy, torch.tensor([4096.0]).log())


def test_autocast_gives_both_passes_the_same_logits():
    # Under autocast the outputs are those of bfloat16 inputs, and so are the gradients, although backward runs outside of it.
    hidden, weight, ids = torch.randn(8, 16), torch.randn(50, 16), torch.arange(8)
    results = []
    for cast in (True, False):
        h = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            low = (h, weight) if cast else (h.bfloat16(), weight.bfloat16())
            lp, entropy = logprobs.linear(*low, None, ids, chunk=16)
        (lp + entropy).sum().backward()
        results.append((lp, entropy, h.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("chunk", [2, 100])
def test_from_head_agrees_with_linear_and_takes_any_function(given, chunk):
    hidden, weight, bias, ids = given["hidden"], given["weight"], given["bias"], given["ids"]
    temperature = torch.linspace(0.5, 2.0, N)[:, None]
    mine = logprobs.from_head(lambda h: 3 * torch.tanh((h @ weight.t() + bias) / 3), hidden, ids, temperature=temperature, chunk=chunk)
    logp = (3 * torch.tanh((hidden @ weight.t() + bias) / 3) / temperature).log_softmax(1)
    want = logp[torch.arange(N), ids], -(logp.exp() * logp).sum(1)
    for a, b in zip(mine, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
        for x, y in zip(
            torch.autograd.grad(a.sum(), [hidden, weight], retain_graph=True),
            torch.autograd.grad(b.sum(), [hidden, weight], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-13)
    plain = logprobs.from_head(lambda h: h @ weight.t() + bias, hidden, ids, temperature=0.7, chunk=chunk)
    for a, b in zip(plain, logprobs.linear(hidden, weight, bias, ids, temperature=0.7), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_from_logits_is_about_token_t(double):
    # A bigram table: p(next = j | now = i). Row (2, 0, 1): log p = (0, log p(0|2), log p(1|0)); the last logits are not read.
    table = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4], [0.5, 0.25, 0.25]])
    ids = torch.tensor([[2, 0, 1]])
    got = logprobs.from_logits(table.log()[ids], ids)
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.5, 0.7]]).clamp(min=1e-9).log() * torch.tensor([[0.0, 1.0, 1.0]]))


def test_from_logits_sums_to_the_log_of_the_joint(double):
    # Summed over all 2^3 continuations of a fixed first token, p(y) is 1.
    g = torch.Generator().manual_seed(3)
    conditional = {}

    def logits_of(prefix):
        return conditional.setdefault(prefix, torch.randn(2, generator=g))

    total = torch.zeros(())
    for y in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
        ids = torch.tensor([[0, *y]])
        logits = torch.stack([logits_of(tuple(ids[0, : t + 1].tolist())) for t in range(4)])[None]
        total = total + logprobs.from_logits(logits, ids).sum().exp()
    torch.testing.assert_close(total, torch.ones(()), rtol=0, atol=1e-12)


def test_shift_moves_by_one_and_keeps_nothing_of_the_last():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert logprobs.shift_right(x).tolist() == [[0.0, 1.0, 2.0]]
    deep = torch.randn(2, 5, 4)
    assert all(torch.equal(logprobs.shift_right(deep)[:, t], deep[:, s]) for s, t in pairwise(range(5)))


def test_only_stops_nan_in_value_and_gradient():
    x = torch.tensor([[1.0, float("nan"), 2.0]], requires_grad=True)
    y = logprobs.zero_off_target(x, torch.tensor([[True, False, True]]))
    (y**2).sum().backward()
    assert y.tolist() == [[1.0, 0.0, 2.0]]
    assert x.grad.tolist() == [[2.0, 0.0, 4.0]]


@pytest.mark.parametrize("chunk", [2, 3, 50])
def test_excluded_entries_add_nothing_to_entropy_and_gradients(chunk):
    """Logits of -inf (a padded vocabulary), as torch.distributions has them; a whole chunk of them too."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in ((5, 4), (9, 4)))
    bias = torch.zeros(9, dtype=torch.float64)
    bias[[0, 1, 6, 8]] = -torch.inf
    ids = torch.tensor([2, 3, 4, 5, 7])
    right = torch.distributions.Categorical(logits=hidden @ weight.t() + bias)
    left = torch.distributions.Categorical(logits=hidden @ weight[[2, 3, 4, 5, 7]].t())  # the same without those entries
    wanted = torch.autograd.grad((left.log_prob(torch.arange(5)) + 2 * left.entropy()).sum(), (hidden, weight))
    ways = logprobs.linear(hidden, weight, bias, ids, chunk=chunk), logprobs.from_head(lambda h: h @ weight.t() + bias, hidden, ids)
    for logp, entropy in ways:
        torch.testing.assert_close(logp, right.log_prob(ids))
        torch.testing.assert_close(entropy, right.entropy())
        gradient = torch.autograd.grad((logp + 2 * entropy).sum(), (hidden, weight))
        torch.testing.assert_close(gradient, wanted)
