"""What a model's shape says of it."""

import dataclasses
import json

import pytest

from decoding.checkpoints import CheckpointError
from decoding.checkpoints.architecture import shape_of
from decoding.models.decoder_only import DecoderConfig
from decoding.models.t5 import T5Config

DECODER = DecoderConfig(
    d_model=8, num_heads=2, head_dim=4, num_kv_heads=1, gated=True, d_ff=16, num_layers=3, vocab_size=50,
    norm="rms", position="rotary", activation="silu", tied=False,
)  # fmt: skip
T5_SHAPE = T5Config(
    d_model=8, num_heads=2, d_kv=4, gated=False, d_ff=16, num_layers=5, num_decoder_layers=3, vocab_size=50,
    activation="relu", tied=True, scale_decoder_outputs=True,
)  # fmt: skip


def test_operations_per_token():
    assert DECODER.operations_per_token == 2 * (3 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) + 8 * 50)
    assert T5_SHAPE.operations_per_token == 2 * (3 * (6 * 8 * 8 + 2 * 8 * 16) + 8 * 50)


@pytest.mark.parametrize("shape", [DECODER, T5_SHAPE])
def test_shapes_are_read_back(shape):
    kept = json.loads(json.dumps(dataclasses.asdict(shape)))
    assert type(shape_of(kept)) is type(shape)
    assert shape_of(kept).operations_per_token == shape.operations_per_token
    with pytest.raises(CheckpointError, match="not whole: .*d_model"):
        shape_of({key: value for key, value in kept.items() if key != "d_model"})
    with pytest.raises(CheckpointError, match="those of no family"):
        shape_of(kept | {"experts": 8})


def test_a_step_reads_what_it_needs():
    read = [path for path in ("embedding", "encoder_bias", "encoder.0.feed_forward.wi", "decoder.1.cross.kv",
                              "decoder.1.cross.query", "decoder_bias") if T5_SHAPE.read_by_step(path)]  # fmt: skip
    assert read == ["embedding", "decoder.1.cross.query", "decoder_bias"]
    read = [path for path in ("embedding", "positions", "blocks.0.qkv.kernel", "head") if DECODER.read_by_step(path)]
    assert read == ["blocks.0.qkv.kernel", "head"]
