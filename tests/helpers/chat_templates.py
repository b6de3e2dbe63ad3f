"""Chat templates in the manner of those that people use, and one byte-level tokenizer that has all their tokens."""

# ruff: noqa: E501

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATML_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}" + CHATML

CHATML_GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] or '' }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] or '' }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|eot_id|>{% endif %}{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
    "{% if 'tool_calls' in m %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

MISTRAL = (
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{%- for m in turns %}{% if m.role == 'user' %}"
    "{% if tools and loop.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% if loop.last and system is defined %}[INST] {{ system }}\n\n{{ m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
    "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% endif %}{% endfor %}"
)

QWEN3 = (
    "{%- if tools %}<|im_start|>system\n{{ (messages[0].content + '\n\n') if messages[0].role == 'system' else '' }}# Tools\n"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{%- elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{%- set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{%- for m in messages %}{% set content = m.content if m.content is string else '' %}"
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n"
    "{%- elif m.role == 'assistant' %}{% set thought = '' %}"
    "{%- if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "<|im_start|>assistant\n<think>\n{{ thought.strip('\n') }}\n</think>\n\n{{ content.lstrip('\n') }}"
    "{%- else %}<|im_start|>assistant\n{{ content }}{% endif %}"
    "{%- for c in m.tool_calls or [] %}\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{%- elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ content }}\n</tool_response><|im_end|>\n{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)

PHI = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}<|system|>\n{{ m['content'] }}<|end|>\n"
    "{% elif m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n"
    "{% elif m['role'] == 'assistant' %}<|assistant|>\n{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' and m.content is none %}<｜Assistant｜><｜tool▁calls▁begin｜>"
    "{% for c in m.tool_calls %}{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    "{% elif m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1] %}<｜Assistant｜>{{ content }}<｜end▁of▁sentence｜>"
    "{% elif m.role == 'tool' %}<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)

TEMPLATES = {  # name: (template, bos, eos)
    "chatml": (CHATML, None, "<|im_end|>"),
    "chatml_system": (CHATML_SYSTEM, None, "<|im_end|>"),
    "chatml_generation": (CHATML_GENERATION, None, "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (GEMMA, "<bos>", "<eos>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "qwen3": (QWEN3, None, "<|im_end|>"),
    "phi": (PHI, None, "<|endoftext|>"),
    "deepseek": (DEEPSEEK, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}

SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<bos>", "<eos>"),
    *("<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>", "<｜User｜>"),
    *("<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    *("<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<pad>"),
)
CORPUS = (
    "system be polite user hello assistant hello you say a color red the weather of a place is sunny in rome what is it like "
    "You are a helpful assistant. think tool_call tool_response name arguments I should look it up"
)


@lru_cache
def _core() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator([CORPUS] * 4, BpeTrainer(vocab_size=480, special_tokens=list(SPECIAL), initial_alphabet=alphabet))
    return core.to_str()


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the chat template `name` of `TEMPLATES`."""
    template, bos, eos = TEMPLATES[name]
    named = {"eos_token": eos, "pad_token": "<pad>"} | ({} if bos is None else {"bos_token": bos})
    others = [token for token in SPECIAL if token not in named.values()]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_core()), additional_special_tokens=others, **named)
    tokenizer.chat_template = template
    return tokenizer


def turn(role: str, content: str | list | None, **more: object) -> dict:
    """A message."""
    return {"role": role, "content": content} | more


CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"place": "rome"}}}
SHAPES = {  # name: messages, of which the last is the assistant's
    "one turn": [turn("user", "say a color"), turn("assistant", "red")],
    "system": [turn("system", "be polite"), turn("user", "say a color"), turn("assistant", "red")],
    "two turns": [turn("user", "hello"), turn("assistant", "hello you"), turn("user", "say a color"), turn("assistant", "red")],
    "system and two turns": [
        *(turn("system", "be polite"), turn("user", "hello"), turn("assistant", "hello you")),
        *(turn("user", "say a color"), turn("assistant", "red")),
    ],
    "role words as content": [turn("user", "user"), turn("assistant", "assistant"), turn("user", "system"), turn("assistant", "user")],
    "parts": [turn("user", [{"type": "text", "text": "say "}, {"type": "text", "text": "a color"}]), turn("assistant", "red")],
    "tools": [
        *(turn("user", "weather in rome"), turn("assistant", None, tool_calls=[CALL])),
        *(turn("tool", "sunny", name="weather", tool_call_id="call00001"), turn("assistant", "it is sunny")),
    ],
    "white space": [turn("user", "  say a color\n\n"), turn("assistant", "\n red \n")],
    "thinking": [
        *(turn("user", "hello"), turn("assistant", "<think>\nhello you\n</think>\n\nhello")),
        *(turn("user", "say a color"), turn("assistant", "<think>\nI should look it up\n</think>\n\nred")),
    ],
    "other alphabets": [turn("user", "dis une couleur 🌈"), turn("assistant", "紅 – très joli")],
}
