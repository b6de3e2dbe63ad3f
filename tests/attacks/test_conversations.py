"""Attacks on conversations: what is sent is the whole conversation with another text in one turn, as plain transformers renders it."""

import random

import pytest
import torch
from helpers import chats

from advalign import attacks
from advalign.targets import GeneratorTarget
from advalign.types import Budget

SUFFIXES = {
    "gcg": attacks.GCG(length=3, steps=2, candidates=8, top=8),
    "random_search": attacks.RandomSearch(length=3, steps=4),
    "beast": attacks.Beast(length=3, beams=2, branches=3),
    "tokens": attacks.TokenSearch(length=3, steps=2, candidates=8, top=8),
    "universal_suffix": attacks.UniversalSuffix(length=3, steps=2, candidates=8, top=8),
}
CONVERSATIONS = {
    "several turns": chats.TURNS,
    "continued": [*chats.TURNS, {"role": "assistant", "content": "the"}],
    "a tool result behind it": chats.TOOLS,
    "white space that the template drops": [*chats.TURNS[:-1], {"role": "user", "content": " say a color \n"}],
}


def mean_nll(network, turns, text, response):
    """-1/|y| sum_t log p(y_t | conversation with `text`, y_<t) of plain transformers; y ends as the template ends a turn."""
    continued = turns[-1]["role"] == "assistant"
    ids = chats.rendered(network, turns, text, add_generation_prompt=not continued, continue_final_message=continued)
    tok = network.encoder.tokenizer
    answer = tok(response, add_special_tokens=False)["input_ids"] + [tok.convert_tokens_to_ids("<|im_end|>")]
    with torch.no_grad():
        logits = network.model(input_ids=torch.tensor([ids + answer])).logits[0]
    places = range(len(ids) - 1, len(ids) + len(answer) - 1)
    return -logits.log_softmax(-1)[list(places), answer].mean().item()


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize(("name", "kind"), [*((name, "byte_pairs") for name in SUFFIXES), ("gcg", "words"), ("gcg", "pieces")])
def test_a_suffix_stands_at_the_end_of_the_last_user_turn_and_its_loss_is_that_of_the_whole_conversation(name, kind, turns):
    network, turns = chats.policy(kind), CONVERSATIONS[turns]
    (found,) = SUFFIXES[name].search(GeneratorTarget(network), [chats.chat(turns)], Budget(), random.Random(0))
    assert found.text.startswith("say a color") or found.text.startswith(" say a color")
    assert found.loss == pytest.approx(mean_nll(network, turns, found.text, "red"), abs=1e-9)


def test_a_universal_suffix_is_one_for_all_conversations():
    network = chats.policy()
    other = [{"role": "user", "content": "the movie"}]
    examples = [chats.chat(), chats.chat(other, id="1")]
    found = SUFFIXES["universal_suffix"].search(GeneratorTarget(network), examples, Budget(), random.Random(0))
    suffix = network.encoder.decode(found[0].suffix)
    assert [f.text for f in found] == ["say a color" + suffix, "the movie" + suffix]
    # In two steps no second prompt joins: the loss is the first one's.
    assert found[1].loss == pytest.approx(mean_nll(network, chats.TURNS, found[0].text, "red"), abs=1e-9)
