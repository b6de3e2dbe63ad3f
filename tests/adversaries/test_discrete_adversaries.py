"""Adversaries that replace words, and the one that takes a direction away: oracles, slow loops, invariances, real tokenizers."""

import gzip
import itertools
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import demos, labels, learner, network, pairs, update
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as algorithms
from torch import nn
from transformers import PreTrainedTokenizerFast

from advalign import adversaries, config
from advalign.adversaries import _lexicon
from advalign.adversaries import _word_reader as words_of
from advalign.adversaries import _word_search as search
from advalign.adversaries.characters import EDITS, _near
from advalign.adversaries.mixed import _derived_seed, move_allowed
from advalign.adversaries.refusal import last_states
from advalign.engine import ascent
from advalign.engine.plan import describe, plan
from advalign.errors import ConfigError
from advalign.interfaces import Adversary, PerturbationContext
from advalign.models import Network, load, perturb, scratch
from advalign.models.encode import Encoder
from advalign.models.padding import pad
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.dpo import DPO
from advalign.objectives.sft import SFT
from advalign.types import Edit

LEXICON = {
    "good": ["fine", "decent", "great", "unheard"],
    "bad": ["awful", "poor"],
    "movie": ["film", "picture"],
    "acting": ["performance", "play"],
    "boring": ["dull", "tedious"],
}
TEXTS = [
    "a good movie , not bad",
    "the acting is boring .",
    "Good play , dull film",
    "the picture is poor",
    "fine",
    "it don't move well-known film",
]
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] a the is it not , . ' - t don well known good bad movie film act play pic fine de great aw poor perform bor"
    " dull ted ##ing ##ture ##cent ##ful ##ance ##ious mo ##ve"
).split()


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "words.json.gz"
    path.write_bytes(gzip.compress(json.dumps(LEXICON).encode()))
    return str(path)


def word_pieces():
    core = Tokenizer(algorithms.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level():
    words = [w for key, substitutes in LEXICON.items() for w in (key, *substitutes)]
    return scratch.train_tokenizer("bpe", [*TEXTS, " ".join(words[:9])], size=330)


def encoder(kind):
    if kind == "pieces":
        return Encoder(word_pieces(), max_length=24, bidirectional=True)
    if kind == "bytes":
        return Encoder(byte_level(), max_length=32)
    return Encoder(scratch.train_tokenizer(kind, TEXTS), max_length=48)


class Linear(Network):
    """The loss of a row is its sum over real tokens of (e_t + δ_t) · w; there is no transformer."""

    def __init__(self, encoder, dim=3, head="classifier", seed=0):
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        self.encoder, self.head = encoder, head
        table = nn.Embedding(len(encoder.tokenizer), dim, dtype=torch.float64)
        table.weight.data = torch.randn(table.weight.shape, generator=generator, dtype=torch.float64)
        self.model = SimpleNamespace(get_input_embeddings=lambda: table)
        self.w = torch.randn(dim, generator=generator, dtype=torch.float64)

    def width(self, site):
        return len(self.w)

    def losses(self, edit):
        hidden = self.model.get_input_embeddings()(edit.tokens.ids).detach() + edit.add
        return (hidden * edit.tokens.mask[..., None]).sum(1) @ self.w


def perturbation_context(net, tokens, allowed=None, seeds=None):
    seeds = range(len(tokens.ids)) if seeds is None else seeds
    generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
    allowed = tokens.mask if allowed is None else allowed
    shapes = {"embedding": (tokens.ids.shape[1], net.width("embedding"))}
    return PerturbationContext(
        shapes=shapes,
        allowed=allowed,
        radius=0.0,
        dtype=torch.float64,
        generators=generators,
        tokens=tokens,
        network=net,
        key=(0, "update"),
    )


def run(adversary, context, losses):
    """The engine's loop: the final edit, the losses there, and those of the row as it was."""

    def sum_and_values(edits):
        values = losses(edits["embedding"])
        return values.sum(), values.detach()

    rows = torch.arange(len(context.generators))
    edits, first, _ = ascent.ascend(adversary, context=context, delta_index=rows, losses=sum_and_values)
    return edits["embedding"], sum_and_values(edits)[1], first


def rows_of(edit):
    return [ids[mask].tolist() for ids, mask in zip(edit.tokens.ids, edit.tokens.mask, strict=True)]


def texts_of(net, edit):
    return [net.encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) for ids in rows_of(edit)]


# ------------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        # [CLS] the act ##ing is bor ##[UNK]: "boring" is unknown here, so [UNK]; words at 1, (2, 3), 4.
        ("pieces", "The acting is xyz .", [("the", 1, 2), ("acting", 2, 4), ("is", 4, 5)]),
        # An apostrophe ties its neighbours; a hyphen does not, because word pieces do not say where spaces were.
        ("pieces", "it don't well-known", [("it", 1, 2), ("well", 5, 6), ("known", 7, 8)]),
        ("words", "a good movie , not", [("a", 0, 1), ("good", 1, 2), ("movie", 2, 3), ("not", 4, 5)]),
        ("characters", "a good movie", [("a", 0, 1), ("good", 2, 6), ("movie", 7, 12)]),
    ],
)
def test_words_are_runs_of_pieces(kind, text, expected):
    enc = encoder(kind)
    ids = enc.classify([text]).ids[0].tolist()
    words = words_of.reader_of(enc).words(ids, [True] * len(ids))
    assert [(w.text, w.start, w.stop) for w in words] == expected


def test_byte_level_words_keep_their_space_and_decode_to_themselves():
    enc = encoder("bytes")
    text = "Good play, it don't move (film) well-known boring2 end"
    ids = enc.classify([text]).ids[0].tolist()
    words = words_of.reader_of(enc).words(ids, [True] * len(ids))
    # don't and well-known hang together, boring2 is no word; the first word and the one in brackets have no space of their own.
    assert [(w.text, w.lead) for w in words] == [("Good", ""), ("play", " "), ("it", " "), ("move", " "), ("film", ""), ("end", " ")]
    for w in words:
        assert enc.decode(ids[w.start : w.stop]) == w.lead + w.text
    nothing = words_of.reader_of(enc).words(ids, [False] + [True] * (len(ids) - 1))
    assert [w.text for w in nothing] == ["play", "it", "move", "film", "end"]


def test_substitutes_that_do_not_survive_the_tokenizer_are_left_out():
    enc = encoder("pieces")
    reader = words_of.reader_of(enc)
    word = words_of.Word(1, 2, "good", "")
    # fine: 1 piece, decent: de ##cent, unheard: [UNK], good: the word itself.
    ids = {w: i for i, w in enumerate(VOCABULARY)}
    assert reader.write(word, (ids["good"],), ["fine", "decent", "unheard", "good"]) == ((ids["fine"],), (ids["de"], ids["##cent"]))


def test_capitals_follow_the_word():
    assert [words_of.cased("fine", like) for like in ("good", "Good", "GOOD", "A")] == ["fine", "Fine", "FINE", "Fine"]


def test_the_chat_template_is_not_the_prompt():
    enc = encoder("words")
    enc.tokenizer.chat_template = "{% for m in messages %}the {{ m['content'] }} film {% endfor %}"
    tokens = enc.demos(["good movie", "boring acting is bad"], ["fine", "fine"])
    reader = words_of.reader_of(enc)
    for ids, target, words in zip(tokens.ids.tolist(), tokens.target, (2, 4), strict=True):
        assert reader.content(ids, int(target.int().argmax())) == (1, 1 + words)
    assert reader.content(tokens.ids[0].tolist()[1:], 3) == (0, 0)  # not what the template wrote: hands off
    net = Linear(enc, head="policy")
    adversary = adversaries.Characters(guide="random", steps=0, budget=1.0)
    allowed = ascent.allowed_positions("prompt", tokens)
    (state,) = [adversary.start(perturbation_context(net, tokens, allowed))]
    for row, words in zip(state.rows, (2, 4), strict=True):
        assert row.limit == words


# ------------------------------------------------------------------------------------------------ first order, greedy


def test_alignment_of_pieces():
    half, third = 1 / 2, 1 / 3
    assert search.align(2, 2) == [(0, 0, 1.0), (1, 1, 1.0)]
    assert search.align(1, 3) == [(0, 0, third), (0, 1, third), (0, 2, third)]
    assert search.align(2, 3) == [(0, 0, half), (0, 1, half), (1, 2, 1.0)]
    assert search.align(3, 2) == [(0, 0, 1.0), (1, 0, 1.0), (2, 1, 1.0)]


@pytest.mark.parametrize("seed", range(6))
def test_of_a_linear_model_the_greedy_choice_is_the_optimum(seed, tmp_path):
    # Single pieces, loss a sum over tokens: gains are exact and add up, so the best two words with their best substitutes are optimal.
    table = {"good": ["fine", "great", "poor"], "movie": ["film", "fine"], "bad": ["poor", "dull"]}
    (tmp_path / "l.json").write_text(json.dumps(table))
    net = Linear(encoder("pieces"), seed=seed)
    tokens = net.encoder.classify(["good movie bad"])
    adversary = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), budget=0.6, steps=3)  # ceil(0.6 * 3) = 2 words
    edit, loss, first = run(adversary, perturbation_context(net, tokens), net.losses)
    ids = {w: i for i, w in enumerate(VOCABULARY)}
    value = {w: float(net.model.get_input_embeddings().weight.detach()[ids[w]] @ net.w) for w in VOCABULARY}
    words = ["good", "movie", "bad"]
    every = [c for c in itertools.product(*([w, *table[w]] for w in words)) if sum(a != b for a, b in zip(c, words, strict=True)) <= 2]
    ends = value["[CLS]"] + value["[SEP]"]
    assert float(loss) == pytest.approx(ends + max(sum(value[w] for w in c) for c in every), abs=1e-12)
    assert float(first) == pytest.approx(ends + sum(value[w] for w in words), abs=1e-12)


def test_gains_by_a_slow_loop_with_ragged_substitutes(lexicon):
    net = Linear(encoder("pieces"), dim=4)
    tokens = net.encoder.classify(["good acting , boring movie", "bad movie"])
    adversary = adversaries.Synonyms(lexicon=lexicon, budget=1.0)
    state = adversary.start(perturbation_context(net, tokens))
    gradient = torch.randn(*tokens.ids.shape, 4, dtype=torch.float64)
    embed = net.model.get_input_embeddings()
    ranking = search.rank_moves(state.rows, gradient, embed, "gain")
    sizes = set()
    for b, (row, moves) in enumerate(zip(state.rows, ranking, strict=True)):
        assert len(moves) == sum(len(slot.options) for slot in row.slots)
        assert [m.gain for m in moves] == sorted((m.gain for m in moves), reverse=True)
        for move in moves:
            slot = row.slots[move.slot]
            new, old = slot.options[move.option], row.ids[slot.start : slot.stop]
            sizes.add((len(old), len(new)))
            want = 0.0
            for i, o in enumerate(old):
                stand = (
                    [j for j in range(len(new)) if j * len(old) // len(new) == i] if len(new) >= len(old) else [i * len(new) // len(old)]
                )
                mean = torch.stack([embed.weight[new[j]] for j in stand]).mean(0)
                want += float(gradient[b, slot.start + i] @ (mean - embed.weight[o]).detach())
            assert move.gain == pytest.approx(want, abs=1e-12)
    assert {(1, 1), (1, 2), (2, 1), (2, 2)} <= sizes


def test_order_norm_ranks_words_by_their_gradient(lexicon):
    net = Linear(encoder("pieces"))
    tokens = net.encoder.classify(["good bad movie"])
    state = adversaries.Synonyms(lexicon=lexicon, budget=1.0, order="norm").start(perturbation_context(net, tokens))
    gradient = torch.zeros(1, 5, 3, dtype=torch.float64)
    gradient[0, 1:4, 0] = torch.tensor([0.1, -3.0, 2.0])  # [CLS] good bad movie [SEP]
    (moves,) = search.rank_moves(state.rows, gradient, net.model.get_input_embeddings(), "norm")
    assert [slot for slot, _ in itertools.groupby(m.slot for m in moves)] == [1, 2, 0]


def bilinear(net, good, bad):
    """Losses by which single words are told apart: word -> value, and a pair that spoils it."""
    ids = {w: i for i, w in enumerate(VOCABULARY)}

    def losses(edit):
        value = torch.zeros(len(edit.tokens.ids), dtype=torch.float64)
        for b, row in enumerate(edit.tokens.ids.tolist()):
            value[b] = sum(v for w, v in good.items() if ids[w] in row) - sum(
                v for pair, v in bad.items() if all(ids[w] in row for w in pair)
            )
        return value + (edit.add * edit.tokens.mask[..., None]).sum(1) @ net.w * 0 + (edit.add[:, 1:3, 0] * torch.tensor([2.0, 1.0])).sum(1)

    return losses


def test_what_does_not_raise_the_loss_is_taken_back(tmp_path):
    # good -> fine and movie -> film each raise the loss by 1, both together lower it by 3.
    # Budget 2 over one more pass: asked together, refused; with two more, first both, then the better one alone.
    (tmp_path / "l.json").write_text(json.dumps({"good": ["fine"], "movie": ["film"]}))
    net = Linear(encoder("pieces"))
    weight = net.model.get_input_embeddings().weight.data
    ids = {w: i for i, w in enumerate(VOCABULARY)}
    weight[:] = 0
    weight[[ids["fine"], ids["film"]], 0] = 1.0  # gains 2 and 1 under the gradient (2, 1) at the two words
    losses = bilinear(net, {"fine": 1.0, "film": 1.0}, {("fine", "film"): 5.0})
    tokens = net.encoder.classify(["good movie"])
    for steps, text, gain in ((2, "good movie", 0.0), (3, "good movie", 0.0), (4, "fine movie", 1.0)):
        adversary = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), budget=1.0, steps=steps)
        edit, loss, first = run(adversary, perturbation_context(net, tokens), losses)
        if steps == 3:  # ceil(2 / 2) = 1 word per pass: fine is kept, then film is refused
            text, gain = "fine movie", 1.0
        assert texts_of(net, edit) == [text]
        assert float(loss - first) == gain


def test_a_move_that_failed_is_not_tried_again(tmp_path):
    # All of good's substitutes look good to first order, only the third is: evaluations clean, 1, 2, 3.
    (tmp_path / "l.json").write_text(json.dumps({"good": ["fine", "great", "film"]}))
    net = Linear(encoder("pieces"))
    ids = {w: i for i, w in enumerate(VOCABULARY)}
    weight = net.model.get_input_embeddings().weight.data
    weight[:] = 0
    weight[ids["fine"], 0], weight[ids["great"], 0], weight[ids["film"], 0] = 3.0, 2.0, 1.0
    losses = bilinear(net, {"fine": -1.0, "great": -1.0, "film": 1.0}, {})
    tokens = net.encoder.classify(["good movie"])
    for steps, text in ((2, "good movie"), (3, "good movie"), (4, "film movie")):
        adversary = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), budget=0.5, steps=steps)
        assert texts_of(net, run(adversary, perturbation_context(net, tokens), losses)[0]) == [text]


def test_a_zero_gradient_still_moves(lexicon):
    # The divergence from the clean row is zero there, and so is its gradient; any change raises it.
    net = Linear(encoder("pieces"))
    tokens = net.encoder.classify(["good movie", "a bad movie"])

    def losses(edit):
        moved = net.losses(edit) - net.losses(Edit(torch.zeros(*tokens.ids.shape, 3, dtype=torch.float64), tokens=tokens))
        return moved**2

    adversary = adversaries.Synonyms(lexicon=lexicon, budget=0.5, steps=2)
    _, loss, first = run(adversary, perturbation_context(net, tokens), losses)
    assert torch.equal(first, torch.zeros_like(first))
    assert (loss > 0).all()


# -------------------------------------------------------------------------------------------- contract of the family


def made(kind, lexicon, **fields):
    options = {"budget": 0.5, "steps": 5} | fields
    if kind == "synonyms":
        return adversaries.Synonyms(lexicon=lexicon, **options)
    return adversaries.Characters(**options)


every_kind = pytest.mark.parametrize("kind", ["synonyms", "characters"])
every_guide = pytest.mark.parametrize("guide", ["gradient", "random"])
every_tokenizer = pytest.mark.parametrize("tokenizer", ["pieces", "bytes", "words", "characters"])


@every_kind
@every_guide
@every_tokenizer
def test_contract(kind, guide, tokenizer, lexicon):
    net = Linear(encoder(tokenizer))
    tokens = net.encoder.classify([*TEXTS, "boring movie", "not"])
    allowed = tokens.mask.clone()
    allowed[3] = False  # a row that is not attacked
    allowed[:, 4:6] = False
    adversary = made(kind, lexicon, guide=guide)
    assert isinstance(adversary, Adversary)
    context = perturbation_context(net, tokens, allowed)
    edit, loss, first = run(adversary, context, net.losses)
    assert (loss >= first).all()
    if guide == "gradient" and (kind == "synonyms" or tokenizer in ("characters", "bytes")):  # small vocabularies know few misspellings
        assert (loss > first).any()
    words = words_of.reader_of(net.encoder)
    for b, new in enumerate(rows_of(edit)):
        old = tokens.ids[b][tokens.mask[b]].tolist()
        # Outside allowed words nothing changes, and origin leads to it.
        for t, token in enumerate(old):
            if not allowed[b, t]:
                assert new[edit.origin[b, t]] == token
        assert (edit.origin[b, len(old) :] == -1).all()
        all_words = words.words(old, allowed[b, : len(old)].tolist())
        inside = {t for w in all_words for t in range(w.start, w.stop)}
        stay = [int(edit.origin[b, t]) for t in range(len(old)) if t not in inside]
        assert [new[t] for t in stay] == [token for t, token in enumerate(old) if t not in inside]
        # At most the budget of words; they are those whose pieces differ.
        changed = [w for w in all_words if not same(edit, b, w, old, new)]
        assert len(changed) <= -(-len(all_words) // 2)
        # What the model reads is what the changed text encodes to.
        text = net.encoder.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if net.encoder.tokenizer.unk_token_id not in new:
            assert net.encoder.classify([text]).ids[0].tolist() == new
    assert torch.equal(edit.tokens.mask, edit.tokens.ids != net.encoder.pad_id) or tokenizer != "pieces"
    assert rows_of(edit)[3] == tokens.ids[3][tokens.mask[3]].tolist()


def same(edit, b, word, old, new):
    places = edit.origin[b, word.start : word.stop].tolist()
    after = edit.origin[b, word.stop] if word.stop < len(old) else len(new)
    return -1 not in places and [new[p] for p in places] == old[word.start : word.stop] and int(after) - places[0] == word.stop - word.start


@every_kind
@every_guide
@pytest.mark.parametrize("tokenizer", ["pieces", "bytes"])
def test_does_not_depend_on_padding_order_or_split(kind, guide, tokenizer, lexicon):
    net = Linear(encoder(tokenizer))
    tokens = net.encoder.classify(TEXTS)
    adversary = made(kind, lexicon, guide=guide)
    whole = rows_of(run(adversary, perturbation_context(net, tokens), net.losses)[0])
    wide = rows_of(run(adversary, perturbation_context(net, tokens.fit(tokens.ids.shape[1] + 3)), net.losses)[0])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = rows_of(run(adversary, perturbation_context(net, tokens.index(order), seeds=order), net.losses)[0])
    alone = rows_of(run(adversary, perturbation_context(net, tokens.index(torch.tensor([2])), seeds=[2]), net.losses)[0])
    assert whole == wide
    assert [whole[i] for i in order] == moved
    assert whole[2] == alone[0]


@every_kind
def test_random_edits_are_a_function_of_the_key(kind, lexicon):
    net = Linear(encoder("bytes"))
    tokens = net.encoder.classify(["good bad movie acting boring"] * 12)
    adversary = made(kind, lexicon, guide="random", steps=0, budget=0.4)
    state = lambda seeds: texts_of(net, adversary.ask(adversary.start(perturbation_context(net, tokens, seeds=seeds)))["embedding"])  # noqa: E731
    one, again, other = state(range(12)), state(range(12)), state(range(100, 112))
    assert one == again
    assert one != other
    assert len(set(one)) > 6
    # Unseen, but within the budget: exactly ceil(0.4 * 5) = 2 of 5 words differ (misspellings cannot split words here).
    for text in one:
        assert sum(a != b for a, b in zip(text.split(), "good bad movie acting boring".split(), strict=True)) == 2


def test_all_substitutes_are_drawn_about_equally_often(tmp_path):
    # Two words of two and one substitutes, budget one word: each word with 1/2, each substitute of the first with 1/4.
    (tmp_path / "l.json").write_text(json.dumps({"good": ["fine", "great"], "movie": ["film"]}))
    net = Linear(encoder("words"))
    net.encoder = Encoder(scratch.train_tokenizer("words", ["good movie fine great film"]))
    tokens = net.encoder.classify(["good movie"] * 800)
    adversary = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), guide="random", steps=0, budget=0.5)
    texts = texts_of(net, adversary.ask(adversary.start(perturbation_context(net, tokens)))["embedding"])
    # Four standard deviations of a count with p = 1/2 over 800 draws: 4 sqrt(200) = 57; p = 1/4: 4 sqrt(150) = 49.
    assert abs(texts.count("good film") - 400) <= 57
    assert abs(texts.count("fine movie") - 200) <= 49
    assert set(texts) == {"good film", "fine movie", "great movie"}


def test_rows_never_outgrow_the_model(lexicon):
    # Clean rows of 6 tokens; good -> decent and movie -> picture cost one token each. With max_length 7 one of them fits.
    net = Linear(encoder("pieces"))
    tokens = net.encoder.classify(["good , movie ."])
    sizes = {}
    for length in (6, 7, 8):
        net.encoder.max_length = length
        lengths = []
        for seed in range(30):
            adversary = made("synonyms", lexicon, guide="random", steps=0, budget=1.0)
            lengths.append(len(rows_of(adversary.ask(adversary.start(perturbation_context(net, tokens, seeds=[seed])))["embedding"])[0]))
        sizes[length] = max(lengths)
    assert sizes == {6: 6, 7: 7, 8: 8}


def test_misspellings():
    first, last = (lambda below: 0), (lambda below: below - 1)
    assert [EDITS[e]("movie", first) for e in EDITS] == ["omvie", "ovie", "mnovie", "novie", "m\u043evie"]
    assert [EDITS[e]("movie", last) for e in EDITS] == ["movei", "movi", "movier", "movir", "movi\u0435"]
    assert (_near("a"), _near("P"), _near("?")) == ("s", "O", "")
    assert EDITS["swap"]("aa", first) == "aa"
    adversary = adversaries.Characters(edits=("swap",), candidates=3)
    # The first letter stays: only "ovie" is misspelt; a word below four letters is left alone.
    assert adversary.misspell("movie", first) == ["mvoie"]
    assert adversary.misspell("not", first) == []
    assert adversaries.Characters(edits=("swap",), keep_first=False).misspell("movie", first) == ["omvie"]


# ----------------------------------------------------------------------------------------------- on a real network

LETTERS = {"a": ["d", "h"], "b": ["e", "i"], "c": ["f", "j"], "g": ["k", "a"], "e": ["b"], "d": ["c"]}  # over the words of made.network


@pytest.fixture
def letters(tmp_path):
    path = tmp_path / "letters.json"
    path.write_text(json.dumps(LETTERS))
    return str(path)


def on(net, adversary, tokens, key=("update",), memory=None):
    return ascent.perturbation_context(net, adversary, "words", tokens, [("s", tokens)], key, memory)


def test_outputs_of_changed_rows_come_back_to_their_original_positions(tmp_path):
    # Pieces are characters: the first row loses two before its targets, the last one gains two.
    (tmp_path / "l.json").write_text(json.dumps({"ab": ["g"], "cd": ["k", "efgh"], "e": ["abc"]}))
    texts = ["ab cd e", "abcdefghijk :"]
    spec = "scratch:tiny-gpt2?n_embd=32"
    net = load(spec, tokenizer={"kind": "characters"}, texts=texts, max_length=32, dtype="float64").eval()
    tokens = net.encoder.demos(["ab ab :", "cd e ab :", "e :"], ["fgh", "i", "jk jk"])
    adversary = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), guide="random", steps=0, budget=1.0, where="prompt")
    lengths = set()
    for seed in range(4):
        edit = adversary.ask(adversary.start(on(net, adversary, tokens, key=(seed,))))["embedding"]
        got = net(tokens, {"logprobs"}, {"embedding": edit}).logprobs
        for b, row in enumerate(rows_of(edit)):
            start = int(edit.tokens.target[b].int().argmax())
            end = int(tokens.target[b].sum())
            lengths.add(len(row) - int(tokens.lengths[b]))
            assert row[start:] == tokens.ids[b][tokens.target[b]].tolist()  # the response and its end are untouched
            alone = pad([row], [start], net.encoder.pad_id)
            want = net(alone, {"logprobs"}).logprobs[0, start : start + end]
            torch.testing.assert_close(got[b][tokens.target[b]], want, rtol=0, atol=1e-12)
            assert not got[b][~tokens.target[b]].detach().any()
    assert {-2, 2} <= lengths


def test_targets_of_a_policy_stay_wherever_the_threat_points(letters):
    net = network()
    rows = demos(net)
    for place in ("all", "response"):
        adversary = adversaries.Synonyms(lexicon=letters, guide="random", steps=0, budget=1.0, where=place)
        edit = adversary.ask(adversary.start(on(net, adversary, rows.tokens)))["embedding"]
        changed = edit.tokens.ids != rows.tokens.ids
        assert not (changed & rows.tokens.target).any()
        assert bool(changed.any()) == (place == "all")


def test_a_step_on_words_raises_the_loss_and_training_lowers_it(letters):
    net = network("classifier")
    rows = {"s": labels(net)}
    adversary = {"words": adversaries.Synonyms(lexicon=letters, budget=0.5, steps=4)}
    terms = {"c": Classify(source="s", view="words")}
    _, logs = update(learner(net), terms, rows, adversary)
    assert logs["words/gain"] > 1e-6  # far above rounding; an untrained encoder hardly looks at its input
    assert logs["c/loss"] == pytest.approx(logs["words/loss_end"], abs=1e-12)
    clean = update(learner(net), {"c": Classify(source="s")}, rows)[1]["c/loss"]
    assert logs["words/loss_start"] == pytest.approx(clean, abs=1e-12)
    runtime = learner(net, learning_rate=1e-2)
    losses = []
    for i in range(12):
        losses.append(runtime.update(plan("policy", terms, adversary, []), rows, {}, budget=10_000, key=(i,))["c/loss"])
    assert losses[-1] < 0.7 * losses[0]


def test_every_split_finds_the_same_words_and_the_same_gradient(letters):
    net = network()
    rows = {"chat": demos(net), "taste": pairs(net)}
    terms = {"a": SFT(source="chat", view="words"), "b": DPO(source="taste", view="words"), "c": SFT(source="chat")}
    adversary = {"words": adversaries.Synonyms(lexicon=letters, budget=0.7, steps=3, where="prompt")}
    whole, logs = update(learner(net), terms, rows, adversary)
    assert logs["words/gain"] > 1e-4
    for budget in (24, 60):
        split, again = update(learner(net), terms, rows, adversary, budget=budget)
        assert float((split - whole).abs().max() / whole.abs().max()) <= 1e-12
        assert again["words/loss_end"] == pytest.approx(logs["words/loss_end"], rel=1e-12)


def test_a_divergence_between_clean_and_changed_rows(letters):
    # Consistency reads both views at the original positions; by hand from two forwards of two rows each.
    net = network()
    rows = demos(net)
    adversary = adversaries.Synonyms(lexicon=letters, budget=0.5, steps=3, where="prompt")
    _, logs = update(learner(net), {"c": Consistency(source="chat", view="words", output="tokens")}, {"chat": rows}, {"words": adversary})
    assert logs["words/loss_start"] == pytest.approx(0, abs=1e-12)
    assert logs["c/loss"] == logs["words/gain"] > 1e-6


def test_with_the_real_word_pieces(minilm, lexicon):
    encoder = load(minilm, head="classifier", options={"num_labels": 2}).encoder
    net = Linear(encoder)
    tokens = encoder.classify(["A boring movie, and bad acting; it doesn't move.", "Unbelievably good performance!"])
    texts = [
        [w.text for w in words_of.reader_of(encoder).words(ids, mask)]
        for ids, mask in zip(tokens.ids.tolist(), tokens.mask.tolist(), strict=True)
    ]
    assert texts == [["a", "boring", "movie", "and", "bad", "acting", "it", "move"], ["unbelievably", "good", "performance"]]
    # Multi-piece misspellings: as in the contract, what the model reads is what the changed text encodes to.
    adversary = adversaries.Characters(budget=1.0, steps=4, edits=("swap", "homoglyph", "keyboard"))
    edit, loss, first = run(adversary, perturbation_context(net, tokens), net.losses)
    assert (loss > first).all()
    for row, text in zip(rows_of(edit), texts_of(net, edit), strict=True):
        assert encoder.classify([text]).ids[0].tolist() == row


# ---------------------------------------------------------------------------------------------------------- mixed


def mixed(letters, probability, radius=0.3, **fields):
    words = adversaries.Synonyms(lexicon=letters, budget=0.7, steps=3, where="prompt")
    around = adversaries.PGD(radius=radius, steps=3, where="prompt", **fields)
    return adversaries.Mixed(discrete=words, continuous=around, discrete_probability=probability)


def test_mixed_is_its_halves_at_the_ends(letters):
    net = network()
    rows, terms = {"chat": demos(net)}, {"a": SFT(source="chat", view="v")}
    halves = mixed(letters, 0.5)
    alone = update(learner(net), terms, rows, {"v": halves.continuous})
    never = update(learner(net), terms, rows, {"v": mixed(letters, 0.0)})
    torch.testing.assert_close(never[0], alone[0], rtol=0, atol=1e-14)
    assert never[1]["a/loss"] == pytest.approx(alone[1]["a/loss"], abs=1e-14)
    words = update(learner(net), terms, rows, {"v": halves.discrete})
    always = update(learner(net), terms, rows, {"v": mixed(letters, 1.0, radius=0.0)})
    torch.testing.assert_close(always[0], words[0], rtol=0, atol=1e-14)
    together = update(learner(net), terms, rows, {"v": mixed(letters, 1.0, keep="best", random_start=False)})
    assert together[1]["a/loss"] > max(words[1]["a/loss"], alone[1]["a/loss"])
    assert halves.steps == 6


@pytest.mark.parametrize("sites", [("embedding",), ("layer:0",), ("embedding", "layer:1")])
def test_mixed_split_and_sites(letters, sites):
    net = network()
    rows, terms = {"chat": demos(net)}, {"a": SFT(source="chat", view="v")}
    adversary = {"v": mixed(letters, 0.5, sites=sites)}
    whole, logs = update(learner(net), terms, rows, adversary)
    split, _ = update(learner(net), terms, rows, adversary, budget=24)
    assert float((split - whole).abs().max() / whole.abs().max()) <= 1e-12
    assert logs["v/gain"] > 1e-3


def test_mixed_around_masked_words():
    # Any adversary that replaces words will do for the discrete half: here the rows are those it makes by itself, from its own streams.
    net = network()
    rows, terms = {"chat": demos(net)}, {"a": SFT(source="chat", view="v")}
    masked = adversaries.Mask(rate=0.5, replace="unknown", where="prompt")
    adversary = adversaries.Mixed(
        discrete=masked, continuous=adversaries.PGD(radius=0.3, steps=3, where="prompt"), discrete_probability=1.0
    )
    context = on(net, adversary, rows["chat"].tokens)
    streams = [torch.Generator().manual_seed(_derived_seed(g.initial_seed())) for g in context.generators]
    for stream in streams:
        torch.rand((), generator=stream)  # the coin
    want = masked.start(replace(context, generators=streams)).tokens.ids
    got = adversary.ask(adversary.start(context))["embedding"]
    assert torch.equal(got.tokens.ids, want)
    assert (want != rows["chat"].tokens.ids).any()
    assert got.add.abs().sum() > 0  # the random start of PGD
    assert update(learner(net), terms, rows, {"v": adversary})[1]["v/gain"] > 0


def test_around_a_changed_row_the_delta_may_move_its_words_only(tmp_path):
    # "ab cd :" with "ab" -> "hij": the pieces h, i, j inherit what "ab" was allowed; " cd" follows one place later.
    (tmp_path / "l.json").write_text(json.dumps({"ab": ["hij"]}))
    net = load("scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "characters"}, texts=["abcdefghijk :"], max_length=32, dtype="float64")
    tokens = net.encoder.demos(["ab cd :"], ["fgh"])
    words = adversaries.Synonyms(lexicon=str(tmp_path / "l.json"), guide="random", steps=0, budget=1.0, where="prompt")
    allowed = torch.zeros_like(tokens.mask)
    allowed[0, [0, 1, 3]] = True  # a, b and c
    context = replace(on(net, words, tokens), allowed=allowed)
    edit = words.ask(words.start(context))["embedding"]
    assert net.encoder.decode(rows_of(edit)[0]) == "hij cd :fgh"
    assert move_allowed(allowed, edit)[0].nonzero().squeeze(1).tolist() == [0, 1, 2, 4]
    assert edit.origin[0, :4].tolist() == [0, 1, 3, 4]


def test_the_coin_is_a_row_s_own(letters):
    net = network()
    tokens = net.encoder.demos(["a b c :"] * 400, ["d"] * 400)
    words = adversaries.Synonyms(lexicon=letters, guide="random", steps=0, budget=1.0, where="prompt")
    adversary = adversaries.Mixed(discrete=words, continuous=adversaries.PGD(radius=0.1, steps=1, where="prompt"), discrete_probability=0.3)
    context = on(net, adversary, tokens)
    ids = adversary.ask(adversary.start(context))["embedding"].tokens.ids
    changed = (ids != tokens.ids).any(1)
    # 400 coins with p = 0.3: mean 120, standard deviation 9.2; four of them.
    assert 83 <= int(changed.sum()) <= 157
    subset = torch.arange(0, 400, 7)
    part = replace(on(net, adversary, tokens.index(subset)))
    assert torch.equal(adversary.ask(adversary.start(part))["embedding"].tokens.ids, ids[subset])


# --------------------------------------------------------------------------------------------------- refusal direction


@pytest.fixture
def contrast(tmp_path):
    for name, lines in {"harmful": ["a b", "a c d", "b a a"], "harmless": ["e f", "g", "h i j k"]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": line}) for line in lines))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("harmful", "harmless")}


def test_the_direction_is_the_difference_of_means_at_the_last_prompt_token(contrast):
    # A slow loop: one unpadded prompt at a time.
    net = network(options={"dropout": 0.3}).train()
    means = []
    for texts in (["a b", "a c d", "b a a"], ["e f", "g", "h i j k"]):
        ends = []
        for text in texts:
            tokens = pad([net.encoder.prompt(text)], [0], net.encoder.pad_id)
            with torch.no_grad(), perturb.without_dropout(net), perturb.captured(net.backbone, ["layer:0", "layer:1"]) as hidden:
                net(tokens, frozenset())
            ends.append({site: h[0, -1] for site, h in hidden.items()})
        means.append({site: torch.stack([e[site] for e in ends]).mean(0) for site in ends[0]})
    want = {site: means[0][site] - means[1][site] for site in means[0]}
    modes = [m.training for m in net.modules()]
    adversary = adversaries.RefusalDirection(**contrast, last=1.0)
    tokens = demos(net).tokens
    edits = adversary.ask(adversary.start(on(net, adversary, tokens)))
    assert set(edits) == {"layer:0", "layer:1"}
    for site, edit in edits.items():
        torch.testing.assert_close(edit.ablate, want[site] / want[site].norm(), rtol=0, atol=1e-12)
    one = adversaries.RefusalDirection(**contrast, layer=1, last=1.0)
    shared = one.ask(one.start(on(net, one, tokens)))
    assert all(torch.equal(edit.ablate, edits["layer:1"].ablate) for edit in shared.values())
    assert set(adversaries.RefusalDirection(**contrast, last=0.5).measure(net, random.Random(0))) == {"layer:1"}
    assert [m.training for m in net.modules()] == modes
    torch.testing.assert_close(
        last_states(net, ["a b", "a c d", "b a a"], ["layer:1"], batch_size=2)["layer:1"], means[0]["layer:1"], rtol=0, atol=1e-12
    )


def test_ablation_takes_the_direction_out_of_the_prompt_and_nothing_else(contrast):
    net = network().eval()
    tokens = demos(net).tokens
    adversary = adversaries.RefusalDirection(**contrast, last=0.5, where="prompt", probability=1.0)
    edits = adversary.ask(adversary.start(on(net, adversary, tokens)))
    with torch.no_grad():
        clean = net(tokens, {"logprobs", "hidden:layer:1"})
        ablated = net(tokens, {"logprobs", "hidden:layer:1"}, edits)
    r, prompt = edits["layer:1"].ablate, tokens.mask & ~tokens.target
    before, after = clean.hidden["layer:1"], ablated.hidden["layer:1"]
    assert float((after @ r)[prompt].abs().max()) <= 1e-12 < float((before @ r)[prompt].abs().min())
    torch.testing.assert_close(after[prompt], (before - (before @ r)[..., None] * r)[prompt], rtol=0, atol=1e-12)
    assert torch.equal(after[~prompt], before[~prompt])
    # Only the first token of a response is predicted from a prompt position of the last block.
    moved = (ablated.logprobs - clean.logprobs).abs() > 1e-9
    assert torch.equal(moved.sum(1), torch.ones(len(moved), dtype=torch.long))


def test_the_direction_is_measured_again_after_every_so_many_updates(contrast):
    net = network()
    adversary, rows = adversaries.RefusalDirection(**contrast, every=2, probability=1.0), {"chat": demos(net)}
    runtime = learner(net, learning_rate=0.05)
    directions = []
    for i in range(5):
        runtime.update(plan("policy", {"a": SFT(source="chat", view="v")}, {"v": adversary}, []), rows, {}, budget=24, key=(i,))
        directions.append({site: r.clone() for site, r in runtime.memory["v"]["directions"].items()})
    changed = [not torch.equal(a["layer:1"], b["layer:1"]) for a, b in itertools.pairwise(directions)]
    assert changed == [False, True, False, True]
    assert runtime.memory["v"]["age"] == 1


def test_half_of_the_rows_are_ablated(contrast):
    net = network()
    tokens = net.encoder.demos(["a b c :"] * 400, ["d"] * 400)
    adversary = adversaries.RefusalDirection(**contrast)
    edits = adversary.ask(adversary.start(on(net, adversary, tokens)))
    mask = next(iter(edits.values())).where
    assert torch.equal(mask.any(1), mask.all(1))
    assert abs(int(mask.any(1).sum()) - 200) <= 40  # four standard deviations of 400 fair coins


def test_a_training_step_on_the_refusal_view_is_one_forward(contrast):
    net = network()
    rows, terms = {"chat": demos(net)}, {"a": SFT(source="chat", view="v")}
    adversary = {"v": adversaries.RefusalDirection(**contrast, probability=1.0, every=9)}
    runtime = learner(net)
    whole, logs = update(runtime, terms, rows, adversary)
    before = net.num_forwards
    again, _ = update(runtime, terms, rows, adversary, key=("other",))
    assert net.num_forwards == before + 1
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-14)  # the direction is kept, and all rows are ablated
    clean = update(learner(net), {"a": SFT(source="chat")}, rows)
    assert logs["a/loss"] != pytest.approx(clean[1]["a/loss"], rel=1e-6)
    split, _ = update(runtime, terms, rows, adversary, budget=24)
    assert float((split - whole).abs().max() / whole.abs().max()) <= 1e-12


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "there is a list; it takes a JSON object"),
        (b'{"good": "fine"}', "the entry 'good' is not a list of words"),
        (b'{"good": ["fine", 3]}', "the entry 'good' is not a list of words"),
        (b"good: fine", "cannot be read as JSON"),
    ],
)
def test_a_lexicon_of_another_shape_is_refused(content, message, tmp_path):
    path = tmp_path / "l.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        _lexicon.read(str(path), "synonyms.lexicon")
    assert str(path) in str(error.value)


def test_a_lexicon_is_found_read_and_read_again_when_it_changes(tmp_path):
    path = tmp_path / "l.json"
    with pytest.raises(ConfigError, match=r"synonyms\.lexicon: there is no file '.*l\.json'"):
        _lexicon.read(str(path), "synonyms.lexicon")
    # WordNet's shape: lists by part of speech take turns; a word is no substitute of itself; nothing is left out but the empty.
    path.write_text(json.dumps({"play": {"n": ["game", "act"], "v": ["perform", "game"]}, "good": ["good", "fine"], "the": []}))
    assert _lexicon.read(str(path), "here") == {"play": ("game", "perform", "act"), "good": ("fine",)}
    (tmp_path / "l.json.gz").write_bytes(b"not gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        _lexicon.read(str(tmp_path / "l.json.gz"), "here")


PGD = adversaries.PGD(radius=0.1)
WORDS = adversaries.Characters()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adversaries.Synonyms(lexicon="l", share="group"), r"synonyms\.share: 'group' given; words are replaced row by row"),
        (lambda: adversaries.Synonyms(lexicon="l", steps=1), r"synonyms\.steps: 1 given; at least 2 evaluations"),
        (lambda: adversaries.Synonyms(lexicon="l", steps=0), r"synonyms\.steps: 0 given"),
        (lambda: adversaries.Synonyms(lexicon="l", guide="gradients"), "Did you mean 'gradient'"),
        (lambda: adversaries.Synonyms(lexicon="l", order="norms"), "Did you mean 'norm'"),
        (lambda: adversaries.Synonyms(lexicon="l", budget=1.5), r"synonyms\.budget: 1\.5 given"),
        (lambda: adversaries.Synonyms(lexicon="l", candidates=0), r"synonyms\.candidates: 0 given"),
        (lambda: adversaries.Characters(edits=("swop",)), "Did you mean 'swap'"),
        (lambda: adversaries.Characters(edits=()), r"characters\.edits"),
        (lambda: adversaries.Characters(min_length=1), r"characters\.min_length: 1 given"),
        (lambda: adversaries.Mixed(discrete=PGD, continuous=PGD), r"mixed\.discrete: 'pgd' replaces no words"),
        (lambda: adversaries.Mixed(discrete=WORDS, continuous=WORDS), r"mixed\.continuous: 'characters' given"),
        (lambda: adversaries.Mixed(discrete=WORDS, continuous=replace(PGD, warm=True)), r"keep nothing by row \(warm: false\)"),
        (lambda: adversaries.Mixed(discrete=WORDS, continuous=replace(PGD, where="prompt")), "where that of the discrete half, 'all'"),
        (lambda: adversaries.Mixed(discrete=WORDS, continuous=replace(PGD, probability=0.5)), "set them on mixed itself"),
        (lambda: adversaries.Mixed(discrete=WORDS, continuous=PGD, discrete_probability=2), r"discrete_probability: 2 given"),
        (lambda: adversaries.RefusalDirection(harmful="a", harmless="b", last=0), r"refusal\.last: 0 given"),
        (lambda: adversaries.RefusalDirection(harmful="a", harmless="b", every=0), r"refusal\.every: 0 given"),
    ],
)
def test_refused_in_a_sentence(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_a_network_nothing_can_be_replaced_or_measured():
    bare = PerturbationContext(
        shapes={"embedding": (4, 3)}, allowed=torch.ones(1, 4, dtype=torch.bool), radius=0.0, dtype=torch.float64, generators=[]
    )
    for adversary in (WORDS, adversaries.RefusalDirection(harmful="a", harmless="b")):
        with pytest.raises(ConfigError, match="network"):
            adversary.start(bare)


def test_prompts_of_one_mean_have_no_direction_between_them(contrast):
    net = network()
    adversary = adversaries.RefusalDirection(harmful=contrast["harmful"], harmless=contrast["harmful"])
    with pytest.raises(ConfigError, match="no direction between them"):
        adversary.start(on(net, adversary, demos(net).tokens))


def test_they_are_built_from_a_configuration(lexicon, contrast):
    described = {
        "words": {"kind": "synonyms", "lexicon": lexicon, "budget": 0.2, "keep": ["good"]},
        "typos": {"kind": "characters", "edits": ["swap", "homoglyph"], "guide": "random", "steps": 0},
        "both": {"kind": "mixed", "discrete": {"kind": "synonyms", "lexicon": lexicon}, "continuous": {"kind": "pgd", "radius": 0.1}},
        "direction": {"kind": "refusal", **contrast, "every": 8},
    }
    built = config.sections({"adversaries": described})["adversaries"]
    assert built["words"] == adversaries.Synonyms(lexicon=lexicon, budget=0.2, keep=("good",))
    assert built["both"].discrete == adversaries.Synonyms(lexicon=lexicon)
    with pytest.raises(ConfigError, match=r"adversaries\.words: no field of Synonyms 'radius'"):
        config.sections({"adversaries": {"words": {"kind": "synonyms", "lexicon": lexicon, "radius": 0.1}}})


def test_show_says_what_they_do():
    words = adversaries.Synonyms(lexicon="l", budget=0.25)
    mixed = adversaries.Mixed(discrete=words, continuous=adversaries.PGD(radius=0.1, steps=3))
    assert describe(words) == "synonyms for at most 0.25 of the words, by gradient, all tokens, 4 steps, dropout off"
    assert describe(mixed).startswith(
        "with probability 0.5 synonyms for at most 0.25 of the words, by gradient, around it L2 ball per token"
    )
    assert "radius 0.1 x mean embedding norm, all tokens, 7 steps" in describe(mixed)
    assert describe(adversaries.RefusalDirection(harmful="a", harmless="b", layer=3)).startswith(
        "layer:3's refusal direction taken out of the last 0.75"
    )


def test_words_in_keep_stay(lexicon):
    net = Linear(encoder("pieces"))
    tokens = net.encoder.classify(["good movie"] * 30)
    adversary = adversaries.Synonyms(lexicon=lexicon, guide="random", steps=0, budget=1.0, keep=("good",))
    texts = texts_of(net, adversary.ask(adversary.start(perturbation_context(net, tokens)))["embedding"])
    assert all(text.startswith("good ") and text != "good movie" for text in texts)
