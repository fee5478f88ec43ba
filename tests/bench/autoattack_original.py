"""`autoattack` against its authors' own code, image by image, on the small network of the tests.

    git clone https://github.com/fra31/auto-attack ORIGINAL
    PYTHONPATH=ORIGINAL:. .venv/bin/python tests/bench/autoattack_original.py [--images 57] [--classes 3 10]

Prints one Markdown row for each number of classes. Exit code 1 if a verdict or an image differs (by 1e-6 a pixel).
"""

from __future__ import annotations

import argparse
import sys

import torch
from autoattack import AutoAttack as Original  # type: ignore[import-not-found]

from tests.support.attacked import case, network
from trainers.attacks import run_attack
from trainers.schema.attacks import AutoAttack


def row(images: int, classes: int) -> tuple[str, bool]:
    """The line of the table, and whether all is the same."""
    given = case(number=images, classes=classes)
    found = run_attack(given, AutoAttack())
    theirs = Original(network(classes), norm="Linf", eps=given.eps, version="custom", attacks_to_run=list(found.parts),
                      seed=given.seed, device="cpu", verbose=False)  # fmt: skip
    theirs.apgd.n_restarts = theirs.fab.n_restarts = 1
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = min(9, classes - 1)
    expected = theirs.run_standard_evaluation(given.images, given.labels, bs=images)
    same = ((found.adversarial - expected).abs().flatten(1).amax(1) <= 1e-6).sum().item()
    fooled = [network(classes)(each).argmax(1) != given.labels for each in (found.adversarial, expected)]
    alike = (fooled[0] == fooled[1]).sum().item()
    text = (f"| autoattack | the original | {classes} | {', '.join(found.parts)} | {fooled[0].sum()} / "
            f"{fooled[1].sum()} | {alike} of {images} | {same} of {images} |")  # fmt: skip
    return text, alike == same == images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=57)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 10])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print("| attack | against | classes | parts | fooled by ours / theirs | same verdict | same image |")
    print("| --- | --- | ---: | --- | ---: | ---: | ---: |", flush=True)
    rows = []
    for classes in asked.classes:
        rows.append(row(asked.images, classes))
        print(rows[-1][0], flush=True)
    return int(not all(same for _, same in rows))


if __name__ == "__main__":
    sys.exit(main())
