"""Translation of one pair of languages: a big OPUS-MT model (Marian), drafted by a small one with the same vocabulary.

    python -m pipeline.generate --config=configs/opus_mt.py --output=gs://BUCKET/translated \\
        --config.input.pattern=gs://BUCKET/texts.jsonl \\
        --config.model.target=gs://BUCKET/opus_mt_big --config.model.draft=gs://BUCKET/opus_mt

Both are directories with safetensors, source.spm, target.spm and vocab.json; OPUS-MT's own have often pickled weights, which
transformers loads and saves anew. Models that were trained apart have vocabularies of their own: such a pair is refused at
launch. A target of several languages is told by `--config.input.prefix=">>deu<< "`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()

    config.input = config_dict.ConfigDict()
    config.input.pattern = "gs://BUCKET/texts.jsonl"
    config.input.input_field = "text"
    config.input.prefix = ""

    config.model = config_dict.ConfigDict()
    config.model.target = "gs://BUCKET/opus_mt_big"
    config.model.draft = "gs://BUCKET/opus_mt"
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
