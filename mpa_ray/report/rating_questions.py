"""What raters are asked (Figure 4), and what ties a rating to what was rated."""

import hashlib

QUESTIONS = {
    "answerability": "Can the question be answered from the image (and, where the task asks for"
    " it, from knowledge of the world)?",
    "answer_correctness": "Is the answer correct?",
    "task_relevance": "Is this a question of the kind the task is about (see below)?",
    "human_likeness": "Could a person have written this question and answer?",
}


_ABOUT = {
    "textvqa": "questions whose answer needs the text that appears in the image.",
    "stvqa": "questions whose answer needs the text that appears in the image.",
    "chartqa": "questions about a chart that need a look-up, a comparison, a trend or an inference"
    " from its data.",
    "okvqa": "questions about the image that can only be answered with knowledge of the world.",
    "pathvqa": "yes-or-no questions about a pathology image.",
}


def about(task: str | None) -> str:
    """What a task's questions are about, for raters."""
    return _ABOUT.get(task or "", "questions about the image.")


def fingerprint(question: str, answer: str) -> str:
    """Of the text that was rated: a rating never speaks of another one, as a sampled run done again
    may have under the same id.
    """
    return hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:12]


BEFORE, AFTER, HUMAN = "before_pi", "after_pi", "human"
