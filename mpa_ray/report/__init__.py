"""What people look at after a run: `report/index.html` with its gallery, the pages on which samples
are rated, and a picture for a README.

Everything is static and self-contained: no server, no outside request, and text from models and
files is never anything but text.
"""

from mpa_ray.report.picture import parity_picture
from mpa_ray.report.write import write_report

__all__ = ["parity_picture", "write_report"]
