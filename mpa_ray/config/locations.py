"""One spelling for each place: a local path is absolute, whoever reads it.

Ray's workers run in folders of their own, so a relative path means nothing there; and two spellings
of one folder are one folder.
"""

import os
import re
from typing import Annotated

from pydantic import AfterValidator

from mpa_ray.schema import absolute

# Where Ray unpacks what `ray job submit --working-dir` uploads; each submission may have another.
_UPLOAD = re.compile(r".*/runtime_resources/working_dir_files/[^/]+/")


def is_model_folder(name: str) -> bool:
    """Whether a model's name leads to a local folder in the Hugging Face layout."""
    return bool(name) and os.path.isfile(os.path.join(name, "config.json"))


def of_model(name: str) -> str:
    """A model by its absolute path where it is a local folder; a hub name stays as it is. A folder
    that is there wins over a hub name.
    """
    is_path = "://" in name or name.startswith(("/", ".", "~"))
    return absolute(name) if is_path or is_model_folder(name) else name


def lasting(place: str) -> str:
    """The part of a path that stays when the same job is submitted again: below the folder that was
    uploaded, the path in it.
    """
    return _UPLOAD.sub("", place, count=1)


Location = Annotated[str, AfterValidator(lambda place: absolute(place) if place else place)]
"""A setting that names a folder, file or prefix."""
OptionalLocation = Annotated[
    str | None, AfterValidator(lambda place: absolute(place) if place else place)
]
"""The same, where it may be left out."""
