"""Run by test_sharding.py where there are 8 virtual devices: what models on a mesh compute, as JSON on stdout.

    python sharded_models.py CASE... ; a CASE is model:data:model-ways, for example llama:2:4, "collectives" or "loaded"
"""

import functools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import decoding
from decoding import sharding
from decoding.checkpoints import architecture
from decoding.models import resident
from decoding.models.linear import RoundedWeight

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "testdata" / "golden"
VOCABULARY = 96
_IDS = {"eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
_T5 = {
    "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1,
    "num_decoder_layers": 2, "num_heads": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6,
    "decoder_start_token_id": 0,
} | _IDS  # fmt: skip
_LLAMA = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
} | _IDS  # fmt: skip
_GEMMA = {
    "model_type": "gemma2", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 10, "sliding_window": 3,
} | _IDS  # fmt: skip
_BART = {
    "model_type": "bart", "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_attention_heads": 8, "decoder_attention_heads": 16, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64,
    "max_position_embeddings": 32, "decoder_start_token_id": 0, "forced_eos_token_id": None, "tie_word_embeddings": False,
} | _IDS  # fmt: skip

MODELS = {
    "t5": _T5,
    "gpt2": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_inner": 64, "n_layer": 2,
        "n_head": 8, "activation_function": "gelu_new", "tie_word_embeddings": True,
    } | _IDS,
    "llama": _LLAMA,
    "gemma2": _GEMMA,
    "gpt_neox": {
        "model_type": "gpt_neox", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 8, "rotary_pct": 0.5,
    } | _IDS,
    "lamda": {
        "model_type": "lamda", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 8, "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
    } | _IDS,
    "m2m_100": {
        "model_type": "m2m_100", "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64,
        "max_position_embeddings": 32, "decoder_start_token_id": 0,
    } | _IDS,
    "bart": _BART,
    "mbart": _BART | {"model_type": "mbart"},
    "marian": _BART | {"model_type": "marian", "tie_word_embeddings": True},
    "pegasus": _BART | {"model_type": "pegasus", "decoder_attention_heads": 8},
    "opt": {
        "model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 64, "ffn_dim": 48, "num_hidden_layers": 2,
        "num_attention_heads": 8, "max_position_embeddings": 64,
    } | _IDS,
    "phi3": _LLAMA | {"model_type": "phi3", "partial_rotary_factor": 0.5, "sliding_window": 4},
    "mistral": _LLAMA | {"model_type": "mistral", "sliding_window": 4},
    "gemma3_text": _GEMMA | {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
    # Nothing but the feed-forward divides by 4 or 8.
    "indivisible": _T5 | {"num_heads": 6, "vocab_size": 97},
}  # fmt: skip


@functools.cache
def model(name: str, seed: int = 0):
    """A random model whose logits spread enough for clear choices."""
    config = architecture.parse_config(MODELS[name], name)
    cls = type(architecture.build(config, jnp.float32))
    return cls(config, rngs=nnx.Rngs(seed), dtype=jnp.float32)


@functools.cache
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(2, VOCABULARY, size=int(n)).tolist() for n in rng.integers(2, 9, size=10)]


def teacher_forced(model_) -> np.ndarray:
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, VOCABULARY, size=(8, 6)).astype(np.int32)
    encoder = (tokens[:, ::-1], np.arange(1, 9, dtype=np.int32).clip(max=6)) if model_.encoder_decoder else ()
    return np.asarray(model_.logits(tokens, *encoder))


def decoded(target, draft, beams: int) -> list[list[int]]:
    config = decoding.DecodingConfig(
        gamma=3, temperature=0.0, num_slots=8, max_decode_tokens=6, input_buckets=(8,), chunk_iterations=4,
        num_beams=beams, num_return_sequences=beams,
    )  # fmt: skip
    results = decoding.Generator(target, draft, config).generate(texts(), [str(i) for i in range(len(texts()))])
    return [result.tokens.tolist() for result in results]


@functools.cache
def alone(name: str, beams: int):
    return teacher_forced(model(name)), decoded(model(name), model(name, 1), beams)


def collectives() -> dict[str, int]:
    """Of a compiled step of the T5 on data:2,model:4: how many of each kind."""
    model_ = sharding.shard(model("t5"), sharding.make_mesh(2, 4, jax.devices()))
    graph, params = nnx.split(model_)
    state = model_.init_state(8, 8, 8)
    step = jax.jit(lambda params, *rest: nnx.merge(graph, params).step(*rest)[0])
    integers = lambda *shape: jnp.zeros(shape, jnp.int32)
    place = sharding.Placement(sharding.mesh_of(model_))
    shapes = place.states([model_], [jax.eval_shape(lambda: state)])[0]
    state = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), state, shapes)
    text = step.lower(params, integers(8, 4), integers(8), state).compile().as_text()
    kinds = re.findall(r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def run(case: str) -> dict:
    name, data, ways, *searched = case.split(":")
    beams = 3 if searched else 1
    mesh = sharding.make_mesh(int(data), int(ways), jax.devices()[: int(data) * int(ways)])
    split = sharding.shard(model(name), mesh)
    logits, tokens = alone(name, beams)
    # The draft is split on the model's axis, or, without a mesh, copied to every device.
    draft = model(name, 1) if int(data) > 1 else sharding.shard(model(name, 1), mesh)
    arrays = jax.tree.leaves(nnx.state(split))
    return {
        "error": float(np.max(np.abs(teacher_forced(split) - logits)) / np.max(np.abs(logits))),
        "same_tokens": decoded(split, draft, beams) == tokens,
        "tokens": sum(map(len, tokens)),
        "whole_bytes": sum(array.nbytes for array in jax.tree.leaves(nnx.state(model(name)))),
        "device_bytes": sum(array.addressable_shards[0].data.nbytes for array in arrays),
        "undivided": sharding.undivided(model(name).config, mesh),
    }


def loaded() -> dict:
    """Whether a checkpoint loaded onto a mesh is the model that is loaded and then split, bit by bit, by name."""
    mesh = sharding.make_mesh(2, 2, jax.devices()[:4])
    found = {}
    for name in ("llama", "t5_v1_1_draft"):
        path = str(GOLDEN / name)
        models = decoding.load_model(path, mesh=mesh), sharding.shard(decoding.load_model(path, weights="plain"), mesh)
        (graph, mine), (other, theirs) = map(nnx.split, models)
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
        found[name] = graph == other and all(a.sharding == b.sharding and np.array_equal(a, b) for a, b in pairs)
    return found


def rounded() -> dict:
    """Of weights in fewer bits on 2 x 2 devices: how far logits are from those of the same numbers as float32, whether a plan's
    shapes are those that are loaded, and the bytes of a device's products."""
    mesh, found = sharding.make_mesh(2, 2, jax.devices()[:4]), {}
    for name, form in (("llama", "int8"), ("t5_v1_1_draft", "int8"), ("t5_v1_1_draft", "bfloat16")):
        path = str(GOLDEN / name)
        split, plain = decoding.load_model(path, weights=form, mesh=mesh), decoding.load_model(path, weights="plain")
        rounding, flat, changed = resident.Rounding(plain.config, form, "float32"), [], 0.0
        for keys, leaf in nnx.to_flat_state(nnx.state(plain)):
            value = exact = np.asarray(leaf.get_value())
            held = rounding.round(".".join(map(str, keys)), value)
            if isinstance(held, RoundedWeight):
                value = held.values.astype(np.float32)
                if held.scale is not None:
                    value *= np.expand_dims(held.scale, 1 - held.outputs)
                changed = max(changed, float(np.abs(value - exact).max() / np.abs(exact).max()))
            flat.append((keys, leaf.replace(jnp.asarray(value))))
        wide = teacher_forced(nnx.merge(nnx.split(plain)[0], nnx.from_flat_state(flat)))
        planned = resident.round_abstract(sharding.shard(sharding.abstract(plain.config), mesh), form)
        (graph, mine), (other, theirs) = map(nnx.split, (split, planned))
        pairs = list(zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True))
        same = all((a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding) for a, b in pairs)
        found[f"{name} {form}"] = {
            "error": float(np.abs(teacher_forced(split) - wide).max() / np.abs(wide).max()),
            "changed": changed,
            "as_planned": graph == other and same,
            "short_bytes": sum(a.addressable_shards[0].data.nbytes for a, _ in pairs if a.dtype.name == form),
            "plain_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(plain))),
        }
    return found


if __name__ == "__main__":
    others = {"collectives": collectives, "loaded": loaded, "rounded": rounded}
    print(json.dumps({case: others[case]() if case in others else run(case) for case in sys.argv[1:]}))
