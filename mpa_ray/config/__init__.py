"""One typed configuration for Python, YAML and flags, and what is derived from it."""

from mpa_ray.config.arms import COMPARISONS, LABELED_ARMS
from mpa_ray.config.cluster import ClusterSection
from mpa_ray.config.config import TASK_TAGS, Config, TaskName
from mpa_ray.config.evaluation import DemoSection, EvaluateSection, LabeledSection
from mpa_ray.config.identity import changes, identity, keep_used, nested, of_identity
from mpa_ray.config.model import API_SETTINGS, LocalModelSection, ModelSection
from mpa_ray.config.section import Section
from mpa_ray.config.stages import AnnotateSection, IdentifySection
from mpa_ray.config.training import LevelSection, TrainingSection

__all__ = [
    "API_SETTINGS",
    "COMPARISONS",
    "LABELED_ARMS",
    "TASK_TAGS",
    "AnnotateSection",
    "ClusterSection",
    "Config",
    "DemoSection",
    "EvaluateSection",
    "IdentifySection",
    "LabeledSection",
    "LevelSection",
    "LocalModelSection",
    "ModelSection",
    "Section",
    "TaskName",
    "TrainingSection",
    "changes",
    "identity",
    "keep_used",
    "nested",
    "of_identity",
]
