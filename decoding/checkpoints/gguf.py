"""GGUF files (llama.cpp's single-file format): read through the `gguf` package, dequantised tensor by tensor.

A file holds what a Hugging Face directory holds under other names, so its metadata becomes a Hugging Face config and
its weights are joined as `hf_decoder_only` joins them. One thing differs: for the architecture "llama" the converter
interleaves the two halves of every query and key head, which is undone here.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from decoding import kernels
from decoding.checkpoints import architecture, storage
from decoding.checkpoints.checkpoint import Checkpoint
from decoding.checkpoints.fill import Source, check, stream
from decoding.checkpoints.storage import CheckpointError
from decoding.models.decoder_only import DecoderConfig
from decoding.registry import FAMILIES

# By the file's name of a family, transformers'. Mistral's files say "llama".
ARCHITECTURES = {name: name for name in ("llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2")} | {"gemma3": "gemma3_text"}
ROPE_FACTORS = "rope_freqs.weight"
IGNORED = frozenset([ROPE_FACTORS])

_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_HEAD_BYTES = 64 << 20  # of a remote file, for its metadata: vocabularies with their merges take up to 10 MB
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}
_GEMMA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# What Gemma's files leave out: how many layers have the models whose scores are divided by the root of d_model / heads.
_GEMMA_WIDE_LAYERS = {"gemma2": 46, "gemma3": 62}


class GgufFile:
    """An open file: its metadata, and `decoding.checkpoints.fill.Tensors` over its weights.

    Attributes:
      path: as the user named it, for messages.
      parts: how many files it is split over.
      shapes: of the tensors by name, outermost axis first.
    """

    def __init__(self, path: str, readers: Sequence):
        self.path, self.parts = path, len(readers)
        self._fields = readers[0].fields
        self._tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        self.shapes = {name: tuple(reversed(t.shape.tolist())) for name, t in self._tensors.items()}

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python's number, text, truth value or list."""
        return self._fields[key].contents() if key in self._fields else default

    def require(self, key: str) -> Any:
        """As `get`. Raises CheckpointError where the file lacks it."""
        if key not in self._fields:
            raise CheckpointError(f"{self.path}: the metadata lacks {key!r}")
        return self.get(key)

    def blocks(self, name: str) -> tuple[np.ndarray, str]:
        """A weight [out, in] as one of `Blocks.columns`."""
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        if kind in kernels.BLOCKS:
            return np.asarray(tensor.data).reshape(self.shapes[name][0], -1), kind
        return self.read(name).astype(np.float32, copy=False).T, "float32"

    def read(self, name: str) -> np.ndarray:
        import gguf

        tensor = self._tensors[name]
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            return np.array(tensor.data)  # the package's result would be a window on the file
        try:
            return gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(f"{self.path}: {name} is stored as {tensor.tensor_type.name}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A weight [in, out] in the file's own form.

    Attributes:
      columns: of tensors side by side, the columns of each: its blocks uint8[out, bytes] and their kind, one of
        `kernels.BLOCKS`; or float32[in, out] and "float32".
      shape: of the whole.
    """

    columns: tuple[tuple[np.ndarray, str], ...]
    shape: tuple[int, int]


def is_gguf(path: str) -> bool:
    return path.endswith(".gguf")


@contextlib.contextmanager
def open_file(path: str, *, weights: bool = True) -> Iterator[GgufFile]:
    """Opens a file; one on gs:// is copied to local disk while the context lasts.

    Args:
      path: local or gs://.
      weights: False where only metadata and shapes are wanted; of a remote file the beginning is then enough.

    Raises:
      CheckpointError: no such file, not a whole GGUF file, or the `gguf` package is not installed.
    """
    head = None if weights else _HEAD_BYTES
    try:
        with contextlib.ExitStack() as stack:
            parts = [(part, stack.enter_context(storage.local_file(part, head))) for part in parts_of(path)]
            yield GgufFile(path, [_open(part, local) for part, local in parts])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def parts_of(path: str) -> tuple[str, ...]:
    """All files of a model that is split over several, by the name of any; the first has the metadata. Else the file."""
    named = _PART.fullmatch(path)
    if named is None:
        return (path,)
    return tuple(f"{named[1]}-{number:05d}-of-{named[2]}.gguf" for number in range(1, int(named[2]) + 1))


def _open(path: str, local: str):
    stat = os.stat(local)
    try:
        with open(local, "rb") as stream:
            if stream.read(len(storage.LFS_POINTER)) == storage.LFS_POINTER:
                raise ValueError("it is Git LFS's pointer to one (git lfs pull)")
        read = _read_header.__wrapped__ if "://" in path else _read_header  # a copy would stay on disk while it is kept
        return read(local, stat.st_size, stat.st_mtime_ns)
    except OSError:
        raise
    except ImportError as error:
        raise CheckpointError(f"{path}: GGUF files need the extra 'gguf' of specbeam ({error})") from error
    except Exception as error:  # the package raises whatever its reading of a foreign file leads to
        raise CheckpointError(f"{path} is not a whole GGUF file: {error}") from error


@functools.lru_cache(maxsize=8)  # a job opens its file for the model, the tokeniser and the chat template
def _read_header(local: str, size: int, modified_ns: int):
    """The package's reader; a vocabulary of 50,000 pieces takes it two seconds."""
    import gguf

    class StrictReader(gguf.GGUFReader):
        """The package's slices are silently short where a file ends early."""

        def _get(self, offset, dtype, count=1, override_order=None):
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != count:
                raise ValueError(f"{count} values of {np.dtype(dtype)} at byte {offset} lie beyond its end")
            return found

    reader = StrictReader(local)
    if reader.byte_order != "I":
        raise ValueError("its byte order is not this machine's")
    return reader


def find(path: str, given: str | Mapping | None) -> Checkpoint:
    """A file's checkpoint; its weights are read when they are asked for.

    Args:
      path: the file.
      given: an architecture, which must agree with the file's own.

    Raises:
      CheckpointError: not a whole GGUF file, or an architecture that is not supported.
    """
    with open_file(path, weights=False) as file:
        try:
            own = read_config(file)
        except CheckpointError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: the metadata cannot be used: {error}") from error
        raw, config = architecture.settle(own, path, given, tied="output.weight" not in file.shapes)

    def parameters(dtype) -> Iterator[tuple[str, np.ndarray]]:
        with open_file(path) as file:
            named, family = sources(config, raw["model_type"]), raw["model_type"]
            if dtype is not None:
                yield from stream(path, named, file, dtype, IGNORED)
                return
            check(path, named, file.shapes, IGNORED)
            for ours, source in named.items():
                if source.side_by_side or ours == "embedding":
                    yield ours, _in_blocks(file, source, config, family)
                else:
                    yield ours, np.asarray(source.combine(*(file.read(name) for name in source.names)))

    return Checkpoint(raw, config, parts_of(path), parameters)


def read_config(file: GgufFile) -> dict:
    """The file's metadata in Hugging Face's keys.

    Raises:
      CheckpointError: an architecture or a variant of it that is not supported, or metadata that is missing.
    """
    family = file.require("general.architecture")
    if family not in ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: general.architecture is {family!r}; supported: {', '.join(ARCHITECTURES)}"
        )
    parts = file.get("split.count")
    if parts and parts != file.parts:
        raise CheckpointError(
            f"{file.path} is one of the {parts} parts of a model; allowed: their own names, NAME-00001-of-{parts:05d}.gguf"
        )
    if value := file.get(f"{family}.expert_count"):
        raise CheckpointError(f"{file.path}: {family}.expert_count is {value!r}, which is not supported")
    window = file.get(f"{family}.attention.sliding_window") or None
    if "token_embd.weight" not in file.shapes:
        raise CheckpointError(f"{file.path}: the weight token_embd.weight is missing")

    def number(key: str, default: int | None = None) -> int:
        value = file.require(f"{family}.{key}") if default is None else file.get(f"{family}.{key}", default)
        if not isinstance(value, int):
            raise CheckpointError(f"{file.path}: {family}.{key} is {value!r:.100}; supported: one whole number")
        return value

    if "rope_factors_long.weight" in file.shapes:
        raise CheckpointError(f"{file.path}: rotary scaling 'longrope' is not supported; allowed: default, linear, llama3")
    width, heads = number("embedding_length"), number("attention.head_count")
    head_dim = file.get(f"{family}.attention.key_length") or width // heads
    rotated = file.get(f"{family}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise CheckpointError(f"{file.path}: {rotated} of a head's {head_dim} dimensions rotate; supported: all of them")
    of_family = {}
    if family in _GEMMA_WIDE_LAYERS:
        wide = number("block_count") == _GEMMA_WIDE_LAYERS[family]
        of_family = {
            "query_pre_attn_scalar": width / heads if wide else head_dim,
            "attn_logit_softcapping": file.get(f"{family}.attn_logit_softcapping"),
            "final_logit_softcapping": file.get(f"{family}.final_logit_softcapping"),
        }
    kinds = ["sliding_attention"] * number("block_count") if window and family not in _GEMMA_WIDE_LAYERS else None
    return {
        "model_type": ARCHITECTURES[family],
        **of_family,
        "vocab_size": file.shapes["token_embd.weight"][0],
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "attention_bias": "blk.0.attn_output.bias" in file.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in file.shapes,
        "rms_norm_eps": file.require(f"{family}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.get(f"{family}.rope.freq_base", 1e6 if family == "gemma3" else 10000.0),
        "rope_scaling": _scaling(file, family),
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [file.require("tokenizer.ggml.eos_token_id"), *filter(None, [file.get("tokenizer.ggml.eot_token_id")])],
        "max_position_embeddings": file.get(f"{family}.context_length"),
        "sliding_window": window,
        "layer_types": kinds,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": "output.weight" not in file.shapes,
    }


def _scaling(file: GgufFile, family: str) -> dict:
    """Llama 3's converter writes its scaling as one factor per frequency, in a tensor.

    A factor alone, under its old name too, is linear.
    """
    if ROPE_FACTORS in file.shapes:
        factors = tuple(map(float, file.read(ROPE_FACTORS)))
        if 0.0 in factors:
            raise CheckpointError(f"{file.path}: {ROPE_FACTORS} holds zeros; a remote file must have it early")
        return {"rope_type": "factors", "factors": factors}
    factor = file.get(f"{family}.rope.scaling.factor", file.get(f"{family}.rope.scale_linear"))
    kind = file.get(f"{family}.rope.scaling.type", "linear" if factor else "none")
    return {"rope_type": "default" if kind == "none" else kind, "factor": factor}


def sources(config: DecoderConfig, family: str) -> dict[str, Source]:
    """Our parameter path -> its source."""
    return {ours: _renamed(source, config, family) for ours, source in FAMILIES.get(family).sources(config).items()}


def _renamed(source: Source, config: DecoderConfig, family: str) -> Source:
    names = []
    known = _NAMES | (_GEMMA_NAMES if config.post_norms else {})
    for name in source.names:
        for theirs, here in known.items():
            name = name.replace(f"{theirs}.", f"{here}.")
        names.append(name)

    def combine(*tensors: np.ndarray) -> np.ndarray:
        if family == "llama":
            tensors = [_halves_apart(name, tensor, config) for name, tensor in zip(names, tensors)]
        if config.unit_offset:  # the converter has added the 1
            tensors = [tensor - 1 if "norm" in name else tensor for name, tensor in zip(names, tensors)]
        return source.combine(*tensors)

    return Source(tuple(names), source.shapes, combine, source.side_by_side)


def _in_blocks(file: GgufFile, source: Source, config: DecoderConfig, family: str) -> Blocks:
    columns = []
    for name in source.names:
        values, kind = file.blocks(name)
        if family == "llama":  # a head's dimensions are rows of blocks, whole ones
            values = _halves_apart(name, values.T if kind == "float32" else values, config)
            values = values.T if kind == "float32" else values
        columns.append((values, kind))
    outs = [shape[0] for shape in source.shapes]
    return Blocks(tuple(columns), (source.shapes[0][1], sum(outs)) if source.side_by_side else source.shapes[0])


def _halves_apart(name: str, tensor: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Query and key weights [H * D, ...] with each head's dimensions as Hugging Face orders them."""
    heads = config.num_heads if ".attn_q." in name else config.num_kv_heads if ".attn_k." in name else None
    if heads is None:
        return tensor
    pairs = tensor.reshape(heads, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
