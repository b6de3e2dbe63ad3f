"""What sampling ahead saves: seconds per GRPO step with `ahead: 0` and `ahead: 1`, the same model, prompts and lengths.

A causal LM of 2.6 million parameters (Qwen2 shape, random weights), 4 prompts of 24 tokens with 8 responses of 48 tokens each, float32,
one thread for the update and one for sampling. Two engines: `hf`, a thread of this process (Python's lock is shared), and `vllm`, a
server process (its weights go over by files at every step). Runs alternate; of each run the first step, which has nothing to overlap,
and the last, beside which nothing is sampled any more, are left out.

    python benchmarks/async_rollouts.py              make bench-async: writes benchmarks/results/async_rollouts.json

A ratio is of two runs that follow each other. `bound` is max(sampling, rest) / (sampling + rest) of the runs without overlap: what two
processors that share nothing would need.
`load` is how many processes wanted a processor in the last five minutes, these included: where others run beside it, there is less to
overlap. About 15 minutes on two hardware threads.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import about, save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from advalign import Callback, Correction, Learner, Sampling, Trainer, TrainingArguments
from advalign.advantages.group import Group
from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.models.encode import Encoder
from advalign.objectives.grpo import GRPO
from advalign.rewards.function import Function
from advalign.rollout.hf import HF
from advalign.rollout.vllm import VLLM
from advalign.sources.prompts import Prompts
from advalign.types import RolloutGroup

PROMPTS, GROUP, WIDTH, NEW, VOCABULARY = 4, 8, 24, 48, 2048
SHAPE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 6}


def network() -> Network:
    config = Qwen2Config(
        **SHAPE, vocab_size=VOCABULARY, max_position_embeddings=128, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0
    )
    torch.manual_seed(0)
    words = Tokenizer(
        models.WordLevel({f"w{i}" if i > 2 else ("<pad>", "<end>", "<unk>")[i]: i for i in range(VOCABULARY)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return Network(Qwen2ForCausalLM(config), Encoder(tokenizer, max_length=128), "policy")


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of even tokens: something that differs inside a group."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


class Timed(RolloutEngine):
    """A rollout engine, and how long it sampled in each call."""

    def __init__(self, rollout_engine: RolloutEngine) -> None:
        self.rollout_engine, self.seconds = rollout_engine, list[float]()

    def sync(self, network: Any, version: int) -> None:
        start = time.perf_counter()
        self.rollout_engine.sync(network, version)
        self.seconds.append(time.perf_counter() - start)

    def generate(self, *arguments: Any) -> list[RolloutGroup]:
        start = time.perf_counter()
        groups = self.rollout_engine.generate(*arguments)
        self.seconds[-1] += time.perf_counter() - start
        return groups

    def extend(self, *arguments: Any) -> list[RolloutGroup]:
        return self.rollout_engine.extend(*arguments)


class Steps(Callback):
    """A callback that notes when each step ended."""

    def __init__(self) -> None:
        self.ends = list[float]()

    def on_step(self, trainer: Any, logs: Any) -> None:
        self.ends.append(time.perf_counter())


def run(rollout_engine: RolloutEngine, ahead: int, steps: int) -> dict[str, list[float]]:
    """Seconds of every step but the first and the last, and of sampling for those."""
    generator = torch.Generator().manual_seed(1)
    texts = [" ".join(f"w{i}" for i in torch.randint(3, VOCABULARY, (WIDTH,), generator=generator).tolist()) for _ in range(64)]
    timed, clock = Timed(rollout_engine), Steps()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.txt"
        file.write_text("\n".join(texts))
        source = Prompts(
            data=str(file),
            rewards=[Function(fn=even)],
            advantage=Group(),
            batch_size=PROMPTS,
            group_size=GROUP,
            sampling=Sampling(max_new_tokens=NEW),
            ahead=ahead,
        )
        trainer = Trainer(
            learners={"policy": Learner(model="scratch:given", learning_rate=1e-4)},
            sources={"write": source},
            objectives={"policy": GRPO(source="write", correction=Correction())},
            rollout=timed,
            callbacks=[clock],
            networks={"policy": network()},
            args=TrainingArguments(max_steps=steps),
        )
        trainer.train(overwrite=True, progress=False)
    took = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    return {"step": took[:-1], "sampling": timed.seconds[1 : steps - 1]}


@contextmanager
def server(python: str) -> Iterator[Any]:
    """vLLM in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        network().save_pretrained(Path(folder) / "base")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        flags = "--logprobs-mode processed_logprobs --enforce-eager --dtype float32 --kv-cache-memory-bytes 268435456 --max-num-seqs 64"
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", f"{folder}/base", "--port", str(port), *flags.split()]
        with (Path(folder) / "log").open("w") as log:
            environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=3)
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit((Path(folder) / "log").read_text()[-2000:]) from None
                    time.sleep(3)
            yield VLLM(url=f"http://127.0.0.1:{port}", folder=f"{folder}/weights")
        finally:
            process.terminate()
            process.wait(60)


def compared(engine: Any, steps: int, repeats: int) -> dict[str, Any]:
    """Runs in turns. Where others use the processors too, their share drifts: a ratio is of two runs that follow each other."""
    runs: dict[str, list[dict[str, list[float]]]] = {"ahead 0": [], "ahead 1": []}
    run(engine, 0, 2)  # warms up
    for _ in range(repeats):
        for ahead, kept in enumerate(runs.values()):
            kept.append(run(engine, ahead, steps))
    return summary(runs)


def summary(runs: dict[str, list[dict[str, list[float]]]]) -> dict[str, Any]:
    def medians(arm: str, name: str) -> list[float]:
        return [median(one[name]) for one in runs[arm]]

    arms = {arm: {f"{name}_seconds": median(medians(arm, name)) for name in ("step", "sampling")} | {"runs": runs[arm]} for arm in runs}
    waits, beside, sampling = medians("ahead 0", "step"), medians("ahead 1", "step"), medians("ahead 0", "sampling")
    ratios = [b / a for a, b in zip(waits, beside, strict=True)]
    bounds = [max(s, a - s) / a for a, s in zip(waits, sampling, strict=True)]
    return {**arms, "ratios": ratios, "ratio": median(ratios), "bound": median(bounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="per run")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each kind")
    parser.add_argument("--vllm", default=".venv-vllm/bin/python", help="a Python that has vLLM; without it that part is left out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines = {"hf": compared(HF(), args.steps, args.repeats)}
    if Path(args.vllm).is_file():
        with server(args.vllm) as engine:
            engines["vllm server"] = compared(engine, args.steps, args.repeats)
    for name, row in engines.items():
        waits, beside = (row[f"ahead {a}"]["step_seconds"] for a in (0, 1))
        print(f"{name}: {waits:.2f} s -> {beside:.2f} s per step, x{row['ratio']:.2f} (bound x{row['bound']:.2f})")
    parameters = sum(p.numel() for p in network().parameters())
    shape = SHAPE | {"parameters": parameters, "prompts": PROMPTS, "responses": GROUP, "prompt_tokens": WIDTH, "new_tokens": NEW}
    told = {"load": os.getloadavg()[1], "model": shape, "steps": args.steps, "repeats": args.repeats, "engines": engines}
    save("benchmarks/results/async_rollouts.json", {**about("make bench-async"), **told})


if __name__ == "__main__":
    main()
