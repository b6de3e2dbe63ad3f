"""Adapter folders: what is written here opens in peft and transformers, and what peft wrote opens here, with equal logits."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from helpers import hub_folders
from helpers.hub_folders import (
    AUTO,
    BERT,
    DEEPSEEK_V3,
    DISTILBERT,
    GPT2,
    LLAMA,
    MIXTRAL,
    PRECISE,
    QWEN3_MOE,
    ROBERTA,
    SIZES,
    outputs,
    put_into_cache,
    shake,
)
from safetensors.torch import load_file, save_file

from advalign.cli.networks import load_network
from advalign.errors import ConfigError
from advalign.models import adapters, load
from advalign.models.sharing import frozen_copy

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:model. .* has no trained classifier")

ALL = {"r": 4, "target_modules": "all-linear"}
QUERIES = {"r": 4, "target_modules": ["q_proj"]}
TRANSFORMERS = {"policy": "causal", "classifier": "classifier", "score": "base", "value": "base"}
PEFT = {
    "policy": peft.AutoPeftModelForCausalLM,
    "classifier": peft.AutoPeftModelForSequenceClassification,
    "score": peft.AutoPeftModelForFeatureExtraction,
}


def trained(folder, sizes, kind, head, lora, **options):
    """A network on a base in `folder`, with an adapter and a head that have moved; and the outputs of its base."""
    base = hub_folders.write(folder, sizes, kind)
    network = load(str(folder), head=head, dtype="float64", options={"lora": lora, **options})
    before = outputs(network.model)
    shake(network)
    assert (outputs(network.model) - before).abs().max() > 1e-2
    return network, base


CASES = {
    "llama": (LLAMA, "causal", "policy", ALL, {}),
    "qwen3_moe": (QWEN3_MOE, "causal", "policy", ALL, {}),
    "deepseek_v3": (DEEPSEEK_V3, "causal", "policy", ALL, {}),
    "mixtral": (MIXTRAL, "causal", "policy", ALL, {}),
    "one matrix of the experts": (QWEN3_MOE, "causal", "policy", QUERIES | {"target_parameters": ["mlp.experts.gate_up_proj"]}, {}),
    "embedding and head": (LLAMA, "causal", "policy", QUERIES | {"modules_to_save": ["lm_head", "embed_tokens"]}, {}),
    "bert from a masked model": (BERT, "masked", "classifier", ALL, {"num_labels": 3}),
    "bert from a base": (BERT, "base", "classifier", {"r": 4, "target_modules": ["query"]}, {"num_labels": 3}),
    "distilbert": (DISTILBERT, "masked", "classifier", ALL, {"num_labels": 3}),
    "roberta": (ROBERTA, "masked", "classifier", ALL, {}),
    "llama that classifies": (LLAMA, "causal", "classifier", ALL, {"num_labels": 3}),
    "gpt2 that classifies": (GPT2, "causal", "classifier", ALL, {"num_labels": 3}),
    "experts that classify": (QWEN3_MOE, "causal", "classifier", ALL, {"num_labels": 3}),
    "score": (LLAMA, "causal", "score", ALL, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_here_opens_everywhere(tmp_path, case):
    sizes, kind, head, lora, options = CASES[case]
    network, _ = trained(tmp_path / "base", sizes, kind, head, lora, **options)
    expected, folder = outputs(network.model), tmp_path / "adapter"
    network.save_pretrained(folder)
    again = load(str(folder), dtype="float64")
    assert (again.head, again.has_trained_head) == (head, True)
    assert torch.equal(outputs(again.model), expected)
    labels = {"num_labels": options["num_labels"]} if "num_labels" in options else {}
    auto = AUTO[TRANSFORMERS[head]]
    assert torch.equal(outputs(PEFT[head].from_pretrained(folder, **PRECISE, **labels)), expected)
    assert torch.equal(outputs(auto.from_pretrained(folder, **PRECISE, **labels)), expected)
    network.save_pretrained(tmp_path / "merged", merged=True)
    torch.testing.assert_close(outputs(auto.from_pretrained(tmp_path / "merged", **PRECISE)), expected, rtol=0, atol=1e-12)
    assert load_network(str(folder), None, "cpu").head == head


@pytest.mark.parametrize("case", ["llama", "qwen3_moe", "bert from a base", "roberta", "llama that classifies"])
def test_a_model_without_its_head_has_the_adapter_too(tmp_path, case):
    """`AutoModel` gives the hidden states under the head, whatever the names of layers begin with."""
    sizes, kind, head, _, options = CASES[case]
    network, _ = trained(tmp_path / "base", sizes, kind, head, ALL, **options)
    network.save_pretrained(tmp_path / "adapter")
    targets = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert not any("layers.0" in name or "layer.0" in name or name in ("classifier", "score") for name in targets)
    body = AUTO["base"].from_pretrained(tmp_path / "adapter", **PRECISE)
    torch.testing.assert_close(outputs(body), outputs(network.backbone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["qwen3_moe", "bert from a masked model", "embedding and head"])
def test_copies_and_bases_of_an_adapted_network(tmp_path, case):
    """A frozen copy is a snapshot, one of an untrained adapter is the base alone, and the base stays what it was."""
    sizes, kind, head, lora, options = CASES[case]
    hub_folders.write(tmp_path, sizes, kind)
    network = load(str(tmp_path), head=head, dtype="float64", options={"lora": lora, **options})
    fresh, before = frozen_copy(network), outputs(network.model)
    torch.testing.assert_close(outputs(fresh.model), before, rtol=0, atol=1e-12)
    assert not adapters.has_adapter(fresh.model)
    fingerprint = adapters.fingerprint(network)
    shake(network)
    snapshot, moved = frozen_copy(network), outputs(network.model)
    shake(network)
    assert torch.equal(outputs(snapshot.model), moved)
    assert adapters.fingerprint(network) == fingerprint
    if head == "policy":
        torch.testing.assert_close(outputs(adapters.without_adapter(network.model)), before, rtol=0, atol=1e-12)
        assert torch.equal(outputs(network.model), outputs(frozen_copy(network).model))


def test_gradients_of_adapted_experts_are_those_of_the_low_rank_parametrisation(tmp_path):
    """W' = W + s B A with s = alpha / r = 2 for every expert; with G = dL/dW' of a plain model whose weights ARE W':
    dL/dB = s G A', dL/dA = s B' G. peft keeps A as (r e, in) by expert, and B as (out, r e) by rank."""
    lora = {"r": 3, "lora_alpha": 6, "target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}
    network, _ = trained(tmp_path, QWEN3_MOE, "causal", "policy", lora, gradient_checkpointing=True)
    plain = adapters.merge_adapter(network.model).train()
    ids = torch.randint(7, SIZES["vocab_size"], (3, 6), generator=torch.Generator().manual_seed(0))
    for model in (network.model.train(), plain.requires_grad_()):
        model(input_ids=ids).logits.square().sum().backward()
    layers = [m for m in network.model.modules() if type(m).__name__ == "ParamWrapper"]
    assert len(layers) == 2
    for layer, block in zip(layers, plain.model.layers, strict=True):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down, up = a.view(4, 3, -1), b.view(-1, 3, 4).permute(2, 0, 1)  # (experts, r, in) and (experts, out, r)
        gradient = block.mlp.experts.down_proj.grad
        torch.testing.assert_close(a.grad.view(4, 3, -1), 2 * up.mT @ gradient, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(b.grad.view(-1, 3, 4).permute(2, 0, 1), 2 * gradient @ down.mT, rtol=1e-9, atol=1e-11)


def theirs(folder, sizes, base_kind, kind, config, **labels):
    """A model adapted by peft alone, and its folder."""
    hub_folders.write(folder / "base", sizes, base_kind)
    base = AUTO[kind].from_pretrained(folder / "base", **PRECISE, **labels)
    before = outputs(base)
    model = shake(peft.get_peft_model(base, config).double())
    assert (outputs(model) - before).abs().max() > 1e-2
    model.save_pretrained(folder / "adapter")
    return model, folder / "adapter"


def lora(task, **fields):
    return peft.LoraConfig(task_type=task, r=4, **fields)


FOREIGN = {
    "causal": (LLAMA, "causal", "causal", lora("CAUSAL_LM"), {}),
    "without a task": (LLAMA, "causal", "causal", lora(None), {}),
    "dora": (LLAMA, "causal", "causal", lora("CAUSAL_LM", use_dora=True, use_rslora=True, rank_pattern={"q_proj": 2}), {}),
    "modules_to_save": (LLAMA, "causal", "causal", lora("CAUSAL_LM", modules_to_save=["lm_head", "embed_tokens"]), {}),
    "an embedding": (LLAMA, "causal", "causal", lora("CAUSAL_LM", target_modules=["q_proj", "embed_tokens"]), {}),
    "qwen3_moe": (QWEN3_MOE, "causal", "causal", lora("CAUSAL_LM", target_modules="all-linear"), {}),
    "deepseek_v3": (
        *(DEEPSEEK_V3, "causal", "causal"),
        lora("CAUSAL_LM", target_modules=["q_a_proj"], target_parameters=["mlp.experts.down_proj"]),
        {},
    ),
    "bert": (BERT, "base", "classifier", lora("SEQ_CLS", target_modules="all-linear"), {"num_labels": 3}),
    "a pooler": (BERT, "masked", "classifier", lora("SEQ_CLS", modules_to_save=["pooler"]), {"num_labels": 3}),
    "roberta": (ROBERTA, "masked", "classifier", lora("SEQ_CLS"), {"num_labels": 2}),
    "llama that classifies": (LLAMA, "causal", "classifier", lora("SEQ_CLS"), {"num_labels": 5}),
    "a reward model": (LLAMA, "causal", "classifier", lora("SEQ_CLS"), {"num_labels": 1}),
    "gpt2 that classifies": (GPT2, "causal", "classifier", lora("SEQ_CLS", fan_in_fan_out=True), {"num_labels": 3}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_peft_saved_opens_here(tmp_path, case):
    sizes, base_kind, kind, config, labels = FOREIGN[case]
    model, folder = theirs(tmp_path, sizes, base_kind, kind, config, **labels)
    network = load(str(folder), dtype="float64")
    assert network.head == {"causal": "policy", "classifier": "classifier"}[kind]
    assert network.has_trained_head
    assert network.head == "policy" or network.num_classes == labels["num_labels"]
    assert torch.equal(outputs(network.model), outputs(model))
    network.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(load(str(tmp_path / "again"), dtype="float64").model), outputs(model))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (lora("CAUSAL_LM", bias="all"), r"has bias: all, which is not supported; merge it with peft first\."),
        (lora("CAUSAL_LM", alora_invocation_tokens=[3]), r"has alora_invocation_tokens: \[3\], which is not supported"),
        (lora("CAUSAL_LM", trainable_token_indices=[3]), r"has trainable_token_indices: \[3\], which is not supported"),
        (lora("CAUSAL_LM", lora_bias=True, target_modules=["q_proj"]), r"has lora_bias: True, which is not supported"),
        (peft.IA3Config(task_type="CAUSAL_LM"), r"is of peft_type IA3; LORA is supported\."),
    ],
)
def test_adapters_that_compute_something_else_are_refused(tmp_path, config, sentence):
    hub_folders.write(tmp_path / "base", LLAMA, "causal")
    model = peft.get_peft_model(AUTO["causal"].from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=rf"^model: the adapter in {tmp_path / 'adapter'} {sentence}"):
        load(str(tmp_path / "adapter"))


def edit_config(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_adapter_without_its_trained_head_is_refused(tmp_path):
    """peft saves no pooler that its base did not hold: the one it was trained with is lost."""
    _, folder = theirs(tmp_path, BERT, "masked", "classifier", lora("SEQ_CLS"), num_labels=3)
    with pytest.raises(ConfigError, match=r"lacks the trained head \(bert.pooler.dense.bias, bert.pooler.dense.weight\); give a complete"):
        load(str(folder))


def test_folders_that_are_damaged_are_sentences(tmp_path):
    _, folder = theirs(tmp_path, LLAMA, "causal", "causal", lora("CAUSAL_LM"))
    edit_config(folder, task_type="TOKEN_CLS")
    with pytest.raises(ConfigError, match=r"is of task_type TOKEN_CLS; known: CAUSAL_LM, SEQ_CLS, FEATURE_EXTRACTION\.$"):
        load(str(folder))
    edit_config(folder, task_type="FEATURE_EXTRACTION")
    with pytest.raises(ConfigError, match=r"was trained for features and has no head; train one \(head: score or value\)\.$"):
        load(str(folder))
    edit_config(folder, task_type="CAUSAL_LM", base_model_name_or_path=str(folder))
    with pytest.raises(ConfigError, match=r"holds an adapter and its own base; put the adapter in a folder of its own\.$"):
        load(str(folder))
    edit_config(folder, base_model_name_or_path=str(tmp_path / "base"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(
        ConfigError, match=r"adapter holds its weights in adapter_model.bin alone, a pickle, which is not read, since that runs code;"
    ):
        load(str(folder))
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"adapter_config.json cannot be read \(.*\); give a complete folder\.$"):
        load(str(folder))


def test_class_names_are_saved_and_compared(tmp_path):
    network, _ = trained(tmp_path / "base", BERT, "base", "classifier", ALL, num_labels=3)
    network.name_classes(["bad", "fair", "good"])
    network.save_pretrained(tmp_path / "adapter")
    assert load(str(tmp_path / "adapter")).class_names == ("bad", "fair", "good")
    labels = {"id2label": {0: "good", 1: "fair", 2: "bad"}, "label2id": {"good": 0, "fair": 1, "bad": 2}}
    hub_folders.write(tmp_path / "named", BERT, "classifier", **labels)
    other = load(str(tmp_path / "named"), dtype="float64", options={"lora": ALL})
    other.save_pretrained(tmp_path / "other")
    assert load(str(tmp_path / "other")).class_names == ("good", "fair", "bad")
    edit = json.loads((tmp_path / "other" / "advalign.json").read_text()) | {"class_names": ["bad", "fair", "good"]}
    (tmp_path / "other" / "advalign.json").write_text(json.dumps(edit))
    with pytest.raises(ConfigError, match=r"was trained on the classes bad, fair, good, and its base names good, fair, bad\.$"):
        load(str(tmp_path / "other"))


def test_an_adapter_by_its_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model, folder = theirs(tmp_path, LLAMA, "causal", "causal", lora("CAUSAL_LM"))
    edit_config(folder, base_model_name_or_path="some/base", revision="main")
    put_into_cache(tmp_path / "hub", "some/base", lambda target: shutil.copytree(tmp_path / "base", target))
    put_into_cache(tmp_path / "hub", "some/adapter", lambda target: shutil.copytree(folder, target))
    network = load("some/adapter", dtype="float64", options={"revision": "main"})
    assert (network.head, network.source, network.revision) == ("policy", "some/base", "main")
    assert torch.equal(outputs(network.model), outputs(model))
    network.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/base", "main")


def test_a_head_in_a_file_of_its_own_is_read(tmp_path):
    """As earlier versions of this library wrote it."""
    network, _ = trained(tmp_path / "base", BERT, "base", "classifier", {"r": 4, "target_modules": ["query"]}, num_labels=3)
    folder = tmp_path / "adapter"
    network.save_pretrained(folder)
    state = load_file(folder / "adapter_model.safetensors")
    heads = {k.removeprefix("base_model.model."): state.pop(k) for k in list(state) if "lora_" not in k}
    save_file(state, folder / "adapter_model.safetensors")
    save_file(heads, folder / "classifier_head.safetensors")
    edit_config(folder, modules_to_save=None, task_type=None)
    again = load(str(folder), dtype="float64")
    assert again.has_trained_head
    assert torch.equal(outputs(again.model), outputs(network.model))


def test_a_base_without_a_name_moves_with_its_adapter(tmp_path):
    """peft knows it by its place; a folder that was moved opens here."""
    network = load(
        "scratch:encoder-tiny?hidden_size=32", head="classifier", tokenizer={"kind": "words"}, texts=["a b c d"], options={"lora": ALL}
    )
    shake(network).save_pretrained(tmp_path / "one")
    expected = network.model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "one").eval()
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]])).logits, expected)
    (tmp_path / "one").rename(tmp_path / "two")
    assert torch.equal(load(str(tmp_path / "two")).model.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits, expected)


def test_mistakes_in_modules_to_save_are_sentences(tmp_path):
    hub_folders.write(tmp_path, LLAMA, "causal")
    with pytest.raises(ConfigError, match=r"^model.options.lora.modules_to_save: LlamaForCausalLM has no module 'lm_heat'\.$"):
        load(str(tmp_path), options={"lora": QUERIES | {"modules_to_save": ["lm_heat"]}})
    classifier = load(str(tmp_path), head="classifier", dtype="float64", options={"lora": QUERIES | {"modules_to_save": ["score"]}})
    assert {n for n, p in classifier.named_parameters() if p.requires_grad and "lora_" not in n} == {"model.score.weight"}
