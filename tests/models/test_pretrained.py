"""What a folder of plain transformers is, its own files say; no weight of it is drawn at random."""

import json

import pytest
import torch
from helpers import hub_folders
from helpers.hub_folders import BERT, GPT2, LLAMA
from safetensors.torch import load_file, save_file

from advalign import Learner, Trainer
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.models import load
from advalign.objectives import Classify
from advalign.sources import Labels
from advalign.types import Example

TEXTS = ["a quiet charming film", "dull", "the cat sat on the mat"]


def own_logits(model, folder, texts=TEXTS):
    """Of plain transformers: each text alone, by the folder's tokenizer."""
    tokenizer = hub_folders.tokenizer(model.config.model_type == "bert")
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits for text in texts])


def class_logits(network):
    with torch.no_grad():
        return network.eval()(network.encoder.classify(TEXTS), {"class_logits"}).class_logits


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("sizes", [BERT, LLAMA, GPT2], ids=["bert", "llama", "gpt2"])
def test_a_classifier_is_a_classifier_with_its_labels(tmp_path, sizes):
    names = {0: "bad", 1: "fair", 2: "good"}
    model = hub_folders.write(tmp_path, sizes, "classifier", num_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    network = load(str(tmp_path), dtype="float64")
    assert (network.head, network.class_names, network.has_trained_head) == ("classifier", ("bad", "fair", "good"), True)
    torch.testing.assert_close(class_logits(network), own_logits(model, tmp_path), rtol=0, atol=1e-10)


def test_a_reward_model_is_a_classifier_of_one_label(tmp_path):
    model = hub_folders.write(tmp_path, LLAMA, "classifier", num_labels=1)
    network = load(str(tmp_path), dtype="float64")
    assert (network.head, network.num_classes) == ("classifier", 1)
    torch.testing.assert_close(class_logits(network), own_logits(model, tmp_path), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sizes", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_language_model_is_a_policy_whatever_its_tokenizer_has(tmp_path, sizes):
    model = hub_folders.write(tmp_path, sizes, "causal")
    network = load(str(tmp_path), dtype="float64").eval()
    assert (network.head, network.encoder.bidirectional) == ("policy", False)
    tokens = network.encoder.demos(["the cat"], ["sat on the mat"])
    with torch.no_grad():
        expected = model(input_ids=tokens.ids).logits.log_softmax(-1)[:, :-1].gather(2, tokens.ids[:, 1:, None])[..., 0]
        logprobs = network(tokens, {"logprobs"}).logprobs
    torch.testing.assert_close(logprobs[:, 1:], expected * tokens.target[:, 1:], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "kind", "head", "sentence"),
    [
        (BERT, "masked", None, r"holds BertForMaskedLM \(bert\), which is neither a language model nor a classifier; .*head: classifier"),
        (BERT, "base", None, r"holds BertModel \(bert\), which is neither"),
        (LLAMA, "base", None, r"holds LlamaModel \(llama\), which is neither"),
        (BERT, "masked", "policy", r"holds BertForMaskedLM \(bert\), in which every token sees the whole row, so it cannot be a policy;"),
        (BERT, "masked", "value", r"holds BertForMaskedLM \(bert\), in which every token sees the whole row, so it cannot be a value;"),
        (
            BERT,
            "classifier",
            "policy",
            r"holds .*, in which every token sees the whole row, so it cannot be a policy; give its own head: classifier",
        ),
        (
            LLAMA,
            "classifier",
            "policy",
            r"holds LlamaForSequenceClassification \(llama\), which is not a causal language model,",
        ),
        (LLAMA, "base", "policy", r"holds LlamaModel \(llama\), which is not a causal language model, so it cannot be a policy"),
    ],
)
def test_what_a_model_is_not_is_a_sentence(tmp_path, sizes, kind, head, sentence):
    hub_folders.write(tmp_path, sizes, kind)
    with pytest.raises(ConfigError, match=rf"^model: '{tmp_path}' {sentence}[^\n]*$"):
        load(str(tmp_path), head=head)


@pytest.mark.parametrize(
    ("sizes", "kind", "drawn"),
    [
        (BERT, "masked", ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight")),
        (BERT, "base", ("classifier.bias", "classifier.weight")),
        (LLAMA, "causal", ("score.weight",)),
    ],
)
def test_a_new_classifier_on_purpose_is_said_and_its_base_is_complete(tmp_path, sizes, kind, drawn):
    model = hub_folders.write(tmp_path, sizes, kind)
    with pytest.warns(UserWarning, match=rf"model: '{tmp_path}' has no trained classifier; its head is drawn from the seed \({drawn[0]}"):
        network = load(str(tmp_path), head="classifier", dtype="float64", options={"num_labels": 3})
    assert network.new_weights == drawn
    assert not network.has_trained_head
    theirs = {name.removeprefix(f"{model.base_model_prefix}."): p for name, p in model.named_parameters()}
    ours = {name.removeprefix(f"{model.base_model_prefix}."): p for name, p in network.model.named_parameters() if name not in drawn}
    assert len(ours) >= 20
    assert all(torch.equal(p, theirs[name]) for name, p in ours.items())


def test_a_new_classifier_of_a_decoder_gives_a_batch_what_transformers_gives_each_text(tmp_path):
    """Also where the configuration names no padding: without one, transformers refuses a batch."""
    hub_folders.write(tmp_path / "base", LLAMA, "causal", pad_token_id=None)
    with pytest.warns(UserWarning, match="no trained classifier"):
        network = load(str(tmp_path / "base"), head="classifier", dtype="float64")
    network.save_pretrained(tmp_path / "saved")
    theirs = hub_folders.AUTO["classifier"].from_pretrained(tmp_path / "saved", dtype=torch.float64).eval()
    batch = hub_folders.tokenizer(False)(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, class_logits(network), rtol=0, atol=1e-10)


def test_where_the_end_of_a_sequence_is_padding_a_classifier_reads_the_token_before_it(tmp_path):
    """As `LlamaForSequenceClassification` does: it pools the last token that is not padding by its id."""
    model = hub_folders.write(tmp_path, LLAMA, "classifier", pad_token_id=3)
    network = load(str(tmp_path), dtype="float64", options={"special_tokens_in_text": "tokens"})
    texts = [f"{text} <eos>" for text in TEXTS]
    with torch.no_grad():
        logits = network.eval()(network.encoder.classify(texts), {"class_logits"}).class_logits
    torch.testing.assert_close(logits, own_logits(model, tmp_path, texts), rtol=0, atol=1e-10)
    assert (logits - class_logits(network)).abs().max() < 1e-10  # causal: the end that is not read changes nothing


def drop_layer(state):
    for name in [n for n in state if ".1." in n]:
        del state[name]


def drop_head(state):
    for name in [n for n in state if n.startswith(("lm_head", "classifier", "score"))]:
        del state[name]


def widen(state):
    name = next(n for n in state if n.endswith("weight") and ".1." in n and state[n].ndim == 2)
    state[name] = torch.cat([state[name], state[name]])


@pytest.mark.parametrize(
    ("sizes", "kind", "change", "sentence"),
    [
        (LLAMA, "causal", drop_layer, r"lacks 9 of the 21 weights of LlamaForCausalLM \(model.layers.1.\S+, model.layers.1.\S+, "),
        (LLAMA, "causal", drop_head, r"lacks 1 of the 21 weights of LlamaForCausalLM \(lm_head.weight\); no weight is drawn at random"),
        (LLAMA, "classifier", drop_layer, r"lacks 9 of the 21 weights of LlamaForSequenceClassification"),
        (LLAMA, "classifier", drop_head, r"lacks 1 of the 21 weights of LlamaForSequenceClassification \(score.weight\)"),
        (
            BERT,
            "classifier",
            drop_head,
            r"lacks 2 of the \d+ weights of BertForSequenceClassification \(classifier.bias, classifier.weight\)",
        ),
        (BERT, "classifier", drop_layer, r"lacks 16 of the \d+ weights of BertForSequenceClassification \(bert.encoder.layer.1."),
        (GPT2, "causal", drop_layer, r"lacks 12 of the \d+ weights of GPT2LMHeadModel \(transformer.h.1."),
        (
            LLAMA,
            "causal",
            widen,
            r"lacks 1 of the 21 weights of LlamaForCausalLM \(model.layers.1.\S+ of shape \(\d+, \d+\), not \(\d+, \d+\)\)",
        ),
    ],
)
@pytest.mark.parametrize("explicit", [False, True])
def test_a_missing_weight_is_refused_by_name(tmp_path, sizes, kind, change, sentence, explicit, capfd):
    hub_folders.write(tmp_path, sizes, kind)
    edit_weights(tmp_path, change)
    head = {"causal": "policy", "classifier": "classifier"}[kind] if explicit else None
    with pytest.raises(ConfigError, match=rf"^model: '{tmp_path}' {sentence}[^\n]*$"):
        load(str(tmp_path), head=head)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize("head", ["score", "value", "classifier"])
def test_a_new_head_needs_a_whole_body(tmp_path, head):
    hub_folders.write(tmp_path, LLAMA, "causal")
    edit_weights(tmp_path, drop_layer)
    with pytest.raises(ConfigError, match=r"lacks 9 of the \d+ weights of Llama\w+ \((model.)?layers.1."):
        load(str(tmp_path), head=head)


@pytest.mark.parametrize("head", [None, "policy", "classifier", "score"])
def test_weights_of_another_kind_than_the_configuration_says_are_refused(tmp_path, head):
    hub_folders.write(tmp_path, LLAMA, "causal")
    edit_config(tmp_path, **GPT2)
    sentence = (
        r"lacks \d+ of the \d+ weights of GPT2\w+ \(.*\), and holds \d+ others \(.*\); its config.json says LlamaForCausalLM \(gpt2\);"
    )
    with pytest.raises(ConfigError, match=sentence):
        load(str(tmp_path), head=head)


def test_layers_that_the_configuration_does_not_count_are_refused(tmp_path):
    hub_folders.write(tmp_path, LLAMA, "causal")
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(ConfigError, match=r"holds layers that its configuration does not count \(model.layers.1.input_layernorm.weight, "):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "Error while deserializing header"),
        (lambda folder: (folder / "model.safetensors").unlink(), "Error no file named model.safetensors"),
        (lambda folder: edit_config(folder, model_type="lama"), "The checkpoint you are trying to load has model type `lama`"),
    ],
)
def test_damaged_files_are_sentences(tmp_path, change, sentence):
    hub_folders.write(tmp_path, LLAMA, "causal")
    change(tmp_path)
    with pytest.raises(ConfigError, match=rf"^model: '{tmp_path}' cannot be loaded: {sentence}[^\n]*; give a model's folder, a hub"):
        load(str(tmp_path))


def test_a_scalar_head_beside_a_trained_one_is_said(tmp_path):
    hub_folders.write(tmp_path, LLAMA, "classifier", num_labels=1)
    with pytest.warns(
        UserWarning, match=r"holds LlamaForSequenceClassification \(llama\), whose trained head is left out: head: score has"
    ):
        load(str(tmp_path), head="score")


def test_another_number_of_labels_than_a_classifier_has_is_refused(tmp_path):
    hub_folders.write(tmp_path, BERT, "classifier", num_labels=3)
    assert load(str(tmp_path), options={"num_labels": 3}).num_classes == 3
    with pytest.raises(
        ConfigError, match=r"^model.options.num_labels: 4 given, but '.*' holds BertForSequenceClassification \(bert\) of 3 labels;"
    ):
        load(str(tmp_path), options={"num_labels": 4})


def test_a_saved_scalar_head_is_not_drawn_anew(tmp_path):
    hub_folders.write(tmp_path / "base", LLAMA, "causal")
    load(str(tmp_path / "base"), head="score").save_pretrained(tmp_path / "score")
    load(str(tmp_path / "score"))
    (tmp_path / "score" / "scalar_head.safetensors").unlink()
    for head in (None, "score"):
        with pytest.raises(
            ConfigError, match=r"^model: .*score lacks the trained head \(scalar_head.safetensors\); give a complete folder.$"
        ):
            load(str(tmp_path / "score"), head=head)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_pooling_that_transformers_does_not_know_is_not_exported(tmp_path, pooling):
    hub_folders.write(tmp_path / "llama", LLAMA, "causal")
    with pytest.warns(UserWarning, match="no trained classifier"):
        network = load(str(tmp_path / "llama"), head="classifier", options={"pooling": pooling})
    with pytest.raises(
        ConfigError, match=rf"^save_pretrained: LlamaForSequenceClassification reads the last token .* pooling is '{pooling}'"
    ):
        network.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    hub_folders.write(tmp_path / "bert", BERT, "classifier")
    with pytest.raises(ConfigError, match=r"^model.options.pooling: BertForSequenceClassification pools a text in its own way"):
        load(str(tmp_path / "bert"), options={"pooling": pooling})
    with pytest.raises(ConfigError, match=r"^model.options: no pooling 'men'. Known: first, last, mean. Did you mean 'mean'\?"):
        load(str(tmp_path / "llama"), head="score", options={"pooling": "men"})


@pytest.mark.parametrize(
    ("labels", "head", "says"),
    [
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, None, "several labels per text"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "classifier", "several labels per text"),
        ({"num_labels": 2, "problem_type": "regression"}, None, "2 numbers per text"),
        ({"num_labels": 1}, "classifier", "one number per text, and a classifier needs two classes or more"),
        ({"num_labels": 1, "problem_type": "regression"}, "classifier", "one number per text"),
    ],
)
@pytest.mark.parametrize("sizes", [BERT, LLAMA], ids=["bert", "llama"])
def test_a_head_that_does_not_give_one_of_several_classes_is_refused(tmp_path, sizes, labels, head, says):
    hub_folders.write(tmp_path, sizes, "classifier", **labels)
    with pytest.raises(ConfigError, match=says):
        load(str(tmp_path), head=head)


def test_one_number_per_text_is_no_victim(tmp_path):
    """It opens as a reward model, and is refused where classes are needed: in a suite, and as a learner."""
    hub_folders.write(tmp_path, BERT, "classifier", num_labels=1)
    network = load(str(tmp_path))
    with pytest.raises(ConfigError, match="gives one number per text, and a classifier needs two classes"):
        Suite(data=[Example(prompt="a cat", label=0)], attacks={}).run(network)
    trainer = Trainer(
        model=Learner(model=str(tmp_path), head="classifier"),
        networks={"policy": network},
        sources={"s": Labels(data=[{"text": "a cat", "label": 0}])},
        objectives={"x": Classify(source="s")},
    )
    with pytest.raises(ConfigError, match="one number per text"):
        trainer.start()
