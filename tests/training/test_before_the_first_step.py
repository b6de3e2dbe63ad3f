"""One bad row among many, in training or evaluation data, is found before the first step, by its number."""

import json

import pytest
from helpers.chat_templates import CHATML
from helpers.runs import SHORT, imitation, policy, write

from advalign import TrainingArguments
from advalign.errors import BudgetError, ConfigError
from advalign.objectives.classify import Classify
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.kto import KTO
from advalign.objectives.sft import SFT
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.format import Format
from advalign.rewards.function import Function
from advalign.sources import Demos, Feedback, Labels, Pairs, Rejection
from advalign.training.evaluate import Evaluation
from advalign.training.run_spec import Frozen
from advalign.training.trainer import Trainer

LONG = " ".join(["red"] * 40)
BAD = 57
"""Number of the bad row; the first draw of four does not hold it."""


def among(good, bad, number=64):
    """`number` copies of a row, one of which is changed."""
    return [good | (bad if i == BAD else {}) for i in range(1, number + 1)]


def answered(rows, **fields):
    return write(data=rows, rewards=[fields.pop("reward", ExactAnswer())], **fields)


REFERENCE = {"frozen": {"reference": Frozen(learner="policy")}}
TEXT = {"prompt": "red blue", "response": "red"}
PAIR = {"prompt": "red blue", "chosen": "red", "rejected": "blue"}
LABELLED = {"prompt": "red blue", "response": "red", "label": 1}
ASKED = {"prompt": "red blue", "answer": "red"}
CASES = {
    "response of demos": (Demos(data=among(TEXT, {"response": LONG})), SFT, {}),
    "prompt of demos": (Demos(data=among(TEXT, {"prompt": LONG})), SFT, {}),
    "chosen of pairs": (Pairs(data=among(PAIR, {"chosen": LONG})), DPO, REFERENCE),
    "rejected of pairs": (Pairs(data=among(PAIR, {"rejected": LONG})), DPO, REFERENCE),
    "response of feedback": (Feedback(data=among(LABELLED, {"response": LONG})), KTO, REFERENCE),
    "prompt that is answered": (answered(among(ASKED, {"prompt": LONG})), GRPO, {}),
    "prompt of rejection": (Rejection(data=among(ASKED, {"prompt": LONG}), rewards=[ExactAnswer()], sampling=SHORT), SFT, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_that_is_too_long(case):
    source, objective, sections = CASES[case]
    trainer = imitation(sources={"chat": source}, objectives={"fit": objective(source="chat")}, **sections)
    with pytest.raises(BudgetError, match=rf"^sources\.chat: row '{BAD}': encoder: a prompt of \d+ tokens .* max_length 32"):
        trainer.start()


def test_a_prompt_without_tokens():
    trainer = imitation(sources={"chat": answered(among(ASKED, {"prompt": "  "}))}, objectives={"fit": GRPO(source="chat")})
    with pytest.raises(ConfigError, match=rf"^sources\.chat: data: .*row {BAD}: the prompt is only white space \(column 'prompt'\)"):
        trainer.start()


def test_a_row_of_a_stream_is_named_when_it_is_drawn(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in among(TEXT, {"response": LONG})))
    source = Demos(data={"path": str(tmp_path / "a.jsonl"), "streaming": True}, batch_size=64)
    with pytest.raises(BudgetError, match=rf"^sources\.chat: row '{BAD}' \(.*a\.jsonl, row {BAD}\): encoder: "):
        imitation(sources={"chat": source}).train(progress=False)


def test_a_text_that_is_too_long_where_none_may_be_cut():
    rows = among({"text": "red blue", "label": 0}, {"text": LONG, "label": 1})
    model = policy(model="scratch:encoder-tiny?hidden_size=32", head="classifier", options={"truncation": "error"})
    trainer = imitation(model=model, sources={"chat": Labels(data=rows)}, objectives={"fit": Classify(source="chat")})
    with pytest.raises(BudgetError, match=rf"^sources\.chat: row '{BAD}': encoder: a text of \d+ tokens"):
        trainer.start()


def test_rows_that_may_be_cut_are_not_refused():
    rows = among(TEXT, {"response": LONG})
    imitation(model=policy(options={"truncation": "right"}), sources={"chat": Demos(data=rows)}).start()
    imitation(model=policy(options={"truncation": "left"}), sources={"chat": Demos(data=among(TEXT, {"prompt": LONG}))}).start()


def test_a_conversation_that_the_template_refuses():
    strict = "{% for m in messages %}{% if m.role == 'wizard' %}{{ raise_exception('no wizards') }}{% endif %}{% endfor %}" + CHATML
    turn = {"role": "user", "content": "red"}
    rows = among({"prompt": [turn], "response": "red"}, {"prompt": [turn, {"role": "wizard", "content": "blue"}]})
    trainer = imitation(model=policy(options={"chat_template": strict}), sources={"chat": Demos(data=rows)})
    with pytest.raises(ConfigError, match=rf"^sources\.chat: row '{BAD}': chat_template: it refuses .*no wizards"):
        trainer.start()


EVALUATED = {
    "a prompt that is too long": ({"prompt": LONG}, r"row '57': encoder: a prompt of \d+ tokens leaves no room"),
    "a reference that is too long": ({"response": LONG}, r"row '57': encoder: a prompt of \d+ tokens and a response of \d+ are longer"),
    "a prompt that is null": ({"prompt": None}, r"row 57: the prompt is not a text"),
}


@pytest.mark.parametrize("case", EVALUATED)
def test_a_row_of_evaluation_data(case):
    bad, sentence = EVALUATED[case]
    trainer = imitation(evaluations={"held_out": Evaluation(data=among(TEXT, bad), number=64, sampling=SHORT)})
    with pytest.raises((BudgetError, ConfigError), match=rf"^evaluations\.held_out: .*{sentence}"):
        trainer.start()


# ---------------------------------------------------------------------------------------------------------- rewards


def by_solution(completions, solution, **columns):
    """A reward that reads a column of the data."""
    return [float(s is not None) for s in solution]


@pytest.mark.parametrize("kind", [answered, Rejection])
def test_a_reward_that_reads_a_column_which_is_not_there(kind):
    rows, reward = [{"prompt": "red blue", "soluton": "red"}] * 8, Function(fn=by_solution)
    source = answered(rows, reward=reward) if kind is answered else Rejection(data=rows, rewards=[reward])
    trainer = imitation(sources={"chat": source}, objectives={"fit": (GRPO if kind is answered else SFT)(source="chat")})
    with pytest.raises(ConfigError, match=r"^sources\.chat\.rewards\.0: '.*by_solution' requires 'solution'.*Did you mean 'soluton'"):
        trainer.start()


def test_answers_that_no_row_has_and_answers_that_some_rows_lack():
    trainer = imitation(sources={"chat": answered([{"prompt": "red"}] * 8)}, objectives={"fit": GRPO(source="chat")})
    with pytest.raises(ConfigError, match=r"^sources\.chat\.rewards\.0: none of the 8 examples has an answer to compare with"):
        trainer.start()
    trainer = imitation(sources={"chat": answered(among(ASKED, {"answer": None}))}, objectives={"fit": GRPO(source="chat")})
    with pytest.warns(UserWarning, match=rf"1 of 64 examples have no answer to compare with \(first: row '{BAD}'\)"):
        trainer.start()
    imitation(
        sources={"chat": answered([{"prompt": "red"}] * 8, reward=Format(pattern="red"))}, objectives={"fit": GRPO(source="chat")}
    ).start()


def test_a_verifier_of_an_evaluation_is_checked_too():
    evaluation = Evaluation(data=[{"prompt": "red"}] * 4, number=4, samples=2, sampling=SHORT, verifier=ExactAnswer())
    with pytest.raises(ConfigError, match=r"^evaluations\.held_out: verifier: none of the 4 examples has an answer"):
        imitation(evaluations={"held_out": evaluation}).start()


def test_mismatched_rows_of_feedback_lose_their_end():
    # A prompt of 20 words and a response of 20 fit with short counterparts, not with each other.
    rows = [
        {"prompt": " ".join(["red"] * 20), "response": "red", "label": 1},
        {"prompt": "red", "response": " ".join(["blue"] * 20), "label": 0},
    ]
    trainer = Trainer(
        model=policy(),
        sources={"chat": Feedback(data=rows, batch_size=2)},
        objectives={"fit": KTO(source="chat")},
        args=TrainingArguments(max_steps=1),
        **REFERENCE,
    )
    assert trainer.train(progress=False)[0]["num_truncated"] > 0
