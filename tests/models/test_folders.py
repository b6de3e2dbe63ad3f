"""Folders and names of models that are not what they should be: one sentence with the file or the name, before any weight is read."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from helpers import hub_folders
from helpers.hub_folders import BERT, LLAMA

from advalign.errors import ConfigError
from advalign.models import folders, load

NO_OBJECTS = {
    "empty": b"",
    "cut": b"{",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"5",
    "not UTF-8": b"\xff\xfe{}",
    "NUL": b"\0\0",
}
WRONG_FACTS = {
    "head": ["nope", 5, None, []],
    "max_length": [0, -1, "x", None, 1.5, True],
    "pooling": ["nope", 5],
    "bidirectional": ["x", 5, None],
    "spectral_norm": ["x", 5],
    "head_dropout": ["x", -1, 2, True],
    "chat_template_kwargs": [5, "x"],
    "special_tokens_in_text": [5, "nope"],
    "truncation": [5, "nope"],
    "class_names": [5, [5]],
    "num_labels": ["x", -3],
    "version": [2],
}
WRONG_CONFIGS = {
    "num_hidden_layers": [0, -1, "x", 10**9],
    "vocab_size": [0, -1, "x"],
    "max_position_embeddings": [0, -1, "x"],
    "architectures": [5, "x", [5]],
    "model_type": [5, [], ""],
}
WRONG_ADAPTERS = {
    "r": [0, -1, "x", 1.5],
    "lora_alpha": ["x", -1],
    "target_modules": [5, [5], {"a": 1}, "("],
    "modules_to_save": [5],
    "rank_pattern": [5, {"a": "x"}],
    "base_model_name_or_path": [5, {"a": 1}],
    "peft_type": ["IA3", 5, None],
}
WRONG_OPTIONS = [
    *(("num_labels", value) for value in ("x", 0, -1)),
    *(("seed", value) for value in ("x", -1)),
    *(("compile", value) for value in ("x", 5)),
    *(("gradient_checkpointing", value) for value in ("x", {})),
    *(("lora", value) for value in (5, "x", [])),
    *(("adapter", value) for value in (5, "", [])),
    *(("sha256", value) for value in (5, "x", "0" * 63)),
    *(("revision", value) for value in (5, "")),
    *(("chat_template_kwargs", value) for value in (5, "x")),
]
NO_MODELS = {
    "": "model: .. given",
    " ": "model: . . given",
    "a" * 5000: "File name too long",
    "~nobody-of-this-name/x": "cannot be opened",
    "./lama": r"no folder './lama'",
    "package:": "package",
    "package:no_such_package/x": "not installed",
    "package:json": "has no folder ''",
    "package:json/nope": "has no folder 'nope'",
    "package:json/../../../etc": "has no folder '../../../etc' inside it",
    "package:json//etc": "has no folder '/etc' inside it",
    "package:../x": "package",
    "scratch:": "no scratch preset ''",
    "scratch:tinny": r"no scratch preset 'tinny'.*Did you mean 'tiny'",
    "scratch:tiny?layers=1": "no option of scratch:tiny 'layers'",
    "scratch:tiny?num_hidden_layers=0": "num_hidden_layers: 0 given",
    "scratch:tiny?num_hidden_layers": "num_hidden_layers: '' given",
    "scratch:tiny?hidden_size=1.5": "hidden_size: 1.5 given",
    "scratch:tiny?hidden_size=97": "no multiple of num_attention_heads",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders: plain, score (of this library) and adapter."""
    root = tmp_path_factory.mktemp("saved")
    hub_folders.write(root / "plain", LLAMA, "causal")
    load(str(root / "plain"), head="score").save_pretrained(root / "score")
    load(str(root / "plain"), options={"lora": {"r": 2}}).save_pretrained(root / "adapter")
    return root


@pytest.fixture
def copy(saved, tmp_path):
    def copy(kind):
        shutil.copytree(saved / kind, tmp_path / kind)
        return tmp_path / kind

    return copy


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        load(str(folder))
    assert "\n" not in str(error.value)


FILES = [
    *(("plain", name) for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")),
    ("score", "advalign.json"),
    *(("adapter", name) for name in ("adapter_config.json", "advalign.json")),
]


@pytest.mark.parametrize("content", NO_OBJECTS)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_that_is_no_object_of_json_is_named(copy, kind, name, content):
    folder = copy(kind)
    (folder / name).write_bytes(NO_OBJECTS[content])
    refused(folder, "the tokenizer of" if name == "tokenizer.json" else rf"{re.escape(name)} (cannot be read|holds no mapping)")


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_that_is_a_folder_or_a_link_to_nothing_is_named(copy, kind, name):
    folder = copy(kind)
    (folder / name).unlink()
    (folder / name).symlink_to("/no/such/file")
    refused(folder, "the tokenizer of" if name == "tokenizer.json" else rf"{re.escape(name)} cannot be read \(No such file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "the tokenizer of" if name == "tokenizer.json" else rf"{re.escape(name)} cannot be read \(Is a directory")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_FACTS.items() for value in values])
def test_a_fact_of_the_wrong_kind_is_named(copy, name, value):
    folder = copy("score")
    edit(folder / "advalign.json", **{name: value})
    refused(folder, rf"advalign\.json: .*{name}")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_CONFIGS.items() for value in values])
def test_a_configuration_with_an_impossible_size_is_refused(copy, name, value):
    folder = copy("plain")
    edit(folder / "config.json", **{name: value})
    refused(folder, rf"config\.json: {name}")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_ADAPTERS.items() for value in values])
def test_an_adapter_s_configuration_of_the_wrong_kind_is_refused(copy, name, value):
    folder = copy("adapter")
    edit(folder / "adapter_config.json", **{name: value})
    refused(folder, r"^model")


@pytest.mark.parametrize(("name", "value"), WRONG_OPTIONS)
def test_an_option_of_the_wrong_kind_is_refused(saved, name, value):
    with pytest.raises(ConfigError, match=rf"^model\.options\.{name}: {re.escape(repr(value))} given; "):
        load(str(saved / "plain"), options={name: value})


@pytest.mark.parametrize("tokenizer", [5, [], {"kind": 5}, {"kinds": "words"}, {"size": "x"}, {"size": 0}, "/no/such/folder"])
def test_a_tokenizer_that_is_none_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="tokenizer"):
        load("scratch:tiny", tokenizer=tokenizer, texts=["a b"])


@pytest.mark.parametrize("model", NO_MODELS)
def test_a_name_that_leads_to_no_model_is_refused(model):
    with pytest.raises(ConfigError, match=NO_MODELS[model]):
        load(model, tokenizer={"kind": "words"}, texts=["a b c"])


def test_a_file_is_no_folder_and_the_nearest_folder_is_named(saved):
    with pytest.raises(ConfigError, match="is a file, and a model is a folder"):
        load(str(saved / "plain" / "model.safetensors"))
    with pytest.raises(ConfigError, match=r"no folder '.*plan'. Did you mean '.*plain'"):
        load(str(saved / "plan"))


@pytest.mark.parametrize("kind", ["plain", "adapter"])
def test_weights_in_pickles_are_refused_and_never_run(copy, tmp_path, kind):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    folder = copy(kind)
    name = {"plain": "pytorch_model.bin", "adapter": "adapter_model.bin"}[kind]
    (folder / {"plain": "model.safetensors", "adapter": "adapter_model.safetensors"}[kind]).unlink()
    (folder / name).write_bytes(pickle.dumps(Evil()))
    refused(folder, rf"holds its weights in {name} alone, a pickle")
    torch.save({"w": torch.ones(1)}, folder / name)
    refused(folder, rf"holds its weights in {name} alone, a pickle")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": 5}, "has no weight_map"),
        ({"weight_map": {"w": 5}}, "has no weight_map"),
        ({"weight_map": {"w": "../../etc/passwd"}}, "names '../../etc/passwd', which is not a file of this folder"),
        ({"weight_map": {"w": "model-00002-of-00002.safetensors"}}, "names 'model-00002-of-00002.safetensors', which is not there"),
    ],
)
def test_an_index_names_shards_that_are_there(copy, index, sentence):
    folder = copy("plain")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}} | index))
    refused(folder, sentence)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 3000])
@pytest.mark.parametrize(
    ("kind", "name"),
    [("plain", "model.safetensors"), ("adapter", "adapter_model.safetensors"), ("score", "scalar_head.safetensors")],
)
def test_weights_that_are_cut_are_refused(copy, kind, name, length):
    folder = copy(kind)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: min(length, len(content) - 1)])
    refused(folder, "header|cannot be read")


def test_two_classes_of_one_name_are_refused(tmp_path):
    hub_folders.write(tmp_path, BERT, "classifier", id2label={0: "good", 1: "good"}, label2id={"good": 0})
    refused(tmp_path, r"calls 2 of its classes 'good'")


def test_every_fact_that_is_saved_has_a_type(saved):
    for kind in ("score", "adapter"):
        assert folders.saved_facts(saved / kind) == json.loads((saved / kind / "advalign.json").read_text())
