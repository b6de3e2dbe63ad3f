"""Causal families by model type."""

from dataclasses import replace

from architectures.families import DEEPSEEK, ENCODER_DECODER, EXPERTS, LATENT, MOE, NARROW, PLAIN, SIZES, SLIDING, Family

DECODER = {"is_decoder": True}
MAMBA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}

FAMILIES = {
    # Linear heads over a stack of attention blocks.
    "llama": Family(SIZES, smoke=True),
    "mistral": Family(SIZES | {"sliding_window": 3}),
    "ministral": Family(NARROW | SLIDING),
    "qwen2": Family(SIZES),
    "qwen3": Family(NARROW),
    "phi": Family(PLAIN),
    "phi3": Family(SIZES),
    "gpt2": Family(PLAIN, smoke=True),
    "gpt_bigcode": Family(PLAIN),
    "gpt_neo": Family(PLAIN | {"attention_types": [[["global", "local"], 1]], "window_size": 3}),
    "gpt_neox": Family(PLAIN),
    "gptj": Family(PLAIN | {"rotary_dim": 4}),
    "codegen": Family(PLAIN | {"rotary_dim": 4}),
    "openai-gpt": Family(PLAIN),
    "opt": Family(PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Family(PLAIN),
    "mpt": Family(PLAIN),
    "falcon": Family(PLAIN),
    "stablelm": Family(SIZES),
    "starcoder2": Family(SIZES),
    "persimmon": Family(PLAIN),
    "olmo": Family(SIZES),
    "olmo2": Family(SIZES),
    "olmo3": Family(SIZES | SLIDING),
    "arcee": Family(SIZES),
    "apertus": Family(SIZES),
    "smollm3": Family(SIZES),
    "seed_oss": Family(NARROW),
    "exaone4": Family(SIZES | SLIDING),
    "ernie4_5": Family(NARROW),
    "hunyuan_v1_dense": Family(NARROW),
    "glm": Family(NARROW),
    "glm4": Family(NARROW),
    "nemotron": Family(NARROW),
    "helium": Family(NARROW),
    "diffllama": Family(SIZES),
    "bitnet": Family(SIZES),
    "biogpt": Family(PLAIN),
    "ctrl": Family(PLAIN | {"dff": 48}),
    "xglm": Family(PLAIN | {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, dtype="float32"),
    "doge": Family(SIZES),
    "nanochat": Family(SIZES, since5=True),
    "cwm": Family(NARROW | SLIDING, since5=True),
    "ministral3": Family(NARROW, since5=True),
    "jais2": Family(NARROW, since5=True),
    "hyperclovax": Family(NARROW, since5=True),
    "hrm_text": Family(NARROW, blocks=False, since5=True),
    # Scaled, capped or transformed logits, scaled embeddings.
    "cohere": Family(SIZES | {"logit_scale": 0.3}, smoke=True),
    "cohere2": Family(SIZES | SLIDING | {"logit_scale": 0.3}),
    "granite": Family(SIZES | {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "gemma": Family(NARROW),
    "gemma2": Family(NARROW | SLIDING | {"final_logit_softcapping": 0.5}, smoke=True),
    "gemma3_text": Family(NARROW | SLIDING),
    "vaultgemma": Family(NARROW | SLIDING),
    "gemma3n_text": Family(
        NARROW
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 3,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 50,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "modernbert-decoder": Family(PLAIN, smoke=True),
    # Mixtures of experts.
    "mixtral": Family(MOE),
    "qwen2_moe": Family(SIZES | EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3_moe": Family(MOE, smoke=True),
    "olmoe": Family(SIZES | EXPERTS),
    "flex_olmo": Family(SIZES | EXPERTS),
    "phimoe": Family(SIZES | EXPERTS),
    "granitemoe": Family(SIZES | EXPERTS | {"logits_scaling": 4.0}),
    "granitemoeshared": Family(SIZES | EXPERTS | {"shared_intermediate_size": 16}),
    "jetmoe": Family(SIZES | EXPERTS | {"kv_channels": 8}),
    "gpt_oss": Family(NARROW | EXPERTS | SLIDING),
    "ernie4_5_moe": Family(SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0}),
    "hunyuan_v1_moe": Family(NARROW | {"num_experts": 4, "moe_topk": 2}),
    "glm4_moe": Family(NARROW | DEEPSEEK | {"head_dim": 8}),
    "dots1": Family(NARROW | DEEPSEEK | {"head_dim": 8}),
    "deepseek_v2": Family(DEEPSEEK | {"topk_method": "greedy"}),
    "deepseek_v3": Family(DEEPSEEK),
    "minimax": Family(MOE | {"layer_types": ["linear_attention", "full_attention"], "block_size": 4}),
    "minimax_m2": Family(MOE, since5=True),
    "llama4_text": Family(NARROW | {"intermediate_size_mlp": 48, "num_local_experts": 2}),
    "aria_text": Family(NARROW | {"moe_num_experts": 4, "moe_topk": 2}),
    # With a state.
    "mamba": Family(MAMBA, lora=("in_proj", "x_proj"), smoke=True),
    "mamba2": Family(MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}, lora=("in_proj",)),
    "falcon_mamba": Family(MAMBA, lora=("in_proj", "x_proj")),
    "rwkv": Family(MAMBA | {"attention_hidden_size": 32, "intermediate_size": 48, "context_length": 64}),
    "jamba": Family(SIZES | EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8}),
    "bamba": Family(
        SIZES
        | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4, "attn_layer_indices": [1]}
    ),
    "granitemoehybrid": Family(
        SIZES
        | EXPERTS
        | {
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 4,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 16,
        },
    ),
    "falcon_h1": Family(
        SIZES
        | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4, "lm_head_multiplier": 0.5},
        lora=("q_proj", "v_proj", "in_proj", "gate_proj"),
    ),
    "recurrent_gemma": Family(SIZES | {"block_types": ["recurrent", "attention"], "lru_width": 32, "attention_window_size": 8}),
    "lfm2": Family(SIZES | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, smoke=True),
    "qwen3_next": Family(
        MOE
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "zamba2": Family(
        PLAIN
        | {
            "layers_block_type": ["mamba", "hybrid"],
            "hybrid_layer_ids": [1],
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "num_mem_blocks": 1,
            "chunk_size": 4,
            "adapter_rank": 4,
            "attention_head_dim": 16,
        },
    ),
    "olmo_hybrid": Family(
        SIZES
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        since5=True,
    ),
    # More of transformers 5.
    "afmoe": Family(MOE, since5=True),
    "cohere2_moe": Family(MOE, since5=True),
    "exaone_moe": Family(MOE | SLIDING, since5=True),
    "gemma4_unified_text": Family(NARROW | SLIDING, since5=True),
    "gemma4_text": Family(
        NARROW
        | SLIDING
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50, "global_head_dim": 8, "num_kv_shared_layers": 0},
        since5=True,
    ),
    "granite_swa": Family(NARROW, since5=True),
    "granitemoe_swa": Family(MOE, since5=True),
    "hy_v3": Family(MOE, since5=True),
    "laguna": Family(MOE, since5=True),
    "mellum": Family(MOE, since5=True),
    "mimo_v2_flash": Family(MOE, since5=True),
    "solar_open": Family(MOE | {"n_routed_experts": 4}, since5=True),
    "youtu": Family(DEEPSEEK, since5=True),
    "minicpm3": Family(SIZES | LATENT | {"num_key_value_heads": 4}, since5=True),
    "glm4_moe_lite": Family(DEEPSEEK, since5=True),
    "axk1": Family(DEEPSEEK, since5=True),
    "lfm2_moe": Family(
        SIZES | EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "conv_L_cache": 3}, since5=True
    ),
    "qwen3_5_text": Family(
        NARROW
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        since5=True,
    ),
    "nemotron_h": Family(
        SIZES
        | {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 4,
            "head_dim": 8,
        },
        lora=("in_proj", "q_proj", "v_proj"),
        since5=True,
    ),
    "xlstm": Family(
        {
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "chunk_size": 4,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        generate="as its own forward over whole rows; transformers' generate fails (its cache has other sizes than its states)",
    ),
    "blenderbot": Family(ENCODER_DECODER),
    "megatron-bert": Family(PLAIN | DECODER),
    "ernie": Family(PLAIN | DECODER),
    "gpt_neox_japanese": Family(PLAIN),
    "longcat_flash": Family(
        DEEPSEEK
        | {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "moe_topk": 2, "zero_expert_num": 1, "head_dim": 8}
    ),
    "dbrx": Family(
        {
            "vocab_size": 50,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    # Encoders that read to the left, and decoders of pairs.
    "bert": Family(PLAIN | DECODER),
    "bert-generation": Family(PLAIN | DECODER),
    "electra": Family(PLAIN | DECODER | {"embedding_size": 16}),
    "roberta": Family(PLAIN | DECODER),
    "xlm-roberta": Family(PLAIN | DECODER),
    "roformer": Family(PLAIN | DECODER),
    "rembert": Family(PLAIN | DECODER | {"input_embedding_size": 16, "output_embedding_size": 16}),
    "big_bird": Family(PLAIN | DECODER | {"attention_type": "original_full"}),
    "bart": Family(ENCODER_DECODER),
    "mbart": Family(ENCODER_DECODER),
    "pegasus": Family(ENCODER_DECODER),
    "marian": Family(ENCODER_DECODER),
    "blenderbot-small": Family(ENCODER_DECODER),
    "trocr": Family(PLAIN | {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}),
    "prophetnet": Family(
        {name: value for name, value in ENCODER_DECODER.items() if "layers" not in name and "heads" not in name}
        | {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    ),
    "xlnet": Family(
        {
            "vocab_size": 50,
            "d_model": 32,
            "n_layer": 2,
            "n_head": 4,
            "d_inner": 48,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
        dtype="float32",
    ),
    "xlm": Family(
        {"vocab_size": 50, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True, "max_position_embeddings": 64}, blocks=False
    ),
    "reformer": Family(
        PLAIN
        | {
            "is_decoder": True,
            "attn_layers": ["local", "local"],
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [16, 16],
            "attention_head_size": 8,
            "feed_forward_size": 48,
            "local_attn_chunk_length": 4,
        },
    ),
    "cpmant": Family({"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48, "num_hidden_layers": 2}),
}

FLOAT32_INSIDE = (
    *("afmoe", "cohere2_moe", "exaone_moe", "gemma4_text", "gemma4_unified_text", "granite_swa", "granitemoe_swa", "hy_v3", "laguna"),
    *("mimo_v2_flash", "solar_open", "glm4_moe_lite", "axk1", "qwen3_5_text", "nemotron_h", "xlstm", "longcat_flash", "dbrx"),
    "mpt",
    *(
        "gpt_neo",
        "gptj",
        "codegen",
        "helium",
        "diffllama",
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "vaultgemma",
    ),
    *("ernie4_5_moe", "hunyuan_v1_moe", "glm4_moe", "dots1", "deepseek_v2", "deepseek_v3", "minimax_m2", "qwen3_next", "granitemoehybrid"),
    *("jamba", "llama4_text", "mamba", "mamba2", "falcon_mamba", "bamba", "falcon_h1", "recurrent_gemma", "zamba2", "olmo_hybrid"),
)
"""transformers computes their norms, attention or scans in float32 in a float64 model too."""
CAUSAL = {name: replace(family, float32=name in FLOAT32_INSIDE) for name, family in FAMILIES.items()}
