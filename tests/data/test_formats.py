"""Every format of data, and every format of TRL 1.16 that is no conversation, into the sources it makes sense for."""

import json

import pytest
from helpers.context import FakeContext

from advalign import data
from advalign.errors import ConfigError
from advalign.models.encode import Encoder
from advalign.sources import Demos, Feedback, Labels, Pairs

datasets = pytest.importorskip("datasets")

ROWS = [{"text": f"good text {i}", "label": i % 3} for i in range(6)]
NAMES = ("bad", "fair", "good")


def tokenizer():
    """Words, with <bos> in front of texts and <eos> at the end of responses."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = "<pad> <bos> <eos> <unk> the sky is blue green what colour ? it".split()
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def drawn(source, rows_of=None):
    """(ids, target ids) of every row of one draw in file order."""
    runtime = source.start(FakeContext(), "s")
    tokens = source.build(list(runtime.examples), Encoder(tokenizer())).tokens
    ids = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
    targets = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.target, strict=True)]
    return ids, targets


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(
    params=["jsonl", "json", "csv", "tsv", "parquet", "arrow", "folder", "folder with splits", "list", "dataset", "splits", "iterable"]
)
def reference(request, tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    path = str(tmp_path / f"d.{request.param}")
    kind = request.param
    if kind == "jsonl":
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        (tmp_path / "d.json").write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv"):
        table.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "arrow":
        import pyarrow

        with pyarrow.OSFile(path, "wb") as sink, pyarrow.ipc.new_stream(sink, table.data.table.schema) as writer:
            writer.write_table(table.data.table)
    elif kind == "folder":
        table.save_to_disk(path)
    elif kind == "folder with splits":
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(path)
    else:
        splits = datasets.DatasetDict({"train": table})
        return {"list": ROWS, "dataset": table, "splits": splits, "iterable": table.to_iterable_dataset()}[kind]
    return path


def test_one_table_in_every_format(reference):
    assert [(e.prompt, e.label) for e in data.examples(reference)] == [(row["text"], row["label"]) for row in ROWS]


def test_a_split_that_a_saved_data_set_does_not_have(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ConfigError, match=r"no split 'dev'\. Known: train"):
        data.examples(str(tmp_path / "d"), split="dev")


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("kind", ["memory", "parquet", "folder"])
def test_the_names_of_a_class_label_are_kept(tmp_path, kind):
    table = datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=list(reversed(NAMES))))
    reference = table
    if kind == "parquet":
        reference = str(tmp_path / "d.parquet")
        table.to_parquet(reference)
    elif kind == "folder":
        reference = str(tmp_path / "d")
        table.save_to_disk(reference)
    examples, names = data.labelled(reference)
    assert names == ("good", "fair", "bad")
    assert [e.label for e in examples] == [0, 1, 2, 0, 1, 2]


def test_names_in_a_column_are_mapped_in_alphabetical_order_over_the_whole_split(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,sentiment\na,pos\nb,neg\nc,neutral\n")
    examples, names = data.labelled(str(path), {"label": "sentiment"})
    assert names == ("neg", "neutral", "pos")
    assert [e.label for e in examples] == [2, 0, 1]
    assert data.labelled(str(path), {"label": "sentiment"}, limit=1)[1] == names
    given, _ = data.labelled(str(path), {"label": "sentiment"}, class_names=("POS", "NEUTRAL", "NEG"))
    assert [e.label for e in given] == [0, 2, 1]
    with pytest.raises(ConfigError, match=r"row 4: no class 'neutral'\. Known: neg, pos"):
        data.labelled(str(path), {"label": "sentiment"}, class_names=("neg", "pos"))


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        (-1, "row 2 has label -1, which is not a class index"),
        (-100, "row 2 has label -100, which is not a class index"),
        (0.5, "row 2 has label 0.5, which is not a class index"),
        ("0.5", "row 2 has label 0.5, which is not a class index"),
        (float("nan"), "row 2 has label nan"),
        (None, "row 2 has no label"),
        (" ", "row 2 has no label"),
        ([0, 1], r"row 2 has the labels \[0, 1\]"),
    ],
)
def test_labels_that_are_no_class_are_refused_with_row_and_value(label, sentence):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": label}]
    with pytest.raises(ConfigError, match=rf"^sources\.s: .*{sentence}"):
        Labels(data=rows).start(FakeContext(), "s")


@pytest.mark.parametrize("label", [1, "1", 1.0, True, " 1 "])
def test_whole_numbers_are_class_indices(label):
    assert data.labelled([{"text": "a", "label": label}])[0][0].label == 1


# --------------------------------------------------------------------------------------------------- formats of TRL


def test_a_text_alone_is_a_demonstration_without_prompt():
    # TRL: tokenizer("it is blue" + eos); every token but the first, which nothing predicts, is a target.
    tok = tokenizer()
    expected = tok("it is blue<eos>")["input_ids"]
    ids, targets = drawn(Demos(data=[{"text": "it is blue"}]))
    assert ids == [expected] == [tok.convert_tokens_to_ids("<bos> it is blue <eos>".split())]
    assert targets == [expected[1:]]
    tok.chat_template = "{% for m in messages %}the {{ m.content }} it{% endfor %}"
    assert Encoder(tok).prompts(["", "sky"])[0] == [1]


def test_prompt_and_completion():
    # TRL: tokenizer(prompt + completion + eos), completion_mask from the end of the prompt on.
    tok = tokenizer()
    ids, targets = drawn(Demos(data=[{"prompt": "the sky is", "completion": " blue"}]))
    assert ids == [tok("the sky is blue<eos>")["input_ids"]]
    assert targets == [tok.convert_tokens_to_ids(["blue", "<eos>"])]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("the sky is blue", "the sky is green"),
        ("what colour ? it is blue", "what colour ? it is green ?"),
        ("the sky", "it is blue"),
        ("the sky is", "the sky is blue"),
    ],
)
def test_a_preference_with_an_implicit_prompt(chosen, rejected):
    from trl.data_utils import extract_prompt

    row = {"chosen": chosen, "rejected": rejected}
    (example,) = data.examples([row])
    extracted = extract_prompt(row) if chosen[0] == rejected[0] else {"prompt": "", **row}
    assert {"prompt": example.prompt, "chosen": example.meta["chosen"], "rejected": example.meta["rejected"]} == extracted
    tok = tokenizer()
    ids, _ = drawn(Pairs(data=[row]))
    if chosen != "the sky is":
        assert ids == [tok(text + "<eos>")["input_ids"] for text in (chosen, rejected)]


def test_a_preference_between_equal_texts_is_refused():
    with pytest.raises(ConfigError, match="row 1: chosen and rejected are the same text"):
        data.examples([{"chosen": "a", "rejected": "a"}])


@pytest.mark.parametrize(("good", "bad"), [(True, False), ("True", "false"), (1, 0), ("1", "0")])
def test_unpaired_preferences_and_pairs_are_feedback(good, bad):
    rows = [{"prompt": "the sky is", "completion": " blue", "label": good}, {"prompt": "the sky is", "completion": " green", "label": bad}]
    source = Feedback(data=rows)
    examples = source.start(FakeContext(), "s").examples
    assert [(e.meta["response"], e.label) for e in examples] == [(" blue", 1), (" green", 0)]
    pairs = Feedback(data=[{"prompt": "the sky is", "chosen": " blue", "rejected": " green"}]).start(FakeContext(), "s").examples
    assert [(e.meta["response"], e.label) for e in pairs] == [(" blue", 1), (" green", 0)]


def test_stepwise_supervision_is_refused_in_one_sentence():
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    with pytest.raises(ConfigError, match=r"row 1 is stepwise supervision .* source feedback\.$"):
        data.examples([row])
