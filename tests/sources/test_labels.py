"""Labelled texts: rows with and without a second sentence in one batch are what each is alone."""

import torch
from helpers import networks

from advalign.objectives import Classify
from advalign.sources import Labels
from advalign.types import Example

ROWS = [("a b c", "d e f", 0), ("a b c", None, 1), ("g h", "", 1), ("i", None, 0), ("j k", "a", 1)]


def build(net, rows):
    return Labels(data="unused").build([Example(prompt=a, pair=b, label=y, id=str(i)) for i, (a, b, y) in enumerate(rows)], net.encoder)


def test_a_batch_with_some_second_sentences_trains_on_every_row_as_alone():
    """The gradient of a mean over five rows is the mean of their own gradients, in both orders."""
    net = networks.network("classifier")
    objectives = {"x": Classify(source="s")}
    alone = [networks.update(networks.learner(net), objectives, {"s": build(net, [row])})[0].clone() for row in ROWS]
    for rows in (ROWS, ROWS[::-1]):
        together, logs = networks.update(networks.learner(net), objectives, {"s": build(net, rows)})
        torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=0, atol=1e-12)
