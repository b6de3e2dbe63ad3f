"""A model proves itself when it is loaded: a few short rows go through our forward and through its own.

    log p(y_t | y_<t), padded and edited by zero   =   log_softmax(model(ids).logits), row by row without padding

What differs is refused in a sentence that names the part: embedding (a model that needs ids beside embeddings), mask (padding changes a
row), head (logits from hidden states) or backbone (positions). Packed rows are compared by `padding_free.agrees`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from advalign.errors import ConfigError
from advalign.models import architecture, generation, padding_free, positions
from advalign.models.forward import Network
from advalign.models.inference import evaluation_mode
from advalign.models.sharding import gathered, local_shard
from advalign.types import Edit, Outputs, Tokens

LENGTHS = (6, 4, 2)
NUM_READ, NUM_GENERATED = 3, 3  # tokens of the prompt and of the response that `generate` is asked for
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Largest difference of a log-probability, for logits of size 1; half precision: `HALF_TOLERANCE`."""
HALF_TOLERANCE = 0.2


def check(network: Network) -> None:
    """Raises ConfigError where what a network gives is not what its own forward gives. Draws no random number and counts no forward."""
    if network.device.type == "meta" or not network.reads_tokens:
        return
    if architecture.has_two_stacks(network.backbone):
        raise ConfigError(
            f"model: {_name(network)} is an encoder with a decoder, which is not supported; choose an architecture with one stack."
        )
    counts = network.num_forwards, network.num_rows
    tokens = _rows(network)
    with evaluation_mode(network), torch.no_grad():
        if network.head == "policy":
            _check_policy(network, tokens)
        elif network.head == "classifier":
            _check_classifier(network, tokens)
        else:
            _check_backbone(network, tokens)
    network.num_forwards, network.num_rows = counts


def check_numbers(network: Network) -> None:
    """Raises ConfigError where weights of a network, or what it gives for ordinary words, are not finite numbers."""
    for name, weight in network.named_parameters():
        finite = local_shard(weight).isfinite()
        if not finite.all():
            number = finite.numel() - int(finite.sum())
            raise ConfigError(
                f"model: {_name(network)} gives no finite numbers: {number} of {finite.numel()} numbers in {name} are nan or infinite; "
                "load weights that are not damaged."
            )
    if network.reads_tokens:
        with gathered(network), evaluation_mode(network), torch.no_grad():
            run = network.backbone if network.head in ("score", "value") else network.model
            outputs = [run(input_ids=row)[0].flatten() for row in _alone(_rows(network))]
        _check_finite(network, torch.cat(outputs))


def _check_generated(network: Network, prompt: Tensor) -> None:
    """The tokens of the model's own greedy `generate` are the most likely ones of its forward over the whole row."""
    number = min(NUM_GENERATED, (positions.row_bound(network.model, None)[0] or prompt.shape[1] + NUM_GENERATED) - prompt.shape[1])
    if number < 1:
        return
    options = {"do_sample": False, "max_new_tokens": number, "pad_token_id": network.encoder.pad_id}
    try:
        with generation.plain_generation(network.model):
            row = network.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    except padding_free.REFUSALS as error:
        warnings.warn(
            f"model: generate of {_name(network)} fails ({_reason(error)}), so greedy tokens were not compared with it.",
            stacklevel=2,
        )
        return
    logits = network.model(input_ids=row, use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
    tolerance = TOLERANCE.get(logits.dtype, HALF_TOLERANCE) * logits.masked_fill(logits.isinf(), 0).abs().max().clamp(min=1)
    chosen = logits.gather(1, row[0, prompt.shape[1] :, None]).squeeze(1)
    if not bool((chosen >= logits.amax(1) - 2 * tolerance).all()):
        raise ConfigError(
            f"model: generate of {_name(network)} gives other tokens than its own forward over the whole row (cache); a policy that is "
            "trained on the one would be served by the other: choose another architecture or version of transformers."
        )


def _check_policy(network: Network, tokens: Tokens) -> None:
    own = _own(network, lambda: [network.model(input_ids=row, use_cache=False).logits[0, :-1] for row in _alone(tokens)])
    _check_finite(network, own)
    _check_direction(network, _alone(tokens)[0], own)
    expected = own.double().log_softmax(-1).gather(1, tokens.ids[tokens.target][:, None].to(own.device)).squeeze(1)
    zero = Edit(add=torch.zeros(*tokens.ids.shape, network.width("embedding"), dtype=network.dtype, device=network.device))
    for edits in ({}, {"embedding": zero}):
        outputs = _run(network, tokens, "logprobs", edits)
        assert outputs.logprobs is not None
        if not _close(outputs.logprobs[tokens.target], expected, own):
            difference = (outputs.logprobs[tokens.target].double() - expected).abs().max()
            raise ConfigError(_sentence(network, "log-probabilities", difference, _differing_part(network, tokens, own)))
    _ = network.caches
    _check_generated(network, _alone(tokens)[0][:, :NUM_READ])


def _check_classifier(network: Network, tokens: Tokens) -> None:
    """A decoder that `pooling` makes read another state than its last has no forward of its own to compare with."""
    if architecture.has_score_head(network.model) and network.pooling != "last":
        return _check_backbone(network, tokens)
    own = _own(network, lambda: [network.model(input_ids=row).logits for row in _alone(tokens)])
    _check_finite(network, own)
    logits = _run(network, tokens, "class_logits").class_logits
    assert logits is not None
    if _close(logits, own, own):
        return None
    row = _alone(tokens)[0]
    part = _MASK
    if not _close(network.model(inputs_embeds=network.model.get_input_embeddings()(row)).logits, own[:1], own):
        part = _EMBEDDING
    raise ConfigError(_sentence(network, "logits", (logits - own).abs().max(), part))


def _check_backbone(network: Network, tokens: Tokens) -> None:
    """Hidden states, which a scalar head reads."""
    own = _own(network, lambda: [network.backbone(input_ids=row).last_hidden_state[0] for row in _alone(tokens)])
    _check_finite(network, own)
    hidden = network.hidden_states(tokens)
    if not _same(hidden[tokens.mask], own):
        difference = (hidden[tokens.mask] - own).abs().max()
        raise ConfigError(_sentence(network, "hidden states", difference, _differing_backbone(network, tokens) or _POSITION))


def _check_finite(network: Network, own: Tensor) -> None:
    """-inf is a number here: of a padded vocabulary."""
    bad = own[own.isnan() | (own == torch.inf)]
    if bad.numel():
        raise ConfigError(
            f"model: {_name(network)} gives no finite numbers: its outputs for ordinary words are {float(bad[0])}; its weights are "
            "damaged, or dtype is too narrow for them (give float32)."
        )


def _check_direction(network: Network, row: Tensor, own: Tensor) -> None:
    """Raises ConfigError where the tokens behind a token move its logits: an encoder without `is_decoder`, or XLNet without its mask."""
    front = row[:, :-1]
    logits = network.model(input_ids=front, use_cache=False).logits[0]
    if not _same(logits, own[: front.shape[1]]):
        raise ConfigError(
            f"model: {_name(network)} is not causal: logits at a token change with the tokens behind it, so they are not those of "
            "p(y_t | y_<t); choose a causal architecture, or set is_decoder in the configuration of an encoder that was trained as one."
        )


def _run(network: Network, tokens: Tokens, need: str, edits: Mapping[str, Edit] | None = None) -> Outputs:
    try:
        return network(tokens, frozenset({need}), edits)
    except padding_free.REFUSALS as error:
        raise ConfigError(
            f"model: {_name(network)} cannot run from embeddings ({_reason(error)}); choose another architecture: "
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


def _own(network: Network, run: Callable[[], list[Tensor]]) -> Tensor:
    """What the model's own forward gives for each row alone, without padding."""
    try:
        return torch.cat(run())
    except padding_free.REFUSALS as error:
        raise ConfigError(
            f"model: the forward of {_name(network)} itself fails on short rows of ordinary tokens ({_reason(error)})."
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _alone(tokens: Tokens) -> list[Tensor]:
    """Each row without padding."""
    return [ids[mask][None] for ids, mask in zip(tokens.ids, tokens.mask, strict=True)]


def _close(values: Tensor, expected: Tensor, logits: Tensor) -> bool:
    size = logits.masked_fill(logits.isinf(), 0).abs().max().clamp(min=1)
    difference = (values.double() - expected).nan_to_num(0.0)  # -inf of both
    same_infinities = torch.equal(values.isinf(), expected.isinf())
    return same_infinities and bool(difference.abs().max() <= TOLERANCE.get(logits.dtype, HALF_TOLERANCE) * size)


def _sentence(network: Network, what: str, difference: Tensor, part: tuple[str, str]) -> str:
    return (
        f"model: {_name(network)} is not computed right here: {what} differ from those of its own forward by "
        f"{float(difference):.2g} ({part[0]}); {part[1]} docs/models.md lists the architectures that work."
    )


# Part of a forward, and what works instead.
_EMBEDDING = "embedding", "it needs token ids beside embeddings; choose a model that runs from inputs_embeds."
_HEAD = "head", "its logits are not a function of its last hidden state alone; choose another architecture."
_MASK = "mask", "rows of it change with their padding; choose an architecture that reads an attention mask."
_POSITION = "position", "it counts positions in another way; choose another architecture."


def _differing_part(network: Network, tokens: Tokens, own: Tensor) -> tuple[str, str]:
    """The first part of a policy's forward that does not give what the model's own forward gives."""
    row = _alone(tokens)[0]
    logits = network.next_token_logits(network.backbone(input_ids=row, use_cache=False).last_hidden_state[0, :-1])
    part = _differing_backbone(network, tokens)
    if part == _EMBEDDING or _same(logits, own[: row.shape[1] - 1]):
        return part or _POSITION
    return _HEAD


def _differing_backbone(network: Network, tokens: Tokens) -> tuple[str, str] | None:
    row, backbone = _alone(tokens)[0], network.backbone
    plain = backbone(input_ids=row).last_hidden_state
    positions, embeddings = torch.arange(row.shape[1], device=row.device)[None], network.model.get_input_embeddings()(row)
    inputs = {"inputs_embeds": embeddings} if network.encoder.bidirectional else network.inputs_at(positions, row, embeddings)
    if not _same(plain, backbone(**inputs).last_hidden_state):
        return _EMBEDDING
    padded = backbone(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    alone = torch.cat([backbone(input_ids=r).last_hidden_state[0] for r in _alone(tokens)])
    return None if _same(padded[tokens.mask], alone) else _MASK


def _same(x: Tensor, y: Tensor) -> bool:
    tolerance = TOLERANCE.get(x.dtype, HALF_TOLERANCE)
    return bool(((x - y).norm(dim=-1) <= tolerance * y.norm(dim=-1)).all())


def _name(network: Network) -> str:
    model: Any = network.model
    return f"{type(model).__name__} ({architecture.model_type(model)})"


__all__ = ["check", "check_numbers"]
