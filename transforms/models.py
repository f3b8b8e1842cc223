"""Which models a job works with, as one value that is passed whole, and the one way in which they are loaded."""

from __future__ import annotations

import dataclasses
import typing

import decoding

if typing.TYPE_CHECKING:
    from decoding.drafts.base import Draft
    from decoding.models.base import LanguageModel


@dataclasses.dataclass(frozen=True)
class Models:
    """What is loaded, and how.

    Attributes:
      target: directory of the target model.
      draft: as of `decoding.load_draft`; "" for none.
      dtype: of their parameters.
      vocab_size: as of `decoding.Generator`: what vocabularies that are padded by different amounts are cut to.
      max_ngram, min_ngram: as of `decoding.PromptLookupDraft`.
      min_match: as of `decoding.CorpusDraft` and `decoding.CascadeDraft`.
      weights: of the target's products, as of `decoding.load_model`.
      draft_weights: of the draft's, "" for `weights`. Where the target's products are not those of `decoding.kernels`, the
        draft is plain.
      draft_vocabulary, draft_vocabulary_size: the n-gram whose most frequent tokens drafts that are models guess alone, and
        how many; "" for all tokens.
      mesh: of the devices that the target is split over, as of `decoding.sharding.parse_mesh`; "" for one device.
    """

    target: str
    draft: str = ""
    dtype: str = "float32"
    vocab_size: int | None = None
    max_ngram: int = 3
    min_ngram: int = 1
    min_match: int = 2
    mesh: str = ""
    weights: str = ""
    draft_weights: str = ""
    draft_vocabulary: str = ""
    draft_vocabulary_size: int = 0

    def load_target(self) -> LanguageModel:
        """The target, on the devices that `mesh` names.

        Raises:
          ValueError: `mesh` does not fit this process' devices.
        """
        from decoding import sharding

        mesh = sharding.make_mesh(*sharding.parse_mesh(self.mesh)) if self.mesh else None
        return decoding.load_model(self.target, dtype=self.dtype, weights=self.weights, mesh=mesh)

    def load_draft(self, draft: str | None = None) -> Draft | None:
        """`draft`, of any kind, beside the same target; by default this value's own."""
        name = self.draft if draft is None else draft
        form = dict(dtype=self.dtype, weights=(self.draft_weights or self.weights) if self._packed() else "plain")
        vocabulary = (self.draft_vocabulary, self.draft_vocabulary_size) if self.draft_vocabulary else None
        lengths = dict(max_ngram=self.max_ngram, min_ngram=self.min_ngram, min_match=self.min_match)
        return decoding.load_draft(name, vocabulary=vocabulary, **lengths, **form)

    @property
    def identity(self) -> dict:
        """How weights are rounded, for the fingerprint; "weights" and "draft_weights" are there where they are set."""
        forms = {"weights": self.weights, "draft_weights": self.draft_weights}
        return {"dtype": self.dtype, **{name: form for name, form in forms.items() if form}}

    def device(self) -> str:
        """What this process computes them on: JAX's kind of device, for a processor with the products that are used."""
        import jax

        from decoding import kernels

        kind = jax.devices()[0].device_kind
        return f"{kind}, products {kernels.available()}" if self._packed() else kind

    def _packed(self) -> bool:
        """Whether products of the target are those of `decoding.kernels`."""
        from decoding.checkpoints.load import form_of

        return bool(form_of(self.weights, self.dtype, self.mesh or None))
