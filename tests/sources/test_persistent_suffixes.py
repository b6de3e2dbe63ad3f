"""A pool of suffixes: searches continue from where they stopped, on the current weights, and a fraction of the pool is renewed."""

import random

import pytest
import torch
from helpers.equal import assert_equal
from helpers.runs import DATA, imitation, policy, weights

from advalign import Trainer, TrainingArguments, attacks
from advalign import sources as src
from advalign.errors import ConfigError
from advalign.functional.logprobs import from_logits
from advalign.objectives.lat import LAT
from advalign.sources.persistent_suffixes import PersistentSuffixes
from advalign.targets import GeneratorTarget
from advalign.types import Example


def pairs(**fields):
    return src.Pairs(**{"data": DATA, "limit": 4, "batch_size": 4, **fields})


def search(**fields):
    return attacks.GCG(**{"length": 3, "steps": 2, "candidates": 6, "top": 6, **fields})


def run(steps=3, pool=None, **fields):
    """A trainer that defends a tiny policy against a pool; a learning rate of 0 keeps the weights where they are."""
    given = PersistentSuffixes(**{"source": "harm", "attack": search(), "size": 4, "batch_size": 2, "reset_every": 1000, **(pool or {})})
    model = policy(**{"max_length": 48, "learning_rate": 0.0, **fields})
    sources, objectives = {"harm": pairs(), "pool": given}, {"defend": LAT(source="pool")}
    return Trainer(learners={"policy": model}, sources=sources, objectives=objectives, args=TrainingArguments(max_steps=steps))


def started(**given):
    trainer = run(**given)
    trainer.start()
    return trainer, trainer.context.sources["pool"]


def nll(network, prompt, response):
    """Mean -log p of a response and its end, from the full logits of one row."""
    ids = [*network.encoder.prompt(prompt), *network.encoder.response(response)]
    start, row = len(network.encoder.prompt(prompt)), torch.tensor([ids])
    with torch.no_grad():
        return -float(from_logits(network.model(input_ids=row).logits, row)[0, start:].mean())


def test_an_attack_continues_from_where_it_stopped_and_never_gets_worse_on_fixed_weights():
    _, runtime = started(pool={"batch_size": 4})
    losses = []
    for step in range(4):
        before = [list(entry["suffix"]) for entry in runtime.entries]
        runtime.draw(step, 0)
        losses.append((runtime.logs["loss/before"], runtime.logs["loss"]))
        assert all(entry["age"] == step + 1 for entry in runtime.entries)
        assert not before or before != [entry["suffix"] for entry in runtime.entries] or losses[-1][0] == losses[-1][1]
    # What a draw begins with is what the last one ended with (all four are drawn each time), and it ends no higher.
    assert all(after <= first for first, after in losses)
    assert [first for first, _ in losses[1:]] == pytest.approx([after for _, after in losses[:-1]], abs=1e-12)
    assert losses[-1][1] < losses[0][0]


def test_what_is_drawn_is_the_pair_behind_its_suffix_and_the_loss_is_that_of_the_whole_row():
    trainer, runtime = started(pool={"batch_size": 4})
    network = trainer.learners["policy"].network
    items = runtime.draw(0, 0)
    clean = {e.meta["rejected"] + e.meta["chosen"]: e.prompt for e in runtime.pairs}
    for item in items:
        # constraints' prompts end in " :", which stays in front of the suffix: the text is the prompt and three words more.
        prompt = clean[item.meta["rejected"] + item.meta["chosen"]]
        assert item.prompt.startswith(prompt)
        assert len(item.prompt.split()) == len(prompt.split()) + 3
    slow = [nll(network, item.prompt, item.meta["rejected"]) for item in items]
    assert runtime.logs["loss"] == pytest.approx(sum(slow) / len(slow), abs=1e-10)
    rows = runtime.rows(items, network.encoder)
    again = trainer.context.source("harm").rows(items, network.encoder)
    assert torch.equal(rows.tokens.ids, again.tokens.ids)


def test_the_search_is_on_the_current_weights():
    trainer, runtime = started(pool={"batch_size": 4})
    network = trainer.learners["policy"].network
    items = runtime.draw(0, 0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    moved = [nll(network, item.prompt, item.meta["rejected"]) for item in items]
    left = runtime.logs["loss"]
    runtime.draw(1, 0)
    assert runtime.logs["loss/before"] == pytest.approx(sum(moved) / len(moved), abs=1e-10)
    assert abs(runtime.logs["loss/before"] - left) > 1e-3


def test_a_search_leaves_the_policy_and_the_streams_alone():
    trainer, runtime = started(learning_rate=1e-3)
    network = trainer.learners["policy"].network
    before, mode = weights(network), network.training
    state = torch.get_rng_state()
    runtime.draw(0, 0)
    assert network.training is mode
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(weights(network), before)


def test_a_fraction_of_the_pool_is_renewed_every_so_many_draws():
    _, runtime = started(pool={"size": 6, "batch_size": 6, "reset": 0.5, "reset_every": 2})
    ages = []
    for step in range(5):
        runtime.draw(step, 0)
        ages.append(sorted(entry["age"] for entry in runtime.entries))
    # Six after two draws are two draws old; then three of them are new, and draws 3 and 4 make those two draws old too.
    assert ages[1] == [2] * 6
    assert ages[2] == [1] * 3 + [3] * 3
    assert ages[3] == [2] * 3 + [4] * 3
    assert sum(age == 1 for age in ages[4]) == 3
    assert len({entry["born"] for entry in runtime.entries}) == 6


def test_a_pool_resumes_to_the_bit():
    _, whole = started()
    for step in range(3):
        expected = whole.draw(step, 0)
    _, first = started()
    first.draw(0, 0)
    first.draw(1, 0)
    _, second = started()
    second.load_state_dict(first.state_dict())
    resumed = second.draw(2, 0)
    assert [e.prompt for e in resumed] == [e.prompt for e in expected]
    assert second.state_dict() == whole.state_dict()
    assert second.logs == whole.logs


def test_what_an_attack_finds_does_not_depend_on_what_is_drawn_with_it():
    class Alone:
        """A context whose processes each search one entry."""

        def __init__(self, context):
            self._context = context

        def __getattr__(self, name):
            return getattr(self._context, name)

        def map_across_ranks(self, items, work):
            return [row for item in items for row in work([item])]

    (_, together), (_, apart) = started(), started()
    apart.context = Alone(apart.context)
    assert [e.prompt for e in together.draw(0, 0)] == [e.prompt for e in apart.draw(0, 0)]


def test_training_on_a_pool_withstands_searches_better_than_training_on_clean_prompts():
    """The same pairs, the same number of steps: afterwards a fresh search on the same prompts is less successful."""

    def losses(pooled):
        trainer = run(steps=15, learning_rate=5e-3, pool={"batch_size": 4})
        if not pooled:
            trainer = imitation(
                steps=15,
                objectives={"defend": LAT(source="harm")},
                sources={"harm": pairs(limit=4)},
                model=policy(max_length=48, learning_rate=5e-3),
            )
        trainer.train(progress=False)
        network, fresh = trainer.learners["policy"].network, search(steps=6)
        examples = [
            Example(prompt=e.prompt, id=e.id, meta={"response": e.meta["rejected"]}) for e in trainer.context.source("harm").examples
        ]
        values = [fresh.resume(GeneratorTarget(network), e, (), random.Random(e.id)).loss for e in examples]
        return sum(values) / len(values)

    robust, plain = losses(True), losses(False)
    assert robust > plain + 0.1, (robust, plain)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PersistentSuffixes(source="harm", attack=attacks.Beast()), "gcg, tokens"),
        (lambda: PersistentSuffixes(source="harm", attack=search(), size=4, batch_size=5), "the pool has 4"),
        (lambda: PersistentSuffixes(source="harm", attack=search(), reset=1.5), "from 0 to 1"),
        (lambda: PersistentSuffixes(source="harm", attack=search(), reset_every=0), "at least 1"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


@pytest.mark.parametrize("source", [src.Demos(data=DATA, limit=4), pairs(differ="prompt")])
def test_a_source_without_pairs_of_responses_is_refused(source):
    trainer = Trainer(
        learners={"policy": policy(max_length=48)},
        sources={"harm": source, "pool": PersistentSuffixes(source="harm", attack=search(), size=2, batch_size=2)},
        objectives={"defend": LAT(source="pool")},
        args=TrainingArguments(max_steps=1),
    )
    with pytest.raises(ConfigError, match="kind pairs"):
        trainer.start()
