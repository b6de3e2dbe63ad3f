"""Models by name: a hub id, a local folder, `package:<module>/<folder>` (weights carried by an installed package) or
`scratch:<preset>`; as a policy, a classifier, a scorer or a critic; pinned by hash on request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from advalign.checked import arguments
from advalign.errors import AdvalignError, ConfigError
from advalign.models import (
    adapter_files,
    adapters,
    architecture,
    folders,
    loading_arguments,
    perturb,
    pretrained,
    saving,
    scratch,
    self_check,
    vocabulary,
)
from advalign.models.base import cast_parameters
from advalign.models.compiled import Compiled
from advalign.models.encode import Encoder
from advalign.models.forward import Network
from advalign.models.hidden_state_critic import HiddenStateCritic
from advalign.models.positions import position_limit, row_bound
from advalign.models.specification import (
    DTYPES,
    ENCODER_OPTIONS,
    OPTIONS,
    DType,
    ModelSpec,
    chat_template_text,
    check_dtype,
    check_head,
    check_options,
    check_tokenizer,
    dropout_rate,
    head_options,
)
from advalign.ranges import AnyText, Count, Words


@arguments("load: ")
def load(
    model: Words,
    *,
    head: str | None = None,
    tokenizer: Any = None,
    texts: Iterable[AnyText] = (),
    max_length: Count | None = None,
    dtype: DType = "float32",
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A network with its encoder. `texts` is what a tokenizer from scratch is built from.

    Without `head`, a model is what its files say: the head that `Network.save_pretrained` wrote down, or that its configuration was saved
    for. A head that is given may be new (a classifier, score or value on another model), which is said. A folder with an adapter is its
    base with that adapter.
    """
    options = dict(options or {})
    check_options(options, OPTIONS)
    check_tokenizer(tokenizer)
    check_dtype(dtype)
    if head is not None:
        check_head(head)
    folder = folders.model_folder(model, options.get("revision"))
    if folder is None and not model.startswith("scratch:"):
        with _sentences(model, None):
            folder = folders.hub_adapter(model, options.get("revision"))
        options = {k: v for k, v in options.items() if folder is None or k != "revision"}  # it is that of the adapter
    facts = folders.saved_facts(folder)
    if options.get("sha256"):
        folders.verify_hash(folder, model, options["sha256"], options.get("revision"))
    length = max_length or facts.get("max_length", 512)
    spec = ModelSpec(model=model, tokenizer=tokenizer, max_length=length, dtype=dtype, options=options)
    if folder is not None and folders.holds_adapter(folder):
        network = _load_with_adapter(folder, spec, head, facts)
    else:
        network = _load(spec, head or facts.get("head"), folder, facts, texts)
    if network.head == "classifier" and max_length is None and "max_length" not in facts:
        longest = row_bound(network.model, None)[0] or length
        network.encoder = network.encoder.with_length(vocabulary.text_length(network.encoder.tokenizer, longest))
    pretrained.check_classes(model, network, asked=head)
    if head is None or head == folders.saved_head(folder):
        saving.refuse_new_head(network, folder)
    pretrained.warn_of_new_head(model, network)
    return network


def _load(spec: ModelSpec, head: str | None, folder: Path | None, facts: Mapping[str, Any], texts: Iterable[str]) -> Network:
    """The network of a specification with this head, its adapter and its other options."""
    with torch.random.fork_rng():
        torch.manual_seed(int(spec.options.get("seed", 0)))
        with _sentences(spec.model, folder):
            network = _build(spec, head, str(folder or spec.model), facts, texts)
        network.source = None if spec.model.startswith("scratch:") else spec.model
        if folder:
            saving.load_head(network, folder)
        return apply_options(network, spec.options)


def _load_with_adapter(folder: Path, spec: ModelSpec, head: str | None, facts: Mapping[str, Any]) -> Network:
    """The base of an adapter folder, with that adapter and the folder's own tokenizer."""
    if "adapter" in spec.options:
        raise ConfigError(f"model.options.adapter: '{spec.model}' already carries an adapter; give its base, or export it merged first.")
    base = folders.adapter_base(folder)
    base_folder = folders.model_folder(base, folders.adapter_config(folder).get("revision"))
    if folders.holds_adapter(base_folder):
        raise ConfigError(f"model: the base of {folder}, '{base}', is an adapter itself; export that one merged first.")
    own_tokenizer = not isinstance(spec.tokenizer, str) and (folder / "tokenizer_config.json").is_file()
    tokenizer = str(folder) if own_tokenizer else spec.tokenizer
    head = head or folders.saved_head(folder)
    if head is None and folders.adapter_config(folder).get("task_type") == "FEATURE_EXTRACTION":
        raise ConfigError(f"model: the adapter in {folder} was trained for features and has no head; train one (head: score or value).")
    options = adapter_files.base_options(folder, base, head) | {"adapter": str(folder)} | dict(spec.options)
    base_facts = folders.saved_facts(base_folder) | {k: facts[k] for k in ("pooling", *ENCODER_OPTIONS) if k in facts}
    return _load(replace(spec, model=base, tokenizer=tokenizer, options=options), head, base_folder, base_facts, ())


def meta_network(spec: ModelSpec, texts: Iterable[str] = ()) -> Network:
    """The network of a specification without its weights, on the meta device: for what it costs, before anything is loaded. Adapters are
    left out."""
    folder = folders.model_folder(spec.model, spec.options.get("revision"))
    facts = folders.saved_facts(folder)
    model = folders.adapter_base(folder) if folder is not None and folders.holds_adapter(folder) else spec.model
    base = folder if model == spec.model else folders.model_folder(model)
    carried = ("num_labels", "dropout", "pooling", "revision", "chat_template", vocabulary.RESIZE, *ENCODER_OPTIONS)
    options = {k: v for k, v in spec.options.items() if k in carried}
    spec = ModelSpec(model=model, head=spec.head, tokenizer=spec.tokenizer, max_length=spec.max_length, dtype=spec.dtype, options=options)
    with _sentences(model, base), torch.random.fork_rng(), torch.device("meta"):
        network = _build(spec, spec.head, str(base or model), facts, texts, weights=False)
    return network


@contextlib.contextmanager
def _sentences(model: str, folder: Path | None) -> Iterator[None]:
    """Turns the errors of transformers for a model that it cannot load into one sentence."""
    try:
        yield
    except AdvalignError:
        raise
    except Exception as error:  # transformers, tokenizers, peft and safetensors raise errors of many classes
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise ConfigError(
                f"model: '{model}' brings code of its own, which is never run; give a model whose architecture transformers has."
            ) from error
        no_model = folder is not None and not (folder / "config.json").is_file()
        text = " ".join(str(error).split()).partition(". ")[0]
        if not text or not isinstance(error, OSError | ValueError | ImportError | RuntimeError | SafetensorError):
            text = f"{type(error).__name__}: {text}".rstrip(": ")
        reason = "the folder holds no config.json, so it is not a model" if no_model else text
        raise ConfigError(
            f"model: '{model}' cannot be loaded: {reason.rstrip('.')}; give a model's folder, a hub id or scratch:<preset>."
        ) from error


def _build(spec: ModelSpec, head: str | None, source: str, facts: Mapping[str, Any], texts: Iterable[str], weights: bool = True) -> Network:
    """The network of a specification, from scratch or from `source`, a folder or a hub id. `head`: None, the model's own."""
    if spec.model.startswith("scratch:"):
        spec = replace(spec, head=head or "policy")
        body, tokenizer, bidirectional = _from_scratch(spec, texts)
        new: tuple[str, ...] = ()
    else:
        given = loading_arguments.arguments(spec, folders.model_folder(spec.model, spec.options.get("revision")))
        config = pretrained.read_config(spec, source, head, revision=given.get("revision"))
        spec = replace(spec, head=pretrained.choose_head(spec.model, config, head))
        body, tokenizer, bidirectional, new = _from_source(spec, source, config, facts, given if weights else None)
    if "num_features" not in facts:  # what reads hidden states has no row for a token
        vocabulary.fit_vocabulary(body, tokenizer, spec.options, spec.model)
    if facts.get("bidirectional") and architecture.has_segments(body):
        vocabulary.give_token_types(tokenizer)
    pretrained.check_pooling(spec, body)
    pooling = spec.options.get("pooling") or facts.get("pooling") or ("mean" if bidirectional else "last")
    chat = {k: v for k, v in (*facts.items(), *spec.options.items()) if k in ENCODER_OPTIONS}
    if "chat_template" in spec.options:
        tokenizer.chat_template = chat_template_text(spec.options["chat_template"])
    positions = position_limit(body)
    encoder = Encoder(tokenizer, max_length=spec.max_length, bidirectional=bidirectional, positions=positions, **chat)
    options = head_options(spec.head, facts, spec.options)
    if spec.head == "score" and "num_features" in facts:
        return HiddenStateCritic(body, encoder, facts["num_features"], pooling=pooling, **options)
    network = Network(body, encoder, spec.head, pooling=pooling, **options)
    network.new_weights = network.drawn_weights = new
    network.revision = spec.options.get("revision")
    return network


def _from_scratch(spec: ModelSpec, texts: Iterable[str]) -> tuple[Any, Any, bool]:
    """(transformers model, tokenizer, whether it reads both ways)."""
    preset = spec.model.removeprefix("scratch:")
    scratch.check_preset(preset)
    bidirectional = scratch.is_encoder(preset)
    if bidirectional and spec.head in ("policy", "value"):
        raise ConfigError(f"head: '{spec.model}' reads both ways, so it cannot be a {spec.head}; use a preset such as scratch:tiny.")
    tokenizer = _scratch_tokenizer(spec.tokenizer, texts, bidirectional)
    config = scratch.build_config(preset, len(tokenizer), spec.max_length)
    architecture.set_dropout(config, dropout_rate(spec.options) or 0.0)
    if spec.head == "classifier" and "num_labels" in spec.options:
        config.num_labels = int(spec.options["num_labels"])
    body = pretrained.auto_class(spec.head).from_config(config, trust_remote_code=False, **loading_arguments.arguments(spec, None))
    return cast_parameters(body, DTYPES[spec.dtype]), tokenizer, bidirectional


def _from_source(
    spec: ModelSpec, source: str, config: Any, facts: Mapping[str, Any], given: Mapping[str, Any] | None
) -> tuple[Any, Any, bool, tuple[str, ...]]:
    """(transformers model, tokenizer, whether it reads both ways, names of the weights of a new head); `given`: arguments of
    `from_pretrained`; None: no weights."""
    if (rate := dropout_rate(spec.options)) is not None:
        architecture.set_dropout(config, rate)
    # In its precision from the start: transformers knows which parts of a model stay in float32.
    dtype, new = DTYPES[spec.dtype], tuple[str, ...]()
    if given is not None:
        body, new = pretrained.load_body(spec, source, config, dtype=dtype, **given)
        loading_arguments.check_body(body, spec)
    else:
        body = cast_parameters(pretrained.auto_class(spec.head).from_config(config, trust_remote_code=False), dtype)
    own = {"revision": given["revision"]} if given and "revision" in given else {}
    chosen, arguments = (spec.tokenizer, {}) if isinstance(spec.tokenizer, str) else (source, own)
    tokenizer = _read_tokenizer(chosen, **arguments)
    if new and architecture.pad_id(config) is None:  # without it, no batch has a last token
        body.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # What reads hidden states has a body of its own, but the rows of the network it reads.
    both_ways = facts["bidirectional"] if "num_features" in facts else architecture.reads_both_ways(config)
    return body, tokenizer, both_ways, new


def _read_tokenizer(name: str, **arguments: Any) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **arguments)
    except Exception as error:  # tokenizers and transformers raise errors of many classes
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise
        reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"model: the tokenizer of '{name}' cannot be loaded ({type(error).__name__}: {reason}); give a complete folder, or a tokenizer."
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one of a class alone, where its files are missing
        raise ConfigError(
            f"model: the tokenizer of '{name}' knows its special tokens alone, so its files are missing; give a complete folder."
        )
    return tokenizer


def _scratch_tokenizer(tokenizer: Any, texts: Iterable[str], bidirectional: bool) -> Any:
    if isinstance(tokenizer, str):
        return _read_tokenizer(tokenizer)
    if not isinstance(tokenizer, Mapping):
        raise ConfigError("tokenizer: a model from scratch needs {kind: words|characters|bpe, data: ...} or a tokenizer id.")
    size = int(tokenizer.get("size", 4096))
    return scratch.train_tokenizer(tokenizer.get("kind", "words"), texts, size=size, bidirectional=bidirectional)


def apply_options(network: Network, options: Mapping[str, Any]) -> Network:
    """Adapter, gradient checkpointing and compilation, as the options of a model say."""
    if options.get("adapter"):
        folder = Path(options["adapter"]).expanduser()
        adapter_files.attach(network, folder)
        saving.load_head(network, folder)
    if options.get("lora"):
        adapters.inject(network, options["lora"])
    if options.get("gradient_checkpointing"):
        if not architecture.can_checkpoint(network.model):
            raise ConfigError(
                f"model.options.gradient_checkpointing: transformers has none for {type(network.model).__name__}; leave it out."
            )
        kwargs = {"use_reentrant": False, "context_fn": lambda: perturb.recompute_context(network)}
        network.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    if options.get("compile"):
        try:
            perturb.blocks(network.backbone)
        except ConfigError as error:
            raise ConfigError(
                f"model.options.compile: {type(network.backbone).__name__} has no stack of blocks to compile; leave it out."
            ) from error
    self_check.check(network)  # before its blocks are compiled: a check compiles nothing
    _ = network.packs  # tried out now rather than in the first step
    if options.get("compile"):
        network.compiled = Compiled()
    return network
