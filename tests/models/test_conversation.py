"""Conversations under chat templates: token for token what `apply_chat_template` gives, and who wrote which token."""

import copy
import json

import pytest
from helpers.chat_templates import SHAPES, TEMPLATES, TOOL, chat_tokenizer, turn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from advalign.errors import ConfigError
from advalign.models import Encoder
from advalign.types import Conversation
from advalign.types.messages import ROLES, as_response, conversation

CASES = [(template, shape) for template in TEMPLATES for shape in SHAPES]
OWN_MASK = "chatml_generation"  # its template marks what the assistant generates


def plain(messages):
    """As a template without parts reads them; None is no text."""
    read = copy.deepcopy(messages)
    for message in read:
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
    return read


def prefix(first, second):
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


class Theirs:
    """The same rows by transformers alone."""

    def __init__(self, name, messages, tools=None):
        self.name = name
        self.tokenizer, self.messages, self.options = chat_tokenizer(name), plain(messages), {"return_dict": False, "tools": tools}
        if name.startswith(("chatml", "gemma", "phi", "llama")):  # they print None; transformers leaves that to the user
            for message in self.messages:
                message["content"] = message["content"] or ""

    def ids(self, number=None, **options):
        return self.tokenizer.apply_chat_template(self.messages[:number], **self.options, **options)

    def spans(self, turns):
        """Token spans of the assistant's turns by prefix differences; None where the template rewrites an earlier turn."""
        whole, spans = self.ids(), []
        for i, message in enumerate(self.messages):
            if message["role"] != "assistant" or (turns == "last" and i < len(self.messages) - 1):
                continue
            end = self.ids(i + 1) if i < len(self.messages) - 1 else whole
            if whole[: len(end)] != end:
                return None
            start = self.ids(i, add_generation_prompt=True)
            if self.name == "mistral" and self.messages[0]["role"] == "system":
                # the system prompt is in front of a user's turn that is the last message, else nowhere; responses follow [/INST]
                start = whole[: len(end) - end[::-1].index(self.tokenizer.convert_tokens_to_ids("[/INST]"))]
            spans.append((prefix(start, whole), len(end)))
        return spans


def accepts(theirs):
    try:
        theirs.ids()
    except Exception:  # what a template raises
        return False
    return True


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_tokens_are_those_of_the_template(name, shape):
    theirs, encoder = Theirs(name, SHAPES[shape]), Encoder(chat_tokenizer(name))
    prompt, response = conversation(SHAPES[shape][:-1]), SHAPES[shape][-1]["content"]
    if not accepts(theirs):
        with pytest.raises(
            ConfigError, match=r"^chat_template: it refuses a conversation of user|^chat_template: it refuses a conversation"
        ):
            encoder.demos([prompt], [response])
        return
    assert encoder.prompt(prompt) == theirs.ids(-1, add_generation_prompt=True)
    tokens = encoder.demos([prompt], [response])
    whole = theirs.ids()
    assert tokens.ids[0].tolist() == whole
    (span,) = theirs.spans("last")
    expected = [span[0] <= t < span[1] for t in range(len(whole))]
    if name == OWN_MASK:
        expected = marked(theirs, expected)
    assert tokens.target[0].tolist() == expected


def marked(theirs, allowed):
    """The template's own mask, of the positions that are allowed."""
    mask = theirs.tokenizer.apply_chat_template(theirs.messages, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
    return [bool(m) and a for m, a in zip(mask, allowed, strict=True)]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_all_turns_of_the_assistant_are_targets_or_a_rewriting_template_is_refused(name, shape):
    theirs, encoder = Theirs(name, SHAPES[shape]), Encoder(chat_tokenizer(name))
    if not accepts(theirs):
        return
    prompt, response = conversation(SHAPES[shape][:-1]), SHAPES[shape][-1]["content"]
    spans = theirs.spans("all")
    if spans is None:
        with pytest.raises(ConfigError, match=r"^chat_template: it writes message \d otherwise once others follow"):
            encoder.demos([prompt], [response], assistant_turns="all")
        return
    tokens = encoder.demos([prompt], [response], assistant_turns="all")
    expected = [any(a <= t < b for a, b in spans) for t in range(len(tokens.ids[0]))]
    if name == OWN_MASK:
        expected = marked(theirs, [True] * len(expected))
    assert tokens.target[0].tolist() == expected


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_contents_belong_to_their_roles(name, shape):
    """Tokens of a role, decoded, are the contents of its messages; what the template writes belongs to nobody."""
    theirs, encoder = Theirs(name, SHAPES[shape]), Encoder(chat_tokenizer(name))
    if not accepts(theirs):
        return
    tokens = encoder.demos([conversation(SHAPES[shape][:-1])], [SHAPES[shape][-1]["content"]])
    rendered = theirs.tokenizer.decode(tokens.ids[0])
    for number, message in enumerate(plain(SHAPES[shape])):
        written = tokens.ids[0][tokens.turn[0] == number]
        content = (message["content"] or "").strip()
        if content in rendered and (name, message["role"]) != ("phi", "tool"):  # not where the template rewrites it, or leaves it out
            assert theirs.tokenizer.decode(written).strip() == content
        roles = set(tokens.role[0][tokens.turn[0] == number].tolist())
        assert roles <= {ROLES.index(message["role"])}


@pytest.mark.parametrize("name", ["llama3", "mistral", "qwen3"])
def test_tools_and_arguments_reach_the_template(name):
    theirs = Theirs(name, SHAPES["tools"], tools=[TOOL])
    encoder = Encoder(theirs.tokenizer)
    prompt = conversation(SHAPES["tools"][:1], tools=[TOOL])
    assert encoder.prompt(prompt) == theirs.ids(1, add_generation_prompt=True)
    if name == "qwen3":  # an assistant's turn has an empty thought only while nothing follows it
        with pytest.raises(ConfigError, match="rewrites earlier turns"):
            encoder.demos([prompt], [as_response(conversation(SHAPES["tools"][1:]).messages)])
        return
    whole = encoder.demos([prompt], [as_response(conversation(SHAPES["tools"][1:]).messages)])
    assert whole.ids[0].tolist() == theirs.ids()
    targets = theirs.tokenizer.decode(whole.ids[0][whole.target[0]])
    assert "rome" in targets
    assert targets.count("sunny") == 1  # the result of the tool is not a target


def test_template_arguments_of_the_model_and_of_the_row():
    tok = chat_tokenizer("qwen3")
    messages = [turn("user", "say a color")]
    off = tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, enable_thinking=False)
    assert Encoder(tok, chat_template_kwargs={"enable_thinking": False}).prompt(conversation(messages)) == off
    assert Encoder(tok).prompt(conversation(messages, chat_template_kwargs={"enable_thinking": False})) == off
    assert Encoder(tok).prompt(conversation(messages)) != off


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "mistral"])
def test_an_assistant_s_message_at_the_end_is_continued(name):
    tok, messages = chat_tokenizer(name), [turn("user", "say a color"), turn("assistant", "the color is")]
    prompt = Encoder(tok).prompt(conversation(messages))
    assert prompt == tok.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    tokens = Encoder(tok).demos([conversation(messages)], [" red"])
    whole = tok.apply_chat_template([messages[0], turn("assistant", "the color is red")], return_dict=False)
    assert tokens.ids[0].tolist() == whole
    start = prefix(prompt, whole)
    assert tokens.target[0].tolist() == [t >= start for t in range(len(whole))]


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_special_token_that_a_user_writes_is_text(name):
    tok = chat_tokenizer(name)
    token = tok.eos_token
    prompt = conversation([turn("user", f"ignore {token} that")])
    ids = Encoder(tok).prompt(prompt)
    control = tok.apply_chat_template([turn("user", "ignore that")], add_generation_prompt=True, return_dict=False)
    assert ids.count(tok.eos_token_id) == control.count(tok.eos_token_id)
    assert tok.decode(ids).count(token) == control.count(tok.eos_token_id) + 1
    read = Encoder(tok, special_tokens_in_text="tokens").prompt(prompt)
    assert read == tok.apply_chat_template([turn("user", f"ignore {token} that")], add_generation_prompt=True, return_dict=False)


def test_an_assistant_without_text_is_not_the_word_none():
    tok = chat_tokenizer("chatml")
    ids = Encoder(tok).prompt(conversation(SHAPES["tools"][:3]))
    assert "None" not in tok.decode(ids)
    assert "rome" in tok.decode(ids)
    tok = chat_tokenizer("deepseek")  # it asks whether the content is none
    assert "tool▁calls▁begin" in tok.decode(Encoder(tok).prompt(conversation(SHAPES["tools"][:3])))


def test_messages_without_a_template_are_refused_with_what_to_do():
    tok = chat_tokenizer("chatml")
    tok.chat_template = None
    sentence = r"the prompts are messages, and the tokenizer has no chat template; give one with model\.options\.chat_template"
    with pytest.raises(ConfigError, match=sentence):
        Encoder(tok).prompt(conversation([turn("user", "hello")]))


def test_a_text_is_the_turn_of_a_user():
    tok = chat_tokenizer("llama3")
    assert Encoder(tok).prompt("say a color") == Encoder(tok).prompt(conversation([turn("user", "say a color")]))
    text, messages = (Encoder(tok).demos([p], ["red"]) for p in ("say a color", conversation([turn("user", "say a color")])))
    assert text.ids.tolist() == messages.ids.tolist()
    assert text.target.tolist() == messages.target.tolist()


@pytest.mark.parametrize("bad", [[], [{"role": "user", "content": [{"type": "image", "url": "x"}]}], [{"content": "x"}], [turn("user", 3)]])
def test_what_is_not_a_conversation_is_refused(bad):
    with pytest.raises(ConfigError, match=r"^prompt"):
        conversation(bad, path="prompt")


def test_a_conversation_is_a_key_and_prints_its_turns():
    first, second = (conversation(SHAPES["tools"][:3], tools=[TOOL]) for _ in range(2))
    assert first == second
    assert len({first, second}) == 1
    assert isinstance(first, Conversation)
    assert conversation(SHAPES["tools"][:3]) != first
    assert str(conversation(SHAPES["system"][:2])) == "system: be polite\nuser: say a color"


# Templates of which a beginning, rendered alone, is not what it is in the whole conversation, and what the last turn's target is.
DIALOGUE = [turn("user", "say a color"), turn("assistant", "red"), turn("user", "the cat"), turn("assistant", "sat")]
WRITES_OTHERWISE = {  # name: (template, messages, contents that are targets, what stands in front of the first target)
    "a system prompt in a last user's turn alone": (
        "{% set ns = namespace(s='') %}"
        "{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}{% elif m.role == 'user' %}"
        "[INST] {% if loop.last %}{{ ns.s }} {% endif %}{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
        [turn("system", "be polite"), *DIALOGUE],
        "sat</s>",
        "[/INST]",
    ),
    "a thought that only the prompt begins": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{{ m.content.split('</think>')[-1] }}</s>{% else %}"
        "<|im_end|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}",
        [*DIALOGUE[:-1], turn("assistant", "<think>\ncat\n</think>sat")],
        "sat</s>",
        "<|im_start|>",
    ),
}


@pytest.mark.parametrize("case", WRITES_OTHERWISE)
def test_no_word_of_another_turn_is_a_target_where_the_template_writes_the_prompt_otherwise(case):
    template, messages, target, front = WRITES_OTHERWISE[case]
    tokenizer = copy.deepcopy(chat_tokenizer("mistral"))
    tokenizer.chat_template = template
    tokens = Encoder(tokenizer).demos([conversation(messages[:-1])], [messages[-1]["content"]])
    ids, targets = tokens.ids[0], tokens.target[0]
    assert ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer.decode(ids[targets]).replace(" ", "") == target
    assert tokenizer.decode(ids[: targets.tolist().index(True)]).endswith(front)
    assert tokenizer.decode(ids[tokens.turn[0] == len(messages) - 1]).strip() == "sat"


def test_templates_by_name():
    """With tools the one called tool_use is taken, as by transformers; without a default the sentence names them."""
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
    plain_template = tokenizer.chat_template
    tokenizer.chat_template = {"default": plain_template, "tool_use": "{{ tools | tojson }}" + plain_template}
    for tools in (None, [TOOL]):
        expected = tokenizer.apply_chat_template(DIALOGUE[:1], tools=tools, add_generation_prompt=True, return_dict=False)
        assert Encoder(tokenizer).prompt(conversation(DIALOGUE[:1], tools=tools)) == expected
    tokenizer.chat_template = {"rag": plain_template, "tool_use": plain_template}
    with pytest.raises(
        ConfigError, match=r"^chat_template: the tokenizer has the templates .*rag.* and none called default; choose one with"
    ):
        Encoder(tokenizer).prompt(conversation(DIALOGUE[:1]))


@pytest.mark.parametrize("tools", [json.dumps([TOOL]), [json.dumps(TOOL)], (TOOL,)])
def test_tools_and_arguments_as_json_texts(tools):
    read = conversation(DIALOGUE[:1], tools=tools, chat_template_kwargs='{"enable_thinking": false}')
    assert read == conversation(DIALOGUE[:1], tools=[TOOL], chat_template_kwargs={"enable_thinking": False})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tools": "[{"}, r"^tools: '\[\{' is no JSON text: .*\.$"),
        ({"tools": TOOL}, r"^tools: .* is not a list of JSON schemas\.$"),
        ({"tools": [3]}, r"^tools\[0\]: 3 is not a mapping, nor the JSON text of one\.$"),
        ({"chat_template_kwargs": "[1]"}, r"^chat_template_kwargs: \[1\] is not a mapping, nor the JSON text of one\.$"),
    ],
)
def test_tools_and_arguments_that_are_none(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        conversation(DIALOGUE[:1], **fields)


def test_the_header_of_an_assistant_that_begins_the_conversation_is_no_target():
    tokenizer = chat_tokenizer("chatml")
    messages = [turn("assistant", "hello"), *DIALOGUE]
    tokens = Encoder(tokenizer).demos([conversation(messages[:-1])], ["sat"], assistant_turns="all")
    assert tokenizer.decode(tokens.ids[0][tokens.target[0]]).split() == "hello<|im_end|> red<|im_end|> sat<|im_end|>".split()


def test_line_breaks_that_are_other_tokens_alone_than_in_front_of_a_word():
    """Two line breaks at the end of a text are one token; in front of a word they are two."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special, alphabet = ["</s>", "<|im_start|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["a\n\n"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", additional_special_tokens=special[1:])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    )
    encoder = Encoder(tokenizer)
    prompt, whole = encoder.prompt(conversation(DIALOGUE[:-1])), tokenizer.apply_chat_template(DIALOGUE, return_dict=False)
    assert whole[: len(prompt)] != prompt
    tokens = encoder.demos([conversation(DIALOGUE[:-1])], ["sat"], assistant_turns="all")
    assert tokens.ids[0].tolist()[: len(whole)] == whole
    assert tokenizer.decode(tokens.ids[0][tokens.target[0]]) == "red\n\nsat\n\n</s>"
