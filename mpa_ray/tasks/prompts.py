"""What the models are asked, to the letter: the Pseudo Annotator's prompt of each task, and the
answering prompt all tasks share.

The paper fixes what each prompt asks for (its appendix of prompts); the wording is ours. Every
prompt follows the image, so that the engine's prefix cache covers the image's tokens. The demo's
tiny models know these strings as single tokens: whoever changes one trains them again (`python -m
benchmarks.demo_pair.train_pair`).
"""

import re

# A prefix cache keeps whole blocks of tokens. The block in which the image ends is a whole one that
# both of the L-VLM's prompts share when so much text after the image is the same.
PREAMBLE = (
    "Here is an image. Look at all of it before you reply: at what it shows, at how its parts"
    " belong together, and at any text or number"
    " that can be read in it.\n"
)

# The question comes last, so that several questions on one image share everything before it.
ANSWERING = "Answer the following question in a single word or phrase.\n{question}"

_REPLY = "Reply with one line and nothing else: Question: <question>, Answer: <answer>"

# What `_REPLY` asks for, as a regular expression.
_FORM = "Question: [^\\n]+, Answer: {answer}"

SCENE_TEXT = (
    "Write one question for a text-based visual question answering task, and its answer. The"
    " question must relate directly to this image"
    " and must read, reason about or refer to the text that appears in it. The answer must be"
    " taken from that text or reasoned from it,"
    " must be correct, and must be concise: a word, a phrase, Yes or No.\n" + _REPLY
)

CHART = (
    "Write one question about this chart, and its answer. The question must need numerical"
    " reasoning, the analysis of a trend or a look-up"
    " in the data. Choose one of four kinds: a direct look-up of a value; a comparison of"
    " categories; a trend or pattern; an inference that"
    " goes beyond a look-up. The question must be meaningful, and the answer accurate and taken"
    " from the chart's data: a word, a number,"
    " a phrase, Yes or No.\n" + _REPLY
)

WORLD_KNOWLEDGE = (
    "Write one question about this image that can only be answered with world knowledge beyond"
    " what is seen, and its answer. The question"
    " must be grounded in the image. Choose one of five kinds: objects and scenes tied to wider"
    " knowledge; commonsense; cultural and"
    " historical knowledge; scientific and factual knowledge, such as physics, biology or"
    " geography; everyday and social life. The answer"
    " must be a single word.\n" + _REPLY
)

PATHOLOGY_YES_NO = (
    "Write one yes-or-no question about this pathology image, and its answer. The question must be"
    " settled by what the image shows: the tissue, the cells, the staining or the finding. Vary"
    " whether the correct answer is Yes or No.\n" + _REPLY
)


def annotation_form(answers: tuple[str, ...]) -> str:
    """The regular expression of an annotation as every prompt asks for it. `answers` are the only
    ones the task has, in small or with a capital; none: any.
    """
    spelled = dict.fromkeys(
        spelling for answer in answers for spelling in (answer, answer.capitalize())
    )
    return _FORM.format(answer=f"({'|'.join(map(re.escape, spelled))})" if spelled else "[^\\n]+")
