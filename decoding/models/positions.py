"""How long a text a model takes."""

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel


def check_positions(name: str, model: LanguageModel, config: DecodingConfig) -> None:
    """Raises ValueError where inputs and outputs together can be longer than a decoder-only model's positions."""
    limit, needed = getattr(model, "max_positions", 0), config.max_input_tokens + config.max_decode_tokens
    if limit and needed > limit:
        raise ValueError(
            f"decoding.input_buckets of up to {config.max_input_tokens} tokens and decoding.max_decode_tokens of "
            f"{config.max_decode_tokens} need {needed} positions; {name} has {limit}"
        )
