"""Random words masked: an adversary that does not read gradients, and hides words instead of changing them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from advalign.errors import ConfigError
from advalign.functional.certify import ranmask_num_kept
from advalign.interfaces import Adversary, PerturbationContext
from advalign.models import word_masking
from advalign.ranges import OneOf, ProperFraction
from advalign.types import Edit


@dataclass(frozen=True, kw_only=True)
class Mask(Adversary[Edit]):
    """x' = x with round(rate T) of its T words, drawn anew in every update, replaced by the mask token   (RanMASK, arXiv:2105.03743).

    The noise to train a classifier on that will be certified, or deployed, as a vote over masked copies.
    Ours: words are found from the tokens (`models/word_masking.py`), so for WordPiece a punctuation mark is a word; at least one word is
    kept (the released code keeps two). There is no radius. Of a policy, masked targets count nowhere: losses and metrics on this view are
    of the targets that are left, a comparison of two views of those that both have.
    """

    family: ClassVar[str] = "discrete"

    radius: float = field(default=0.0, init=False)
    """Not used."""
    sites: tuple[str, ...] = field(default=("embedding",), init=False)
    """Not used."""
    special: bool = field(default=False, init=False)
    """Special tokens are never masked."""
    rate: ProperFraction = 0.7
    """Fraction of the words that are masked (default of the released code, whose model is trained on SST-2)."""
    replace: Annotated[str, OneOf(word_masking.REPLACEMENTS, "replacement")] = "mask"
    """What replaces a word: mask, or unknown for tokenizers without a mask token."""
    steps: int = field(default=0, init=False)
    """No gradient steps."""

    def __post_init__(self) -> None:
        if self.share != "row":
            raise ConfigError(f"mask.share: '{self.share}' given; each row has its own masks, so it must be 'row'.")

    @property
    def removes_targets(self) -> bool:
        return True

    def start(self, context: PerturbationContext) -> Edit:
        assert context.tokens is not None
        assert context.network is not None
        encoder = context.network.encoder
        _, mask_id = word_masking.mask_token(encoder.tokenizer, self.replace, "mask")
        role = context.tokens.role  # what a chat template writes stays
        allowed = context.allowed if role is None else context.allowed & (role >= 0)
        words = word_masking.number_words(encoder.tokenizer, context.tokens, allowed)
        hidden = [self._draw(number, g) for number, g in zip(words.amax(1).tolist(), context.generators, strict=True)]
        tokens, origin = word_masking.mask_words(context.tokens, words, hidden, mask_id=mask_id, pad_id=encoder.pad_id)
        return Edit(tokens=tokens, origin=origin)

    def ask(self, state: Edit) -> dict[str, Edit]:
        return {"embedding": state}

    def tell(self, state: Edit, losses: Float[Tensor, "N"], gradients: Mapping[str, Any]) -> Edit:
        return state

    def _draw(self, number: int, generator: torch.Generator) -> list[int]:
        """The masked ones of `number` words, counted from 1."""
        order = torch.randperm(number, generator=generator, device=generator.device) + 1
        return order[ranmask_num_kept(number, rate=self.rate) :].tolist()


__all__ = ["Mask"]
