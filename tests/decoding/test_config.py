"""Settings are refused with their name, their value and what is allowed."""

import pytest

import decoding


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("gamma", -1, "0 to 64"),
        ("gamma", 65, "0 to 64"),
        ("gamma", 2.5, "0 to 64"),
        ("gamma", True, "0 to 64"),
        ("gamma", "fast", '"auto"'),
        ("verification", "tokens", "token, block, coupled"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("inf"), "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("temperature", 1e-40, "1e-30"),
        ("top_k", -1, "at least 0"),
        ("top_k", 1.5, "at least 0"),
        ("top_p", 0.0, "above 0"),
        ("top_p", 1.1, "at most 1"),
        ("top_p", float("nan"), "at most 1"),
        ("top_p", 1e-50, "1e-30"),
        ("max_decode_tokens", 0, "at least 1"),
        ("lenience", 0.0, "above 0"),
        ("lenience", 1.5, "at most 1"),
        ("num_slots", 0, "at least 1"),
        ("num_slots", True, "at least 1"),
        ("num_samples", 0, "at least 1"),
        ("seed", 1.5, "whole number"),
        ("chunk_iterations", 0, "at least 1"),
        ("input_buckets", (), "increasing"),
        ("input_buckets", (0, 8), "increasing"),
        ("input_buckets", (8, 8), "increasing"),
        ("input_buckets", (16, 8), "increasing"),
        ("gamma_choices", (1, 2), "0 among them"),
        ("gamma_choices", (0, 1, 1), "distinct"),
        ("gamma_choices", (0, 99), "0 to 64"),
    ],
)
def test_an_error_names_setting_value_and_what_is_allowed(setting, value, allowed):
    with pytest.raises(ValueError) as error:
        decoding.DecodingConfig(**{setting: value})
    message = str(error.value)
    assert setting in message and repr(value) in message and allowed in message


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", "0.9"),
        ("lenience", None),
        ("input_buckets", 32),
        ("gamma_choices", 3),
        ("gamma_choices", (0, 1.5)),
        ("input_buckets", (8, 16.5)),
        ("seed", True),
    ],
)
def test_an_ill_typed_setting_is_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=setting):
        decoding.DecodingConfig(**{setting: value})


@pytest.mark.parametrize("verification", ["block", "coupled"])
def test_lenience_needs_token_verification(verification):
    with pytest.raises(ValueError, match="lenience") as error:
        decoding.DecodingConfig(lenience=0.5, verification=verification)
    assert verification in str(error.value) and "token" in str(error.value)


def test_exactness_and_the_set_of_gammas_follow_from_the_settings():
    assert decoding.DecodingConfig().exact
    assert not decoding.DecodingConfig(lenience=0.9).exact
    assert decoding.DecodingConfig(gamma=4).gammas == (4,)
    assert decoding.DecodingConfig(gamma="auto", gamma_choices=(3, 0, 1)).gammas == (0, 1, 3)
