"""check_adversary passes every built-in adversary, and names the slip of each broken one."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from advalign import adversaries, plugins
from advalign.functional import balls
from advalign.interfaces import Adversary
from advalign.testing import check_adversary
from advalign.types import Edit

VARIANTS = [
    adversaries.PGD(warm=True),
    adversaries.PGD(where="prompt", special=False),
    adversaries.PGD(sites=("embedding", "layer:1"), ball="Linf", scope="row"),
    adversaries.PGD(restarts=3, keep="best"),
    adversaries.PGD(random_start=False, ball="L1"),
    adversaries.Free(random_start=True),
    adversaries.FreeLB(radius=float("inf")),
]


@dataclass(frozen=True, kw_only=True)
class FGSM(Adversary):
    """delta = r * steepest(gradient): one step from a random start at half the radius."""

    radius: float = 0.1
    steps: int = 1

    def start(self, context):
        return context, self.first(context)

    def first(self, context):
        geometry = {"ball": self.ball, "scope": self.scope, "radius": context.radius / 2}
        options = {"generators": context.generators, "dtype": context.dtype}
        return {site: balls.sample(context.allowed, dim, **geometry, **options) for site, (_, dim) in context.shapes.items()}

    def ask(self, state):
        return {site: Edit(delta) for site, delta in state[1].items()}

    def tell(self, state, losses, gradients):
        context, deltas = state
        return context, {site: self.moved(context, deltas[site], g) for site, g in gradients.items()}

    def moved(self, context, delta, gradient):
        step = context.radius * balls.steepest(balls.masked(gradient, context.allowed), ball=self.ball, scope=self.scope)
        return balls.project(delta + step, ball=self.ball, scope=self.scope, radius=context.radius)


class LeavesTheBall(FGSM):
    def moved(self, context, delta, gradient):
        return delta + context.radius * balls.steepest(balls.masked(gradient, context.allowed), ball=self.ball, scope=self.scope)


class MovesPadding(FGSM):
    def first(self, context):
        return {site: x + 1e-3 * context.radius for site, x in super().first(context).items()}


class GlobalNoise(FGSM):
    def first(self, context):
        noise = {site: torch.randn(*context.allowed.shape, d, dtype=context.dtype) for site, (_, d) in context.shapes.items()}
        return {site: 1e-3 * balls.masked(x, context.allowed) for site, x in noise.items()}


class OneStream(FGSM):
    """All rows draw from the stream of the first: a row depends on its place in the batch."""

    def first(self, context):
        return super().first(replace(context, generators=[context.generators[0]] * len(context.generators)))


class Descends(FGSM):
    def moved(self, context, delta, gradient):
        return super().moved(context, delta, -gradient)


class RawGradient(FGSM):
    """A step of a hundred times the gradient: a step of nothing where the loss is a mean over many rows."""

    def moved(self, context, delta, gradient):
        step = balls.masked(gradient, context.allowed)
        return balls.project(delta + step, ball=self.ball, scope=self.scope, radius=context.radius)


class HalfPrecision(FGSM):
    def first(self, context):
        return {site: x.to(torch.bfloat16) for site, x in super().first(context).items()}


class StartsAtZero(FGSM):
    def first(self, context):
        return {site: torch.zeros(*context.allowed.shape, d, dtype=context.dtype) for site, (_, d) in context.shapes.items()}


class Remembers(FGSM):
    def tell(self, state, losses, gradients):
        state[0].memory["losses"] = losses
        return super().tell(state, losses, gradients)


class RemembersObjects(Remembers):
    memory_scope = "rows"

    def tell(self, state, losses, gradients):
        state[0].memory["context"] = state[0].generators
        return super().tell(state, losses, gradients)


class MemoryScope(FGSM):
    memory_scope = "row"


class NanSteps(FGSM):
    """g / ||g||: nan where the gradient is zero."""

    def moved(self, context, delta, gradient):
        g = balls.masked(gradient, context.allowed)
        return balls.project(
            delta + torch.where(context.allowed[..., None], context.radius * g / g.norm(dim=2, keepdim=True), 0.0),
            ball=self.ball,
            scope=self.scope,
            radius=context.radius,
        )


class OtherSite(FGSM):
    def ask(self, state):
        return {"layer:0": Edit(state[1]["embedding"])}


SLIPS = {
    LeavesTheBall: "norm .* and the radius is .*project",
    MovesPadding: "positions that are not allowed",
    GlobalNoise: "draw from context.generators",
    OneStream: "depends? on the (padding|other rows)",
    Descends: "does not raise the loss",
    RawGradient: "scale of the loss",
    HalfPrecision: "bfloat16",
    StartsAtZero: "starts_at_zero is False, and its first delta is zero",
    Remembers: "memory_scope is 'none'",
    RemembersObjects: "checkpoint cannot hold",
    MemoryScope: "memory_scope is 'row'",
    NanSteps: "not finite",
    OtherSite: "edits .'layer:0'., and its sites are .'embedding'.",
}


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """Every built-in adversary with what it cannot do without."""
    lexicon = tmp_path_factory.mktemp("lexicon") / "lexicon.json"
    lexicon.write_text(json.dumps({"one": ["two", "three"], "two": ["one"], "plus": ["zero"]}))
    synonyms = adversaries.Synonyms(lexicon=str(lexicon))
    given = {
        "synonyms": {"lexicon": str(lexicon)},
        "mixed": {"discrete": synonyms, "continuous": adversaries.PGD()},
        "mask": {"replace": "unknown"},  # the policy's tokenizer has no mask token
        "refusal": {"harmful": [{"prompt": "one plus two"}], "harmless": [{"prompt": "four plus four ="}], "probability": 1.0},
    }
    return lambda cls: cls(**given.get(plugins.kind_of(cls), {}))


@pytest.mark.parametrize("cls", plugins.all("adversaries"), ids=lambda cls: cls.__name__)
def test_every_built_in_adversary_keeps_the_contract(cls, built_in):
    check_adversary(built_in(cls))


@pytest.mark.parametrize("adversary", VARIANTS, ids=str)
def test_variants_of_the_built_in_keep_it(adversary):
    check_adversary(adversary)


def test_an_adversary_of_ones_own_keeps_it():
    check_adversary(FGSM())
    check_adversary(FGSM(ball="Linf", scope="row", sites=("layer:0",)))


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"{cls.__name__}: .*({says})"):
        check_adversary(cls())


def test_a_discrete_adversary_may_not_touch_what_is_not_allowed():
    """`where: prompt`, and a target token is replaced."""

    class Overwrites(adversaries.Mask):
        def start(self, context):
            edit = super().start(context)
            ids = edit.tokens.ids.clone()
            ids[0, int(context.tokens.target[0].nonzero()[0])] = 3
            return replace(edit, tokens=replace(edit.tokens, ids=ids))

    check_adversary(adversaries.Mask(replace="unknown", where="prompt"))
    with pytest.raises(AssertionError, match="a token changed where its threat model"):
        check_adversary(Overwrites(replace="unknown", where="prompt"))
