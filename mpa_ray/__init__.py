"""mpa_ray: Model Parity Aligner on Ray. A small vision-language model gets better at a task from
unlabeled images and a large model as guide.

    from mpa_ray import Config, run

    run(Config(images="photos", output="runs/mine", lvlm=..., svlm=...))

Each stage stands alone too: `annotate` and `identify` take a Ray Dataset and give one back, `level`
trains on folders of parity samples, `evaluate` scores a model, and `metrics` holds the official
scores. Importing this loads neither Ray nor torch.
"""

import sys

from mpa_ray.config import (
    AnnotateSection,
    Config,
    DemoSection,
    EvaluateSection,
    IdentifySection,
    LevelSection,
    ModelSection,
    TrainingSection,
)
from mpa_ray.demo import presets
from mpa_ray.errors import ConfigurationError, RunError
from mpa_ray.parity_identifier import identify
from mpa_ray.parity_leveler import level
from mpa_ray.pipeline import run
from mpa_ray.placement import ray_session
from mpa_ray.pseudo_annotator import annotate
from mpa_ray.stages.evaluate import evaluate
from mpa_ray.stages.held_out import compare_on_held_out
from mpa_ray.stages.jury import identify_jury
from mpa_ray.tasks import TASKS, Task, metrics

__version__ = "0.1.0"

# Its earlier name, for scripts that import it.
learned_and_forgotten = compare_on_held_out

# Modules that scripts import by these paths, wherever they lie.
sys.modules |= {
    "mpa_ray.metrics": metrics,
    "mpa_ray.presets": presets,
    "mpa_ray.ray_session": ray_session,
}

__all__ = [
    "TASKS",
    "AnnotateSection",
    "Config",
    "ConfigurationError",
    "DemoSection",
    "EvaluateSection",
    "IdentifySection",
    "LevelSection",
    "ModelSection",
    "RunError",
    "Task",
    "TrainingSection",
    "annotate",
    "compare_on_held_out",
    "evaluate",
    "identify",
    "identify_jury",
    "learned_and_forgotten",
    "level",
    "metrics",
    "run",
]
