"""Sizes of programs: how many rows a prefill has, and how many positions a state."""

import pytest

from decoding import DecodingConfig
from decoding.programs import max_positions, prefill_rows


@pytest.mark.parametrize(
    ("bucket", "groups", "platform", "rows"),
    [
        (64, 1, "tpu", 48),  # no more than there are slots
        (512, 1, "gpu", 8),
        (2048, 1, "tpu", 2),
        (8192, 1, "tpu", 1),
        (64, 1, "cpu", 8),
        (1024, 1, "cpu", 1),
        (200, 6, "tpu", 18),  # shared out evenly: not 20
        (2048, 4, "tpu", 1),  # nothing to share out
    ],
)
def test_rows_of_a_prefill(bucket, groups, platform, rows):
    config = DecodingConfig(num_slots=48, input_buckets=(bucket,))
    assert prefill_rows(config, bucket, groups, platform) == rows


@pytest.mark.parametrize(("gamma", "positions"), [(0, 101), (5, 106), ("auto", 108)])
def test_states_have_room_behind_the_last_position(gamma, positions):
    assert max_positions(DecodingConfig(max_decode_tokens=100, gamma=gamma)) == positions
