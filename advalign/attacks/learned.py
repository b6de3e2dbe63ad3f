"""A trained attacker: a language model that writes what is put before or behind the request."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import torch

from advalign.errors import ConfigError
from advalign.interfaces import Attack, Target
from advalign.models import Network, load
from advalign.models.generation import plain_generation
from advalign.models.perturb import without_dropout
from advalign.ranges import AnyText, Count, OneOf, Positive, Text, Words
from advalign.types import CONTENT, Budget, Example, Proposal

PLACEMENTS = ("prefix", "suffix", "rewrite")


@dataclass(frozen=True, kw_only=True)
class Learned(Attack):
    """a_1 .. a_n ~ attacker(. | template(x));  x_i = x with a_i before it, behind it, or in its place; broken if any is.

    AdvPrompter (arXiv:2404.16873) and AmpleGCG (arXiv:2404.07921) are attackers of this form, and so is the attacker of a game
    (docs/self_play.md; give the game's `template`, `placement` and `separator`).
    Ours: each example's attacks are sampled with its own random stream; empty attacks and repetitions are dropped, so there may be fewer
    than `attempts`.
    """

    model: Annotated[Words, CONTENT] | None = None
    """Folder or hub id of a causal language model."""
    attempts: Count = 16
    """Samples per example."""
    template: Annotated[str, Text(holds="{prompt}")] = "{prompt}"
    """The attacker's prompt; {prompt} is replaced by the request."""
    placement: Annotated[str, OneOf(PLACEMENTS, "placement")] = "suffix"
    """prefix, suffix, or rewrite: the attack replaces the request."""
    separator: AnyText = " "
    """Between attack and request."""
    max_new_tokens: Count = 32
    """Most tokens of an attack."""
    temperature: Positive = 1.0
    """At which attacks are sampled."""

    access: ClassVar[str] = "text"
    draws: ClassVar[bool] = True
    head: ClassVar[str | None] = "policy"

    def __post_init__(self) -> None:
        if self.model is None:
            raise ConfigError("attacks.learned.model: none given; the folder or hub id of a trained attacker.")

    def propose(self, target: Target, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """Up to `attempts` texts of each example. Nothing is sent to the target; the attacker's own forwards are not counted."""
        attacker, stream = _attacker(str(self.model), str(target.device), _modified(str(self.model))), rng.getrandbits(63)
        number = self.attempts if budget.queries is None else min(self.attempts, budget.queries)
        proposals = []
        for example in examples:
            seed = random.Random(f"{stream}/{example.id}/{example.text}").getrandbits(63)
            samples = (sample.strip() for sample in self.sample(attacker, example, number, seed))
            attempts = tuple(dict.fromkeys(self.place(sample, example.text) for sample in samples if sample))
            proposals.append(Proposal(attempts=attempts, queries=len(attempts), note=f"{len(attempts)} of {number} samples"))
        return proposals

    @torch.no_grad()
    def sample(self, attacker: Network, example: Example, number: int, seed: int) -> list[str]:
        """`number` samples of the attacker, with their own random stream."""
        encoder = attacker.encoder
        ids = torch.tensor([encoder.prompt(self.template.replace("{prompt}", example.text))] * number, device=attacker.device)
        free = encoder.max_length - ids.shape[1]
        if free < 1:
            raise ConfigError(f"attacks.learned: example '{example.id}' leaves no room in the attacker's max_length {encoder.max_length}.")
        devices = [attacker.device] if attacker.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), without_dropout(attacker), plain_generation(attacker.model):
            torch.manual_seed(seed)
            rows = attacker.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(self.max_new_tokens, free),
                pad_token_id=encoder.pad_id,
                eos_token_id=sorted(attacker.stop_ids),
            )
        return [encoder.decode(row) for row in rows[:, ids.shape[1] :].tolist()]

    def place(self, attack: str, prompt: str) -> str:
        """The text that is sent."""
        if self.placement == "rewrite":
            return attack
        return self.separator.join((attack, prompt) if self.placement == "prefix" else (prompt, attack))


@lru_cache(maxsize=2)
def _attacker(model: str, device: str, modified: float) -> Network:
    return load(model, head="policy").to(device).eval()


def _modified(model: str) -> float:
    """When a folder last changed, so that an attacker that was trained further is loaded anew."""
    return max((f.stat().st_mtime for f in Path(model).glob("*")), default=0.0) if Path(model).is_dir() else 0.0


__all__ = ["Learned"]
