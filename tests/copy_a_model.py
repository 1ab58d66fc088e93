"""A process that needs a model on this node: its prefix. Prints where the copy is, after "copying"
where this one made it.
"""

import sys

from mpa_ray.models import checkpoint

print(checkpoint.local(sys.argv[1]))
