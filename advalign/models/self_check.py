"""A model proves itself when it is loaded: a few short rows go through our forward and through its own.

    log p(y_t | y_<t), padded and edited by zero   =   log_softmax(model(ids).logits), row by row without padding

What differs is refused in a sentence that names the part: embedding (a model that needs ids beside embeddings), mask (padding changes a
row), head (logits from hidden states) or backbone (positions). Packed rows are compared by `padding_free.agrees`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advalign.errors import ConfigError
from advalign.models import architecture, padding_free
from advalign.models.forward import Network
from advalign.models.inference import evaluation_mode
from advalign.types import Edit, Outputs, Tokens

LENGTHS = (6, 4, 2)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Largest difference of a log-probability, for logits of size 1; half precision: `HALF_TOLERANCE`."""
HALF_TOLERANCE = 0.2


def check_policy(network: Network) -> None:
    """Raises ConfigError where a policy's log-probabilities are not those of its own forward. Draws no random number."""
    if network.device.type == "meta":
        return
    tokens = _rows(network)
    with evaluation_mode(network), torch.no_grad():
        own = _own_logits(network, tokens)
        if own.isnan().any():
            raise ConfigError(
                f"model: {_name(network)} gives logits that are not finite numbers (nan) for ordinary words; its weights are damaged, "
                "or dtype is too narrow for them (give float32)."
            )
        expected = own.double().log_softmax(-1).gather(1, tokens.ids[tokens.target][:, None].to(own.device)).squeeze(1)
        zero = Edit(add=torch.zeros(*tokens.ids.shape, network.width("embedding"), dtype=network.dtype, device=network.device))
        counts = network.num_forwards, network.num_rows
        for edits in ({}, {"embedding": zero}):
            outputs = _run(network, tokens, edits)
            assert outputs.logprobs is not None
            if not _close(outputs.logprobs[tokens.target], expected, own):
                raise ConfigError(_sentence(network, tokens, own, (outputs.logprobs[tokens.target].double() - expected).abs().max()))
        network.num_forwards, network.num_rows = counts


def _run(network: Network, tokens: Tokens, edits: Mapping[str, Edit]) -> Outputs:
    try:
        return network(tokens, frozenset({"logprobs"}), edits)
    except padding_free.REFUSALS as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"model: {_name(network)} cannot run from embeddings ({type(error).__name__}: {reason}); choose another architecture: "
            "docs/models.md lists those that work."
        ) from error


def _rows(network: Network) -> Tokens:
    """Right-padded rows of ordinary tokens, no longer than the model and the encoder allow."""
    size = min(network.model.get_input_embeddings().weight.shape[0], len(network.encoder.tokenizer))
    longest = min(network.encoder.max_length, architecture.context_length(network.model) or LENGTHS[0])
    lengths = torch.tensor([max(2, min(n, longest)) for n in LENGTHS])
    columns = torch.arange(int(lengths.max()))
    ids = torch.tensor(padding_free.ordinary_ids(size, network.encoder.special_ids, len(columns)))
    ids = torch.stack([ids.roll(b) for b in range(len(LENGTHS))])
    mask = columns < lengths[:, None]
    rows = torch.arange(len(LENGTHS))
    ids = ids.masked_fill(~mask, network.encoder.pad_id)
    return Tokens(ids=ids, mask=mask, target=mask & (columns > 0), group=rows, key=rows).to(network.device)


def _own_logits(network: Network, tokens: Tokens) -> Tensor:
    """Of the model's own forward, each row alone and without padding; at every position that predicts a target."""
    return torch.cat([network.model(input_ids=row, use_cache=False).logits[0, :-1] for row in _alone(tokens)])


def _alone(tokens: Tokens) -> list[Tensor]:
    """Each row without padding."""
    return [ids[mask][None] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def _close(values: Tensor, expected: Tensor, logits: Tensor) -> bool:
    size = logits.masked_fill(logits.isinf(), 0).abs().max().clamp(min=1)
    difference = (values.double() - expected).nan_to_num(0.0)  # -inf of both
    same_infinities = torch.equal(values.isinf(), expected.isinf())
    return same_infinities and bool(difference.abs().max() <= TOLERANCE.get(logits.dtype, HALF_TOLERANCE) * size)


def _sentence(network: Network, tokens: Tokens, own: Tensor, difference: Tensor) -> str:
    part, remedy = _differing_part(network, tokens, own)
    return (
        f"model: {_name(network)} is not computed right here: log-probabilities differ from those of its own forward by "
        f"{float(difference):.2g} ({part}); {remedy} docs/models.md lists the architectures that work."
    )


def _differing_part(network: Network, tokens: Tokens, own: Tensor) -> tuple[str, str]:
    """The first part of a forward that does not give what the model's own forward gives, and what works instead."""
    row = _alone(tokens)[0]
    backbone = network.backbone
    plain = backbone(input_ids=row, use_cache=False).last_hidden_state
    embedded = backbone(inputs_embeds=network.model.get_input_embeddings()(row), use_cache=False).last_hidden_state
    if not _same(plain, embedded):
        return "embedding", "it needs token ids beside embeddings; choose a model that runs from inputs_embeds."
    logits = network.next_token_logits(plain[0, :-1])
    if not _same(logits, own[: row.shape[1] - 1]):
        return "head", "its logits are not a function of its last hidden state alone; choose another architecture."
    padded = backbone(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False).last_hidden_state
    alone = torch.cat([backbone(input_ids=r, use_cache=False).last_hidden_state[0] for r in _alone(tokens)])
    if not _same(padded[tokens.mask], alone):
        return "mask", "rows of it change with their padding; choose an architecture that reads an attention mask."
    return "position", "it counts positions in another way; choose another architecture."


def _same(x: Tensor, y: Tensor) -> bool:
    tolerance = TOLERANCE.get(x.dtype, HALF_TOLERANCE)
    return bool(((x - y).norm(dim=-1) <= tolerance * y.norm(dim=-1)).all())


def _name(network: Network) -> str:
    model: Any = network.model
    return f"{type(model).__name__} ({architecture.model_type(model)})"


__all__ = ["check_policy"]
