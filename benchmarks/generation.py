"""Sampling in this process: the embedded engine against `transformers.generate`, at equal settings, side by side.

One causal LM of 10 million parameters (Qwen2 shape, random weights), 8 prompts with 8 responses each, float32, one thread. Four
settings: short prompts and long responses, long prompts and short responses, lengths with a heavy tail (responses end at random, on
average after a quarter of the maximum), and prompts of unlike lengths. Runs alternate; the ratio is of the medians.

    python benchmarks/generation.py                  make bench-generation: writes benchmarks/results/generation.json
    python benchmarks/generation.py --device cuda    a larger model in bfloat16 -> benchmarks/results/generation_gpu.json

About 10 CPU-minutes. Ends are forced by a schedule that both sides follow, so that both decode the same number of tokens: the token
that ends a response is made certain at its place and impossible elsewhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import about, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from advalign.models import Network
from advalign.models.encode import Encoder
from advalign.rollout.hf import HF
from advalign.types import Example, RolloutGroup, Sampling

GROUPS, SIZE = 8, 8
# name: (prompt lengths, new tokens, whether responses end early)
SETTINGS: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "short prompts, long responses": ((40,) * GROUPS, 128, False),
    "long prompts, short responses": ((200,) * GROUPS, 64, False),
    "heavy-tailed lengths": ((40,) * GROUPS, 128, True),
    "prompts of unlike lengths": (tuple(20 + 25 * i for i in range(GROUPS)), 64, False),
}
SHAPES = {
    "cpu": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5, "vocab_size": 8192},
    "cuda": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "vocab_size": 151936},
}
END, PAD = 1, 0


def network(device: str) -> Network:
    shape = SHAPES[device]
    config = Qwen2Config(**shape, num_key_value_heads=shape["num_attention_heads"], max_position_embeddings=1024, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    known = {"<pad>": PAD, "<end>": END, "<unk>": 2} | {f"w{i}": i for i in range(3, shape["vocab_size"])}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    made = Network(model, Encoder(tokenizer, max_length=1024, bidirectional=False), "policy")
    return made.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


class Ends(LogitsProcessor):
    """Row i ends at its own place: the end is certain there, and impossible before."""

    def __init__(self, ends: torch.Tensor) -> None:
        self.ends, self.step = ends, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, END] = -torch.inf
        now = self.ends <= self.step
        scores[now] = -torch.inf
        scores[now, END] = 0.0
        self.step += 1
        return scores


def ours(net: Network, prompts: list[list[int]], number: int, ends: torch.Tensor) -> int:
    """The engine, its head replaced by one that ends rows on schedule. Rows leave, so the schedule goes by draws, not by place."""
    groups = [RolloutGroup(example=Example(prompt=""), prompt_ids=p, rollouts=[]) for p in prompts]
    head, engine = net.next_token_logits, HF()
    state: dict[str, Any] = {"step": 0}

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found = head(hidden)
        found[:, END] = -torch.inf
        left = state["rows"]
        if len(found) < len(left):  # those that ended are gone
            state["rows"] = left = left[state["kept"](left, len(found))]
        now = ends[left] <= state["step"]
        found[now] = -torch.inf
        found[now, END] = 0.0
        state["step"] += 1
        return found

    state["rows"] = torch.arange(len(prompts) * SIZE)
    # The engine keeps those that have not ended, in order.
    state["kept"] = lambda left, n: (ends[left] > state["step"] - 1).nonzero().squeeze(1)
    object.__setattr__(net, "next_token_logits", logits)
    try:
        engine.extend(net, groups, SIZE, Sampling(max_new_tokens=number), torch.Generator().manual_seed(0))
    finally:
        object.__delattr__(net, "next_token_logits")
    return sum(len(r.response_ids) for g in groups for r in g.rollouts)


def theirs(net: Network, prompts: list[list[int]], number: int, ends: torch.Tensor) -> int:
    """`generate` as a trainer calls it: every prompt repeated, left padded, sampling at temperature 1."""
    width = max(map(len, prompts))
    rows = [p for p in prompts for _ in range(SIZE)]
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in rows], device=net.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in rows], device=net.device)
    torch.manual_seed(0)
    with torch.no_grad():
        found = net.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=number,
            pad_token_id=PAD, eos_token_id=END, logits_processor=[Ends(ends.to(net.device))],
        )  # fmt: skip
    return int((found[:, width:] != PAD).sum())


def timed(run: Callable[[], int], device: str) -> tuple[float, int]:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    tokens = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, tokens


def setting(net: Network, name: str, device: str, repeats: int) -> dict[str, Any]:
    lengths, number, early = SETTINGS[name]
    generator = torch.Generator().manual_seed(1)
    vocabulary = SHAPES[device]["vocab_size"]
    prompts = [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]
    rows = len(prompts) * SIZE
    # Geometric ends with a mean of a quarter of the maximum; never: beyond it.
    drawn = torch.empty(rows).geometric_(4 / number, generator=generator).long().clamp(max=number - 1)
    ends = drawn if early else torch.full((rows,), number)
    seconds: dict[str, list[float]] = {"advalign": [], "transformers": []}
    tokens = {}
    for repeat in range(repeats + 1):
        for who, run in (("advalign", ours), ("transformers", theirs)):
            took, tokens[who] = timed(lambda run=run: run(net, prompts, number, ends), device)
            if repeat:  # the first warms up
                seconds[who].append(took)
    found = {who: {"seconds": median(times), "all": times, "tokens": tokens[who]} for who, times in seconds.items()}
    return found | {"ratio": found["transformers"]["seconds"] / found["advalign"]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = network(args.device)
    found = {name: setting(net, name, args.device, args.repeats) for name in SETTINGS}
    for name, row in found.items():
        print(
            f"{name}: advalign {row['advalign']['seconds']:.2f} s, transformers {row['transformers']['seconds']:.2f} s, x{row['ratio']:.2f}"
        )
    names = {"cpu": ("generation", "make bench-generation"), "cuda": ("generation_gpu", "python benchmarks/generation.py --device cuda")}
    path, command = names[args.device]
    shape = SHAPES[args.device] | {"prompts": GROUPS, "responses": SIZE, "parameters": sum(p.numel() for p in net.parameters())}
    save(f"benchmarks/results/{path}.json", {**about(command), "model": shape, "repeats": args.repeats, "settings": found})


if __name__ == "__main__":
    main()
