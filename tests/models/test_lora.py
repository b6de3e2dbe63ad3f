"""Adapters: the gradient of the low-rank parametrisation, one base under several learners, folders and checkpoints."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.networks import demos, learner, network, rollouts, update

from advalign import Frozen, Learner, Stage, Trainer, TrainingArguments
from advalign import config as configuration
from advalign.advantages.gae import GAE
from advalign.adversaries.pgd import PGD
from advalign.cli.networks import load_network
from advalign.errors import ConfigError
from advalign.models import ModelSpec, adapter_files, adapters, folders, load
from advalign.models.sharing import frozen_copy, load_order, share_base
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.exact_answer import ExactAnswer
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.training import checkpoint
from advalign.types import Sampling

peft = pytest.importorskip("peft")

GPT2, BERT = "scratch:tiny-gpt2?n_embd=32", "scratch:encoder-tiny?hidden_size=32"
LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"]}  # two of the four matrices of a block
BERT_LORA = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "output.dense"]}
NEEDS = {"policy": "logprobs", "classifier": "class_logits", "score": "scores", "value": "values"}


def lora(head="policy", model=GPT2, *, moved=True, **options):
    """A network with an adapter that has moved away from zero, as after some training."""
    net = network(head, model=model, options={"lora": BERT_LORA if model == BERT else LORA, **options}).eval()
    return shaken(net) if moved else net


def shaken(net):
    for p in net.parameters():
        if p.requires_grad:
            p.data.add_(torch.randn_like(p) * 0.1)
    return net


def rows(net):
    if net.encoder.bidirectional:
        return net.encoder.classify(["a b c", "d", "e f g h i"])
    return demos(net).tokens


def output(net):
    return getattr(net(rows(net), {NEEDS[net.head]}), NEEDS[net.head])


def trained(net):
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def base(net):
    return {n.replace(".base_layer.", "."): p for n, p in net.named_parameters() if not adapters.owns(net, n)}


def pointers(net):
    return {p.data_ptr() for p in base(net).values()}


# ---------------------------------------------------------------------------------------------------- one adapter


@pytest.mark.parametrize(("head", "model", "number"), [("policy", GPT2, 2), ("score", BERT, 3)])  # BERT has two output.dense per block
def test_the_gradient_is_that_of_the_low_rank_parametrisation(head, model, number):
    """W' = W + s B A, s = alpha / r = 2. With G = dL/dW' of a plain model whose weights ARE W': dL/dB = s G A', dL/dA = s B' G."""
    adapted, plain = lora(head, model), network(head, model=model).eval()
    if head == "score":
        plain.scalar.load_state_dict(adapted.scalar.state_dict())
    pairs = {}
    for name, layer in adapted.model.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            # Conv1D of GPT-2 keeps its weight as (in, out).
            turned = type(layer.get_base_layer()).__name__ == "Conv1D"
            weight = plain.model.get_submodule(name).weight
            weight.data += 2.0 * ((b @ a).T if turned else b @ a).detach()
            pairs[name] = (a, b, weight, turned)
    assert len(pairs) == 2 * number  # blocks, and matrices of a block
    torch.testing.assert_close(output(adapted), output(plain), rtol=0, atol=1e-13)
    for net in (adapted, plain):
        output(net).square().sum().backward()
    for a, b, weight, turned in pairs.values():
        g = weight.grad.T if turned else weight.grad
        torch.testing.assert_close(b.grad, 2.0 * g @ a.T, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(a.grad, 2.0 * b.T @ g, rtol=1e-10, atol=1e-12)
        assert a.grad.abs().max() > 1e-4


def test_a_fresh_adapter_and_one_that_is_off_are_the_base_bit_for_bit():
    plain = network().eval()
    expected = output(plain)
    assert torch.equal(output(lora(moved=False)), expected)
    moved = lora()
    assert (output(moved) - expected).abs().max() > 1e-3
    moved.model = adapters.without_adapter(moved.model)
    assert torch.equal(output(moved), expected)
    assert not adapters.has_adapter(moved.model)


def test_the_adapter_is_a_function_of_the_seed_and_leaves_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = lora(moved=False), lora(moved=False), lora(moved=False, seed=1)
    assert torch.equal(torch.rand(2), expected)
    name = "model.transformer.h.0.attn.c_attn.lora_A.default.weight"
    a, b, c = (trained(n)[name] for n in (one, two, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_an_update_moves_adapter_and_head_and_no_bit_of_the_base():
    net = lora("value", seed=2)
    runtime = learner(net, learning_rate=1e-2, weight_decay=0.1)
    before, is_trained = copy.deepcopy(base(net)), copy.deepcopy(trained(net))
    assert set(is_trained) == {n for n, _ in net.named_parameters() if ".lora_" in n or n.startswith("scalar.")}
    data = rollouts(network())
    update(runtime, {"v": Value(source="r", learner="policy", coef=1.0)}, {"r": data})
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in base(net).items())
    assert all(not torch.equal(p, is_trained[n]) for n, p in trained(net).items())


def test_an_attack_on_the_embeddings_moves_only_the_adapter():
    net, plain = lora(), network()
    objectives = {"robust": SFT(source="d", view="pgd")}
    update(learner(net, learning_rate=1e-2), objectives, {"d": demos(net)}, {"pgd": PGD(radius=0.5, steps=2)})
    assert all(torch.equal(p, q) for p, q in zip(base(net).values(), plain.parameters(), strict=True))
    assert all(p.grad is not None for p in trained(net).values())


def test_a_low_precision_base_gets_an_adapter_in_float32():
    words, texts = {"kind": "words"}, ["a b c d e f g h i j k :"]
    net = load(GPT2, tokenizer=words, texts=texts, max_length=32, dtype="bfloat16", options={"lora": LORA})
    assert {p.dtype for p in trained(net).values()} == {torch.float32}
    assert {p.dtype for p in base(net).values()} == {torch.bfloat16}
    assert output(net).dtype == torch.float32


# ------------------------------------------------------------------------------------------------- frozen copies


def test_a_reference_is_the_base_with_adapters_off_and_equals_a_deep_copy_taken_before_training():
    net = lora(moved=False)
    deep, reference = copy.deepcopy(net), frozen_copy(net)
    assert pointers(reference) == pointers(net)
    assert {p.data_ptr() for p in reference.parameters()} <= pointers(net)  # nothing at all was copied
    for number in range(3):
        update(learner(net, learning_rate=1e-1), {"sft": SFT(source="d")}, {"d": demos(net)}, key=("step", number))
    assert torch.equal(output(reference), output(deep))
    assert (output(net.eval()) - output(deep)).abs().max() > 1e-2
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for n, p in net.named_parameters() if adapters.is_adapter(n))  # freezing the copy froze no one else


def test_a_copy_of_a_trained_adapter_is_a_snapshot_of_it_over_the_same_base():
    net = lora()
    deep, copied = copy.deepcopy(net), frozen_copy(net)
    assert pointers(copied) == pointers(net)
    assert {p.data_ptr() for p in trained(net).values()}.isdisjoint(p.data_ptr() for p in copied.parameters())
    shaken(net)
    assert torch.equal(output(copied), output(deep))


def test_an_average_keeps_its_adapter_even_if_that_is_still_zero():
    net = lora(moved=False)
    names = [[n for n, _ in copied.named_parameters()] for copied in (net, frozen_copy(net, moving=True))]
    assert names[0] == names[1]


def test_a_reference_that_was_off_comes_back_off():
    net = lora(moved=False)
    saved = frozen_copy(net).state_dict()
    expected = output(net)
    again = frozen_copy(shaken(net))  # as in a resumed run: the learner has moved since
    again.load_state_dict(saved)
    assert torch.equal(output(again), expected)


# --------------------------------------------------------------------------------------- one base, several learners


def family(*, checkpointing=False, moved=True):
    """A policy, a critic and a reward model over one base, with different adapters."""
    torch.manual_seed(7)
    more = {"gradient_checkpointing": True} if checkpointing else {}
    policy = lora(moved=moved, **more)
    critic = ModelSpec(model="learner:policy", head="value", options={"lora": LORA | {"r": 2}, **more})
    reward = ModelSpec(model="learner:policy", head="score", options={"lora": LORA | {"target_modules": ["c_proj"]}})
    nets = {"policy": policy, "critic": share_base(policy, critic, "learners.critic", 1), "reward": share_base(policy, reward, "x", 2)}
    return {name: shaken(net) if moved and name != "policy" else net for name, net in nets.items()}


def test_a_base_is_there_once():
    nets = family()
    assert pointers(nets["critic"]) == pointers(nets["reward"]) == pointers(nets["policy"])  # the LM head is tied
    everything = {p.data_ptr(): p.numel() for n in nets.values() for p in n.parameters()}
    is_trained = sum(p.numel() for n in nets.values() for p in trained(n).values())
    assert sum(everything.values()) == sum(p.numel() for p in network().parameters()) + is_trained
    # Moving one of them moves all of them: the parameters are the same objects.
    nets["critic"].to(torch.float32)
    assert {p.dtype for p in base(nets["policy"]).values()} == {torch.float32}
    assert pointers(nets["critic"]) <= pointers(nets["policy"])


def test_each_learner_is_what_it_would_be_on_a_base_of_its_own():
    nets = family()
    alone = network("value", options={"lora": LORA | {"r": 2}}).eval()
    # AutoModel draws its weights in the order of the blocks, without an LM head; give it the ones of the shared base.
    for name, p in base(alone).items():
        p.data.copy_(base(nets["critic"])[name])
    for name, p in trained(alone).items():
        p.data.copy_(trained(nets["critic"])[name])
    assert torch.equal(output(alone), output(nets["critic"].eval()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_of_one_learner_changes_no_bit_of_the_others(checkpointing):
    nets = family(checkpointing=checkpointing)
    data = rollouts(nets["policy"].train(False))
    objectives = {"policy": {"p": GRPO(source="r")}, "critic": {"v": Value(source="r", learner="policy")}}
    runtimes = {name: learner(nets[name], learning_rate=1e-2) for name in objectives}
    for name, active in objectives.items():
        before = {n: copy.deepcopy(dict(net.named_parameters())) for n, net in nets.items()}
        for net in nets.values():
            net.zero_grad(set_to_none=True)
        update(runtimes[name], active, {"r": data})
        for other, net in nets.items():
            for key, p in net.named_parameters():
                is_trained = other == name and p.requires_grad
                assert torch.equal(p, before[other][key]) is not is_trained, (name, other, key)
                assert (p.grad is not None) is is_trained, (name, other, key)
        # What trains before trains after.
        assert all(p.requires_grad is adapters.owns(net, k) for net in nets.values() for k, p in net.named_parameters())


def test_a_backward_may_come_after_another_learner_s_whole_update():
    """The trap of adapters that are switched: under checkpointing the policy's blocks are computed again in its backward, here after
    the critic has run forward, backward and an optimizer step on the same base."""
    plain, nested = family(), family(checkpointing=True)
    for net in nested.values():
        net.train()
    assert nested["policy"].model.transformer.gradient_checkpointing
    assert nested["critic"].model.gradient_checkpointing
    assert not nested["reward"].model.gradient_checkpointing  # its own option, not its lender's
    output(plain["policy"]).square().sum().backward()
    loss = output(nested["policy"]).square().sum()
    update(learner(nested["critic"], learning_rate=1e-1), {"v": Value(source="r", learner="policy")}, {"r": rollouts(network())})
    loss.backward()
    for (name, p), q in zip(trained(nested["policy"]).items(), trained(plain["policy"]).values(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14, msg=name)
        assert q.grad.abs().max() > 0


def test_a_learner_without_lora_trains_its_head_on_the_shared_base():
    policy = lora()
    critic = share_base(policy, ModelSpec(model="learner:policy", head="value"), "learners.critic")
    assert set(trained(critic)) == set(critic.state_dict()) - {adapters.FINGERPRINT} == {"scalar.weight", "scalar.bias"}


PLAIN = ModelSpec(model=GPT2, tokenizer={"kind": "words"})
WITH = ModelSpec(model=GPT2, tokenizer={"kind": "words"}, options={"lora": LORA})


@pytest.mark.parametrize(
    ("learners", "sentence"),
    [
        (
            {"policy": PLAIN, "critic": ModelSpec(model="learner:policy")},
            r"learners.critic.model: 'policy' trains all of its weights, so its base cannot be shared; give it options: \{lora: \{r: 8\}\}",
        ),
        (
            {"a": ModelSpec(model="learner:b"), "b": ModelSpec(model="learner:a")},
            r"learners.a.model: it would share the base of itself \(a -> b -> a\)",
        ),
        ({"a": ModelSpec(model="learner:a")}, r"learners.a.model: it would share the base of itself \(a -> a\)"),
        (
            {"policy": WITH, "critic": ModelSpec(model="learner:policy", tokenizer={"kind": "characters"})},
            r"learners.critic.tokenizer: 'learner:policy' brings the tokenizer of 'policy', and another one is given; leave it out",
        ),
        (
            {"policy": WITH, "critic": ModelSpec(model="learner:policy", dtype="bfloat16")},
            r"learners.critic.dtype: bfloat16 given, but the base of 'policy' is float32; leave it out",
        ),
        (
            {"policy": WITH, "critic": ModelSpec(model="learner:polcy")},
            r"learners.critic.model: no learner 'polcy'. Known: critic, policy. Did you mean 'policy'\?",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_is_loaded(learners, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        load_order(learners)


def test_lenders_are_loaded_first_and_chains_may_be_long():
    learners = {"c": ModelSpec(model="learner:b"), "b": ModelSpec(model="learner:a", tokenizer=None), "a": WITH}
    assert load_order(learners) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("owner", "spec", "sentence"),
    [
        (network, {}, r"learners.x.model: 'policy' trains all of its weights"),
        (lora, {"head": "classifier"}, r"learners.x.head: a classifier needs a head that 'learner:policy' does not have"),
        (lambda: lora("score"), {}, r"learners.x.head: a policy needs a head that 'learner:policy' does not have"),
        (lora, {}, r"learners.x.options: a policy on 'learner:policy' has nothing of its own to train"),
        (lora, {"head": "value", "options": {"dropout": 0.1}}, r"model.options: no option 'dropout'"),
    ],
)
def test_what_a_base_cannot_lend_is_a_sentence(owner, spec, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        share_base(owner(), ModelSpec(model="learner:policy", **spec), "learners.x")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": 3}, r"model.options.lora: no field 'rank'"),
        ({"bias": "all"}, r"model.options.lora: no field 'bias'"),  # it would train the base
        ({"r": 3, "init_lora_weights": "pissa"}, r"model.options.lora.init_lora_weights: 'pissa' would rewrite the base"),
        ({"target_modules": ["q_prj"]}, r"model.options.lora: [Tt]arget modules .*q_prj.* not found"),
        ({"r": 0}, r"model.options.lora.r: 0 given; a whole number of at least 1"),
    ],
)
def test_mistakes_in_lora_are_sentences(fields, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}[^\n]*$"):
        network(options={"lora": fields})


# ------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(("head", "model"), [("policy", GPT2), ("value", GPT2), ("score", BERT), ("classifier", BERT)])
def test_a_saved_adapter_gives_the_same_bits_and_goes_on_training(tmp_path, head, model):
    net = lora(head, model, **({"num_labels": 3} if head == "classifier" else {}))
    net.save_pretrained(tmp_path)
    again = load(str(tmp_path), dtype="float64").eval()
    assert (again.head, again.pooling, again.encoder.max_length) == (net.head, net.pooling, 32)
    assert torch.equal(output(again), output(net))
    assert list(trained(again)) == list(trained(net))
    assert all(torch.equal(p, q) for p, q in zip(trained(again).values(), trained(net).values(), strict=True))
    size = sum(p.numel() * 8 for n, p in net.named_parameters() if adapters.is_adapter(n))
    assert (tmp_path / adapter_files.WEIGHTS).stat().st_size < size + 4096  # the adapter alone, and a header


def test_a_base_with_a_name_is_not_saved_again_and_another_one_is_refused(tmp_path):
    network().save_pretrained(tmp_path / "base")
    network(options={"seed": 1}).save_pretrained(tmp_path / "other")
    net = shaken(load(str(tmp_path / "base"), dtype="float64", options={"lora": LORA})).eval()
    net.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("**/model.safetensors"))
    assert json.loads((tmp_path / "adapter" / folders.ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    assert torch.equal(output(load(str(tmp_path / "adapter"), dtype="float64").eval()), output(net))
    load(str(tmp_path / "base"), dtype="bfloat16", options={"adapter": str(tmp_path / "adapter")})  # the same base, rounded
    with pytest.raises(ConfigError, match=r"was trained on another base than the one it is given\.$"):
        load(str(tmp_path / "other"), dtype="float64", options={"adapter": str(tmp_path / "adapter")})
    with pytest.raises(ConfigError, match=r"does not fit this base"):
        load(str(tmp_path / "base"), head="value", options={"adapter": str(tmp_path / "adapter")})
    with pytest.raises(ConfigError, match=r"already carries an adapter"):
        load(str(tmp_path / "adapter"), options={"lora": LORA})


def test_peft_reads_our_folder_and_we_read_peft_s(tmp_path):
    net = lora()
    net.save_pretrained(tmp_path / "ours")
    plain = network().eval()
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain.model), tmp_path / "ours").eval()
    tokens = rows(net)
    logits = [m(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits for m in (theirs, net.model)]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], plain.model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits)
    plain.save_pretrained(tmp_path / "plain")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(str(tmp_path / "plain"), dtype="float64", options={"adapter": str(tmp_path / "theirs")}).eval()
    assert torch.equal(output(ours), output(net))


def test_a_merged_export_is_an_ordinary_model_and_leaves_the_base_alone(tmp_path):
    net = lora()
    expected, before = output(net), copy.deepcopy(dict(net.named_parameters()))
    net.save_pretrained(tmp_path)  # an adapter first: nothing of it may stay behind
    net.save_pretrained(tmp_path, merged=True)
    again = load(str(tmp_path), dtype="float64").eval()
    assert not adapters.has_adapter(again.model)
    assert all(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(output(again), expected, rtol=0, atol=1e-13)
    assert torch.equal(output(net), expected)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_dora_is_an_adapter_like_others_but_never_exactly_nothing(tmp_path):
    """W' = m (W + s B A) / ||W + s B A|| (arXiv:2402.09353, eq. 5): with B = 0 and m = ||W|| it is W up to rounding only."""
    fresh = network(options={"lora": LORA | {"use_dora": True}}).eval()
    torch.testing.assert_close(output(fresh), output(network().eval()), rtol=0, atol=1e-12)
    assert adapters.has_adapter(frozen_copy(fresh).model)  # so a reference keeps it
    net = shaken(fresh)
    assert sum("magnitude" in name for name in trained(net)) == 4
    net.save_pretrained(tmp_path / "adapter")
    assert torch.equal(output(load(str(tmp_path / "adapter"), dtype="float64").eval()), output(net))
    net.save_pretrained(tmp_path / "merged", merged=True)
    torch.testing.assert_close(output(load(str(tmp_path / "merged"), dtype="float64").eval()), output(net), rtol=0, atol=1e-12)


def test_the_configuration_of_the_page_trains_and_its_folders_load(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[2] / "docs" / "lora.md").read_text(encoding="utf-8"), re.DOTALL)
    described = yaml.safe_load(block)
    described["args"]["output_dir"] = str(tmp_path)
    described["sources"]["sums"] |= {"batch_size": 2, "group_size": 2}
    trainer = configuration.trainer(described)
    trainer.train(progress=False)
    policy = trainer.model.eval()
    assert all(pointers(r.network) == pointers(policy) for r in trainer.learners.values())
    assert {p.data_ptr() for p in trainer.frozen["reference"].parameters()} == pointers(policy)
    for again in (load_network(str(tmp_path), None, "cpu"), load(str(tmp_path / "policy"))):
        tokens = policy.encoder.demos(["1 + 2 ="], ["3"])
        assert torch.equal(again.eval()(tokens, {"logprobs"}).logprobs, policy(tokens, {"logprobs"}).logprobs)


def test_a_weight_that_is_tied_is_not_merged_in_silence(tmp_path):
    net = network(options={"lora": {"r": 2, "target_modules": ["lm_head"], "init_lora_weights": "gaussian"}}).eval()
    shaken(net)
    assert (output(net) - output(network().eval())).abs().max() > 1e-3  # an adapter of the LM head is not skipped
    with pytest.raises(ConfigError, match=r"^save_pretrained: 'lm_head' is tied to another weight"):
        net.save_pretrained(tmp_path, merged=True)


def test_a_trained_reward_model_can_be_put_on_the_policy_s_base(tmp_path):
    nets = family()
    nets["reward"].save_pretrained(tmp_path / "reward")
    spec = ModelSpec(model="learner:policy", head="score", options={"adapter": str(tmp_path / "reward")})
    again = share_base(nets["policy"], spec, "learners.reward").eval()
    assert pointers(again) == pointers(nets["reward"])
    assert torch.equal(output(again), output(nets["reward"].eval()))


# --------------------------------------------------------------------------------------------------- checkpoints


def test_a_state_holds_adapter_and_head_and_knows_its_base():
    nets = family()
    for net in nets.values():
        assert set(net.state_dict()) == {*trained(net), adapters.FINGERPRINT}
    other = network("value", options={"lora": LORA | {"r": 2}, "seed": 5})
    with pytest.raises(ConfigError, match=r"^load_state_dict: these adapters were trained on another base"):
        other.load_state_dict(nets["critic"].state_dict())


WORDS = {"kind": "characters", "data": "task:arithmetic"}
SMALL = {"r": 2, "target_modules": ["c_attn", "c_fc"], "lora_dropout": 0.1}


def ppo(folder, steps=5, **arguments):
    """PPO's four models on one base: actor, critic, reference, reward model. A first stage imitates, so that the reference, taken
    when the second begins, has an adapter that is not zero; the average is there from the start. Dropout and checkpointing are on."""
    task, sampling = "task:arithmetic", Sampling(max_new_tokens=3)
    rewards = [ExactAnswer(), DiscriminatorReward(learner="reward")]
    borrowed = {"model": "learner:policy", "learning_rate": 1e-2}
    options = {"lora": SMALL, "gradient_checkpointing": True}
    return Trainer(
        learners={
            "critic": Learner(head="value", options=options, **borrowed),
            "policy": Learner(model=GPT2, tokenizer=WORDS, max_length=24, learning_rate=1e-2, options=options, minibatches=2),
            "reward": Learner(head="score", options={"lora": SMALL}, **borrowed),
        },
        sources={
            "sums": Prompts(data=task, batch_size=2, group_size=2, sampling=sampling, limit=8, rewards=rewards, advantage=GAE()),
            "demos": Demos(data=task, batch_size=4, limit=8),
        },
        objectives={
            "imitate": SFT(source="demos"),
            "policy": GRPO(source="sums", weighting="token"),
            "value": Value(source="sums"),
            "near": KL(source="sums", coef=0.1),
        },
        frozen={"reference": Frozen(learner="policy"), "mean": Frozen(learner="policy", ema=0.5)},
        stages=[
            Stage(name="warm", steps=2, objectives=("imitate",)),
            Stage(name="ppo", steps=steps - 2, objectives=("policy", "value", "near")),
        ],
        args=TrainingArguments(output_dir=str(folder), save_steps=1, **arguments),
    )


def test_ppo_with_four_models_on_one_base_resumes_bit_for_bit(tmp_path):
    uninterrupted, broken = ppo(tmp_path / "whole"), tmp_path / "broken"
    first = uninterrupted.train(progress=False)
    assert list(uninterrupted.learners) == ["critic", "policy", "reward"]  # the order of the configuration, whoever lends
    nets = {n: r.network for n, r in uninterrupted.learners.items()} | uninterrupted.frozen
    assert set(nets) == {"critic", "policy", "reward", "reference", "mean"}
    assert all(pointers(net) <= pointers(nets["policy"]) for net in nets.values())
    assert first[-1]["near/k3"] != 0  # the policy has left its reference
    assert first[-1]["value/loss"] != 0
    # Untouched: the base, and the reward model, which no objective trains.
    fresh = ppo(tmp_path / "fresh")
    fresh.start()
    for name, runtime in fresh.learners.items():
        before, after = runtime.network, nets[name]
        assert all(torch.equal(p, base(after)[n]) for n, p in base(before).items())
        moved = [not torch.equal(p, trained(after)[n]) for n, p in trained(before).items()]
        assert not any(moved) if name == "reward" else all(moved)

    ppo(broken, steps=4).train(progress=False)  # as if killed after step 4
    second = ppo(broken).train(resume=True, progress=False)
    assert [row["step"] for row in second] == [5]
    assert second[-1] == first[-1]
    a, b = (checkpoint.latest(tmp_path / name) for name in ("whole", "broken"))
    assert a.name == b.name == "checkpoint-5"
    names = ("frozen.mean", "frozen.reference", "learner.critic", "learner.policy", "learner.reward")
    files = [f"{name}.safetensors" for name in names]
    assert sorted(p.name for p in a.glob("*.safetensors")) == files
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    # No checkpoint holds a base: all five together are smaller than one.
    assert sum((a / name).stat().st_size for name in files) < sum(p.numel() * 4 for p in base(nets["policy"]).values())


def test_all_linear_leaves_out_linear_modules_that_return_something_else():
    """The routers of Llama 4 and Phi-MoE are linear modules that return a pair, to which no product can be added."""

    class Router(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    class Product(torch.nn.Linear):
        """Falcon has a linear module with a forward of its own that is a product all the same."""

        def forward(self, x):
            return x @ self.weight.T

    net = network()
    net.model.add_module("router", Router(32, 2))
    net.model.add_module("product", Product(32, 2))
    adapters.inject(net, {"r": 2, "target_modules": "all-linear"})
    assert type(net.model.router) is Router
    assert type(net.model.product) is not Product
