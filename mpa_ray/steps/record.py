"""run.json, and what a finished run shows."""

from typing import Any

from mpa_ray.config import Config
from mpa_ray.engines import ledger
from mpa_ray.observability.versions import versions
from mpa_ray.report import summary, write_report
from mpa_ray.report.model_card import model_card
from mpa_ray.stages import crash_blame, step_times
from mpa_ray.steps.names import RUN
from mpa_ray.storage.folder import Folder
from mpa_ray.storage.lease import Lease


def record_of(
    config: Config,
    output: Folder,
    placed: dict[str, Any],
    data: dict[str, Any],
    trained: dict[str, dict[str, Any]],
    evaluation: list[dict[str, Any]],
) -> dict[str, Any]:
    """What run.json says."""
    paid = ledger.accounts(config, output)
    finished = step_times.records(output)
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "placement": placed,
        **data,
        "training": trained,
        "evaluation": evaluation,
        "ledger": paid,
        "cost_usd": {
            step: account["cost_usd"] for step, account in paid.items() if "cost_usd" in account
        },
        "stages": {name: one["seconds"] for name, one in finished.items()},
        "wall_seconds": step_times.wall_seconds(finished.values()),
    }


def publish(config: Config, output: Folder, record: dict[str, Any], held: Lease) -> None:
    """Writes what a finished run shows, run.json last."""
    output.write_bytes("model/README.md", model_card(config, record).encode())
    write_report(output, record=record)
    crash_blame.forget(output)
    held.check()
    output.write_json(RUN, record)
    print(summary.table(record))
