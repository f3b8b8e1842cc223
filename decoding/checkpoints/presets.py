"""Shapes of published models, as Hugging Face configs, for checkpoints that have none and for planning.

Sizes of the paper's models: T5 v1.1 from Raffel et al. (JMLR 2020) and its release notes; the GPT-like pair from
section 4.1 of 2211.17192; LaMDA 137B, 8B and 2B from appendix D of Thoppilan et al. (2201.08239), which counts
parameters without embeddings. LaMDA 100M is known by its size only: the shape here follows the other three
(feed-forward 8 d, twice as wide attention as d, heads of 128). Whether LaMDA ties its embeddings is not published either.
"""


def _t5(d_model: int, d_ff: int, layers: int, heads: int) -> dict:
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": d_model,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _gpt(width: int, inner: int, layers: int, heads: int) -> dict:
    """BERT pieces, of which [PAD] is 0; [CLS] begins a text and [SEP] ends it."""
    return {
        "model_type": "gpt2",
        "vocab_size": 8000,
        "n_positions": 256,
        "n_embd": width,
        "n_inner": inner,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }


def _lamda(width: int, layers: int, heads: int) -> dict:
    return {
        "model_type": "lamda",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": 8 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": 128,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _llama(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, **more) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | more


def _translator(family: str, vocabulary: int, width: int, inner: int, layers: tuple[int, int], **more) -> dict:
    """An encoder-decoder of so many layers on either side, with heads of 64."""
    sides = {"encoder": layers[0], "decoder": layers[1]}
    raw = {"model_type": family, "vocab_size": vocabulary, "d_model": width, "tie_word_embeddings": True}
    for side, depth in sides.items():
        raw |= {f"{side}_layers": depth, f"{side}_ffn_dim": inner, f"{side}_attention_heads": width // 64}
    return raw | more


def _nllb(width: int, inner: int, layers: int) -> dict:
    return _translator("m2m_100", 256206, width, inner, (layers, layers), max_position_embeddings=1024)


def _marian(width: int, inner: int) -> dict:
    """Vaswani et al.'s big or base, with English and German's vocabulary of OPUS-MT."""
    special = dict(pad_token_id=58100, decoder_start_token_id=58100, eos_token_id=0, forced_eos_token_id=0)
    return _translator("marian", 58101, width, inner, (6, 6), max_position_embeddings=512, scale_embedding=True, **special)


def _pythia(width: int, layers: int, heads: int, vocabulary: int) -> dict:
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _gemma2(width: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, divisor: int) -> dict:
    return {
        "model_type": "gemma2",
        "vocab_size": 256000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": divisor,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
    }


PRESETS: dict[str, dict] = {
    "t5-v1.1-small": _t5(512, 1024, 8, 6),
    "t5-v1.1-base": _t5(768, 2048, 12, 12),
    "t5-v1.1-large": _t5(1024, 2816, 24, 16),
    "t5-v1.1-xl": _t5(2048, 5120, 24, 32),
    "t5-v1.1-xxl": _t5(4096, 10240, 24, 64),
    "gpt-97m": _gpt(768, 3072, 12, 12),
    "gpt-6m": _gpt(256, 1024, 2, 4),
    "lamda-137b": _lamda(8192, 64, 128),
    "lamda-8b": _lamda(4096, 16, 64),
    "lamda-2b": _lamda(2560, 10, 40),
    "lamda-100m": _lamda(1024, 3, 16),
    "smollm2-135m": _llama(49152, 576, 1536, 30, 9, 3, rope_theta=100000.0, tie_word_embeddings=True)
    | {"bos_token_id": 0, "eos_token_id": 0},
    "nllb-200-3.3b": _nllb(2048, 8192, 24),
    "nllb-200-1.3b": _nllb(1024, 8192, 24),
    "nllb-200-600m": _nllb(1024, 4096, 12),
    "bart-large": _translator("bart", 50265, 1024, 4096, (12, 12)),
    "distilbart-6-6": _translator("bart", 50265, 1024, 4096, (6, 6)),
    "opus-mt-big": _marian(1024, 4096),
    "opus-mt": _marian(512, 2048),
    "pythia-12b": _pythia(5120, 36, 40, 50688),
    "pythia-410m": _pythia(1024, 24, 16, 50304),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, 128, 144),
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4, 256, 256),
    "llama-2-70b": _llama(32000, 8192, 28672, 80, 64, 8, rope_theta=10000.0, tie_word_embeddings=False),
}
