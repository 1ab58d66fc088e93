"""Annotation and judging in the configuration."""

from typing import Annotated

from pydantic import Field, PositiveInt

from mpa_ray.config.section import MayChange, Section
from mpa_ray.tasks import MatcherName, prompts


class AnnotateSection(Section):
    """The Pseudo Annotator."""

    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the annotation. 0 is greedy and asks much the same question of similar images. The L-VLM's
    own answer is always greedy.
    """
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling of the annotation."""
    max_tokens: PositiveInt = 128
    """The longest annotation, in tokens."""
    preamble: str = prompts.PREAMBLE
    """What follows the image in both of the L-VLM's prompts. Where it is as long as a block of the
    engine's prefix cache (16 tokens on most GPUs), no token of the image is computed again for the
    second. The answers of the S-VLM are asked for without it.
    """
    constrained: bool = False
    """Hold the L-VLM to "Question: ..., Answer: ..." while it writes, and to the task's answers
    where it has a list of them: what it writes can then be read, or was cut at `max_tokens`. For
    L-VLMs that often forget the form, with engine=vllm or one of your own that heeds
    `Sampling.form`; docs/engines.md has what it costs.
    """
    questions_per_image: PositiveInt = 1
    """Annotations asked for an image. Each is sampled on its own, with a seed of its own."""


class IdentifySection(Section):
    """The Parity Identifier."""

    matcher: MatcherName | None = None
    """Eq. 1, when an answer counts as the annotation's. Without it, the task's own."""
    exhaustive: bool = False
    """Ask the S-VLM about every row, also where the L-VLM disagreed with itself. Verdicts stay the
    same; it is for diagnosis.
    """
    max_tokens: PositiveInt = 32
    """The longest answer, in tokens, of the L-VLM's own answer and the S-VLM's."""
    in_one_actor: Annotated[bool, MayChange()] = False
    """Ask the S-VLM in the L-VLM's actor, on the same GPU, so that an image is decoded and shrunk
    once for both, where their `max_pixels` are the same. Say then what share of a GPU each gets:
    `lvlm.gpus_per_replica` and `svlm.gpus_per_replica`, together at most 1.
    """
