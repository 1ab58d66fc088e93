"""MPA on ST-VQA: Qwen2-VL-7B guides Qwen2-VL-2B (Table 1 of the paper).

Examples:

    python jobs/mpa_stvqa.py --images s3://bucket/images --output s3://bucket/run1
    python jobs/mpa_stvqa.py --preset demo --output runs/demo-stvqa
"""

from mpa_ray.cli import main
from mpa_ray.config import Config, LevelSection, ModelSection

CONFIG = Config(
    task="stvqa",
    lvlm=ModelSection(model="Qwen/Qwen2-VL-7B-Instruct", max_replicas=8),
    svlm=ModelSection(model="Qwen/Qwen2-VL-2B-Instruct", max_replicas=4),
    # Three 48 GB cards, as in the paper; batch size and learning rate are Table 11's.
    pl=LevelSection(workers=3, zero_stage=2),
)

if __name__ == "__main__":
    main(CONFIG, about=__doc__)
