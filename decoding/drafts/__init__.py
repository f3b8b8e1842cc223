"""What proposes tokens: `base` has the contract."""

from decoding.drafts.base import Draft, ModelDraft, as_draft, fitted
from decoding.drafts.cascade import CascadeDraft
from decoding.drafts.corpus import CorpusDraft
from decoding.drafts.load import load_draft
from decoding.drafts.ngram import NGramDraft
from decoding.drafts.prompt_lookup import PromptLookupDraft
from decoding.drafts.uniform import UniformDraft

__all__ = [
    "CascadeDraft",
    "CorpusDraft",
    "Draft",
    "ModelDraft",
    "NGramDraft",
    "PromptLookupDraft",
    "UniformDraft",
    "as_draft",
    "fitted",
    "load_draft",
]
