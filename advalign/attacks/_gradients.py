"""Gradients of a classifier's loss with respect to its input embeddings, for attacks that rank words by them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from advalign.errors import ConfigError
from advalign.interfaces import Target
from advalign.types import Edit, Example, Outputs, Tokens


def embedding_gradients(target: Target, examples: Sequence[Example], path: str) -> tuple[Float[Tensor, "N T D"], Tokens]:
    """Gradient of the cross-entropy of each example's label (without one: of the predicted class), and the tokens of its rows.

    One forward and one backward for all of them: a row depends on itself alone, so the gradient of the sum is that of each.
    """
    if "gradients" not in target.abilities:
        raise ConfigError(f"{path}: words are ranked by gradients, and {target.name} gives none; a ClassifierTarget does.")
    tokens, network = target.tokens(examples), target.network
    zero = torch.zeros(*tokens.ids.shape, network.width("embedding"), dtype=network.dtype, device=network.device)
    result = target.climb(tokens, examples, {"embedding": Edit(zero)}, _loss)
    return result.gradients["embedding"], tokens


def refuse_conversations(examples: Sequence[Example], path: str) -> None:
    """Refuses what has no offsets of its words: a chat template writes the tokens of a conversation."""
    example = next((e for e in examples if not isinstance(e.prompt, str)), None)
    if example is not None:
        raise ConfigError(
            f"{path}: words are ranked by gradients, and example '{example.id}' is a conversation, whose words have no places in the "
            "model's row; use another ranking, or texts."
        )


def _loss(outputs: Outputs, tokens: Tokens, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    logits = outputs.class_logits
    assert logits is not None
    predicted = logits.argmax(1).tolist()
    labels = torch.tensor([k if e.label is None else e.label for e, k in zip(examples, predicted, strict=True)], device=logits.device)
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return losses, losses
