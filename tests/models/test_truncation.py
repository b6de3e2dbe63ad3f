"""Rows that are too long are refused or cut, as configured, and counted; what lost its end is not closed."""

import pytest
import torch
import transformers
from helpers.tokenizer_kinds import CHAT, CHAT_WITH_BOS, byte_pairs, in_python, pieces, word_pieces, words

from advalign.errors import BudgetError, ConfigError
from advalign.models import Encoder, load
from advalign.types import Example, Rollout, RolloutGroup

MAKES = {"byte_pairs": byte_pairs, "pieces": pieces, "words": words}
PROMPTS, RESPONSES = ["the cat sat", "hello"], ["on a mat", "you say red"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def saved(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def group(prompt_ids, *responses):
    rollouts = [Rollout(response_ids=list(ids), sampler_logprobs=[0.0] * len(ids), text="", finished=True) for ids in responses]
    return RolloutGroup(example=Example(prompt="the cat"), prompt_ids=list(prompt_ids), rollouts=rollouts)


# ------------------------------------------------------------------------------------- tokenizers that add tokens


@pytest.mark.parametrize("adds", ["", "bos", "eos", "bos and eos"])
@pytest.mark.parametrize("make", MAKES)
def test_one_beginning_in_front_and_one_end_behind(make, adds):
    tokenizer = MAKES[make](adds)
    encoder = Encoder(tokenizer, max_length=64)
    bare = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (PROMPTS, RESPONSES)]
    begin = [tokenizer.bos_token_id] if "bos" in adds else []
    expected = [begin + prompt + response + [tokenizer.eos_token_id] for prompt, response in zip(*bare, strict=True)]
    for tokens in (encoder.demos(PROMPTS, RESPONSES), encoder.scored_pairs(PROMPTS, RESPONSES, [True, True])):
        assert [ids[mask].tolist() for ids, mask in zip(tokens.ids, tokens.mask, strict=True)] == expected
        assert tokens.target.sum(1).tolist() == [len(ids) + 1 for ids in bare[1]]
    assert [group_ids[: len(begin)] for group_ids in encoder.prompts(PROMPTS)] == [begin] * 2
    classified = encoder.classify(PROMPTS)
    assert [ids[mask].tolist() for ids, mask in zip(classified.ids, classified.mask, strict=True)] == tokenizer(PROMPTS)["input_ids"]


@pytest.mark.parametrize("adds", ["", "bos", "bos and eos"])
@pytest.mark.parametrize("template", [CHAT, CHAT_WITH_BOS])
def test_a_template_decides_about_the_beginning(template, adds):
    tokenizer = byte_pairs(adds)
    tokenizer.chat_template = template
    encoder = Encoder(tokenizer, max_length=64)
    turns = [{"role": "user", "content": "the cat sat"}]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encoder.prompt("the cat sat") == expected
    assert encoder.prompt("the cat sat").count(tokenizer.bos_token_id) == ("bos_token" in template)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "names",
    [{"eos_token": "</s>"}, {"pad_token": "<pad>"}, {"pad_token": "</s>", "eos_token": "</s>"}, {"unk_token": "<unk>"}, {}],
    ids=["no pad", "no eos", "pad = eos", "only unk", "none"],
)
def test_tokenizers_without_pad_eos_or_unk_and_padding_on_either_side(names, side):
    tokenizer = byte_pairs(names=names, padding_side=side)
    encoder = Encoder(tokenizer, max_length=64)
    tokens = encoder.demos(PROMPTS, RESPONSES)
    end = [tokenizer.eos_token_id] if "eos_token" in names else []
    rows = [p + r + end for p, r in zip(*(tokenizer(t, add_special_tokens=False)["input_ids"] for t in (PROMPTS, RESPONSES)), strict=True)]
    for b, row in enumerate(rows):
        assert tokens.ids[b, : len(row)].tolist() == row
        assert tokens.mask[b].tolist() == [t < len(row) for t in range(tokens.ids.shape[1])]
    assert [encoder.decode(row) for row in rows] == [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]


def test_ids_beyond_the_tokenizer_have_no_text():
    # Rows that pad an embedding can be sampled; transformers decodes their ids to nothing.
    tokenizer = byte_pairs()
    encoder = Encoder(tokenizer)
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert encoder.decode([*ids, len(tokenizer) + 5]) == tokenizer.decode([*ids, len(tokenizer) + 5], skip_special_tokens=True) == "the cat"


def test_special_ids_are_all_that_decoding_leaves_out():
    tokenizer = byte_pairs(names={"eos_token": "</s>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.add_tokens(["brand"])
    encoder = Encoder(tokenizer)
    gone = {i for i in range(len(tokenizer)) if tokenizer.decode([i]) and not tokenizer.decode([i], skip_special_tokens=True)}
    assert encoder.special_ids == gone >= {tokenizer.convert_tokens_to_ids("<tool>")}
    assert encoder.decode(encoder.response("the brand cat")) == "the brand cat"


@pytest.mark.filterwarnings("ignore:encoder")
def test_a_response_that_spells_its_end_as_a_token_has_one_end():
    tokenizer = byte_pairs()
    assert Encoder(tokenizer, special_tokens_in_text="tokens").response("red</s>") == Encoder(tokenizer).response("red")
    assert tokenizer.eos_token_id not in Encoder(tokenizer).response("red</s>")[:-1]


# ------------------------------------------------------------------------------------------------ demonstrations


def cut(mode, max_length, positions=None, tokenizer=None, prompt="the cat sat", response="on a mat"):
    encoder = Encoder(tokenizer or words("bos"), max_length=max_length, truncation=mode, positions=positions)
    tokens = encoder.demos([prompt], [response])
    names = encoder.tokenizer.convert_ids_to_tokens(tokens.ids[0].tolist())
    return encoder, names, tokens.target[0].tolist()


# Whole: <s> the cat sat | on a mat </s>


@pytest.mark.parametrize("mode", [None, "error"])
def test_refused(mode):
    sentence = (
        r"^encoder: a prompt of 4 tokens and a response of 4 are longer than max_length 7; raise max_length, shorten them, or give "
        r"options: \{truncation: left\} or \{truncation: right\}\.$"
    )
    with pytest.raises(BudgetError, match=sentence):
        cut(mode, 7)
    with pytest.raises(BudgetError, match=r"longer than max_length 512 and the model's 7 positions; shorten them, or give options"):
        cut(mode, 512, 7)
    assert cut(mode, 8)[1][-1] == "</s>"
    with pytest.raises(BudgetError, match=r"^encoder: a prompt of 4 tokens leaves no room in max_length 4; raise max_length or shorten"):
        cut(mode, 4)


@pytest.mark.filterwarnings("ignore:encoder")
def test_right_loses_the_end_of_the_response():
    encoder, names, target = cut("right", 6)
    assert names == ["<s>", "the", "cat", "sat", "on", "a"]
    assert target == [False] * 4 + [True] * 2
    assert encoder.truncation.num_truncated == 1
    with pytest.raises(BudgetError, match=r"^encoder: a prompt of 4 tokens leaves no room in max_length 4; raise max_length or shorten"):
        cut("right", 4)


@pytest.mark.filterwarnings("ignore:encoder")
def test_left_loses_the_beginning_of_the_prompt_but_its_first_token():
    encoder, names, target = cut("left", 6)
    assert names == ["<s>", "sat", "on", "a", "mat", "</s>"]
    assert target == [False] * 2 + [True] * 4
    assert encoder.truncation.num_truncated == 1
    assert cut("left", 3)[1:] == (["<s>", "mat", "</s>"], [False, True, True])
    # Without a token that begins every text the first token that is left has nothing before it, so it is no target.
    assert cut("left", 3, tokenizer=words())[1:] == (["a", "mat", "</s>"], [False, True, True])


@pytest.mark.filterwarnings("ignore:encoder")
def test_a_conversation_is_cut_alike():
    tokenizer = byte_pairs()
    tokenizer.chat_template = CHAT
    whole = Encoder(tokenizer, max_length=100).demos(PROMPTS, RESPONSES)
    length = int(whole.lengths.min()) - 2
    for mode, expected in (("right", slice(0, length)), ("left", slice(-length, None))):
        encoder = Encoder(tokenizer, max_length=length, truncation=mode)
        tokens = encoder.demos(PROMPTS, RESPONSES)
        for b in range(2):
            row, target = whole.ids[b][whole.mask[b]][expected], whole.target[b][whole.mask[b]][expected]
            assert tokens.ids[b].tolist() == row.tolist()
            assert tokens.target[b].tolist() == target.tolist()
        assert encoder.truncation.num_truncated == 2
    with pytest.raises(BudgetError, match="longer than max_length"):
        Encoder(tokenizer, max_length=length).demos(PROMPTS, RESPONSES)


def test_it_is_said_once_and_counted():
    encoder = Encoder(words(), max_length=4, truncation="right")
    with pytest.warns(
        UserWarning, match=r"^encoder: a row of 7 tokens is longer than max_length 4 and loses its end \(truncation: right\); num_"
    ) as w:
        encoder.demos(["the cat sat"] * 3, ["on a mat"] * 3)
    assert len([x for x in w if "encoder" in str(x.message)]) == 1
    assert encoder.truncation.num_truncated == 3


def test_modes_are_named():
    with pytest.raises(
        ConfigError, match=r"^model\.options\.truncation: no mode 'rigth'\. Known: error, left, right\. Did you mean 'right'\?$"
    ):
        Encoder(words(), truncation="rigth")


# ------------------------------------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize("mode", [None, "error", "right", "left"])
def test_a_rollout_is_never_trained_in_part(mode):
    encoder = Encoder(words(), max_length=6, truncation=mode)
    assert encoder.rollouts([group([6, 7], [8, 9, 10, 11])]).ids.tolist() == [[6, 7, 8, 9, 10, 11]]
    with pytest.raises(
        BudgetError, match=r"a prompt of 2 tokens and a sampled response of 5 are longer than max_length 6, and what was rew"
    ):
        encoder.rollouts([group([6, 7], [8, 9, 10, 11, 12])])
    # What only looks at them reads as much as there is room for.
    assert encoder.rollouts([group([6, 7], [8, 9, 10, 11, 12])], whole=False).ids.tolist() == [[6, 7, 8, 9, 10, 11]]


@pytest.mark.filterwarnings("ignore:encoder")
def test_a_prompt_loses_its_beginning_before_responses_are_sampled():
    tokenizer = words("bos")
    encoder = Encoder(tokenizer, max_length=6, truncation="left")
    assert tokenizer.convert_ids_to_tokens(encoder.prompts(["the cat sat on a mat"], room=3)[0]) == ["<s>", "a", "mat"]
    assert encoder.truncation.num_truncated == 1
    assert len(encoder.prompts(["the cat"], room=3)[0]) == 3
    with pytest.raises(BudgetError, match=r"max_new_tokens 6 leaves no room for a prompt in max_length 6"):
        encoder.prompts(["the cat sat on a mat"], room=6)
    assert len(Encoder(tokenizer, max_length=6).prompts(["the cat sat on a mat"], room=3)[0]) == 7  # refused where its row is made


# ----------------------------------------------------------------------------------------------- texts and models


@pytest.mark.filterwarnings("ignore:encoder")
@pytest.mark.parametrize(("side", "mode"), [("right", None), ("left", None), ("right", "left"), ("left", "right")])
@pytest.mark.parametrize("make", [word_pieces, in_python], ids=["word_pieces", "python"])
def test_texts_are_cut_as_the_pipeline_cuts_them(make, side, mode):
    tokenizer = make()
    tokenizer.truncation_side = mode or side
    text, pair = "the cat sat on a mat", "so good"
    expected = [tokenizer(text, second, truncation=True, max_length=8)["input_ids"] for second in (None, pair)]
    tokenizer.truncation_side = side
    encoder = Encoder(tokenizer, max_length=8, bidirectional=True, truncation=mode)
    assert encoder.classify([text]).ids.tolist() == [expected[0]]
    assert encoder.classify([text, "the"], [pair, None]).ids[0].tolist() == expected[1]
    assert encoder.truncation.num_truncated >= 1


def test_texts_are_refused_on_request():
    encoder = Encoder(word_pieces(), max_length=100, bidirectional=True, truncation="error", positions=6)
    sentence = (
        r"^encoder: a text of 8 tokens is longer than max_length 100 and the model's 6 positions; shorten the text, or give options: "
        r"\{truncation: left\} or \{truncation: right\}\.$"
    )
    with pytest.raises(BudgetError, match=sentence):
        encoder.classify(["the cat", "the cat sat on a mat"])


@pytest.mark.filterwarnings("ignore:encoder")
def test_a_sampled_text_that_is_too_long_for_its_scorer_loses_its_end_and_a_pair_is_refused():
    tokenizer = byte_pairs("")
    encoder = Encoder(tokenizer, max_length=6)
    whole = Encoder(tokenizer, max_length=64).scored_pairs(["the cat"], ["sat on the mat sat on the mat"], [True])
    with pytest.warns(UserWarning, match=r"num_truncated"):
        tokens = encoder.scored_pairs(["the cat"], ["sat on the mat sat on the mat"], [True])
    assert tokens.ids.tolist() == whole.ids[:, :6].tolist()
    assert tokens.target.tolist() == whole.target[:, :6].tolist()
    assert encoder.truncation.num_truncated == 1
    with pytest.raises(BudgetError, match="are longer than max_length 6"):
        encoder.scored_pairs(["the cat"], ["sat on the mat sat on the mat"], [True], sampled=False)
    with pytest.raises(BudgetError, match="are longer than max_length 6"):
        Encoder(tokenizer, max_length=6, truncation="error").scored_pairs(["the cat"], ["sat on the mat sat on the mat"], [True])


def test_a_scored_text_that_lost_its_end_is_not_closed():
    encoder = Encoder(word_pieces(), max_length=8, bidirectional=True)
    separator = encoder.tokenizer.sep_token_id
    short, long = "red", "the cat sat on a mat"
    tokens = encoder.scored_pairs(["hello", "hello"], [short, long], [True, True])
    assert tokens.ids[0][tokens.mask[0]].tolist()[-1] == separator
    assert tokens.ids[1][tokens.mask[1]].tolist()[-1] != separator
    unfinished = encoder.scored_pairs(["hello"], [long], [False])
    assert unfinished.ids[0].tolist() == tokens.ids[1][tokens.mask[1]].tolist()


@pytest.mark.filterwarnings("ignore:encoder", "ignore:model")
@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_m8_a_long_text_for_a_classifier(name, tmp_path):
    tokenizer = word_pieces(model_max_length=10**9)
    torch.manual_seed(0)
    options = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 34, "pad_token_id": 0 if name == "Bert" else 1}
    config = getattr(transformers, f"{name}Config")(**options)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    network = load(saved(tmp_path, model, tokenizer), dtype="float64", max_length=512)
    limit = 34 if name == "Bert" else 32  # RoBERTa counts from padding_idx + 1 = 2
    assert network.encoder.max_length == limit
    text = " ".join(["the cat sat on a mat"] * 60)
    batch = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    columns = {k: v for k, v in batch.items() if k != "token_type_ids" or name == "Bert"}
    with torch.no_grad():
        expected = model.double()(**columns).logits
        logits = network.eval()(network.encoder.classify([text]), {"class_logits"}).class_logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert network.encoder.truncation.num_truncated == 1


@pytest.mark.filterwarnings("ignore:encoder")
def test_m8_a_long_demonstration_for_gpt2(tmp_path):
    tokenizer = byte_pairs()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    folder = saved(tmp_path, transformers.AutoModelForCausalLM.from_config(config), tokenizer)
    text = " ".join(["the cat sat on a mat"] * 60)
    with pytest.raises(BudgetError, match=r"are longer than max_length 512 and the model's 64 positions; shorten them"):
        load(folder).encoder.demos(["hello"], [text])
    network = load(folder, options={"truncation": "right"})
    tokens = network.encoder.demos(["hello"], [text])
    assert tokens.ids.shape == (1, 64)
    assert tokenizer.eos_token_id not in tokens.ids
    assert network(tokens, {"logprobs"}).logprobs.isfinite().all()
    network.save_pretrained(tmp_path / "again")
    assert load(str(tmp_path / "again")).encoder.truncation.mode == "right"


def test_m9_a_tokenizer_with_more_ids_than_rows(tmp_path):
    tokenizer = words()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=64)
    model = transformers.AutoModelForCausalLM.from_config(config)
    size = len(tokenizer)
    tokenizer.add_tokens(["brand", "new"])
    folder = saved(tmp_path, model, tokenizer)
    with pytest.raises(ConfigError, match=rf"^model: the tokenizer has {size + 2} ids and the embedding of '.*' {size} rows; give"):
        load(folder)
    network = load(folder, options={"resize_token_embeddings": {"mean_resizing": False}})
    tokens = network.encoder.demos(["the cat"], ["brand new"])
    assert tokens.ids.max() == size + 1
    assert network(tokens, {"logprobs"}).logprobs[tokens.target].isfinite().all()
    network.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again.get_input_embeddings().weight, network.model.get_input_embeddings().weight)


@pytest.mark.parametrize("length", [16, 10**30])
@pytest.mark.filterwarnings("ignore:encoder")
def test_e13_a_classifier_is_cut_where_the_pipeline_cuts(length, tmp_path):
    tokenizer = word_pieces(model_max_length=length)
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=40)
    folder = saved(tmp_path, transformers.AutoModelForSequenceClassification.from_config(config), tokenizer)
    network = load(folder)
    assert network.encoder.max_length == min(length, 40)
    text = " ".join(["the cat sat on a mat"] * 20)
    logits = network.eval()(network.encoder.classify([text]), {"class_logits"}).class_logits
    pipeline = transformers.pipeline("text-classification", model=folder, truncation=True, **({} if length == 16 else {"max_length": 40}))
    scores = {row["label"]: row["score"] for row in pipeline(text, top_k=None)}
    assert logits.softmax(1)[0].tolist() == pytest.approx([scores[f"LABEL_{k}"] for k in range(2)], abs=1e-6)


@pytest.mark.filterwarnings("ignore:encoder")
@pytest.mark.parametrize("pair", [None, "red [SEP] so"])
def test_the_token_types_are_the_tokenizer_s(pair, tmp_path):
    tokenizer = word_pieces()
    torch.manual_seed(0)
    config = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=40)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval().double()
    network = load(saved(tmp_path, model, tokenizer), dtype="float64").eval()
    network.encoder = network.encoder.with_length(40, special_tokens_in_text="tokens")  # so the separator is one, in the text too
    text = "the cat [SEP] sat on"
    batch = tokenizer(text, pair, return_tensors="pt")
    assert (batch["input_ids"] == tokenizer.sep_token_id).sum() > 1
    with torch.no_grad():
        logits = network(network.encoder.classify([text], None if pair is None else [pair]), {"class_logits"}).class_logits
        torch.testing.assert_close(logits, model(**batch).logits, rtol=0, atol=1e-12)
