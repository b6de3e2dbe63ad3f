"""The demo on a chat model: its conversations, its verifier, its rates and its page; all of it on a tiny model."""

import random
import re
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from helpers.chats import TEMPLATE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from advalign import config as configuration
from advalign.judges.refusal import RefusalJudge

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import demo_chat  # noqa: E402
import demo_chat_report as page  # noqa: E402
import prepare_demo_chat as data  # noqa: E402

READ = ("demos_train", "problems_train", "worked_train")


def asked(rows):
    """What the user says in each row."""
    return {row.get("prompt", row.get("messages"))[1]["content"] for row in rows}


@pytest.mark.parametrize(
    ("text", "is_in_form", "is_solved"),
    [
        ("70 - 27 = 43. The answer is 43.", True, True),
        ("70 - 27 = 33.\nThe answer is 33", True, False),
        ("The answer is 43. I hope that helps!", False, False),  # the form ends the response
        ("43", False, False),
        ("The answer is forty.", False, False),
    ],
)
def test_a_problem_is_solved_where_it_is_right_and_in_form(text, is_in_form, is_solved):
    assert data.in_form(text) is is_in_form
    assert data.solved(text, "43") is is_solved
    # The format reward of the configuration reads the same form.
    rewards = configuration.read(ROOT / "configs/smollm2/demo.yaml")["sources"]["problems"]["rewards"]
    pattern = next(r["pattern"] for r in rewards if r["kind"] == "format")
    assert (re.fullmatch(pattern, text.strip()) is not None) is is_in_form


@pytest.mark.parametrize("split", data.SPLITS)
def test_written_problems_come_with_their_solution(split):
    rows = data.written_problems(split, 50, random.Random(0))
    assert len({question for question, _, _ in rows}) == 50
    for question, calculation, answer in rows:
        a, operation, b, result = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (\d+)", calculation).groups()
        assert re.findall(r"\d+", question) == [a, b]
        a, b = int(a), int(b)
        assert int(result) == int(answer) == {"+": a + b, "-": a - b, "*": a * b}[operation] > 0


def test_requests_are_refused_their_twins_answered_and_neither_twice():
    rows = data.written_requests()
    refuses = RefusalJudge().refuses
    assert len(rows) == 64
    assert len({row[name] for row in rows for name in ("unsafe", "benign")}) == 128
    for row in rows:
        assert all(refuses(form.format(row["topic"])) for form in data.REFUSALS)
        assert not refuses(row["answer"])


def test_without_public_sets_everything_is_self_written_and_nothing_held_out_is_trained_on():
    files, used = data.prepare(None)
    assert used == {"problems": "self-written templates", "requests": "self-written list"}
    trained = set().union(*(asked(files[name]) for name in READ))
    held_out = [name for name in files if name not in READ]
    assert len(held_out) == 8
    for name in held_out:
        assert asked(files[name]).isdisjoint(trained)
    assert asked(files["unsafe_validation"]).isdisjoint(asked(files["unsafe_test"]))
    kinds = [row["kind"] for row in files["demos_train"]]
    assert [6 * kinds.count(kind) for kind in ("refusal", "answer", "problem")] == [len(kinds), 3 * len(kinds), 2 * len(kinds)]


def test_a_folder_without_the_sets_is_a_fresh_machine(tmp_path):
    assert data.prepare(str(tmp_path)) == data.prepare(None)


@pytest.fixture
def finished():
    """Two prompts of each measure: none right before, one after."""

    def side(right):
        row = {"prompts": ["<b>one</b>", "two"], "answers": ["yes", "no"], "right": right}
        return dict.fromkeys(page.MEASURES, row)

    names = ["problems/rewards/exact_answer/mean", "discriminator/accuracy/real", "pgd/loss_start", "pgd/loss_end"]
    log = [{"step": i + 1} | dict.fromkeys(names, float(i)) for i in range(4)]
    return {
        "split": "test", "data": {"problems": "self-written templates"}, "formula": "loss = 1 grpo(problems)", "steps": 4, "log": log,
        "before": side([0, 0]), "after": side([1, 0]), "cpu_seconds": 6.0,
        "seconds": {"before": 1.0, "training": 2.0, "after": 3.0, "all": 5.0},
    }  # fmt: skip


def test_the_summary_has_rates_and_intervals(finished):
    rows = page.summary(finished)
    assert [row["measure"] for row in rows] == list(page.MEASURES.values())
    for row in rows:
        assert (row["before"], row["after"], row["prompts"]) == (0.0, 0.5, 2)
        # Wilson for 1 of 2: (1/2 + z^2/4) / (1 + z^2/2) = 1/2, half-width z sqrt(1/8 + z^2/16) / (1 + z^2/2) with z = 1.96: 0.405
        assert row["after low"] == pytest.approx(0.0945, abs=1e-3)
        assert row["after high"] == pytest.approx(0.9055, abs=1e-3)


def test_curves_are_running_means_of_what_was_logged():
    log = [{"step": 1, "x": 1.0}, {"step": 2}, {"step": 3, "x": 3.0}, {"step": 4, "x": 8.0}]
    assert page.curve(log, "x", width=2) == ([1, 3, 4], [1.0, 2.0, 5.5])


def test_refusing_everything_is_said(finished):
    assert "withstands attacks" not in page.report(finished).markdown()
    finished["after"]["answers twins"] = finished["before"]["answers twins"]
    assert "100% of the benign twins are refused too" in page.report(finished).markdown()


def test_the_page_shows_answers_side_by_side(finished):
    html = page.report(finished).html()
    assert "&lt;b&gt;one&lt;/b&gt;" in html
    assert "<b>one" not in html
    assert html.count("Before and after") == 1
    assert "a benign twin" in html
    assert "self-written templates" in html


def tiny(folder):
    """An untrained Llama with a ChatML template, whose words are the demo's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [turn["content"] for row in data.prepare(None)[0]["demos_train"] for turn in row["messages"]]
    special, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class SameProcess:
    """In the place of the pool of processes: what is submitted runs at once."""

    def __init__(self, max_workers, mp_context):
        pass

    def shutdown(self, wait):
        pass

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def test_the_whole_demo_on_a_tiny_model(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("ADVALIGN_DATA", raising=False)
    monkeypatch.setattr(demo_chat, "ProcessPoolExecutor", SameProcess)
    monkeypatch.setattr(demo_chat, "MODEL", tiny(tmp_path / "model"))
    lora = "learners.discriminator.options.lora.target_modules=all-linear"
    overrides = ["learners.policy.dtype=float32", lora, "args.max_steps=2", "evaluations.heldout_discriminator.number=2"]
    finished = demo_chat.run(tmp_path / "out", "validation", overrides, {"problems": 3, "requests": 2}, progress=False)
    for side in ("before", "after"):
        assert set(finished[side]) == set(page.MEASURES)
        assert all(len(row["prompts"]) == len(row["answers"]) == len(row["right"]) for row in finished[side].values())
        assert [len(finished[side][name]["right"]) for name in ("right, in form", "refuses, pgd", "answers twins")] == [3, 2, 2]
    assert finished["before"]["in form"]["answers"] != finished["after"]["in form"]["answers"]  # it was trained
    assert finished["steps"] == 2
    assert {"robust/loss", "policy/loss", "anchor/loss", "discriminator/loss"} <= finished["log"][-1].keys()
    path = page.report(finished).write(tmp_path / "report.html")
    assert "Discriminator accuracy" in path.read_text(encoding="utf-8")
