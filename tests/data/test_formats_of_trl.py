"""Every format of TRL 1.16 that is a conversation: the rows of our sources are those that TRL's own trainers prepare."""

from types import SimpleNamespace

import pytest
from helpers import tokenizer_kinds
from helpers.context import FakeContext

from advalign import data
from advalign.errors import ConfigError
from advalign.models.encode import Encoder
from advalign.sources import Demos, Feedback, Labels, Pairs
from advalign.types.messages import Conversation, as_read

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")

GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>\n\n{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
TEMPLATES = {"ChatML": tokenizer_kinds.CHAT, "ChatML with bos": tokenizer_kinds.CHAT_WITH_BOS, "headers": HEADERS, "generation": GENERATION}

ARGUMENTS = {"SFT": (False, None), "DPO": (), "KTO": (), "Reward": ()}
"""What `_prepare_dataset` takes between its configuration and the name of the data: packing and a formatting function."""

SYSTEM, HELLO = {"role": "system", "content": "be polite"}, {"role": "user", "content": "hello"}
YOU, COLOR = {"role": "assistant", "content": "hello you"}, {"role": "user", "content": "say a color"}
RED, MAT = {"role": "assistant", "content": "red"}, {"role": "assistant", "content": "the mat so red"}
PROMPTS = {"one turn": [COLOR], "system": [SYSTEM, COLOR], "several turns": [SYSTEM, HELLO, YOU, COLOR]}


@pytest.fixture(params=TEMPLATES)
def tokenizer(request):
    return tokenizer_kinds.byte_pairs(chat_template=TEMPLATES[request.param])


@pytest.fixture(params=PROMPTS)
def prompt(request):
    return PROMPTS[request.param]


def prepared(kind, row, tokenizer, tmp_path, **options):
    """The rows that a trainer of TRL makes of one row of data, without a model around it."""
    trainer, config = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    args = config(str(tmp_path), max_length=None, use_cpu=True, bf16=False, **options)
    own = {"_tokenizer": tokenizer, "chat_template": None, "completion_only_loss": "prompt" in row, "calculate_KL": False}
    own |= {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    return trainer._prepare_dataset(
        SimpleNamespace(**own), datasets.Dataset.from_list([row] * 2), tokenizer, args, *ARGUMENTS[kind], "train"
    )


def built(source, tokenizer):
    """(ids, numbers of the target tokens) of every row of a source."""
    runtime = source.start(FakeContext(), "s")
    tokens = source.build(list(runtime.examples), Encoder(tokenizer)).tokens
    return [(ids[mask].tolist(), target.nonzero().flatten().tolist()) for ids, mask, target in zip(tokens.ids, tokens.mask, tokens.target)]


def places(mask):
    return [i for i, m in enumerate(mask) if m]


def test_prompt_and_completion(tokenizer, prompt, tmp_path):
    row = {"prompt": prompt, "completion": [MAT]}
    theirs = prepared("SFT", row, tokenizer, tmp_path)[0]
    assert built(Demos(data=[row]), tokenizer) == [(theirs["input_ids"], [i for i, label in enumerate(theirs["labels"]) if label != -100])]


def test_language_modelling(tokenizer, prompt, tmp_path):
    """The ids are TRL's; TRL's loss is on all of them, ours on the last turn, as TRL's on a prompt and a completion."""
    theirs = prepared("SFT", {"messages": [*prompt, MAT]}, tokenizer, tmp_path)[0]
    ((ids, target),) = built(Demos(data=[{"messages": [*prompt, MAT]}]), tokenizer)
    assert ids == theirs["input_ids"]
    assert built(Demos(data=[{"prompt": prompt, "completion": [MAT]}]), tokenizer) == [(ids, target)]


def test_all_turns_of_the_assistant(tmp_path):
    """Where the template marks what the assistant generates: TRL's assistant_only_loss."""
    tokenizer, messages = tokenizer_kinds.byte_pairs(chat_template=GENERATION), [SYSTEM, HELLO, YOU, COLOR, MAT]
    theirs = prepared("SFT", {"messages": messages}, tokenizer, tmp_path, assistant_only_loss=True)[0]
    (example,) = data.examples([{"messages": messages}])
    tokens = Encoder(tokenizer).demos([example.prompt], [example.meta["response"]], assistant_turns="all")
    assert tokens.ids[0].tolist() == theirs["input_ids"]
    assert places(tokens.target[0]) == [i for i, label in enumerate(theirs["labels"]) if label != -100]


@pytest.mark.parametrize("explicit", [True, False])
def test_preferences(tokenizer, prompt, tmp_path, explicit):
    explicit_row = {"prompt": prompt, "chosen": [MAT], "rejected": [RED]}
    row = explicit_row if explicit else {"chosen": [*prompt, MAT], "rejected": [*prompt, RED]}
    theirs = prepared("DPO", row, tokenizer, tmp_path)[0]
    for (ids, target), side in zip(built(Pairs(data=[row]), tokenizer), ("chosen_ids", "rejected_ids"), strict=True):
        assert ids == theirs["prompt_ids"] + theirs[side]
        assert target == list(range(len(theirs["prompt_ids"]), len(ids)))
    rewarded = prepared("Reward", row, tokenizer, tmp_path)[0]
    assert [ids for ids, _ in built(Pairs(data=[row]), tokenizer)] == [rewarded["chosen_ids"], rewarded["rejected_ids"]]


@pytest.mark.parametrize("form", ["unpaired", "paired", "implicit"])
def test_feedback(tokenizer, prompt, tmp_path, form):
    rows = {
        "unpaired": {"prompt": prompt, "completion": [MAT], "label": True},
        "paired": {"prompt": prompt, "chosen": [MAT], "rejected": [RED]},
        "implicit": {"chosen": [*prompt, MAT], "rejected": [*prompt, RED]},
    }
    theirs = prepared("KTO", rows[form], tokenizer, tmp_path)
    theirs = sorted((r["label"], r["prompt_ids"] + r["completion_ids"], len(r["prompt_ids"])) for r in theirs)
    source = Feedback(data=[rows[form]] * 2)
    labels = [e.label == 1 for e in source.start(FakeContext(), "s").examples]
    ours = sorted((label, ids, min(target)) for label, (ids, target) in zip(labels, built(source, tokenizer), strict=True))
    assert ours == theirs


def test_prompts_alone(tokenizer, prompt):
    row = {"prompt": prompt}
    (example,) = data.examples([row])
    assert as_read(example.prompt) == prompt
    text = trl.apply_chat_template(row, tokenizer)["prompt"]
    assert Encoder(tokenizer).prompts([example.prompt]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_a_prompt_that_ends_with_the_assistant_is_continued(tokenizer):
    row = {"prompt": [COLOR, {"role": "assistant", "content": "so"}]}
    (example,) = data.examples([row])
    text = trl.apply_chat_template(row, tokenizer)["prompt"]
    assert Encoder(tokenizer).prompts([example.prompt]) == [tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([COLOR, MAT], [COLOR, RED]),
        ([SYSTEM, HELLO, YOU, COLOR, MAT], [SYSTEM, HELLO, YOU, COLOR, RED]),
        ([COLOR, YOU, HELLO, MAT], [COLOR, MAT, HELLO, RED]),
        ([COLOR, MAT, HELLO, RED], [COLOR, MAT]),
    ],
)
def test_the_prompt_of_a_preference_is_that_of_trl(chosen, rejected):
    theirs = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
    (example,) = data.examples([{"chosen": chosen, "rejected": rejected}])
    ours = {"prompt": example.prompt, **{side: example.meta[side] for side in ("chosen", "rejected")}}
    read = {name: as_read(Conversation(v)) if isinstance(v, tuple) else as_read(v) for name, v in ours.items()}
    sides = ("chosen", "rejected")
    assert read == theirs | {side: theirs[side][0]["content"] for side in sides if isinstance(ours[side], str)}
    assert all(len(theirs[side]) == 1 for side in sides if isinstance(ours[side], str))


def test_a_prompt_beside_conversations_that_hold_it():
    """Some data sets have the prompt as a text beside the whole conversations; TRL takes it out of them."""
    row = {"prompt": "say a color", "chosen": [SYSTEM, COLOR, MAT], "rejected": [SYSTEM, COLOR, RED]}
    theirs = trl.maybe_extract_prompt(row)
    (example,) = data.examples([row])
    assert as_read(example.prompt) == theirs["prompt"] == [SYSTEM, COLOR]
    assert (example.meta["chosen"], example.meta["rejected"]) == ("the mat so red", "red")


def test_messages_by_the_names_from_and_value(tokenizer, tmp_path):
    """As TRL's maybe_convert_to_chatml; the role names of ShareGPT (human, gpt) become those that templates know."""
    row = {"conversations": [{"from": "user", "value": "say a color"}, {"from": "assistant", "value": "red"}]}
    theirs = prepared("SFT", row, tokenizer, tmp_path)[0]
    ((ids, _),) = built(Demos(data=[row]), tokenizer)
    assert ids == theirs["input_ids"]
    shared = {"conversations": [{"from": "human", "value": "say a color"}, {"from": "gpt", "value": "red"}]}
    assert built(Demos(data=[shared]), tokenizer) == built(Demos(data=[row]), tokenizer)


def test_messages_that_do_not_end_with_the_assistant_demonstrate_nothing():
    with pytest.raises(ConfigError, match=r"sources\.s: row '1' has no response"):
        Demos(data=[{"messages": [SYSTEM, COLOR]}]).start(FakeContext(), "s")


def test_conversations_out_of_every_file(tmp_path):
    """Nulls that a table puts into messages (Parquet gives every message the same keys) are left out."""
    messages = [COLOR | {"name": "me"}, RED]
    table = datasets.Dataset.from_list([{"messages": messages}])
    table.to_parquet(str(tmp_path / "d.parquet"))
    table.to_json(str(tmp_path / "d.jsonl"))
    table.save_to_disk(str(tmp_path / "d"))
    for name in ("d.parquet", "d.jsonl", "d"):
        (example,) = data.examples(str(tmp_path / name))
        assert as_read(example.prompt) == [COLOR | {"name": "me"}]
        assert example.meta["response"] == "red"


def test_a_tokenizer_is_built_from_what_messages_say():
    row = {"prompt": [SYSTEM, COLOR], "chosen": [RED], "rejected": [YOU, COLOR, MAT]}
    texts = [
        "system",
        "be polite",
        "user",
        "say a color",
        "red",
        "assistant",
        "hello you",
        "user",
        "say a color",
        "assistant",
        "the mat so red",
    ]
    assert data.texts([row]) == texts


@pytest.mark.parametrize("row", [{"messages": [SYSTEM, COLOR, MAT]}, {"prompt": [SYSTEM, COLOR], "completion": [MAT]}])
def test_a_classifier_reads_whole_conversations(tokenizer, row):
    source = Labels(data=[row | {"label": 1}])
    (example,) = source.start(FakeContext(), "s").examples
    assert as_read(example.prompt) == [SYSTEM, COLOR, MAT]
    tokens = source.build([example], Encoder(tokenizer)).tokens
    assert tokens.ids[0].tolist() == tokenizer.apply_chat_template([SYSTEM, COLOR, MAT], return_dict=False)


# ------------------------------------------------------------------------------------------------------------ texts

TOKENIZERS = {
    f"{make} {adds}".strip(): getattr(tokenizer_kinds, make)(adds) for make in ("byte_pairs", "pieces", "words") for adds in ("", "bos")
}


@pytest.fixture(params=TOKENIZERS)
def plain(request):
    """A tokenizer without a chat template."""
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("row", [{"text": "the cat sat on a mat"}, {"prompt": "the cat sat", "completion": " on a mat"}])
def test_texts_and_completions(plain, tmp_path, row):
    theirs = prepared("SFT", row, plain, tmp_path)[0]
    targets = [i for i, label in enumerate(theirs["labels"]) if label != -100 and i > 0]  # nothing predicts the first token
    assert built(Demos(data=[row]), plain) == [(theirs["input_ids"], targets)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "the cat sat", "chosen": " on a mat", "rejected": " on you"},
        {"chosen": "the cat sat on a mat", "rejected": "the cat sat on you"},
        {"chosen": "say a color red", "rejected": "say a color great"},
        {"chosen": "hello you be polite", "rejected": "hello you be good"},  # differ at the beginning of a word
        {"chosen": "the movie so good", "rejected": "the movie so great"},  # inside a word
        {"chosen": "say a mat", "rejected": "say a movie"},
        {"chosen": "the cat sat", "rejected": "the cat sat on a mat"},  # one is the beginning of the other
        {"chosen": "hello you", "rejected": "say red"},  # no common beginning
        {"chosen": "good movie", "rejected": "great movie"},  # inside the first word
    ],
)
def test_preferences_between_texts(plain, tmp_path, row):
    """DPO takes one prompt for both sides, KTO each side's own; rows and targets are theirs."""
    theirs = prepared("DPO", row, plain, tmp_path)[0]
    for (ids, target), side in zip(built(Pairs(data=[row]), plain), ("chosen_ids", "rejected_ids"), strict=True):
        assert ids == theirs["prompt_ids"] + theirs[side]
        assert target == list(range(max(len(theirs["prompt_ids"]), 1), len(ids)))
    rewarded = prepared("Reward", row, plain, tmp_path)[0]
    assert [ids for ids, _ in built(Pairs(data=[row]), plain)] == [rewarded["chosen_ids"], rewarded["rejected_ids"]]
    unpaired = {r["label"]: r["prompt_ids"] + r["completion_ids"] for r in prepared("KTO", row, plain, tmp_path)}
    assert [ids for ids, _ in built(Feedback(data=[row]), plain)] == [unpaired[True], unpaired[False]]


def test_a_word_of_one_side_that_goes_on_in_the_other(plain, tmp_path):
    """ "the cat" + " sat" and "s": pieces read "s" alone as " s", so the sides begin a word earlier than TRL's, with the same tokens."""
    row = {"chosen": "the cat sat", "rejected": "the cats"}
    theirs = prepared("DPO", row, plain, tmp_path)[0]
    for (ids, target), side in zip(built(Pairs(data=[row]), plain), ("chosen_ids", "rejected_ids"), strict=True):
        assert ids == theirs["prompt_ids"] + theirs[side]
        assert set(range(max(len(theirs["prompt_ids"]), 1), len(ids))) <= set(target)


def test_an_empty_side_without_a_prompt_is_refused():
    with pytest.raises(ConfigError, match=r"row 1: rejected is empty, and there is no prompt"):
        data.examples([{"chosen": "red", "rejected": ""}])
