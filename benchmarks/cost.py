"""Parameters and multiply-adds of a config, by part, beside the paper's.

python benchmarks/cost.py vit-b-16
"""

from __future__ import annotations

import argparse

from pevl_cli.evaluation.cost import compute_cost
from pevl_cli.labels import read_labels
from pevl_cli.model.config import CONFIGS

# Table 7 of the paper, ViT-B/16.
PAPER_MILLIONS = {"video": 7, "pose": 11, "text": 6, "refinement": 5, "all": 32}
PAPER_GFLOPS = {"video": 275, "pose": 108, "all": 510}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=sorted(CONFIGS))
    name = parser.parse_args().config
    cost = compute_cost(CONFIGS[name], read_labels("diving48"))
    paper = name == "vit-b-16"
    print(f"{name}: {cost.parameters['all'] / 1e6:.1f} M parameters; tunable, in millions:")
    for part, count in cost.tunable.items():
        beside = f"   paper {PAPER_MILLIONS[part]}" if paper and part in PAPER_MILLIONS else ""
        print(f"  {part:20} {count / 1e6:7.2f}{beside}")
    print("10⁹ multiply-adds, one view, 48 labels:")
    for part, value in cost.gflops.items():
        beside = f"   paper {PAPER_GFLOPS[part]}" if paper and part in PAPER_GFLOPS else ""
        print(f"  {part:20} {value:7.1f}{beside}")


if __name__ == "__main__":
    main()
