"""Preferences end to end: KTO's reference point, reward models and what scores with them, their sources, and every configuration."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.networks import network
from helpers.runs import DATA, discriminator, game, imitation, policy, same, spy, weights, write
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from advalign import Frozen, Trainer, TrainingArguments, config
from advalign.adversaries.pgd import PGD
from advalign.errors import AdvalignError, BudgetError, ConfigError, RewardError
from advalign.functional.logprobs import from_logits
from advalign.models.inference import score_texts
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.kto import KTO
from advalign.objectives.reward_model import RewardModel
from advalign.objectives.sft import SFT
from advalign.rewards.model import Model
from advalign.sources._options import Demonstrations
from advalign.sources.demos import Demos
from advalign.sources.feedback import Feedback
from advalign.sources.pairs import Pairs
from advalign.training.annotate import annotate_feedback
from advalign.training.context import RunContext
from advalign.types import Example, FeedbackRows, Rollout, RolloutGroup

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "configs" / "rl" / f"{name}.yaml" for name in ("dpo", "ipo", "kto", "simpo", "orpo", "reward_model")]


def started(source, name="s"):
    return source.start(RunContext(0, None, 8192), name)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ------------------------------------------------------------------------------------------- KTO and its reference point


def judged(net) -> FeedbackRows:
    items = [
        Example(prompt=p, label=y, meta={"response": r}) for p, r, y in (("a b :", "c d e", 1), ("c :", "f", 0), ("d e f :", "a b", 1))
    ]
    return Feedback(data="unused", batch_size=3).build(items, net.encoder)


def log_ratio(policy_, reference, prompt, response):
    """sum_t log p - log p_ref of one row on its own, from the full logits."""
    ids = [*policy_.encoder.prompt(prompt), *policy_.encoder.response(response)]
    start, row = len(policy_.encoder.prompt(prompt)), torch.tensor([ids])
    logps = [from_logits(n.model(input_ids=row).logits, row)[0, start:].sum() for n in (policy_, reference)]
    return float((logps[0] - logps[1]).detach())


def test_the_reference_point_is_the_mean_over_mismatched_rows_and_never_below_zero():
    first, second = network(), network(options={"seed": 7})
    # prompt i with the response of row i + 1, the last with the first
    crossed = [("a b :", "f"), ("c :", "a b"), ("d e f :", "c d e")]
    mean = sum(log_ratio(first, second, p, r) for p, r in crossed) / 3
    assert abs(mean) > 1e-3
    runs = {}
    for budget in (12, 1000):  # one row at a time, and all at once
        for name, (mine, other) in {"there": (first, second), "back": (second, first)}.items():
            rows = annotate_feedback(judged(mine), {"ref_logprobs", "anchor"}, policy=mine, reference=other, budget=budget)
            assert rows.mismatched is None
            assert rows.anchor.shape == (3,)
            assert len(set(rows.anchor.tolist())) == 1
            runs[name, budget] = float(rows.anchor[0])
    for budget in (12, 1000):
        assert runs["there", budget] == pytest.approx(max(0.0, mean), abs=1e-12)
        assert runs["back", budget] == pytest.approx(max(0.0, -mean), abs=1e-12)
    rows = annotate_feedback(judged(first), {"ref_logprobs"}, policy=first, reference=second, budget=1000)
    assert rows.anchor is None  # nobody asked


def taught(steps=3, **options):
    arguments = {
        "model": policy(learning_rate=3e-3),
        "sources": {"taste": Feedback(data=DATA, limit=12, batch_size=6)},
        "objectives": {"prefer": KTO(source="taste", undesirable_weight=1.25)},
        "frozen": {"reference": Frozen()},
        "args": TrainingArguments(max_steps=steps),
    }
    return Trainer(**(arguments | options))


def test_kto_learns_to_tell_the_two_kinds_apart(monkeypatch):
    records = []
    spy(monkeypatch, before=lambda runtime, rows: records.append(rows["taste"]))
    history = taught(steps=30).train(progress=False)
    assert all(rows.mismatched is None for rows in records)  # the engine never sees those
    # The policy is its reference at first: z0 = 0, every sigmoid 1/2, the loss (1 n_D + 1.25 n_U) / 2 n.
    good = float(records[0].desirable.double().mean())
    assert history[0]["prefer/loss"] == pytest.approx((good + 1.25 * (1 - good)) / 2, abs=1e-9)
    assert history[0]["prefer/kl"] == 0.0
    last = history[-1]
    assert last["prefer/loss"] < history[0]["prefer/loss"] - 0.05
    assert last["prefer/rewards/chosen"] > last["prefer/rewards/rejected"] + 0.5


def test_kto_does_not_depend_on_the_micro_batches_and_can_be_attacked():
    def final(budget, **options):
        trainer = taught(args=TrainingArguments(max_steps=3, token_budget=budget), **options)
        history = trainer.train(progress=False)
        return weights(trainer.model), history

    pgd = {"adversaries": {"pgd": PGD(radius=0.1, steps=1)}, "objectives": {"prefer": KTO(source="taste", view="pgd")}}
    for options in ({}, pgd):
        small, first = final(24, **options)
        large, second = final(8192, **options)
        assert first[-1]["prefer/loss"] == pytest.approx(second[-1]["prefer/loss"], abs=1e-9)
        for name, value in small.items():
            torch.testing.assert_close(value, large[name], rtol=0, atol=1e-7)
    assert first[0]["pgd/gain"] > 0


def test_feedback_of_a_task_is_half_right_and_half_wrong_and_reproducible():
    source = Feedback(data=DATA, limit=8, batch_size=4)
    examples = started(source).examples
    assert [e.label for e in examples] == [1, 0] * 4
    assert [e.verify(e.meta["response"]) for e in examples] == [1.0, 0.0] * 4
    assert [e.meta["response"] for e in examples] == [e.meta["response"] for e in started(source).examples]


def test_feedback_of_a_file(tmp_path):
    rows = [{"prompt": "a :", "completion": "b c", "label": True}, {"prompt": "d :", "completion": "e", "label": False}]
    source = Feedback(data=lines(tmp_path / "f.jsonl", rows), batch_size=2)
    runtime, encoder = started(source), network().encoder
    found = runtime.rows([runtime.examples[0], runtime.examples[1]], encoder)
    assert found.desirable.tolist() == [True, False]

    def text(tokens, row):
        return encoder.decode(tokens.ids[row][tokens.target[row]].tolist())

    assert [text(found.tokens, i) for i in (0, 1)] == ["b c", "e"]
    assert [text(found.mismatched, i) for i in (0, 1)] == ["e", "b c"]  # with the prompts in place
    assert found.mismatched.ids[:, 0].tolist() == found.tokens.ids[:, 0].tolist()


# --------------------------------------------------------------------------------------------------------------- sources

WRONG_ROWS = {
    "no label": (
        Feedback,
        {"prompt": "p", "response": "r"},
        r"row '1' \(.*d\.jsonl, row 1\) has no label; it must be 1 or 0, in a column named with columns",
    ),
    "a third label": (
        Feedback,
        {"prompt": "p", "response": "r", "label": 2},
        r"row '1' \(.*d\.jsonl, row 1\) has label 2; it must be 1 or 0",
    ),
    "no response": (
        Feedback,
        {"prompt": "p", "label": 1},
        r"row '1' \(.*d\.jsonl, row 1\) has no response; name its column with columns: \{response: ...\}.",
    ),
    "no demonstration": (
        Demos,
        {"prompt": "p"},
        r"row '1' \(.*d\.jsonl, row 1\) has no response; name its column with columns: \{response: ...\}.",
    ),
    "one side": (
        Pairs,
        {"prompt": "p", "chosen": "c"},
        r"row '1' \(.*d\.jsonl, row 1\) needs the columns 'chosen' and 'rejected', and 'rejected' is not there or null;",
    ),
    "margin": (
        Pairs,
        {"prompt": "p", "chosen": "c", "rejected": "r", "margin": "much"},
        r"row '1' \(.*d\.jsonl, row 1\) has margin 'much', which is not a number.",
    ),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_row_that_lacks_something_is_named(case, tmp_path):
    cls, row, sentence = WRONG_ROWS[case]
    with pytest.raises(ConfigError, match=rf"^sources.taste: {sentence}"):
        started(cls(data=lines(tmp_path / "d.jsonl", [row])), "taste")


def test_mismatched_rows_need_two():
    with pytest.raises(ConfigError, match=r"sources.feedback.batch_size: got 1, mismatched rows need at least 2."):
        Feedback(data=DATA, batch_size=1)
    with pytest.raises(ConfigError, match=r"batch_size: 0 given; a whole number of at least 1 is expected\."):
        Demos(data=DATA, batch_size=0)


@pytest.mark.parametrize("cls", [Demos, Pairs, Feedback])
def test_a_text_that_is_too_long_is_one_sentence(cls):
    # Prompts of a task have eight words; their responses up to seven and an end.
    def run(max_length=32, token_budget=8192, **options):
        objective = {Demos: SFT, Pairs: DPO, Feedback: KTO}[cls](source="taste")
        args = TrainingArguments(max_steps=1, token_budget=token_budget)
        learner, frozen = policy(max_length=max_length, options=options), {"reference": Frozen()}
        sources = {"taste": cls(data=DATA, limit=8, batch_size=8)}
        return Trainer(model=learner, sources=sources, objectives={"a": objective}, frozen=frozen, args=args).train(progress=False)

    with pytest.raises(BudgetError, match=r"^sources.taste: row .*: a prompt of \d+ tokens leaves no room in max_length 6; raise "):
        run(max_length=6)
    with pytest.raises(BudgetError, match=r"^args.token_budget: \d row\(s\) of \d+ tokens of source '\w+' must stay together and need "):
        run(token_budget=9)
    with pytest.raises(
        BudgetError, match=r"^sources.taste: row .*: encoder: a prompt of \d+ tokens and a response of \d+ are longer than max_length 9; "
    ):
        run(max_length=9)
    for side in ("left", "right"):
        (entry,) = run(max_length=9, truncation=side)  # something is left to learn
        assert math.isfinite(entry["a/loss"])
        assert entry["num_truncated"] > 0
    assert run()[0]["num_truncated"] == 0


def test_pairs_carry_the_margins_of_their_data(tmp_path):
    rows = [{"prompt": "a :", "chosen": "b", "rejected": "c", "margin": 1.5}, {"prompt": "d :", "chosen": "e", "rejected": "f"}]
    for data, margin in ((rows, [1.5, 1.5, 0.0, 0.0]), (rows[1:], None)):
        runtime = started(Pairs(data=lines(tmp_path / "p.jsonl", data)))
        built = runtime.rows(runtime.examples, network().encoder)
        assert (built.margin if margin is None else built.margin.tolist()) == margin


def test_a_reference_in_half_precision_is_kept_as_it_was_computed():
    # The policy is its reference, so every margin is zero. Rounded to bfloat16, log p of -3 would be off by up to 0.008 a token.
    learner, frozen = policy(dtype="bfloat16"), {"reference": Frozen()}
    sources, objectives = {"taste": Pairs(data=DATA, limit=4, batch_size=4)}, {"prefer": DPO(source="taste")}
    entry = Trainer(model=learner, sources=sources, objectives=objectives, frozen=frozen, args=TrainingArguments(max_steps=1)).train(
        progress=False
    )[0]
    assert abs(entry["prefer/rewards/margins"]) < 1e-6
    assert entry["prefer/loss"] == pytest.approx(math.log(2), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- reward models


def reward_trainer(steps=1, model=None, **options):
    learner = (discriminator if model == "encoder" else policy)(head="score", learning_rate=3e-3)
    arguments = {
        "learners": {"reward": learner},
        "sources": {"taste": Pairs(data=DATA, limit=16, batch_size=8)},
        "objectives": {"fit": RewardModel(source="taste")},
        "args": TrainingArguments(max_steps=steps),
    }
    return Trainer(**(arguments | options))


def groups(number=4):
    """Right answers, wrong ones, one that was cut off."""
    examples = started(Pairs(data=DATA, limit=number)).examples
    texts = [(e.meta["chosen"], e.meta["rejected"], e.meta["chosen"]) for e in examples]
    respond = lambda text, done: Rollout(response_ids=[1], sampler_logprobs=[0.0], text=text, finished=done)  # noqa: E731
    rollouts = [[respond(t, i < 2) for i, t in enumerate(row)] for row in texts]
    return [RolloutGroup(example=e, prompt_ids=[1], rollouts=r) for e, r in zip(examples, rollouts, strict=True)]


def asked(groups):
    flat = [(g.example.prompt, r.text, r.finished) for g in groups for r in g.rollouts]
    return [list(column) for column in zip(*flat, strict=True)]


@pytest.mark.parametrize("model", ["decoder", "encoder"])
def test_a_reward_model_learns_and_scores_alike_as_learner_and_from_its_folder(model, tmp_path):
    trainer = reward_trainer(steps=60, model=model)
    history = trainer.train(progress=False)
    assert history[0]["fit/loss"] == pytest.approx(math.log(2), abs=0.05)  # scores start near zero
    assert history[-1]["fit/rewards/accuracies"] == 1.0
    assert history[-1]["fit/loss"] < 0.4
    assert abs(history[-1]["fit/rewards/chosen"] + history[-1]["fit/rewards/rejected"]) < 0.5 * history[-1]["fit/rewards/margins"]
    trainer.save_pretrained(tmp_path)
    drawn = groups()
    # Rows of a pair are built as scored texts are: what was trained is what is asked.
    want, _ = trainer.context.score("reward", *asked(drawn))
    for budget in (20, 8192):
        reward = Model(model=str(tmp_path / "reward"), dtype="float64", token_budget=budget).start(None)
        assert reward(drawn) == pytest.approx(want, abs=1e-9)
    assert Model(model=trainer.model).start(None)(drawn) == pytest.approx(want, abs=1e-12)
    assert trainer.model.training  # and is left in the mode it was in
    assert Model(model=trainer.model).start(None)([]) == []


def test_a_margin_pulls_scores_further_apart(tmp_path):
    def apart(margin):
        rows = [{"prompt": f"length {n} :", "chosen": "red", "rejected": "blue", "margin": margin} for n in range(3, 7)]
        sources = {"taste": Pairs(data=lines(tmp_path / "p.jsonl", rows), batch_size=4)}
        return reward_trainer(40, sources=sources).train(progress=False)[-1]["fit/rewards/margins"]

    assert apart(3.0) > apart(0.0) + 0.5


def test_a_reward_model_rewards_a_policy(tmp_path):
    trainer = reward_trainer()
    trainer.train(progress=False)
    trainer.save_pretrained(tmp_path)
    sources = {"write": write(rewards=[Model(model=str(tmp_path / "reward"), dtype="float64")])}
    history = imitation(2, sources=sources, objectives={"policy": GRPO(source="write")}).train(progress=False)
    assert all(math.isfinite(entry["write/rewards/model/mean"]) and entry["policy/grad_norm"] > 0 for entry in history)


def test_scores_of_a_sequence_classifier_are_its_own_logits(tmp_path):
    encoder = network("score", model="scratch:encoder-tiny?hidden_size=32").encoder
    encoder.tokenizer.mask_token = encoder.tokenizer.unk_token  # a published encoder has one, and is known by it
    shape = {"vocab_size": len(encoder.tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    theirs = AutoModelForSequenceClassification.from_config(BertConfig(**shape, intermediate_size=32, num_labels=1)).eval()
    theirs.save_pretrained(tmp_path / "rm")
    encoder.tokenizer.save_pretrained(tmp_path / "rm")
    sampled = [RolloutGroup(example=Example(prompt="a b :"), prompt_ids=[1], rollouts=[plain("c"), plain("d e f")])]
    got = Model(model=str(tmp_path / "rm"), max_length=32).start(None)(sampled)
    batch = encoder.tokenizer(["a b :"] * 2, text_pair=["c", "d e f"], padding=True, return_tensors="pt", return_token_type_ids=True)
    assert got == pytest.approx(theirs(**batch).logits.squeeze(1).tolist(), abs=1e-5)
    assert got[0] != got[1]
    for name, body in {
        "three": AutoModelForSequenceClassification.from_config(BertConfig(**shape, intermediate_size=32, num_labels=3)),
        "body": BertModel(BertConfig(**shape, intermediate_size=32)),
    }.items():
        body.save_pretrained(tmp_path / name)
        encoder.tokenizer.save_pretrained(tmp_path / name)
    network().save_pretrained(tmp_path / "policy")
    refused = {
        "three": r"is a classifier of 3 classes; a run with head: score or a sequence classifier with one label is needed.",
        "body": r"\(model: '.*' holds BertModel \(bert\), which is neither a language model nor a classifier;",
        "policy": r"is not a model of scores; a run with head: score or",
    }
    for name, sentence in refused.items():
        with pytest.raises(ConfigError, match=rf"^rewards.model.model: (cannot load ')?{tmp_path / name}'? {sentence}"):
            Model(model=str(tmp_path / name)).start(None)


def plain(text):
    return Rollout(response_ids=[1], sampler_logprobs=[0.0], text=text, finished=True)


def test_scores_that_are_no_numbers_and_models_that_are_not_there_are_sentences(tmp_path):
    broken = network("score")
    with torch.no_grad():
        broken.scalar.bias.fill_(math.nan)
    sampled = [RolloutGroup(example=Example(prompt="a :"), prompt_ids=[1], rollouts=[plain("b"), plain("c")])]
    with pytest.raises(RewardError, match=r"^rewards.model: 'Network' scored 2 of 2 responses as nan or infinite.$"):
        Model(model=broken).start(None)(sampled)
    with pytest.raises(ConfigError, match=r"^rewards.model.model: the network given is not a model of scores; a run with head: score or"):
        Model(model=network()).start(None)
    with pytest.raises(AdvalignError, match=r"^rewards.model.model: cannot load '.*nowhere' \(.*\).$") as caught:
        Model(model=str(tmp_path / "nowhere")).start(None)
    assert "\n" not in str(caught.value)


def test_scores_of_the_reward_and_of_a_learner_are_one_function():
    net, drawn = network("score"), groups(2)
    want = score_texts(net, list(zip(*asked(drawn), strict=True)), 30)
    assert Model(model=net, token_budget=30).start(None)(drawn) == pytest.approx(want, abs=1e-12)


# --------------------------------------------------------------------------------------- demonstrations inside groups


def test_sft_reads_the_demonstrations_inside_rollout_groups(monkeypatch):
    records = []
    spy(monkeypatch, before=lambda runtime, rows: records.append(rows["write"]))
    objectives = {"policy": GRPO(source="write"), "imitate": SFT(source="write")}

    def run(**fields):
        return game(sources={"write": write(**fields)}, objectives=objectives).train(progress=False)

    history = run(demonstrations=Demonstrations(number=1))
    for rows, entry in zip(records, history, strict=True):
        assert rows.offpolicy.sum() == 4  # one per prompt, four prompts
        weights_ = objectives["imitate"].weights(rows)
        assert float(weights_.count) == float(rows.tokens.target[rows.offpolicy].sum())
        assert float(weights_.values[~rows.offpolicy].sum()) == 0.0
        assert entry["imitate/nll"] == pytest.approx(entry["imitate/loss"])
    with pytest.raises(ConfigError, match=r"^objectives.sft: the groups of rollouts it reads hold no demonstrations; give their source"):
        run()


# -------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_says_what_it_runs_and_runs(path):
    described = config.read(path, ["args.output_dir=null"])
    for stage in described["stages"]:
        stage["steps"] = 1
    trainer = config.trainer(described)
    assert f" {path.stem}(" in trainer.formula()
    history = trainer.train(progress=False)
    name = next(n for n, term in trainer.config["objectives"].items() if type(term).__module__.endswith(f".{path.stem}"))
    losses = [entry[f"{name}/loss"] for entry in history if f"{name}/loss" in entry]
    assert losses
    assert all(map(math.isfinite, losses))


def test_a_resumed_run_of_feedback_is_the_same_run(tmp_path):
    def run(steps, resume=False):
        args = TrainingArguments(max_steps=steps, save_steps=2, output_dir=str(tmp_path / "run"))
        trainer = taught(args=args)
        trainer.train(resume=resume, progress=False, overwrite=not resume)
        return weights(trainer.model)

    whole = run(4)
    run(2)
    assert same(run(4, resume=True), whole)
