"""One step's loss and gradients, computed by one process or by several: a script for a test.

python tests/training/two_processes.py PROCESSES OUT.pt
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import LABELS, ON_CLIP, J, S, T, stir, tiny_config

from pevl_cli.data.batches import BatchPlan
from pevl_cli.labels import LabelSet
from pevl_cli.model.features import Batch
from pevl_cli.model.pevl import PeVL
from pevl_cli.training.engine import make_fabric
from pevl_cli.training.settings import load_settings
from pevl_cli.training.trainer import Trainer

CLIPS = 8


def main(processes: int, target: Path) -> None:
    config = tiny_config(**ON_CLIP)
    settings = load_settings(
        "mini",
        {
            "data.dataset": ".",
            "optim.batch_size": CLIPS,
            "optim.ema_decay": 0.0,
            "optim.clip_norm": 1e9,
            "run.device": "cpu",
            "run.processes": processes,
            "run.precision": "fp32",
            "run.tracker": "none",
        },
        base=config,
    )
    fabric = make_fabric(settings)
    fabric.launch()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = PeVL(config)
    stir(model)
    trainer = Trainer(model, LabelSet(LABELS, LABELS), settings, fabric)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (CLIPS, T, 3, 48, 48), generator=generator, dtype=torch.uint8)
    points = torch.rand(CLIPS, S, J, 2, generator=generator)
    visible = (torch.rand(CLIPS, S, J, 1, generator=generator) > 0.15).float()
    has_video = torch.tensor([True] * (CLIPS - 1) + [False])
    plan = BatchPlan([0, 1, 2, 0, 1, 2, 0, 1], CLIPS, 1, 1, 0.0, 0)
    part = CLIPS // fabric.world_size
    places = plan.batch(1, 0)[fabric.global_rank * part :][:part]
    chosen = torch.tensor([place.clip for place in places])
    joints = torch.cat([points * visible, visible], -1)
    batch = Batch(frames[chosen], joints[chosen], has_video[chosen])
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        named = model.named_parameters()
        gradients.update({k: p.grad.clone() for k, p in named if p.grad is not None})

    trainer.optimiser.register_step_pre_hook(keep)
    step = trainer.step(iter([batch]), plan, 1, 0)
    if fabric.is_global_zero:
        content = {"loss": step.loss, "hits": (step.right, step.clips), "gradients": gradients}
        torch.save(content, target)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
