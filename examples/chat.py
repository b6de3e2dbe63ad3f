"""A conversational JSONL and an instruct model from a folder: imitation, then GRPO, adversarial SFT on the user's last turn and a KL
penalty in one step; at the end plain transformers opens what was saved and answers.

    python examples/chat.py [--model FOLDER_OR_HUB_ID] [--data chat.jsonl] [--smoke]

Without arguments both are made here: sums of two numbers below twenty over two turns behind a system prompt, and a small Llama with a
ChatML template, saved by transformers as a hub repository is laid out.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from advalign import Evaluation, Frozen, Learner, Sampling, Stage, Trainer, TrainingArguments
from advalign import advantages as A
from advalign import adversaries as adv
from advalign import objectives as obj
from advalign import rewards as rw
from advalign import sources as src

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_conversations(folder: Path, number: int) -> str:
    """train.jsonl and test.jsonl: rows of messages, whose last turn is the assistant's, and the answer."""
    rng = random.Random(0)
    sums = [(a, b) for a in range(20) for b in range(20)]
    rng.shuffle(sums)
    seen, unseen = sums[:320], sums[320:]
    for split, last, size in (("train", seen, number), ("test", unseen, 200)):
        rows = []
        for _ in range(size):
            (a, b), (c, d) = rng.choice(seen), rng.choice(last)
            turns = [("system", "add"), ("user", f"{a}+{b}"), ("assistant", str(a + b)), ("user", f"{c}+{d}"), ("assistant", str(c + d))]
            rows.append({"messages": [{"role": role, "content": content} for role, content in turns], "answer": str(c + d)})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "{split}.jsonl")


def write_model(folder: Path) -> str:
    """An untrained instruct model, as `save_pretrained` of transformers lays it out."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    core.train_from_iterator(
        ["system user assistant add"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(model: str, data: str, smoke: bool) -> Trainer:
    first, then = (2, 2) if smoke else (800, 100)
    sampling = Sampling(max_new_tokens=8)
    trainer = Trainer(
        model=Learner(model=model, max_length=96, learning_rate=1e-3),
        sources={
            "chat": src.Demos(data=data, batch_size=32, assistant_turns="all"),
            "sums": src.Prompts(data=data, batch_size=8, group_size=8, sampling=sampling, rewards=[rw.ExactAnswer()], advantage=A.Group()),
        },
        adversaries={"pgd": adv.PGD(radius=0.05, steps=2, where="last_user")},
        objectives={
            "imitate": obj.SFT(source="chat"),
            "policy": obj.GRPO(source="sums"),
            "robust": obj.SFT(source="chat", view="pgd", coef=0.5),
            "anchor": obj.KL(source="sums", coef=0.01),
        },
        frozen={"reference": Frozen(learner="policy")},
        stages=[
            Stage(name="imitate", steps=first, objectives=("imitate",)),
            Stage(name="mix", steps=then, objectives=("policy", "robust", "anchor"), set={"learners.policy.learning_rate": 2e-4}),
        ],
        evaluations={"heldout": Evaluation(data=data, split="test", number=8 if smoke else 100, samples=2, sampling=sampling)},
        args=TrainingArguments(eval_steps=then),
    )
    print(trainer.formula())
    for row in trainer.train():
        if "heldout/accuracy" in row:
            print(row["step"], row["stage"], {name: value for name, value in row.items() if name.startswith("heldout/")})
    return trainer


def answer(folder: str, messages: list[dict[str, str]]) -> str:
    """What plain transformers makes of a saved model."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = args.data or write_conversations(folder, 4000)
        trainer = train(args.model or write_model(folder / "instruct"), data, args.smoke)
        trainer.model.save_pretrained(folder / "trained")
        messages = [{"role": "system", "content": "add"}, {"role": "user", "content": "3+4"}]
        print(f"transformers answers {messages[-1]['content']!r} with {answer(str(folder / 'trained'), messages)!r}")


if __name__ == "__main__":
    main()
