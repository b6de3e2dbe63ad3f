"""Random words masked: an adversary that does not look, and hides instead of changing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError, unknown
from advalign.functional import balls
from advalign.functional.certify import ranmask_kept
from advalign.interfaces import Adversary, PerturbationContext
from advalign.models import word_masking
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class Mask(Adversary):
    """x' = x with round(rate T) of its T words, drawn anew in every update, replaced by the mask token   (RanMASK, arXiv:2105.03743).

    The noise on which a classifier has to be trained that is to be certified, or deployed, as a vote over masked copies.
    Ours: words are found from the tokens (`models/words.py`), so for WordPiece a punctuation mark is a word; one word at least is
    kept (the released code keeps two). `replace`: "unknown" for tokenizers without a mask token. There is no radius.
    """

    family: ClassVar[str] = "discrete"

    radius: float = field(default=0.0, init=False)
    sites: tuple[str, ...] = field(default=("embedding",), init=False)
    special: bool = field(default=False, init=False)
    rate: float = 0.7  # default of the released code, whose model is trained on SST-2
    replace: str = "mask"
    steps: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        balls.check(self.threat, "mask")
        if not 0 <= self.rate < 1:
            raise ConfigError(f"mask.rate: {self.rate} given; a share of the words from 0 up to, but not including, 1.")
        if self.replace not in word_masking.REPLACEMENTS:
            raise unknown("mask.replace", "replacement", self.replace, word_masking.REPLACEMENTS)
        if self.share != "row":
            raise ConfigError(f"mask.share: '{self.share}' given; each row has masks of its own, so only 'row'.")

    @property
    def starts_at_zero(self) -> bool:
        return False

    def start(self, context: PerturbationContext) -> Edit:
        assert context.tokens is not None
        assert context.network is not None
        encoder = context.network.encoder
        _, mask_id = word_masking.mask_token(encoder.tokenizer, self.replace, "mask")
        found = word_masking.numbered(encoder.tokenizer, context.tokens, context.allowed)
        hidden = [self._hidden(number, g) for number, g in zip(found.amax(1).tolist(), context.generators, strict=True)]
        tokens, origin = word_masking.masked(context.tokens, found, hidden, mask_id=mask_id, pad_id=encoder.pad_id)
        return Edit(tokens=tokens, origin=origin)

    def ask(self, state: Edit) -> dict[str, Edit]:
        return {"embedding": state}

    def tell(self, state: Edit, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> Edit:
        return state

    def _hidden(self, number: int, generator: torch.Generator) -> list[int]:
        order = torch.randperm(number, generator=generator, device=generator.device) + 1
        return order[ranmask_kept(number, rate=self.rate) :].tolist()


__all__ = ["Mask"]
