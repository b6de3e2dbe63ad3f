"""Conversations under chat templates: token for token what `apply_chat_template` gives, and who wrote which token."""

import copy

import pytest
from helpers.chat_templates import SHAPES, TEMPLATES, TOOL, chat_tokenizer, turn

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
            spans.append((prefix(self.ids(i, add_generation_prompt=True), whole), len(end)))
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
