"""Sources side by side in one forward: rows of different sources are never of one group."""

import pytest
import torch
from helpers import networks

from advalign.adversaries import PGD
from advalign.engine import ascent
from advalign.engine.micro import join_tokens
from advalign.errors import ConfigError
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


def allowed_of(net, rows, **threat):
    adversary = PGD(radius=0.1, share="group", **threat)
    tokens = rows.tokens
    return ascent.perturbation_context(net, adversary, "pgd", tokens, [("s", tokens)], ("key",)).allowed


def test_a_delta_per_group_lies_on_what_the_rows_of_the_group_share():
    # Ids of the two rows: "a b c : d e" and "a b d g h : j"; they share the prefix "a b" alone, and no token of a response.
    net = networks.network()
    rows = DemoRows(tokens=net.encoder.demos(["a b c :", "a b d g h :"], ["d e", "j"], group=[0, 0]))
    same = (rows.tokens.ids[0] == rows.tokens.ids[1]).cumprod(0).bool()
    special = torch.isin(rows.tokens.ids[0], torch.tensor(sorted(net.encoder.special_ids)))
    for where in ("prompt", "all"):
        allowed = allowed_of(net, rows, where=where)
        assert allowed.tolist() == (same & ~special)[None].tolist()
        assert int(allowed.sum()) == 2
    alike = DemoRows(tokens=net.encoder.demos(["a b c :", "a b c :"], ["d e", "j"], group=[0, 0]))
    assert int(allowed_of(net, alike, where="prompt").sum()) == 4  # with one prompt: all of it


def test_a_group_that_shares_nothing_is_refused():
    net = networks.network()
    rows = DemoRows(tokens=net.encoder.demos(["a :", "b :"], ["d e", "j"], group=[0, 0]))
    with pytest.raises(ConfigError, match=r"adversaries.pgd.share: 'group' given, and the 2 rows of a group begin with no token in common"):
        allowed_of(net, rows, where="prompt")
