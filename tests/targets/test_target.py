"""The meter, batching and edits of a target, against one-by-one forwards."""

import pytest
import torch
from helpers import victims

from advalign import evaluation, targets
from advalign.errors import BudgetError, ConfigError
from advalign.interfaces import ABILITIES
from advalign.targets import AnsweringClassifier, AnsweringGenerator, ClassifierTarget, GeneratorTarget, network_target, target_of
from advalign.types import Edit, Example, Sampling


def test_predict_is_the_one_by_one_answer_in_any_batching_and_counts_distinct_texts():
    network = victims.classifier()
    texts = [e.prompt for e in victims.sentences(9)]
    texts_with_repeats = [texts[0], *texts, texts[3]]
    alone = torch.cat([network(network.encoder.classify([t]), {"class_logits"}).class_logits for t in texts_with_repeats]).detach()
    for batch_tokens in (1, 40, 10_000):
        target = ClassifierTarget(network, batch_tokens=batch_tokens)
        torch.testing.assert_close(target.predict(texts_with_repeats), alone, rtol=1e-4, atol=1e-5)
        assert target.num_queries == 9
        assert target.num_tokens == sum(len(network.encoder.classify([t]).ids[0]) for t in texts)
    assert target.num_forwards == 1


def test_pairs_are_told_apart():
    network = victims.classifier()
    target = ClassifierTarget(network)
    logits = target.predict(["good movie", "good movie"], ["the plot was bad", "the acting was great"])
    assert target.num_queries == 2
    assert not torch.allclose(logits[0], logits[1])


def test_queries_beyond_the_limit_are_refused():
    target = ClassifierTarget(victims.classifier())
    target.limit = 3
    target.predict(["a", "b", "c"])
    with pytest.raises(BudgetError, match="4 queries, 3 allowed"):
        target.predict(["d"])


def test_edited_rows_keep_their_own_edit():
    network, examples = victims.classifier(), victims.sentences(5)
    target = ClassifierTarget(network, batch_tokens=20)
    generator = torch.Generator().manual_seed(0)
    edits, alone = [], []
    for e in examples:
        tokens = target.tokens([e])
        add = 0.3 * torch.randn(1, tokens.ids.shape[1], 64, generator=generator)
        edits.append({"embedding": add[0]})
        alone.append(network(tokens, {"class_logits"}, {"embedding": Edit(add)}).class_logits.detach())
    torch.testing.assert_close(target.predict_edited(examples, edits), torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_nll_is_minus_the_mean_logprob_of_the_response():
    network, examples = victims.generator_model(), victims.sums()[:4]
    nll = GeneratorTarget(network).nll(examples)
    for e, loss in zip(examples, nll, strict=True):
        # By hand: ids of prompt, response and end; log-softmax of the plain transformers model, mean over the response and its end.
        ids = [*network.encoder.prompt(e.prompt), *network.encoder.response(e.answer)]
        logits = network.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(network.encoder.prompt(e.prompt))
        slow = -sum(logits[t - 1, ids[t]].item() for t in range(start, len(ids))) / (len(ids) - start)
        assert loss.item() == pytest.approx(slow, abs=1e-5)


def test_greedy_answers_under_a_zero_edit_are_those_of_the_sampler():
    network, examples = victims.generator_model(steps=30), victims.sums()
    target = GeneratorTarget(network)
    zero = [{"embedding": torch.zeros(len(network.encoder.prompt(e.prompt)), 64)} for e in examples]
    expected = [g.rollouts[0].text for g in target.generate(examples, 1, Sampling(max_new_tokens=5, temperature=0.0), (0,))]
    assert target.continue_edited(examples, zero, 5) == expected
    assert len(set(expected)) > 1
    moved = [{"embedding": z["embedding"] + 3.0} for z in zero]
    assert target.continue_edited(examples, moved, 5) != expected


def test_answers_under_edits_are_the_same_with_and_without_a_cache():
    network, generator = victims.generator_model(steps=30).double(), torch.Generator().manual_seed(0)
    examples = [Example(prompt=p, id=p) for p in ("1+2=", "12+34=", "7+15=", "60+3=")]  # of three lengths
    sizes = [len(network.encoder.prompt(e.prompt)) for e in examples]
    edits = [{s: torch.randn(n, 64, generator=generator, dtype=torch.float64) for s in ("embedding", "layer:0")} for n in sizes]
    edits[2] = {site: add[:2] for site, add in edits[2].items()}  # of the first tokens alone
    target = GeneratorTarget(network)
    cached = target.continue_edited(examples, edits, 6)
    assert network.caches
    network._caches = False
    assert cached == target.continue_edited(examples, edits, 6)
    assert len(set(cached)) > 1
    assert cached != target.continue_edited(examples, [{s: 0 * add for s, add in e.items()} for e in edits], 6)


def test_every_target_declares_its_abilities_and_refuses_what_is_outside_them():
    generator = target_of(AnsweringGenerator(lambda prompts: prompts, name="fn"))
    classifier = target_of(AnsweringClassifier(lambda texts: [[0.0, 1.0]] * len(texts), name="fn"))
    assert (generator.abilities, classifier.abilities) == ({"text"}, {"labels", "scores"})
    for target in (generator, classifier, network_target(victims.classifier()), network_target(victims.generator_model())):
        assert target.abilities <= set(ABILITIES)
        assert target.meter()["queries"] == 0
    assert generator.answer(victims.sums()[:1], 4) == [victims.sums()[0].prompt]
    assert classifier.predict(["a"]).tolist() == [[0.0, 1.0]]
    with pytest.raises(ConfigError, match=r"target: 'prefix' is not available for 'fn'; its abilities: text\."):
        generator.prefix([1])
    with pytest.raises(ConfigError, match=r"'network' is not available for 'fn'; its abilities: labels, scores\."):
        _ = classifier.network
    with pytest.raises(ConfigError, match="'answer' is not available for a network with head 'classifier'"):
        network_target(victims.classifier()).answer([], 1)


@pytest.mark.parametrize("package", [targets, evaluation])
def test_public_names_are_imported_when_they_are_used(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = package.Nothing
