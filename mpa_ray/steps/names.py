"""The files that make a folder a run's."""

CONFIG = "config.json"
RUN = "run.json"
