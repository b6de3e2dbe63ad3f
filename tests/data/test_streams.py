"""Streams: read as their rows are needed, in an order that a seed chooses, and the same after a resume."""

import itertools
import json

import pytest
from helpers.context import FakeContext

from advalign import data
from advalign.advantages.group import Group
from advalign.data.references import BUFFER
from advalign.errors import ConfigError
from advalign.objectives import SFT
from advalign.rewards.function import Function
from advalign.sources import Contrast, Demos, Feedback, Labels, Pairs, Prompts

datasets = pytest.importorskip("datasets")


def endless(row, features=None):
    """An IterableDataset without end, and the numbers of the rows that were read."""
    read = []

    def rows():
        for number in itertools.count():
            read.append(number)
            yield row(number)

    return datasets.IterableDataset.from_generator(rows, features=features), read


def even(completions, **_):
    return [float(int(text) % 2 == 0) for text in completions]


def demonstration(number):
    return {"prompt": f"q{number}", "completion": f" a{number}"}


def test_a_limit_reads_a_buffer_more_than_it_takes():
    stream, read = endless(demonstration)
    examples = data.examples(stream, limit=8, seed=3)
    assert len(read) <= BUFFER + 9
    assert len({e.prompt for e in examples}) == 8
    assert [e.prompt for e in examples] == [e.prompt for e in data.examples(stream, limit=8, seed=3)]
    assert [e.prompt for e in examples] != [e.prompt for e in data.examples(stream, limit=8, seed=4)]
    assert all(e.id == e.prompt[1:] or int(e.id) == int(e.prompt[1:]) + 1 for e in examples)  # the row's number in the data


def test_a_buffer_shuffle_gives_every_row_once():
    rows = datasets.Dataset.from_list([demonstration(i) for i in range(2 * BUFFER + 17)]).to_iterable_dataset()
    examples = data.examples(rows, limit=10**6, seed=1)
    assert sorted(int(e.prompt[1:]) for e in examples) == list(range(2 * BUFFER + 17))
    assert [e.prompt for e in examples] != [e.prompt for e in data.examples(rows)]


SOURCES = {
    "demos": (lambda ref: Demos(data=ref, batch_size=4), demonstration, lambda e: e.prompt),
    "pairs": (
        lambda ref: Pairs(data=ref, batch_size=4),
        lambda i: {"prompt": f"q{i}", "chosen": f" a{i}", "rejected": " no"},
        lambda e: (e.prompt, e.meta["chosen"]),
    ),
    "feedback": (
        lambda ref: Feedback(data=ref, batch_size=4),
        lambda i: {"prompt": f"q{i}", "completion": f" a{i}", "label": i % 2 == 0},
        lambda e: (e.prompt, e.label),
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_draw_from_a_stream_without_end_and_go_on_after_a_resume(kind):
    make, row, shown = SOURCES[kind]
    stream, read = endless(row)
    runtime = make(stream).start(FakeContext(seed=5), "s")
    assert not read
    drawn = [[shown(e) for e in runtime.draw(step, 0)] for step in range(3)]
    state = runtime.state_dict()
    assert len(read) <= BUFFER + 13
    following = [shown(e) for e in runtime.draw(3, 0)]
    resumed = make(stream).start(FakeContext(seed=5), "s")
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert [shown(e) for e in resumed.draw(3, 0)] == following
    assert len(set(itertools.chain(*drawn, following))) == 16


def test_splits_of_a_stream_are_streams():
    stream, read = endless(demonstration)
    splits = datasets.IterableDatasetDict({"train": stream})
    assert len(Demos(data=splits, batch_size=3).start(FakeContext(), "s").draw(0, 0)) == 3
    assert len(read) <= BUFFER + 4
    with pytest.raises(ConfigError, match=r"no split 'dev'\. Known: train"):
        Demos(data=splits, split="dev").start(FakeContext(), "s")


def test_a_preference_is_two_rows_of_feedback_in_a_stream_too():
    stream, _ = endless(lambda i: {"prompt": f"q{i}", "chosen": f" a{i}", "rejected": " no"})
    items = Feedback(data=stream, batch_size=4).start(FakeContext(), "s").draw(0, 0)
    assert [e.label for e in items] == [1, 0, 1, 0]
    assert items[0].prompt == items[1].prompt != items[2].prompt


def test_every_epoch_reads_all_rows_in_another_order():
    rows = datasets.Dataset.from_list([demonstration(i) for i in range(6)]).to_iterable_dataset()
    runtime = Demos(data=rows, batch_size=6).start(FakeContext(), "s")
    first, second = ([e.prompt for e in runtime.draw(step, 0)] for step in range(2))
    assert sorted(first) == sorted(second) == [f"q{i}" for i in range(6)]
    assert first != second
    with pytest.raises(ConfigError, match=r"sources\.s: the data is empty"):
        Demos(data=rows.filter(lambda row: False)).start(FakeContext(), "s").draw(0, 0)


def test_classes_of_a_stream_are_those_of_its_class_label_or_of_the_model():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    stream, _ = endless(lambda i: {"text": f"t{i}", "label": i % 2}, features)
    runtime = Labels(data=stream, batch_size=4).start(FakeContext(), "s")
    assert runtime.class_names == ("neg", "pos")
    assert all(e.label == int(e.prompt[1:]) % 2 for e in runtime.draw(0, 0))
    assert Labels(data=stream).num_classes() == 2
    unnamed, _ = endless(lambda i: {"text": f"t{i}", "label": i % 3})
    with pytest.raises(ConfigError, match=r"sources\.s: data: the classes of a stream are known only where .* set limit"):
        Labels(data=unnamed).start(FakeContext(), "s")
    assert len(Labels(data=unnamed, limit=7).start(FakeContext(), "s").examples) == 7

    class Named(FakeContext):
        def class_names(self, source):
            return ("pos", "neg")

    assert all(e.label != int(e.prompt[1:]) % 2 for e in Labels(data=stream, batch_size=4).start(Named(), "s").draw(0, 0))


def test_a_stream_gives_no_examples_to_other_sources():
    stream, _ = endless(demonstration)
    context = FakeContext(source_configs={"real": Demos(data=stream)})
    context.sources["real"] = Demos(data=stream).start(context, "real")
    with pytest.raises(ConfigError, match=r"sources\.real: another source takes examples from it, which a stream cannot give; set limit"):
        Contrast(real="real").start(context, "c").draw(0, 0)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow", "folder", "jsonl.gz"])
def test_files_are_streamed_on_request(tmp_path, kind):
    table = datasets.Dataset.from_list([{"prompt": f"q{i}", "completion": f" a{i}"} for i in range(20)])
    path = tmp_path / f"d.{kind}"
    if kind == "folder":
        table.save_to_disk(str(path))
    elif kind == "arrow":
        import pyarrow

        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.data.table.schema) as writer:
            writer.write_table(table.data.table)
    elif kind.startswith("jsonl"):
        import gzip

        text = "".join(json.dumps(row) + "\n" for row in table)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    else:
        getattr(table, f"to_{kind}")(str(path))
    runtime = Demos(data={"path": str(path), "streaming": True}, batch_size=20).start(FakeContext(), "s")
    assert not runtime.examples
    assert sorted(e.meta["response"] for e in runtime.draw(0, 0)) == sorted(row["completion"] for row in table)
    whole = Demos(data=str(path)).start(FakeContext(), "s")
    assert [e.prompt for e in whole.examples] == table["prompt"][:]


def test_a_run_from_a_stream(tmp_path):
    from advalign import Learner, Trainer, TrainingArguments

    stream, read = endless(lambda i: {"prompt": "a b", "completion": "c d"})
    learner = Learner(model="scratch:tiny?hidden_size=32", tokenizer={"kind": "words", "data": [{"text": "a b c d"}]}, max_length=16)
    trainer = Trainer(
        learners={"policy": learner},
        sources={"s": Demos(data=stream, batch_size=2)},
        objectives={"sft": SFT(source="s")},
        args=TrainingArguments(max_steps=3),
    )
    history = trainer.train(progress=False)
    assert len(history) == 3
    assert len(read) <= BUFFER + 7


def test_prompts_of_a_stream_are_answered():
    from advalign.types import Rollout, RolloutGroup

    class Answers(FakeContext):
        def generate(self, learner, examples, n, sampling, key):
            rollouts = lambda: [Rollout(response_ids=[i], sampler_logprobs=[0.0], text=str(i), finished=True) for i in range(n)]  # noqa: E731
            return [RolloutGroup(example=e, prompt_ids=[1], rollouts=rollouts()) for e in examples]

    stream, read = endless(lambda i: {"prompt": f"q{i}"})
    source = Prompts(data=stream, batch_size=3, group_size=2, rewards=[Function(fn=even)], advantage=Group())
    groups = source.start(Answers(), "s").draw(0, 0)
    assert len({g.example.prompt for g in groups}) == 3
    assert len(read) <= BUFFER + 4
