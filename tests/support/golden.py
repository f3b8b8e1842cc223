"""What tests of the reference models in tests/testdata/golden have in common."""

import decoding


def inputs_of(arrays) -> list[list[int]]:
    """The ragged inputs of a golden file."""
    return [row[:length].tolist() for row, length in zip(arrays["inputs"], arrays["lengths"])]


def greedy(target, draft, inputs, gamma: int, **settings) -> list[list[int]]:
    """Tokens at temperature 0, over two slots unless `settings` of the config say otherwise; nothing compiles meanwhile."""
    defaults = dict(max_decode_tokens=24, num_slots=2, input_buckets=(8, 24))
    config = decoding.DecodingConfig(gamma=gamma, temperature=0.0, **(defaults | settings))
    results, report = decoding.Generator(target, draft, config).generate_with_report(inputs, list(map(str, range(len(inputs)))))
    assert report.compilations == 0
    return [result.tokens.tolist() for result in results]
