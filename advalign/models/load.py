"""Models by name: a hub id, a local folder, `package:<module>/<folder>` (weights carried by an installed package) or
`scratch:<preset>`, `learner:<name>` (the frozen base of another learner) or `latent:<name>` (a discriminator of its hidden
states); as a policy, a classifier, a scorer or a critic; pinned by hash on request; frozen copies."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from advalign.errors import ConfigError, unknown
from advalign.models import adapters, latent, perturb, scratch
from advalign.models.compiled import Compiled
from advalign.models.encode import Encoder
from advalign.models.forward import HEADS, Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Abstract: what has to be known to load a model. `tokenizer`: an id, or {kind: words|characters|bpe, data: ...}
    for a model from scratch. `options`: pooling, num_labels, sha256 (of model.safetensors), gradient_checkpointing,
    compile (the blocks, by torch.compile), dropout, seed, lora (fields of peft.LoraConfig), adapter (a folder whose adapter and
    head are put on this base); of a scalar head (score, value) head_dropout and spectral_norm."""

    model: str
    head: str = "policy"
    tokenizer: Any = None
    max_length: int = 512
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


SCALAR = ("head_dropout", "spectral_norm")  # of the head of a score or a value
OPTIONS = ("pooling", "num_labels", "sha256", "gradient_checkpointing", "compile", "dropout", "seed", "lora", "adapter", *SCALAR)
# What a learner may set on another one's base.
BORROWED = ("pooling", "gradient_checkpointing", "compile", "seed", "lora", "adapter", *SCALAR)
LEARNER = "learner:"


def load(
    model: str,
    *,
    head: str | None = None,
    tokenizer: Any = None,
    texts: Iterable[str] = (),
    max_length: int | None = None,
    dtype: str = "float32",
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A network with its encoder. `texts` is what a tokenizer from scratch is built from.

    A folder written by `Network.save_pretrained` remembers its head and length; an argument overrides them. A folder with
    an adapter is its base with that adapter.
    """
    options = dict(options or {})
    _check_options(options, OPTIONS)
    folder = _folder(model)
    facts = _facts(folder)
    head = head or facts.get("head", "policy")
    if head not in HEADS:
        raise unknown("head", "head", head, HEADS)
    if dtype not in DTYPES:
        raise unknown("dtype", "dtype", dtype, DTYPES)
    if options.get("sha256"):
        _verify(folder, model, options["sha256"])
    length = max_length or facts.get("max_length", 512)
    if folder and (folder / adapters.CONFIG).is_file():
        if "adapter" in options:
            raise ConfigError(f"model.options.adapter: '{model}' already carries an adapter; give its base, or export it merged first.")
        words = tokenizer if isinstance(tokenizer, str) or not (folder / "tokenizer_config.json").is_file() else str(folder)
        if head == "classifier" and "num_labels" in facts:
            options = {"num_labels": facts["num_labels"]} | options
        options = {"pooling": facts.get("pooling"), "adapter": str(folder)} | options
        return load(adapters.base_of(folder), head=head, tokenizer=words, max_length=length, dtype=dtype, options=options)
    with torch.random.fork_rng():
        torch.manual_seed(int(options.get("seed", 0)))
        with _found(model, folder):
            network = _build(model, str(folder or model), head, tokenizer, texts, length, facts, options)
        network.to(DTYPES[dtype])
        network.source = None if model.startswith("scratch:") else model
        if folder:
            _load_scalar(network, folder)
        return _finish(network, options)


def meta_network(spec: ModelSpec, texts: Iterable[str] = ()) -> Network:
    """The network of a spec without its weights, on the meta device: for what it costs, before anything is loaded. Adapters are left
    out."""
    folder = _folder(spec.model)
    facts = _facts(folder)
    model = adapters.base_of(folder) if folder and (folder / adapters.CONFIG).is_file() else spec.model
    where, options = str(_folder(model) or model), {k: v for k, v in spec.options.items() if k in ("num_labels", "dropout", "pooling")}
    with _found(model, _folder(model)), torch.random.fork_rng(), torch.device("meta"):
        network = _build(model, where, spec.head, spec.tokenizer, texts, spec.max_length, facts, options, weights=False)
    return network.to(DTYPES[spec.dtype])


def frozen(network: Network, *, moving: bool = False) -> Network:
    """A copy that never trains: a reference, a teacher, an opponent. Of a network that shares its base only adapter and
    head are copied; an adapter that has not been trained yet is left out, unless the copy is `moving` (an average)."""
    copied = adapters.twin(network) if network.shares_base else copy.deepcopy(network)
    if network.shares_base and not moving and adapters.untrained(network.model):
        copied.model = adapters.off(copied.model)
    copied.eval().requires_grad_(False)
    copied.num_forwards = copied.num_rows = 0
    return copied


# ------------------------------------------------------------------------------------------ one base, several learners


def share_base(lender: Network, spec: ModelSpec, where: str, seed: int = 0) -> Network:
    """A network over the frozen base of `lender`, with an adapter and a head of its own."""
    options = {"seed": seed, **spec.options}
    _check_options(options, BORROWED)
    if not lender.shares_base:
        raise _whole(where, spec.model)
    if spec.head == "classifier" or (spec.head == "policy" and lender.head != "policy"):
        raise ConfigError(f"{where}.head: a {spec.head} needs a head that '{spec.model}' does not have; use score or value, or a model.")
    if spec.head == "policy" and not {"lora", "adapter"} & set(options):
        raise ConfigError(f"{where}.options: a policy on '{spec.model}' has nothing of its own to train; give options: {{lora: {{r: 8}}}}.")
    tree = adapters.off(lender.model if spec.head == "policy" else lender.backbone)
    encoder = Encoder(
        lender.encoder.tokenizer, max_length=min(spec.max_length, lender.encoder.max_length), bidirectional=lender.encoder.bidirectional
    )
    with torch.random.fork_rng():
        torch.manual_seed(int(options["seed"]))
        network = Network(tree, encoder, spec.head, pooling=options.get("pooling") or lender.pooling, **_scalar(spec.head, {}, options))
        network.source = lender.source
        network.model.gradient_checkpointing_disable()
        adapters.freeze(network)
        return _finish(network, options)


def base_owner(spec: ModelSpec) -> str | None:
    """The learner whose base `spec` names, if it does."""
    return spec.model.removeprefix(LEARNER) if spec.model.startswith(LEARNER) else None


def load_order(learners: Mapping[str, ModelSpec], given: Iterable[str] = ()) -> list[str]:
    """Names in an order in which they can be loaded. Refuses what cannot be shared; networks `given` ready-made are not judged."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigError(f"learners.{name}.model: it would share_base from itself ({' -> '.join((*path, name))}).")
        other = None if name in given else base_owner(learners[name])
        if other is not None:
            _check_sharing(name, other, learners, given)
            visit(other, (*path, name))
        read = None if name in given else latent.owner_of(learners[name].model)
        if read is not None:
            if read not in learners:
                raise unknown(f"learners.{name}.model", "learner", read, learners)
            visit(read, (*path, name))
        if name not in done:
            done.append(name)

    for name in learners:
        visit(name, ())
    return done


def _check_sharing(name: str, other: str, learners: Mapping[str, ModelSpec], given: Iterable[str]) -> None:
    where = f"learners.{name}"
    if other not in learners:
        raise unknown(f"{where}.model", "learner", other, learners)
    mine, theirs = learners[name], learners[other]
    if mine.tokenizer not in (None, theirs.tokenizer):
        raise ConfigError(f"{where}.tokenizer: '{mine.model}' brings the tokenizer of '{other}', and another one is given; leave it out.")
    if mine.dtype not in ("float32", theirs.dtype):
        raise ConfigError(f"{where}.dtype: {mine.dtype} given, but the base of '{other}' is {theirs.dtype}; leave it out.")
    folder = _folder(theirs.model)
    keeps = base_owner(theirs) is not None or {"lora", "adapter"} & set(theirs.options) or (folder and (folder / adapters.CONFIG).is_file())
    if other not in given and not keeps:
        raise _whole(where, mine.model)


def _whole(where: str, model: str) -> ConfigError:
    other = model.removeprefix(LEARNER)
    return ConfigError(
        f"{where}.model: '{other}' trains all of its weights, so its base cannot be shared; give it options: {{lora: {{r: 8}}}}."
    )


# -------------------------------------------------------------------------------------------------------- from a name


@contextlib.contextmanager
def _found(model: str, folder: Path | None) -> Iterator[None]:
    """What transformers raises where there is no model, in a sentence. Other errors pass."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        kind = folder is not None and not (folder / "config.json").is_file()
        if kind or isinstance(error, OSError):
            what = "the folder holds no config.json, so it is no model" if kind else str(error).strip().splitlines()[0]
            raise ConfigError(f"model: '{model}' cannot be loaded: {what}; give a model's folder, a hub id or scratch:<preset>.") from error
        raise


def _build(
    model: str,
    where: str,
    head: str,
    tokenizer: Any,
    texts: Iterable[str],
    length: int,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    weights: bool = True,
) -> Network:
    extra: dict[str, Any] = {"num_labels": int(options["num_labels"])} if head == "classifier" and "num_labels" in options else {}
    auto: Any = {"policy": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}.get(head, AutoModel)
    if model.startswith("scratch:"):
        preset = model.removeprefix("scratch:")
        both_ways = scratch.is_encoder(preset)
        if both_ways and head in ("policy", "value"):
            raise ConfigError(f"head: '{model}' reads both ways, so it cannot be a {head}; use a preset such as scratch:tiny.")
        words = _tokenizer_from(tokenizer, texts, both_ways)
        config = scratch.config(preset, len(words), length)
        _set_dropout(config, options.get("dropout", 0.0))
        for key, value in extra.items():
            setattr(config, key, value)
        body = auto.from_config(config)
    else:
        config = AutoConfig.from_pretrained(where, **extra)
        if "dropout" in options:
            _set_dropout(config, options["dropout"])
        body = auto.from_pretrained(where, config=config) if weights else auto.from_config(config)
        words = AutoTokenizer.from_pretrained(tokenizer if isinstance(tokenizer, str) else where)
        both_ways = facts.get("bidirectional", not getattr(config, "is_decoder", False) and words.mask_token is not None)
    if words.pad_token is None and words.eos_token is None:
        raise ConfigError(f"{model}: its tokenizer has neither a padding nor an end-of-sequence token; set one of them.")
    pooling = options.get("pooling") or facts.get("pooling") or ("mean" if both_ways else "last")
    encoder = Encoder(words, max_length=length, bidirectional=both_ways)
    return Network(body, encoder, head, pooling=pooling, **_scalar(head, facts, options))


def _scalar(head: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a scalar head; those its folder, or that of its adapter, remembers, unless others are given."""
    facts = _facts(Path(options["adapter"]).expanduser()) if options.get("adapter") else facts
    if head not in ("score", "value"):
        for name in SCALAR:
            if options.get(name):
                raise ConfigError(f"model.options.{name}: it belongs to the scalar head of a score or a value, and head is '{head}'.")
        return {}
    known = {"head_dropout": 0.0, "spectral_norm": False} | {k: v for k, v in (*facts.items(), *options.items()) if k in SCALAR}
    reads = {"reads": facts["reads"]} if "reads" in facts else {}
    rate, norm = known["head_dropout"], known["spectral_norm"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ConfigError(f"model.options.head_dropout: got {rate}, a rate from 0 up to, but not including, 1.")
    if not isinstance(norm, bool):
        raise ConfigError(f"model.options.spectral_norm: got {norm}, either true or false.")
    return {"head_dropout": float(rate), "spectral_norm": norm, **reads}


def _tokenizer_from(given: Any, texts: Iterable[str], bidirectional: bool) -> Any:
    if isinstance(given, str):
        return AutoTokenizer.from_pretrained(given)
    if not isinstance(given, Mapping):
        raise ConfigError("tokenizer: a model from scratch needs {kind: words|characters|bpe, data: ...} or a tokenizer id.")
    return scratch.tokenizer(given.get("kind", "words"), texts, size=int(given.get("size", 4096)), bidirectional=bidirectional)


def _finish(network: Network, options: Mapping[str, Any]) -> Network:
    if options.get("adapter"):
        adapters.attach(network, Path(options["adapter"]).expanduser())
        _load_scalar(network, Path(options["adapter"]).expanduser())
    if options.get("lora"):
        adapters.inject(network, options["lora"])
    if options.get("gradient_checkpointing"):
        kwargs = {"use_reentrant": False, "context_fn": lambda: perturb.as_it_was(network)}
        network.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    if options.get("compile"):
        try:
            perturb.blocks(network.backbone)
        except ConfigError as error:
            raise ConfigError(
                f"model.options.compile: {type(network.backbone).__name__} has no stack of blocks to compile; leave it out."
            ) from error
        network.compiled = Compiled()
    _ = network.packs  # tried out now rather than in the first step
    return network


def _load_scalar(network: Network, folder: Path) -> None:
    if (folder / "scalar_head.safetensors").exists() and network.head in ("score", "value"):
        state = load_file(folder / "scalar_head.safetensors")
        if set(state) != set(network.scalar.state_dict()):
            given = network.spectral_norm
            raise ConfigError(
                f"model.options.spectral_norm: {given} given, but the head in {folder} was trained the other way; leave it out."
            )
        network.scalar.load_state_dict(state)
        if network.reads is not None:
            network.project.load_state_dict(load_file(folder / "projection.safetensors"))


def _facts(folder: Path | None) -> dict[str, Any]:
    file = None if folder is None else folder / "advalign.json"
    return json.loads(file.read_text()) if file is not None and file.exists() else {}


def _check_options(options: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in options:
        if name not in known:
            raise unknown("model.options", "option", name, known)


def _set_dropout(config: Any, rate: float) -> None:
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, float(rate))


def _folder(model: str) -> Path | None:
    if model.startswith("package:"):
        module, _, inside = model.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ConfigError(f"model: '{model}' needs the package '{module}', which is not installed.")
        return Path(spec.origin).parent / inside
    path = Path(model).expanduser()
    return path if not model.startswith("scratch:") and path.is_dir() else None


def _verify(folder: Path | None, model: str, expected: str) -> None:
    if folder is None:
        raise ConfigError(f"model: '{model}' is no local folder, so its sha256 cannot be checked; give a path or a package.")
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(f"model: {model}/model.safetensors has sha256 {found}, expected {expected}.")
