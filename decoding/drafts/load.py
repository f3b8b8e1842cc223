"""One entry for every draft: by its name, or from its directory."""

from decoding.checkpoints import load_model
from decoding.drafts.base import Draft
from decoding.drafts.ngram import NGramDraft, is_ngram
from decoding.models.base import LanguageModel
from decoding.registry import DRAFTS, PROMPT_LOOKUP


def load_draft(
    name: str, *, max_ngram: int = 3, min_ngram: int = 1, **options
) -> Draft | LanguageModel | None:
    """Loads or makes the draft that a job's `model.draft` names.

    Args:
      name: "prompt_lookup", "uniform" or another registered name, the directory of an n-gram or of a model, or "" for none.
      max_ngram, min_ngram: of `PromptLookupDraft`.
      options: of `load_model`, where it is a model.

    Raises:
      CheckpointError: the directory holds neither.
    """
    if not name:
        return None
    if name in DRAFTS:
        lengths = {"max_ngram": max_ngram, "min_ngram": min_ngram} if name == PROMPT_LOOKUP else {}
        return DRAFTS.get(name)(**lengths)
    return NGramDraft.load(name) if is_ngram(name) else load_model(name, **options)
