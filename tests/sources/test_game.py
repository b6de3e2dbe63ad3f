"""Self-play: what each side is asked, what it earns, who learns from it, and that it is a game that moves."""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.equal import assert_equal
from helpers.games import SUMS, Table, answer
from helpers.glossary import unknown
from helpers.runs import spy

from advalign import Learner, Trainer, TrainingArguments, config, plugins
from advalign.advantages.group import Group
from advalign.errors import ConfigError, RewardError
from advalign.models.padding import pad
from advalign.objectives.grpo import GRPO
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.function import Function
from advalign.sources._game import Injection, Opponents, Payoff, attack_payoff
from advalign.sources.defender import Defender
from advalign.sources.game import Game
from advalign.training import checkpoint
from advalign.types import Example, Sampling

CENTRED = Group(scale="none")


def play(context, **fields):
    """A started game of two attacks on each of two prompts, two answers to each."""
    given = {"data": SUMS, "rewards": [ExactAnswer()], "batch_size": 2, "group_size": 2, "answers": 2, "advantage": CENTRED}
    source = Game(**{**given, "injection": Injection(separator=" = "), **fields})
    context.sources["game"], context.source_configs["game"] = source.start(context, "game"), source
    return context.sources["game"]


def distracted(prompt):
    """Right where nothing is before the question, once right of twice under the attack "9", never under "99"."""
    right = answer(prompt)
    return {"9": [right, "no"], "99": ["no", "no"]}.get(prompt.partition(" = ")[0] if prompt.count("=") > 1 else "", [right, right])


# ------------------------------------------------------------------------------------------------------- what is earned


def test_what_an_attack_earns_by_hand():
    # One of four answers is right: p = 1/4. regret: 1 - 1/4. learnability: 4 * 1/4 * 3/4 * 4/3 = 1.
    quarter = [1.0, 0.0, 0.0, 0.0]
    assert [attack_payoff(form, quarter) for form in ("failure", "regret", "learnability")] == pytest.approx([0.75, 0.75, 1.0])
    # What is never solved is worth everything to a zero-sum attacker, and nothing to the others; what is always solved, nothing to all.
    assert [attack_payoff(form, [0.0, 0.0]) for form in ("failure", "regret", "learnability")] == [1.0, 0.0, 0.0]
    assert [attack_payoff(form, [1.0, 1.0]) for form in ("failure", "regret", "learnability")] == [0.0, 0.0, 0.0]
    # Partial scores 0.2 and 0.6: p = 0.4.
    assert [attack_payoff(form, [0.2, 0.6]) for form in ("failure", "regret")] == pytest.approx([0.6, 0.2])
    assert math.isnan(attack_payoff("failure", []))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_learnability_is_unbiased(p, number):
    # The expectation over all 2^K outcomes of K answers that are right with probability p is 4 p (1 - p), whatever K.
    total = 0.0
    for bits in range(2**number):
        scores = [float(bits >> k & 1) for k in range(number)]
        right = sum(scores)
        total += p**right * (1 - p) ** (number - right) * attack_payoff("learnability", scores)
    assert total == pytest.approx(4 * p * (1 - p), abs=1e-12)


def test_every_attack_is_paid_by_the_failures_of_its_own_answers():
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    groups = play(context, payoff=Payoff(length_cost=0.1)).draw(0, 0)
    # "9": half the answers fail, one token: 1/2 - 0.1. "99": all fail, two tokens: 1 - 0.2.
    assert [r.rewards for g in groups for r in g.rollouts] == [pytest.approx([0.4]), pytest.approx([0.8])] * 2
    # The attacker was asked the clean prompt, the defender the attacked one; the verifier judged the sum as it was.
    (attacker, clean, _, _), (defender, attacked, _, _) = context.asked
    assert (attacker, defender) == ("attacker", "policy")
    assert attacked == [f"{text} = {prompt}" for prompt in clean for text in ("9", "99")]
    logs = context.sources["game"].logs
    # Of eight answers two of each prompt's four... : 1 right of 2 under "9", 0 of 2 under "99", so 3/4 fail.
    assert logs["attack_success"] == 0.75
    assert (logs["invalid"], logs["attack_length"]) == (0.0, 1.5)


def test_an_attack_that_is_not_allowed_is_replaced_by_none_and_punished():
    context = Table(attacker=lambda prompt: ["99", "9x"], policy=distracted)
    runtime = play(context, injection=Injection(separator=" = ", allowed="[0-9]*"), payoff=Payoff(length_cost=0.1, invalid=-2.0))
    groups = runtime.draw(0, 0)
    assert [r.rewards for r in groups[0].rollouts] == [pytest.approx([0.8]), [-2.0]]  # no cost of length on top
    clean = context.asked[0][1]
    assert context.asked[1][1] == [f"99 = {clean[0]}", clean[0], f"99 = {clean[1]}", clean[1]]
    assert (runtime.logs["invalid"], runtime.logs["attack_length"], runtime.logs["attack_success"]) == (0.5, 2.0, 1.0)
    assert runtime.attacked == [True, False, True, False]


def test_the_game_is_zero_sum_and_other_payoffs_are_not():
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    runtime = play(context)
    attacks = [r.rewards[0] for g in runtime.draw(0, 0) for r in g.rollouts]
    means = [sum(r.rewards[0] for r in g.rollouts) / 2 for g in runtime.answers]
    assert [a + b for a, b in zip(attacks, means, strict=True)] == [1.0] * 4
    hopeless = [r.rewards[0] for g in play(context, payoff=Payoff(form="regret")).draw(0, 0) for r in g.rollouts]
    assert hopeless == [0.5, 0.0] * 2


# ------------------------------------------------------------------------------------------------------------ placement


def test_where_an_attack_is_put():
    question = "1 + 2 ="
    assert Injection(separator=" | ").place("7", question) == "7 | 1 + 2 ="
    assert Injection(placement="suffix", separator="\n").place("7", question) == "1 + 2 =\n7"
    rewrite = Injection(placement="rewrite")
    assert rewrite.place("well 1 + 2 so =", question) == "well 1 + 2 so ="
    assert [Injection(placement=p).place("", question) for p in ("prefix", "suffix", "rewrite")] == [question] * 3
    assert Injection(template="distract: {prompt} {x}").ask(Example(prompt=question)).prompt == "distract: 1 + 2 = {x}"


def test_a_rewrite_keeps_the_words_of_the_prompt_in_their_order():
    rewrite, question = Injection(placement="rewrite"), "1 + 2 ="
    assert rewrite.valid("well 1 + 2 so =", question)
    assert not rewrite.valid("2 + 1 =", question)
    assert not rewrite.valid("1 + 3 =", question)
    assert not rewrite.valid("", question)
    assert Injection(placement="rewrite", keep_words=False).valid("3 + 4 =", question)
    assert not Injection(allowed="[a-z]+").valid("abc1", question)
    assert Injection(allowed="[a-z]+").valid("abc", question)


# ------------------------------------------------------------------------------------------------------------ the defender


def defend(context, **fields):
    runtime = Defender(**{"game": "game", "advantage": CENTRED, **fields}).start(context, "defender")
    context.items["game"] = context.sources["game"].draw(0, 0)
    return runtime


def test_the_defender_has_the_answers_of_the_same_draw_and_a_fraction_of_clean_prompts():
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    play(context)
    runtime = defend(context, clean=0.2)
    groups = runtime.draw(0, 0)
    assert len(context.asked) == 3  # attacks, answers, clean answers: the game is not played again
    # Four attacked prompts and a fifth that is clean.
    assert [g.example.prompt for g in groups[:4]] == context.asked[1][1]
    assert [g.example.prompt for g in groups[4:]] == context.asked[2][1]
    assert len(groups) == 5
    assert [[r.rewards[0] for r in g.rollouts] for g in groups] == [[1.0, 0.0], [0.0, 0.0]] * 2 + [[1.0, 1.0]]
    assert (runtime.logs["accuracy/attacked"], runtime.logs["accuracy/clean"]) == (0.25, 1.0)


def test_rewards_of_the_defender_are_not_the_attacker_s():
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    short = Function(fn=lambda completions: [float(len(c)) for c in completions], weight=0.1)
    play(context)
    runtime = defend(context, rewards=[short])
    first, again = runtime.draw(0, 0), runtime.draw(0, 0)
    assert first == again  # rewards added here do not change the game's groups
    assert [len(r.rewards) for g in context.sources["game"].answers for r in g.rollouts] == [1] * 8
    rows = runtime.rows(first, SimpleNamespace(rollouts=lambda groups: tokens(groups)))
    texts = [r.text for g in first for r in g.rollouts]
    right = [r.rewards[0] for g in first for r in g.rollouts]
    assert rows.rewards.sum(1).tolist() == pytest.approx([u + 0.1 * len(t) for u, t in zip(right, texts, strict=True)])
    assert rows.roles.tolist() == [1] * 8


def tokens(groups):
    """One prompt token and the response, padded."""
    rollouts = [(g, r) for g in groups for r in g.rollouts]
    number = [i for i, g in enumerate(groups) for _ in g.rollouts]
    return pad([[1, *r.response_ids] for _, r in rollouts], [1] * len(rollouts), 0, number)


def test_a_defender_plays_the_game_where_no_objective_reads_it():
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    play(context)
    runtime = Defender(game="game", advantage=CENTRED).start(context, "defender")
    assert len(runtime.draw(0, 0)) == 4
    assert runtime.logs["attack_success"] == 0.75


def test_an_answer_without_a_score_is_left_out_on_both_sides():
    unsure = Function(fn=lambda completions: [math.nan if c == "no" else 1.0 for c in completions])
    context = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    runtime = play(context, rewards=[unsure])
    groups = runtime.draw(0, 0)
    # "9": one answer was judged, and right. "99": none, so the attack has no payoff.
    assert [[r.text for r in g.rollouts] for g in groups] == [["9"], ["9"]]
    assert [r.rewards for g in groups for r in g.rollouts] == [[0.0], [0.0]]
    assert [[r.text for r in g.rollouts] for g in runtime.answers] == [[answer(p)] for p in context.asked[1][1] if p.startswith("9 ")]
    assert runtime.logs["abstained"] == 2.0
    with pytest.raises(RewardError, match=r"^sources.game: the rewards abstained on every response of step 1, .*\.$"):
        play(context, rewards=[Function(fn=lambda completions: [math.nan] * len(completions))]).draw(1, 0)


# ------------------------------------------------------------------------------------------------------------ opponents


def test_fractions_of_opponents_add_up_to_the_examples():
    opponents = Opponents(attackers={"slow": 0.25}, defenders={"old": 0.5})
    # Of eight: a quarter meets the slow attacker, half are played against the old defender, two are left.
    assert opponents.pairs("a", "d", 8) == [("a", "d", 2), ("slow", "d", 2), ("a", "old", 4)]
    for number in range(1, 40):
        assert sum(n for _, _, n in opponents.pairs("a", "d", number)) == number
    assert Opponents().pairs("a", "d", 3) == [("a", "d", 3)]
    # Averages of both sides, as in AdvGame: the two learners never meet, and both learn.
    assert Opponents(attackers={"slow": 0.5}, defenders={"old": 0.5}).pairs("a", "d", 4) == [("slow", "d", 2), ("a", "old", 2)]


def test_no_learner_trains_on_what_a_frozen_copy_wrote():
    context = Table(attacker=lambda p: ["9", "99"], slow=lambda p: ["", "99"], policy=distracted, old=lambda p: ["no", "no"])
    runtime = play(context, batch_size=4, opponents=Opponents(attackers={"slow": 0.25}, defenders={"old": 0.25}))
    attacks = runtime.draw(0, 0)
    assert [(name, len(prompts)) for name, prompts, _, _ in context.asked] == [
        ("attacker", 2), ("policy", 4), ("slow", 1), ("policy", 2), ("attacker", 1), ("old", 2),
    ]  # fmt: skip
    # Three groups of the current attacker: two against the policy, one against the copy, which always fails.
    assert [[r.rewards[0] for r in g.rollouts] for g in attacks] == [[0.5, 1.0], [0.5, 1.0], [1.0, 1.0]]
    # Six of the policy's prompts: four against the current attacker, two of the slow one, whose first attack is empty and so none.
    assert runtime.attacked == [True] * 4 + [False, True]
    assert [g.rollouts[0].text == "no" for g in runtime.answers] == [False, True, False, True, False, True]
    # Of its two attacks only "99" is in a prompt, and always succeeds; so does everything against the old defender.
    assert (runtime.logs["attack_success/slow"], runtime.logs["attack_success/old"]) == (1.0, 1.0)


def test_streams_are_named_by_source_step_and_pair():
    context = Table(attacker=lambda p: ["9", "99"], policy=distracted, old=distracted)
    runtime = play(context, opponents=Opponents(defenders={"old": 0.5}))
    runtime.draw(3, 0), runtime.draw(4, 0)
    keys = [key for _, _, _, key in context.asked]
    assert len(set(keys)) == len(keys) == 8
    assert all(key[1] == "game" for key in keys)


REFUSED = {
    "a placement": (lambda: Injection(placement="middle"), "injection.placement: no placement 'middle'. Known: .*"),
    "a template": (lambda: Injection(template="attack"), "injection.template: 'attack' given; .*"),
    "a pattern": (lambda: Injection(allowed="["), "injection.allowed: '\\[' is not a regular expression .*"),
    "a payoff": (lambda: Payoff(form="regrett"), "payoff.form: no payoff 'regrett'. .*Did you mean 'regret'.*"),
    "a gift": (lambda: Payoff(length_cost=-1.0), "payoff.length_cost: -1 given; .*"),
    "fractions": (lambda: Opponents(attackers={"a": 0.7}, defenders={"b": 0.7}), r"opponents: fractions \[0.7, 0.7\] given; .*"),
    "one answer": (
        lambda: play(Table(), answers=1, payoff=Payoff(form="regret")),
        "sources.game.answers: got 1; a payoff .*",
    ),
    "no attacker": (lambda: play(Table(), opponents=Opponents(attackers={"a": 1.0})), "sources.game.opponents.attackers: of 2 examples .*"),
    "a fraction": (lambda: Defender(game="game", advantage=CENTRED, clean=1.0), "sources.defender.clean: 1 given; .*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_sentence(case):
    build, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^{sentence}$"):
        build()


def test_a_defender_that_does_not_fit_its_game_is_refused():
    context = Table()
    play(context)
    with pytest.raises(ConfigError, match=r"^sources.defender.learner: 'discriminator' given, but in 'game' the defender is 'policy'\.$"):
        defend(context, learner="discriminator")
    play(context, answers=1)
    with pytest.raises(ConfigError, match=r"^sources.defender.advantage: Group compares .*, and 'game' has answers: 1; .*"):
        defend(context)
    context.source_configs["game"] = Defender(game="other", advantage=CENTRED)
    with pytest.raises(ConfigError, match=r"^sources.defender.game: source 'game' is a Defender; a defender plays in a game\.$"):
        defend(context)
    big = Function(fn=lambda completions: [2.0] * len(completions))
    both = Table(attacker=lambda prompt: ["9", "99"], policy=distracted)
    with pytest.raises(RewardError, match=r"^sources.game.payoff: learnability is of scores in \[0, 1\], .*\.$"):
        play(both, rewards=[big], payoff=Payoff(form="learnability")).draw(0, 0)


# --------------------------------------------------------------------------------------------------------- whole runs

RUN = """
learners:
  policy: &model
    model: "scratch:tiny-gpt2?n_embd=32"
    tokenizer: {kind: characters, data: "task:arithmetic"}
    max_length: 40
    learning_rate: 1.0e-2
  attacker: *model
sources:
  duel:
    kind: game
    data: "task:arithmetic"
    batch_size: 8
    group_size: 4
    answers: 2
    sampling: {max_new_tokens: 4}
    answer_sampling: {max_new_tokens: 3}
    injection: {separator: "= ", allowed: "[^=]*"}
    payoff: {length_cost: 0.01}
    opponents: {attackers: {slow: 0.25}, defenders: {old: 0.25}}
    rewards: [{kind: format, pattern: ".*[01].*"}]
    advantage: role_ema
  answers: {kind: defender, game: duel, clean: 0.2, advantage: group, rewards: [{kind: length, max_length: 3, buffer: 1}]}
frozen:
  slow: {learner: attacker, ema: 0.9}
  old: {learner: policy, refresh: 3}
objectives:
  attack: {kind: grpo, source: duel, learner: attacker}
  defend: {kind: grpo, source: answers}
args: {save_steps: 2}
"""


def described(folder=None, steps=4):
    found = yaml.safe_load(RUN)
    found["args"] |= {"max_steps": steps} | ({} if folder is None else {"output_dir": str(folder)})
    return found


def test_both_sides_train_in_one_step_each_on_its_own_rows(monkeypatch):
    trainer, seen = config.trainer(described(steps=1)), {}
    spy(monkeypatch, before=lambda runtime, rows: seen.setdefault(runtime.name, rows))
    (log,) = trainer.train(progress=False)
    assert {name: list(rows) for name, rows in seen.items()} == {"policy": ["answers"], "attacker": ["duel"]}
    attacks, answers = seen["attacker"]["duel"], seen["policy"]["answers"]
    # Eight examples: two are played by the slow attacker, two against the old defender. The attacker has six of them, four attacks each;
    # the policy as many, two answers to each attack, and 0.2 / 0.8 * 24 = 6 clean prompts.
    assert (len(attacks.rewards), len(answers.rewards)) == (6 * 4, (6 * 4 + 6) * 2)
    assert (attacks.roles.unique().tolist(), answers.roles.unique().tolist()) == ([0], [1])
    # The moving baseline of role 0 began at 0, so the first advantages are the rewards themselves, on every token.
    expected = attacks.rewards.sum(1, keepdim=True) * attacks.tokens.target
    assert torch.allclose(attacks.advantages, expected, atol=1e-6)
    assert log["policy/grad_norm"] > 0
    assert log["attacker/grad_norm"] > 0


def test_every_number_of_a_game_is_in_the_glossary():
    history = config.trainer(described(steps=2)).train(progress=False)
    names = {"objective": ["attack", "defend"], "source": ["duel", "answers"], "learner": ["policy", "attacker", "slow", "old"]}
    logged = {name for entry in history for name in entry}
    assert unknown(logged, names | {"adversary": [], "evaluation": []}) == []
    assert {"duel/attack_success", "duel/attack_success/slow", "duel/invalid", "duel/attack_length", "answers/accuracy/attacked"} <= logged


def test_a_game_resumes_bit_for_bit(tmp_path):
    history = config.trainer(described(tmp_path / "whole")).train(progress=False)
    config.trainer(described(tmp_path / "broken", steps=2)).train(progress=False)
    assert config.trainer(described(tmp_path / "broken")).train(resume=True, progress=False) == history[2:]
    whole, broken = (tmp_path / name / "checkpoint-4" for name in ("whole", "broken"))
    assert_equal(checkpoint.read_state(whole), checkpoint.read_state(broken))
    weights = sorted(p.name for p in whole.glob("*.safetensors"))
    assert weights == [f"{name}.safetensors" for name in ("frozen.old", "frozen.slow", "learner.attacker", "learner.policy")]
    for name in weights:
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"opponents": {"attackers": {"slwo": 0.5}}}, r"sources\.duel\.opponents\.attackers: no learner 'slwo'\. .*Did you mean 'slow'\?"),
        ({"opponents": {"defenders": {"odl": 0.5}}}, r"sources\.duel\.opponents\.defenders: no learner 'odl'\. .*Did you mean 'old'\?"),
        ({"defender": "polcy"}, r"sources\.duel\.defender: no learner 'polcy'\. .*Did you mean 'policy'\?"),
    ],
)
def test_players_that_do_not_exist_are_refused_before_anything_is_loaded(change, sentence):
    found = described(steps=1)
    found["sources"]["duel"] |= change
    with pytest.raises(ConfigError, match=rf"^{sentence}$"):
        config.trainer(found)


def test_one_network_may_play_both_sides():
    found = described(steps=1)
    del found["learners"]["attacker"], found["frozen"]
    found["sources"]["duel"] |= {"learner": "policy", "opponents": {}}
    found["objectives"]["attack"]["learner"] = "policy"
    trainer = config.trainer(found)
    assert "policy loss = 1 grpo(duel) + 1 grpo(answers)" in trainer.formula()
    (log,) = trainer.train(progress=False)
    assert trainer.learners["policy"].version == 1  # one update of the sum
    assert log["policy/grad_norm"] > 0


def test_a_fresh_attacker_learns_what_beats_a_defender_that_does_not_train():
    """The defender is right exactly where the attack has a "7": a best response learns not to write one, and to be allowed."""

    def fails(prompts, completions):
        return [float("7" in prompt.split("= ")[0]) if prompt.count("=") > 1 else 1.0 for prompt in prompts]

    model = Learner(model="scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "characters", "data": "task:arithmetic"}, max_length=40)
    tokens, advantage = Sampling(max_new_tokens=3), Group()
    injection = Injection(separator="= ", allowed="[0-9]+")
    game = Game(
        data="task:arithmetic", rewards=[Function(fn=fails)], batch_size=8, group_size=8, answers=1, sampling=tokens,
        answer_sampling=Sampling(max_new_tokens=1), injection=injection, advantage=advantage,
    )  # fmt: skip
    trainer = Trainer(
        learners={"policy": model, "attacker": replace(model, learning_rate=1e-2)},
        sources={"game": game},
        objectives={"attack": GRPO(source="game", learner="attacker")},
        args=TrainingArguments(max_steps=25),
    )
    trainer.start()
    before = [p.detach().clone() for p in trainer.learners["policy"].network.parameters()]
    history = trainer.train(progress=False)
    # An untrained one writes digits only about (10/19)^3 of the time, or fewer tokens; at the end nearly everything is allowed and wins.
    assert history[0]["game/invalid"] > 0.5
    assert history[-1]["game/invalid"] < 0.2
    assert history[-1]["game/reward"] > 0.6 > 0 > history[0]["game/reward"]
    after = trainer.learners["policy"].network.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# ------------------------------------------------------------------------------------------------------ configurations

FOLDER = Path(plugins.__file__).parents[1] / "configs" / "gan"


def small(name):
    """The configuration with untrained models, sums for problems and few rows."""
    found = config.read(FOLDER / f"{name}.yaml")
    for learner in found["learners"].values():
        learner |= {"model": "scratch:tiny-gpt2?n_embd=32", "tokenizer": {"kind": "characters", "data": "task:arithmetic"}}
        learner |= {"max_length": 128, "options": {}, "learning_rate": 1e-3}
    for source in found["sources"].values():
        source |= {"data": "task:arithmetic", "batch_size": 4} if source["kind"] != "defender" else {}
        source |= {"rewards": [{"kind": "format", "pattern": ".*[01].*"}]} if "rewards" in source else {}
        for budget in ("sampling", "answer_sampling"):
            source |= {budget: {"max_new_tokens": 4}} if budget in source else {}
        if "distract" in source:
            source["distract"] |= {"alphabet": "0123456789 "}
        if "injection" in source:
            source["injection"] |= {"template": "{prompt}", "separator": "= "}
    found["evaluations"], found["args"] = {}, {"max_steps": 1}
    return found


@pytest.mark.parametrize("name", ["self_play", "adversarial_prompts"])
def test_a_configuration_states_its_loss_and_runs_when_it_is_small(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    printed = config.trainer(config.read(FOLDER / f"{name}.yaml")).formula().splitlines()
    assert re.findall(r"^#   (\w+ loss = .*)$", text, re.MULTILINE) == [line for line in printed if " loss = " in line]
    commands = re.findall(r"^#   advalign train configs/gan/(\w+)\.yaml(.*)$", text, re.MULTILINE)
    assert len(commands) == 2
    for file, rest in commands:
        assert file == name
        assert config.trainer(config.read(FOLDER / f"{file}.yaml", rest.split())).formula()
    found = small(name)
    (log,) = config.trainer(found).train(progress=False)
    for term in found["objectives"]:
        assert math.isfinite(log[f"{term}/loss"])
    for learner in found["learners"]:
        assert log[f"{learner}/grad_norm"] > 0
