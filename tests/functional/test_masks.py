"""Which tokens a policy sampled, and which were demonstrated to it."""

import torch

from advalign.functional import masks

TARGET = torch.tensor([[False, True, True], [False, False, True], [False, True, False]])


def test_demonstrations_inside_a_group_are_not_sampled():
    # Row 1 is a demonstration: its one target token moves from one mask to the other.
    offpolicy = torch.tensor([False, True, False])
    sampled, demonstrated = masks.sampled_tokens(TARGET, offpolicy), masks.demonstrated_tokens(TARGET, offpolicy)
    assert sampled.tolist() == [[False, True, True], [False, False, False], [False, True, False]]
    assert demonstrated.tolist() == [[False, False, False], [False, False, True], [False, False, False]]
    assert torch.equal(sampled | demonstrated, TARGET)
    assert not (sampled & demonstrated).any()


def test_without_a_column_every_target_token_is_sampled():
    assert torch.equal(masks.sampled_tokens(TARGET, None), TARGET)
