"""Losses of preferences and of imitation: numbers worked by hand, the public ones, minima, and what each loss must not see."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from advalign.errors import ConfigError
from advalign.functional import preference
from advalign.objectives.dft import DFT
from advalign.objectives.dpo import DPO
from advalign.objectives.hinge import Hinge
from advalign.objectives.ipo import IPO
from advalign.objectives.kto import KTO
from advalign.objectives.orpo import ORPO
from advalign.objectives.reward_model import RewardModel
from advalign.objectives.sft import SFT
from advalign.objectives.simpo import SimPO
from advalign.types import DemoRows, FeedbackRows, Outputs, PairRows, RolloutRows, Tokens


def t(*x, grad=False):
    return torch.tensor(x, dtype=torch.float64, requires_grad=grad)


def tokens(target) -> Tokens:
    target = torch.tensor(target).bool()
    number = torch.arange(len(target))
    mask = target | (torch.arange(target.shape[1]) == 0)
    return Tokens(ids=torch.zeros(target.shape, dtype=torch.long), mask=mask, target=target, group=number // 2, key=number)


def total(term, rows, **fields):
    """The loss as the engine sums it: weights over count, times losses."""
    weights, losses = term.weights(rows), term.losses(rows, {"clean": Outputs(**fields)})
    return (weights.values / weights.count * losses.values).sum(), {k: mean(v, w) for k, (v, w) in losses.metrics.items()}


def mean(values, weights):
    values, weights = values.detach(), weights.detach()
    return float((values * weights).sum() / weights.sum()) if float(weights.sum()) else math.nan


# ------------------------------------------------------------------------------------------------- pairs: formulas

# Toy pairs: sums of log-probabilities (chosen, rejected) of policy and reference; d = (2, -2.5, 2).
CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED = t(-10, -20, -5), t(-12, -18, -9), t(-11, -19, -6), t(-11, -19.5, -8)
TOY = (CHOSEN - REF_CHOSEN) - (REJECTED - REF_REJECTED)
PUBLIC = {
    "sigmoid_b0_1": (0.674072386214009, lambda d: preference.dpo(d, beta=0.1)),
    "cdpo_b0_1_e0_1": (0.679072386214009, lambda d: preference.dpo(d, beta=0.1, label_smoothing=0.1)),
    # ((2 - 5)^2 + (-2.5 - 5)^2 + (2 - 5)^2) / 3 = (9 + 56.25 + 9) / 3
    "ipo_b0_1_summed": (24.75, lambda d: preference.ipo(d, beta=0.1)),
    # (0.8 + 1.25 + 0.8) / 3
    "hinge_b0_1": (0.95, lambda d: preference.hinge(d, beta=0.1)),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_toy_against_public_numbers(name):
    value, loss = PUBLIC[name]
    assert TOY.tolist() == [2.0, -2.5, 2.0]
    assert float(loss(TOY).mean()) == pytest.approx(value, abs=1e-14)


def test_the_public_numbers_are_those_of_the_reference_file():
    folder = os.environ.get("ADVALIGN_REFERENCE")
    if not folder:
        pytest.skip("ADVALIGN_REFERENCE is not set: no reference numbers")
    golden = json.loads((Path(folder) / "golden_rl.json").read_text())["dpo"]
    assert [golden[side] for side in ("pc", "pr", "rc", "rr")] == [x.tolist() for x in (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)]
    assert {name: golden[name] for name in PUBLIC} == pytest.approx({name: value for name, (value, _) in PUBLIC.items()}, abs=1e-14)


def slope(loss, at):
    d = t(at, grad=True)
    return float(torch.autograd.grad(loss(d).sum(), d)[0])


def test_where_each_loss_comes_to_rest():
    # cDPO: (1 - e) l(d) + e l(-d) has derivative zero where sigmoid(beta d) = 1 - e: beta d = log 9 for e = 0.1
    assert abs(slope(lambda d: preference.dpo(d, beta=0.5, label_smoothing=0.1), math.log(9) / 0.5)) < 1e-15
    # IPO: d = 1 / (2 beta). Hinge: beta d = 1, and before it the slope is -beta.
    assert slope(lambda d: preference.ipo(d, beta=0.5), 1.0) == 0.0
    assert slope(lambda d: preference.ipo(d, beta=0.5), 1.5) == 1.0
    assert [slope(lambda d: preference.hinge(d, beta=0.5), at) for at in (1.9, 2.1)] == [-0.5, 0.0]
    # DPO and robust DPO never: at d = 0 both have slope -beta / 2, since ((1 - e) + e) / (1 - 2 e) would be wrong by that factor:
    # ((1 - e)(-beta / 2) - e (beta / 2)) / (1 - 2 e) = -beta / 2 / (1 - 2 e).
    assert slope(lambda d: preference.dpo(d, beta=0.5), 0.0) == -0.25
    assert slope(lambda d: preference.robust_dpo(d, beta=0.5, flip_rate=0.2), 0.0) == pytest.approx(-0.25 / 0.6, abs=1e-15)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4])
def test_robust_dpo_is_unbiased_under_flipped_labels(rate):
    # E over flips of l_e(+-d) = l(d), the loss of the labels before they were flipped; cDPO's expectation is another one.
    d = torch.linspace(-30, 30, 61, dtype=torch.float64)
    expected = (1 - rate) * preference.robust_dpo(d, beta=0.3, flip_rate=rate) + rate * preference.robust_dpo(-d, beta=0.3, flip_rate=rate)
    torch.testing.assert_close(expected, preference.dpo(d, beta=0.3), rtol=1e-12, atol=1e-12)
    if rate:
        smoothed = [preference.dpo(s * d, beta=0.3, label_smoothing=rate) for s in (1, -1)]
        assert float(((1 - rate) * smoothed[0] + rate * smoothed[1] - preference.dpo(d, beta=0.3)).abs().max()) > 0.05


def test_log_odds_against_the_definition_and_at_certainty():
    p = t(0.5, 0.25, 0.999, 1e-9)
    torch.testing.assert_close(preference.log_odds(p.log()), (p / (1 - p)).log(), rtol=1e-12, atol=1e-12)
    certain = t(0.0, -1e-12, grad=True)
    odds = preference.log_odds(certain)
    assert odds.tolist() == pytest.approx([math.log(1e7)] * 2, abs=1e-6)  # held at p = 1 - 1e-7
    odds.sum().backward()
    assert certain.grad.tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------------------- pairs: objectives by hand


def test_rows_are_paired_by_position_and_nothing_off_target_is_read():
    target = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1]]).bool()
    x = torch.where(target, t([9, 1, 2], [9, 3, 9], [9, 4, 5], [9, 9, 7]), torch.nan)
    assert preference.total(x, target).tolist() == [3.0, 3.0, 9.0, 7.0]
    assert preference.mean(x, target).tolist() == [1.5, 3.0, 4.5, 7.0]
    assert preference.difference(t(1, 2, 30, 40)).tolist() == [-1.0, -10.0]


# log-ratios per row: pair 0 (1 + 1, 0), pair 1 (0, 1 + 2); log p sums (-2, -4), (-4, -1)
PAIRS = PairRows(tokens=tokens([[0, 1, 1]] * 4), ref_logprobs=t(*[[0.0, -2, -2]] * 4))
PAIRS_SEEN = t([0.0, -1, -1], [0, -2, -2], [0, -2, -2], [0, -1, 0])


@pytest.mark.parametrize("term", [DPO(source="s", beta=0.5), IPO(source="s", beta=0.5), Hinge(source="s", beta=0.5)], ids=str)
def test_metrics_of_losses_with_a_reference(term):
    # beta d = 0.5 (2, 0, 0, 3): margins 1 and -1.5
    _, metrics = total(term, PAIRS, logprobs=PAIRS_SEEN)
    assert metrics == {
        "rewards/chosen": 0.5,
        "rewards/rejected": 0.75,
        "rewards/accuracies": 0.5,
        "rewards/margins": -0.25,
        "logps/chosen": -3.0,
        "logps/rejected": -2.5,
    }


def test_dpo_with_either_answer_to_noise():
    # d = (2, -3), beta 0.5: l = softplus(-1), softplus(1.5); l(-d) = softplus(1), softplus(-1.5)
    def softplus(x):
        return math.log1p(math.exp(x))

    right, flipped = (softplus(-1) + softplus(1.5)) / 2, (softplus(1) + softplus(-1.5)) / 2
    want = {
        DPO(source="s", beta=0.5): right,
        DPO(source="s", beta=0.5, label_smoothing=0.2): 0.8 * right + 0.2 * flipped,
        DPO(source="s", beta=0.5, flip_rate=0.2): (0.8 * right - 0.2 * flipped) / 0.6,
    }
    for term, value in want.items():
        assert float(total(term, PAIRS, logprobs=PAIRS_SEEN)[0]) == pytest.approx(value, abs=1e-14), term


def test_ipo_summed_and_per_token():
    # chosen: log-ratios (1, 1), rejected: (0): d = 2 summed, 1 per token; the target 1 / (2 beta) is 1
    rows = PairRows(tokens=tokens([[0, 1, 1], [0, 1, 0]]), ref_logprobs=t([0.0, -2, -2], [0, -2, 0]))
    logprobs = t([0.0, -1, -1], [0, -2, 0])
    assert float(total(IPO(source="s", beta=0.5), rows, logprobs=logprobs)[0]) == 1.0
    assert float(total(IPO(source="s", beta=0.5, normalize=True), rows, logprobs=logprobs)[0]) == 0.0


def test_simpo_by_hand_and_blind_to_length():
    # means -1 and -2: -log sigmoid(2 (1) - 1) = log(1 + 1/e), whatever the number of tokens
    for width in (1, 3):
        target = [[0] + [1] * width] * 2
        logprobs = t([0.0] + [-1.0] * width, [0.0] + [-2.0] * width, grad=True)
        loss, metrics = total(SimPO(source="s", beta=2.0, gamma=1.0), PairRows(tokens=tokens(target)), logprobs=logprobs)
        assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-15)
        assert (metrics["rewards/margins"], metrics["logps/chosen"], metrics["logps/rejected"]) == (2.0, -1.0, -2.0)
        loss.backward()
        # d loss / d m = -beta sigmoid(-1), shared by the tokens
        assert logprobs.grad[0, 1:].tolist() == pytest.approx([-2 / (1 + math.e) / width] * width, abs=1e-15)


def test_orpo_by_hand():
    # p = 1/2 (odds 1) against 1/4 (odds 1/3): log odds ratio log 3, sigmoid 3/4. Loss log 2 + 0.1 log(4/3).
    logprobs = t([0.0, math.log(0.5)], [0.0, math.log(0.25)], grad=True)
    loss, metrics = total(ORPO(source="s"), PairRows(tokens=tokens([[0, 1]] * 2)), logprobs=logprobs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2) + 0.1 * math.log(4 / 3), abs=1e-15)
    # d log odds / d m = 1 / (1 - p), d(-log sigmoid(x)) / dx = -(1 - 3/4): -1 - 0.1 (1/4) 2 and 0.1 (1/4) (4/3)
    assert logprobs.grad[:, 1].tolist() == pytest.approx([-1.05, 0.1 / 3], abs=1e-15)
    assert metrics["nll"] == pytest.approx(math.log(2))
    assert metrics["log_odds_chosen"] == pytest.approx(math.log(3))


def test_reward_model_by_hand():
    # pair 0: scores 2, 1, margin 0.5 -> log(1 + e^-0.5) + 0.01 (3)^2; pair 1: 0, 0, margin 0 -> log 2
    rows = PairRows(tokens=tokens([[0, 1]] * 4), margin=t(0.5, 0.5, 0, 0))
    scores = t(2.0, 1.0, 0.0, 0.0)
    loss, metrics = total(RewardModel(source="s", centre=0.01), rows, scores=scores)
    assert float(loss) == pytest.approx((math.log1p(math.exp(-0.5)) + 0.09 + math.log(2)) / 2, abs=1e-15)
    assert metrics == {"rewards/chosen": 1.0, "rewards/rejected": 0.5, "rewards/accuracies": 0.5, "rewards/margins": 0.5}
    without = PairRows(tokens=rows.tokens)
    assert float(total(RewardModel(source="s", centre=0.0), without, scores=scores)[0]) == pytest.approx(
        (math.log1p(math.exp(-1)) + math.log(2)) / 2, abs=1e-15
    )


def test_only_centring_sees_the_level_of_scores():
    rows, scores = PairRows(tokens=tokens([[0, 1]] * 2)), t(1.0, -2.0)
    free = [float(total(RewardModel(source="s", centre=0.0), rows, scores=scores + level)[0]) for level in (0.0, 7.0)]
    assert free[0] == pytest.approx(free[1], abs=1e-14)
    # (s_c + s_r + 2 level)^2 is least where the two scores sum to zero: level 1/2
    losses = {level: float(total(RewardModel(source="s", centre=1.0), rows, scores=scores + level)[0]) for level in (0.4, 0.5, 0.6)}
    assert min(losses, key=losses.get) == 0.5
    with pytest.raises(ConfigError, match=r"objectives.reward_model: learner 'reward' gives no scores; give it head: score."):
        total(RewardModel(source="s"), rows, logprobs=torch.zeros(2, 2))


def test_a_pair_with_an_empty_side_does_not_count():
    rows = PairRows(tokens=tokens([[0, 1], [0, 1], [0, 1], [0, 0]]))
    weights = SimPO(source="s").weights(rows)
    assert weights.values.tolist() == [1.0, 0.0]
    assert float(weights.count) == 1.0


REFUSED = {
    "dpo.beta: 0 given; a finite number above 0 is expected": lambda: DPO(source="s", beta=0.0),
    "dpo.label_smoothing: 0.5 given; a number of at least 0 and below 0.5 is expected": lambda: DPO(source="s", label_smoothing=0.5),
    "dpo.flip_rate: -0.1 given; a number of at least 0 and below 0.5 is expected": lambda: DPO(source="s", flip_rate=-0.1),
    "dpo: label_smoothing 0.1 and flip_rate 0.2 answer the same question; set one": lambda: DPO(
        source="s", label_smoothing=0.1, flip_rate=0.2
    ),
    "ipo.beta: -1 given; a finite number above 0 is expected": lambda: IPO(source="s", beta=-1.0),
    "hinge.beta: 0 given; a finite number above 0 is expected": lambda: Hinge(source="s", beta=0.0),
    "simpo.gamma: -0.5 given; a finite number of at least 0 is expected": lambda: SimPO(source="s", gamma=-0.5),
    "orpo.odds_weight: 0 given; a finite number above 0 is expected": lambda: ORPO(source="s", odds_weight=0.0),
    "reward_model.centre: -1 given; a finite number of at least 0 is expected": lambda: RewardModel(source="s", centre=-1.0),
    "kto.undesirable_weight: 0 given; a finite number above 0 is expected": lambda: KTO(source="s", undesirable_weight=0.0),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence):
    with pytest.raises(ConfigError) as caught:
        REFUSED[sentence]()
    assert str(caught.value) == f"objectives.{sentence}."


# ----------------------------------------------------------------------------------------------- single responses


def feedback(anchor, desirable) -> FeedbackRows:
    number = len(desirable)
    return FeedbackRows(
        tokens=tokens([[0, 1]] * number),
        desirable=torch.tensor(desirable),
        ref_logprobs=torch.zeros(number, 2, dtype=torch.float64),
        anchor=t(*[anchor] * number).requires_grad_(),
    )


def test_kto_by_hand():
    # r - z0 = log 3 for both: 1 - sigmoid(log 3) = 1/4 if desirable, 1 - sigmoid(-log 3) = 3/4 if not; weights 4/3 and 2
    rows = feedback(0.5, [True, False])
    logprobs = t([0.0, 0.5 + math.log(3)], [0.0, 0.5 + math.log(3)], grad=True)
    term = KTO(source="s", beta=1.0, desirable_weight=4 / 3, undesirable_weight=2.0)
    loss, metrics = total(term, rows, logprobs=logprobs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((4 / 3 / 4 + 2 * 3 / 4) / 2, abs=1e-15)
    # sigmoid' = 3/16 on both sides: down with desirable, up with undesirable ones; z0 gets no gradient
    assert logprobs.grad[:, 1].tolist() == pytest.approx([-4 / 3 * 3 / 16 / 2, 2 * 3 / 16 / 2], abs=1e-15)
    assert rows.anchor.grad is None
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.5 + math.log(3),
            "rewards/rejected": 0.5 + math.log(3),
            "logps/chosen": 0.5 + math.log(3),
            "logps/rejected": 0.5 + math.log(3),
            "kl": 0.5,
        }
    )


def test_kto_saturates_where_dpo_would_go_on():
    # Far from z0 on either side neither kind has a gradient: the value function is a sigmoid of gains and losses.
    logprobs = t([0.0, 500.0], [0.0, -500.0], [0.0, 500.0], [0.0, -500.0], grad=True)
    loss, _ = total(KTO(source="s"), feedback(0.0, [True, True, False, False]), logprobs=logprobs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0 + 1 + 1 + 0) / 4, abs=1e-15)
    assert float(logprobs.grad.abs().max()) < 1e-20


# ------------------------------------------------------------------------------------------------------- imitation

TWO = [[0, 1, 1], [0, 1, 0]]


def test_dft_is_likelihood_instead_of_its_logarithm():
    # p = 1/2, 1/4 | 1/8: loss (log 2 / 2 + log 4 / 4 + log 8 / 8) / 3, gradient -p / 3, which is that of -sum p / 3
    p = t([1, 0.5, 0.25], [1, 0.125, 1])
    logprobs = p.log().requires_grad_()
    rows = DemoRows(tokens=tokens(TWO))
    loss, metrics = total(DFT(source="s"), rows, logprobs=logprobs)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((0.5 + 0.5 + 3 / 8) * math.log(2) / 3, abs=1e-15)
    torch.testing.assert_close(logprobs.grad, -p / 3 * rows.tokens.target, rtol=0, atol=1e-16)
    assert metrics == pytest.approx({"nll": 2 * math.log(2), "probability": 0.875 / 3})
    by_row = DFT(source="s", weighting="sequence")
    assert float(total(by_row, rows, logprobs=p.log())[0]) == pytest.approx((0.5 + 3 / 8) * math.log(2) / 2, abs=1e-15)


def rollouts(offpolicy) -> RolloutRows:
    return RolloutRows(
        tokens=tokens(TWO),
        rewards=torch.zeros(2, 1),
        advantages=torch.zeros(2, 3),
        sampler_logprobs=torch.zeros(2, 3),
        finished=torch.ones(2, dtype=torch.bool),
        offpolicy=None if offpolicy is None else torch.tensor(offpolicy),
    )


@pytest.mark.parametrize("cls", [SFT, DFT])
def test_of_rollouts_only_the_demonstrations_are_imitated(cls):
    logprobs = t([0.0, -1, -2], [0, -3, 0], grad=True)
    alone = DemoRows(tokens=tokens(TWO[:1]))
    for weighting in ("token", "sequence"):
        term = cls(source="s", weighting=weighting)
        loss, metrics = total(term, rollouts([True, False]), logprobs=logprobs)
        want, of_alone = total(term, alone, logprobs=logprobs[:1])
        assert float(loss.detach()) == pytest.approx(float(want.detach()), abs=1e-15)
        assert metrics == pytest.approx(of_alone)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert gradient[1].tolist() == [0.0, 0.0, 0.0]
    assert float(cls(source="s").weights(rollouts([False, False])).count) == 0.0
    with pytest.raises(ConfigError, match=rf"^objectives.{cls.__name__.lower()}: the groups of rollouts it reads hold no demonstrations; "):
        cls(source="s").weights(rollouts(None))
