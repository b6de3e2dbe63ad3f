"""One GRPO step, rollouts included: this library, TRL, and a plain loop of `generate` and one update; for benchmarks/speed.py.

The same causal LM of 10 million parameters, the same prompts, 8 prompts with 8 responses each, one update per draw, AdamW, float32. A
reward that costs nothing. Where responses end early, all sides follow one schedule of ends: the token that ends a response is made
certain at its place and impossible elsewhere, so that all of them decode and train on the same number of tokens.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from generation import END, GROUPS, PAD, SIZE, Ends, network
from torch import Tensor
from transformers import TrainerCallback
from transformers.generation.logits_process import LogitsProcessorList

from advalign import Trainer, TrainingArguments
from advalign import advantages as A
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src
from advalign.engine.learner import Learner
from advalign.models import Network
from advalign.types import Sampling

# name: (prompt length, new tokens, whether responses end early, the ratio to TRL that is asked for)
SETTINGS: dict[str, tuple[int, int, bool, float]] = {
    "fixed length": (40, 128, False, 1.1),
    "heavy-tailed lengths": (40, 128, True, 1.8),
    "long prompts": (200, 64, False, 2.2),
}
STEPS = 40  # more than are ever run
RATE = 1e-5


def texts(length: int) -> list[str]:
    """Prompts of exactly `length` tokens."""
    generator = torch.Generator().manual_seed(1)
    return [" ".join(f"w{i}" for i in torch.randint(3, 8000, (length,), generator=generator).tolist()) for _ in range(GROUPS)]


def ends_of(name: str, step: int) -> Tensor:
    """Where each of the 64 responses of a step ends: geometric with a mean of a quarter of the maximum, or never."""
    _, number, early, _ = SETTINGS[name]
    rows = GROUPS * SIZE
    generator = torch.Generator().manual_seed(100 + step)
    drawn = torch.empty(rows).geometric_(4 / number, generator=generator).long().clamp(max=number - 1)
    return drawn if early else torch.full((rows,), number)


def reward(text: str) -> float:
    """Differs from response to response."""
    return (hash_of(text) % 97) / 97


def hash_of(text: str) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


class Steps:
    """A side of the comparison: `step()` makes one whole GRPO step and returns how many tokens it sampled."""

    def step(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        """No more steps will be asked for."""


class Ours(Steps):
    def __init__(self, name: str, device: str, budget: int) -> None:
        self.name, self.net, self.count = name, network(device), 0
        length, number, _, _ = SETTINGS[name]
        data = [{"prompt": p} for p in texts(length)]
        source = src.Prompts(
            data=data, rewards=[rw.Function(fn=scored)], advantage=A.Group(), group_size=SIZE, batch_size=GROUPS,
            sampling=Sampling(max_new_tokens=number),
        )  # fmt: skip
        self.trainer = Trainer(
            learners={"policy": Learner(model="given", learning_rate=RATE)},
            sources={"math": source},
            objectives={"policy": obj.GRPO(source="math")},
            args=TrainingArguments(max_steps=STEPS, token_budget=budget),
            networks={"policy": self.net},
        )
        self.trainer.start()

    def step(self) -> int:
        with scheduled(self.net, ends_of(self.name, self.count)):
            logs = self.trainer.training_step()
        self.count += 1
        return round(logs["math/completions/mean_length"] * GROUPS * SIZE)


def scored(completions: list[str]) -> list[float]:
    return [reward(text) for text in completions]


@contextmanager
def scheduled(net: Network, ends: Tensor) -> Iterator[None]:
    """The sampler's head, replaced by one that ends rows on schedule; rows that ended leave, the others stay in order."""
    head = net.next_token_logits
    state: dict[str, Any] = {"step": 0, "rows": torch.arange(len(ends))}

    def logits(hidden: Tensor) -> Tensor:
        found = head(hidden)
        found[:, END] = -torch.inf
        if len(found) < len(state["rows"]):
            state["rows"] = state["rows"][ends[state["rows"]] > state["step"] - 1]
        now = (ends[state["rows"]] <= state["step"]).to(found.device)
        found[now] = -torch.inf
        found[now, END] = 0.0
        state["step"] += 1
        return found

    object.__setattr__(net, "next_token_logits", logits)
    try:
        yield
    finally:
        object.__delattr__(net, "next_token_logits")


class Theirs(Steps):
    """TRL's GRPOTrainer at its defaults (no KL, DAPO's loss, one update per draw); its own loop, one optimizer step at a time."""

    def __init__(self, name: str, device: str, rows_at_once: int) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.name, self.net, self.tokens, self.closing = name, network(device), 0, False
        length, number, _, _ = SETTINGS[name]
        side = self
        model = self.net.model
        generate = model.generate

        def ending(*args: Any, **kwargs: Any) -> Tensor:
            now = Ends(ends_of(name, side.count).to(model.device))
            found = generate(*args, **kwargs, logits_processor=LogitsProcessorList([now]))
            side.tokens = int((found[:, kwargs["input_ids"].shape[1] :] != PAD).sum()) if "input_ids" in kwargs else 0
            return found

        model.generate = ending
        self.count = 0
        self.folder = tempfile.TemporaryDirectory()
        config = GRPOConfig(
            output_dir=self.folder.name, per_device_train_batch_size=rows_at_once, num_generations=SIZE, max_completion_length=number,
            gradient_accumulation_steps=GROUPS * SIZE // rows_at_once, max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="constant",
            report_to=[], save_strategy="no", logging_steps=1000, disable_tqdm=True, use_cpu=device == "cpu", bf16=device == "cuda",
            gradient_checkpointing=False, shuffle_dataset=False, temperature=1.0, seed=0,
        )  # fmt: skip
        self.marks: list[float] = []
        self.trainer = GRPOTrainer(
            model=model, reward_funcs=lambda completions, **_: [reward(c) for c in completions], args=config,
            train_dataset=Dataset.from_list([{"prompt": p} for p in texts(length)] * STEPS),
            processing_class=self.net.encoder.tokenizer, callbacks=[Pause(self)],
        )  # fmt: skip
        self.run = self._steps()

    def _steps(self) -> Iterator[None]:
        """TRL owns its loop: it runs in a thread of its own that takes turns with this one."""
        import threading

        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)

        def loop() -> None:
            self.turn.acquire()
            self.trainer.train()

        self.thread = threading.Thread(target=loop, daemon=True)
        self.thread.start()
        while True:
            self.turn.release()
            self.done.acquire()
            yield

    def step(self) -> int:
        next(self.run)
        self.count += 1
        return self.tokens

    def close(self) -> None:
        self.closing = True
        self.turn.release()
        self.thread.join()
        self.folder.cleanup()


class Pause(TrainerCallback):
    """After every optimizer step the loop waits until it is asked for the next one."""

    def __init__(self, side: Any) -> None:
        self.side = side

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.side.done.release()
        self.side.turn.acquire()
        if self.side.closing:
            control.should_training_stop = True


class Plain(Steps):
    """What a person would write: `generate` with every prompt repeated, one forward over the padded rows, one backward."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.net, self.count = name, network(device), 0
        length, self.number, _, _ = SETTINGS[name]
        ids = [self.net.encoder.tokenizer(p)["input_ids"] for p in texts(length)]
        self.prompts = torch.tensor(ids).repeat_interleave(SIZE, 0).to(self.net.device)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=RATE, weight_decay=0.0)

    def step(self) -> int:
        model, ends = self.net.model, Ends(ends_of(self.name, self.count).to(self.net.device))
        model.eval()
        with torch.no_grad():
            rows = model.generate(
                input_ids=self.prompts, attention_mask=torch.ones_like(self.prompts), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=self.number, pad_token_id=PAD, eos_token_id=END, logits_processor=LogitsProcessorList([ends]),
            )  # fmt: skip
        model.train()
        answers = rows[:, self.prompts.shape[1] :]
        mask = answers != PAD
        decoded = self.net.encoder.tokenizer.batch_decode(answers, skip_special_tokens=True)
        scores = torch.tensor([reward(text) for text in decoded], device=rows.device).view(GROUPS, SIZE)
        advantages = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).flatten()
        logits = model(input_ids=rows, attention_mask=(rows != PAD).long(), logits_to_keep=answers.shape[1] + 1).logits[:, :-1]
        logp = logits.log_softmax(-1).gather(2, answers[..., None]).squeeze(2)
        ratio = (logp - logp.detach()).exp()
        loss = -(ratio * advantages[:, None] * mask).sum() / mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.count += 1
        return int(mask.sum())


def sides(name: str, device: str) -> dict[str, Callable[[], Steps]]:
    """TRL only where it is installed: a machine with a GPU may have little else than torch and transformers."""
    made: dict[str, Callable[[], Steps]] = {"advalign": lambda: Ours(name, device, 65536 if device == "cuda" else 2048)}
    if importlib.util.find_spec("trl") is not None and importlib.util.find_spec("datasets") is not None:
        made["trl"] = lambda: Theirs(name, device, GROUPS * SIZE)
    return made | {"plain": lambda: Plain(name, device)}


def compare(name: str, device: str = "cpu", repeats: int = 5, who: tuple[str, ...] = ("advalign", "trl", "plain")) -> dict[str, Any]:
    """Medians of alternated steps; the first of each side warms up and is not counted."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    made = {side: make() for side, make in sides(name, device).items() if side in who}
    seconds: dict[str, list[float]] = {side: [] for side in made}
    tokens: dict[str, list[int]] = {side: [] for side in made}
    for repeat in range(repeats + 1):
        for side, steps in made.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            sampled = steps.step()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[side].append(time.perf_counter() - start)
                tokens[side].append(sampled)
    for steps in made.values():
        steps.close()
    made_by, made = list(made), {}
    gc.collect()  # trainers hold themselves
    found: dict[str, Any] = {s: {"seconds": median(t), "all": t, "tokens": tokens[s]} for s, t in seconds.items()}
    for other in made_by:
        if other != "advalign" and "advalign" in made_by:
            found[f"ratio_to_{other}"] = found[other]["seconds"] / found["advalign"]["seconds"]
    return found | {"goal_to_trl": SETTINGS[name][3]}
