"""Families of sequence classifiers by model type."""

from dataclasses import replace

from architectures.families import DEEPSEEK, ENCODER_DECODER, MOE, NARROW, PLAIN, SIZES, SLIDING, Family

ENCODER = PLAIN | {"type_vocab_size": 2}
XLM = {"vocab_size": 50, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "pad_index": 0}
T5 = PLAIN | {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}

FAMILIES = {
    # Encoders.
    "bert": Family(ENCODER, smoke=True),
    "roberta": Family(ENCODER | {"type_vocab_size": 1}, smoke=True),
    "xlm-roberta": Family(ENCODER | {"type_vocab_size": 1}),
    "camembert": Family(ENCODER | {"type_vocab_size": 1}),
    "roberta-prelayernorm": Family(ENCODER | {"type_vocab_size": 1}),
    "xlm-roberta-xl": Family(ENCODER | {"type_vocab_size": 1}),
    "data2vec-text": Family(ENCODER | {"type_vocab_size": 1}),
    "distilbert": Family(
        {"vocab_size": 50, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
    ),
    "albert": Family(ENCODER | {"embedding_size": 16}, blocks=False),
    "electra": Family(ENCODER | {"embedding_size": 16}),
    "deberta": Family(ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32}),
    "deberta-v2": Family(
        ENCODER
        | {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "pooler_hidden_size": 32,
            "position_buckets": 8,
            "share_att_key": True,
        },
    ),
    "mpnet": Family(PLAIN),
    "modernbert": Family(PLAIN | {"cls_token_id": 3, "sep_token_id": 4, "local_attention": 4}),
    "ernie": Family(ENCODER),
    "megatron-bert": Family(ENCODER),
    "roformer": Family(ENCODER | {"embedding_size": 16}),
    "rembert": Family(ENCODER | {"input_embedding_size": 16, "output_embedding_size": 16}),
    "convbert": Family(ENCODER | {"embedding_size": 16, "conv_kernel_size": 3}),
    "squeezebert": Family(
        ENCODER
        | {
            "embedding_size": 32,
            "q_groups": 1,
            "k_groups": 1,
            "v_groups": 1,
            "post_attention_groups": 1,
            "intermediate_groups": 1,
            "output_groups": 1,
        },
        block="transformer.encoder.layers.1",
    ),
    "mobilebert": Family(ENCODER | {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}),
    "nystromformer": Family(ENCODER | {"num_landmarks": 64, "segment_means_seq_len": 64}),
    "big_bird": Family(ENCODER | {"attention_type": "original_full"}),
    "longformer": Family(ENCODER | {"attention_window": 4}, smoke=True),
    "esm": Family(PLAIN | {"position_embedding_type": "rotary", "mask_token_id": 5, "token_dropout": False}),
    "ibert": Family(ENCODER),
    "funnel": Family(
        {"vocab_size": 50, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "num_decoder_layers": 1}
    ),
    "fnet": Family(ENCODER),
    "canine": Family(ENCODER),
    "xlnet": Family({"vocab_size": 50, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "pad_token_id": 0}, dtype="float32"),
    "xlm": Family(XLM, blocks=False),
    "flaubert": Family(XLM, blocks=False),
    "eurobert": Family(SIZES, since5=True),
    # Decoders.
    "gpt2": Family(PLAIN),
    "gpt_neo": Family(PLAIN | {"attention_types": [[["global", "local"], 1]], "window_size": 3}),
    "gpt_neox": Family(PLAIN),
    "gptj": Family(PLAIN | {"rotary_dim": 4}),
    "gpt_bigcode": Family(PLAIN),
    "opt": Family(PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": Family(PLAIN),
    "falcon": Family(PLAIN),
    "mpt": Family(PLAIN),
    "llama": Family(SIZES, smoke=True),
    "mistral": Family(SIZES | {"sliding_window": 3}),
    "mixtral": Family(MOE),
    "qwen2": Family(SIZES),
    "qwen3": Family(NARROW),
    "gemma": Family(NARROW),
    "gemma2": Family(NARROW | SLIDING),
    "gemma3_text": Family(NARROW | SLIDING),
    "phi": Family(PLAIN),
    "phi3": Family(SIZES),
    "stablelm": Family(SIZES),
    "starcoder2": Family(SIZES),
    "smollm3": Family(SIZES),
    "glm4": Family(NARROW),
    "deepseek_v3": Family(DEEPSEEK),
    "modernbert-decoder": Family(PLAIN),
    "openai-gpt": Family(PLAIN),
    "ctrl": Family(PLAIN | {"dff": 48}),
    # Encoders with a decoder.
    "bart": Family(ENCODER_DECODER, smoke=True),
    "mbart": Family(ENCODER_DECODER),
    "t5": Family(T5),
    "mt5": Family(T5),
    "umt5": Family(T5),
}

FLOAT32_INSIDE = ("deberta", "mpt", "gpt_neo", "gptj", "gemma", "gemma2", "gemma3_text", "deepseek_v3")
CLASSIFIERS = {name: replace(family, float32=name in FLOAT32_INSIDE) for name, family in FAMILIES.items()}
