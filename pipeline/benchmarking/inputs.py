"""What is decoded: the first examples of the config's input."""

import dataclasses
from collections.abc import Sequence

from pipeline.job.preflight import CheckedModels
from pipeline.job.run import plan_of
from pipeline.settings import ConfigError, JobConfig
from transforms.hints import EarlierOutputs
from transforms.plan import InputError, Plan, ShardTable
from transforms.read import read_shard
from transforms.records import Example
from transforms.tokenize import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is decoded.

    Attributes:
      examples: the first ones of the input that could be read and tokenised.
      failed: records that could not, among those read.
      plan: of the whole input.
    """

    examples: tuple[Example, ...]
    failed: int
    plan: Plan

    @property
    def lengths(self) -> list[int]:
        """In tokens, increasing."""
        return sorted(len(example.tokens) for example in self.examples)

    def to_json(self) -> dict:
        lengths = self.lengths
        return {
            "examples": len(self.examples),
            "first": self.examples[0].example_id,
            "last": self.examples[-1].example_id,
            "failed": self.failed,
            "truncated": sum(example.truncated for example in self.examples),
            "tokens": sum(lengths),
            "shortest": lengths[0],
            "median": lengths[len(lengths) // 2],
            "longest": lengths[-1],
            **({"hinted": hinted} if (hinted := sum(bool(example.hints) for example in self.examples)) else {}),
            "files": [{"name": file.name, "digest": file.digest} for file in self.plan.files],
        }


def read_inputs(config: JobConfig, models: CheckedModels, count: int, output: str = "") -> Inputs:
    """Reads the first `count` examples, planned, read and tokenised as the main job that writes to `output` does.

    Raises:
      ConfigError: the input cannot be planned or read, or holds no example.
    """
    plan, examples, failed = plan_of(config, models, output=output), [], 0
    try:
        table, tokenizer = ShardTable(plan), load_tokenizer(models.tokenizer)
        earlier = EarlierOutputs.of(models.hints)
        for shard in range(plan.num_shards):
            read = read_shard(
                table[shard],
                config.input.spec(models.tokenizer),
                tokenizer,
                prefix=config.input.prefix,
                eos_id=models.input_eos_id,
                max_input_tokens=config.decoding.max_input_tokens,
                chat_template=models.chat_template,
                empty_id=models.empty_id,
                translation=models.translation,
                hints=models.hints,
                earlier=earlier,
            )
            examples.extend(read.examples)
            failed += len(read.errors)
            if len(examples) >= count:
                break
    except (InputError, OSError) as error:
        raise ConfigError(f"{config.input}: {error}") from error
    if not examples:
        raise ConfigError(f"{config.input}: none of its {failed} records could be read")
    return Inputs(tuple(examples[:count]), failed, plan)


def used_buckets(buckets: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """Those of the increasing `buckets` that an input of one of `lengths` falls into: all that has to be compiled."""
    return tuple(sorted({next(bucket for bucket in buckets if length <= bucket) for length in lengths}))
