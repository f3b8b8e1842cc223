"""Hugging Face directories: config.json and safetensors, whole or split with an index.  Nothing is unpickled."""

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from decoding.checkpoints import storage
from decoding.checkpoints.storage import CheckpointError
from decoding.models.t5 import T5, T5Config

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Copies of the shared embedding, and a bias table of early checkpoints that the model never reads.
_IGNORED = frozenset(
    [
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ]
)


class Source(NamedTuple):
    """Where one of our parameters comes from: tensors of the file, their shapes, and how they are joined."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    combine: Callable[..., np.ndarray]


def read_config(path: str) -> T5Config:
    """The model's shape from `config.json`, and from the weights' names where the config leaves it open.

    Both forms of published configs load: a `lm_head.weight` in the file means untied; the decoder's output is
    scaled when `scale_decoder_outputs` is true or, where absent, when `tie_word_embeddings` is not false.
    """
    raw = storage.read_json(storage.join(path, "config.json"))
    if raw.get("model_type") not in ("t5", "mt5"):
        raise CheckpointError(
            f"{path}/config.json: model_type is {raw.get('model_type')!r}; supported: t5, mt5 (encoder-decoder)"
        )
    names = set(tensor_files(path))
    return t5_config(raw, path, tied="lm_head.weight" not in names)


def t5_config(raw: dict, path: str, *, tied: bool) -> T5Config:
    """T5Config from the keys of a Hugging Face config.

    Raises:
      CheckpointError: a required key is missing or an activation is unknown.
    """

    def need(key: str):
        if key not in raw:
            raise CheckpointError(f"{path}/config.json lacks {key!r}")
        return raw[key]

    projection = raw.get("feed_forward_proj", "relu")
    gated = projection.startswith("gated-")
    activation = projection.removeprefix("gated-")
    if gated and activation == "gelu":
        activation = "gelu_new"  # Hugging Face's rule: "gated-gelu" means the tanh approximation.
    if activation not in ("relu", "gelu", "gelu_new", "silu"):
        raise CheckpointError(
            f"{path}/config.json: feed_forward_proj is {projection!r}; allowed: relu, gelu, gelu_new, silu, gated-..."
        )
    eos = raw.get("eos_token_id", 1)
    return T5Config(
        vocab_size=need("vocab_size"),
        d_model=need("d_model"),
        d_kv=need("d_kv"),
        d_ff=need("d_ff"),
        num_layers=need("num_layers"),
        num_decoder_layers=raw.get("num_decoder_layers") or need("num_layers"),
        num_heads=need("num_heads"),
        gated=gated,
        activation=activation,
        tied=tied,
        scale_decoder_outputs=raw.get("scale_decoder_outputs", raw.get("tie_word_embeddings", True)),
        relative_attention_num_buckets=raw.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance=raw.get("relative_attention_max_distance", 128),
        layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-6),
        start_id=raw.get("decoder_start_token_id", 0),
        eos_id=eos[0] if isinstance(eos, list) else eos,
        pad_id=raw.get("pad_token_id", 0),
    )


def weight_files(path: str) -> list[str]:
    """Paths of the directory's safetensors files, sorted.

    Raises:
      CheckpointError: there are none; where only pickled weights exist the message says so.
    """
    names = storage.list_names(path)
    if not names:
        raise CheckpointError(f"{path} does not exist or is empty; a Hugging Face directory is needed")
    if INDEX in names:
        index = storage.read_json(storage.join(path, INDEX))
        wanted = sorted(set(index.get("weight_map", {}).values()))
        missing = [name for name in wanted if name not in names]
        if missing or not wanted:
            raise CheckpointError(f"{path}/{INDEX} names files that are not there: {missing or 'none at all'}")
        return [storage.join(path, name) for name in wanted]
    if SINGLE in names:
        return [storage.join(path, SINGLE)]
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    hint = f"; {pickled} hold pickles, which are never loaded: convert them to safetensors" if pickled else ""
    raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}{hint}")


def tensor_files(path: str) -> dict[str, str]:
    """Tensor name -> the safetensors file that holds it."""
    if INDEX in storage.list_names(path):
        weight_files(path)  # complains about missing files
        weight_map = storage.read_json(storage.join(path, INDEX))["weight_map"]
        return {name: storage.join(path, file) for name, file in weight_map.items()}
    (file,) = weight_files(path)
    with storage.local_file(file) as local, _open(local, file) as tensors:
        return {name: file for name in tensors.keys()}


@contextlib.contextmanager
def _open(local: str, shown: str):
    try:
        # "flax" yields JAX arrays, the only framework besides torch in which safetensors reads bfloat16.
        with safetensors.safe_open(local, framework="flax") as tensors:
            yield tensors
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{shown} is not a readable safetensors file: {error}") from error


def load_t5(path: str, dtype) -> T5:
    """Reads a T5 directory into a model whose parameters have `dtype`.

    Each parameter is cast as it is read, so the peak is the resident model plus the largest fused parameter.
    """
    config = read_config(path)
    abstract = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    sources = t5_sources(config)
    files = tensor_files(path)
    _check_names(path, sources, files)
    with contextlib.ExitStack() as stack:
        handles = {
            file: stack.enter_context(_open(stack.enter_context(storage.local_file(file)), file))
            for file in sorted(set(files.values()))
        }
        _check_shapes(path, sources, files, handles)
        flat = []
        for keys, leaf in nnx.to_flat_state(state):
            source = sources[".".join(str(key) for key in keys)]
            tensors = [np.asarray(handles[files[name]].get_tensor(name).astype(dtype)) for name in source.names]
            value = jnp.asarray(source.combine(*tensors))
            assert value.shape == leaf.shape and value.dtype == dtype, (keys, value.shape, leaf.shape)
            flat.append((keys, leaf.replace(value)))
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _check_names(path: str, sources: dict[str, Source], files: dict[str, str]) -> None:
    wanted = {name for source in sources.values() for name in source.names}
    missing = sorted(wanted - files.keys())
    extra = sorted(files.keys() - wanted - _IGNORED)
    if missing or extra:
        lines = [f"missing weight {name}" for name in missing] + [f"unexpected weight {name}" for name in extra]
        raise CheckpointError(f"{path} does not match its config:\n  " + "\n  ".join(lines))


def _check_shapes(path: str, sources: dict[str, Source], files: dict[str, str], handles: dict) -> None:
    lines = []
    for source in sources.values():
        for name, shape in zip(source.names, source.shapes):
            found = tuple(handles[files[name]].get_slice(name).get_shape())
            if found != shape:
                lines.append(f"{name}: the file has {list(found)}, the config says {list(shape)}")
    if lines:
        raise CheckpointError(f"{path} does not match its config:\n  " + "\n  ".join(lines))


def _as_is(tensor: np.ndarray) -> np.ndarray:
    return tensor


def _fused(*tensors: np.ndarray) -> np.ndarray:
    """Linear weights [out, in], side by side: [in, sum of outs]."""
    return np.concatenate([tensor.T for tensor in tensors], axis=1)


def t5_sources(config: T5Config) -> dict[str, Source]:
    """Our parameter path -> its source in a Hugging Face T5 checkpoint."""
    d, inner, d_ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    vocabulary = (config.vocab_size, d)
    bias = (config.relative_attention_num_buckets, config.num_heads)

    def vector(name: str) -> Source:
        return Source((name,), ((d,),), _as_is)

    def table(name: str, shape: tuple[int, ...]) -> Source:
        return Source((name,), (shape,), _as_is)

    def linear(names: Sequence[str], out: int, into: int) -> Source:
        return Source(tuple(names), ((out, into),) * len(names), _fused)

    sources = {
        "embedding": table("shared.weight", vocabulary),
        "encoder_bias": table("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", bias),
        "decoder_bias": table("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", bias),
        "encoder_norm": vector("encoder.final_layer_norm.weight"),
        "decoder_norm": vector("decoder.final_layer_norm.weight"),
    }
    if not config.tied:
        sources["head"] = linear(["lm_head.weight"], config.vocab_size, d)

    def add_attention(ours: str, theirs: str) -> None:
        sources[f"{ours}.attention.norm"] = vector(f"{theirs}.layer_norm.weight")
        sources[f"{ours}.attention.qkv"] = linear([f"{theirs}.SelfAttention.{x}.weight" for x in "qkv"], inner, d)
        sources[f"{ours}.attention.out"] = linear([f"{theirs}.SelfAttention.o.weight"], d, inner)

    def add_feed_forward(ours: str, theirs: str) -> None:
        first = ["wi_0", "wi_1"] if config.gated else ["wi"]
        sources[f"{ours}.feed_forward.norm"] = vector(f"{theirs}.layer_norm.weight")
        sources[f"{ours}.feed_forward.wi"] = linear([f"{theirs}.DenseReluDense.{x}.weight" for x in first], d_ff, d)
        sources[f"{ours}.feed_forward.wo"] = linear([f"{theirs}.DenseReluDense.wo.weight"], d, d_ff)

    for i in range(config.num_layers):
        add_attention(f"encoder.{i}", f"encoder.block.{i}.layer.0")
        add_feed_forward(f"encoder.{i}", f"encoder.block.{i}.layer.1")
    for i in range(config.num_decoder_layers):
        add_attention(f"decoder.{i}", f"decoder.block.{i}.layer.0")
        theirs = f"decoder.block.{i}.layer.1"
        sources[f"decoder.{i}.cross.norm"] = vector(f"{theirs}.layer_norm.weight")
        sources[f"decoder.{i}.cross.query"] = linear([f"{theirs}.EncDecAttention.q.weight"], inner, d)
        sources[f"decoder.{i}.cross.kv"] = linear([f"{theirs}.EncDecAttention.{x}.weight" for x in "kv"], inner, d)
        sources[f"decoder.{i}.cross.out"] = linear([f"{theirs}.EncDecAttention.o.weight"], d, inner)
        add_feed_forward(f"decoder.{i}", f"decoder.block.{i}.layer.2")
    return sources
