"""Text to tokens: round trips, what is a target, and nothing in the format by which a discriminator could tell real from generated."""

import random

import pytest
import torch

from advalign.errors import BudgetError
from advalign.models import Encoder, load
from advalign.models.scratch import train_tokenizer
from advalign.rollout.hf import HF
from advalign.sources.contrast import GENERATED, REAL, Contrast, DiscriminatorRow
from advalign.tasks.constraints import Constraints
from advalign.types import Example, Rollout, RolloutGroup, Sampling

TEXTS = ["red gold  blue", "Füße & 3+4=7,\nline two", "a b c :"]
KINDS = ("words", "characters", "bpe")


def encoder(kind="words", texts=TEXTS, bidirectional=False, max_length=32):
    return Encoder(train_tokenizer(kind, texts, bidirectional=bidirectional), max_length=max_length, bidirectional=bidirectional)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips(text):
    # Words are joined by one space; characters (but for line breaks) and bytes come back exactly.
    assert encoder("words").decode(encoder("words").response(text)) == " ".join(text.split())
    assert encoder("bpe").decode(encoder("bpe").response(text)) == text
    if "\n" not in text:
        assert encoder("characters").decode(encoder("characters").response(text)) == text


def test_bpe_reads_what_it_was_never_shown_and_words_do_not():
    assert encoder("bpe").decode(encoder("bpe").response("zebra ☃")) == "zebra ☃"
    unknown = encoder("words").tokenizer.unk_token_id
    assert encoder("words").response("zebra", finished=False) == [unknown]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_does_not_depend_on_the_order_of_the_texts(kind):
    assert encoder(kind).tokenizer.get_vocab() == encoder(kind, texts=TEXTS[::-1] + TEXTS).tokenizer.get_vocab()


def test_the_response_and_its_end_are_the_target():
    e = encoder()
    tokens = e.demos(["a b c :", "red"], ["gold", "blue red gold"])
    # Row 0: a b c : | gold <eos>        row 1: red | blue red gold <eos>
    assert tokens.lengths.tolist() == [6, 5]
    assert tokens.target.tolist() == [[False] * 4 + [True] * 2, [False, True, True, True, True, False]]
    assert tokens.ids[0, 5] == tokens.ids[1, 4] == e.eos_id
    assert tokens.ids[1, 5] == e.pad_id
    assert not (tokens.target & ~tokens.mask).any()


def test_a_response_that_was_cut_has_no_end():
    e = encoder()
    assert e.response("gold", finished=False) == e.response("gold")[:-1]


def test_sampled_ids_are_never_tokenised_again():
    e = encoder("bpe")
    odd = [e.tokenizer.get_vocab()[c] for c in "gold"] + [e.eos_id]  # not how BPE itself would write it
    assert odd != e.response("gold")
    rollout = Rollout(response_ids=odd, sampler_logprobs=[0.0] * 5, text="gold", finished=True)
    tokens = e.rollouts([RolloutGroup(example=Example(prompt="red"), prompt_ids=e.prompt("red"), rollouts=[rollout, rollout])])
    assert tokens.ids[0][tokens.target[0]].tolist() == odd
    assert tokens.group.tolist() == [0, 0]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_identical_text_has_identical_ids_whether_real_or_sampled(bidirectional):
    # A discriminator must not win by format. Real: a demonstration. Generated: the same text, as a policy samples and decodes it.
    task, rng = Constraints(), random.Random(0)
    writer, reader = (encoder(texts=task.vocabulary(), bidirectional=b) for b in (False, bidirectional))
    examples = task.examples("train", 5, rng)
    texts = [task.demonstrate(e, rng) for e in examples]
    sampled = [writer.decode(writer.response(t)) for t in texts]  # ids with their end, back to text
    assert sampled == texts
    real = [DiscriminatorRow(prompt=e.prompt, text=t, kind=REAL, group=i) for i, (e, t) in enumerate(zip(examples, texts, strict=True))]
    generated = [
        DiscriminatorRow(prompt=e.prompt, text=t, kind=GENERATED, group=i) for i, (e, t) in enumerate(zip(examples, sampled, strict=True))
    ]
    rows = Contrast(real="chat").start(None, "contrast").rows(real + generated, reader)
    assert torch.equal(rows.tokens.ids[:5], rows.tokens.ids[5:])
    assert torch.equal(rows.tokens.target[:5], rows.tokens.target[5:])
    assert rows.labels.tolist() == [1] * 5 + [0] * 5


def test_a_sampled_text_reaches_the_judge_as_its_own_words():
    task = Constraints()
    policy = load("scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "words"}, texts=task.vocabulary(), max_length=32)
    groups = HF().generate(policy, [Example(prompt="red")], 12, Sampling(max_new_tokens=5), torch.Generator().manual_seed(0))
    rollouts = [r for r in groups[0].rollouts if not set(r.response_ids[:-1]) & {0, 1, 2, 3, 4} and r.response_ids[-1] > 4]
    assert rollouts
    tokens = policy.encoder.scored_pairs(["red"] * len(rollouts), [r.text for r in rollouts], [r.finished for r in rollouts])
    for row, target, rollout in zip(tokens.ids, tokens.target, rollouts, strict=True):
        assert row[target].tolist() == rollout.response_ids


def test_two_segments_of_a_bidirectional_judge():
    e = encoder(bidirectional=True)
    cls, sep = e.tokenizer.cls_token_id, e.tokenizer.sep_token_id
    one, two, three = (e.tokenizer.get_vocab()[w] for w in ("red", "gold", "blue"))
    tokens = e.scored_pairs(["red gold", "red gold"], ["blue", "blue"], [True, False])
    assert tokens.ids.tolist() == [[cls, one, two, sep, three, sep], [cls, one, two, sep, three, e.pad_id]]
    # The text is the target, with its closing separator where it is finished.
    assert tokens.target.tolist() == [[False] * 4 + [True] * 2, [False] * 4 + [True, False]]
    network = load("scratch:encoder-tiny?hidden_size=32", head="score", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32)
    embeddings = network.model.get_input_embeddings()(tokens.ids)
    assert network._inputs(tokens, embeddings)["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 0]]


def test_the_segments_are_those_of_the_tokenizer():
    e = encoder(bidirectional=True)
    network = load("scratch:encoder-tiny?hidden_size=32", head="classifier", tokenizer={"kind": "words"}, texts=TEXTS, max_length=32)
    tokens = network.encoder.classify(["red gold", "red"], ["blue a b", "c"])
    mine = network._inputs(tokens, network.model.get_input_embeddings()(tokens.ids))["token_type_ids"]
    theirs = e.tokenizer(["red gold", "red"], text_pair=["blue a b", "c"], padding=True, return_token_type_ids=True)
    assert mine.tolist() == theirs["token_type_ids"]
    assert tokens.ids.tolist() == theirs["input_ids"]


def test_an_empty_text_is_still_a_second_segment():
    tokens = encoder(bidirectional=True).scored_pairs(["red", "red"], ["", "gold"], [True, True])
    assert tokens.lengths.tolist() == [4, 5]  # <cls> red <sep> <sep>
    assert tokens.target.sum(1).tolist() == [1, 2]


CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"


def test_a_chat_template_wraps_prompts_alone():
    e = encoder(texts=[*TEXTS, "[user] [assistant]"])
    plain = e.demos(["red gold"], ["blue"])
    e.tokenizer.chat_template = CHAT
    assert e.tokenizer.convert_ids_to_tokens(e.prompt("red gold")) == ["[user]", "red", "gold", "[assistant]"]
    tokens = e.demos(["red gold"], ["blue"])
    assert tokens.ids[tokens.target].tolist() == plain.ids[plain.target].tolist() == e.response("blue")
    judged = e.scored_pairs(["red gold"], ["blue"], [True])
    assert torch.equal(judged.ids, tokens.ids)


def test_lengths():
    e = encoder(max_length=5)
    with pytest.raises(
        BudgetError, match=r"^encoder: a prompt of 4 tokens and a response of 4 are longer than max_length 5; raise max_length"
    ):
        e.demos(["a b c :"], ["red gold blue"])
    sentence = "^encoder: a prompt of 5 tokens leaves no room in max_length 5; raise max_length or shorten the prompt.$"
    with pytest.raises(BudgetError, match=sentence):
        e.demos(["a b c : red"], ["gold"])
    with pytest.raises(BudgetError, match="leaves no room"):
        e.scored_pairs(["a b c : red"], ["gold"], [True])
    assert encoder(bidirectional=True, max_length=5).classify(["a b c : red gold"]).ids.shape == (1, 5)
