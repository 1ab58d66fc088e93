"""MPA on TextVQA: Qwen2-VL-7B guides Qwen2-VL-2B (Table 1 of the paper).

Examples:

    python jobs/mpa_textvqa.py --images s3://bucket/images --output s3://bucket/run1
    python jobs/mpa_textvqa.py --preset demo --output runs/demo-textvqa
    python jobs/mpa_textvqa.py --preset demo --images photos --output runs/photos-demo
"""

from mpa_ray.cli import main
from mpa_ray.config import Config, ModelSection

# GPUs, replicas and workers follow from the cluster (docs/placement.md); batch size and learning
# rate are Table 11's.
CONFIG = Config(
    task="textvqa",
    lvlm=ModelSection(model="Qwen/Qwen2-VL-7B-Instruct"),
    svlm=ModelSection(model="Qwen/Qwen2-VL-2B-Instruct"),
)

if __name__ == "__main__":
    main(CONFIG, about=__doc__)
