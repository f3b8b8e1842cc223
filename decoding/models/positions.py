"""How long a text a model takes."""

from decoding.config import DecodingConfig
from decoding.models.base import LanguageModel


def check_positions(name: str, model: LanguageModel, config: DecodingConfig) -> None:
    """Raises ValueError where inputs and outputs can be longer than a model's positions: together, if it is decoder-only."""
    limit, longest, most = getattr(model, "max_positions", 0), config.max_input_tokens, config.max_decode_tokens
    if not limit:
        return
    needed = max(longest, most) if model.encoder_decoder else longest + most
    if needed > limit:
        raise ValueError(
            f"decoding.input_buckets of up to {longest} tokens and decoding.max_decode_tokens of {most} need {needed} "
            f"positions; {name} has {limit}"
        )
