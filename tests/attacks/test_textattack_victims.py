"""TextAttack's recipes on real classifiers, and each of its known faults that the adapter has to work around."""

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import victims
from torch.nn import functional as F

from advalign.attacks._gradients import embedding_gradients
from advalign.attacks._textattack_import import load as load_textattack
from advalign.attacks.textattack import RECIPES, TextAttack
from advalign.errors import ConfigError
from advalign.interfaces import Target
from advalign.models import Network
from advalign.models.perturb import without_dropout
from advalign.targets import ClassifierTarget
from advalign.types import Budget, Example

pytestmark = pytest.mark.skipif(importlib.util.find_spec("textattack") is None, reason="the extra 'textattack' is not installed")

NAMED = Example(id="names", prompt="Robert Smith saw the bad dull movie in Chicago in 2001", label=0)


@pytest.fixture(scope="module")
def adapter() -> Any:
    return load_textattack()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tables")
    good, bad = list(victims.GOOD), list(victims.BAD)
    swaps = {a: [b] for a, b in (*zip(good, bad, strict=True), *zip(bad, good, strict=True))}
    (folder / "near.json").write_text(json.dumps(swaps))
    (folder / "synonyms.json").write_text(json.dumps({word: {"a": synonyms} for word, synonyms in swaps.items()}))
    return {"lexicon": str(folder / "near.json"), "synonyms": str(folder / "synonyms.json")}


def recipe(name: str, tables: dict[str, str], minilm: str, **changes: Any) -> TextAttack:
    fields = {**tables, "encoder": minilm, "masked_lm": minilm, "similarity": -1.0}
    if name == "checklist":
        del fields["lexicon"]
    return TextAttack(recipe=name, **{**fields, **changes})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_on_a_trained_network_and_counts_what_it_sends(name: str, tables: dict[str, str], minilm: str) -> None:
    """All 14, offline. A text is counted once, a gradient once (fault 3: TextAttack counts what it finds in its cache, too)."""
    target = ClassifierTarget(victims.classifier())
    examples = [*victims.sentences(2), NAMED]
    proposals = recipe(name, tables, minilm).propose(target, examples, Budget(queries=40), random.Random(0))
    spent = [int(word) for p in proposals for word in p.note.split() if word.isdigit()]
    assert target.num_queries <= 3 * 40
    if name != "input-reduction":  # its note holds two numbers of words as well
        assert sum(spent) + sum("skipped" in p.note for p in proposals) == target.num_queries
    assert target.num_gradients == (3 if name == "a2t" else 0) - (sum("skipped" in p.note for p in proposals) if name == "a2t" else 0)
    if name in ("deepwordbug", "pwws", "textfooler", "leap"):
        logits = target.predict([p.text or e.prompt for p, e in zip(proposals, examples, strict=True)])
        successes = [i for i, p in enumerate(proposals) if p.text is not None]
        assert successes
        assert all(int(logits[i].argmax()) != examples[i].label for i in successes)


# ------------------------------------------------------------------------------------ one fault, one test


def test_no_row_is_padded_beyond_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 1: TextAttack's wrapper pads every batch to the tokenizer's maximum."""
    widths: list[tuple[int, int]] = []
    forward = Network.forward

    def spy(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        widths.append((tokens.ids.shape[1], int(tokens.lengths.max())))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Network, "forward", spy)
    TextAttack().propose(ClassifierTarget(victims.classifier()), victims.sentences(4), Budget(), random.Random(0))
    assert len(widths) > 4
    assert all(width == longest for width, longest in widths)


def test_masked_language_models_read_no_padding_either(adapter: Any, tables: dict[str, str], minilm: str) -> None:
    attack = recipe("bae", tables, minilm)
    built = adapter.build("BAEGarg2019", ClassifierTarget(victims.classifier()), attack._resources(), {})
    batch = built.transformation._encode_text(["the movie was [MASK]", "the movie was [MASK] and dull"])
    assert batch["input_ids"].shape == (2, 8)  # [CLS] the movie was [MASK] and dull [SEP]


def test_tables_that_the_release_lacks_are_replaced(adapter: Any) -> None:
    """Fault 2: TextBugger and Bad Characters cannot be built from the released package."""
    from textattack.transformations.word_swaps import WordSwapHomoglyphSwap

    from advalign.attacks._textattack_replacements import HomoglyphSwap

    with pytest.raises(FileNotFoundError):
        WordSwapHomoglyphSwap()
    swapped = HomoglyphSwap()._get_replacement_words("good")
    assert swapped
    assert all(word != "good" for word in swapped)


def test_neighbours_are_found_without_a_matrix(adapter: Any) -> None:
    """Fault 4: TextAttack's own embedding needs a precomputed matrix of neighbours."""
    from advalign.attacks._textattack_replacements import Substitutes

    words = Substitutes({"good": ["fine", "decent"], "fine": ["good"]})
    assert [words.index2word(i) for i in words.nearest_neighbours(words.word2index("good"), 5)] == ["fine", "decent"]
    assert words.get_cos_sim("decent", "good") == 1.0  # a listed pair is near both ways
    assert words.get_cos_sim("fine", "decent") == 0.0


def test_hotflip_is_refused_by_name() -> None:
    """Fault 5: its own check admits recurrent networks only."""
    with pytest.raises(ConfigError, match=r"hotflip.*LSTM"):
        TextAttack(recipe="hotflip")


def dropping() -> Network:
    """A classifier in training mode, with dropout."""
    network = victims.classifier(dtype="float64")
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    return network.train()


@pytest.fixture
def undropped() -> Iterator[Network]:
    network = dropping()
    yield network
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    network.eval()


def test_gradients_are_those_of_the_network_without_dropout(adapter: Any, undropped: Network) -> None:
    """Fault 6: TextAttack ranks words by gradients of a network in training mode. Ours, by autograd on the embedding itself; one
    forward, which counts as a query and a gradient; and the network stays in the mode it was in."""
    target, text = ClassifierTarget(undropped), victims.sentences(1)[0].prompt
    victim = adapter.VictimWrapper(target)
    first, again = victim.get_grad(text)["gradient"], victim.get_grad(text)["gradient"]
    assert (first == again).all()
    assert (target.num_queries, target.num_gradients, target.num_forwards) == (2, 2, 2)
    assert undropped.training
    tokens, matrix = undropped.encoder.classify([text]), undropped.model.get_input_embeddings()
    with without_dropout(undropped):
        leaf = matrix(tokens.ids).detach().requires_grad_()
        logits = undropped.model(inputs_embeds=leaf, attention_mask=tokens.mask.long()).logits
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1)), leaf)
    torch.testing.assert_close(torch.tensor(first).double(), expected[0], rtol=1e-4, atol=1e-7)


def test_gradients_are_textattacks_own_where_it_has_no_dropout(adapter: Any, minilm: str) -> None:
    """On a network without dropout its wrapper (two forwards, padded to 512) and ours agree on every real token."""
    import transformers
    from textattack.models.wrappers import HuggingFaceModelWrapper

    from advalign.models import load

    network = load(minilm, head="classifier", options={"dropout": 0.0, "seed": 0})
    assert isinstance(network.model, transformers.PreTrainedModel)
    theirs = HuggingFaceModelWrapper(network.model, network.encoder.tokenizer)
    text = "a gorgeous , witty , seductive movie"
    ours, stock = adapter.VictimWrapper(ClassifierTarget(network)).get_grad(text), theirs.get_grad(text)
    length = ours["gradient"].shape[0]
    assert ours["ids"][0].tolist() == stock["ids"][0, :length].tolist()
    assert stock["ids"].shape[1] == 512
    torch.testing.assert_close(torch.tensor(ours["gradient"]), torch.tensor(stock["gradient"][:length]), rtol=1e-3, atol=1e-7)


def test_a_gradient_is_a_query_and_a_target_without_gradients_is_refused(adapter: Any, tables: dict[str, str], minilm: str) -> None:
    target = ClassifierTarget(victims.classifier())
    attack = recipe("a2t", tables, minilm)
    assert (attack.access, TextAttack.access) == ("gradients", "text")
    example = victims.sentences(1)[0]
    (proposal,) = attack.propose(target, [example], Budget(queries=1), random.Random(0))
    assert target.num_queries == 1
    assert proposal.text is None

    class TextsOnly(Target):
        name = "TextsOnly"

        def predict(self, texts: Any, pairs: Any = None) -> Any:
            return target.predict(texts, pairs)

    with pytest.raises(ConfigError, match="TextsOnly gives none"):
        embedding_gradients(TextsOnly(), [example], "here")


@pytest.mark.parametrize("name", ["a2t", "iga", "leap"])
def test_order_and_company_do_not_matter(name: str, tables: dict[str, str], minilm: str) -> None:
    """Fault 8: TextAttack draws from the global generators, so its outcome depends on what ran before."""
    examples, attack = victims.sentences(3), recipe(name, tables, minilm)

    def found(examples: list[Example]) -> dict[str, Any]:
        target = ClassifierTarget(victims.classifier())
        proposals = attack.propose(target, examples, Budget(queries=60), random.Random(0))
        return {e.id: (p.text, p.note) for e, p in zip(examples, proposals, strict=True)}

    together = found(examples)
    assert found(examples[::-1]) == together
    assert found(examples[1:2]) == {examples[1].id: together[examples[1].id]}
    assert any(text for text, _ in together.values())


def test_a_sentence_is_encoded_once_and_short_ones_not_at_all(adapter: Any, minilm: str) -> None:
    """Fault 9: TextAttack encodes the reference with every candidate, and texts below the window to discard the number."""
    from textattack.shared import AttackedText

    from advalign.attacks._textattack_replacements import SentenceEncoderAdapter

    kind = type("MiniLM", (SentenceEncoderAdapter,), {"path": minilm})
    words = "the quick brown fox jumps over the lazy dog and runs far away from the old house".split()
    reference = AttackedText(" ".join(words))
    candidates = [reference.replace_word_at_index(3, word) for word in ("cat", "wolf", "table")]
    whole = kind(threshold=-1.0, metric="cosine")
    passed = whole._check_constraint_many(candidates, reference)
    assert len(passed) == 3
    assert whole.num_encoded == 4  # three candidates and one reference; TextAttack encodes six
    again = kind(threshold=-1.0, metric="cosine")
    vectors = again.encode([t.text for t in (reference, *candidates)])
    expected = F.cosine_similarity(vectors[:1].expand(3, -1), vectors[1:]).tolist()
    assert [t.attack_attrs["similarity_score"] for t in passed] == pytest.approx(expected, abs=1e-6)
    short = kind(threshold=0.99, window_size=50, skip_text_shorter_than_window=True)
    assert len(short._check_constraint_many(candidates, reference)) == 3
    assert short.num_encoded == 0


# ------------------------------------------------------------------------------------------- named entities


def test_names_and_places_by_rule_and_by_file(adapter: Any, tmp_path: Path) -> None:
    from textattack.shared import AttackedText

    from advalign.attacks._textattack_replacements import Entities, tagged

    def tags(text: str, table: dict[str, str] | None = None) -> list[str]:
        return [Entities(table).tag_at(AttackedText(text), i).value for i in range(len(text.split()))]

    # By rule: capitalised and on TextAttack's own lists; "the" is no name wherever it stands, and "chicago" in lower case no place.
    assert tags("The Robert Smith of Chicago saw chicago") == ["O", "B-PER", "E-PER", "O", "S-LOC", "O", "O"]
    assert tags("ann saw new york", {"ann": "PER", "new": "LOC", "york": "LOC"}) == ["S-PER", "O", "B-LOC", "E-LOC"]
    assert tags("a b c", dict.fromkeys("abc", "PER")) == ["B-PER", "I-PER", "E-PER"]
    with tagged(None, {"x": "LOC"}):
        assert AttackedText("x y").ner_of_word_index(0, "ner").value == "S-LOC"
    wrong = tmp_path / "entities.json"
    wrong.write_text('{"x": ["y"]}')
    attack = TextAttack(recipe="checklist", lexicon=str(wrong))
    with pytest.raises(ConfigError, match="'x' has no type of named entity"):
        attack.propose(ClassifierTarget(victims.classifier()), [NAMED], Budget(), random.Random(0))


class Named(Target):
    """Class 1 iff the text names a word of `words`: only another name or place changes its mind."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def predict(self, texts: Any, pairs: Any = None) -> Any:
        return torch.tensor([[0.0, 1.0 if any(w in text for w in self.words) else -1.0] for text in texts])


def test_checklist_changes_names_places_and_numbers_only() -> None:
    attack, example = TextAttack(recipe="checklist"), Example(prompt=NAMED.prompt, label=1)
    for word in ("Robert", "Chicago", "2001"):
        (proposal,) = attack.propose(Named((word,)), [example], Budget(), random.Random(0))
        assert proposal.text is not None, word
        assert word not in proposal.text
        assert {"saw", "the", "bad", "dull", "movie", "in"} <= set(proposal.text.split())
    assert attack.propose(Named(("movie",)), [example], Budget(), random.Random(0))[0].text is None
