"""Micro-batches: bundles of rows packed side by side under a token budget. Nothing that is computed depends on the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from advalign.errors import BudgetError
from advalign.types import Outputs, PairRows, Rows, Tokens, Weights, fit

Micro = Mapping[str, Tensor]  # {source: numbers of its rows}


@dataclass(frozen=True)
class _Bundle:
    source: str
    rows: list[int]
    length: int
    tokens: int  # without padding

    def cost(self, layout: BatchLayout) -> int:
        return self.tokens if layout.packed else self.length * len(self.rows)


@dataclass(frozen=True)
class BatchLayout:
    """How rows are laid out in forwards. `packed`: without padding (`models/packed.py`); of `shared` sources the prompt of a group is run
    once."""

    packed: bool = False
    shared: frozenset[str] = frozenset()


PADDED = BatchLayout()


def pack(
    rows: Mapping[str, Any], budget: int, *, whole_groups: frozenset[str] = frozenset(), layout: BatchLayout = PADDED
) -> list[dict[str, Tensor]]:
    """Split an update. A pair, or a whole group where a delta is shared (`whole_groups`: names of sources), stays together.

    Longest bundles first, so that rows of a micro-batch have about the same length; its cost is rows x longest row. Where rows are
    packed it is their real tokens, and groups stay together if they fit. Raises BudgetError when a single bundle is over the budget.
    """
    return partition(rows, budget, whole_groups=whole_groups, layout=layout)[0]


def partition(
    rows: Mapping[str, Any], budget: int, *, whole_groups: frozenset[str] = frozenset(), layout: BatchLayout = PADDED, parts: int = 1
) -> list[list[dict[str, Tensor]]]:
    """The micro-batches of each of `parts` processes: the longest bundle left goes to the one with the fewest tokens."""
    bundles: list[_Bundle] = []
    for source, r in rows.items():
        if layout.packed and source not in whole_groups and not isinstance(r, PairRows):
            bundles += _fitting(source, r, budget, source in layout.shared)
        else:
            bundles += _bundles(source, r, source in whole_groups, source in layout.shared)
    bundles.sort(key=lambda b: (-b.length, b.source, b.rows[0]))
    hands: list[list[_Bundle]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for bundle in bundles:
        cost = bundle.cost(layout)
        if cost > budget:
            raise BudgetError(
                f"args.token_budget: {len(bundle.rows)} row(s) of {bundle.length} tokens of source '{bundle.source}' must stay together "
                f"and need {cost}, the budget is {budget}; raise it."
            )
        least = tokens.index(min(tokens))
        hands[least].append(bundle)
        tokens[least] += cost
    return [_packed(hand, budget, layout) for hand in hands]


def _packed(bundles: Sequence[_Bundle], budget: int, layout: BatchLayout) -> list[dict[str, Tensor]]:
    micros: list[list[_Bundle]] = []
    filled = 0  # rows of the last micro-batch; its tokens where rows are packed
    for bundle in bundles:
        more = bundle.tokens if layout.packed else len(bundle.rows)
        width = 1 if layout.packed or not micros else micros[-1][0].length
        if micros and width * (filled + more) <= budget:
            micros[-1].append(bundle)
            filled += more
        else:
            micros.append([bundle])
            filled = more
    return [_indices(micro) for micro in micros]


def pad_to_equal_count(
    hands: Sequence[Sequence[Micro]], rows: Mapping[str, Any], *, whole_groups: frozenset[str] = frozenset()
) -> list[list[tuple[Micro, frozenset[str]]]]:
    """The same number of micro-batches for all, micro-batch i with rows of the same sources for all: where a process has none, the
    shortest bundle of the source fills in, and the source is named as idle. Its rows then count for nothing."""
    filler: dict[str, Tensor] = {}
    for source, r in rows.items():
        shortest = min(_bundles(source, r, source in whole_groups), key=lambda b: (b.length * len(b.rows), b.rows[0]))
        filler[source] = torch.tensor(shortest.rows)
    wanted = [sorted({s for hand in hands if i < len(hand) for s in hand[i]}) for i in range(max(map(len, hands)))]
    found: list[list[tuple[Micro, frozenset[str]]]] = []
    for hand in hands:
        padded = [*hand, *({} for _ in range(len(wanted) - len(hand)))]
        found.append(
            [({s: m.get(s, filler[s]) for s in sources}, frozenset(sources) - set(m)) for m, sources in zip(padded, wanted, strict=True)]
        )
    return found


def _bundles(source: str, rows: Any, by_group: bool, shared: bool = False) -> list[_Bundle]:
    lengths = rows.tokens.lengths.tolist()
    if isinstance(rows, PairRows):
        members = [[i, i + 1] for i in range(0, len(lengths), 2)]
    elif by_group:
        owners: dict[int, list[int]] = {}
        for i, g in enumerate(rows.tokens.group.tolist()):
            owners.setdefault(g, []).append(i)
        members = list(owners.values())
    else:
        members = [[i] for i in range(len(lengths))]
    # A prompt ends where the first target is.
    prompts = rows.tokens.target.long().argmax(1).tolist() if shared else [0] * len(lengths)
    return [
        _Bundle(source, m, max(lengths[i] for i in m), sum(lengths[i] for i in m) - (len(m) - 1) * min(prompts[i] for i in m))
        for m in members
    ]


def _fitting(source: str, rows: Any, budget: int, shared: bool) -> list[_Bundle]:
    """Groups; the rows of those that are over the budget one by one."""
    single = {b.rows[0]: b for b in _bundles(source, rows, False)}
    groups = _bundles(source, rows, True, shared)
    return [b for group in groups for b in ([group] if group.tokens <= budget else [single[i] for i in group.rows])]


def _indices(micro: Sequence[_Bundle]) -> dict[str, Tensor]:
    found: dict[str, list[int]] = {}
    for bundle in micro:
        found.setdefault(bundle.source, []).extend(bundle.rows)
    # In row order: the order inside a source must not depend on how lengths happened to sort.
    return {source: torch.tensor(sorted(numbers), dtype=torch.long) for source, numbers in sorted(found.items())}


def mask_row_keys(rows: Any) -> Any:
    """Rows that stand for nobody: what an adversary keeps by row is not theirs (`named`)."""
    tokens = rows.tokens
    return replace(rows, tokens=replace(tokens, key=torch.full_like(tokens.key, -1)))


def has_row_key(place: str) -> bool:
    """Whether a delta, by its name in `PerturbationContext.names`, belongs to a row of the update."""
    return not place.endswith("/-1")


def cut(rows: Any, numbers: Int[Tensor, "N"], width: int) -> Any:
    """The rows of a micro-batch, every "B T" column cropped or padded to `width`."""
    return widen(rows.index(numbers), width)


def widen(rows: Any, width: int) -> Any:
    new: dict[str, Any] = {}
    for item in fields(rows):
        value = getattr(rows, item.name)
        if isinstance(value, Tokens):
            new[item.name] = value.fit(width)
        elif isinstance(value, Tensor) and value.ndim >= 2 and item.name != "rewards":
            new[item.name] = fit(value, width)
    return replace(rows, **new)


def cut_weights(weights: Weights, num_rows: int, numbers: Int[Tensor, "N"], width: int) -> Float[Tensor, "..."]:
    """The weights of a micro-batch: by row, or by pair where there are half as many weights as rows."""
    per = num_rows // weights.values.shape[0]
    values = weights.values[numbers[::per] // per]
    return fit(values, width) if values.ndim >= 2 else values


def join(tokens: Sequence[Tokens]) -> Tokens:
    """Several sources side by side; widths must agree. Group numbers are kept apart."""
    joined: dict[str, Tensor] = {}
    for item in fields(Tokens):
        joined[item.name] = torch.cat([getattr(t, item.name) for t in tokens])
    offset, groups = 0, []
    for t in tokens:
        groups.append(t.group + offset)
        offset += int(t.group.max()) + 1
    return Tokens(**{**joined, "group": torch.cat(groups)})


def part(outputs: Outputs, start: int, stop: int) -> Outputs:
    """The outputs of one source out of a joined forward."""
    if outputs.reader is not None:  # it has no rows, and comes alone
        return outputs
    return outputs.index(torch.arange(start, stop, device=_any(outputs).device))


def _any(outputs: Outputs) -> Tensor:
    for item in fields(outputs):
        value = getattr(outputs, item.name)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Rows):
            return value.hidden  # type: ignore[attr-defined]
        if isinstance(value, Mapping):
            return next(iter(value.values()))
    raise AssertionError("a forward without outputs")


def temperatures(rows: Sequence[Any]) -> Float[Tensor, "B"] | None:
    """Sampling temperature per row; None where all are 1."""
    values = [getattr(r, "temperature", 1.0) or 1.0 for r in rows]
    if all(v == 1.0 for v in values):
        return None
    return torch.cat([torch.full((r.tokens.ids.shape[0],), float(v)) for r, v in zip(rows, values, strict=True)])


def split_groups(rows: Any, parts: int) -> list[Tensor]:
    """A draw split into updates, groups (and so pairs) whole: row numbers per update."""
    owner = rows.tokens.group
    return [torch.isin(owner, chunk).nonzero().squeeze(1) for chunk in torch.tensor_split(owner.unique(), parts)]
