"""The same training by this library and by TRL 1.16 on SmolLM2-135M-Instruct: model, data, rewards, tokens and settings are equal.

    python benchmarks/smollm_trl.py [--workers N] [--only "grpo-*"] [--smoke] [--summary]

GRPO (smollm_trl_grpo.py): 24 draws of 128 answers from one warm start, two seeds; about 10 CPU-minutes a cell of ours, 20 of TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import smollm_trl_grpo
from smollm_cells import run

CELLS = smollm_trl_grpo.CELLS
SUMMARIES = {"grpo": smollm_trl_grpo.summarise}
"""{what a cell compares: how its cells are summed up}"""


def summarise(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    by_kind = {what: [dict(cell) for cell in cells.values() if cell["what"] == what] for what in SUMMARIES}
    return {what: SUMMARIES[what](runs) for what, runs in by_kind.items() if runs}


if __name__ == "__main__":
    run("trl", CELLS, summarise, description=__doc__)
