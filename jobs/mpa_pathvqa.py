"""MPA on PathVQA's yes-or-no questions: Qwen2-VL-7B guides Qwen2-VL-2B. The paper aligns
TinyLLaVA-2B here (Table 7).

Examples:

    python jobs/mpa_pathvqa.py --images s3://bucket/images --output s3://bucket/run1
    python jobs/mpa_pathvqa.py --images images --output runs/pathvqa \\
        --svlm.model models/TinyLLaVA-2B-hf --pl.learning_rate 1e-4
    python jobs/mpa_pathvqa.py --preset demo --output runs/demo-pathvqa
"""

from mpa_ray.cli import main
from mpa_ray.config import Config, ModelSection

# GPUs, replicas and workers follow from the cluster (docs/placement.md); batch size and learning
# rate are Table 11's.
CONFIG = Config(
    task="pathvqa",
    lvlm=ModelSection(model="Qwen/Qwen2-VL-7B-Instruct"),
    svlm=ModelSection(model="Qwen/Qwen2-VL-2B-Instruct"),
)

if __name__ == "__main__":
    main(CONFIG, about=__doc__)
