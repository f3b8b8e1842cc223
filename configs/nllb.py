"""Translation between any of 200 languages: NLLB-200's 3.3B, drafted by its distilled 600M, which share one vocabulary.

    python -m pipeline.generate --config=configs/nllb.py --output=gs://BUCKET/translated \\
        --config.input.pattern=gs://BUCKET/texts.jsonl --config.input.source_language=eng_Latn \\
        --config.input.target_language=deu_Latn --config.model.target=gs://BUCKET/nllb_3b --config.model.draft=gs://BUCKET/nllb_600m

Where records say into which language they go, name the field instead: `--config.input.target_language_field=to`. The models
are Hugging Face's directories with safetensors.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.pattern = "gs://BUCKET/texts.jsonl"
    config.input.input_field = "text"
    config.input.source_language = "eng_Latn"
    config.input.target_language = ""
    config.input.target_language_field = ""

    config.model = config_dict.ConfigDict()
    config.model.target = "gs://BUCKET/nllb_3b"
    config.model.draft = "gs://BUCKET/nllb_600m"
    config.model.dtype = "bfloat16"

    config.decoding = config_dict.ConfigDict()
    config.decoding.gamma = 3
    config.decoding.temperature = 0.0
    config.decoding.max_decode_tokens = 256
    config.decoding.num_slots = 32
    config.decoding.input_buckets = (32, 64, 128, 256)

    config.shards = config_dict.ConfigDict()
    config.shards.examples_per_shard = 256
    return config
