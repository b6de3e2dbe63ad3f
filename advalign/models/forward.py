"""One forward for every model: rows and edits in, what the objectives need out.

Right padding, explicit position ids, the LM head only at positions that predict a target, log-probabilities chunked over
the vocabulary. Outputs are shifted by one here, by `functional.logprobs.shift_right`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from advalign.errors import ConfigError
from advalign.functional import logprobs as lp
from advalign.models import architecture, decoding, own_head, padding_free, saving
from advalign.models.base import NetworkBase
from advalign.models.encode import Encoder
from advalign.models.perturb import apply_edit, captured, edited, evaluation_mode, twice_differentiable, without_dropout
from advalign.types import Distribution, Edit, Outputs, Tokens


class Network(NetworkBase):
    """A transformers model that reads tokens, its encoder and one head."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        head: str,
        *,
        pooling: str = "last",
        head_dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(model, encoder, head, pooling=pooling, head_dropout=head_dropout, spectral_norm=spectral_norm)
        self._head_form: own_head.HeadForm | None = None
        architecture.use_float64_experts(model)
        self._packs: bool | None = None if self.reads_tokens and not encoder.bidirectional else False
        self._promises_packing = self._packs is None and padding_free.prepare(model)
        self._caches: bool | None = None

    @property
    def head_form(self) -> own_head.HeadForm:
        """How hidden states become logits; tried out on first use."""
        if self._head_form is None:
            with without_dropout(self):
                form = own_head.find_form(self.model)
            if self.device.type == "meta":
                return form
            self._head_form = form
        return self._head_form

    @property
    def packs(self) -> bool:
        """Whether rows run without padding and with common beginnings once (`models/padding_free.py`); tried out on first use."""
        if self._packs is None:
            self._packs, reason = False, "has no attention that can be replaced by one over rows without padding"
            if self._promises_packing:
                size = self.model.get_input_embeddings().weight.shape[0]
                ids = padding_free.ordinary_ids(min(size, len(self.encoder.tokenizer)), self.encoder.special_ids, 6)
                with without_dropout(self):
                    self._packs = padding_free.agrees(self.hidden_states, self.device, ids)
                reason = "gives other hidden states without padding"
            if not self._packs and self.device.type != "meta":
                warnings.warn(f"packing: {type(self.model).__name__} {reason}; its rows are padded.", stacklevel=2)
        return self._packs

    @property
    def caches(self) -> bool:
        """Whether rows are decoded with the model's cache (`models/decoding.py`); tried out on first use."""
        if self._caches is None:
            self._caches = False
            size = self.model.get_input_embeddings().weight.shape[0]
            ids = padding_free.ordinary_ids(min(size, len(self.encoder.tokenizer)), self.encoder.special_ids, 10)
            with evaluation_mode(self):
                self._caches = decoding.agrees(self, ids)
            if not self._caches:
                warnings.warn(
                    f"decoding: {type(self.model).__name__} gives other hidden states from its cache than from whole rows; every sampled "
                    "token reads its whole row again, which is slow.",
                    stacklevel=2,
                )
        return self._caches

    def hidden_states(self, tokens: Tokens, layout: padding_free.PackedLayout | None = None) -> Float[Tensor, "B T D"]:
        """The last hidden states of unedited rows."""
        return self._hidden(self._inputs(tokens, self.model.get_input_embeddings()(tokens.ids)), layout)

    def forward(
        self,
        tokens: Tokens,
        needs: Set[str],
        edits: Mapping[str, Edit] | None = None,
        temperature: Float[Tensor, "B"] | None = None,
    ) -> Outputs:
        """Outputs named in `needs`, for rows `tokens`. `temperature` divides the logits of a policy, row by row."""
        self._count(tokens)
        if "reader" in needs:
            raise ConfigError("model: a network that reads tokens gives no reader of hidden states; see model: latent:<learner>.")
        edits = edits or {}
        edit = edits.get("embedding", Edit())
        rows = tokens if edit.tokens is None else edit.tokens
        embeddings = apply_edit(self.model.get_input_embeddings()(rows.ids), edit)
        differentiate = "score_gradients" in needs
        if differentiate and not embeddings.requires_grad:
            embeddings = embeddings.detach().requires_grad_()
        inside = {site: edit for site, edit in edits.items() if site != "embedding"}
        packed = self.packs and not differentiate
        shares = not self.draws_dropout and all(edit.common for edit in edits.values())
        layout = padding_free.build_layout(rows, share=shares) if packed else None
        outputs = self._run_blocks(rows, embeddings, needs, inside, temperature, layout)
        return outputs if edit.origin is None else outputs.gather(edit.origin)

    def _count(self, tokens: Tokens) -> None:
        self.encoder.truncation.check_width(tokens.ids.shape[1])
        self.num_forwards += 1
        self.num_rows += tokens.ids.shape[0]

    def _run_blocks(
        self,
        rows: Tokens,
        embeddings: Float[Tensor, "B T D"],
        needs: Set[str],
        edits: Mapping[str, Edit],
        temperature: Tensor | None,
        layout: padding_free.PackedLayout | None,
    ) -> Outputs:
        """Blocks and head over embeddings. `edits`: of the outputs of blocks."""
        sites = [need.partition(":")[2] for need in sorted(needs) if need.startswith("hidden:")]
        differentiate = "score_gradients" in needs
        if layout is not None:
            edits = layout.edits(edits)
        with self._instrumented(edits, sites, differentiate) as hidden:
            outputs = self._outputs(self._inputs(rows, embeddings), rows, needs, temperature, layout)
            if differentiate:
                assert outputs.scores is not None, f"head '{self.head}' has no scores"
                # A score depends on its own row alone, so the gradient of their sum is that of each.
                (input_gradients,) = torch.autograd.grad(outputs.scores.sum(), embeddings, create_graph=True)
                outputs = replace(outputs, score_gradients=input_gradients)
        if not sites:
            return outputs
        width = rows.ids.shape[1]
        hidden = {site: x[:, :width] if layout is None else layout.unpack(x) for site, x in hidden.items()}
        return replace(outputs, hidden=hidden | ({"embedding": embeddings} if "embedding" in sites else {}))

    @contextmanager
    def _instrumented(self, edits: Mapping[str, Edit], sites: list[str], differentiate: bool) -> Iterator[dict[str, Tensor]]:
        """Inside, blocks run edited; fills with the hidden states at `sites`. Blocks run compiled where nothing looks into them."""
        with ExitStack() as stack:
            if self.compiled is not None and not (differentiate or sites or edits):
                stack.enter_context(self.compiled.on(self.backbone))
            stack.enter_context(edited(self.backbone, edits))
            hidden = stack.enter_context(captured(self.backbone, sites))
            stack.enter_context(twice_differentiable(differentiate))
            yield hidden

    def _outputs(
        self,
        inputs: Mapping[str, Any],
        tokens: Tokens,
        needs: Set[str],
        temperature: Tensor | None,
        layout: padding_free.PackedLayout | None,
    ) -> Outputs:
        if self.head == "classifier" and not architecture.has_score_head(self.model):
            return Outputs(class_logits=self.model(**inputs, **architecture.classifier_inputs(self.model, tokens.mask)).logits)
        hidden = self._hidden(inputs, layout)
        if self.head == "policy":
            return self._policy(hidden, tokens, needs, temperature)
        if self.head == "classifier":
            return Outputs(class_logits=self.model.score(self._pool(hidden, self._classified(tokens))))
        if self.head == "score":
            scores = self._apply_scalar(self._pool(hidden, tokens.mask))
            token_scores = self._apply_scalar(hidden).masked_fill(~tokens.mask, 0) if "token_scores" in needs else None
            return Outputs(scores=scores, token_scores=token_scores)
        return Outputs(values=lp.shift_right(self._apply_scalar(hidden)) * tokens.target)

    def _classified(self, tokens: Tokens) -> Tensor:
        """Tokens that a classifier pools. Where it reads the last one, that is the last one that is not padding by its id, as in
        transformers: with the end of a sequence as padding, the one before it."""
        padding = architecture.pad_id(self.model.config)
        if self.pooling != "last" or padding is None:
            return tokens.mask
        real = tokens.mask & (tokens.ids != padding)
        last = (torch.arange(real.shape[1], device=real.device) * real).argmax(1, keepdim=True)
        return torch.arange(real.shape[1], device=real.device) <= last

    def _hidden(self, inputs: Mapping[str, Any], layout: padding_free.PackedLayout | None) -> Float[Tensor, "B T D"]:
        if layout is None:
            return self.backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]
        return layout.unpack(self.backbone(**layout.inputs(inputs)).last_hidden_state)

    @property
    def draws_dropout(self) -> bool:
        """Whether dropout is on: then two rows with the same beginning draw masks of their own for it."""
        if any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in self.modules()):
            return True
        return self.training and self.backbone.training and architecture.attention_dropout(self.backbone) > 0

    def _inputs(self, tokens: Tokens, embeddings: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": tokens.mask.long()}
        if self.encoder.bidirectional:
            if architecture.has_segments(self.model) and tokens.token_types is not None:
                inputs["token_type_ids"] = tokens.token_types
            return inputs
        positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device).expand_as(tokens.ids)
        return self.inputs_at(positions, tokens.ids, embeddings, attention_mask=inputs["attention_mask"], use_cache=False)

    def inputs_at(
        self, positions: Int[Tensor, "B T"], ids: Int[Tensor, "B T"], embeddings: Float[Tensor, "B T D"], **options: Any
    ) -> dict[str, Any]:
        """Arguments of a causal backbone over the embeddings of `ids`, and over what it needs of the ids beside them. `positions` in a row
        count from 0. Those of `options` that it does not know are left out."""
        positions = positions + architecture.first_position(self.backbone)
        inputs = {"inputs_embeds": embeddings, "position_ids": positions, **options}
        inputs |= architecture.inputs_beside_embeddings(self.backbone, ids)
        accepted = architecture.accepted_arguments(self.backbone)
        return inputs if accepted is None else {name: value for name, value in inputs.items() if name in accepted}

    def _policy(self, hidden: Tensor, tokens: Tokens, needs: Set[str], temperature: Tensor | None) -> Outputs:
        # logits / temperature = head(hidden / temperature), if the head is linear without a bias.
        if temperature is not None and self.head_form.linear and self.model.get_output_embeddings().bias is None:
            hidden, temperature = hidden / temperature.to(hidden.dtype)[:, None, None], None
        shifted = lp.shift_right(hidden)
        outputs: dict[str, Any] = {}
        if "distribution" in needs:
            outputs["distribution"] = self._distribution(shifted, temperature)
        if {"logprobs", "entropy"} & needs:
            predicting, ids = shifted[tokens.target], tokens.ids[tokens.target]
            per_token = None if temperature is None else temperature[:, None].expand_as(tokens.ids)[tokens.target]
            values, entropy = self._token_logprobs(predicting, ids, per_token)
            zeros = values.new_zeros(tokens.ids.shape)
            outputs["logprobs"] = zeros.masked_scatter(tokens.target, values)
            outputs["entropy"] = zeros.masked_scatter(tokens.target, entropy)
        return Outputs(**outputs)

    def _distribution(self, shifted: Float[Tensor, "B T D"], temperature: Tensor | None) -> Distribution:
        if temperature is None:
            return Distribution(hidden=shifted, head=self.next_token_logits)
        # The temperature of a row travels as one more feature, so that whoever picks tokens picks it with them.
        divisors = temperature.to(shifted.dtype)[:, None, None].expand(*shifted.shape[:2], 1)
        head = self.next_token_logits
        return Distribution(hidden=torch.cat([shifted, divisors], 2), head=lambda h: head(h[:, :-1]) / h[:, -1:])

    def _token_logprobs(self, hidden: Tensor, ids: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
        if temperature is None and self.head_form.linear:
            head = self.model.get_output_embeddings()
            return lp.linear(hidden, head.weight, head.bias, ids, temperature=1 / self.head_form.scale)
        divisor = 1.0 if temperature is None else temperature[:, None].to(hidden.dtype)
        return lp.from_head(lambda h: self.next_token_logits(h), hidden, ids, temperature=divisor)

    def next_token_logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The model's own head (`models/own_head.py`)."""
        return own_head.apply(self.model, self.head_form, hidden)

    def save_pretrained(self, path: str | Path, *, merged: bool = False, card: bool = True) -> None:
        """A folder that `advalign.models.load` and, but for a scalar head, transformers can read: the whole model, or the
        adapter alone where there is one (then peft reads it too), unless it is to be `merged` into the weights. `card`: with a
        model card (README.md), unless one stands there that a person has changed."""
        saving.save(self, Path(path), merged=merged, card=card)
