"""GGUF files as models: converted once, with the numbers of the file, and refused in a sentence where they are not whole."""

import multiprocessing
import os
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from advalign.errors import ConfigError
from advalign.models import ModelSpec, folders, gguf_files, load
from advalign.models.load import meta_network

pytest.importorskip("gguf", reason="the package gguf is not installed: no GGUF files")
from helpers import gguf_models

PROMPT = "ab"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(gguf_files.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def model():
    return gguf_models.llama()


@pytest.fixture
def file(tmp_path, model):
    return gguf_models.write(tmp_path / "tiny.gguf", model)


def logits(network, ids):
    with torch.no_grad():
        return network.model(ids).logits


IDS = torch.arange(3, 23)[None]


def test_the_numbers_are_those_of_the_model_that_was_written(file, model):
    network = load(str(file))
    with torch.no_grad():
        assert torch.equal(logits(network, IDS), model(IDS).logits)
    assert (network.head, network.source, network.dtype) == ("policy", str(file), torch.float32)
    assert network.stop_ids == {2}


def test_blocks_are_unpacked_to_the_numbers_that_they_stand_for(tmp_path, model):
    network = load(str(gguf_models.write(tmp_path / "q8.gguf", model, quantised=True)))
    # Q8_0: 32 numbers share a scale of max|w| / 127, which is rounded to 11 bits, and are rounded to it: an error of half a step.
    weight, unpacked = model.model.layers[0].mlp.up_proj.weight.view(-1, 32), network.model.model.layers[0].mlp.up_proj.weight.view(-1, 32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((weight - unpacked).abs() <= 0.5 * step + 2**-11 * weight.abs() + 1e-7).all()
    assert not torch.equal(weight, unpacked)
    levels = unpacked / unpacked.abs().amax(1, keepdim=True) * 127
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_the_tokenizer_is_that_of_the_file(file):
    encoder = load(str(file)).encoder
    assert (encoder.tokenizer.eos_token, encoder.tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert encoder.tokenizer.chat_template == gguf_models.CHAT_TEMPLATE
    assert encoder.tokenizer.decode(encoder.prompt(PROMPT)) == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"


def test_where_the_end_of_a_turn_is_also_the_padding_it_stays_a_target(file):
    rows = load(str(file)).encoder.demos([PROMPT, PROMPT], ["xyz", "x"])
    ends = rows.ids == 2
    # Two ends of turn in each row: of the user, and of the assistant, which is a target. What pads the shorter row is neither.
    assert (ends & rows.mask).sum(1).tolist() == [2, 2]
    assert (ends & rows.target).sum(1).tolist() == [1, 1]
    assert rows.mask.sum(1).tolist() == [rows.ids.shape[1], rows.ids.shape[1] - 2]
    assert not (rows.target & ~rows.mask).any()


def test_what_was_loaded_is_saved_as_an_ordinary_model(file, tmp_path):
    network = load(str(file))
    network.save_pretrained(tmp_path / "saved")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, logits(network, IDS))
    assert tokenizer.chat_template == gguf_models.CHAT_TEMPLATE
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == plain.generation_config.eos_token_id == 2
    assert "quantization_config" not in plain.config.to_dict()
    assert "license: apache-2.0\n" in (tmp_path / "saved" / "README.md").read_text()


def test_it_is_converted_once(file, cache, monkeypatch):
    load(str(file))
    monkeypatch.setattr(gguf_files, "_read", lambda file: pytest.fail("read again"))
    load(str(file))
    copied = shutil.copy(file, file.with_name("another name.gguf"))
    load(str(copied))  # the content counts
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


def test_a_damaged_conversion_is_made_anew(file, cache):
    load(str(file))
    (folder,) = (folder for folder in cache.iterdir() if folder.is_dir())
    (folder / "model.safetensors").write_bytes(b"")
    assert load(str(file)).stop_ids == {2}


def test_a_changed_file_is_another_model(file, model, cache):
    before = logits(load(str(file)), IDS)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    gguf_models.write(file, model)
    torch.testing.assert_close(logits(load(str(file)), IDS), 2 * before)


def _loads(file, queue):
    try:
        queue.put(str(folders.model_folder(file)))
    except BaseException as error:
        queue.put(repr(error))
        raise


def test_two_processes_may_convert_at_once(file, cache):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_loads, args=(str(file), queue)) for _ in range(2)]
    for process in processes:
        process.start()
    places = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert places == {str(folders.model_folder(str(file)))}
    assert not [path for path in cache.iterdir() if path.name.startswith(".partial")]
    assert load(str(file)).stop_ids == {2}


def test_a_folder_with_one_file_a_package_and_the_working_folder(file, tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_a_model"
    package.mkdir()
    shutil.move(file, package / "tiny.gguf")
    (package / "__init__.py").write_text("raise ImportError('is not imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = ("package:carrier_of_a_model/tiny.gguf", str(package), "carrier_of_a_model/tiny.gguf")
    assert len({folders.model_folder(name) for name in names}) == 1
    assert "carrier_of_a_model" not in sys.modules
    with pytest.raises(ConfigError, match=r"the package 'carrier_of_a_model' has no file 'tin\.gguf'\. Did you mean '.*/tiny\.gguf'"):
        load("package:carrier_of_a_model/tin.gguf")
    with pytest.raises(ConfigError, match="no folder"):
        load("package:carrier_of_a_model/../tiny.gguf")


def test_a_folder_with_safetensors_stays_what_it_is(file, tmp_path):
    load(str(file)).save_pretrained(tmp_path / "saved")
    shutil.copy(file, tmp_path / "saved")
    assert folders.model_folder(str(tmp_path / "saved")) == tmp_path / "saved"


def test_a_hub_id_with_a_file(file, monkeypatch):
    asked = []

    def download(repo, name, revision=None):
        asked.append((repo, name, revision))
        return str(file)

    monkeypatch.setattr(gguf_files, "cached_file", download)
    network = load("some-lab/tiny-gguf/q8/tiny.gguf", options={"revision": "v1"})
    assert set(asked) == {("some-lab/tiny-gguf", "q8/tiny.gguf", "v1")}
    assert (network.source, network.revision) == ("some-lab/tiny-gguf/q8/tiny.gguf", "v1")


def test_an_adapter_remembers_the_file(file, tmp_path):
    pytest.importorskip("peft")
    network = load(str(file), options={"lora": {"r": 2, "target_modules": ["q_proj"]}})
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.5)
    network.save_pretrained(tmp_path / "adapter")
    assert folders.adapter_base(tmp_path / "adapter") == str(file)
    again = load(str(tmp_path / "adapter"))
    assert torch.equal(logits(again, IDS), logits(network, IDS))
    again.save_pretrained(tmp_path / "merged", merged=True)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits
    torch.testing.assert_close(merged, logits(network, IDS), atol=1e-4, rtol=1e-4)


def test_its_cost_is_known_without_weights(file):
    network = meta_network(ModelSpec(model=str(file)))
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in gguf_models.llama().parameters())


def test_its_hash_is_that_of_the_file(file):
    digest = gguf_files.digest(file)
    load(str(file), options={"sha256": digest.upper()})
    with pytest.raises(ConfigError, match=rf"tiny\.gguf has sha256 {digest}, expected 0000"):
        load(str(file), options={"sha256": "0" * 64})


def test_the_cache_is_where_the_user_keeps_caches(tmp_path, monkeypatch):
    monkeypatch.delenv(gguf_files.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf_files.cache_folder() == tmp_path / "advalign"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf_files.cache_folder() == tmp_path / ".cache" / "advalign"


# ----------------------------------------------------------------------------------------------------- refusals


def refusal(name, **arguments):
    with pytest.raises(ConfigError) as error:
        load(str(name), **arguments)
    sentence = str(error.value)
    assert sentence.startswith("model"), sentence
    assert "\n" not in sentence, sentence
    return sentence


@pytest.mark.parametrize("part", [0.02, 0.3, 0.95])
def test_a_cut_file(file, part, cache):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    assert "tiny.gguf cannot be read (" in refusal(file)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_no_gguf_file(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    assert "is not a GGUF file: it begins with b'hell', not b'GGUF'" in refusal(tmp_path / "text.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    assert "is not a GGUF file" in refusal(tmp_path / "empty.gguf")


def test_a_file_that_is_not_there(file):
    assert refusal(file.with_name("tony.gguf")).endswith(f"has no file 'tony.gguf'. Did you mean '{file}'?")
    assert "cannot be had from the hub" in refusal("nobody/nothing/tiny.gguf")


def test_several_files_in_a_folder(file, tmp_path):
    shutil.copy(file, tmp_path / "other.gguf")
    assert "holds 2 GGUF files (other.gguf, tiny.gguf); name one" in refusal(tmp_path)


def test_the_file_belongs_to_the_name(file, tmp_path):
    assert refusal(tmp_path, options={"gguf_file": "tiny.gguf"}).endswith("give model: <folder or hub id>/tiny.gguf.")


def test_parts_of_a_model(file, tmp_path, model):
    part = tmp_path / "big-00001-of-00003.gguf"
    os.rename(file, part)
    shutil.copy(part, tmp_path / "big-00002-of-00003.gguf")
    assert "is one part of a model that was split; join the parts" in refusal(part)
    assert "is one part of a model that was split; join the parts" in refusal(tmp_path)
    assert "is one part of 3" in refusal(gguf_models.write(tmp_path / "renamed.gguf", model, split_count=3))


def test_what_is_no_model(tmp_path, model):
    assert "holds a GGUF of type 'adapter'" in refusal(gguf_models.write(tmp_path / "a.gguf", model, type="adapter"))


def test_an_architecture_that_transformers_does_not_read(tmp_path, model):
    sentence = refusal(gguf_models.write(tmp_path / "a.gguf", model, architecture="plamo"))
    assert "architecture plamo is not supported" in sentence
    assert "Known: bloom, " in sentence
    assert ", llama, " in sentence


def test_weights_that_are_not_there(tmp_path, model):
    sentence = refusal(gguf_models.write(tmp_path / "a.gguf", model, leave_out="blk.1.ffn_up.weight"))
    assert "lacks 1 of the weights of LlamaForCausalLM (model.layers.1.mlp.up_proj.weight)" in sentence


def test_without_the_package(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "needs the package gguf; pip install 'advalign[gguf]'" in refusal(file)
