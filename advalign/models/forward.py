"""One forward for every model: rows and edits in, what the objectives asked for out.

Right padding, explicit position ids, the LM head only at positions that predict a target, log-probabilities chunked over
the vocabulary. Outputs are shifted by one here, by `functional.logprobs.shift_right`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor, nn

from advalign.errors import ConfigError, unknown
from advalign.functional import logprobs as lp
from advalign.models import adapters, heads, padding_free
from advalign.models.compiled import Compiled
from advalign.models.encode import Encoder
from advalign.models.perturb import applied, captured, edited, twice_differentiable, without_dropout
from advalign.types import Distribution, Edit, Outputs, ScoreReader, Tokens

HEADS = ("policy", "classifier", "score", "value")


class Network(nn.Module):
    """A transformers model, its encoder and one head: "policy" (next token), "classifier", "score" (one number per
    row) or "value" (one number per token). `num_forwards` and `num_rows` count what passed through. `source`: the name
    its base was loaded from; `shares_base`: only adapter and head are its own (`models/adapters.py`); `compiled`: of its blocks, where
    they are to be. `reads`: a scorer of hidden states of that many features instead of tokens (`models/latent.py`)."""

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        head: str,
        *,
        pooling: str = "last",
        head_dropout: float = 0.0,
        spectral_norm: bool = False,
        reads: int | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise unknown("head", "head", head, HEADS)
        self.model: Any = model
        self.encoder = encoder
        self.head = head
        self.pooling, self.head_dropout, self.spectral_norm = pooling, head_dropout, spectral_norm
        self.source: str | None = None
        self.shares_base = False
        self.compiled: Compiled | None = None
        self.num_forwards = 0
        self.num_rows = 0
        self.reads = reads
        self._packs: bool | None = None if reads is None and padding_free.prepare(model) and not encoder.bidirectional else False
        self._norm: tuple[Any, float] = (None, math.nan)
        if head in ("score", "value"):
            self.scalar = nn.Linear(_hidden_size(model), 1)
            nn.init.normal_(self.scalar.weight, std=0.02)
            nn.init.zeros_(self.scalar.bias)
            # Created here, so it must follow a model that already lives elsewhere or in another precision.
            first = next(model.parameters())
            self.scalar.to(device=first.device, dtype=first.dtype)
            self.dropout = nn.Dropout(head_dropout) if head_dropout else nn.Identity()
            if spectral_norm:
                heads.normalize(self.scalar)
            if reads is not None:
                self.project = nn.Linear(reads, _hidden_size(model)).to(device=first.device, dtype=first.dtype)

    @property
    def backbone(self) -> nn.Module:
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def width(self, site: str) -> int:
        """Number of features at a perturbation site."""
        return self.model.get_input_embeddings().weight.shape[1] if site == "embedding" else _hidden_size(self.model)

    @property
    def packs(self) -> bool:
        """Whether rows are run without padding and with common beginnings once (`models/packed.py`); tried out when it is first asked."""
        if self._packs is None:
            self._packs = False
            with without_dropout(self):
                self._packs = padding_free.agrees(self._tried, self.device, self.model.get_input_embeddings().weight.shape[0])
        return self._packs

    def _tried(self, layout: padding_free.PackedLayout | None, tokens: Tokens) -> Tensor:
        return self._hidden(self._inputs(tokens, self.model.get_input_embeddings()(tokens.ids)), layout)

    @torch.no_grad()
    def mean_embedding_norm(self) -> float:
        """Mean L2 norm of what the embedding module gives for every token, a scale inside that module (Gemma 3) included: the
        unit of relative radii. Computed once per version of the matrix."""
        module = self.model.get_input_embeddings()
        version = (module.weight.data_ptr(), module.weight._version)
        if self._norm[0] != version:
            ids = torch.arange(module.weight.shape[0], device=module.weight.device)
            total = sum(float(module(part).double().norm(dim=-1).sum()) for part in ids.split(8192))
            self._norm = (version, total / len(ids))
        return self._norm[1]

    def forget_norm(self) -> None:
        """Measure the embedding anew: a sharded matrix is put together in the same place, whatever has become of it."""
        self._norm = (None, math.nan)

    def forward(
        self,
        tokens: Tokens,
        needs: Set[str],
        edits: Mapping[str, Edit] | None = None,
        temperature: Float[Tensor, "B"] | None = None,
    ) -> Outputs:
        """Outputs named in `needs`, for rows `tokens`. `temperature` divides the logits of a policy, row by row."""
        self.num_forwards += 1
        self.num_rows += tokens.ids.shape[0]
        if (self.reads is not None) != ("reader" in needs):
            what = "hidden states" if self.reads is not None else "tokens"
            raise ConfigError(f"model: one that reads {what} was asked for {', '.join(sorted(needs))}; see model: latent:<learner>.")
        if self.reads is not None:
            return Outputs(reader=ScoreReader(score=self._read))
        edits = edits or {}
        here = edits.get("embedding", Edit())
        rows = tokens if here.tokens is None else here.tokens
        embeddings = applied(self.model.get_input_embeddings()(rows.ids), here)
        sites = [need.partition(":")[2] for need in sorted(needs) if need.startswith("hidden:")]
        sloped = "score_gradients" in needs
        layout = padding_free.layout(rows, share=not edits and not self._random()) if self.packs and not sloped else None
        if layout is not None:
            edits = layout.edits({site: edit for site, edit in edits.items() if site != "embedding"})
        if sloped and not embeddings.requires_grad:
            embeddings = embeddings.detach().requires_grad_()
        plain = not sloped and not sites and not edits.keys() - {"embedding"}
        fast = self.compiled.on(self.backbone) if self.compiled is not None and plain else nullcontext()
        with fast, edited(self.backbone, edits), captured(self.backbone, sites) as hidden, twice_differentiable(sloped):
            outputs = self._outputs(self._inputs(rows, embeddings), rows, needs, temperature, layout)
            if sloped:
                assert outputs.scores is not None, f"head '{self.head}' has no scores"
                # A score depends on its own row alone, so the gradient of their sum is that of each.
                (input_gradients,) = torch.autograd.grad(outputs.scores.sum(), embeddings, create_graph=True)
                outputs = replace(outputs, score_gradients=input_gradients)
        if sites:
            hidden = hidden if layout is None else {site: layout.unpack(x) for site, x in hidden.items()}
            hidden |= {"embedding": embeddings} if "embedding" in sites else {}
            outputs = replace(outputs, hidden=hidden)
        return outputs if here.origin is None else outputs.gather(here.origin)

    def _outputs(
        self,
        inputs: Mapping[str, Any],
        tokens: Tokens,
        needs: Set[str],
        temperature: Tensor | None,
        layout: padding_free.PackedLayout | None,
    ) -> Outputs:
        if self.head == "classifier" and not hasattr(self.model, "score"):
            return Outputs(class_logits=self.model(**inputs).logits)
        hidden = self._hidden(inputs, layout)
        if self.head == "policy":
            return self._policy(hidden, tokens, needs, temperature)
        if self.head == "classifier":
            return Outputs(class_logits=self.model.score(self._pool(hidden, tokens.mask)))
        if self.head == "score":
            scores = self._scalar(self._pool(hidden, tokens.mask))
            each = self._scalar(hidden).masked_fill(~tokens.mask, 0) if "token_scores" in needs else None
            return Outputs(scores=scores, token_scores=each)
        return Outputs(values=lp.shift_right(self._scalar(hidden)) * tokens.target)

    def _hidden(self, inputs: Mapping[str, Any], layout: padding_free.PackedLayout | None) -> Float[Tensor, "B T D"]:
        if layout is None:
            return self.backbone(**inputs).last_hidden_state  # type: ignore[no-any-return]
        return layout.unpack(self.backbone(**layout.inputs(inputs)).last_hidden_state)

    def _random(self) -> bool:
        """Whether dropout is on: then two rows with the same beginning draw masks of their own for it."""
        attention = getattr(self.backbone.config, "attention_dropout", 0.0) or 0.0
        return self.training and (attention > 0 or any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in self.modules()))

    def _read(self, hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B"]:
        hidden = torch.where(mask[..., None], hidden, 0.0).to(self.project.weight.dtype)
        inputs = {"inputs_embeds": self.project(hidden), "attention_mask": mask.long()}
        return self._scalar(self._pool(self.backbone(**inputs).last_hidden_state, mask))

    def _scalar(self, hidden: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
        return self.scalar(self.dropout(hidden)).squeeze(-1)

    def _inputs(self, tokens: Tokens, embeddings: Tensor) -> dict[str, Any]:
        inputs: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": tokens.mask.long()}
        if self.encoder.bidirectional:
            separator = self.encoder.tokenizer.sep_token_id
            if getattr(self.model.config, "type_vocab_size", 0) > 1 and separator is not None:
                ends = (tokens.ids == separator).long()
                inputs["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).long() * tokens.mask
            return inputs
        inputs["position_ids"] = torch.arange(tokens.ids.shape[1], device=tokens.ids.device).expand_as(tokens.ids)
        inputs["use_cache"] = False
        return inputs

    def _pool(self, hidden: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        if self.pooling == "mean":
            weights = mask.to(hidden.dtype)
            return torch.einsum("btd,bt->bd", hidden, weights) / weights.sum(1, keepdim=True).clamp(min=1)
        position = torch.zeros_like(mask[:, 0].long()) if self.pooling == "first" else mask.sum(1) - 1
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), position]

    def _policy(self, hidden: Tensor, tokens: Tokens, needs: Set[str], temperature: Tensor | None) -> Outputs:
        if temperature is not None and self.model.get_output_embeddings().bias is None and _plain_head(self.model):
            hidden, temperature = hidden / temperature.to(hidden.dtype)[:, None, None], None
        shifted = lp.shift_right(hidden)
        outputs: dict[str, Any] = {}
        if "distribution" in needs:
            outputs["distribution"] = Distribution(hidden=shifted, head=self.next_token_logits)
        if {"logprobs", "entropy"} & needs:
            chosen, ids = shifted[tokens.target], tokens.ids[tokens.target]
            rows = None if temperature is None else temperature[:, None].expand_as(tokens.ids)[tokens.target]
            values, entropy = self._token_logprobs(chosen, ids, rows)
            zeros = values.new_zeros(tokens.ids.shape)
            outputs["logprobs"] = zeros.masked_scatter(tokens.target, values)
            outputs["entropy"] = zeros.masked_scatter(tokens.target, entropy)
        return Outputs(**outputs)

    def _token_logprobs(self, hidden: Tensor, ids: Tensor, temperature: Tensor | None) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        if temperature is None and _plain_head(self.model):
            return lp.linear(hidden, head.weight, head.bias, ids)
        divide = 1.0 if temperature is None else temperature[:, None].to(hidden.dtype)
        return lp.from_head(lambda h: self.next_token_logits(h), hidden, ids, temperature=divide)

    def next_token_logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The LM head, with the soft cap of models that have one."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if not cap else cap * torch.tanh(logits / cap)

    def save_pretrained(self, path: str | Path, *, merged: bool = False) -> None:
        """A folder that `advalign.models.load` and, but for a scalar head, transformers can read: the whole model, or the
        adapter alone where there is one (then peft reads it too), unless it is to be `merged` into the weights."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        facts = {"head": self.head, "pooling": self.pooling, "max_length": self.encoder.max_length}
        facts |= {"bidirectional": self.encoder.bidirectional}
        facts |= {name: getattr(self, name) for name in ("head_dropout", "spectral_norm", "reads") if getattr(self, name)}
        if adapters.has_adapter(self.model) and not merged:
            facts |= adapters.save(self, path, facts)
        else:
            adapters.clear(path)
            (adapters.merged(self.model) if merged else self.model).save_pretrained(path)
        self.encoder.tokenizer.save_pretrained(path)
        (path / "advalign.json").write_text(json.dumps(facts, indent=1))
        if hasattr(self, "scalar"):
            save_file({k: v.contiguous() for k, v in self.scalar.state_dict().items()}, path / "scalar_head.safetensors")
        if self.reads is not None:
            save_file({k: v.contiguous() for k, v in self.project.state_dict().items()}, path / "projection.safetensors")


def _plain_head(model: Any) -> bool:
    """Whether logits are exactly `hidden @ weight.T + bias`."""
    config = model.config
    scaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in ("logit_scale", "logits_scaling"))
    return isinstance(model.get_output_embeddings(), nn.Linear) and not scaled and not getattr(config, "final_logit_softcapping", None)


def _hidden_size(model: Any) -> int:
    return model.config.hidden_size
