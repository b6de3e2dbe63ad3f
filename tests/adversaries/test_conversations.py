"""Adversaries on conversations: which tokens they may move, against masks that are read off the rendered text."""

import pytest
import torch
from helpers import chats

from advalign import adversaries
from advalign.engine import ascent
from advalign.errors import ConfigError

THREE = [
    chats.TURNS,
    [{"role": "user", "content": "the movie"}],
    [*chats.TOOLS, {"role": "user", "content": "hello you"}],
]
RESPONSES = ["red", "so good", "the mat"]


def rows(network):
    return network.encoder.demos([chats.chat(turns).prompt for turns in THREE], RESPONSES)


def contents(turns, response, role):
    """Character spans of the contents of a role in the rendered text; "last_user": of the last one alone."""
    turns = [*turns, {"role": "assistant", "content": response}]
    spans, _place, text = [], 0, ""
    for turn in turns:
        text += f"<|im_start|>{turn['role']}\n"
        spans.append((turn["role"], len(text), len(text) + len(turn["content"])))
        text += f"{turn['content']}<|im_end|>\n"
    chosen = [(a, b) for name, a, b in spans if name == role.removeprefix("last_")]
    return text, chosen[-1:] if role.startswith("last_") else chosen


@pytest.mark.parametrize("kind", ["byte_pairs", "words", "pieces"])
@pytest.mark.parametrize("where", ["system", "user", "last_user", "assistant", "tool"])
def test_a_role_is_the_contents_of_its_messages(where, kind):
    network = chats.policy(kind)
    tokens = rows(network)
    context = ascent.perturbation_context(network, adversaries.PGD(radius=1.0, where=where), "pgd", tokens, [("chat", tokens)], (0,))
    for b, (turns, response) in enumerate(zip(THREE, RESPONSES, strict=True)):
        text, spans = contents(turns, response, where)
        encoded = network.encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens.ids[b, : len(encoded["input_ids"])].tolist() == encoded["input_ids"]
        inside = [any(x <= a < y for x, y in spans) for a, _ in encoded["offset_mapping"]]
        assert context.allowed[b].tolist() == inside + [False] * (tokens.ids.shape[1] - len(inside))


def test_rows_of_one_conversation_share_a_delta_on_what_they_have_in_common():
    network = chats.policy()
    prompt = chats.chat().prompt
    tokens = network.encoder.demos([prompt, prompt], ["red", "the mat"], group=[0, 0])
    adversary = adversaries.PGD(radius=1.0, where="last_user", share="group")
    shared = ascent.perturbation_context(network, adversary, "pgd", tokens, [("chat", tokens)], (0,)).allowed
    assert shared.shape[0] == 1
    assert torch.equal(shared[0], ascent.allowed_positions("last_user", tokens)[0])
    other = network.encoder.demos([prompt, chats.chat(THREE[1]).prompt], ["red", "the mat"], group=[0, 0])
    with pytest.raises(ConfigError, match=r"adversaries\.pgd\.share: 'group' given, and the 2 rows of a group begin with no token"):
        ascent.perturbation_context(network, adversary, "pgd", other, [("chat", other)], (0,))


def changed(network, adversary, tokens):
    """The rows as a discrete adversary leaves them."""
    context = ascent.perturbation_context(network, adversary, "view", tokens, [("chat", tokens)], (0,))
    return adversary.ask(adversary.start(context))["embedding"].tokens


def turns_of(network, ids, mask):
    """[(role, content)] of a row, read back from its text."""
    text = network.encoder.tokenizer.decode(ids[mask])
    assert text.startswith("<|im_start|>")
    assert text.endswith("<|im_end|>\n")
    return [tuple(turn.removesuffix("<|im_end|>\n").split("\n", 1)) for turn in text.split("<|im_start|>")[1:]]


@pytest.mark.parametrize("where", ["prompt", "user", "last_user", "system", "tool"])
def test_misspellings_stay_in_the_contents_of_their_turns(where):
    network = chats.policy()
    tokens = rows(network)
    adversary = adversaries.Characters(where=where, guide="random", steps=0, budget=1.0, min_length=2, keep_first=False)
    after = changed(network, adversary, tokens)
    moved = compared = 0
    for b, (turns, response) in enumerate(zip(THREE, RESPONSES, strict=True)):
        old = [(t["role"], t["content"]) for t in turns] + [("assistant", response)]
        new = turns_of(network, after.ids[b], after.mask[b])
        assert [role for role, _ in new] == [role for role, _ in old]
        last = max(i for i, (role, _) in enumerate(old) if role == "user")
        free = {"prompt": range(len(old) - 1), "last_user": [last]}.get(where, [i for i, (role, _) in enumerate(old) if role == where])
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            assert before == now or i in free
        moved += sum(before != now for before, now in zip(old, new, strict=True))
        # Who wrote which token is what rendering the changed conversation says.
        prompt = chats.chat([{"role": role, "content": content} for role, content in new[:-1]]).prompt
        again = network.encoder.demos([prompt], [response])
        size = int(after.mask[b].sum())
        if again.ids[0].tolist() == after.ids[b, :size].tolist():  # else the text is read back as other pieces
            compared += 1
            assert torch.equal(again.role[0], after.role[b, :size])
            assert torch.equal(again.turn[0], after.turn[b, :size])
            assert torch.equal(again.target[0], after.target[b, :size])
    assert moved > 0
    assert compared > 0


def test_synonyms_reach_the_turns_and_never_the_names_of_roles(tmp_path):
    """A lexicon that would rewrite the template's own words."""
    lexicon = tmp_path / "words.json"
    lexicon.write_text('{"user": ["you"], "system": ["cat"], "assistant": ["sat"], "hello": ["good"], "cat": ["mat"], "say": ["sat"]}')
    network = chats.policy("words")
    adversary = adversaries.Synonyms(lexicon=str(lexicon), where="prompt", guide="random", steps=0, budget=1.0, keep=())
    after = changed(network, adversary, rows(network))
    text = network.encoder.tokenizer.decode(after.ids[0][after.mask[0]])
    expected = [{"role": "system", "content": "be polite"}, {"role": "user", "content": "good the mat"}]
    expected += [{"role": "assistant", "content": "good you"}, {"role": "user", "content": "sat a color"}]
    ids = chats.rendered(network, [*expected, {"role": "assistant", "content": "red"}], add_generation_prompt=False)
    assert text == network.encoder.tokenizer.decode(ids)


@pytest.mark.parametrize("where", ["prompt", "last_user", "system"])
def test_masks_hide_words_of_contents_and_belong_to_their_turns(where):
    network = chats.policy("words")
    tokens = rows(network)
    after = changed(network, adversaries.Mask(rate=0.9, replace="unknown", where=where), tokens)
    # One word is one token here, so rows keep their length, and a mask is of the turn of its word.
    hidden = after.ids != tokens.ids
    assert hidden.any()
    assert not (hidden & ~(ascent.allowed_positions(where, tokens) & (tokens.role >= 0))).any()
    assert torch.equal(after.role, tokens.role)
    assert torch.equal(after.turn, tokens.turn)


def test_a_continuous_attack_around_changed_words_keeps_to_the_turn():
    network = chats.policy()
    tokens = rows(network)
    halves = {
        "discrete": adversaries.Characters(where="last_user", guide="random", steps=0, budget=1.0, min_length=2),
        "continuous": adversaries.PGD(where="last_user", radius=1.0, steps=1),
    }
    adversary = adversaries.Mixed(**halves, discrete_probability=1.0)
    context = ascent.perturbation_context(network, adversary, "view", tokens, [("chat", tokens)], (0,))
    edit = adversary.ask(adversary.start(context))["embedding"]
    moved = edit.add.abs().sum(-1) > 0
    assert torch.equal(moved, ascent.allowed_positions("last_user", edit.tokens))
