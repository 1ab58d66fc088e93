"""The cluster in the configuration: what Ray cannot tell of nodes that are not there yet."""

from pydantic import PositiveFloat, PositiveInt

from mpa_ray.config.section import Section


class ClusterSection(Section):
    """What placement may count on (docs/placement.md). Nodes that are there say it themselves; of
    what it may start, an autoscaler says nothing.
    """

    gpus: PositiveInt | None = None
    """GPUs the run may use at a time. Without it, all there are; on an autoscaling cluster, as
    many as it starts.
    """
    gpus_per_node: PositiveInt | None = None
    """GPUs of the largest node that can be started. Without it, of the largest that is there;
    where none is, 8.
    """
    gpu_memory_gib: PositiveFloat = 48
    """Memory of a GPU where no node says which GPUs it has, in GiB (A6000: 48, L40S: 45)."""
    patience_s: PositiveFloat = 45
    """Seconds that a stage waits for resources which no node has and nobody is starting, before the
    run ends with an error.
    """
