"""An attacker that was trained: a language model that writes what is put before or behind the request."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from advalign.errors import ConfigError, unknown
from advalign.interfaces import Attack
from advalign.models import Network, load
from advalign.models.perturb import without_dropout
from advalign.types import Budget, Example, Proposal

PLACEMENTS = ("prefix", "suffix", "rewrite")


@dataclass(frozen=True, kw_only=True)
class Learned(Attack):
    """a_1 .. a_n ~ attacker(. | template(x));  x_i = x with a_i before it, behind it, or in its place; broken if any is.

    `model`: a folder or hub id of a causal language model, such as the attacker of a game (docs/self_play.md; give the game's `template`,
    `placement` and `separator`). AdvPrompter (arXiv:2404.16873) and AmpleGCG (arXiv:2404.07921) are attackers of this form.
    Ours: each example's attacks are sampled with a stream of its own; empty attacks and repetitions are dropped, so there may be fewer
    than `attempts`.
    """

    model: str | None = None
    attempts: int = 16
    template: str = "{prompt}"
    placement: str = "suffix"
    separator: str = " "
    max_new_tokens: int = 32
    temperature: float = 1.0

    access: ClassVar[str] = "text"
    draws: ClassVar[bool] = True  # attempts are drawn alike: a law of their number means something
    head: ClassVar[str] = "policy"
    asks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.model is None:
            raise ConfigError("attacks.learned.model: none given; the folder or hub id of a trained attacker.")
        if self.placement not in PLACEMENTS:
            raise unknown("attacks.learned.placement", "placement", self.placement, PLACEMENTS)
        if "{prompt}" not in self.template:
            raise ConfigError(f"attacks.learned.template: '{self.template}' given; it must hold {{prompt}}, which stands for the request.")
        if self.attempts < 1 or self.max_new_tokens < 1 or not self.temperature > 0:
            raise ConfigError(
                f"attacks.learned: attempts {self.attempts}, max_new_tokens {self.max_new_tokens}, temperature {self.temperature} given; "
                "counts are at least 1, a temperature is above 0."
            )

    def propose(self, target: Any, examples: Sequence[Example], budget: Budget, rng: random.Random) -> list[Proposal]:
        """Up to `attempts` texts of each example. The victim is not asked; the attacker's own forwards are not the victim's."""
        attacker, stream = _attacker(str(self.model), str(target.network.device), _stamp(str(self.model))), rng.getrandbits(63)
        number = self.attempts if budget.queries is None else min(self.attempts, budget.queries)
        found = []
        for example in examples:
            own = random.Random(f"{stream}/{example.id}/{example.prompt}")
            texts = [
                self.placed(a.strip(), example.prompt) for a in self.attacks(attacker, example, number, own.getrandbits(63)) if a.strip()
            ]
            attempts = tuple(dict.fromkeys(texts))
            found.append(Proposal(attempts=attempts, queries=len(attempts), note=f"{len(attempts)} of {number} samples"))
        return found

    @torch.no_grad()
    def attacks(self, attacker: Network, example: Example, number: int, seed: int) -> list[str]:
        """`number` samples of the attacker, by a stream of their own."""
        encoder = attacker.encoder
        ids = torch.tensor([encoder.prompt(self.template.replace("{prompt}", example.prompt))] * number, device=attacker.device)
        room = encoder.max_length - ids.shape[1]
        if room < 1:
            raise ConfigError(f"attacks.learned: example '{example.id}' leaves no room in the attacker's max_length {encoder.max_length}.")
        with torch.random.fork_rng(devices=[attacker.device] if attacker.device.type == "cuda" else []), without_dropout(attacker):
            torch.manual_seed(seed)
            rows = attacker.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(self.max_new_tokens, room),
                pad_token_id=encoder.pad_id,
                eos_token_id=encoder.eos_id,
            )
        return [encoder.decode(row) for row in rows[:, ids.shape[1] :].tolist()]

    def placed(self, attack: str, prompt: str) -> str:
        if self.placement == "rewrite":
            return attack
        return self.separator.join((attack, prompt) if self.placement == "prefix" else (prompt, attack))


@lru_cache(maxsize=2)
def _attacker(model: str, device: str, stamp: float) -> Network:
    return load(model, head="policy").to(device).eval()


def _stamp(model: str) -> float:
    """When a folder last changed, so that an attacker that has been trained on is loaded anew."""
    return max((f.stat().st_mtime for f in Path(model).glob("*")), default=0.0) if Path(model).is_dir() else 0.0


__all__ = ["Learned"]
