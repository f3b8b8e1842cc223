"""Hints of a job's examples, checked at launch."""

from pipeline.settings import ConfigError, JobConfig
from transforms.folder import GENERATE, FolderError, open_finished
from transforms.hints import HintSettings


def check_hints(config: JobConfig, tokenizer_sha256: str, eos_id: int) -> HintSettings | None:
    """What becomes of a job's hints, None where it has none.

    Args:
      config: the job's settings.
      tokenizer_sha256: identity of the target's tokeniser.
      eos_id: what ends an output.

    Raises:
      ConfigError: the folder of earlier outputs is none, or is not finished.
    """
    if not config.input.num_hints:
        return None
    folder, room = config.input.hint_folder, config.decoding.hint_tokens
    if not folder:
        return HintSettings(room, eos_id)
    try:
        manifest = open_finished(folder, GENERATE, what="input.hint_folder:").manifest
    except FolderError as error:
        raise ConfigError(str(error)) from error
    by_text = manifest.identity["model"].get("tokenizer") != tokenizer_sha256
    return HintSettings(room, eos_id, folder, manifest.fingerprint, by_text)
