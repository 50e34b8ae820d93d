"""The parameters of `completions`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from evalsvc.errors import InvalidRequest
from evalsvc.spec.bounds import MAX_ID, MAX_TEXT, Seed, first_repeated, shortened
from evalsvc.spec.sampling import MAX_SEED, SamplingParams
from evalsvc.tasks.task import TextTask

GREEDY = "greedy"
"""Name of completions that always take the likeliest id."""

TABLE_1 = (
    "Simply put, the theory of relativity states that",
    "Translate English to French:\n"
    "sea otter => loutre de mer\n"
    "peppermint => menthe poivrée\n"
    "plush girafe => girafe peluche\n"
    "cheese =>",
)
"""The prompts of Table 1 of Zhang, McKinzie, Gan, Shankar, Toshev, "Pre-trained Language Models Do Not Help
Auto-regressive Text-to-Image Generation" (arXiv 2311.16201)."""

MAX_DRAWN = 10_000_000
"""Maximum number of ids that a checkpoint draws, over all prompts and completions."""


class Completions(TextTask):
    """Fixed prompts, continued by the checkpoint and by the run's base."""

    kind: ClassVar[str] = "completions"
    work: ClassVar[str] = "evalsvc.tasks.completions.work:CompletionsWork"
    needs: ClassVar[str] = "the tokenizer of the layout; to compare, a base of the run"

    prompts: tuple[Annotated[str, Field(max_length=MAX_TEXT)], ...] = Field(
        default=TABLE_1, min_length=1, max_length=1000
    )
    """Prompts to continue [the two prompts of Table 1 of arXiv 2311.16201]."""
    max_tokens: int = Field(default=48, ge=1, le=1 << 16)
    """Maximum number of ids to draw; a completion ends earlier if the end-of-text id is drawn."""
    samples: int = Field(default=2, ge=0, le=10_000)
    """Number of seeded completions of each prompt, in addition to the greedy one."""
    within: Literal["all", "text"] = "all"
    """Ids to draw from: `all` rows of the table, or only those of `text`, in which an image cannot be the answer."""
    temperature: float = 1.0
    """Temperature of the seeded completions; divides the logits."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_ID)
    """Number of likeliest ids to draw from [all]."""
    top_p: float | None = None
    """Probability of the likeliest ids to draw from: the fewest ids that reach the probability are kept [all]."""
    seed: Seed = 0
    """Seed of the first seeded completion; the next completion has the next seed."""

    @model_validator(mode="after")
    def _check(self) -> Completions:
        if (twice := first_repeated(self.prompts)) is not None:
            raise ValueError(f"the prompt {shortened(twice)} is given twice; remove one")
        if self.temperature == 0 and self.samples:
            raise ValueError("seeded completions at temperature 0 equal the greedy completion; set `samples` to 0")
        drawn = len(self.prompts) * (self.samples + 1) * self.max_tokens
        if drawn > MAX_DRAWN:
            raise ValueError(
                f"{len(self.prompts):,} prompts with {self.samples + 1:,} completions of {self.max_tokens:,} ids are "
                f"{drawn:,} ids, more than {MAX_DRAWN:,}; lower `samples` or `max_tokens`"
            )
        if self.seed + max(self.samples - 1, 0) > MAX_SEED:
            raise ValueError(f"seed is {self.seed}, which leaves no seeds for {self.samples:,} `samples`; lower it")
        try:
            self._seeded(self.seed)
        except InvalidRequest as error:
            raise ValueError(error.message) from None
        return self

    def ways(self) -> dict[str, SamplingParams]:
        """Return the sampling parameters of each completion of a prompt, by name."""
        seeds = range(self.seed, self.seed + self.samples)
        return {GREEDY: SamplingParams(temperature=0), **{f"seed {seed}": self._seeded(seed) for seed in seeds}}

    def _seeded(self, seed: int) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, seed=seed)
