"""Steps that every job of work shards has: how its input is read, and its end."""

from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from pipeline.job.run import Run
from transforms.finish import CountSettled, FinishRun
from transforms.read import ReadInput, ReadSettings
from transforms.storage import GENERATIONS


def input_reader(run: Run) -> ReadInput:
    """What reads the run's input."""
    config, models = run.config, run.models
    return ReadInput(
        ReadSettings(
            spec=config.input.spec(models.tokenizer),
            tokenizer=models.tokenizer,
            prefix=config.input.prefix,
            eos_id=models.input_eos_id,
            max_input_tokens=config.decoding.max_input_tokens,
            chat_template=models.chat_template,
            empty_id=models.empty_id,
            translation=models.translation,
            hints=models.hints if run.parts == GENERATIONS else None,
        )
    )


def finish(root: beam.Pipeline, run: Run, outcomes: tuple, *, exact: bool, facts: Mapping[str, Any] | None = None) -> None:
    """Adds the end of a run, which waits for all `outcomes`.

    Args:
      root: the pipeline.
      run: which run.
      outcomes: what `CountSettled` takes; () where no shard is pending.
      exact, facts: for the summary.
    """
    _ = root | "Finish" >> FinishRun(
        run.folder.root,
        num_shards=run.plan.num_shards,
        fingerprint=run.fingerprint,
        exact=exact,
        after=outcomes | "Settled" >> CountSettled() if outcomes else None,
        parts=run.parts,
        statistics=run.statistics,
        facts=facts,
    )
