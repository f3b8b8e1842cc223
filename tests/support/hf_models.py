"""Tiny random models written by transformers, and what transformers computes with them; needs PyTorch.

    python -m tests.support.hf_models        writes tests/testdata/golden/<family> for the families of GOLDEN anew

Weights are spread wide enough that greedy choices are clear, and biases and norms are not what they begin with, so that
leaving one out shows.
"""

import pathlib
import sys

import numpy as np

GOLDEN_DIRECTORY = pathlib.Path(__file__).parents[1] / "testdata" / "golden"

_ENCODER_DECODER = dict(
    vocab_size=96, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3, decoder_attention_heads=3,
    encoder_ffn_dim=40, decoder_ffn_dim=56, max_position_embeddings=64,
)  # fmt: skip

# By name: the class, the config's class, what differs from its defaults, and from the defaults of generation.
ENCODER_DECODERS = {
    "bart": ("BartForConditionalGeneration", "BartConfig", {}, dict(forced_bos_token_id=0)),
    "mbart": (
        "MBartForConditionalGeneration", "MBartConfig", dict(scale_embedding=True, decoder_start_token_id=2),
        dict(forced_bos_token_id=90),
    ),
    "marian": (
        "MarianMTModel", "MarianConfig",
        dict(activation_function="swish", scale_embedding=True, pad_token_id=95, decoder_start_token_id=95),
        dict(bad_words_ids=[[95]]),
    ),
    "m2m_100": ("M2M100ForConditionalGeneration", "M2M100Config", {}, dict(forced_bos_token_id=91)),
    "pegasus": (
        "PegasusForConditionalGeneration", "PegasusConfig", dict(activation_function="relu", scale_embedding=True), {},
    ),
}  # fmt: skip

_DECODER_ONLY = dict(
    vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=12, max_position_embeddings=96, bos_token_id=2, eos_token_id=1, pad_token_id=0,
)  # fmt: skip
_PLAIN = dict(  # of families whose keys have a head each, d_model / heads wide
    vocab_size=96, hidden_size=40, num_hidden_layers=3, num_attention_heads=5, max_position_embeddings=96, bos_token_id=2,
    eos_token_id=1, pad_token_id=0,
)  # fmt: skip
_SLIDING = dict(sliding_window=7)

# As above; the windows are shorter than the texts.
DECODER_ONLY = {
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _DECODER_ONLY),
    "gemma2": (
        "Gemma2ForCausalLM", "Gemma2Config",
        _DECODER_ONLY | _SLIDING | dict(query_pre_attn_scalar=20, attn_logit_softcapping=3.0, final_logit_softcapping=6.0),
    ),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        _DECODER_ONLY | _SLIDING | dict(
            query_pre_attn_scalar=10, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e5),
                sliding_attention=dict(rope_type="default", rope_theta=1e3),
            ),
        ),
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", _DECODER_ONLY | dict(sliding_window=5)),
    "phi3": (
        "Phi3ForCausalLM", "Phi3Config",
        _PLAIN | dict(
            intermediate_size=56, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, sliding_window=6,
            rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75),
        ),
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM", "GPTNeoXConfig",
        _PLAIN | dict(
            intermediate_size=56, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
        ),
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", _PLAIN | dict(ffn_dim=56, bos_token_id=2, eos_token_id=2, pad_token_id=1)),
}  # fmt: skip

# The models of tests/testdata/golden: by seed, such whose greedy texts change from token to token.
GOLDEN = {"bart": 1, "mbart": 0, "marian": 6, "m2m_100": 0, "pegasus": 10} | {
    "gemma": 0, "gemma2": 5, "gemma3": 8, "mistral": 9, "phi3": 5, "gpt_neox": 7, "opt": 0,
}  # fmt: skip


def make(family: str, seed: int, **changes):
    """A random model of transformers, in float32, in eval mode."""
    import torch
    import transformers

    model_class, config_class, own, generation = ENCODER_DECODERS[family]
    config = getattr(transformers, config_class)(**(_ENCODER_DECODER | own | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    for key, value in generation.items():
        setattr(model.generation_config, key, value)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if "embed_positions" in name and family in ("marian", "pegasus"):
            continue
        spread = 0.1 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        if tensor.ndim > 1 and "layers." in name and "encoder_attn" not in name:  # else tied embeddings repeat themselves
            spread *= 3
        if "embed_positions" in name:
            spread = 1.0
        middle = 1.0 if tensor.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
        tensor.data = middle + spread * torch.randn(tensor.shape, generator=generator)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.copy_(0.1 * torch.randn(model.final_logits_bias.shape, generator=generator))
        model.final_logits_bias[0, config.pad_token_id] += 1.0  # where a text must not have it, that shows
    return model


def make_decoder_only(family: str, seed: int, **changes):
    """The same of a decoder-only family."""
    import torch
    import transformers

    model_class, config_class, own = DECODER_ONLY[family]
    config = getattr(transformers, config_class)(**(own | changes), attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        spread = 0.1 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        if tensor.ndim > 1 and "layers." in name:  # else tied embeddings repeat themselves
            spread *= 3
        if "embed_positions" in name:
            spread = 1.0
        if "gemma" in family and "embed_tokens" in name:  # which are multiplied by the root of their width
            spread = 0.5 * tensor.shape[-1] ** -0.5
        norm = tensor.ndim == 1 and "norm" in name and name.endswith("weight") and "gemma" not in family
        tensor.data = float(norm) + spread * torch.randn(tensor.shape, generator=generator)
    return model


def texts(model, seed: int, lengths=(23, 9, 1), outputs: int = 24) -> dict[str, np.ndarray]:
    """Ragged prompts for a decoder-only model of transformers, its logits over all of them, and its greedy tokens."""
    import torch

    rng, config = np.random.default_rng(seed), model.config
    inputs = rng.choice(np.arange(3, config.vocab_size), (len(lengths), max(lengths) + outputs))
    inputs[:, 0] = config.bos_token_id
    greedy = []
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(inputs)).logits
        for row, length in zip(inputs, lengths):
            prompt = torch.tensor(row[None, :length])
            mask = torch.ones_like(prompt)
            found = model.generate(prompt, attention_mask=mask, max_new_tokens=outputs, do_sample=False, num_beams=1)
            greedy.append(np.pad(found[0, length:].numpy(), (0, outputs - (found.shape[1] - length)), constant_values=-1))
    return {
        "inputs": inputs.astype(np.int32), "lengths": np.array(lengths, np.int32), "logits": logits.numpy(),
        "greedy": np.array(greedy, np.int32),
    }  # fmt: skip


def examples(model, seed: int, lengths=(17, 5, 1), outputs: int = 12) -> dict[str, np.ndarray]:
    """Ragged inputs and decoder inputs for an encoder-decoder of transformers, its logits and its greedy tokens."""
    import torch

    rng, config = np.random.default_rng(seed), model.config
    special = {config.pad_token_id, config.eos_token_id, config.decoder_start_token_id, getattr(config, "bos_token_id", None)}
    words = [token for token in range(config.vocab_size) if token not in special]
    inputs = np.full((len(lengths), max(lengths)), config.pad_token_id)
    for row, length in zip(inputs, lengths):
        row[:length] = [*rng.choice(words, length - 1), config.eos_token_id]
    size = getattr(config, "decoder_vocab_size", None) or config.vocab_size
    decoder = rng.choice([word for word in words if word < size], (len(lengths), outputs))
    decoder[:, 0] = config.decoder_start_token_id
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    both = dict(input_ids=torch.tensor(inputs), attention_mask=torch.tensor(mask))
    with torch.no_grad():
        logits = model(**both, decoder_input_ids=torch.tensor(decoder)).logits
        greedy = model.generate(**both, max_new_tokens=24, do_sample=False, num_beams=1)
    return {
        "inputs": inputs.astype(np.int32), "lengths": np.array(lengths, np.int32), "decoder": decoder.astype(np.int32),
        "logits": logits.numpy(), "greedy": greedy.numpy().astype(np.int32),
    }  # fmt: skip


def write(directory, family: str, seed: int = 0, **changes) -> None:
    """A model's directory with golden.npz."""
    of, examples_of = (make_decoder_only, texts) if family in DECODER_ONLY else (make, examples)
    model = of(family, seed, **changes)
    model.save_pretrained(directory)
    np.savez_compressed(pathlib.Path(directory) / "golden.npz", **examples_of(model, seed))


if __name__ == "__main__":
    for name in sys.argv[1:] or GOLDEN:
        write(GOLDEN_DIRECTORY / name, name, GOLDEN[name])
