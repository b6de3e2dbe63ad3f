"""Models by name: a hub id, a local folder, `package:<module>/<folder>` (weights carried by an installed package) or
`scratch:<preset>`; as a policy, a classifier, a scorer or a critic; pinned by hash on request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from advalign.errors import ConfigError
from advalign.models import adapters, architecture, folders, perturb, saving, scratch, self_check
from advalign.models.base import cast_parameters
from advalign.models.compiled import Compiled
from advalign.models.encode import Encoder
from advalign.models.forward import Network
from advalign.models.hidden_state_critic import HiddenStateCritic
from advalign.models.specification import DTYPES, OPTIONS, ModelSpec, check_dtype, check_head, check_options, head_options


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
    check_options(options, OPTIONS)
    folder = folders.model_folder(model)
    facts = folders.saved_facts(folder)
    head = head or facts.get("head", "policy")
    check_head(head)
    check_dtype(dtype)
    if options.get("sha256"):
        folders.verify_hash(folder, model, options["sha256"])
    length = max_length or facts.get("max_length", 512)
    spec = ModelSpec(model=model, head=head, tokenizer=tokenizer, max_length=length, dtype=dtype, options=options)
    if folder is not None and folders.holds_adapter(folder):
        return _load_with_adapter(folder, spec, facts)
    with torch.random.fork_rng():
        torch.manual_seed(int(options.get("seed", 0)))
        with _sentences(model, folder):
            network = _build(spec, str(folder or model), facts, texts)
        network.source = None if model.startswith("scratch:") else model
        if folder:
            saving.load_head(network, folder)
        return apply_options(network, options)


def _load_with_adapter(folder: Path, spec: ModelSpec, facts: Mapping[str, Any]) -> Network:
    """The base of an adapter folder, with that adapter and the folder's own tokenizer."""
    if "adapter" in spec.options:
        raise ConfigError(f"model.options.adapter: '{spec.model}' already carries an adapter; give its base, or export it merged first.")
    own_tokenizer = not isinstance(spec.tokenizer, str) and (folder / "tokenizer_config.json").is_file()
    options = dict(spec.options)
    if spec.head == "classifier" and "num_labels" in facts:
        options = {"num_labels": facts["num_labels"]} | options
    return load(
        folders.adapter_base(folder),
        head=spec.head,
        tokenizer=str(folder) if own_tokenizer else spec.tokenizer,
        max_length=spec.max_length,
        dtype=spec.dtype,
        options={"pooling": facts.get("pooling"), "adapter": str(folder)} | options,
    )


def meta_network(spec: ModelSpec, texts: Iterable[str] = ()) -> Network:
    """The network of a specification without its weights, on the meta device: for what it costs, before anything is loaded. Adapters are
    left out."""
    folder = folders.model_folder(spec.model)
    facts = folders.saved_facts(folder)
    model = folders.adapter_base(folder) if folder is not None and folders.holds_adapter(folder) else spec.model
    base = folders.model_folder(model)
    options = {k: v for k, v in spec.options.items() if k in ("num_labels", "dropout", "pooling")}
    spec = ModelSpec(model=model, head=spec.head, tokenizer=spec.tokenizer, max_length=spec.max_length, dtype=spec.dtype, options=options)
    with _sentences(model, base), torch.random.fork_rng(), torch.device("meta"):
        network = _build(spec, str(base or model), facts, texts, weights=False)
    return network


@contextlib.contextmanager
def _sentences(model: str, folder: Path | None) -> Iterator[None]:
    """Turns the errors of transformers for a missing model into one sentence. Other errors pass."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        no_model = folder is not None and not (folder / "config.json").is_file()
        if no_model or isinstance(error, OSError):
            reason = "the folder holds no config.json, so it is not a model" if no_model else str(error).strip().splitlines()[0]
            raise ConfigError(
                f"model: '{model}' cannot be loaded: {reason}; give a model's folder, a hub id or scratch:<preset>."
            ) from error
        raise


def _build(spec: ModelSpec, source: str, facts: Mapping[str, Any], texts: Iterable[str], weights: bool = True) -> Network:
    """The network of a specification, from scratch or from `source`, a folder or a hub id."""
    if spec.model.startswith("scratch:"):
        body, tokenizer, bidirectional = _from_scratch(spec, texts)
    else:
        body, tokenizer, bidirectional = _from_source(spec, source, facts, weights)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ConfigError(f"{spec.model}: its tokenizer has neither a padding nor an end-of-sequence token; set one of them.")
    pooling = spec.options.get("pooling") or facts.get("pooling") or ("mean" if bidirectional else "last")
    encoder = Encoder(tokenizer, max_length=spec.max_length, bidirectional=bidirectional)
    head = head_options(spec.head, facts, spec.options)
    if spec.head == "score" and "num_features" in facts:
        return HiddenStateCritic(body, encoder, facts["num_features"], pooling=pooling, **head)
    return Network(body, encoder, spec.head, pooling=pooling, **head)


def _from_scratch(spec: ModelSpec, texts: Iterable[str]) -> tuple[Any, Any, bool]:
    """(transformers model, tokenizer, whether it reads both ways)."""
    preset = spec.model.removeprefix("scratch:")
    bidirectional = scratch.is_encoder(preset)
    if bidirectional and spec.head in ("policy", "value"):
        raise ConfigError(f"head: '{spec.model}' reads both ways, so it cannot be a {spec.head}; use a preset such as scratch:tiny.")
    tokenizer = _scratch_tokenizer(spec.tokenizer, texts, bidirectional)
    config = scratch.build_config(preset, len(tokenizer), spec.max_length)
    architecture.set_dropout(config, spec.options.get("dropout", 0.0))
    for name, value in _num_labels(spec).items():
        setattr(config, name, value)
    return cast_parameters(_auto_class(spec.head).from_config(config), DTYPES[spec.dtype]), tokenizer, bidirectional


def _from_source(spec: ModelSpec, source: str, facts: Mapping[str, Any], weights: bool) -> tuple[Any, Any, bool]:
    """(transformers model, tokenizer, whether it reads both ways)."""
    config = AutoConfig.from_pretrained(source, **_num_labels(spec))
    if "dropout" in spec.options:
        architecture.set_dropout(config, spec.options["dropout"])
    auto = _auto_class(spec.head)
    # In its precision from the start: transformers knows which parts of a model stay in float32.
    dtype = DTYPES[spec.dtype]
    body = auto.from_pretrained(source, config=config, dtype=dtype) if weights else cast_parameters(auto.from_config(config), dtype)
    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer if isinstance(spec.tokenizer, str) else source)
    # What reads hidden states has a body of its own, but the rows of the network it reads.
    both_ways = facts["bidirectional"] if "num_features" in facts else architecture.reads_both_ways(config)
    return body, tokenizer, both_ways


def _auto_class(head: str) -> Any:
    return {"policy": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}.get(head, AutoModel)


def _num_labels(spec: ModelSpec) -> dict[str, int]:
    labels = spec.head == "classifier" and "num_labels" in spec.options
    return {"num_labels": int(spec.options["num_labels"])} if labels else {}


def _scratch_tokenizer(tokenizer: Any, texts: Iterable[str], bidirectional: bool) -> Any:
    if isinstance(tokenizer, str):
        return AutoTokenizer.from_pretrained(tokenizer)
    if not isinstance(tokenizer, Mapping):
        raise ConfigError("tokenizer: a model from scratch needs {kind: words|characters|bpe, data: ...} or a tokenizer id.")
    size = int(tokenizer.get("size", 4096))
    return scratch.train_tokenizer(tokenizer.get("kind", "words"), texts, size=size, bidirectional=bidirectional)


def apply_options(network: Network, options: Mapping[str, Any]) -> Network:
    """Adapter, gradient checkpointing and compilation, as the options of a model say."""
    if options.get("adapter"):
        folder = Path(options["adapter"]).expanduser()
        adapters.attach(network, folder)
        saving.load_head(network, folder)
    if options.get("lora"):
        adapters.inject(network, options["lora"])
    if options.get("gradient_checkpointing"):
        kwargs = {"use_reentrant": False, "context_fn": lambda: perturb.recompute_context(network)}
        network.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    if options.get("compile"):
        try:
            perturb.blocks(network.backbone)
        except ConfigError as error:
            raise ConfigError(
                f"model.options.compile: {type(network.backbone).__name__} has no stack of blocks to compile; leave it out."
            ) from error
    _ = network.packs  # tried out now rather than in the first step
    if network.head == "policy":
        self_check.check_policy(network)  # before its blocks are compiled: a check compiles nothing
    if options.get("compile"):
        network.compiled = Compiled()
    return network
