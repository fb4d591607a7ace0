"""Parameters and multiply-adds of a config, by part, beside the paper's.

python benchmarks/cost.py vit-b-16
"""

from __future__ import annotations

import argparse

from pevl_cli.evaluation.cost import compute_cost
from pevl_cli.labels import read_labels
from pevl_cli.model.config import CONFIGS

# Tables 7 and 1 of the paper. Table 1 says 42 M for ViT-B/16, Table 7 says 32 M.
PAPER_MILLIONS = {
    "vit-b-16": {"video": 7, "pose": 11, "text": 6, "refinement": 5, "all": 32},
    "vit-l-14": {"all": 109},
}
PAPER_GFLOPS = {"vit-b-16": {"video": 275, "pose": 108, "all": 510}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=sorted(CONFIGS))
    name = parser.parse_args().config
    cost = compute_cost(CONFIGS[name], read_labels("diving48"))
    millions, gflops = PAPER_MILLIONS.get(name, {}), PAPER_GFLOPS.get(name, {})
    print(f"{name}: {cost.parameters['all'] / 1e6:.1f} M parameters; tunable, in millions:")
    for part, count in cost.tunable.items():
        beside = f"   paper {millions[part]}" if part in millions else ""
        print(f"  {part:20} {count / 1e6:7.2f}{beside}")
    print("10⁹ multiply-adds, one view, 48 labels:")
    for part, value in cost.gflops.items():
        beside = f"   paper {gflops[part]}" if part in gflops else ""
        print(f"  {part:20} {value:7.1f}{beside}")


if __name__ == "__main__":
    main()
