"""check_attack passes every built-in attack, and names the slip of each broken one."""

import importlib.util
import random
from dataclasses import dataclass, replace

import pytest
import torch

from advalign import attacks, plugins
from advalign.interfaces import Attack
from advalign.testing import _networks, check_attack
from advalign.types import AttackResult, Proposal


@dataclass(frozen=True, kw_only=True)
class Swap(Attack):
    """Two words change places, until the prediction does."""

    attempts: int = 5

    def propose(self, target, examples, budget, rng):
        return [self.one(target, example, self.limit(budget), rng) for example in examples]

    def limit(self, budget):
        return self.attempts if budget.queries is None else min(self.attempts, budget.queries)

    def one(self, target, example, limit, rng):
        for _ in range(limit):
            words = example.prompt.split()
            i, j = rng.sample(range(len(words)), 2)
            words[i], words[j] = words[j], words[i]
            text = " ".join(words)
            if int(target.predict([text]).argmax(1)) != example.label:
                return Proposal(text=text)
        return Proposal()


class SaysItWon(Swap):
    def propose(self, target, examples, budget, rng):
        return [(proposal, proposal.text is not None) for proposal in super().propose(target, examples, budget, rng)]


class JudgesItself(Swap):
    def propose(self, target, examples, budget, rng):
        return [AttackResult(example=e.id, attack="swap", status="succeeded") for e in examples]


class OnlyWhatBroke(Swap):
    def propose(self, target, examples, budget, rng):
        return [p for p in super().propose(target, examples, budget, rng) if p.text is not None]


class Overspends(Swap):
    def limit(self, budget):
        return 40


class TooManyAttempts(Swap):
    def propose(self, target, examples, budget, rng):
        return [Proposal(attempts=tuple(f"{e.prompt} {i}" for i in range(100))) for e in examples]


class GlobalRandom(Swap):
    def one(self, target, example, limit, rng):
        return Proposal(text=f"{example.prompt} {random.random()}")


class Trains(Swap):
    """Leaves gradients in the parameters of the victim."""

    def one(self, target, example, limit, rng):
        network = target.network
        network(network.encoder.classify([example.prompt]), {"class_logits"}).class_logits.sum().backward()
        return Proposal()


class Freezes(Swap):
    def one(self, target, example, limit, rng):
        target.network.eval()
        return Proposal()


class Damages(Swap):
    def one(self, target, example, limit, rng):
        with torch.no_grad():
            next(target.network.parameters()).add_(1.0)
        return Proposal()


class Raises(Swap):
    def one(self, target, example, limit, rng):
        raise ValueError("nothing found")


class HeadUndeclared(Swap):
    """Asks for written answers and does not say that it attacks policies."""

    def one(self, target, example, limit, rng):
        return Proposal(text=target.answer([example], 4)[0])


class NoText(Swap):
    def one(self, target, example, limit, rng):
        return Proposal(attempts=(example.prompt.split(),))


class Company(Swap):
    """One stream for all examples of a call."""

    examples_at_once = 8

    def one(self, target, example, limit, rng):
        return Proposal(text=f"{example.prompt} {rng.randrange(1000)}")


class FarEdits(attacks.Embedding):
    def propose(self, target, examples, budget, rng):
        return [replace(p, edits={site: 3 * x for site, x in p.edits.items()}) for p in super().propose(target, examples, budget, rng)]


class OtherAccess(attacks.Embedding):
    access = "text"


class NoRadius(attacks.Embedding):
    def at_radius(self, radius):
        return self


SLIPS = {
    SaysItWon: "returns a tuple where a Proposal belongs; an attack proposes, and the harness decides",
    JudgesItself: "returns a AttackResult where a Proposal belongs",
    OnlyWhatBroke: "returns 0 proposals for 1 examples",
    Overspends: "queries where the budget allows",
    TooManyAttempts: "100 attempts where the budget allows",
    GlobalRandom: "draw from the rng handed in",
    Trains: "parameters have gradients afterwards",
    Freezes: "in another mode afterwards",
    Damages: "weights of the model are others",
    Raises: "propose raised; .*ValueError: nothing found",
    HeadUndeclared: 'declare `head = "policy"`',
    NoText: "no text where a text belongs|TypeCheckError",
    Company: "depends on the order of the examples; key its streams by example.id",
    FarEdits: "its threat model allows",
    OtherAccess: "declare 'gradients'",
    NoRadius: r"at_radius\(0.5\) gives an attack whose threat model has another radius",
}


@pytest.fixture(scope="module")
def attacker(tmp_path_factory):
    """A small language model in a folder, which stands for a trained attacker."""
    folder = tmp_path_factory.mktemp("attacker")
    _networks.network("policy").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("cls", plugins.all("attacks"), ids=lambda cls: cls.__name__)
def test_every_built_in_attack_keeps_the_contract(cls, attacker):
    if plugins.kind_of(cls) == "textattack" and importlib.util.find_spec("textattack") is None:
        pytest.skip("the extra 'textattack' is not installed")
    given = {
        "beast": {"length": 4},
        "function": {"fn": lambda target, prompt, rng: (f"{prompt} {rng.random()}" for _ in range(3))},
        "learned": {"model": attacker},
        "population": {"size": 4, "generations": 2},
        "random_search": {"length": 4},
        "many_shot": {"shots": _networks.questions()},
        "universal_suffix": {"length": 4},
    }
    check_attack(cls(**given.get(plugins.kind_of(cls), {})), jointly=cls is attacks.UniversalSuffix)


def test_an_attack_of_ones_own_keeps_it():
    check_attack(Swap())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"(?s){cls.__name__}: .*({says})"):
        check_attack(cls())
