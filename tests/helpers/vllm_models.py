"""Small models that vLLM can run on a CPU (heads of 32 features), and how tests move their weights."""

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from advalign.models import Network, adapters, load
from advalign.tasks.constraints import Constraints

OPTIONS = {"enforce_eager": True, "kv_cache_memory_bytes": 2**26}
LORA = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}


def move(network, scale=0.1, seed=1):
    """The learner's weights, somewhere else."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        if p.requires_grad:
            p.data.add_(scale * torch.randn(p.shape, generator=generator))


def llama(options=None):
    """Embeddings tied to the head."""
    tokenizer = {"tokenizer": {"kind": "words"}, "texts": Constraints().vocabulary()}
    net = load("scratch:tiny?hidden_size=128", max_length=32, options=options or {}, **tokenizer)
    for p in net.parameters():  # an untrained model is nearly uniform: every choice would be a coin toss
        p.data.mul_(3.0)
    return net


def qwen():
    """A head of its own, biases, fewer keys than queries, in the shape of Qwen2."""
    like = llama()
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": len(like.encoder.tokenizer), "pad_token_id": 0, "eos_token_id": like.encoder.eos_id, "bos_token_id": None}
    config = Qwen2Config(**sizes, **ids, max_position_embeddings=32, tie_word_embeddings=False)
    net = Network(AutoModelForCausalLM.from_config(config), like.encoder, "policy")
    for p in net.parameters():
        p.data.mul_(3.0)
    return net


KINDS = {"llama": llama, "qwen2": qwen, "lora": lambda: llama({"lora": LORA, "seed": 0})}


def lora_over(network):
    """An adapter on a network."""
    adapters.inject(network, LORA)
    return network
