"""Which of the L-VLM's replies the Pseudo Annotator takes: what parses, has an answer of the task,
and asks something that was not asked of the image before.
"""

from collections.abc import Collection

from mpa_ray.tasks.annotation_parser import Annotation, UnparsableAnnotation, parse_annotations
from mpa_ray.tasks.matchers import matches_exactly


class RepeatedQuestion(UnparsableAnnotation):
    """The image has this question already."""


def usable_annotation(text: str, *, answers: Collection[str], had: Collection[str]) -> Annotation:
    """Return the annotation in a reply.

    Args:
        text: the reply.
        answers: the only answers the task has; none: any.
        had: the questions that the image has, case-folded.

    Raises:
        RepeatedQuestion: it is one of `had`.
        UnparsableAnnotation: there is none, or its answer is none of `answers`. The messages end
            with the text.
    """
    try:
        found = parse_annotations(text)[0]
    except UnparsableAnnotation as error:
        raise UnparsableAnnotation(f"{error}: {text}") from error
    if answers and not any(matches_exactly(found.answer, answer) for answer in answers):
        raise UnparsableAnnotation(f"the answer is none of {', '.join(answers)}: {text}")
    if found.question.casefold() in had:
        raise RepeatedQuestion(f"the image has this question already: {text}")
    return found
