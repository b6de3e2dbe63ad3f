"""Rows do not look at each other: a text without a second sentence is read alone, whatever rows are beside it."""

import json

import pytest
import torch
from helpers import tokenizer_kinds
from helpers.context import FakeContext
from transformers import BertConfig, BertForSequenceClassification

from advalign import Evaluation, Learner, Trainer, TrainingArguments, attacks, data
from advalign.evaluation import Suite
from advalign.models import load
from advalign.models.encode import Encoder
from advalign.objectives import Classify
from advalign.sources import Labels
from advalign.targets import AnswerCache, target_of
from advalign.targets.black_box import AnsweringClassifier

ROWS = [
    {"text": "the cat sat", "label": 0},
    {"text": "hello you", "pair": "so good movie", "label": 1},
    {"text": "a mat", "pair": "", "label": 1},
    {"text": "say a color", "pair": "red", "label": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    tokenizer = tokenizer_kinds.word_pieces()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.5}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def expected(folder, rows):
    """Logits of plain transformers, row by row."""
    model = BertForSequenceClassification.from_pretrained(folder).double().eval()
    tokenizer = tokenizer_kinds.word_pieces()
    with torch.no_grad():
        return torch.stack([model(**tokenizer(r["text"], r.get("pair") or None, return_tensors="pt")).logits[0] for r in rows])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2], [2, 0], [1, 3]])
def test_a_target_gives_every_row_what_it_gets_alone(folder, tmp_path, order):
    rows = [ROWS[i] for i in order]
    network = load(str(folder), dtype="float64")
    examples = data.examples(rows)
    want = expected(folder, rows)
    for cache in (None, AnswerCache(tmp_path / "answers", "f")):
        target = target_of(network, cache=cache)
        for _ in range(2):
            logits = target.predict([e.text for e in examples], [e.pair for e in examples])
            assert torch.allclose(logits.double(), want, atol=1e-12 if cache is None else 1e-6)
    assert torch.allclose(target.predict_edited(examples, [{} for _ in examples]).double(), want, atol=1e-12)


def test_suites_and_evaluations_do_not_depend_on_the_first_row(folder):
    predicted = expected(folder, ROWS).argmax(1).tolist()
    rows = [row | {"label": k} for row, k in zip(ROWS, predicted, strict=True)]
    for order in (rows, rows[::-1]):
        suite = Suite(data=order, attacks={"w": attacks.Words(style="deepwordbug", max_changed=0.5)}, examples=1)
        assert suite.run(load(str(folder))).clean == {"accuracy": 1.0}
    run = Trainer(
        learners={"policy": Learner(model=str(folder), head="classifier")},
        sources={"s": Labels(data=rows)},
        objectives={"c": Classify(source="s")},
        evaluations={"e": Evaluation(data=rows, number=4), "f": Evaluation(data=rows[::-1], number=4)},
        args=TrainingArguments(max_steps=1),
    )
    assert run.evaluate() == {"e/accuracy": 1.0, "f/accuracy": 1.0}


def test_training_rows_are_those_of_the_tokenizer(folder):
    tokenizer = tokenizer_kinds.word_pieces()
    source = Labels(data=ROWS)
    tokens = source.build(list(source.start(FakeContext(), "s").examples), load(str(folder)).encoder).tokens
    ids = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
    assert ids == [tokenizer(row["text"], row.get("pair") or None)["input_ids"] for row in ROWS]


def test_a_model_known_by_its_answers_is_asked_for_single_texts_and_pairs_apart(tmp_path):
    asked = []

    def answers(texts, pairs=None):
        asked.append((list(texts), None if pairs is None else list(pairs)))
        return [[float(len(t)), float(len(p))] for t, p in zip(texts, pairs or [""] * len(texts), strict=True)]

    target = target_of(AnsweringClassifier(answers, name="mine"))
    scores = target.predict(["a", "bb", "ccc"], [None, "dddd", None])
    assert scores.tolist() == [[1.0, 0.0], [2.0, 4.0], [3.0, 0.0]]
    assert asked == [(["a", "ccc"], None), (["bb"], ["dddd"])]


def test_an_empty_second_sentence_is_none(tmp_path):
    (tmp_path / "d.csv").write_text("text,pair,label\na,,0\nb,c,1\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "a", "pair": None}) + "\n" + json.dumps({"text": "b", "pair": "c"}) + "\n")
    for name in ("d.csv", "d.jsonl"):
        assert [e.pair for e in data.examples(str(tmp_path / name))] == [None, "c"]


def test_a_text_is_not_rendered_because_a_conversation_is_beside_it():
    encoder = Encoder(tokenizer_kinds.byte_pairs(chat_template=tokenizer_kinds.CHAT))
    text, chat = "say a color", data.examples([{"prompt": [{"role": "user", "content": "hello you"}]}])[0].prompt
    alone = [encoder.classify([row]) for row in (text, chat)]
    for order in ([text, chat], [chat, text]):
        together = encoder.classify(order)
        ids = {tuple(row[mask].tolist()) for row, mask in zip(together.ids, together.mask, strict=True)}
        assert ids == {tuple(tokens.ids[0].tolist()) for tokens in alone}
