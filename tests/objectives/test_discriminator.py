"""A discriminator as a learner: levels and offsets of its loss, gradient penalties against closed forms and finite differences, rows
between two others, and that it and the policy whose base it shares leave each other alone."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import TEXTS, learner, network, update
from torch import nn

from advalign.adversaries.interpolate import Interpolate
from advalign.adversaries.pgd import PGD
from advalign.engine import ascent
from advalign.errors import ConfigError
from advalign.models import ModelSpec, Network, adapters, load
from advalign.models.padding import pad
from advalign.models.sharing import share_base
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.gradient_penalty import GradientPenalty
from advalign.objectives.sft import SFT
from advalign.types import DemoRows, LabelRows, Outputs

GPT2 = "scratch:tiny-gpt2?n_embd=32"
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}


def discriminator(model=GPT2, **options):
    return network("score", model=model, options=options)


def contrast_rows(net):
    """Two prompts: one real and two others, one real and one other; lengths differ."""
    prompts, texts = ["a b :", "a b :", "a b :", "c :", "c :"], ["d e", "f g h i", "k", "a", "b c d e"]
    tokens = net.encoder.scored_pairs(prompts, texts, [True, True, False, True, True], [0, 0, 0, 1, 1])
    return LabelRows(tokens=tokens, labels=torch.tensor([1, 0, 0, 1, 0]), kind=torch.tensor([0, 1, 2, 0, 2]))


def total(term, rows, outputs):
    w = term.weights(rows)
    return (w.values / w.count * term.losses(rows, {term.view: outputs}).values).sum()


# ------------------------------------------------------------------------------------------------ levels and offsets


def bare(lengths, labels, prompt=2):
    """Rows of so many target tokens behind a prompt."""
    tokens = pad([[1] * (prompt + n) for n in lengths], [prompt] * len(lengths), 0, [0] * len(lengths))
    return LabelRows(tokens=tokens, labels=torch.tensor(labels), kind=torch.tensor(labels).logical_not().long())


def test_by_token_a_row_counts_once_however_long_it_is():
    rows, generator = bare([1, 4, 2], [1, 0, 1]), torch.Generator().manual_seed(0)
    scores = torch.randn(rows.tokens.ids.shape, generator=generator, dtype=torch.float64)
    term = Discriminate(source="s", level="token", label_smoothing=0.0)
    loop = 0.0
    for row, (n, label) in enumerate([(1, 1), (4, 0), (2, 1)]):
        losses = [math.log1p(math.exp(-s if label else s)) for s in scores[row, 2 : 2 + n].tolist()]
        loop += sum(losses) / n / 3
    assert float(total(term, rows, Outputs(token_scores=scores))) == pytest.approx(loop, abs=1e-14)
    metrics = term.losses(rows, {"clean": Outputs(token_scores=scores)}).metrics
    right = [((scores[row, 2 : 2 + n] > 0) == bool(label)).double().mean() for row, (n, label) in enumerate([(1, 1), (4, 0), (2, 1)])]
    values, losses = metrics["accuracy"]
    assert float((values * losses).sum() / losses.sum()) == pytest.approx(float(sum(right)) / 3, abs=1e-14)


@pytest.mark.parametrize("loss", ["bce", "hinge", "least_squares", "wasserstein"])
def test_where_every_token_has_the_row_s_score_both_levels_agree(loss):
    rows = bare([1, 4, 2], [1, 0, 1])
    scores = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64)
    row_memory = total(Discriminate(source="s", loss=loss, score_l2=0.1), rows, Outputs(scores=scores))
    by_token = total(
        Discriminate(source="s", loss=loss, score_l2=0.1, level="token"),
        rows,
        Outputs(token_scores=scores[:, None].expand(rows.tokens.ids.shape)),
    )
    assert float(row_memory) == pytest.approx(float(by_token), abs=1e-14)


def test_with_the_policy_s_logprobs_as_offset_the_best_score_is_the_log_probability_of_real_text():
    # AIRL: the logit is f - log q. At f = log p it is log p/q, the optimum of bce; ten rows a side stand for p and q.
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    outcome = torch.cat([torch.arange(3).repeat_interleave((10 * d).round().long()) for d in (p, q)])
    rows = bare([1] * 20, [1] * 10 + [0] * 10)
    with_offset = LabelRows(tokens=rows.tokens, labels=rows.labels, offset=q.log()[outcome])
    term = Discriminate(source="s", label_smoothing=0.0)

    def gradient(rows, at):
        f = at.clone().requires_grad_()
        return torch.autograd.grad(total(term, rows, Outputs(scores=f[outcome])), f)[0]

    assert float(gradient(with_offset, p.log()).abs().max()) < 1e-16
    assert float(gradient(rows, p.log()).abs().max()) > 0.05
    assert float(gradient(rows, (p / q).log()).abs().max()) < 1e-16
    with pytest.raises(ConfigError, match=r"objectives\.discriminate\.level: rows with an offset"):
        Discriminate(source="s", level="token").losses(with_offset, {"clean": Outputs(token_scores=torch.zeros(20, 3).double())})


def test_score_l2_adds_the_mean_square_of_the_scores():
    rows, scores = bare([1, 4, 2], [1, 0, 1]), torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    apart = [float(total(Discriminate(source="s", score_l2=l2), rows, Outputs(scores=scores))) for l2 in (0.0, 0.5)]
    assert apart[1] - apart[0] == pytest.approx(0.5 * (9 + 1 + 4) / 3, abs=1e-14)


def test_pairs_are_not_compared_token_by_token():
    for loss in ("bradley_terry", "relativistic"):
        with pytest.raises(ConfigError, match=rf"level: '{loss}' compares whole rows.*use bce, hinge, least_squares, wasserstein"):
            Discriminate(source="s", loss=loss, level="token")


# ------------------------------------------------------------------------------------------------- weights of kinds


def of_kinds(*kinds):
    """Rows of one target token: real, perturbed, generated, ..."""
    return replace(bare([1] * len(kinds), [int(k == 0) for k in kinds]), kind=torch.tensor(kinds))


@pytest.mark.parametrize("level", ["sequence", "token"])
@pytest.mark.parametrize("loss", ["bce", "hinge", "least_squares"])
def test_a_kind_weighs_what_it_is_given(loss, level):
    def at(kinds, scores, **weights):
        by_token = torch.cat([torch.zeros(len(kinds), 2, dtype=torch.float64), scores[:, None]], 1)
        return total(
            Discriminate(source="s", loss=loss, level=level, kind_weights=weights),
            of_kinds(*kinds),
            Outputs(scores=scores, token_scores=by_token),
        )

    scores = torch.tensor([0.3, -0.8, 1.2, 0.1, 2.0], dtype=torch.float64)
    losses = [float(at([k], s[None])) for k, s in zip([0, 1, 2, 2, 3], scores, strict=True)]
    loop = sum(w * x for w, x in zip([1, 3, 0.5, 0.5, 1], losses, strict=True)) / 6
    assert float(at([0, 1, 2, 2, 3], scores, perturbed=3, generated=0.5)) == pytest.approx(loop, abs=1e-14)
    # A weight of two is a row that stands there twice, a weight of zero one that does not.
    twice = at([0, 1, 2, 2, 3, 3], scores[[0, 1, 2, 3, 4, 4]])
    assert float(at([0, 1, 2, 2, 3], scores, corrupted=2)) == pytest.approx(float(twice), abs=1e-14)
    assert float(at([0, 1, 2, 2, 3], scores, generated=0)) == pytest.approx(float(at([0, 1, 3], scores[[0, 1, 4]])), abs=1e-14)


def test_the_best_score_is_the_log_ratio_of_real_to_the_weighted_negatives():
    # Three texts, real 3 2 1 times, perturbed 1 2 3 times, generated 2 2 2 times: s = log p / (w_p k + w_g q).
    real, perturbed, generated = torch.tensor([3.0, 2, 1]), torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 2, 2])
    counts = torch.cat([real, perturbed, generated]).int()
    kinds, which = torch.arange(3).repeat_interleave(3).repeat_interleave(counts), torch.arange(3).repeat(3).repeat_interleave(counts)
    best = (real / (0.7 * perturbed + 0.2 * generated)).log().double().requires_grad_()
    term = Discriminate(source="s", label_smoothing=0.0, kind_weights={"perturbed": 0.7, "generated": 0.2})
    (slope,) = torch.autograd.grad(total(term, of_kinds(*kinds.tolist()), Outputs(scores=best[which])), best)
    assert float(slope.abs().max()) < 1e-7  # of a float32 ratio
    (other,) = torch.autograd.grad(total(replace(term, kind_weights={}), of_kinds(*kinds.tolist()), Outputs(scores=best[which])), best)
    assert float(other.abs().max()) > 0.01


def test_kinds_that_there_are_not_and_losses_that_compare_are_refused():
    with pytest.raises(ConfigError, match=r"discriminate\.kind_weights: .*generaed.*generated"):
        Discriminate(source="s", kind_weights={"generaed": 0.5})
    with pytest.raises(ConfigError, match=r"kind_weights\.real: -1 given"):
        Discriminate(source="s", kind_weights={"real": -1})
    for loss in ("bradley_terry", "relativistic", "wasserstein"):
        with pytest.raises(ConfigError, match=f"kind_weights: '{loss}' weighs sides or pairs.*use bce, hinge, least_squares"):
            Discriminate(source="s", loss=loss, kind_weights={"generated": 0.5})
    with pytest.raises(ConfigError, match="these rows have no kinds"):
        Discriminate(source="s", kind_weights={"generated": 0.5}).weights(replace(of_kinds(0, 2), kind=None))


# ------------------------------------------------------------------------------------------------ gradient penalties


class Copying(nn.Module):
    """A backbone that gives back its inputs, so that a score pooled by the mean is linear in the embeddings."""

    base_model_prefix = "model"

    def __init__(self, words, dim):
        super().__init__()
        self.embeddings = nn.Embedding(words, dim)
        self.config = SimpleNamespace(hidden_size=dim)

    @property
    def base_model(self):
        return self

    def get_output_embeddings(self):
        return None

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, inputs_embeds, **_):
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def linear():
    encoder = load(GPT2, tokenizer={"kind": "words"}, texts=TEXTS, max_length=32, dtype="float64").encoder
    net = Network(Copying(len(encoder.tokenizer), 5).double(), encoder, "score", pooling="mean")
    net.scalar.weight.data.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0, -1.0]]))
    return net


@pytest.mark.parametrize("view", ["clean", "mid"])
def test_the_input_gradient_of_a_linear_score_is_its_weight_over_the_root_of_the_length(view):
    # s = w . mean_t e_t: ds/de_t = w / n at each of n tokens, so |g|^2 = |w|^2 / n, at every point; |w|^2 = 1 + 4 + 1/4 + 9 + 1 = 15.25.
    net = linear()
    rows = contrast_rows(net)
    n, square = rows.tokens.lengths.double(), 15.25
    for term, want, by_w in [
        # R1 on the two real rows, and its gradient with respect to w: every / n w, averaged
        (GradientPenalty(source="v", view=view, learner="policy"), 16 * (square / n[[0, 3]] / 2).mean(), 16 * (1 / n[[0, 3]]).mean()),
        # (|g| - 1)^2 on all rows; d/dw = 2 (|g| - 1) / (|g| n) w
        (
            GradientPenalty(source="v", view=view, learner="policy", rows="all", target=1.0, every=1),
            (((square / n).sqrt() - 1) ** 2).mean(),
            (2 * (1 - (n / square).sqrt()) / n).mean(),
        ),
    ]:
        gradient, logs = update(learner(net), {"gp": term}, {"v": rows}, {"mid": Interpolate()}, budget=1000)
        assert logs["gp/loss"] == pytest.approx(float(want), rel=1e-13)
        torch.testing.assert_close(net.scalar.weight.grad, by_w * net.scalar.weight.detach(), rtol=1e-13, atol=0)
        others = gradient.norm().square() - net.scalar.weight.grad.norm().square()
        assert abs(float(others)) < 1e-20  # neither the bias nor the embeddings change an input gradient here
    assert logs["gp/input_gradient_norm"] == pytest.approx(float((square / n).sqrt().mean()), rel=1e-13)


@pytest.mark.parametrize("model", [GPT2, "scratch:encoder-tiny?hidden_size=32"])
def test_the_gradient_of_a_penalty_is_the_measured_one(model):
    net = discriminator(model)
    for p in net.parameters():
        p.data.mul_(3)  # far from linear
    rows = contrast_rows(net)
    terms = {
        "discriminator": Discriminate(source="v", learner="policy", loss="relativistic"),
        "gp": GradientPenalty(source="v", learner="policy", rows="all", target=0.5, every=1, coef=2.0),
    }
    gradient, logs = update(learner(net), terms, {"v": rows})
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in net.parameters()]

    def loss(step):
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.add_(step * d)
        values = update(learner(net), terms, {"v": rows})[1]
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction, strict=True):
                p.sub_(step * d)
        return values["discriminator/loss"] + 2 * values["gp/loss"]

    measured = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert measured == pytest.approx(float(gradient @ torch.cat([d.flatten() for d in direction])), rel=1e-5)
    assert logs["gp/input_gradient_norm"] > 0.05


def test_penalty_and_loss_share_one_forward_and_no_split_changes_them():
    net = discriminator()
    rows = contrast_rows(net)
    terms = {
        "discriminator": Discriminate(source="v", learner="policy", loss="relativistic"),
        "gp": GradientPenalty(source="v", learner="policy"),
        "mid": GradientPenalty(source="v", learner="policy", view="mid", rows="all", target=1.0, every=1),
    }
    before = net.num_forwards
    whole, logs = update(learner(net), terms, {"v": rows}, {"mid": Interpolate()})
    assert net.num_forwards - before == 2  # the clean view and the one in between
    split, other = update(learner(net), terms, {"v": rows}, {"mid": Interpolate()}, budget=int(rows.tokens.lengths.max()) * 3)
    assert net.num_forwards - before == 2 + 2 * 2  # one per group
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)
    assert {k: v for k, v in other.items() if k != "policy/learning_rate"} == pytest.approx(
        {k: v for k, v in logs.items() if k != "policy/learning_rate"}, abs=1e-10
    )


def test_rows_of_another_source_beside_them_do_not_change_an_input_gradient():
    net = discriminator()
    rows = contrast_rows(net)
    alone, _ = update(learner(net), {"gp": GradientPenalty(source="v", learner="policy")}, {"v": rows})
    terms = {"gp": GradientPenalty(source="v", learner="policy"), "zero": Discriminate(source="w", learner="policy", coef=1e-30)}
    beside, _ = update(learner(net), terms, {"v": rows, "w": contrast_rows(net)})
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-12)


def test_an_adversary_can_climb_a_penalty():
    net = discriminator()
    for p in net.parameters():
        p.data.mul_(3)
    terms = {"gp": GradientPenalty(source="v", learner="policy", view="pgd", rows="all", every=1)}
    _, logs = update(learner(net), terms, {"v": contrast_rows(net)}, {"pgd": PGD(radius=0.5, steps=3)})
    assert logs["pgd/gain"] > 0.01 * logs["pgd/loss_start"] > 0


@pytest.mark.parametrize("wrong", [{"rows": "fake"}, {"target": -1.0}, {"one_sided": True}, {"every": 0}])
def test_a_penalty_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match=rf"objectives\.gradient_penalty\.{next(iter(wrong))}"):
        GradientPenalty(source="s", **wrong)


# ---------------------------------------------------------------------------------------------------- between two rows


def between(net, tokens, key=("k",)):
    """The edit of every row."""
    adversary = Interpolate()
    context = ascent.perturbation_context(net, adversary, "mid", tokens, [("v", tokens)], key)
    return adversary.ask(adversary.start(context))["embedding"].add


def test_a_row_moves_by_one_share_of_the_way_to_another_row_of_its_group():
    net = discriminator()
    rows = contrast_rows(net)
    tokens, delta = rows.tokens, between(net, rows.tokens)
    embedded = net.model.get_input_embeddings()(tokens.ids).detach()
    for row, others in [(0, (1, 2)), (1, (0, 2)), (2, (0, 1)), (3, (4,)), (4, (3,))]:
        fits = []
        for other in others:
            way = embedded[other] - embedded[row]
            common = (tokens.mask[row] & tokens.mask[other])[:, None].double()
            share = float((delta[row] * way).sum() / (common * way * way).sum())
            fits.append(0 < share < 1 and torch.allclose(delta[row], share * common * way, rtol=0, atol=1e-14))
        assert fits.count(True) == 1, row
    assert delta.abs().sum((1, 2)).min() > 0


def test_a_row_alone_stays_where_it_is_and_order_does_not_matter():
    net = discriminator()
    tokens = contrast_rows(net).tokens
    delta = between(net, tokens)
    for numbers in ([3, 4], [0, 1, 2]):
        part = tokens.index(torch.tensor(numbers)).fit(tokens.ids.shape[1])
        torch.testing.assert_close(between(net, part), delta[numbers], rtol=0, atol=0)
    alone = tokens.index(torch.tensor([0, 3]))
    assert float(between(net, alone).abs().max()) == 0.0
    assert not torch.equal(between(net, tokens, key=("other",)), delta)


def test_one_row_one_partner():
    with pytest.raises(ConfigError, match=r"interpolate\.share"):
        Interpolate(share="group", where="prompt")


# --------------------------------------------------------------------------------------------- one base, two sides


def pair():
    """A policy with an adapter, and a discriminator with adapter and head of its own on the same base; both away from zero."""
    policy = network("policy", options={"lora": LORA})
    discriminator = share_base(
        policy, ModelSpec(model="learner:policy", head="score", options={"lora": LORA}, dtype="float64"), "learners.discriminator"
    )
    for net in (policy, discriminator):
        for p in net.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype) * 0.1)
    return policy, discriminator


def test_neither_side_s_backward_reaches_the_other():
    policy, discriminator = pair()
    shared = {p.data_ptr() for n, p in policy.named_parameters() if not adapters.owns(policy, n)}
    assert shared == {p.data_ptr() for n, p in discriminator.named_parameters() if not adapters.owns(discriminator, n)}
    terms = {"discriminator": Discriminate(source="v", learner="policy"), "gp": GradientPenalty(source="v", learner="policy")}
    update(learner(discriminator), terms, {"v": contrast_rows(discriminator)})
    assert all(p.grad is None for p in policy.parameters())
    assert all(p.grad is not None for p in discriminator.parameters() if p.requires_grad)
    gradients_before = [p.grad.clone() for p in discriminator.parameters() if p.requires_grad]
    demos = DemoRows(tokens=policy.encoder.demos(["a b :", "c :"], ["d e", "f"]))
    update(learner(policy), {"sft": SFT(source="d")}, {"d": demos})
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    assert all(
        torch.equal(p.grad, g) for p, g in zip((p for p in discriminator.parameters() if p.requires_grad), gradients_before, strict=True)
    )


def test_the_same_text_called_real_and_generated_has_one_score():
    _, discriminator = pair()
    tokens = discriminator.encoder.scored_pairs(["a b :"] * 2 + ["c :"] * 2, ["d e", "d e", "f g h", "f g h"], [True] * 4, [0, 0, 1, 1])
    rows = LabelRows(tokens=tokens, labels=torch.tensor([1, 0, 1, 0]), kind=torch.tensor([0, 2, 0, 2]))
    scores = discriminator(rows.tokens, {"scores"}).scores.detach()
    assert torch.equal(scores[0::2], scores[1::2])
    assert scores[0] != scores[2]
    # So their comparison is a tie, and the margin nothing.
    logs = update(learner(discriminator), {"discriminator": Discriminate(source="v", learner="policy", loss="relativistic")}, {"v": rows})[
        1
    ]
    assert logs["discriminator/loss"] == pytest.approx(math.log(2), abs=1e-15)
    assert logs["discriminator/margin"] == 0.0
