"""What a plugin returns in a wrong shape is refused in one sentence where the engine reads it, and never broadcast."""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers.networks import demos, learner, network, rollouts, update

from advalign.adversaries.pgd import PGD
from advalign.engine.checks import check_advantages, check_losses
from advalign.errors import AdvalignError, ConfigError
from advalign.functional import advantages, weights
from advalign.interfaces import Advantage, Objective, Source
from advalign.objectives.sft import SFT
from advalign.training.annotate import Annotator, Draw
from advalign.types import Losses, RolloutRows


@dataclass(frozen=True, kw_only=True)
class Summed(Objective):
    """-log p, weighed by token and returned in another shape: per row, or per row with an axis that would broadcast."""

    keepdim: bool = False

    @property
    def reads(self):
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows):
        return weights.token(rows.tokens.target)

    def losses(self, rows, views):
        return Losses(-views[self.view].logprobs.sum(1, keepdim=self.keepdim))


@dataclass(frozen=True, kw_only=True)
class Returning(Advantage):
    """Gives back what it was made with."""

    estimate: object

    def __call__(self, rows, state, all_reduce):
        return self.estimate


class Draws(Source):
    """A source of rollouts that only says which advantage it has."""

    row_type = RolloutRows

    def __init__(self, advantage):
        self.advantage = advantage

    @property
    def advantage_estimator(self):
        return self.advantage

    def start(self, context, name):
        raise AssertionError("annotating rows starts no source")


@pytest.mark.parametrize(("keepdim", "shape"), [(False, r"\(5,\)"), (True, r"\(5, 1\)")])
def test_losses_of_another_shape_than_the_weights_name_their_objective(keepdim, shape):
    # "B 1" would broadcast against "B T" without a word, and count every row's sum T times.
    net = network()
    message = rf"^objectives\.mine: `losses` returned values of shape {shape}, and `weights` values of shape \(5, "
    with pytest.raises(ConfigError, match=message):
        update(learner(net), {"mine": Summed(source="chat", keepdim=keepdim)}, {"chat": demos(net)})


def test_the_objective_that_an_adversary_climbs_is_checked_too():
    net = network()
    adversaries = {"pgd": PGD(radius=0.3, steps=1, inner=Summed(source="chat", view="pgd", keepdim=True))}
    with pytest.raises(ConfigError, match=r"^adversaries\.pgd\.inner: `losses` returned"):
        update(learner(net), {"robust": SFT(source="chat", view="pgd")}, {"chat": demos(net)}, adversaries)


def test_losses_in_the_shape_of_their_weights_pass():
    for shape in ((3,), (3, 4), (3, 4, 2)):
        check_losses("mine", torch.zeros(shape), torch.ones(shape))


class Broken(Summed):
    """Reads an attribute that outputs do not have."""

    def losses(self, rows, views):
        return Losses(-views[self.view].logprob)


class Attached(Summed):
    """Returns the right losses and a metric that still has its graph."""

    def losses(self, rows, views):
        losses = -views[self.view].logprobs
        return Losses(losses, metrics={"nll": (losses, rows.tokens.target.to(losses.dtype))})


def test_what_an_objective_raises_names_it_and_keeps_the_cause():
    net = network()
    with pytest.raises(AdvalignError, match=r"^objectives\.mine: losses raised AttributeError: .*logprob") as raised:
        update(learner(net), {"mine": Broken(source="chat")}, {"chat": demos(net)})
    assert isinstance(raised.value.__cause__, AttributeError)
    adversaries = {"pgd": PGD(radius=0.3, steps=1, inner=Broken(source="chat", view="pgd"))}
    with pytest.raises(AdvalignError, match=r"^adversaries\.pgd\.inner: losses raised AttributeError"):
        update(learner(net), {"robust": SFT(source="chat", view="pgd")}, {"chat": demos(net)}, adversaries)


def test_a_metric_with_a_gradient_is_refused():
    net = network()
    with pytest.raises(ConfigError, match=r"^objectives\.mine: metric 'nll' of `losses` carries a gradient; detach it\.$"):
        update(learner(net), {"mine": Attached(source="chat")}, {"chat": demos(net)})


def annotated(estimate, rows):
    draw = Draw(name="math", source=Draws(Returning(estimate=estimate)), learner="policy", needed=frozenset())
    return Annotator({}, {}, budget=8192)(draw, rows)[0]


def test_advantages_that_are_not_one_number_per_token_name_their_source():
    rows = replace(rollouts(network()), old_logprobs=None)
    num_rows, width = rows.tokens.ids.shape
    per_row, per_token = torch.ones(num_rows), torch.ones(num_rows, width)
    assert torch.equal(annotated((per_token, None), rows).advantages, per_token)
    expanded = advantages.expand(per_row, rows.tokens.target)  # what the message advises
    assert torch.equal(annotated((expanded, per_token), rows).advantages, expanded)
    must = rf"must be \({num_rows}, {width}\) \(rows, tokens\)"
    for wrong, returned in [
        ((per_row, None), rf"advantages of shape \({num_rows},\)"),
        ((per_row[:, None], None), rf"advantages of shape \({num_rows}, 1\)"),
        ((per_token[:, :-1], None), rf"advantages of shape \({num_rows}, {width - 1}\)"),
        ((None, None), "advantages of shape NoneType"),
        ((per_token, per_row), rf"returns of shape \({num_rows},\)"),
    ]:
        with pytest.raises(ConfigError, match=rf"^sources\.math\.advantage: returned {returned}, {must}"):
            annotated(wrong, rows)


def test_a_tensor_alone_is_not_taken_apart():
    # Two rows "2 T" would unpack into advantages and returns.
    tokens = demos(network()).tokens.index(torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match=r"sources\.math\.advantage: returned Tensor, must be \(advantages, returns or None\)"):
        check_advantages("sources.math.advantage", torch.ones(tokens.ids.shape), tokens)
