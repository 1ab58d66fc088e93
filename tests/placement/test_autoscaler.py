"""What is read of Ray's autoscalers. How they start nodes, `tests/nodes_come.py` shows."""

import json

from mpa_ray.placement import autoscaler


def test_what_version_1_of_the_autoscaler_says() -> None:
    # As Ray 2.60's monitor writes it, shortened.
    report = {
        "active_nodes": {},
        "pending_nodes": [["10.0.0.7", "gpu_worker", "setting-up"]],
        "pending_launches": {"gpu_worker": 1},
        "failed_nodes": [["10.0.0.9", "spot_worker"]],
        "node_availability_summary": {
            "node_availabilities": {
                "p5": {
                    "node_type": "p5",
                    "is_available": False,
                    "unavailable_node_information": {
                        "category": "",
                        "description": "InsufficientInstanceCapacity",
                    },
                }
            }
        },
        "node_type_mapping": {"fff": "ray.head.default"},
    }
    found = autoscaler._version_1(json.loads(json.dumps({"autoscaler_report": report})))
    assert found.grows and found.starting == {"gpu_worker": 2}
    assert found.failing == {
        "spot_worker": "the node came up and failed",
        "p5": "InsufficientInstanceCapacity",
    }
    watched = {
        "active_nodes": {"node_fff": 1},
        "pending_launches": {},
        "node_type_mapping": {"fff": "node_fff"},
    }
    assert not autoscaler._version_1({"autoscaler_report": watched}).grows, (
        "it watches nodes that somebody else started"
    )
