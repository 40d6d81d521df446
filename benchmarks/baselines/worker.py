"""One of the two processes of benchmarks/train_step.py: a training step whenever it is asked.

Runs in both environments, so that images, targets, optimizer and clock are the same code. A line on
stdin asks for a step; each answer, the first of them before any step, is a line of JSON on stdout.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

BATCH, SIDE, BOXES, CLASSES = 2, 384, 8, 90
CLIP = 0.1

Targets = list[dict[str, Tensor]]
"""Per image: boxes (BOXES, 4) cxcywh in 0-1 and labels (BOXES,)."""
Losses = Callable[[Tensor, Targets], dict[str, Tensor]]
"""Images (BATCH, 3, SIDE, SIDE) and targets -> every weighted loss, by upstream's names."""


def serve(build: Callable[[], tuple[nn.Module, Losses]]) -> None:
    """Builds the network, then answers until stdin ends. argv: threads."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(int(sys.argv[1]))
    before = _peak_mb()
    model, losses = build()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    images, targets = _batch()
    print(json.dumps({"torch": torch.__version__, "imported_mb": before}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = losses(images, targets)
        total = torch.stack(list(found.values())).sum()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        values = {name: value.item() for name, value in found.items()}
        answer = {"seconds": seconds, "losses": values, "peak_mb": _peak_mb()}
        print(json.dumps(answer), file=answers, flush=True)


def _batch() -> tuple[Tensor, Targets]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=random)
    targets = []
    for _ in range(BATCH):
        centre, size = torch.rand(2, BOXES, 2, generator=random)
        boxes = torch.cat([0.2 + 0.6 * centre, 0.05 + 0.3 * size], dim=-1)
        labels = torch.randint(CLASSES, (BOXES,), generator=random)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def _peak_mb() -> float:
    # not getrusage: its peak starts at that of the process which started this one
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
