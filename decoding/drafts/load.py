"""One entry for every draft: by its name, or from its directory."""

from decoding.checkpoints import load_model
from decoding.drafts.base import Draft
from decoding.drafts.ngram import NGramDraft, frequent_tokens, is_ngram
from decoding.models.base import LanguageModel
from decoding.registry import DRAFTS, PROMPT_LOOKUP


def load_draft(
    name: str, *, max_ngram: int = 3, min_ngram: int = 1, vocabulary: tuple[str, int] | None = None, **options
) -> Draft | LanguageModel | None:
    """Loads or makes the draft that a job's `model.draft` names.

    Args:
      name: "prompt_lookup", "uniform" or another registered name, the directory of an n-gram or of a model, or "" for none.
      max_ngram, min_ngram: of `PromptLookupDraft`.
      vocabulary: (directory of an n-gram, k): a model guesses the k tokens that it saw most often alone; None for all.
      options: of `load_model`, where it is a model.

    Raises:
      CheckpointError: the directory holds neither.
    """
    if not name:
        return None
    if name in DRAFTS:
        lengths = {"max_ngram": max_ngram, "min_ngram": min_ngram} if name == PROMPT_LOOKUP else {}
        return DRAFTS.get(name)(**lengths)
    if is_ngram(name):
        return NGramDraft.load(name)
    return load_model(name, tokens=frequent_tokens(*vocabulary) if vocabulary else None, **options)
