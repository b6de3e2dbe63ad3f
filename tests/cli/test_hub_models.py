"""`advalign eval`, `attack` and `compare` on folders that plain transformers or peft wrote."""

import json

import pytest
import torch
from helpers import hub_folders
from helpers.hub_folders import BERT, LLAMA

TEXTS = ["a quiet charming film", "dull", "the cat sat on the mat", "a dull film", "red blue", "the charming cat"]
SUITE = "data: {data}\nexamples: 6\nradii: [0.05]\nattacks:\n  noise: {{kind: embedding, adversary: {{kind: noise}}}}\n"
NAMES = {"num_labels": 3, "id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}


@pytest.fixture
def suite(tmp_path):
    """Labels 0 for every text."""
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": 0}) + "\n" for text in TEXTS))
    (tmp_path / "suite.yaml").write_text(SUITE.format(data=data))
    return tmp_path / "suite.yaml"


def share_of_label_0(model):
    """Of plain transformers: how many texts the model puts into class 0."""
    tokenizer = hub_folders.tokenizer(model.config.model_type == "bert")
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits for text in TEXTS]
    return (torch.cat(logits).argmax(1) == 0).float().mean().item()


def check(printed, model):
    """The clean accuracy of the report is that of plain transformers."""
    share = share_of_label_0(model)
    assert 0 < share < 1
    assert f"clean accuracy: **{share:.1%}** (all 6 examples)" in " ".join(printed.split())


@pytest.mark.parametrize(("sizes", "seed"), [(BERT, 2), (LLAMA, 0)], ids=["bert", "llama"])
def test_a_classifier_of_plain_transformers_is_evaluated_as_one(advalign, suite, tmp_path, sizes, seed):
    model = hub_folders.write(tmp_path / "model", sizes, "classifier", seed=seed, **NAMES)
    code, printed, errors = advalign("eval", tmp_path / "model", "--suite", suite)
    assert code == 0, errors
    check(printed, model)
    assert "bad" in printed


def test_other_models_are_what_they_are(advalign, suite, tmp_path):
    hub_folders.write(tmp_path / "masked", BERT, "masked")
    for command in (("eval", tmp_path / "masked", "--suite", suite), ("attack", tmp_path / "masked", "a dull film", "--label", "0")):
        code, _, errors = advalign(*command)
        assert code != 0
        assert "holds BertForMaskedLM (bert), which is neither a language model nor a classifier" in " ".join(errors.split())


def test_an_attack_and_a_comparison(advalign, suite, tmp_path):
    for name, seed in (("first", 2), ("second", 3)):
        hub_folders.write(tmp_path / name, BERT, "classifier", seed=seed, **NAMES)
    code, _, errors = advalign("attack", tmp_path / "first", "a dull film", "--label", "0", "adversary.kind=pgd", "adversary.radius=0.1")
    assert code == 0, errors
    code, printed, errors = advalign("compare", tmp_path / "first", tmp_path / "second", "--suite", suite)
    assert code == 0, errors
    for name in ("first", "second"):
        assert name in printed


def test_an_adapter_of_peft(advalign, suite, tmp_path):
    peft = pytest.importorskip("peft")
    hub_folders.write(tmp_path / "base", BERT, "base")
    torch.manual_seed(0)
    base = hub_folders.AUTO["classifier"].from_pretrained(tmp_path / "base", dtype=torch.float64, num_labels=3)
    model = hub_folders.shake(peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights="gaussian")).double())
    model.save_pretrained(tmp_path / "adapter")
    hub_folders.tokenizer(True).save_pretrained(tmp_path / "adapter")
    code, printed, errors = advalign("eval", tmp_path / "adapter", "--suite", suite)
    assert code == 0, errors
    check(printed, model)
