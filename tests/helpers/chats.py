"""Tiny random models with a chat template, and conversations for them. The template writes the names of roles as plain words, so that
what only looks at text takes them for words of the user."""

from functools import lru_cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from advalign.models import Encoder, Network
from advalign.types import Example
from advalign.types.messages import conversation

from . import tokenizer_kinds as kinds

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
TURNS = [
    {"role": "system", "content": "be polite"},
    {"role": "user", "content": "hello the cat"},
    {"role": "assistant", "content": "hello you"},
    {"role": "user", "content": "say a color"},
]
TOOLS = [
    {"role": "user", "content": "say a color"},
    {"role": "assistant", "content": "the cat sat"},
    {"role": "tool", "content": "good movie"},
]


HEARD = []
"""The roles of the conversations that `shout` has attacked."""


def shout(target, prompt, rng, example):
    """An attacker for the command line."""
    HEARD.append([turn.role for turn in example.prompt.messages])
    return [prompt.upper()]


def tokenizer(kind="byte_pairs", template=TEMPLATE):
    made = getattr(kinds, kind)()
    made.chat_template = template
    return made


@lru_cache
def policy(kind="byte_pairs", template=TEMPLATE, max_length=128, seed=0):
    """A random language model in float64."""
    return _network(AutoModelForCausalLM, "policy", tokenizer(kind, template), max_length, seed)


@lru_cache
def classifier(kind="byte_pairs", template=TEMPLATE, max_length=128, seed=0):
    """A random guard model: two classes of whole conversations."""
    return _network(AutoModelForSequenceClassification, "classifier", tokenizer(kind, template), max_length, seed)


def chat(turns=TURNS, **fields):
    """An example whose prompt is a conversation."""
    return Example(prompt=conversation(turns), **{"id": "0", "answer": "red", **fields})


def rendered(network, turns, text=None, **options):
    """What `apply_chat_template` of transformers makes of messages; `text` in the place of the last user turn's."""
    turns = [dict(turn) for turn in turns]
    if text is not None:
        place = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
        turns[place]["content"] = text
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **options}
    return network.encoder.tokenizer.apply_chat_template(turns, **options)


def _network(auto, head, tok, max_length, seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model("gpt2", vocab_size=len(tok), pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id, **SIZES)
    model = auto.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Network(model, Encoder(tok, max_length=max_length), head, pooling="last").eval()
