"""What a run refuses of its learners' models before the first step: folders that would be something else, weights that cannot train."""

import re

import pytest
from helpers import hub_folders
from helpers.hub_folders import LLAMA

from advalign import Learner, Trainer, TrainingArguments
from advalign.errors import ConfigError
from advalign.models import load
from advalign.objectives import Classify
from advalign.sources import Labels

ROWS = [{"text": "a quiet film", "label": 1}, {"text": "a dull film", "label": 0}]


def trainer(model, output_dir=None, networks=None, **options):
    learner = Learner(model=str(model), head="classifier", max_length=16, options=options)
    sources = {"s": Labels(data=ROWS, batch_size=2)}
    args = TrainingArguments(max_steps=1, output_dir=None if output_dir is None else str(output_dir))
    return Trainer(
        learners={"c": learner}, objectives={"o": Classify(source="s", learner="c")}, sources=sources, args=args, networks=networks or {}
    )


@pytest.mark.filterwarnings("ignore:model. .* has no trained classifier")
def test_a_classifier_whose_folder_would_be_another_one_does_not_train(tmp_path):
    hub_folders.write(tmp_path / "base", LLAMA, "causal")
    trainer(tmp_path / "base", pooling="mean").start()  # nothing is saved
    with pytest.raises(
        ConfigError, match=r"^learners.c: LlamaForSequenceClassification reads the last token of a text in transformers, and"
    ):
        trainer(tmp_path / "base", tmp_path / "out", pooling="mean").start()
    trainer(tmp_path / "base", tmp_path / "out", pooling="last").start()


def test_quantised_weights_do_not_train(tmp_path):
    """By the mark that transformers leaves in a configuration."""
    hub_folders.write(tmp_path / "base", LLAMA, "classifier")
    network = load(str(tmp_path / "base"))
    network.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    sentence = rf"^learners.c: the weights of '{re.escape(str(tmp_path / 'base'))}' are quantised, so they cannot train;"
    with pytest.raises(ConfigError, match=sentence):
        trainer(tmp_path / "base", networks={"c": network}).start()
