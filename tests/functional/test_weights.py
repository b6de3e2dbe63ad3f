"""Weights of an update, counted by hand and against a loop."""

import torch

from advalign.functional import weights

# lengths 3, 1 and 0: the empty row counts nowhere
TARGET = torch.tensor([[False, True, True, True], [False, True, False, False], [False, False, False, False]])
LOSSES = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 10.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)


def mean(w):
    return float((w.values / w.count * LOSSES).sum())


def test_token_mean():
    assert mean(weights.token(TARGET)) == (1 + 2 + 3 + 10) / 4


def test_sequence_mean_of_token_means():
    assert mean(weights.sequence(TARGET)) == ((1 + 2 + 3) / 3 + 10) / 2


def test_constant_length():
    # Dr. GRPO with L = 5: (6 / 5 + 10 / 5) / 2 rows
    assert abs(mean(weights.constant(TARGET, length=5)) - (6 / 5 + 10 / 5) / 2) < 1e-15


def test_rows_skip_what_does_not_count():
    w = weights.rows(torch.tensor([True, False, True]))
    assert w.values.tolist() == [1.0, 0.0, 1.0]
    assert float(w.count) == 2


def test_local_means_would_be_wrong():
    # Two micro-batches of 3 and 1 tokens: the mean of their means is (2 + 10) / 2 = 6, the mean over tokens 16 / 4 = 4.
    whole = weights.token(TARGET)
    parts = [float((whole.values[i : i + 1] / whole.count * LOSSES[i : i + 1]).sum()) for i in range(3)]
    assert sum(parts) == 4.0
    local = [weights.token(TARGET[i : i + 1]) for i in range(2)]
    assert sum(float((w.values / w.count * LOSSES[i : i + 1]).sum()) for i, w in enumerate(local)) / 2 == 6.0


def test_counts_are_exact_beyond_float32():
    # 2^24 + 1 is no float32 number
    w = weights.token(torch.ones(1, 2**24 + 1, dtype=torch.bool))
    assert float(w.count) == 2**24 + 1


def test_matched_weights_count_pairs():
    # group 0: one real, two others -> 2 pairs; group 1: real only -> 0; group 2: 1 x 1, its other row uncounted -> 0
    labels, group = torch.tensor([1, 0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 2, 2])
    counted = torch.tensor([True, True, True, True, True, False])
    w = weights.matched(labels, group, counted)
    assert w.values.tolist() == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    assert float(w.count) == 2
