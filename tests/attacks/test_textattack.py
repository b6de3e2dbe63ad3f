"""The TextAttack adapter on victims whose right answer is known: a classifier that counts listed words."""

import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advalign import plugins
from advalign.attacks._textattack_import import load
from advalign.attacks.textattack import RECIPES, REFUSED, TextAttack
from advalign.errors import ConfigError
from advalign.interfaces import Target
from advalign.types import Budget, Example, Proposal

# Not `importorskip`: a bare import of textattack fails without flair and nltk's data, which is what the adapter is for.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("textattack") is None, reason="the extra 'textattack' is not installed")

GOOD, BAD = {"good", "great", "funny"}, {"awful", "dull", "boring"}


class WordCounter(Target):
    """Class 1 iff more listed good words than bad ones; a tie is class 0. It remembers what it was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.pairs: list[str] = []
        self.num_queries = self.num_gradients = 0

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        self.sent += texts
        self.pairs += pairs or []
        self.num_queries += len(texts)
        scores = [float(sum((w in GOOD) - (w in BAD) for w in text.lower().split())) for text in texts]
        return torch.tensor([[-s, s] for s in scores])


POSITIVE = Example(id="p", prompt="A good movie that was funny and great", label=1)
# No edit can help here: without its three bad words this text is a tie, which is class 0, as it is with them.
NEGATIVE = Example(id="n", prompt="An awful and dull story about a boring man", label=0)
WRONG = Example(id="w", prompt="what a great film", label=0)


def propose(
    attack: TextAttack, examples: Sequence[Example], budget: Budget | None = None, seed: int = 0
) -> tuple[list[Proposal], WordCounter]:
    target = WordCounter()
    return attack.propose(target, examples, budget or Budget(), random.Random(seed)), target


def predicted(text: str) -> int:
    return int(WordCounter().predict([text]).argmax())


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A lexicon and a WordNet of a few words. `banana` is a noun: parts of speech must forbid it for the adjective `good`."""
    folder = tmp_path_factory.mktemp("lexicons")
    near = {"good": ["banana", "decent"], "funny": ["amusing"], "great": ["grand"], "movie": ["film"]}
    synonyms = {
        "good": {"a": ["decent"]},
        "decent": {"a": ["good"]},
        "banana": {"n": ["plantain"]},
        "funny": {"a": ["amusing"]},
        "amusing": {"a": ["funny"]},
        "great": {"a": ["grand"]},
        "grand": {"a": ["great"]},
        "movie": {"n": ["film"]},
        "film": {"n": ["movie"]},
    }
    for name, table in {"near": near, "synonyms": synonyms}.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    return {name: str(folder / f"{name}.json") for name in ("near", "synonyms")}


# ------------------------------------------------------------------------------------- what recipes do


def test_deepwordbug_breaks_what_can_be_broken_and_says_why_not() -> None:
    (proposal, unbreakable, wrong), target = propose(TextAttack(), [POSITIVE, NEGATIVE, WRONG])
    assert proposal.text is not None
    assert predicted(proposal.text) == 0
    # Its edits are of characters inside words: the words stay as many, and stop words (that, was, and) stay as they are.
    assert len(proposal.text.split()) == 8
    assert {"that", "was", "and"} <= set(proposal.text.split())
    assert unbreakable.text is None
    assert unbreakable.note.startswith("nothing found after")
    assert wrong == Proposal(note="skipped: the prediction is wrong before any edit")
    # The wrong example cost exactly its one look.
    assert target.sent.count(WRONG.prompt) == 1


def test_notes_count_exactly_what_the_target_was_sent() -> None:
    # TextAttack itself also counts what it finds in its cache.
    for recipe in ("deepwordbug", "pruthi"):
        proposals, target = propose(TextAttack(recipe=recipe), [POSITIVE, NEGATIVE])
        counted = [int(word) for p in proposals for word in p.note.split() if word.isdigit()]
        assert sum(counted) == target.num_queries == len(target.sent)


def test_pruthi_within_one_swap_fails_and_within_three_succeeds() -> None:
    # Score 3 - 0: one broken word leaves 2, a positive; three leave 0, a tie, class 0.
    assert propose(TextAttack(recipe="pruthi"), [POSITIVE])[0][0].text is None
    three, _ = propose(TextAttack(recipe="pruthi", options={"max_num_word_swaps": 3}), [POSITIVE])
    assert three[0].text is not None
    assert predicted(three[0].text) == 0


def test_input_reduction_keeps_the_prediction() -> None:
    (proposal,), _ = propose(TextAttack(recipe="input-reduction"), [POSITIVE])
    # "that", "was" and "and" are stop words and may not be deleted: 3 of 8 words and one that decides is the least.
    assert proposal.text is not None
    assert predicted(proposal.text) == 1
    assert len(proposal.text.split()) < 8
    assert proposal.note.startswith(f"prediction kept with {len(proposal.text.split())} of 8 words")


def test_pwws_swaps_synonyms_of_the_file_and_nothing_else(words: dict[str, str]) -> None:
    (proposal,), _ = propose(TextAttack(recipe="pwws", synonyms=words["synonyms"]), [POSITIVE])
    assert proposal.text is not None
    before, after = POSITIVE.prompt.split(), proposal.text.split()
    allowed = {"good": "decent", "funny": "amusing", "great": "grand", "movie": "film"}
    assert all(a == b or allowed[b] == a for b, a in zip(before, after, strict=True))
    assert predicted(proposal.text) == 0


def test_bad_characters_needs_three_homoglyphs_here() -> None:
    three, _ = propose(TextAttack(recipe="bad-characters", options={"perturbs": 3, "maxiter": 30}), [POSITIVE])
    assert three[0].text is not None
    assert predicted(three[0].text) == 0
    changed = [(b, a) for b, a in zip(POSITIVE.prompt, three[0].text, strict=True) if a != b]
    assert len(changed) == 3


@pytest.mark.parametrize("recipe", ["textfooler", "textbugger"])
def test_word_recipes_with_lexicon_and_encoder(recipe: str, words: dict[str, str], minilm: str) -> None:
    attack = TextAttack(recipe=recipe, lexicon=words["near"], synonyms=words["synonyms"], encoder=minilm, similarity=0.5)
    (proposal, unbreakable), _ = propose(attack, [POSITIVE, NEGATIVE])
    assert proposal.text is not None
    assert predicted(proposal.text) == 0
    assert unbreakable.text is None
    if recipe == "textfooler":
        assert "banana" not in proposal.text, "the part-of-speech constraint was not asked"
        assert proposal.text == "A decent movie that was amusing and grand"


def test_the_encoder_is_asked(words: dict[str, str], minilm: str) -> None:
    # No text but the same has angular similarity 1 to the original, so nothing passes.
    strict = TextAttack(recipe="textbugger", lexicon=words["near"], encoder=minilm, similarity=0.9999)
    assert propose(strict, [POSITIVE])[0][0].text is None


def test_recipes_on_the_real_lexicons(data_root: Path, minilm: str) -> None:
    near = str(data_root / "lex_counterfitted_neighbors" / "counterfitted_neighbors.json.gz")
    synonyms = str(data_root / "lex_wordnet_synonyms" / "wordnet31_synonyms.json.gz")
    for attack in (
        TextAttack(recipe="pwws", synonyms=synonyms),
        TextAttack(recipe="leap", synonyms=synonyms, options={}),
        TextAttack(recipe="iga", lexicon=near),
        TextAttack(recipe="TextFoolerJin2019", lexicon=near, synonyms=synonyms, encoder=minilm, similarity=0.5),
    ):
        (proposal,), _ = propose(attack, [POSITIVE])
        assert proposal.text is not None, attack.recipe
        assert predicted(proposal.text) == 0
        assert not {"good", "funny", "great"} & set(proposal.text.lower().split())


def test_masked_language_model_recipes_run(words: dict[str, str], minilm: str) -> None:
    # The head is untrained, so the words are nonsense: the mechanics are tested, not their quality.
    for recipe in ("bae", "bert-attack"):
        attack = TextAttack(recipe=recipe, masked_lm=minilm, encoder=minilm, synonyms=words["synonyms"], similarity=-1.0)
        (proposal,), target = propose(attack, [POSITIVE], Budget(queries=400))
        assert proposal.text is not None, recipe
        assert predicted(proposal.text) == 0
        assert target.num_queries <= 400


def test_in_a_pair_only_the_prompt_is_edited() -> None:
    pair = Example(id="pair", prompt=POSITIVE.prompt, pair="A good and funny premise", label=1)
    (proposal,), target = propose(TextAttack(), [pair])
    assert proposal.text is not None
    assert predicted(proposal.text) == 0
    assert set(target.pairs) == {"A good and funny premise"}
    assert len(target.pairs) == len(target.sent)


# -------------------------------------------------------------------------- budgets, seeds and side effects


@pytest.mark.parametrize("recipe", ["deepwordbug", "pruthi", "input-reduction", "pwws"])
def test_no_budget_is_exceeded_and_none_breaks_the_search(recipe: str, words: dict[str, str]) -> None:
    attack = TextAttack(recipe=recipe, synonyms=words["synonyms"])
    for queries in (1, 2, 7, 8, 9, 10, 20):
        (proposal,), target = propose(attack, [NEGATIVE], Budget(queries=queries))
        assert target.num_queries <= queries
        assert proposal.note
    (late,), _ = propose(attack, [NEGATIVE], Budget(seconds=1e-9))
    assert late.text is None
    assert "budget" in late.note


def test_a_sufficient_budget_changes_nothing() -> None:
    free, target = propose(TextAttack(), [POSITIVE])
    bounded, _ = propose(TextAttack(), [POSITIVE], Budget(queries=target.num_queries))
    assert free == bounded
    # One look, one for leaving out each of the five words that are no stop words, one for each of three edits: 9 at the least.
    short, _ = propose(TextAttack(), [POSITIVE], Budget(queries=8))
    assert short[0].text is None


def test_results_depend_on_the_seed_but_not_on_order_or_company() -> None:
    attack = TextAttack()
    together, _ = propose(attack, [POSITIVE, NEGATIVE, WRONG])
    backwards, _ = propose(attack, [WRONG, NEGATIVE, POSITIVE])
    alone, _ = propose(attack, [POSITIVE])
    assert together == backwards[::-1]
    assert together[0] == alone[0]
    assert len({propose(attack, [POSITIVE], seed=seed)[0][0].text for seed in range(5)}) > 1


SIDE_EFFECTS = """
import logging, os, random, sys
import numpy, torch
mine = logging.getLogger("mine")
os.environ["TA_CACHE_DIR"] = sys.argv[1]
before = dict(os.environ)
from advalign.attacks.textattack import TextAttack
attack = TextAttack()
assert "textattack" not in sys.modules and "nltk" not in sys.modules, "import and construction must cost nothing"
from advalign.attacks._textattack_import import load
from advalign.types import Budget, Example
from advalign.interfaces import Target
class Reader(Target):
    def predict(self, texts, pairs=None):
        return torch.tensor([[0.0, float("good" in text)] for text in texts])
def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
state = states()
(found,) = attack.propose(Reader(), [Example(prompt="a good movie", label=1)], Budget(), random.Random(0))
assert found.text is not None and "good" not in found.text
assert states() == state, "global generators moved"
assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())
assert not mine.disabled, "dictConfig disables loggers"
assert logging.root.manager.disable == logging.NOTSET
import nltk, nltk.downloader
assert nltk.download == nltk.downloader.download, "nltk must be able to download again"
assert "flair" not in sys.modules or sys.modules["flair"].__spec__.origin is not None, "the stand-in must not outlive the import"
import datasets
assert sys.argv[1] not in str(datasets.config.HF_DATASETS_CACHE), "the caches of others were moved"
print("clean")
"""


def test_the_import_leaves_no_trace(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TOKENIZERS_PARALLELISM", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", SIDE_EFFECTS, str(tmp_path / "cache")], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"
    assert "textattack" not in done.stderr
    # TextAttack marks its downloads as done in its cache; nothing was downloaded, so nothing may be marked there.
    assert not (tmp_path / "cache").exists()


def test_a_loaded_textattack_is_quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    load()
    capfd.readouterr()
    with caplog.at_level(logging.DEBUG):
        propose(TextAttack(), [POSITIVE])
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


# ------------------------------------------------------------------------------------------ names and errors


def test_every_recipe_of_the_installed_version_is_run_or_refused() -> None:
    load()
    import textattack.attack_recipes as installed

    base = installed.AttackRecipe
    classes = {name for name, value in vars(installed).items() if isinstance(value, type) and issubclass(value, base) and value is not base}
    assert {cls for cls, _ in (*RECIPES.values(), *REFUSED.values())} == classes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "deepwordbg"}, r"no recipe 'deepwordbg'\. Known: .*Did you mean 'deepwordbug'\?"),
        ({"recipe": "a2t"}, "needs `lexicon` and `encoder`"),
        ({"recipe": "Kuleshov2017"}, "GPT-2"),
        ({"recipe": "pwws"}, "needs `synonyms`"),
        ({"recipe": "textfooler"}, "needs `lexicon` and `encoder`"),
        ({"recipe": "bae", "encoder": "somewhere"}, "needs `masked_lm`"),
        ({"recipe": "pwws", "synonyms": "no/such.json"}, "synonyms: there is no file no/such.json"),
        ({"stopwords": "no/such.txt"}, "stopwords: there is no file no/such.txt"),
    ],
)
def test_refusals_name_the_argument(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextAttack(**fields)


def test_an_example_without_label_or_a_pair_for_bad_characters_is_refused() -> None:
    with pytest.raises(ConfigError, match="example 'x' has no label"):
        propose(TextAttack(), [Example(id="x", prompt="text")])
    with pytest.raises(ConfigError, match="example 'x' is a pair"):
        propose(TextAttack(recipe="bad-characters"), [Example(id="x", prompt="a", pair="b", label=0)])


def test_text_without_words_is_left_alone() -> None:
    (proposal,), target = propose(TextAttack(), [Example(id="x", prompt="...", label=0)])
    assert proposal == Proposal(refused="the text has no words")
    assert target.num_queries == 0


def test_stopwords_are_an_argument(tmp_path: Path) -> None:
    file = tmp_path / "stop.txt"
    file.write_text("good\nfunny\ngreat\n")
    # With the three deciding words protected nothing can be done.
    assert propose(TextAttack(stopwords=str(file)), [POSITIVE])[0][0].text is None


def test_the_kind_is_textattack() -> None:
    assert plugins.resolve("attacks", "textattack").__name__ == "TextAttack"
    assert TextAttack.access == "text"
