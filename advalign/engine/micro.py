"""Micro-batches: bundles of rows packed side by side under a token budget. No result depends on the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from advalign.errors import BudgetError
from advalign.types import Outputs, PairRows, Rows, TokenRows, Tokens, Weights, fit

RowsT = TypeVar("RowsT", bound=TokenRows)

Micro = Mapping[str, Tensor]
"""One micro-batch: {source: its row numbers}."""


@dataclass(frozen=True)
class _Bundle:
    """Rows that stay together."""

    source: str
    """Their source."""
    rows: list[int]
    """Row numbers."""
    length: int
    """Tokens of the longest row."""
    tokens: int
    """Tokens of all rows, without padding."""

    def cost(self, layout: BatchLayout) -> int:
        return self.tokens if layout.packed else self.length * len(self.rows)


@dataclass(frozen=True)
class BatchLayout:
    """How rows are laid out in a forward."""

    packed: bool = False
    """Without padding (`models/padding_free.py`)."""
    shared: frozenset[str] = frozenset()
    """Sources of which the prompt of a group is run once."""


PADDED = BatchLayout()


def pack(
    rows: Mapping[str, TokenRows], budget: int, *, whole_groups: frozenset[str] = frozenset(), layout: BatchLayout = PADDED
) -> list[dict[str, Tensor]]:
    """The micro-batches of an update within `budget` tokens each.

    A pair stays together, and so does a group of the sources `whole_groups`, whose rows share a delta. Longest bundles come first, so that
    rows of a micro-batch have about the same length; its cost is rows x longest row. Where rows are packed, its cost is their real tokens,
    and groups stay together if they fit. Raises BudgetError when a single bundle is over the budget.
    """
    return partition(rows, budget, whole_groups=whole_groups, layout=layout)[0]


def partition(
    rows: Mapping[str, TokenRows], budget: int, *, whole_groups: frozenset[str] = frozenset(), layout: BatchLayout = PADDED, parts: int = 1
) -> list[list[dict[str, Tensor]]]:
    """The micro-batches of each of `parts` processes: the longest remaining bundle goes to the process with the fewest tokens."""
    bundles: list[_Bundle] = []
    for source, r in rows.items():
        if layout.packed and source not in whole_groups and not isinstance(r, PairRows):
            bundles += _groups_that_fit(source, r, budget, source in layout.shared)
        else:
            bundles += _bundles(source, r, source in whole_groups, source in layout.shared)
    bundles.sort(key=lambda b: (-b.length, b.source, b.rows[0]))
    per_rank: list[list[_Bundle]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for bundle in bundles:
        cost = bundle.cost(layout)
        if cost > budget:
            raise BudgetError(
                f"args.token_budget: {len(bundle.rows)} row(s) of {bundle.length} tokens of source '{bundle.source}' must stay together "
                f"and need {cost}, the budget is {budget}; raise it."
            )
        least = tokens.index(min(tokens))
        per_rank[least].append(bundle)
        tokens[least] += cost
    return [_pack_in_order(part, budget, layout) for part in per_rank]


def _pack_in_order(bundles: Sequence[_Bundle], budget: int, layout: BatchLayout) -> list[dict[str, Tensor]]:
    micros: list[list[_Bundle]] = []
    filled = 0  # rows of the last micro-batch; its tokens where rows are packed
    for bundle in bundles:
        size = bundle.tokens if layout.packed else len(bundle.rows)
        width = 1 if layout.packed or not micros else micros[-1][0].length
        if micros and width * (filled + size) <= budget:
            micros[-1].append(bundle)
            filled += size
        else:
            micros.append([bundle])
            filled = size
    return [_indices(micro) for micro in micros]


def pad_to_equal_count(
    per_rank: Sequence[Sequence[Micro]], rows: Mapping[str, TokenRows], *, whole_groups: frozenset[str] = frozenset()
) -> list[list[tuple[Micro, frozenset[str]]]]:
    """(micro-batch, idle sources) of each process: the same number for all, and micro-batch i has rows of the same sources for all.

    Where a process has no rows of a source, the shortest bundle of the source fills in and the source is idle: its rows count for nothing.
    """
    filler: dict[str, Tensor] = {}
    for source, r in rows.items():
        shortest = min(_bundles(source, r, source in whole_groups), key=lambda b: (b.length * len(b.rows), b.rows[0]))
        filler[source] = torch.tensor(shortest.rows)
    longest = max(map(len, per_rank))
    sources_of = [sorted({s for micros in per_rank if i < len(micros) for s in micros[i]}) for i in range(longest)]
    padded: list[list[tuple[Micro, frozenset[str]]]] = []
    for micros in per_rank:
        full = [*micros, *({} for _ in range(longest - len(micros)))]
        padded.append(
            [({s: m.get(s, filler[s]) for s in sources}, frozenset(sources) - set(m)) for m, sources in zip(full, sources_of, strict=True)]
        )
    return padded


def _bundles(source: str, rows: TokenRows, by_group: bool, shared: bool = False) -> list[_Bundle]:
    lengths = rows.tokens.lengths.tolist()
    if isinstance(rows, PairRows):
        members = [[i, i + 1] for i in range(0, len(lengths), 2)]
    elif by_group:
        groups: dict[int, list[int]] = {}
        for i, g in enumerate(rows.tokens.group.tolist()):
            groups.setdefault(g, []).append(i)
        members = list(groups.values())
    else:
        members = [[i] for i in range(len(lengths))]
    # A prompt ends where the first target is.
    prompts = rows.tokens.target.long().argmax(1).tolist() if shared else [0] * len(lengths)
    return [
        _Bundle(source, m, max(lengths[i] for i in m), sum(lengths[i] for i in m) - (len(m) - 1) * min(prompts[i] for i in m))
        for m in members
    ]


def _groups_that_fit(source: str, rows: TokenRows, budget: int, shared: bool) -> list[_Bundle]:
    """Groups as bundles; the rows of a group over the budget one by one."""
    single = {b.rows[0]: b for b in _bundles(source, rows, False)}
    groups = _bundles(source, rows, True, shared)
    return [b for group in groups for b in ([group] if group.tokens <= budget else [single[i] for i in group.rows])]


def _indices(micro: Sequence[_Bundle]) -> dict[str, Tensor]:
    numbers: dict[str, list[int]] = {}
    for bundle in micro:
        numbers.setdefault(bundle.source, []).extend(bundle.rows)
    # In row order: the order inside a source must not depend on how lengths happened to sort.
    return {source: torch.tensor(sorted(rows), dtype=torch.long) for source, rows in sorted(numbers.items())}


# ------------------------------------------------------------------------------------------- rows of a micro-batch


def mask_row_keys(rows: RowsT) -> RowsT:
    """Filler rows: they lose their keys, so that no adversary keeps anything for them (`has_row_key`)."""
    tokens = rows.tokens
    return replace(rows, tokens=replace(tokens, key=torch.full_like(tokens.key, -1)))


def has_row_key(name: str) -> bool:
    """Whether a delta, by its name in `PerturbationContext.names`, belongs to a row of the update."""
    return not name.endswith("/-1")


def take_rows(rows: RowsT, numbers: Int[Tensor, "N"], width: int) -> RowsT:
    """The rows of a micro-batch, every "B T" column cropped or padded to `width`."""
    return fit_columns(rows.index(numbers), width)


def fit_columns(rows: RowsT, width: int) -> RowsT:
    """Rows with every "B T" column cropped or padded to `width`."""
    columns: dict[str, Any] = {}
    for item in fields(rows):
        value = getattr(rows, item.name)
        if isinstance(value, Tokens):
            columns[item.name] = value.fit(width)
        elif isinstance(value, Tensor) and value.ndim >= 2 and item.name != "rewards":
            columns[item.name] = fit(value, width)
    return replace(rows, **columns)


def take_weights(weights: Weights, num_rows: int, numbers: Int[Tensor, "N"], width: int) -> Float[Tensor, "..."]:
    """The weights of a micro-batch: by row, or by pair where there are half as many weights as rows."""
    per = num_rows // weights.values.shape[0]
    values = weights.values[numbers[::per] // per]
    return fit(values, width) if values.ndim >= 2 else values


def join_tokens(tokens: Sequence[Tokens]) -> Tokens:
    """Several sources side by side; widths must agree. Group numbers are kept apart."""
    columns: dict[str, Tensor] = {}
    for item in fields(Tokens):
        parts = [getattr(t, item.name) for t in tokens]
        if all(part is not None for part in parts):
            columns[item.name] = torch.cat(parts)
    offset, groups = 0, []
    for t in tokens:
        groups.append(t.group + offset)
        offset += int(t.group.max()) + 1
    return Tokens(**{**columns, "group": torch.cat(groups)})


def slice_outputs(outputs: Outputs, start: int, stop: int) -> Outputs:
    """The outputs of one source out of a joined forward."""
    if outputs.reader is not None:  # it has no rows, and comes alone
        return outputs
    return outputs.index(torch.arange(start, stop, device=first_tensor(outputs).device))


def first_tensor(outputs: Outputs) -> Tensor:
    """Some tensor of a forward: for its device, or for its graph."""
    for item in fields(outputs):
        value = getattr(outputs, item.name)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Rows):
            return value.hidden  # type: ignore[attr-defined]
        if isinstance(value, Mapping):
            return next(iter(value.values()))
    raise AssertionError("a forward without outputs")


def temperatures(rows: Sequence[TokenRows]) -> Float[Tensor, "B"] | None:
    """Sampling temperature per row of several sources; None where all are 1."""
    values = [r.softmax_temperature for r in rows]
    if all(v == 1.0 for v in values):
        return None
    return torch.cat([torch.full((r.tokens.ids.shape[0],), float(v)) for r, v in zip(rows, values, strict=True)])


def split_groups(rows: TokenRows, parts: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """A draw split into `parts` updates, groups (and so pairs) whole: row numbers per update. The groups are shuffled by `generator`."""
    owner = rows.tokens.group
    groups = owner.unique()
    if generator is not None:
        groups = groups[torch.randperm(len(groups), generator=generator).to(groups.device)]
    return [torch.isin(owner, chunk).nonzero().squeeze(1) for chunk in torch.tensor_split(groups, parts)]
