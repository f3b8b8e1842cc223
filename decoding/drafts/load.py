"""One entry for every draft: by its name, or from its directory."""

from decoding.checkpoints import load_model
from decoding.drafts.base import Draft
from decoding.drafts.cascade import CascadeDraft
from decoding.drafts.corpus import CorpusDraft
from decoding.drafts.ngram import NGramDraft, frequent_tokens, is_ngram
from decoding.drafts.suffixes import is_index
from decoding.models.base import LanguageModel
from decoding.registry import DRAFTS, LOOKUPS, drafts_of


def load_draft(
    name: str,
    *,
    max_ngram: int = 3,
    min_ngram: int = 1,
    min_match: int = 2,
    vocabulary: tuple[str, int] | None = None,
    **options,
) -> Draft | LanguageModel | None:
    """Loads or makes the draft that a job's `model.draft` names.

    Args:
      name: "prompt_lookup", "uniform" or another registered name, the directory of an n-gram, of an index or of a model, or
        "" for none; or several with commas between, for a `CascadeDraft`.
      max_ngram, min_ngram: of `PromptLookupDraft`.
      min_match: of `CorpusDraft` and `CascadeDraft`.
      vocabulary: (directory of an n-gram, k): a model guesses the k tokens that it saw most often alone; None for all.
      options: of `load_model`, where it is a model.

    Raises:
      CheckpointError: the directory holds neither.
    """
    if not name:
        return None
    if len(names := drafts_of(name)) > 1:
        given = dict(max_ngram=max_ngram, min_ngram=min_ngram, min_match=min_match, vocabulary=vocabulary, **options)
        return CascadeDraft([load_draft(one, **given) for one in names], min_match=min_match)
    if name in DRAFTS:
        lengths = {"max_ngram": max_ngram, "min_ngram": min_ngram} if name in LOOKUPS else {}
        return DRAFTS.get(name)(**lengths)
    if is_ngram(name):
        return NGramDraft.load(name)
    if is_index(name):
        return CorpusDraft.load(name, min_match)
    return load_model(name, tokens=frequent_tokens(*vocabulary) if vocabulary else None, **options)
