"""The paper's tables as grids of runs, with the paper's own figures: percent, as printed (arXiv
2509.16633).

A cell is one run of MPA (S-VLM, L-VLM, task) and what of it the table shows. Several tables share
cells, and a grid makes each once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MPA, ZERO_SHOT, LVLM = "mpa", "zero_shot", "lvlm"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a table.

    Attributes:
        model: as a run's evaluation names it: "zero_shot", "lvlm", "mpa", or an ablation.
        paper: the paper's figure; None where it has none.
        samples: how many samples it was trained on, as the paper says.
        benchmark: on which of the transfer benchmarks; "" for the task's own.
        metric: which score; "" for the official one.
    """

    model: str
    paper: float | None = None
    samples: str = ""
    benchmark: str = ""
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run, and what a table shows of it. Models are called as the paper calls them."""

    task: str
    lvlm: str
    svlm: str
    figures: tuple[Figure, ...]

    @property
    def ablations(self) -> tuple[str, ...]:
        """The comparisons that are trained beside MPA."""
        return tuple(
            dict.fromkeys(
                figure.model
                for figure in self.figures
                if figure.model not in (MPA, ZERO_SHOT, LVLM)
            )
        )

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The benchmarks beside the task's own."""
        return tuple(dict.fromkeys(figure.benchmark for figure in self.figures if figure.benchmark))


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its number in the paper, what it is about, and its cells."""

    number: int
    title: str
    cells: tuple[Cell, ...]
    note: str = ""


_TASKS = ("textvqa", "stvqa", "chartqa", "okvqa")

# S-VLM -> for each task: zero-shot, MPA by Qwen2VL-7B, MPA by InternVL2-8B.
_TABLE_1 = {
    "SmolVLM-500M": (
        (55.3, 57.6, 57.7),
        (78.5, 80.3, 80.7),
        (56.5, 59.9, 59.3),
        (38.2, 40.7, 39.9),
    ),
    "TinyLLaVA-2B": (
        (47.1, 53.5, 51.9),
        (44.7, 48.7, 49.8),
        (12.0, 24.0, 27.2),
        (43.6, 46.6, 47.2),
    ),
    "InternVL2-2B": (
        (68.0, 70.3, 69.5),
        (63.0, 65.5, 65.7),
        (63.2, 68.3, 68.2),
        (42.7, 45.6, 44.6),
    ),
    "InternVL2-4B": (
        (69.1, 71.4, 70.3),
        (63.2, 66.6, 67.9),
        (73.1, 73.8, 74.0),
        (50.5, 52.3, 52.0),
    ),
    "Qwen2VL-2B": ((70.6, 75.1, 72.3), (62.5, 67.2, 66.6), (65.9, 67.6, 66.9), (47.1, 48.9, 48.9)),
}
# S-VLM -> for each task: without PI, MPA.
_TABLE_9 = {
    "SmolVLM-500M": ((56.4, 57.6), (79.1, 80.3), (57.5, 59.9), (39.2, 40.7)),
    "TinyLLaVA-2B": ((52.1, 53.5), (46.3, 48.7), (23.3, 24.0), (44.6, 46.6)),
    "InternVL2-2B": ((69.0, 70.3), (64.5, 65.5), (66.7, 68.3), (44.0, 45.6)),
    "InternVL2-4B": ((69.8, 71.4), (65.1, 66.1), (72.9, 73.8), (51.2, 52.3)),
    "Qwen2VL-2B": ((73.6, 75.1), (65.8, 67.2), (67.4, 67.6), (47.2, 48.9)),
}
# Task -> LoRA on 100 labels, full fine-tuning on them, MPA.
_TABLE_5 = {
    "textvqa": (71.9, 71.8, 75.1),
    "stvqa": (63.4, 61.7, 67.2),
    "chartqa": (66.1, 65.7, 67.6),
    "okvqa": (47.9, 47.7, 48.9),
}
# Task -> human labels, without PI, MPA: samples and score.
_TABLE_6 = {
    "textvqa": (("35K", 72.7), ("21K", 73.6), ("2K", 75.1)),
    "stvqa": (("22K", 65.5), ("15K", 65.8), ("1.5K", 67.2)),
    "chartqa": (("28K", 66.9), ("19K", 67.4), ("1.6K", 67.6)),
}
# Benchmark and metric -> zero-shot, trained on TextVQA's human labels, MPA.
_TABLE_10 = {
    ("icdar2015", "word_recognition_rate"): (31.9, 33.2, 36.4),
    ("textcaps", "bleu_1"): (7.9, 13.4, 15.3),
    ("textcaps", "rouge_l"): (17.4, 18.3, 20.6),
    ("textcaps", "cider"): (8.7, 34.6, 38.1),
}


def _cell(task: str, svlm: str, scores: Mapping[str, float], *, lvlm: str = "Qwen2VL-7B") -> Cell:
    return Cell(
        task=task,
        lvlm=lvlm,
        svlm=svlm,
        figures=tuple(Figure(model=model, paper=score) for model, score in scores.items()),
    )


def _table_1() -> Iterable[Cell]:
    for svlm, tasks in _TABLE_1.items():
        for task, (before, by_qwen, by_intern) in zip(_TASKS, tasks, strict=True):
            yield _cell(task, svlm, {ZERO_SHOT: before, MPA: by_qwen})
            yield _cell(task, svlm, {MPA: by_intern}, lvlm="InternVL2-8B")


def _table_9() -> Iterable[Cell]:
    for svlm, tasks in _TABLE_9.items():
        for task, (without, aligned) in zip(_TASKS, tasks, strict=True):
            yield _cell(task, svlm, {"no_pi_all": without, MPA: aligned})


def _table_6() -> Iterable[Cell]:
    for task, arms in _TABLE_6.items():
        names = ("human_labels", "no_pi_all", MPA)
        figures = tuple(
            Figure(model=name, paper=score, samples=samples)
            for name, (samples, score) in zip(names, arms, strict=True)
        )
        yield Cell(task=task, lvlm="Qwen2VL-7B", svlm="Qwen2VL-2B", figures=figures)


def _transfer() -> Cell:
    figures = tuple(
        Figure(model=model, paper=score, benchmark=benchmark, metric=metric)
        for (benchmark, metric), scores in _TABLE_10.items()
        for model, score in zip((ZERO_SHOT, "human_labels", MPA), scores, strict=True)
    )
    return Cell(task="textvqa", lvlm="Qwen2VL-7B", svlm="TinyLLaVA-2B", figures=figures)


_API = (
    _cell("textvqa", "TinyLLaVA-2B", {ZERO_SHOT: 47.1, MPA: 55.4}, lvlm="GPT-4o"),
    _cell("textvqa", "Qwen2VL-2B", {ZERO_SHOT: 70.6, MPA: 75.4}, lvlm="GPT-4o"),
)
_FEW_SHOT = tuple(
    _cell(
        task, "Qwen2VL-2B", dict(zip(("few_shot_lora", "few_shot_full", MPA), scores, strict=True))
    )
    for task, scores in _TABLE_5.items()
)
_PATHOLOGY = (_cell("pathvqa", "TinyLLaVA-2B", {ZERO_SHOT: 51.2, MPA: 53.6}),)
_TRANSFER_TITLE = "transfer of a TextVQA-aligned S-VLM to word recognition and captions"

TABLES = {
    table.number: table
    for table in (
        Table(number=1, title="MPA over S-VLMs, L-VLMs and tasks", cells=tuple(_table_1())),
        Table(
            number=2,
            title="GPT-4o as the L-VLM",
            cells=_API,
            note="The paper's Qwen2VL-7B itself: 74.7 on TextVQA.",
        ),
        Table(number=3, title=_TRANSFER_TITLE, cells=(_transfer(),)),
        Table(number=5, title="MPA and supervision by 100 labels", cells=_FEW_SHOT),
        Table(
            number=6, title="MPA, all pseudo-labels, and all human labels", cells=tuple(_table_6())
        ),
        Table(number=7, title="PathVQA, yes-or-no questions", cells=_PATHOLOGY),
        Table(
            number=9, title="MPA with and without the Parity Identifier", cells=tuple(_table_9())
        ),
        Table(number=10, title=_TRANSFER_TITLE, cells=(_transfer(),)),
    )
}

# The same comparisons on the embedded pair. What a table compares, beside zero-shot, the L-VLM and
# MPA.
_DEMO = {
    1: (),
    5: ("few_shot_lora", "few_shot_full"),
    6: ("human_labels", "no_pi_all", "no_pi_same_size"),
    7: (),
    9: ("no_pi_all",),
}
DEMO_TABLES = tuple(_DEMO)
EMBEDDED = ("embedded-lvlm", "embedded-svlm")


def demo_cell(task: str, ablations: Iterable[str]) -> Cell:
    """The embedded pair on a task. The paper has no figure for it."""
    figures = tuple(Figure(model=model) for model in (ZERO_SHOT, LVLM, *ablations, MPA))
    return Cell(task=task, lvlm=EMBEDDED[0], svlm=EMBEDDED[1], figures=figures)


def demo_table(number: int) -> Table:
    """Table `number` on the embedded pair: signs and charts, and for Table 7 yes-or-no questions on
    both.

    Raises:
        KeyError: the table is about a model behind an API or other benchmarks, which the demo does
            not have; see `DEMO_TABLES`.
    """
    tasks = ("pathvqa",) if number == 7 else ("textvqa", "chartqa")
    return Table(
        number=number,
        title=TABLES[number].title,
        cells=tuple(demo_cell(task, _DEMO[number]) for task in tasks),
    )
