"""How a draft is trained. Imports nothing heavy, so that settings are checked at launch."""

import dataclasses
from typing import NamedTuple


class Law(NamedTuple):
    """How the target sampled a text, as of `DecodingConfig`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
      steps: in all. Learning rates rise over the first `warmup_steps` and then fall to 0 at the last.
      batch_tokens: of a step, about, padding included.
      kl_weight: share of the forward divergence KL(p, q) in the loss, from 0 to 1; the rest is total variation, 1 - β.
      greedy_temperature: of p and q in the loss, for texts that were made at temperature 0: a p that is sure of one token
        teaches little, and a q that is has no gradient.
      matrix_rate: peak learning rate of the matrices in layers, by Muon.
      rate: of all else, by Adam.
      warmup_steps: see `steps`.
      weight_decay: of the matrices in layers, as a share of the learning rate.
      own_share: share of the steps whose texts the draft draws itself, for the batch's inputs and at its temperatures, before
        the target judges them (on-policy distillation, 2306.13649): a draft is then corrected where it really goes.
      target_top_k: how many of the target's likeliest tokens are kept for every place of every text, before the first step and
        8 bytes each, so that no step computes the target; p is 0 of all others. 0 for all of p, computed by the target in
        every step.
      products: dtype of the factors of layers' and heads' products, of target and draft, "float32" or "bfloat16"; gradients
        are rounded where they pass one, and sums, norms, softmax and the weights that are learnt are float32 in both. Faster
        where a processor has AMX or an accelerator matrix units.
      seed: of new weights, of the order of texts and of the draft's own.
    """

    steps: int = 2000
    batch_tokens: int = 2048
    kl_weight: float = 0.3
    greedy_temperature: float = 0.5
    matrix_rate: float = 0.02
    rate: float = 0.002
    warmup_steps: int = 50
    weight_decay: float = 0.01
    own_share: float = 0.0
    target_top_k: int = 0
    products: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("steps", 1, float("inf")),
            ("batch_tokens", 1, float("inf")),
            ("kl_weight", 0, 1),
            ("greedy_temperature", 0.01, 100),
            ("matrix_rate", 0, 10),
            ("rate", 0, 10),
            ("warmup_steps", 0, float("inf")),
            ("weight_decay", 0, 10),
            ("own_share", 0, 1),
            ("target_top_k", 0, float("inf")),
            ("seed", 0, float("inf")),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                allowed = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
                raise ValueError(f"distill.recipe.{name} is {value!r}; allowed: {allowed}")
        if self.own_share and self.target_top_k:
            raise ValueError(
                f"distill.recipe.target_top_k is {self.target_top_k} with own_share {self.own_share}; allowed: 0, since what a "
                "draft draws has to be judged by the target"
            )
        if self.products not in ("float32", "bfloat16"):
            raise ValueError(f'distill.recipe.products is {self.products!r}; allowed: "float32", "bfloat16"')

    def own(self, step: int) -> bool:
        """Whether the draft draws the texts of a step, counted from 1; those that it draws are spread evenly."""
        return int(step * self.own_share) > int((step - 1) * self.own_share)
