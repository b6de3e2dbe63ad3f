"""The training noise of RanMASK: how many words it hides, which, as what; and that training on it is training on masked texts."""

from collections import Counter
from typing import ClassVar

import pytest
import torch
from helpers import networks
from torch import nn
from transformers import AutoTokenizer

from advalign import adversaries, config
from advalign.errors import ConfigError
from advalign.interfaces import Adversary, PerturbationContext
from advalign.models import Network, word_masking
from advalign.models.encode import Encoder
from advalign.models.scratch import train_tokenizer
from advalign.objectives import DPO, GRPO, SFT, Classify, Consistency
from advalign.types import LabelRows

TEXTS = ["a b c d e f g h i j", "a b c", "k", "c c c d"]


def encoder(kind, texts=TEXTS, **options):
    tok = train_tokenizer(kind, texts, bidirectional=True, **options)
    tok.add_special_tokens({"mask_token": "<mask>"})
    return Encoder(tok, bidirectional=True, max_length=64)


class Tokenised(Network):
    """A network of which only the encoder is read."""

    def __init__(self, encoder):
        nn.Module.__init__(self)
        self.encoder = encoder


def perturbation_context(reader, tokens, keys=None, allowed=None):
    keys = list(range(tokens.ids.shape[0])) if keys is None else keys
    return PerturbationContext(
        shapes={"embedding": (tokens.ids.shape[1], 3)},
        allowed=tokens.mask if allowed is None else allowed,
        radius=0.0,
        dtype=torch.float32,
        generators=[torch.Generator().manual_seed(int(k)) for k in keys],
        tokens=tokens,
        network=Tokenised(reader),
    )


def masked(adversary, context):
    return adversary.ask(adversary.start(context))["embedding"]


def pieces(reader, tokens):
    return [reader.tokenizer.convert_ids_to_tokens(ids[mask].tolist()) for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def test_as_many_words_are_masked_as_the_rate_says_and_the_rest_is_untouched():
    reader = encoder("words")
    tokens = reader.classify(TEXTS)
    adversary = adversaries.Mask(rate=0.7)
    assert isinstance(adversary, Adversary)
    edit = masked(adversary, perturbation_context(reader, tokens))
    # T - k: 10 - 3, 3 - 1, one word stays, 4 - (4 - round(2.8)).
    assert [row.count("<mask>") for row in pieces(reader, edit.tokens)] == [7, 2, 0, 3]
    for old, new in zip(pieces(reader, tokens), pieces(reader, edit.tokens), strict=True):
        assert all(b in (a, "<mask>") for a, b in zip(old, new, strict=True))
        assert (new[0], new[-1]) == ("<cls>", "<sep>")
    shown = edit.origin >= 0
    assert torch.equal(edit.tokens.ids.gather(1, edit.origin.clamp(min=0))[shown], tokens.ids[shown])
    assert torch.equal(shown, tokens.mask & (edit.tokens.ids != reader.tokenizer.mask_token_id))
    assert torch.equal(edit.tokens.key, tokens.key)


def test_every_set_of_words_is_drawn_equally_often():
    """Four words, two kept: six sets. 1200 rows, 200 each; chi-square with five degrees of freedom: 20.5 is its 0.999 quantile."""
    reader = encoder("words")
    edit = masked(adversaries.Mask(rate=0.5), perturbation_context(reader, reader.classify(["a b c d"] * 1200)))
    sets = Counter(tuple(row) for row in pieces(reader, edit.tokens))
    assert len(sets) == 6
    assert sum((n - 200) ** 2 / 200 for n in sets.values()) < 20.5


def test_a_word_of_many_pieces_is_one_mask_token():
    """Its length must not show: "unbelievable" and "fun" leave the same row where they are hidden."""
    reader = encoder("bpe", ["it was fun", "unbelievable"], size=265)
    tokens = reader.classify(["it was fun", "it was unbelievable"])
    assert tokens.lengths.tolist()[0] < tokens.lengths.tolist()[1]
    number = word_masking.number_words(reader.tokenizer, tokens, tokens.mask)
    assert number.amax(1).tolist() == [3, 3]
    hidden, origin = word_masking.mask_words(tokens, number, [[3], [3]], mask_id=reader.tokenizer.mask_token_id, pad_id=reader.pad_id)
    assert torch.equal(hidden.ids[0], hidden.ids[1])
    assert torch.equal(hidden.ids[0], reader.classify(["it was<mask>"], read=["<mask>"]).ids[0])
    assert (origin[1] >= 0).sum() == hidden.mask[1].sum() - 1


def test_words_of_word_pieces(minilm):
    """Pieces with ## belong to the word before; special tokens to none; punctuation is a word, because white space is forgotten."""
    reader = Encoder(AutoTokenizer.from_pretrained(minilm), bidirectional=True)
    tokens = reader.classify(["Unbelievably, it isn't", "good"])
    assert pieces(reader, tokens)[0] == ["[CLS]", "un", "##bel", "##ie", "##va", "##bly", ",", "it", "isn", "'", "t", "[SEP]"]
    number = word_masking.number_words(reader.tokenizer, tokens, tokens.mask)
    assert number[0].tolist() == [0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 0]
    assert number[1].tolist() == [0, 1, *[0] * 10]
    edit = word_masking.mask_words(tokens, number, [[1, 4], []], mask_id=103, pad_id=0)[0]
    assert pieces(reader, edit) == [["[CLS]", "[MASK]", ",", "it", "[MASK]", "'", "t", "[SEP]"], ["[CLS]", "good", "[SEP]"]]
    # The row is the one a masked text has, which is what the vote sees (evaluation/voting.py).
    assert pieces(reader, reader.classify(["[MASK], it [MASK]'t"], read=["[MASK]"])) == pieces(reader, edit)[:1]


def test_words_of_characters_are_what_white_space_separates():
    reader = encoder("characters", ["ab cd e"])
    tokens = reader.classify(["ab cd e"])
    assert word_masking.number_words(reader.tokenizer, tokens, tokens.mask)[0].tolist() == [0, 1, 1, 0, 2, 2, 0, 3, 0]


def test_a_word_is_masked_only_where_all_its_pieces_are_allowed():
    reader = encoder("characters", ["ab cd e"])
    tokens = reader.classify(["ab cd e"])
    allowed = tokens.mask.clone()
    allowed[0, 2] = False  # "b"
    assert word_masking.number_words(reader.tokenizer, tokens, allowed)[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 2, 0]
    none = masked(adversaries.Mask(rate=0.9), perturbation_context(reader, tokens, allowed=torch.zeros_like(tokens.mask)))
    assert torch.equal(none.tokens.ids, tokens.ids)


def test_does_not_depend_on_padding_order_or_split():
    reader = encoder("words")
    tokens = reader.classify(TEXTS)
    adversary = adversaries.Mask(rate=0.5)
    whole = pieces(reader, masked(adversary, perturbation_context(reader, tokens)).tokens)
    assert pieces(reader, masked(adversary, perturbation_context(reader, tokens.fit(20))).tokens) == whole
    order = torch.tensor([2, 0, 3, 1])
    assert pieces(reader, masked(adversary, perturbation_context(reader, tokens.index(order), order)).tokens) == [whole[i] for i in order]
    assert pieces(reader, masked(adversary, perturbation_context(reader, tokens.index(order[1:2]), [0])).tokens) == whole[:1]


def test_training_on_it_is_training_on_masked_texts():
    """The gradient of classify on the view equals that of classify on the rows it asked for; other updates ask for others."""
    net = networks.network("classifier")
    rows = networks.labels(net)
    terms = {"robust": Classify(source="s", view="mask")}
    batches = []

    class Watched(adversaries.Mask):
        def ask(self, state):
            batches.append(state)
            return super().ask(state)

    adversary = Watched(rate=0.5, replace="unknown")
    attacked, _ = networks.update(networks.learner(net), terms, {"s": rows}, {"mask": adversary}, key=(0, "update", 1))
    (edit,) = batches
    assert (edit.tokens.ids == net.encoder.tokenizer.unk_token_id).sum() > 3
    shown = LabelRows(tokens=edit.tokens, labels=rows.labels)
    plain, _ = networks.update(networks.learner(net), {"c": Classify(source="s")}, {"s": shown})
    torch.testing.assert_close(attacked, plain, rtol=0, atol=1e-12)
    networks.update(networks.learner(net), terms, {"s": rows}, {"mask": adversary}, key=(0, "update", 2))
    assert not torch.equal(batches[1].tokens.ids, edit.tokens.ids)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rate": 1.0}, "m.rate: 1 given"),
        ({"rate": -0.1}, "m.rate: -0.1 given"),
        ({"replace": "unk"}, "m.replace: no replacement 'unk'.*Did you mean 'unknown'"),
        ({"share": "group"}, "mask.share: 'group' given"),
        ({"where": "prompts"}, "m.where: no region 'prompts'.*Did you mean 'prompt'"),
        ({"radius": 0.1}, "radius"),
    ],
)
def test_refused(fields, sentence):
    with pytest.raises((ConfigError, TypeError), match=sentence):
        config.sections({"adversaries": {"m": {"kind": "mask", **fields}}})


def test_a_tokenizer_without_a_mask_token_is_refused():
    reader = Encoder(train_tokenizer("words", TEXTS, bidirectional=True), bidirectional=True)
    context = perturbation_context(reader, reader.classify(TEXTS))
    with pytest.raises(ConfigError, match=r"mask.replace: the tokenizer has no mask token to replace a word with; give `replace: unknown`"):
        adversaries.Mask().start(context)
    assert [r.count("<unk>") for r in pieces(reader, masked(adversaries.Mask(replace="unknown"), context).tokens)] == [7, 2, 0, 3]


# --------------------------------------------------------------------------------------- targets of a policy that are gone


class Watching(adversaries.Mask):
    """Notes what it asks for, by the rows' own streams."""

    edits: ClassVar[list] = []

    def ask(self, state):
        type(self).edits.append(state)
        return super().ask(state)


def shown(rate=0.5, seed=0):
    """A policy, demonstrations, and what one mask leaves of them: (network, rows, edit)."""
    net = networks.network()
    rows = networks.demos(net)
    Watching.edits = []
    networks.update(networks.learner(net), {"x": SFT(source="s", view="m")}, {"s": rows}, {"m": mask(rate, Watching)}, key=("u", seed))
    edit = Watching.edits[-1]
    left = rows.tokens.target & (edit.origin >= 0)
    assert 3 < left.sum() < rows.tokens.target.sum()
    return net, rows, edit, left


def mask(rate=0.5, cls=adversaries.Mask):
    return cls(rate=rate, replace="unknown")


def at_origin(x, edit):
    """Values "B T2 ..." of the masked rows at the positions "B T" of the rows."""
    index = edit.origin.clamp(min=0)
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.ndim - 2)).expand(*index.shape, *x.shape[2:]))


@pytest.mark.parametrize("budget", [10_000, 16])
def test_the_loss_of_a_policy_is_the_mean_over_targets_that_are_left(budget):
    """-mean log p of the masked rows' own targets by a plain forward: value, metric and gradient, in one micro-batch and in many."""
    net, rows, edit, left = shown()
    logits = net.model(input_ids=edit.tokens.ids, attention_mask=edit.tokens.mask.long()).logits.log_softmax(-1)
    logp = logits[:, :-1].gather(2, edit.tokens.ids[:, 1:, None]).squeeze(2)[edit.tokens.target[:, 1:]]
    assert len(logp) == left.sum()
    net.zero_grad()
    (-logp.mean()).backward()
    expected = networks.gradients(net)
    gradient, logs = networks.update(
        networks.learner(net), {"x": SFT(source="s", view="m")}, {"s": rows}, {"m": mask()}, key=("u", 0), budget=budget
    )
    assert logs["x/loss"] == pytest.approx(-logp.mean().item(), abs=1e-12)
    assert logs["x/nll"] == pytest.approx(-logp.mean().item(), abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_a_policy_s_distance_is_compared_where_both_views_are():
    """KL(clean || masked) at targets that are left, by full distributions."""
    net, rows, edit, left = shown()
    clean = net.model(input_ids=rows.tokens.ids, attention_mask=rows.tokens.mask.long()).logits.log_softmax(-1)
    masked_ = net.model(input_ids=edit.tokens.ids, attention_mask=edit.tokens.mask.long()).logits.log_softmax(-1)
    p = torch.cat([clean[:, :1], clean[:, :-1]], 1)
    q = at_origin(torch.cat([masked_[:, :1], masked_[:, :-1]], 1), edit)
    kl = (p.exp() * (p - q)).sum(-1)[left]
    _, logs = networks.update(
        networks.learner(net),
        {"x": Consistency(source="s", view="m", output="tokens", divergence="kl")},
        {"s": rows},
        {"m": mask()},
        key=("u", 0),
    )
    assert logs["x/loss"] == pytest.approx(kl.mean().item(), abs=1e-12)
    assert logs["x/divergence"] == pytest.approx(kl.mean().item(), abs=1e-12)


def test_a_pair_compares_policy_and_reference_on_the_targets_that_are_left():
    """d of each response: sums over the targets that are left, of the policy on the masked rows and of the reference's numbers."""
    net = networks.network()
    rows = networks.pairs(net)
    Watching.edits = []
    objectives = {"x": DPO(source="s", view="m")}
    _, logs = networks.update(networks.learner(net), objectives, {"s": rows}, {"m": mask(0.5, Watching)}, key=("u", 3))
    edit = Watching.edits[-1]
    left = rows.tokens.target & (edit.origin >= 0)
    assert 0 < left.sum() < rows.tokens.target.sum()
    logits = net.model(input_ids=edit.tokens.ids, attention_mask=edit.tokens.mask.long()).logits.log_softmax(-1)
    logp = torch.cat([torch.zeros(4, 1, dtype=torch.float64), logits[:, :-1].gather(2, edit.tokens.ids[:, 1:, None]).squeeze(2)], 1)
    d = ((at_origin(logp, edit) - rows.ref_logprobs) * left).sum(1)
    loss = -torch.nn.functional.logsigmoid(0.1 * (d[0::2] - d[1::2])).mean()
    assert logs["x/loss"] == pytest.approx(loss.item(), abs=1e-12)


def test_rollouts_count_the_targets_that_are_left_and_clean_views_all_of_them():
    """With a ratio of 1 and weights by token: -mean A log p' over what is left, and -mean A over all sampled tokens on the clean view."""
    net = networks.network()
    rows = networks.rollouts(net, old=False)
    Watching.edits = []
    objectives = {"x": GRPO(source="s", view="m", weighting="token"), "c": GRPO(source="s", weighting="token")}
    _, logs = networks.update(networks.learner(net), objectives, {"s": rows}, {"m": mask(0.5, Watching)}, key=("u", 1))
    edit = Watching.edits[-1]
    target = rows.tokens.target
    left = target & (edit.origin >= 0)
    assert 3 < left.sum() < target.sum()
    logits = net.model(input_ids=edit.tokens.ids, attention_mask=edit.tokens.mask.long()).logits.log_softmax(-1)
    logp = torch.cat([logits[:, :1, 0], logits[:, :-1].gather(2, edit.tokens.ids[:, 1:, None]).squeeze(2)], 1)
    wanted = {"x": (-rows.advantages * at_origin(logp, edit))[left].mean(), "c": -rows.advantages[target].mean()}
    for name, value in wanted.items():
        assert logs[f"{name}/loss"] == pytest.approx(value.item(), abs=1e-12)
