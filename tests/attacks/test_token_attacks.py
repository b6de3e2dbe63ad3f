"""Searches for suffixes against the best there is: every suffix of a small vocabulary, enumerated on a trained model."""

import copy
import itertools
import math
import random
from functools import cache

import pytest
import torch
from helpers import victims

from advalign import attacks
from advalign.attacks import _token_steps as steps
from advalign.attacks._suffix_search import suffix_proposal
from advalign.attacks._token_search import Aim, TokenSearchRun
from advalign.errors import BudgetError, ConfigError
from advalign.models.encode import Encoder
from advalign.targets import GeneratorTarget
from advalign.types import Budget, Example, Sampling

SEARCHES = {
    "tokens": lambda **o: attacks.TokenSearch(candidates=16, top=8, steps=1000, **o),
    "gcg": lambda **o: attacks.GCG(candidates=16, top=8, steps=1000, **o),
    "random_search": lambda **o: attacks.RandomSearch(candidates=4, **o),
    "beast": lambda **o: attacks.Beast(beams=4, branches=4, **o),
}
every_search = pytest.mark.parametrize("name", SEARCHES)


def wanting(number=3):
    """Sums whose reference response is the wrong digit the attacker wants to hear."""
    return [Example(prompt=e.prompt, answer="zero" if e.answer != "zero" else "five", id=e.id) for e in victims.sums()[3 : 3 + number]]


@cache
def network():
    return copy.deepcopy(victims.generator_model()).double()


@cache
def table(index, length, goal="lower"):
    """{suffix: loss} of every suffix of `length` tokens that survives, and of none: by plain forwards of whole texts."""
    example = wanting()[index]
    search = TokenSearchRun(GeneratorTarget(network()), [example], Aim(length=length), Budget(), random.Random(0))
    suffixes = [(), *itertools.product(search.open_ids, repeat=length)]
    survivors = [s for s, fits in zip(suffixes, search.prompts[0].fit(suffixes), strict=True) if fits]
    texts = [Example(prompt=search.prompts[0].text(s), answer=example.answer) for s in survivors]
    sign = 1 if goal == "lower" else -1
    return dict(zip(survivors, (sign * GeneratorTarget(network()).nll(texts)).tolist(), strict=True))


@every_search
@pytest.mark.parametrize("length", [2, 3])
def test_no_search_beats_enumeration_and_each_reports_a_loss_that_is_in_the_table(name, length):
    """64 or 512 suffixes. What is reported is the loss of the reported suffix, never one below the optimum; 100 queries close most of the
    distance from the bare prompt to it."""
    closed = []
    for index, example in enumerate(wanting()):
        losses = table(index, length)
        target = GeneratorTarget(network())
        (result,) = SEARCHES[name](length=length).search(target, [example], Budget(queries=100), random.Random(7))
        assert target.num_queries == result.queries <= 100
        if len(result.suffix) in (0, length):
            assert result.loss == pytest.approx(losses[result.suffix], abs=1e-6)
            assert result.loss >= min(losses.values()) - 1e-6
        closed.append((losses[()] - result.loss) / (losses[()] - min(losses.values())))
    assert sum(closed) / len(closed) > 0.75, closed


@every_search
def test_raising_is_lowering_the_negative(name):
    example = Example(prompt="one plus two =", answer="three", id="a")
    target = GeneratorTarget(network())
    attack = SEARCHES[name](length=2, goal="raise")
    (result,) = attack.search(target, [example], Budget(queries=60), random.Random(0))
    assert -result.loss == pytest.approx(float(target.nll([Example(prompt=result.text, answer="three")])), abs=1e-5)
    assert -result.loss > float(target.nll([example])) + 1.0
    assert suffix_proposal(result, attack.aim).note.startswith(f"{-result.loss:.4f} nats")


def test_a_beam_as_wide_as_the_vocabulary_is_enumeration():
    """Every first token is kept and every second one drawn (eight words, drawn without replacement): the optimum of lengths 0 to 2."""
    for index, example in enumerate(wanting()):
        attack = attacks.Beast(length=2, beams=8, branches=8)
        (result,) = attack.search(GeneratorTarget(network()), [example], Budget(), random.Random(0))
        losses = table(index, 1) | table(index, 2)
        best = min(losses, key=losses.get)
        assert (result.suffix, result.loss) == (best, pytest.approx(losses[best], abs=1e-6))


def test_gradient_and_random_search_at_equal_forwards():
    """Side by side, twelve runs of 60 queries, length 3: the share of the way from the bare prompt to the optimum that is left. With 512
    suffixes neither is far from it."""
    gaps = {"gcg": 0.0, "random_search": 0.0}
    for name, index, seed in itertools.product(gaps, range(3), range(4)):
        losses, target = table(index, 3), GeneratorTarget(network())
        (best,) = SEARCHES[name](length=3).search(target, [wanting()[index]], Budget(queries=60), random.Random(seed))
        gaps[name] += (best.loss - min(losses.values())) / (losses[()] - min(losses.values())) / 12
    assert all(gap < 0.2 for gap in gaps.values()), gaps


@every_search
def test_traces_fall_company_does_not_matter_and_budgets_hold(name):
    attack, examples = SEARCHES[name](length=3), wanting()
    target = GeneratorTarget(network())
    together = attack.search(target, examples, Budget(queries=50), random.Random(0))
    assert target.num_queries == sum(f.queries for f in together) <= 150
    for example, result in zip(examples, together, strict=True):
        (alone,) = attack.search(GeneratorTarget(network(), batch_tokens=30), [example], Budget(queries=50), random.Random(0))
        assert (alone.text, alone.queries) == (result.text, result.queries)
        losses = [loss for _, loss in result.trace]
        assert losses == sorted(losses, reverse=True)
        assert result.trace[-1] == (result.queries, result.loss)
        assert [q for q, _ in result.trace] == sorted(q for q, _ in result.trace)
    (nothing,) = attack.propose(GeneratorTarget(network()), examples[:1], Budget(queries=1), random.Random(0))
    assert nothing.text is None


def test_what_it_says_is_what_greedy_decoding_says():
    """A margin of 0 ends the search; the model then answers with the wanted word, and not before."""
    target = GeneratorTarget(network())
    attack = attacks.GCG(length=3, steps=30, candidates=16, top=8, objective="margin")
    results = attack.search(target, wanting(), Budget(), random.Random(0))
    texts = [Example(prompt=f.text) for f in results]
    answers = [g.rollouts[0].text for g in target.generate(texts, 1, Sampling(max_new_tokens=4, temperature=0.0), ("t",))]
    assert [f.elicits for f in results] == [a == e.answer for a, e in zip(answers, wanting(), strict=True)]
    assert [f.loss == 0 for f in results] == [f.elicits for f in results]
    assert any(f.elicits for f in results)
    assert all(f.queries < 30 * 17 for f in results if f.elicits)


def test_without_momentum_and_buffer_gcg_is_the_published_search():
    plain = attacks.TokenSearch(length=3, steps=6, candidates=8, top=6)
    same = attacks.GCG(length=3, steps=6, candidates=8, top=6, momentum=0.0, buffer=0)
    one, two = (a.search(GeneratorTarget(network()), wanting(), Budget(), random.Random(3)) for a in (plain, same))
    assert [(f.text, f.loss, f.trace) for f in one] == [(f.text, f.loss, f.trace) for f in two]


def test_momentum_is_the_running_mean_of_slopes(monkeypatch):
    """mu = 1/4: the second step ranks by g_1 / 4 + 3 g_2 / 4, the third by g_1 / 16 + 3 g_2 / 16 + 3 g_3 / 4."""
    search = TokenSearchRun(GeneratorTarget(network()), wanting(1), Aim(length=2), Budget(), random.Random(0))
    gradients, ranked = [], []
    input_gradients, options = TokenSearchRun.input_gradients, TokenSearchRun.options
    monkeypatch.setattr(TokenSearchRun, "input_gradients", lambda self, s: gradients.append(input_gradients(self, s)) or gradients[-1])
    monkeypatch.setattr(TokenSearchRun, "options", lambda self, g, top: ranked.append(g) or options(self, g, top))
    steps.descend(search, steps=3, candidates=4, top=4, momentum=0.25)
    torch.testing.assert_close(ranked[1], gradients[0] / 4 + 3 * gradients[1] / 4)
    torch.testing.assert_close(ranked[2], gradients[0] / 16 + 3 * gradients[1] / 16 + 3 * gradients[2] / 4)


def test_a_buffer_starts_every_step_from_the_best_so_far(monkeypatch):
    search = TokenSearchRun(GeneratorTarget(network()), wanting(1), Aim(length=3), Budget(), random.Random(0))
    starts, input_gradients = [], TokenSearchRun.input_gradients
    monkeypatch.setattr(
        TokenSearchRun,
        "input_gradients",
        lambda self, s: starts.append((s, min(v for k, v in self.losses.items() if k))) or input_gradients(self, s),
    )
    steps.descend(search, steps=6, candidates=4, top=8, buffer=3)
    assert [search.losses[s] for s, _ in starts] == [best for _, best in starts]
    losses = [search.losses[s] for s, _ in starts]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) > 1


def test_random_changes_are_as_many_as_the_schedule_says_and_neighbours():
    """-log p: 5 nats is p = 0.0067 (span), 3 nats 0.0498 (half), 1 nat 0.37 (a quarter)."""
    search = TokenSearchRun(GeneratorTarget(network()), wanting(1), Aim(length=8), Budget(), random.Random(0))
    for loss, number in ((5.0, 4), (3.0, 2), (1.0, 1)):
        assert steps.num_changes(search, loss, 4) == number
    rng, suffix = random.Random(0), tuple(range(100, 108))
    for _ in range(50):
        changed = [i for i, (a, b) in enumerate(zip(suffix, steps.redraw(suffix, 3, (1, 2), rng, True), strict=True)) if a != b]
        assert changed == list(range(changed[0], changed[0] + 3))
    scattered = [steps.redraw(suffix, 3, (1, 2), rng, False) for _ in range(50)]
    assert {sum(a != b for a, b in zip(suffix, s, strict=True)) for s in scattered} == {3}
    assert any(s[0] != 100 and s[-1] != 107 for s in scattered)


def test_random_search_climbs_though_the_bare_prompt_is_better(monkeypatch):
    """The right answer is likeliest without a suffix; every step still starts from the best suffix so far."""
    example = Example(prompt="one plus two =", answer="three", id="a")
    search = TokenSearchRun(GeneratorTarget(network()), [example], Aim(length=6), Budget(), random.Random(0))
    starts, drawn = [], steps.redraw
    monkeypatch.setattr(
        steps, "redraw", lambda s, *rest: starts.append((s, min(v for k, v in search.losses.items() if k))) or drawn(s, *rest)
    )
    bare = search.score([()])[()]
    steps.search_randomly(search, steps=40, candidates=1, span=2, contiguous=True)
    assert search.best == bare
    assert [search.losses[s] for s, _ in starts] == [best for _, best in starts]
    assert len({s for s, _ in starts}) > 3


def test_a_suffix_that_begins_like_the_template_s_end_does_not_mislead():
    """Behind the prompt the template writes "plus": a suffix "plus plus" is found one token too far back, but not the anchor."""
    net = copy.deepcopy(network())
    net.encoder = Encoder(copy.deepcopy(net.encoder.tokenizer), max_length=net.encoder.max_length)
    net.encoder.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} plus {% endfor %}"
    example = Example(prompt="one", answer="two", id="a")
    search = TokenSearchRun(GeneratorTarget(net), [example], Aim(length=2, initial="plus"), Budget(), random.Random(0))
    assert net.encoder.decode(search.start) == "plus plus"
    assert search.encoder.find("one", search.start) == 2
    assert (search.prompts[0].before, len(search.prompts[0].after)) == (net.encoder.tokenizer("one")["input_ids"], 1)
    two = tuple(net.encoder.tokenizer("two three")["input_ids"])
    loss = search.score([two])[two]
    assert loss == pytest.approx(float(GeneratorTarget(net).nll([Example(prompt="one two three", answer="two")])), abs=1e-6)


@pytest.mark.parametrize("objective", ["nll", "first", "mellowmax", "margin"])
def test_every_objective_is_that_of_the_whole_row(objective):
    """-log p of "zero" and of the end of sequence, by transformers' own forward."""
    example, net = wanting(1)[0], network()
    search = TokenSearchRun(GeneratorTarget(net), [example], Aim(length=1, objective=objective), Budget(), random.Random(0))
    loss = search.score([()])[()]
    prompt, response = net.encoder.prompt(example.prompt), net.encoder.response(example.answer)
    logits = net.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double().detach()
    nll = -logits.log_softmax(-1)[range(2), response]
    rival = torch.stack([torch.cat([z[:y], z[y + 1 :]]).max() - z[y] for z, y in zip(logits, response, strict=True)])
    expected = {"nll": nll.mean(), "first": nll[0], "mellowmax": (nll.exp().mean()).log(), "margin": rival.clamp(min=0).mean()}
    assert loss == pytest.approx(float(expected[objective]), abs=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: attacks.GCG(momentum=1.0), "momentum: 1 given"),
        (lambda: attacks.GCG(buffer=-1), "buffer: -1 given"),
        (lambda: attacks.GCG(objective="nlll"), "Did you mean 'nll'"),
        (lambda: attacks.RandomSearch(span=0), r"random_search\.span: 0"),
        (lambda: attacks.Beast(temperature=0), "temperature: 0"),
        (lambda: attacks.Beast(goal="up"), "no goal 'up'"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_a_prompt_without_room_is_refused_by_name():
    example = Example(prompt=" ".join(["one"] * 30), answer="two", id="long")
    with pytest.raises(BudgetError, match="'long': a prompt of 30 tokens and a suffix of 3"):
        attacks.GCG(length=3).search(GeneratorTarget(network()), [example], Budget(), random.Random(0))


def test_a_universal_suffix_is_the_best_for_all_prompts_together():
    """Length 2: the mean over three prompts of enumerated losses, never beaten, the same suffix behind each; prompts join one by one."""
    target, examples = GeneratorTarget(network()), wanting()
    attack = attacks.UniversalSuffix(length=2, steps=12, candidates=24, top=8)
    results = attack.search(target, examples, Budget(), random.Random(0))
    tables = [table(i, 2) for i in range(3)]
    joined = [i for i, f in enumerate(results) if f.queries > 0]
    means = {s: sum(tables[i][s] for i in joined) / len(joined) for s in tables[0] if s and all(s in t for t in tables)}
    assert len({f.suffix for f in results}) == 1
    assert [f.text.endswith(network().encoder.decode(f.suffix)) for f in results] == [True] * 3
    assert results[0].loss == pytest.approx(means[results[0].suffix], abs=1e-6)
    assert results[0].loss >= min(means.values()) - 1e-6
    assert results[0].loss < sum(means.values()) / len(means) - 0.5
    assert len(joined) > 1
    assert [f.queries for f in results] == sorted((f.queries for f in results), reverse=True)
    assert sum(f.queries for f in results) == target.num_queries
    target = GeneratorTarget(network())
    attack.search(target, examples, Budget(queries=30), random.Random(0))
    assert target.num_queries <= 90


def test_a_loss_or_gradient_that_is_not_a_number_is_never_the_best(monkeypatch):
    """Half of the candidates have a loss of nan, and every second gradient is nan: what is reported is finite, and so is the momentum."""
    search = TokenSearchRun(GeneratorTarget(network()), wanting(1), Aim(length=2), Budget(), random.Random(0))
    real, ranked, options = Aim.loss, [], TokenSearchRun.options

    def loss(self, logits, ids):
        value, number = real(self, logits, ids), len(ranked)
        return torch.where(torch.arange(value.numel()).view(value.shape) % 2 == (number + 1) % 2, value, value * math.nan)

    monkeypatch.setattr(Aim, "loss", loss)
    monkeypatch.setattr(TokenSearchRun, "options", lambda self, g, top: ranked.append(g) or options(self, g, top))
    steps.descend(search, steps=4, candidates=4, top=4, momentum=0.5)
    assert len(ranked) == 4
    assert all(g.isfinite().all() for g in ranked)
    assert math.isfinite(search.best)
    assert not any(math.isnan(x) for x in search.losses.values())
    assert math.inf in search.losses.values()
