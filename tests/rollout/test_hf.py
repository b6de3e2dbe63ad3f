"""The sampler and the trainer are the same model: log-probabilities agree, padding changes nothing, the nucleus is the nucleus."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, MistralConfig

from advalign.errors import BudgetError
from advalign.models import Network, load
from advalign.models.row_cache import GrowingLayer
from advalign.rollout.hf import DROP_FRACTION, HF, sample
from advalign.tasks.constraints import Constraints
from advalign.types import Example, Sampling

PROMPTS = ["length 3 with red without blue :", "length 7 :", "red", "length 5 with gold without pink with gray :"]
MODELS = {"scratch:tiny-gpt2?n_embd=32": ("float64", 1e-10), "scratch:tiny?hidden_size=32": ("float32", 2e-5)}


def network(model):
    dtype, _ = MODELS[model]
    net = load(model, tokenizer={"kind": "words"}, texts=Constraints().vocabulary(), max_length=32, dtype=dtype)
    for p in net.parameters():  # an untrained model is nearly uniform: every choice would be a coin toss
        p.data.mul_(3.0)
    return net


def generate(net, prompts, n, sampling, seed=0, **fields):
    examples = [Example(prompt=p) for p in prompts]
    return HF(**fields).generate(net, examples, n, sampling, torch.Generator().manual_seed(seed))


def trainer_logprobs(net, groups, temperature):
    tokens = net.encoder.rollouts(groups)
    temperatures = torch.full((tokens.ids.shape[0],), temperature, dtype=net.dtype)
    with torch.no_grad():
        results = net(tokens, {"logprobs"}, None, temperatures).logprobs
    return [row[target].tolist() for row, target in zip(results, tokens.target, strict=True)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=8), Sampling(max_new_tokens=8, temperature=0.6, top_p=0.8)])
def test_sampler_and_trainer_agree_on_the_log_probability_of_every_token(model, sampling):
    net = network(model)
    groups = generate(net, PROMPTS, 8, sampling)
    rollouts = [r for g in groups for r in g.rollouts]
    lengths = {len(r.response_ids) for r in rollouts}
    assert len(lengths) > 1  # some end early: the cache holds finished rows beside living ones
    for rollout, expected in zip(rollouts, trainer_logprobs(net, groups, sampling.temperature), strict=True):
        assert rollout.sampler_logprobs == pytest.approx(expected, abs=MODELS[model][1])


@pytest.mark.parametrize("model", MODELS)
def test_left_padding_and_neighbours_change_nothing(model):
    net = network(model)
    greedy = Sampling(max_new_tokens=8, temperature=0.0)
    together = generate(net, PROMPTS, 1, greedy)
    alone = [generate(net, [p], 1, greedy)[0] for p in PROMPTS]
    chunks = generate(net, PROMPTS, 2, greedy, max_rows=3)
    assert len({tuple(g.rollouts[0].response_ids) for g in together}) > 1
    for one, two, three in zip(together, alone, chunks, strict=True):
        assert one.rollouts[0].response_ids == two.rollouts[0].response_ids == three.rollouts[0].response_ids
        assert three.rollouts[0].response_ids == three.rollouts[1].response_ids
        assert one.rollouts[0].sampler_logprobs == pytest.approx(two.rollouts[0].sampler_logprobs, abs=MODELS[model][1])


def test_greedy_is_the_argmax_of_a_slow_loop_without_cache():
    net = network("scratch:tiny-gpt2?n_embd=32")
    for group in generate(net, PROMPTS, 1, Sampling(max_new_tokens=6, temperature=0.0)):
        ids = list(group.prompt_ids)
        for chosen in group.rollouts[0].response_ids:
            with torch.no_grad():
                logits = net.model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert int(logits.argmax()) == chosen
            ids.append(chosen)


def test_finished_means_that_the_end_was_sampled():
    net = network("scratch:tiny-gpt2?n_embd=32")
    rollouts = [r for g in generate(net, PROMPTS, 16, Sampling(max_new_tokens=4)) for r in g.rollouts]
    assert {r.finished for r in rollouts} == {True, False}
    for r in rollouts:
        assert r.finished == (r.response_ids[-1] == net.encoder.eos_id)
        assert net.encoder.eos_id not in r.response_ids[:-1]
        assert len(r.response_ids) == len(r.sampler_logprobs)
        assert r.finished or len(r.response_ids) == 4
        assert "<eos>" not in r.text


@pytest.mark.parametrize("model", MODELS)
def test_a_response_ends_where_the_context_does(model):
    # 32 positions and room for 64 tokens: what is cut has filled the context, prompts of every length alike.
    net = network(model)
    groups = generate(net, PROMPTS, 16, Sampling(max_new_tokens=64))
    cut = [(g, r) for g in groups for r in g.rollouts if not r.finished]
    assert len({len(g.prompt_ids) for g, _ in cut}) > 1
    for group, rollout in cut:
        assert len(group.prompt_ids) + len(rollout.response_ids) == 32
        assert net.encoder.eos_id not in rollout.response_ids
    for rollout, expected in zip([r for g in groups for r in g.rollouts], trainer_logprobs(net, groups, 1.0), strict=True):
        assert rollout.sampler_logprobs == pytest.approx(expected, abs=MODELS[model][1])
    with pytest.raises(BudgetError, match=r"^rollout: a prompt of 33 tokens leaves no room in the model's context of 32 tokens\.$"):
        generate(net, ["red " * 33], 1, Sampling())


def test_sampling_is_a_function_of_the_generator_and_leaves_the_mode_alone():
    net = network("scratch:tiny-gpt2?n_embd=32").train()
    first, again, other = (generate(net, PROMPTS, 2, Sampling(max_new_tokens=8), seed=s) for s in (1, 1, 2))
    ids = [[r.response_ids for g in groups for r in g.rollouts] for groups in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert net.training


LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        # The mass before the third token is 0.8 >= 0.7, so two stay: 0.5 / 0.8 and 0.3 / 0.8.
        (Sampling(top_p=0.7), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=0.8), [0.625, 0.375, 0, 0]),
        (Sampling(top_p=0.81), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (Sampling(top_p=1e-9), [1, 0, 0, 0]),  # the most likely token always stays
        # Temperature 1/2 squares: 0.25, 0.09, 0.0225, 0.0025 of 0.365.
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (Sampling(temperature=0.0), [1, 0, 0, 0]),
    ],
)
def test_the_distribution_that_is_sampled(sampling, expected, generator):
    number = 20_000
    chosen, logprobs = sample(LOGITS.expand(number, 4), sampling, torch.rand(number, generator=generator, dtype=torch.float64))
    counts = torch.bincount(chosen, minlength=4)
    for token, p in enumerate(expected):
        # Five standard deviations of a binomial; exactly none where the probability is zero.
        assert abs(int(counts[token]) - number * p) <= 5 * math.sqrt(number * p * (1 - p)) + 1e-9
    # What is returned is the log-probability before the nucleus is cut.
    uncut = LOGITS if sampling.temperature in (0.0, 1.0) else (LOGITS / sampling.temperature).log_softmax(0)
    assert torch.allclose(logprobs, uncut[chosen], atol=1e-12)


def test_a_draw_is_the_token_whose_share_of_the_interval_it_falls_into():
    """Cumulative 0.5, 0.8, 0.95, 1: a token never has a share of nothing, not even at the ends."""
    draws = torch.tensor([0.0, 0.499, 0.5, 0.799, 0.8, 0.951, 1 - 2**-53], dtype=torch.float64)
    chosen, _ = sample(LOGITS.expand(7, 4), Sampling(), draws)
    assert chosen.tolist() == [0, 0, 1, 1, 2, 3, 3]
    gap = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf], dtype=torch.float64)
    chosen, _ = sample(gap.expand(3, 5), Sampling(), torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert chosen.tolist() == [1, 3, 3]


def test_logits_in_half_precision_are_normalised_in_float32():
    """bfloat16 has 8 bits: log 1/50,000 = -10.8 would be rounded by up to 0.03, and every probability with it."""
    logits = torch.randn(40, 50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    draws = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sampling in (Sampling(temperature=0.7), Sampling(temperature=0.0), Sampling(top_p=0.9)):
        chosen, logprobs = sample(logits, sampling, draws)  # in several parts
        expected = (logits.double() / (sampling.temperature or 1)).log_softmax(-1).gather(1, chosen[:, None]).squeeze(1)
        torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=1e-5)
        assert chosen.tolist() == sample(logits.float(), sampling, draws)[0].tolist()
        alone = [sample(logits[i : i + 1], sampling, draws[i : i + 1])[0] for i in range(40)]
        assert chosen.tolist() == torch.cat(alone).tolist()


def windowed():
    """A model that attends to its last four tokens: its cache forgets."""
    like = network("scratch:tiny?hidden_size=32")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"vocab_size": len(like.encoder.tokenizer), "pad_token_id": 0, "eos_token_id": like.encoder.eos_id, "bos_token_id": None}
    config = MistralConfig(sliding_window=4, max_position_embeddings=32, **sizes, **ids)
    net = Network(AutoModelForCausalLM.from_config(config), like.encoder, "policy").to(torch.float64)
    for p in net.parameters():
        p.data.mul_(3.0)
    return net


@pytest.mark.parametrize("model", [*MODELS, "windowed"])
def test_who_shares_a_batch_and_a_prompt_changes_no_response(model):
    """Prompts read once per group, rows that leave, batches of 3 and of 512, and every response decoded alone: the same tokens."""
    net = windowed() if model == "windowed" else network(model)
    ids = lambda groups: [[r.response_ids for r in g.rollouts] for g in groups]  # noqa: E731
    sampling = Sampling(max_new_tokens=12)
    together = ids(generate(net, PROMPTS, 6, sampling))
    assert len({len(r) for g in together for r in g}) > 3  # some left early
    assert ids(generate(net, PROMPTS, 6, sampling, max_rows=3)) == together
    assert ids(generate(net, PROMPTS, 6, sampling, max_rows=1)) == together
    net._caches = False  # every token reads its whole row
    assert ids(generate(net, PROMPTS, 6, sampling)) == together


def test_a_prompt_is_read_once_and_finished_rows_leave():
    """4 prompts, 8 responses each: the first forward has 4 rows, the second 32, and the batch shrinks as responses end."""
    net, seen = network("scratch:tiny-gpt2?n_embd=32"), []
    net.backbone.register_forward_pre_hook(lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True)
    groups = generate(net, PROMPTS, 8, Sampling(max_new_tokens=16))
    width = max(len(g.prompt_ids) for g in groups)
    assert seen[:2] == [(4, width), (32, 1)]
    rows = [shape[0] for shape in seen[1:]]
    assert rows == sorted(rows, reverse=True)
    lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
    for step, present in enumerate(rows, 1):
        needed = sum(length > step for length in lengths)
        assert needed <= present <= needed / (1 - DROP_FRACTION) + 1e-9 or present == 32


@pytest.mark.parametrize("model", MODELS)
def test_greedy_is_transformers_own(model):
    net = network(model)
    prompt = net.encoder.prompt(PROMPTS[3])
    ends = {"pad_token_id": net.encoder.pad_id, "eos_token_id": net.encoder.eos_id}
    expected = net.model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, **ends)
    (group,) = generate(net, [PROMPTS[3]], 1, Sampling(max_new_tokens=8, temperature=0.0))
    assert [*prompt, *group.rollouts[0].response_ids] == expected[0].tolist()


def test_the_cache_grows_in_place_and_keeps_what_it_held():
    """Three tokens, then one at a time into the same buffer, beyond the room it was given; rows are chosen and repeated."""
    layer = GrowingLayer(2)
    keys = [torch.randn(2, 1, n, 3, dtype=torch.float64) for n in (3, 1, 1, 1)]
    for i, k in enumerate(keys):
        before = None if layer._buffers is None else layer._buffers[0].data_ptr()
        got, _ = layer.update(k, -k)
        assert torch.equal(got, torch.cat(keys[: i + 1], 2))
        assert torch.equal(layer.values, -got)
        assert i in (0, 3) or layer._buffers[0].data_ptr() == before  # the fourth no longer fits
    layer.batch_select_indices(torch.tensor([1, 0, 1]))
    assert torch.equal(layer.keys, torch.cat(keys, 2)[[1, 0, 1]])
    assert layer.get_seq_length() == 6


def test_whole_responses_follow_the_model_by_chi_square():
    """Six tokens, responses of at most three: every response is enumerated with its probability by a slow loop without cache (a response
    that ends early is shorter), and 6,000 sampled ones, decoded with shared prompts, leaving rows and a growing cache, are counted."""
    net = load("scratch:tiny-gpt2?n_embd=32", tokenizer={"kind": "words"}, texts=["a"], max_length=16, dtype="float64")
    for p in net.parameters():
        p.data.mul_(3.0)
    prompt, end, size = net.encoder.prompt("a a"), net.encoder.eos_id, len(net.encoder.tokenizer)
    chances: dict[tuple[int, ...], float] = {}

    def grow(response, chance):
        if len(response) == 3 or response[-1:] == (end,):
            chances[response] = chance
            return
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            following = net.model(input_ids=ids).logits[0, -1].softmax(-1).tolist()
        for token, p in enumerate(following):
            grow((*response, token), chance * p)

    grow((), 1.0)
    assert sum(chances.values()) == pytest.approx(1.0)
    assert len(chances) == 1 + (size - 1) * (1 + (size - 1) * size)
    groups = generate(net, ["a a"] * 3, 2000, Sampling(max_new_tokens=3), max_rows=900)
    results = Counter(tuple(r.response_ids) for g in groups for r in g.rollouts)
    assert set(results) <= set(chances)
    often = [response for response, p in chances.items() if 6000 * p >= 5]
    observed = [results[response] for response in often]
    wanted = [6000 * chances[response] for response in often]
    observed, wanted = [*observed, 6000 - sum(observed)], [*wanted, 6000 - sum(wanted)]
    assert len(often) > 30
    assert stats.chisquare(observed, wanted).pvalue > 1e-4
