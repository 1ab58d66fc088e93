"""The errors that are meant for people: one line that names the thing and the mend."""


class ConfigurationError(ValueError):
    """The configuration or its inputs cannot be used. Raised before any model loads; a job exits with code 2."""


class RunError(RuntimeError):
    """The run cannot go on (nothing to train on, too much quarantined, storage failing). What is finished stays; a job exits with code 3."""
