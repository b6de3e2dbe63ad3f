"""Sources side by side in one forward: rows of different sources are never of one group."""

import torch
from helpers import networks

from advalign.adversaries import PGD
from advalign.engine.micro import join_tokens
from advalign.objectives import SFT
from advalign.types import DemoRows


def demos(net, groups, words):
    prompts = [f"{word} :" for word in words]
    return DemoRows(tokens=net.encoder.demos(prompts, ["d e"] * len(words), group=groups))


def test_groups_of_different_sources_never_share_a_number():
    net = networks.network()
    first, second = demos(net, [0, 0, 1], "aba").tokens, demos(net, [0, 1, 1, 2], "cadd").tokens
    for order in ((first, second), (second, first), (first, second, first)):
        joined = join_tokens(order).group.tolist()
        start, seen = 0, []
        for tokens in order:
            part = joined[start : start + len(tokens.group)]
            # Inside a source, rows share a group exactly where they did.
            same = [[a == b for b in part] for a in part]
            assert same == (tokens.group[:, None] == tokens.group[None]).tolist()
            seen.append(set(part))
            start += len(part)
        assert sum(map(len, seen)) == len(set.union(*seen))


def test_a_delta_per_group_is_not_shared_between_two_sources():
    """`share: group`, two sources on one view: the rows of both are moved as they are with the other source away."""
    alone = {}
    for names in (("one",), ("two",), ("one", "two")):
        net = networks.network()
        rows = {"one": demos(net, [0, 0], "aa"), "two": demos(net, [0, 0], "cc")}
        recorder = networks.Recorder(PGD(radius=0.1, steps=2, share="group", where="prompt", random_start=False))
        objectives = {name: SFT(source=name, view="pgd") for name in names}
        networks.update(networks.learner(net), objectives, {name: rows[name] for name in names}, {"pgd": recorder})
        alone[names] = recorder.deltas
    both = alone["one", "two"]
    assert len(both) == 2
    for names in (("one",), ("two",)):
        for key, delta in alone[names].items():
            torch.testing.assert_close(both[key], delta, rtol=0, atol=1e-12)
