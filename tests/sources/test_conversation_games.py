"""Whole runs on conversations: every source that samples, plays or remembers keeps all turns, and a resumed run ends bit for bit."""

import json
import shutil
from dataclasses import replace

import pytest
from helpers import chats
from helpers.equal import assert_equal

from advalign import config as configuration
from advalign.metrics.run_log import read
from advalign.sources.pairs import Pairs
from advalign.training import checkpoint
from advalign.types import Example, Rollout, RolloutGroup, from_json, to_json
from advalign.types.messages import conversation, with_attacked_turn

SHORT = {"max_new_tokens": 4}
LAST = ["say a color", "the movie", "hello you"]
ROLLOUTS = {"data": "{rows}", "batch_size": 2, "group_size": 2, "sampling": SHORT, "advantage": {"kind": "group"}}
PROMPTS = {"kind": "prompts", "rewards": ["{reward}"], **ROLLOUTS}
DEMOS = {"kind": "demos", "data": "{rows}", "batch_size": 2}
PAIRS = {"kind": "pairs", "data": "{pairs}", "batch_size": 2}
GRPO = {"kind": "grpo", "source": "main"}
SUFFIX = {"kind": "gcg", "length": 2, "steps": 1, "candidates": 4, "top": 4}
GAME = {
    "kind": "game", "learner": "policy", "defender": "policy", "answers": 2, "answer_sampling": SHORT, "rewards": ["{reward}"], **ROLLOUTS,
}  # fmt: skip
# name -> (sources, objectives)
WORDS = {"kind": "words", "sources": ["characters"], "max_changed": 1.0}
CHOSEN = PROMPTS | {"kind": "adversarial_prompts", "candidates": 2, "probes": 1}
RUNS = {
    "prompts ahead": ({"main": PROMPTS | {"ahead": 1}}, [GRPO]),
    "distract": ({"main": CHOSEN | {"distract": {"alphabet": "ab", "length": 2}}}, [GRPO]),
    "attack": ({"main": CHOSEN | {"attack": WORDS, "candidates": 3}}, [GRPO]),
    "rewrites": ({"main": CHOSEN | {"rewrites": ["{rewritten}"], "candidates": 1}}, [GRPO]),
    "game": (
        {"main": GAME, "other": {"kind": "defender", "game": "main", "learner": "policy", "advantage": {"kind": "group"}, "clean": 0.5}},
        [GRPO, {"kind": "grpo", "source": "other"}],
    ),
    "replay": (
        {"write": PROMPTS, "main": {"kind": "replay", "source": "write", "batch_size": 2, "advantage": {"kind": "group"}}},
        [GRPO, {"kind": "reinforce", "source": "write"}],
    ),
    "rejection": (
        {"main": {name: x for name, x in PROMPTS.items() if name != "advantage"}
         | {"kind": "rejection", "collect": 2, "refresh": 2, "threshold": -1.0}},
        [{"kind": "sft", "source": "main"}],
    ),
    "trajectories": (
        {"main": {"kind": "trajectories", "data": "{rewarded}", "batch_size": 2, "advantage": {"kind": "group"}}},
        [{"kind": "reinforce", "source": "main"}],
    ),
    "self_vs_real": (
        {"chat": DEMOS, "main": {"kind": "self_vs_real", "real": "chat", "batch_size": 2, "sampling": SHORT, "history": 0.5}},
        [{"kind": "dpo", "source": "main"}],
    ),
    "persistent_suffixes": (
        {"harm": PAIRS, "main": {"kind": "persistent_suffixes", "source": "harm", "attack": SUFFIX, "size": 3, "batch_size": 2}},
        [{"kind": "lat", "source": "main"}],
    ),
    "contrast": (
        {"chat": DEMOS, "write": PROMPTS,
         "main": {"kind": "contrast", "real": "chat", "sampled": "write", "batch_size": 2, "replay": 0.5, "match": "prompt", "swap": 0.5}},
        [{"kind": "grpo", "source": "write"}, {"kind": "discriminate", "source": "main"}],
    ),
}  # fmt: skip


def data(folder):
    """{placeholder: a value of the configuration}."""
    rows = [[*chats.TURNS[:-1], {"role": "user", "content": text}] for text in LAST]
    base = [{"prompt": turns, "id": f"row {i}", "answer": "red"} for i, turns in enumerate(rows)]
    other = [row | {"prompt": [*row["prompt"][:-1], {"role": "user", "content": row["prompt"][-1]["content"] + " so"}]} for row in base]
    files = {
        "rows": [row | {"response": "red"} for row in base],
        "rewritten": other,
        "pairs": [row | {"chosen": "red", "rejected": "the mat"} for row in base],
        "rewarded": [row | {"response": text, "reward": float(i)} for row in base for i, text in enumerate(("red", "the cat"))],
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return {name: str(folder / f"{name}.jsonl") for name in files}


def filled(value, values):
    if isinstance(value, dict):
        return {key: filled(x, values) for key, x in value.items()}
    if isinstance(value, list):
        return [filled(x, values) for x in value]
    return values[value[1:-1]] if isinstance(value, str) and value[:1] == "{" else value


def run(name, folder, output, seen, *, resume=False):
    """One run of RUNS; `seen` gets every prompt that was answered and rewarded."""

    def reward(prompts, completions, **columns):
        seen.extend(prompts)
        return [float(len(c[0]["content"]) % 5) / 5 for c in completions]

    sources, objectives = RUNS[name]
    model = {"model": str(folder / "model"), "max_length": 96, "dtype": "float64", "learning_rate": 1e-3}
    config = {
        "learners": {"policy": model} | ({"discriminator": model | {"head": "score"}} if name == "contrast" else {}),
        "sources": filled(sources, data(folder) | {"reward": {"kind": "function", "fn": reward}}),
        "objectives": {f"o{i}": o for i, o in enumerate(objectives)},
        "frozen": {"reference": {"learner": "policy"}},
        "args": {"max_steps": 4, "save_steps": 2, "output_dir": str(output), "seed": 1},
    }
    configuration.trainer(config).train(progress=False, **({"resume": True} if resume else {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("chats")
    network = chats.policy()
    network.model.save_pretrained(at / "model")
    network.encoder.tokenizer.save_pretrained(at / "model")
    return at


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_bit_for_bit_and_every_prompt_keeps_its_other_turns(name, folder, tmp_path):
    seen = []
    run(name, folder, tmp_path / "whole", seen)
    for prompt in seen:
        assert [turn["role"] for turn in prompt] == [turn["role"] for turn in chats.TURNS]
        assert prompt[:-1] == chats.TURNS[:-1]
        assert any(text in prompt[-1]["content"] for text in LAST) or name in ("attack", "game")
    if name == "prompts ahead":  # what was in flight is sampled again after a resume, from newer weights
        return
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")  # killed after step 2
    shutil.rmtree(tmp_path / "broken/checkpoint-4")
    run(name, folder, tmp_path / "broken", seen, resume=True)
    assert read(tmp_path / "whole") == read(tmp_path / "broken")
    a, b = tmp_path / "whole/checkpoint-4", tmp_path / "broken/checkpoint-4"
    assert_equal(checkpoint.read_state(a), checkpoint.read_state(b))
    assert (a / "learner.policy.safetensors").read_bytes() == (b / "learner.policy.safetensors").read_bytes()


def test_a_group_goes_through_json_with_its_conversation():
    prompt = conversation(
        [{"role": "user", "content": "say"}, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
         {"role": "tool", "content": "good", "name": "f"}],
        tools=[{"type": "function", "function": {"name": "f"}}],
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    for sent in (prompt, with_attacked_turn(prompt, "tool", "here"), "a text"):
        rollout = Rollout(response_ids=[2], sampler_logprobs=[-1.0], text="a", finished=True)
        group = RolloutGroup(example=Example(prompt=sent), prompt_ids=[1], rollouts=[rollout])
        again = from_json(json.loads(json.dumps(to_json(group))))
        assert again == group
        assert hash(again.example.prompt) == hash(sent)


# ------------------------------------------------------------------------------------- prompts of a rejected side


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ([{"role": "user", "content": "the mat"}], [{"role": "user", "content": "the mat"}]),
        ("the mat", [*chats.TURNS[:-1], {"role": "user", "content": "the mat"}]),
    ],
)
def test_another_prompt_of_the_rejected_side_is_messages_or_another_last_turn(given, turns):
    network = chats.policy()
    base = chats.chat()
    tools = [{"type": "function", "function": {"name": "f"}}]
    example = replace(
        base, prompt=replace(base.prompt, tools=tuple(tools)), meta={"chosen": "red", "rejected": "red", "rejected_prompt": given}
    )
    rows = Pairs(data=[]).build([example], network.encoder).tokens
    ids = network.encoder.tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": "red"}], tools=tools, tokenize=True, return_dict=False
    )
    assert rows.ids[1][rows.mask[1]].tolist() == ids
