"""Contract of every attack, by its file; and of the embedding attack: exact on a linear model, never weaker than nothing."""

import importlib.util
import random

import pytest
import torch
from helpers import victims
from helpers.attacks import REQUIRED
from torch import nn

from advalign import adversaries, attacks, plugins
from advalign.errors import ConfigError
from advalign.evaluation.suites.budget import distance
from advalign.models import Network
from advalign.targets import ClassifierTarget, GeneratorTarget, target_of
from advalign.types import Budget, Edit, Example, Outputs

HAS_TEXTATTACK = importlib.util.find_spec("textattack") is not None
OPTIONAL = {"textattack": pytest.mark.skipif(not HAS_TEXTATTACK, reason="the extra 'textattack' is not installed")}


# These propose without a query.
REWRITERS = {"best_of_n", "function", "learned", "many_shot", "prefill", "template"}


def made(cls):
    return cls(**REQUIRED.get(plugins.kind_of(cls), dict)())


every_attack = pytest.mark.parametrize(
    "cls", [pytest.param(c, marks=OPTIONAL.get(plugins.kind_of(c), ()), id=c.__name__) for c in plugins.all("attacks")]
)


@every_attack
def test_an_attack_proposes_for_every_example_and_leaves_the_victim_alone(cls):
    writes = cls.head == "policy"
    network = victims.generator_model() if writes else victims.classifier()
    network.train()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    examples = victims.sums()[:3] if writes else victims.sentences(3)
    target = target_of(network)
    first = made(cls).propose(target, examples, Budget(queries=30), random.Random(0))
    again = made(cls).propose(target_of(network), examples, Budget(queries=30), random.Random(0))
    assert cls.access in ("text", "logprobs", "gradients")
    assert len(first) == 3
    assert (0 if plugins.kind_of(cls) in REWRITERS else 1) <= target.num_queries <= 3 * 30
    assert (target.num_gradients > 0) == (cls.access == "gradients")
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())
    for one, two in zip(first, again, strict=True):
        assert (one.text, one.note, one.attempts, one.forced) == (two.text, two.note, two.attempts, two.forced)
        assert (one.edits is None) == (two.edits is None)
        assert all(torch.equal(one.edits[site], two.edits[site]) for site in one.edits or {})
    network.eval()


class Linear(Network):
    """Logits (0, mean_t h_t . w): the margin of class 1 is linear in the hidden states."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.model, network.encoder, "classifier")
        self.w = nn.Parameter(torch.linspace(-1, 1, network.width("embedding")))

    def forward(self, tokens, needs, edits=None, temperature=None):
        hidden = self.model.get_input_embeddings()(tokens.ids) + (edits["embedding"].add if edits else 0)
        score = ((hidden @ self.w) * tokens.mask).sum(1) / tokens.mask.sum(1)
        return Outputs(class_logits=torch.stack([torch.zeros_like(score), score], 1))


@pytest.mark.parametrize("loss", ["margin", "cross_entropy", "targeted"])
@pytest.mark.parametrize(("ball", "dual"), [("L2", 2.0), ("Linf", 1.0)])
def test_embedding_attack_is_exact_on_a_linear_model(loss, ball, dual):
    """Label 1, one ball of radius r per token: the mean score falls by exactly r ||w||_q."""
    network = Linear(victims.classifier())
    target = ClassifierTarget(network)
    examples = [Example(prompt=e.prompt, label=1, id=e.id) for e in victims.sentences(5)]
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.1, ball=ball, steps=20, step_size=1.0), restarts=1, loss=loss)
    proposals = attack.propose(target, examples, Budget(), random.Random(0))
    radius = 0.1 * network.mean_embedding_norm()
    clean = target.predict([e.prompt for e in examples])[:, 1]
    after = target.predict_edited(examples, [p.edits for p in proposals])[:, 1]
    torch.testing.assert_close(after, clean - radius * network.w.detach().norm(p=dual), rtol=1e-4, atol=1e-5)
    for example, proposal in zip(examples, proposals, strict=True):
        assert distance(target, attack, example, proposal) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(("ball", "dual"), [("L2", 2.0), ("Linf", 1.0)])
def test_in_float64_the_maximum_of_a_linear_model_is_reached_to_one_in_a_million(ball, dual):
    network = Linear(victims.classifier(dtype="float64")).double()
    target, examples = ClassifierTarget(network), [Example(prompt=e.prompt, label=1, id=e.id) for e in victims.sentences(5)]
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.1, ball=ball, steps=20, step_size=1.0), restarts=1)
    edits = [p.edits for p in attack.propose(target, examples, Budget(), random.Random(0))]
    tokens = target.tokens(examples)
    wide = torch.stack([torch.nn.functional.pad(e["embedding"], (0, 0, 0, tokens.ids.shape[1] - len(e["embedding"]))) for e in edits])
    clean, after = (network(tokens, set(), e).class_logits[:, 1] for e in (None, {"embedding": Edit(wide)}))
    expected = clean - 0.1 * network.mean_embedding_norm() * network.w.norm(p=dual)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-6 * float(clean.detach().abs().max()))


def test_signed_steps_without_a_ball_go_as_far_as_they_are_many():
    """A ball far away: 7 steps of 0.01 along sign(-w) from zero, nothing projected. That is the unbounded attack on embeddings."""
    network = Linear(victims.classifier(dtype="float64")).double()
    far = {"radius": 1e4, "step_size": 1e-6, "relative_to": "absolute", "random_start": False}
    attack = attacks.Embedding(adversary=adversaries.PGD(ball="Linf", steps=7, **far), restarts=1)
    (proposal,) = attack.propose(ClassifierTarget(network), [Example(prompt="the movie", label=1, id="a")], Budget(), random.Random(0))
    torch.testing.assert_close(proposal.edits["embedding"], (-0.07 * network.w.sign()).expand_as(proposal.edits["embedding"]).detach())


def test_embedding_attack_beats_noise_which_beats_nothing():
    """The best iterate includes delta = 0, so no loss falls; and an attack that looks is stronger than one that does not."""
    network, examples = victims.classifier(), victims.sentences(40)
    margins = {}
    for name, adversary in {"noise": adversaries.Noise(radius=0.5), "pgd": adversaries.PGD(radius=0.5, steps=5)}.items():
        target = ClassifierTarget(network)
        proposals = attacks.Embedding(adversary=adversary, restarts=2).propose(target, examples, Budget(), random.Random(0))
        logits = target.predict_edited(examples, [p.edits for p in proposals])
        labels = torch.tensor([e.label for e in examples])
        margins[name] = logits.gather(1, 1 - labels[:, None]) - logits.gather(1, labels[:, None])
    clean = target.predict([e.prompt for e in examples])
    start = clean.gather(1, 1 - labels[:, None]) - clean.gather(1, labels[:, None])
    assert (margins["noise"] >= start - 1e-4).all()
    assert (margins["noise"] > start + 1e-4).any()
    assert (margins["pgd"] > margins["noise"]).double().mean() > 0.9


class Saturated(Network):
    """The same predictions with logits times 1000: the softmax is 0 or 1 and cross-entropy has no gradient."""

    def forward(self, tokens, needs, edits=None, temperature=None):
        return Outputs(class_logits=1000 * super().forward(tokens, needs, edits).class_logits)


def test_margin_sees_through_saturated_logits_and_cross_entropy_does_not():
    plain, examples = victims.classifier(), victims.sentences(20)
    masked = Saturated(plain.model, plain.encoder, "classifier", pooling=plain.pooling)
    broken = {}
    for name, network, loss in [("plain", plain, "margin"), ("margin", masked, "margin"), ("ce", masked, "cross_entropy")]:
        target = ClassifierTarget(network)
        attack = attacks.Embedding(adversary=adversaries.PGD(radius=1.0, steps=10), restarts=1, loss=loss)
        proposals = attack.propose(target, examples, Budget(), random.Random(0))
        predicted = target.predict_edited(examples, [p.edits for p in proposals]).argmax(1)
        broken[name] = (predicted != torch.tensor([e.label for e in examples])).double().mean().item()
    assert broken["margin"] == broken["plain"] > 0.9
    assert broken["ce"] < 0.1


def test_embedding_attack_does_not_depend_on_the_batch():
    network, examples = victims.classifier(dtype="float64"), victims.sentences(6)
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.2, steps=3))
    together = attack.propose(ClassifierTarget(network), examples, Budget(), random.Random(0))
    for example, expected in zip(examples, together, strict=True):
        (alone,) = attack.propose(ClassifierTarget(network), [example], Budget(), random.Random(0))
        torch.testing.assert_close(alone.edits["embedding"], expected.edits["embedding"], rtol=0, atol=1e-9)


def test_more_restarts_are_never_weaker_and_queries_are_kept():
    network, examples = victims.classifier(), victims.sentences(8)
    scores = []
    for restarts in (1, 3):
        target = ClassifierTarget(network)
        attack = attacks.Embedding(adversary=adversaries.PGD(radius=0.1, steps=2), restarts=restarts)
        proposals = attack.propose(target, examples, Budget(), random.Random(0))
        assert target.num_queries == 8 * (1 + restarts * 3)  # delta = 0 once; two iterates and the last one per restart
        logits = target.predict_edited(examples, [p.edits for p in proposals])
        scores.append(torch.stack([logits[i, 1 - e.label] - logits[i, e.label] for i, e in enumerate(examples)]))
    assert (scores[1] >= scores[0] - 1e-5).all()
    target = ClassifierTarget(network)
    attack.propose(target, examples, Budget(queries=4), random.Random(0))
    assert target.num_queries == 8 * 4


def test_the_restarts_of_an_adversary_are_run_and_the_best_of_all_is_kept():
    """Two steps a restart: three times the gradients of one restart; delta = 0 and the final edits are one query each, as with one."""
    network, examples = victims.classifier(), victims.sentences(8)
    margins = {}
    for restarts in (1, 3):
        target = ClassifierTarget(network)
        adversary = adversaries.PGD(radius=0.5, steps=2, step_size=0.05, restarts=restarts, keep="best")
        proposals = attacks.Embedding(adversary=adversary, restarts=1).propose(target, examples, Budget(), random.Random(0))
        assert target.num_gradients == 8 * 2 * restarts
        assert target.num_queries == 8 * (1 + 2 * restarts + 1)
        logits = target.predict_edited(examples, [p.edits for p in proposals])
        margins[restarts] = torch.stack([logits[i, 1 - e.label] - logits[i, e.label] for i, e in enumerate(examples)])
    assert (margins[3] >= margins[1] - 1e-5).all()
    assert (margins[3] > margins[1] + 1e-4).any()


def test_embedding_attack_raises_the_loss_of_a_generator_on_prompt_positions_only():
    network, examples = victims.generator_model(), victims.sums()[:6]
    attack = attacks.Embedding(adversary=adversaries.PGD(radius=1.0, steps=5, where="prompt"), restarts=1)
    target = GeneratorTarget(network)
    proposals = attack.propose(target, examples, Budget(), random.Random(0))
    clean, after = target.nll(examples), target.nll(examples, [p.edits for p in proposals])
    assert (after >= clean - 1e-5).all()
    assert after.mean() > clean.mean() + 0.5
    for example, proposal in zip(examples, proposals, strict=True):
        prompt = len(network.encoder.prompt(example.prompt))
        assert proposal.edits["embedding"][:prompt].abs().max() > 0
        assert torch.count_nonzero(proposal.edits["embedding"][prompt:]) == 0


def test_hidden_layers_can_be_attacked_too():
    network, examples = victims.classifier(), victims.sentences(4)
    target = ClassifierTarget(network)
    adversary = adversaries.PGD(radius=8.0, relative_to="absolute", sites=("embedding", "layer:0"), steps=3)
    proposals = attacks.Embedding(adversary=adversary, restarts=1).propose(target, examples, Budget(), random.Random(0))
    assert set(proposals[0].edits) == {"embedding", "layer:0"}
    two_sites = target.predict_edited(examples, [p.edits for p in proposals])
    one_site = target.predict_edited(examples, [{"layer:0": p.edits["layer:0"]} for p in proposals])
    assert (two_sites - one_site).abs().max() > 1e-3
    assert (one_site - target.predict([e.prompt for e in examples])).abs().max() > 1e-3


@pytest.mark.parametrize("bad", [{"loss": "ce"}, {"restarts": 0}, {"batch_size": 0}])
def test_embedding_refuses_nonsense(bad):
    with pytest.raises(ConfigError, match="embedding"):
        attacks.Embedding(**bad)


@pytest.mark.parametrize("kind", ["freelb", "free", "universal", "refusal"])
def test_adversaries_that_only_make_sense_in_training_are_refused(kind):
    adversary = plugins.resolve("adversaries", kind)
    instance = adversary(harmful=["a"], harmless=["b"]) if kind == "refusal" else adversary()
    with pytest.raises(ConfigError, match=rf"embedding\.adversary: '{kind}' is for training alone"):
        attacks.Embedding(adversary=instance)
