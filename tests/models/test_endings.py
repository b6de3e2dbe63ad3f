"""Where a response ends. Right values: `apply_chat_template` and the tokenizer alone, and the ids themselves."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from advalign.errors import ConfigError
from advalign.models import Encoder, Network, load
from advalign.models.endings import StopRule
from advalign.models.sharing import frozen_copy
from advalign.rollout.hf import HF
from advalign.targets import GeneratorTarget
from advalign.types import Example, Sampling

WORDS = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<|end|>"),
    *("user", "model", "assistant", "say", "a", "color", "red", "gold", "blue", ":", "STOP", "END", "of", "turn"),
]
ADDED = [word for word in WORDS if word.startswith("<")]
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)
GEMMA = (
    "<bos> {% for m in messages %}<start_of_turn> {{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }} <end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn> model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% else %}<eos>{% endif %}"
)
MISTRAL = "{% for m in messages %} {{ m.content }}{% if m.role == 'assistant' %} <eos>{% endif %}{% endfor %}"
PARTS = (
    "{% for m in messages %}{{ m.role }} {% for part in m.content %}{{ part.text }}{% endfor %} <|eot_id|> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
REFUSES = "{{ raise_exception('only a system turn') }}"
TEXT = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} END of turn\n{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)
ENDS = {
    "chatml": (CHATML, ["<|im_end|>"]),
    "gemma": (GEMMA, ["<end_of_turn>"]),
    "phi": (PHI, ["<|end|>"]),
    "mistral": (MISTRAL, ["<eos>"]),
    "parts": (PARTS, ["<|eot_id|>"]),
    "named": ([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": PLAIN}], ["<|im_end|>"]),
    "plain": (PLAIN, ["<eos>"]),  # the template writes nothing behind a turn
    "refuses": (REFUSES, ["<eos>"]),
    "none": (None, ["<eos>"]),
    "text": (TEXT, ["END", "of", "turn"]),
}


def tokenizer(template=None, special=True):
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    core.add_tokens([AddedToken(word, special=special, normalized=False) for word in ADDED])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    built = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    built.chat_template = {t["name"]: t["template"] for t in template} if isinstance(template, list) else template
    return built


def policy(template=None, special=True, ends=None):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    return Network(model, Encoder(tokenizer(template, special), max_length=64), "policy")


def always(network, words):
    """The model then says these words in turn, whatever the prompt; the last one for ever."""
    ids = [WORDS.index(word) for word in words]

    def logits(hidden):
        step = min(logits.step, len(ids) - 1)
        logits.step += 1
        return torch.zeros(len(hidden), len(WORDS), dtype=torch.float64).index_fill(1, torch.tensor([ids[step]]), 50.0)

    logits.step = 0
    network.next_token_logits = logits
    return network


def sample(network, number=12, n=1, **sampling):
    groups = HF().generate(
        network, [Example(prompt="say a color")], n, Sampling(max_new_tokens=number, **sampling), torch.Generator().manual_seed(0)
    )
    return groups[0].rollouts


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_a_demonstration_ends_as_the_template_ends_it(name, special):
    template, ends = ENDS[name]
    encoder = Encoder(tokenizer(template, special), max_length=64)
    ids = [WORDS.index(word) for word in ends]
    assert encoder.response("red gold") == [WORDS.index("red"), WORDS.index("gold"), *ids]
    assert encoder.response("red gold", finished=False) == [WORDS.index("red"), WORDS.index("gold")]
    if name != "refuses":
        tokens = encoder.demos(["say a color"], ["red"])
        more = [WORDS.index("<eos>")] if name == "phi" else []  # behind the last turn, that template writes an end of the text too
        assert tokens.ids[tokens.target].tolist() == [WORDS.index("red"), *ids, *more]
    if name in ("chatml", "gemma", "mistral", "text"):
        turns = [{"role": "user", "content": "say a color"}, {"role": "assistant", "content": "red gold"}]
        rendered = encoder.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert rendered[-len(ids) - 2 :] == encoder.response("red gold")


def test_a_template_that_is_set_later_counts():
    encoder = Encoder(tokenizer(), max_length=64)
    assert encoder.response("red")[1:] == [WORDS.index("<eos>")]
    encoder.tokenizer.chat_template = GEMMA
    assert encoder.response("red")[1:] == [WORDS.index("<end_of_turn>")]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("ends", [None, 1, [1, 7]])
@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>", "<|im_end|>"])
def test_a_rollout_stops_at_every_end_and_nowhere_else(ends, end, special):
    # The template's own end counts without the generation config too; another template's end is a token like any other.
    (rollout,) = sample(always(policy(GEMMA, special, ends), ["red", "gold", end]), temperature=0.0)
    stops = end != "<|im_end|>"
    assert rollout.finished == stops
    assert rollout.response_ids == [WORDS.index(word) for word in ("red", "gold", *[end] * (1 if stops else 10))]
    assert len(rollout.sampler_logprobs) == len(rollout.response_ids)
    assert not stops or rollout.text.split() == ["redgold"]


@pytest.mark.parametrize("adapted", [False, True])
def test_a_folder_with_ends_of_its_own(tmp_path, adapted):
    """A Gemma-style checkpoint: two ends in generation_config.json, the tokenizer's eos is the first, the template writes the second."""
    network = policy(GEMMA, ends=[1, WORDS.index("<end_of_turn>")])
    network.save_pretrained(tmp_path / "model")
    loaded = load(str(tmp_path / "model"), max_length=64, options={"lora": {"r": 2}} if adapted else {})
    if adapted:
        loaded.save_pretrained(tmp_path / "adapter")
        loaded = load(str(tmp_path / "adapter"), max_length=64)
    assert loaded.stop_ids == frozenset({1, WORDS.index("<end_of_turn>")})
    assert frozen_copy(loaded, moving=False).stop_ids == loaded.stop_ids
    end = [WORDS.index("<end_of_turn>")]
    pairs = loaded.encoder.demos(["say a color"] * 2, ["red", "gold blue"])
    scored = loaded.encoder.scored_pairs(["say a color"] * 2, ["red", "gold blue"], [True, True])
    for rows in (pairs, scored):
        assert [ids[target].tolist()[-1:] for ids, target in zip(rows.ids, rows.target, strict=True)] == [end, end]
        assert not (rows.ids == 1).any()
    (rollout,) = sample(always(loaded, ["red", "<end_of_turn>"]), temperature=0.0)
    assert (rollout.finished, len(rollout.response_ids), rollout.text.strip()) == (True, 2, "red")


def test_a_target_stops_where_rollouts_do():
    target = GeneratorTarget(always(policy(GEMMA, ends=1), ["red", "gold", "<end_of_turn>"]))
    edits = {"embedding": torch.zeros(8, 32, dtype=torch.float64)}
    assert target.continue_edited([Example(prompt="say a color")], [edits], 9) == ["redgold"]


def test_an_end_that_only_the_generation_config_names_is_no_part_of_the_text():
    (rollout,) = sample(always(policy(None, ends=[1, WORDS.index("blue")]), ["red", "blue"]), temperature=0.0)
    assert (rollout.finished, rollout.text, len(rollout.response_ids)) == (True, "red", 2)


def test_a_template_that_ends_in_text():
    (rollout,) = sample(always(policy(TEXT), ["red", "END", "of", "turn", "gold"]), temperature=0.0)
    # Decoded words follow each other without a space, so the text of this tokenizer never holds "END of turn".
    assert not rollout.finished
    network = policy(TEXT)
    network.encoder.tokenizer.backend_tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    (rollout,) = sample(always(network, ["red", "END", "of", "turn", "gold"]), temperature=0.0)
    assert rollout.finished
    assert rollout.response_ids == network.encoder.response("red")
    assert rollout.text == "red"


@pytest.mark.parametrize(
    ("words", "stop", "length"),
    [
        (["red", "STOP", "gold"], "STOP", 2),
        (["red", "gold", "blue"], "dgo", 2),  # across a boundary: the token that completes it stays
        (["a", "of", "a", "of", "red"], "ofa", 3),
        (["red", "a", "a", "a", "a"], "aaaa", 5),
        (["red", "<|im_end|>", "gold"], "<|im_end|>", 2),  # a special token has no text, and stops by its id
        (["red", "<pad>", "<pad>", "gold"], "redgold", 4),  # what has no text is not in the way
    ],
)
def test_a_given_string_ends_a_response_wherever_token_boundaries_lie(words, stop, length):
    (rollout,) = sample(always(policy(), words), temperature=0.0, stop=(stop,))
    assert rollout.finished
    assert rollout.response_ids == [WORDS.index(word) for word in words[:length]]
    assert len(rollout.sampler_logprobs) == length
    assert rollout.text == "".join(word for word in words[:length] if not word.startswith("<"))


def test_stopping_is_what_a_slow_loop_over_unstopped_samples_says():
    network, stop = policy(), ("red", "da", ":g")
    free, stopped = sample(network, 16, n=64), sample(network, 16, n=64, stop=stop)
    ends = 0
    for long, short in zip(free, stopped, strict=True):
        # The same random numbers, so a response is a beginning of the one without stop strings.
        expected, finished = long.response_ids, long.finished
        for end in range(1, len(expected) + 1):
            if any(text in network.encoder.decode(expected[:end]) for text in stop):
                expected, finished = expected[:end], True
                break
        assert (short.response_ids, short.finished) == (expected, finished)
        assert short.sampler_logprobs == pytest.approx(long.sampler_logprobs[: len(expected)], abs=1e-12)
        assert StopRule(network, stop).cut(long.response_ids)[0] == expected
        ends += len(expected) < len(long.response_ids)
    assert ends > 10


def test_a_stop_string_is_not_empty():
    with pytest.raises(ConfigError, match=r"^sampling\.stop\.1: '' given; at least 1 entry is expected\.$"):
        Sampling(stop=("red", ""))
