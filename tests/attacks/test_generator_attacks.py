"""Attacks on language models: forced beginnings against a slow loop, suffixes against brute force, lowered losses."""

import copy
import random

import pytest
import torch
from helpers import victims

from advalign import adversaries, attacks
from advalign.attacks._suffix import SuffixEncoder
from advalign.attacks._token_search import TokenSearchRun
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.models import load, scratch
from advalign.models.encode import Encoder
from advalign.targets import ClassifierTarget, GeneratorTarget
from advalign.types import Budget, Example, Sampling


def wanting(number=4):
    """Sums whose reference response is the wrong digit the attacker wants to hear."""
    return [Example(prompt=e.prompt, answer="zero" if e.answer != "zero" else "five", id=e.id) for e in victims.sums()[3 : 3 + number]]


def double():
    return copy.deepcopy(victims.generator_model()).double()


# ------------------------------------------------------------------------------------------------- prefill


def test_a_forced_beginning_is_continued_as_a_slow_loop_continues_it():
    network, target = victims.generator_model(), GeneratorTarget(victims.generator_model())
    examples = [Example(prompt="one plus two =", answer="four plus one", id="a"), Example(prompt="two =", answer="zero three", id="b")]
    answers = attacks.Prefill(tokens=2).answers(target, examples, 5)
    for example, text in zip(examples, answers, strict=True):
        ids = network.encoder.prompt(example.prompt) + network.encoder.response(example.answer)[:2]
        added = []
        for _ in range(5):
            logits = network.model(input_ids=torch.tensor([ids + added])).logits[0, -1]
            added.append(int(logits.argmax()))
            if added[-1] == network.encoder.eos_id:
                break
        assert text == network.encoder.decode(added)
    assert target.num_queries == 2


def test_the_start_is_the_first_tokens_of_the_answer_or_a_text_and_never_the_end_of_sequence():
    encoder = victims.generator_model().encoder
    example = Example(prompt="one plus two =", answer="four five", meta={"response": "three zero one"})
    ids = encoder.response("three zero one", finished=False)
    assert attacks.Prefill(tokens=2).starts(encoder, [example]) == [ids[:2]]
    assert attacks.Prefill(tokens=8).starts(encoder, [example]) == [ids]  # a response that is shorter is not ended
    assert attacks.Prefill(tokens=None, text="four five").starts(encoder, [example]) == [encoder.response("four five", finished=False)]


def test_what_is_forced_is_not_heard_and_what_the_model_adds_is_judged():
    network = victims.generator_model()
    heard = []

    def verify(text):
        heard.append(text)
        return float("four" not in text)

    example = Example(prompt="one plus two =", answer="four four", id="a", verify=verify)
    target = GeneratorTarget(network)
    (proposal,) = attacks.Prefill(tokens=1).propose(target, [example], Budget(), random.Random(0))
    assert (proposal.text, proposal.forced) == (None, "four")
    result = Suite(data=[example], attacks={"prefill": attacks.Prefill(tokens=1)}, sampling=Sampling(max_new_tokens=4)).run(network)
    (row,) = result.results_of("prefill")
    assert row.after == heard[-1] == attacks.Prefill(tokens=1).answers(target, [example], 4)[0]
    assert row.status == ("succeeded" if "four" in row.after else "failed")  # the forced "four" itself is not heard
    assert (row.before, row.status) == ("three", "failed")


def test_a_chat_template_comes_before_what_is_forced():
    """The template writes "plus" behind the prompt; the assistant's turn begins with "two": what comes next is the model's."""
    network = copy.deepcopy(victims.generator_model())
    network.encoder = Encoder(copy.deepcopy(network.encoder.tokenizer), max_length=network.encoder.max_length)
    network.encoder.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} plus {% endfor %}"
    example = Example(prompt="one", answer="two three", id="a", verify=lambda text: 0.0)
    words = [network.encoder.tokenizer(w)["input_ids"][0] for w in ("one", "plus", "two")]
    first = int(network.model(input_ids=torch.tensor([words])).logits[0, -1].argmax())
    assert attacks.Prefill(tokens=1).answers(GeneratorTarget(network), [example], 1) == [network.encoder.decode([first])]
    suite = Suite(data=[example], attacks={"prefill": attacks.Prefill(tokens=1)}, sampling=Sampling(max_new_tokens=1))
    assert suite.run(network).results_of("prefill")[0].after == network.encoder.decode([first])


# -------------------------------------------------------------------------------------------- token search


def brute_force(target, example, places, length):
    """The loss of every suffix of one token that survives."""
    assert length == 1
    losses = {}
    for token in range(places.vocabulary_size):
        if token not in places.special_ids and places.survivors(example.prompt, [(token,)]):
            text = places.text(example.prompt, (token,))
            losses[text] = float(target.nll([Example(prompt=text, answer=example.answer)]))
    return losses


@pytest.mark.parametrize("goal", ["lower", "raise"])
def test_one_step_over_all_tokens_is_brute_force(goal):
    """One position, every token among the proposals, each drawn almost surely (a dozen tokens, 400 draws): the best of all."""
    network = double()
    target, examples = GeneratorTarget(network), wanting(3)
    places = SuffixEncoder(network.encoder)
    attack = attacks.TokenSearch(length=1, steps=1, candidates=400, top=10_000, goal=goal)
    proposals = attack.propose(target, examples, Budget(), random.Random(0))
    for example, proposal in zip(examples, proposals, strict=True):
        losses = brute_force(target, example, places, 1)
        losses[example.prompt] = float(target.nll([example]))
        best = (min if goal == "lower" else max)(losses, key=losses.get)
        assert proposal.text == best
        assert float(proposal.note.split()[0]) == pytest.approx(losses[best], abs=1e-4)


def test_the_gradient_is_that_of_one_hot_rows():
    """d loss / d onehot[i, v] by autograd through onehot @ E, the target's shift written out by hand."""
    network = double()
    target, (example,) = GeneratorTarget(network), wanting(1)
    suffix = tuple(network.encoder.tokenizer("two plus")["input_ids"])
    search = TokenSearchRun(target, [example], attacks.TokenSearch(length=2).aim, Budget(), random.Random(0))
    gradient = search.input_gradients(suffix)
    prompt, response = network.encoder.prompt(example.prompt), network.encoder.response(example.answer)
    matrix = network.model.get_input_embeddings().weight.detach()
    ids = torch.tensor([*prompt, *suffix, *response])
    onehot = torch.nn.functional.one_hot(ids, len(matrix)).double().requires_grad_()
    logprobs = network.model(inputs_embeds=(onehot @ matrix)[None]).logits[0].log_softmax(-1)
    loss = -torch.stack([logprobs[t - 1, ids[t]] for t in range(len(ids) - len(response), len(ids))]).mean()
    (expected,) = torch.autograd.grad(loss, onehot)
    expected = expected[len(prompt) : len(prompt) + len(suffix)]
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)
    assert search.losses == {suffix: pytest.approx(float(loss.detach()), abs=1e-12)}
    options = search.options(gradient, 2)
    assert not set(options.flatten().tolist()) & set(search.encoder.special_ids)
    expected[:, search.encoder.special_ids] = torch.inf
    assert options.tolist() == expected.topk(2, largest=False).indices.tolist()


def test_a_suffix_survives_decoding_and_encoding():
    """Byte pairs: "th" + "e" is read back as " the", so such a suffix must not be proposed."""
    texts = ["the cat sat on the mat", "then the rat sat"] * 3
    encoder = Encoder(scratch.train_tokenizer("bpe", texts, size=300))
    places = SuffixEncoder(encoder)
    word, pieces = (
        tuple(encoder.tokenizer(" the")["input_ids"]),
        tuple(i for c in (" t", "h", "e") for i in encoder.tokenizer(c)["input_ids"]),
    )
    assert len(word) < len(pieces)
    assert encoder.decode(word) == encoder.decode(pieces) == " the"
    assert places.survivors("the cat.", [word, pieces]) == [word]
    assert places.text("the cat.", word) == "the cat. the"
    assert places.find("the cat.", word) == len(encoder.prompt("the cat."))
    assert places.survivors("the cat.", [(encoder.eos_id,)]) == []  # a special token is no text


def test_a_suffix_lies_before_what_the_template_puts_behind_the_prompt():
    encoder = copy.deepcopy(victims.generator_model().encoder)
    encoder.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} plus {% endfor %}"
    places = SuffixEncoder(encoder)
    suffix = tuple(encoder.tokenizer("two two")["input_ids"])
    text = places.text("one", suffix)
    assert text == "one two two"
    ids = encoder.prompt(text)
    assert (ids[places.find("one", suffix) :][:2], ids[-1]) == (list(suffix), encoder.tokenizer("plus")["input_ids"][0])


def test_results_do_not_depend_on_company_and_the_budget_is_kept():
    network, examples = double(), wanting(3)
    attack = attacks.TokenSearch(length=3, steps=3, candidates=5, top=6)
    target = GeneratorTarget(network)
    together = attack.propose(target, examples, Budget(), random.Random(0))
    assert target.num_queries <= 3 * (1 + 3 * (1 + 5))  # the bare prompt; a gradient and five candidates per step
    alone = [attack.propose(GeneratorTarget(network), [e], Budget(), random.Random(0))[0] for e in examples]
    assert [p.text for p in together] == [p.text for p in alone]
    target = GeneratorTarget(network)
    attack.propose(target, examples, Budget(queries=9), random.Random(0))
    assert 3 * 2 < target.num_queries <= 3 * 9


def test_more_steps_are_never_weaker_and_the_search_finds_something():
    network, examples = double(), wanting(4)
    target = GeneratorTarget(network)
    losses = [target.nll(examples)]
    for steps in (2, 12):
        attack = attacks.TokenSearch(length=4, steps=steps, candidates=12, top=8)
        proposals = attack.propose(target, examples, Budget(), random.Random(0))
        losses.append(target.nll([Example(prompt=p.text, answer=e.answer) for p, e in zip(proposals, examples, strict=True)]))
    assert (losses[1] <= losses[0] + 1e-9).all()
    assert (losses[2] <= losses[1] + 1e-9).all()
    assert losses[2].mean() < losses[0].mean() - 0.5


# ------------------------------------------------------------------------------------- embeddings, lowered


def test_an_embedding_attack_can_lower_the_loss_of_what_it_wants_to_hear():
    network, examples = victims.generator_model(), wanting(6)
    losses = {}
    for goal in ("lower", "raise"):
        attack = attacks.Embedding(adversary=adversaries.PGD(radius=1.0, steps=8, where="prompt"), restarts=1, goal=goal)
        target = GeneratorTarget(network)
        proposals = attack.propose(target, examples, Budget(), random.Random(0))
        losses[goal] = target.nll(examples, [p.edits for p in proposals])
    clean = GeneratorTarget(network).nll(examples)
    assert (losses["lower"] <= clean + 1e-5).all()
    assert (clean <= losses["raise"] + 1e-5).all()
    assert losses["lower"].mean() < clean.mean() - 1.0


def test_a_targeted_embedding_attack_is_judged_by_what_is_said():
    """The attacker wants "zero"; the harness generates under the edit and asks the example's own judge."""
    network = victims.generator_model()
    examples = [Example(prompt=e.prompt, answer="zero", id=e.id, verify=lambda t: float(t != "zero")) for e in victims.sums()[3:9]]
    rates = []
    for radius in (0.01, 3.0):
        attack = attacks.Embedding(adversary=adversaries.PGD(radius=radius, steps=10, where="prompt"), restarts=1, goal="lower")
        result = Suite(data=examples, attacks={"embedding": attack}, sampling=Sampling(max_new_tokens=4)).run(network)
        assert {r.after == "zero" for r in result.results_of("embedding") if r.status == "succeeded"} <= {True}
        rates.append(sum(r.status == "succeeded" for r in result.results_of("embedding")) / len(examples))
    assert rates[0] == 0 < 0.5 < rates[1]


@pytest.mark.parametrize("site", ["embedding", "layer:0"])
def test_without_a_ball_everything_can_be_said(site):
    """The canary: 100 signed steps that nothing projects make every prompt say the wanted word; a victim that resists is not attacked."""
    network = victims.generator_model()
    examples = [Example(prompt=e.prompt, answer="zero", id=e.id, verify=lambda t: float(t != "zero")) for e in victims.sums()[3:9]]
    far = {"radius": 1e4, "step_size": 1e-6, "relative_to": "absolute", "random_start": False, "where": "prompt", "sites": (site,)}
    attack = attacks.Embedding(adversary=adversaries.PGD(ball="Linf", steps=100, **far), restarts=1, goal="lower")
    result = Suite(data=examples, attacks={"canary": attack}, sampling=Sampling(max_new_tokens=4)).run(network)
    assert {r.status for r in result.results_of("canary")} <= {"succeeded", "skipped"}
    assert sum(r.status == "succeeded" for r in result.results_of("canary")) >= 5


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("cls", [attacks.Prefill, attacks.TokenSearch])
def test_a_classifier_has_no_response(cls):
    with pytest.raises(ConfigError, match="head 'classifier'"):
        cls().propose(ClassifierTarget(victims.classifier()), victims.sentences(1), Budget(), random.Random(0))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: attacks.Prefill(tokens=0), "tokens: 0 given"),
        (lambda: attacks.Prefill(text=" "), "text: ' ' given; a text that is not empty"),
        (lambda: attacks.TokenSearch(length=0), "length: 0"),
        (lambda: attacks.TokenSearch(goal="down"), "Known: lower, raise"),
        (lambda: attacks.Embedding(goal="down"), "goal: no goal 'down'"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_an_example_without_an_answer_is_refused_by_name():
    network = load("scratch:tiny?hidden_size=32", tokenizer={"kind": "words"}, texts=["a b"], max_length=8, head="policy")
    with pytest.raises(ConfigError, match="'x'"):
        attacks.Prefill().propose(GeneratorTarget(network), [Example(prompt="a", id="x")], Budget(), random.Random(0))
