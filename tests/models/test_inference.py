"""Batched inference: how rows are split into batches changes nothing but rounding, and a network is left in the mode it was in."""

import pytest
import torch
from helpers.networks import network

from advalign.models.inference import batched_forward, batches_in_order, evaluation_mode, length_sorted_batches, map_batches, score_texts

ROWS = [("a b :", "d e", True), ("c :", "f g h i j k", False), ("d e :", "k", True), ("c :", "f g h i j k", False)]


def test_batches_are_sorted_by_length_stable_and_within_the_budget():
    # Longest first: 5, 5, 3, 2, 2. With a budget of 10: two rows of 5; three rows of at most 3.
    batches = length_sorted_batches(torch.tensor([2, 5, 3, 5, 2]), 10)
    assert [b.tolist() for b in batches] == [[1, 3], [2, 0, 4]]
    # A row longer than the budget runs alone.
    assert [b.tolist() for b in length_sorted_batches(torch.tensor([2, 5, 1]), 3)] == [[1], [0], [2]]


def test_batches_in_order():
    assert [b.tolist() for b in batches_in_order(5, 2)] == [[0, 1], [2, 3], [4]]
    assert batches_in_order(0, 2) == []


@pytest.mark.parametrize("budget", [1, 12, 1000])
def test_columns_equal_one_forward_whatever_the_batches(budget):
    net = network("policy")
    tokens = net.encoder.demos([p for p, _, _ in ROWS], [t for _, t, _ in ROWS])
    temperatures = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    batches = length_sorted_batches(tokens.lengths, budget)
    outputs = batched_forward(net, tokens, {"logprobs", "entropy"}, batches=batches, temperatures=temperatures)
    with torch.no_grad():
        expected = net.eval()(tokens, {"logprobs", "entropy"}, None, temperatures)
    for name, column in outputs.items():
        torch.testing.assert_close(column, getattr(expected, name), rtol=0, atol=1e-13)


def test_rows_in_no_batch_are_zero_and_idle_batches_run_but_are_dropped():
    net = network("policy")
    tokens = net.encoder.demos([p for p, _, _ in ROWS], [t for _, t, _ in ROWS])
    net.num_forwards = 0
    outputs = batched_forward(net, tokens, {"logprobs"}, batches=[torch.tensor([1])], idle=[torch.tensor([2]), torch.tensor([0])])
    assert net.num_forwards == 3
    assert outputs["logprobs"].shape == tokens.ids.shape
    assert outputs["logprobs"].abs().sum(1).gt(0).tolist() == [False, True, False, False]
    alone = batched_forward(net, tokens, {"logprobs"}, batches=[], idle=[torch.tensor([0])])["logprobs"]
    assert alone.shape == tokens.ids.shape
    assert not bool(alone.any())


def test_scores_are_in_order_and_equal_rows_are_scored_once():
    net = network("score")
    net.num_rows = 0
    scores = score_texts(net, ROWS, 1000)
    assert net.num_rows == 3
    assert scores[1] == scores[3]
    tokens = net.encoder.scored_pairs(*(list(column) for column in zip(*ROWS, strict=True)))
    assert scores == pytest.approx(net(tokens, {"scores"}).scores.tolist(), abs=1e-13)


def test_results_may_have_any_shape_per_row():
    net = network("policy")
    tokens = net.encoder.demos(["a b :", "c :"], ["d", "e f g"])
    results = map_batches(lambda part, rows: {"ids": part.ids[:, :2], "number": rows}, tokens, [torch.tensor([1]), torch.tensor([0])])
    assert torch.equal(results["ids"], tokens.ids[:, :2])
    assert results["number"].tolist() == [0, 1]


def test_every_module_is_left_in_the_mode_it_was_in():
    net = network("policy").train()
    fixed = net.model.get_input_embeddings().eval()

    def fail_inside():
        with evaluation_mode(net):
            assert not any(m.training for m in net.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert {m for m in net.modules() if not m.training} == {fixed}
