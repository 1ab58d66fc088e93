"""What a question is: the tasks, what is asked for, how replies are read, compared and scored. It
imports no other room.
"""

from mpa_ray.tasks.tasks import TASKS, MatcherName, MetricName, Task

__all__ = ["TASKS", "MatcherName", "MetricName", "Task"]
