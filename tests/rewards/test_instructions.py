"""The reward and the judge `instructions`, and an evaluation whose accuracy is theirs."""

import math

import pytest
from helpers.context import FakeContext

from advalign.errors import ConfigError
from advalign.judges import InstructionsJudge
from advalign.rewards import Instructions
from advalign.training.evaluate import Evaluation, verified
from advalign.types import Example, Rollout, RolloutGroup

META = {
    "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
    "kwargs": [{"relation": "less than", "num_words": 3}, {}],
}
TEXTS = ["red hen", "red, hen", "so:\nred hen", "a, b, c"]  # both; words alone; comma alone, loosely both; none


def group(meta, *texts):
    rollouts = [Rollout(response_ids=[1], sampler_logprobs=[0.0], text=text, finished=True) for text in texts]
    return RolloutGroup(example=Example(prompt="p", id="7", meta=meta), prompt_ids=[1], rollouts=rollouts)


def test_scores_and_the_four_accuracies():
    scorer = Instructions().start(FakeContext())
    assert scorer([group(META, *TEXTS)]) == [1.0, 0.0, 0.0, 0.0]
    means = {name: sum(values) / len(values) for name, values in scorer.logs.items()}
    # Strict: 1 of 4 prompts, 2 + 1 + 1 + 0 of 8 instructions. Loose: the third one's last line follows both.
    assert means == {
        "instructions/strict/prompt": 0.25, "instructions/strict/instruction": 0.5,
        "instructions/loose/prompt": 0.5, "instructions/loose/instruction": 0.625,
    }  # fmt: skip
    assert set(means) == Instructions.metric_names
    assert Instructions(level="instruction").start(FakeContext())([group(META, *TEXTS)]) == [1.0, 0.5, 0.5, 0.0]
    assert Instructions(loose=True).start(FakeContext())([group(META, *TEXTS)]) == [1.0, 0.0, 1.0, 0.0]


def test_an_example_without_instructions_abstains_and_data_without_any_is_refused():
    assert math.isnan(Instructions().start(FakeContext())([group({}, "x")])[0])
    with pytest.raises(ConfigError, match=r"^here: none of the 1 examples has instructions to verify \(first: row '7'\)"):
        Instructions().check([group({}).example], "here")
    Instructions().check([group({}).example, group(META).example], "here")


def test_a_language_needs_a_detector():
    meta = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "de"}]}
    with pytest.raises(ConfigError, match=r"^here: row '7': 'language:response_language' asks for the language of a text; set detect_lang"):
        Instructions().check([group(meta).example], "here")
    pytest.importorskip("langdetect", reason="the optional package langdetect is not installed")
    scorer = Instructions(detect_language=True).start(FakeContext())
    assert scorer([group(meta, "Der Hund schläft unter dem Tisch.", "The dog sleeps under the table.")]) == [1.0, 0.0]


def test_the_judge_says_the_same():
    example = group(META).example
    assert InstructionsJudge().start()([example] * 4, TEXTS) == [1.0, 0.0, 0.0, 0.0]
    assert InstructionsJudge(loose=True).start()([example] * 4, TEXTS) == [1.0, 0.0, 1.0, 0.0]
    assert math.isnan(InstructionsJudge().start()([Example(prompt="p")], ["x"])[0])


def test_an_evaluation_calls_right_what_the_reward_does():
    logs = verified([group(META, *TEXTS), group({}, *TEXTS)], correct=Instructions())
    assert logs["accuracy"] == logs["pass@1"] == 0.25  # the second prompt has nothing to verify
    assert logs["pass@4"] == 1.0
    assert logs["instructions/loose/instruction"] == 0.625
    evaluation = Evaluation(data="task:constraints", correct=Instructions(), samples=4)
    assert Instructions.metric_names <= evaluation.metric_names
