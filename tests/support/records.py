"""What must hold between the records of a `decoding.Generation`, and when two of them are the same."""

import numpy as np

from decoding import DecodingConfig, Generation

RECORDS = ("tokens", "source", "iteration", "beta", "target_logprob", "draft_logprob", "gammas", "accepted")


def assert_same(a, b, records=RECORDS) -> None:
    """Bit-equal records, NaN equal to NaN."""
    for one, other in zip(a, b, strict=True):
        for name in records:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert one.finish_reason == other.finish_reason


def check_consistency(row: Generation, config: DecodingConfig, eos_id: int, vocab_size: int) -> None:
    """Iterations, accepted counts, sources, tokens, NaN patterns and the end agree with each other."""
    length, iterations = len(row.tokens), len(row.gammas)
    dtypes = dict(
        tokens="int32",
        source="int8",
        iteration="int32",
        beta="float32",
        target_logprob="float32",
        draft_logprob="float32",
        gammas="int16",
        accepted="int16",
    )
    for name, dtype in dtypes.items():
        array = getattr(row, name)
        assert array.dtype == dtype and array.shape == (iterations if name in ("gammas", "accepted") else length,), name
    assert 1 <= length <= config.max_decode_tokens
    assert np.all((row.tokens >= 0) & (row.tokens < vocab_size))
    assert eos_id not in row.tokens[:-1]
    assert row.finish_reason == ("eos" if row.tokens[-1] == eos_id else "length")
    if row.finish_reason == "length":
        assert length == config.max_decode_tokens
    assert row.iteration[0] == 0 and row.iteration[-1] == iterations - 1
    assert set(np.diff(row.iteration)) <= {0, 1}
    assert row.target_calls == row.num_iterations == iterations
    assert set(row.gammas) <= set(config.gammas)
    for i in range(iterations):
        source = row.source[row.iteration == i].tolist()
        accepted, proposed = int(row.accepted[i]), int(row.gammas[i])
        assert 1 <= len(source) <= proposed + 1 and accepted <= proposed
        if len(source) == accepted:  # cut inside the accepted prefix
            assert i == iterations - 1 and source == [1] * accepted
        else:
            end = 3 if proposed == 0 else 2 if accepted == proposed else 0
            assert source == [1] * accepted + [end]
    examined = np.isin(row.source, (0, 1))
    for name in ("beta", "draft_logprob"):
        np.testing.assert_array_equal(np.isnan(getattr(row, name)), ~examined, err_msg=name)
    assert np.all(np.isfinite(row.target_logprob)) and np.all(row.target_logprob <= 0)
    assert np.all(row.draft_logprob[examined] <= 0)
    beta = row.beta[examined]
    assert np.all((beta >= 0) & (beta <= 1 + 1e-6))
    if config.temperature == 0:  # each draft distribution is one-hot
        np.testing.assert_array_equal(beta, row.source[examined] == 1)
    assert row.decode_seconds >= 0
