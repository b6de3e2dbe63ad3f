"""Losses of a wanted response, by hand."""

import math

import pytest
import torch

from advalign.functional import targeted

# One candidate, two tokens, three words. The softmax of (0, log 2, log 5) is (1, 2, 5) / 8, that of (log 3, 0, 0) is (3, 1, 1) / 5.
LOGITS = torch.tensor([[[0.0, math.log(2), math.log(5)], [math.log(3), 0.0, 0.0]]], dtype=torch.float64)
IDS = torch.tensor([1, 0])


def test_token_nll_and_margin_by_hand():
    nll = targeted.token_nll(LOGITS, IDS)
    assert nll.tolist() == [[pytest.approx(math.log(4)), pytest.approx(math.log(5 / 3))]]
    # The rival of word 1 is word 2 (log 5), that of word 0 is a zero.
    margin = targeted.token_margin(LOGITS, IDS)
    assert margin.tolist() == [[pytest.approx(math.log(5 / 2)), pytest.approx(-math.log(3))]]
    assert targeted.hinge(margin).tolist() == [pytest.approx(math.log(5 / 2) / 2)]
    assert targeted.worst_margin(LOGITS, IDS).tolist() == [pytest.approx(math.log(5 / 2))]


def test_mellowmax_by_hand_and_between_the_mean_and_the_maximum():
    x = torch.tensor([[math.log(2), math.log(4)]], dtype=torch.float64)
    assert targeted.mellowmax(x, omega=1.0).tolist() == [pytest.approx(math.log(3))]  # log((2 + 4) / 2)
    assert targeted.mellowmax(x, omega=1e-6).tolist() == [pytest.approx(float(x.mean()), abs=1e-6)]
    assert targeted.mellowmax(x, omega=1e3).tolist() == [pytest.approx(math.log(4), abs=1e-3)]


def test_a_worst_margin_below_zero_is_greedy_decoding():
    logits = torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([2, 0, 3])
    said = torch.tensor([row.argmax(1).tolist() == ids.tolist() for row in logits])
    assert (targeted.worst_margin(logits, ids) < 0).tolist() == said.tolist()
    assert (targeted.hinge(targeted.token_margin(logits, ids)) == 0).tolist() == said.tolist()
    assert 0 < said.sum() < 200
