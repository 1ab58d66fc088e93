"""One folder anywhere (a disk, S3, GCS), files that are written whole or not at all, and the lease
that holds an output.
"""

from mpa_ray.storage.folder import Folder

__all__ = ["Folder"]
