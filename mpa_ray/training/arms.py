"""What each S-VLM is trained on: MPA, the ablations, and the comparisons on human labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from mpa_ray.config import COMPARISONS, Config, TrainingSection
from mpa_ray.images.draw import draw, is_held_out
from mpa_ray.images.parts import dataset_of, part_name, part_number, with_image_struct, with_images
from mpa_ray.schema import CONSISTENT, Verdict
from mpa_ray.storage.folder import Folder
from mpa_ray.training.human_labels import labeled_rows


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What one S-VLM is trained on.

    Attributes:
        name: under which its scores appear.
        train_on: which rows: "parity", "consistent" or "all".
        replay: rows the S-VLM had right per parity row, mixed in.
        same_size_as_parity: draw only as many rows as the parity set has.
        labeled: trained on human labels: this many, 0 for all; None for arms that are not.
        lora_rank: of LoRA; 0 trains every weight.
    """

    name: str
    train_on: str
    replay: float = 0.0
    same_size_as_parity: bool = False
    labeled: int | None = None
    lora_rank: int = 0


def arms(config: Config) -> list[Arm]:
    """The run's arms: MPA, as `pl` configures it, and the comparisons asked for."""
    mpa = Arm(
        name="mpa",
        train_on=config.pl.train_on,
        replay=config.pl.replay,
        lora_rank=config.pl.lora_rank,
    )
    return [mpa, *(_comparison(name, config) for name in config.ablations)]


def _comparison(name: str, config: Config) -> Arm:
    found = COMPARISONS[name]
    labels = config.few_shot if found.few_shot else 0
    return Arm(
        name=name,
        train_on=found.train_on,
        same_size_as_parity=found.same_size_as_parity,
        labeled=labels if found.train_on == "labels" else None,
        lora_rank=found.lora_rank,
    )


def reads_of(arm: Arm) -> tuple[str, ...]:
    """Where the arm's rows come from: folders of the output, or a setting."""
    if arm.labeled is not None:
        return ("labels.benchmark",)
    if arm.train_on != "parity":
        return ("judgements",)
    return ("parity", "judgements") if arm.replay else ("parity",)


def training_folders(arm: Arm, output: Folder, config: Config) -> list[Folder]:
    """PARITY folders that hold the arm's rows; rows that are not in parity/ are written to
    training/<arm>/ first, their images fetched again.

    Raises:
        RunError: an image of a row is gone.
    """
    if arm.train_on == "parity" and not arm.replay:
        return [Folder.at(config.parity) if config.parity else output.child("parity")]
    if arm.labeled is not None:
        return [
            labeled_rows(
                config, output.child(f"training/{arm.name}"), count=arm.labeled, seed=config.seed
            )
        ]
    target = output.child(f"training/{arm.name}")
    verdicts = {"parity": {Verdict.SVLM_CORRECT}, "consistent": CONSISTENT, "all": set(Verdict)}[
        arm.train_on
    ]
    keep = partial(
        _selected,
        verdicts=frozenset(map(str, verdicts)),
        bound=_bound(arm, output, config),
        holdout=config.pl.holdout,
        salt=_salt(arm, config),
    )
    judgements = output.child("judgements")
    numbers = [part_number(name) for name in judgements.names(".parquet")]
    write = partial(
        _write_rows,
        judgements=judgements,
        target=target,
        keep=keep,
        max_image_bytes=config.max_image_bytes,
    )
    for _ in dataset_of(numbers, write).iter_batches(batch_size=None):
        pass
    return [output.child("parity"), target] if arm.train_on == "parity" else [target]


def _salt(arm: Arm, config: Config) -> str:
    return f"{arm.name}/{config.seed}"


def _bound(arm: Arm, output: Folder, config: Config) -> float:
    """The draw below which a row is taken: 1 for all of them, or what gives exactly the number
    wanted.
    """
    if not arm.same_size_as_parity and not arm.replay:
        return 1.0
    import ray

    return ray.get(
        ray.remote(num_cpus=1)(_draw_bound).remote(
            output.child("judgements"), arm, config.pl.holdout, _salt(arm, config)
        )
    )


def _draw_bound(judgements: Folder, arm: Arm, holdout: float, salt: str) -> float:
    """Runs as a task, so that the ids of all rows are never in the driver's memory; their draws
    take 8 bytes a row.
    """
    draws: list[float] = []
    parity = 0
    candidates = {Verdict.SVLM_CORRECT} if arm.replay else set(Verdict)
    for table in judgements.tables(["sample_id", "verdict"]):
        for sample_id, verdict in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            if is_held_out(sample_id, holdout):
                continue
            parity += verdict == Verdict.PARITY
            if verdict in candidates:
                draws.append(draw(sample_id, salt))
    wanted = round(parity * arm.replay) if arm.replay else parity
    draws.sort()
    return draws[wanted] if wanted < len(draws) else 1.0


def _selected(
    sample_ids: Iterable[str],
    verdicts_of: Iterable[str],
    *,
    verdicts: frozenset[str],
    bound: float,
    holdout: float,
    salt: str,
) -> list[bool]:
    return [
        verdict in verdicts
        and not is_held_out(sample_id, holdout)
        and draw(sample_id, salt) < bound
        for sample_id, verdict in zip(sample_ids, verdicts_of, strict=True)
    ]


def _write_rows(
    number: int, *, judgements: Folder, target: Folder, keep: Any, max_image_bytes: int
) -> pa.Table:
    """Writes the chosen rows of one part with their images; gives back how many."""
    table = judgements.read_table(
        part_name(number), ["image_id", "image_uri", "sample_id", "question", "answer", "verdict"]
    )
    table = table.filter(
        pa.array(
            keep(table.column("sample_id").to_pylist(), table.column("verdict").to_pylist()),
            pa.bool_(),
        )
    )
    rows = with_images(table, max_image_bytes=max_image_bytes)
    if rows.num_rows:
        target.write_table(part_name(number), with_image_struct(rows))
    return pa.table({"rows": [rows.num_rows]})


def count_rows(folders: list[Folder], holdout: float) -> int:
    """How many rows of `folders` are trained on."""
    return sum(
        not is_held_out(sample_id, holdout)
        for folder in folders
        for table in folder.tables(["sample_id"])
        for sample_id in table.column(0).to_pylist()
    )


def settings_of(arm: Arm, config: Config) -> TrainingSection:
    """The training settings of an arm. Human labels are no pseudo-labels, so none of them is held
    out.
    """
    return config.pl.model_copy(
        update={"lora_rank": arm.lora_rank} | ({"holdout": 0.0} if arm.labeled is not None else {})
    )


def model_folder(output: Folder, arm: str) -> Folder:
    """Where an arm's S-VLM goes: model/ is MPA's, models/<arm>/ those for comparison."""
    return output.child("model") if arm == "mpa" else output.child(f"models/{arm}")
