"""Results of an evaluation: per image, and as integer counts over all ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainers.distributed import all_reduce_sum, gather_rows
from trainers.draws import noise
from trainers.evaluation.fast import EXTRA, MISSED, SAME, UNCHECKED, Checks
from trainers.evaluation.readings import READINGS, Readings, bin_gaps
from trainers.schema.records import Score, gap_pairs
from trainers.schema.units import eps_label


@dataclass(frozen=True)
class Verdicts:
    """What happened to every image of this rank's share; all tensors on the CPU, n images, E radii.

    `clean` holds readings [n] of the images as they are, `attacked` [E, n] of their adversarial forms: in protocol
    strict the first iterate that fools, else the one of least margin, and the image itself where that is wrong already;
    in protocol paper the last iterate. `fooled[e, i]`: not classified right under attack e. `doubts`: what the attack
    itself had against the result, sorted. `known` uint8 [E, n]: in protocol fast, how each verdict is known
    (`trainers.evaluation.fast`).
    """

    name: str
    eps: tuple[float, ...]
    index: Tensor  # int64 [n], position in the dataset
    label: Tensor  # int64 [n]
    clean: Readings
    attacked: Readings
    doubts: tuple[str, ...] = ()
    known: Tensor | None = None

    @property
    def right(self) -> Tensor:
        """bool [n]: classified right without attack."""
        return self.clean.prediction == self.label

    @property
    def fooled(self) -> Tensor:
        """bool [E, n]."""
        return self.attacked.prediction != self.label


@dataclass(frozen=True)
class SetResult:
    """Integer counts of one dataset over all ranks; `robust_correct` has one count per radius.

    `gaps`: of the calibration (`Score`), without attack and then at every radius.
    """

    name: str
    n: int
    clean_correct: int
    eps: tuple[float, ...]
    robust_correct: tuple[int, ...]
    checks: tuple[Checks, ...] | None = None  # of every radius, in protocol fast
    gaps: tuple[int, ...] | None = None

    @property
    def clean_accuracy(self) -> float:
        return self.clean_correct / self.n

    @property
    def robust_accuracy(self) -> float:
        """Mean over the radii."""
        return sum(self.robust_correct) / (len(self.eps) * self.n)

    def scores(self) -> dict[str, Score]:
        """By radius, for a record."""
        biases = [None] * len(self.eps) if self.checks is None else [each.bias(self.n) for each in self.checks]
        gaps = gap_pairs(self.gaps, len(self.eps))
        return {
            eps_label(eps): Score.of(correct=self.clean_correct, robust=robust, total=self.n, bias=bias, gaps=gap)
            for eps, robust, bias, gap in zip(self.eps, self.robust_correct, biases, gaps, strict=True)
        }


def stratified_sample(labels: Tensor, samples: int | None, *, seed: int) -> Tensor:
    """Sorted indices of `samples` images whose class shares are those of `labels` (largest remainders), by `seed`.

    The same for every model and run, and a smaller sample is part of a larger one. None, or as many as there are,
    gives all.
    """
    n = len(labels)
    if samples is None or samples >= n:
        return torch.arange(n)
    order = torch.argsort(noise(seed, 0, -1, torch.arange(n), (1,)).squeeze(1), stable=True)
    shuffled = labels[order]
    by_class = order[torch.argsort(shuffled, stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    within = torch.arange(n) - starts.repeat_interleave(counts)
    # The k-th image of a class with c images comes due at (k + 1/2) / c of the way: the first `samples` due are taken.
    due = (within + 0.5) / counts.repeat_interleave(counts)
    return by_class[torch.argsort(due, stable=True)[:samples]].sort().values


def count(verdicts: Verdicts) -> SetResult:
    """Counts over all ranks: one all-reduce of integers."""
    radii = len(verdicts.eps)
    own = [len(verdicts.index), int(verdicts.right.sum()), *(~verdicts.fooled).sum(1).tolist()]
    if verdicts.known is not None:
        own += [int((row == kind).sum()) for row in verdicts.known for kind in (UNCHECKED, SAME, MISSED, EXTRA)]
    looks = [
        (verdicts.clean.confidence, verdicts.right),
        *zip(verdicts.attacked.confidence, ~verdicts.fooled, strict=True),
    ]
    bins = torch.stack([bin_gaps(confidence, right) for confidence, right in looks])
    whole = all_reduce_sum(torch.cat([torch.tensor(own, dtype=torch.int64), bins.flatten()]))
    n, right, *rest = whole[: len(own)].tolist()
    gaps = tuple(whole[len(own) :].view_as(bins).abs().sum(1).tolist())
    robust, kinds = tuple(rest[:radii]), rest[radii:]
    checks = tuple(Checks(*kinds[first : first + 4]) for first in range(0, len(kinds), 4)) if kinds else None
    return SetResult(verdicts.name, n, right, verdicts.eps, robust, checks, gaps)


def gather(verdicts: Verdicts) -> Verdicts:
    """All ranks' verdicts, in dataset order, on every rank."""
    index = gather_rows(verdicts.index)
    order = index.argsort()

    def joined(rows: Tensor) -> Tensor:
        return gather_rows(rows)[order]

    return Verdicts(
        name=verdicts.name,
        eps=verdicts.eps,
        index=index[order],
        label=joined(verdicts.label),
        clean=verdicts.clean.each(joined),
        attacked=verdicts.attacked.each(lambda rows: joined(rows.T).T),
        known=None if verdicts.known is None else joined(verdicts.known.T).T,
    )


# Verdicts as safetensors bytes: what a finished piece of an evaluation leaves, so that nothing is computed twice.

KINDS = ("clean", "attacked")


def pack_verdicts(verdicts: Verdicts, facts: Mapping[str, Any], *, logits: Tensor | None = None) -> bytes:
    """A safetensors file of them; its header holds `facts`, JSON values about how they were made, and a SHA-256.

    `logits` fp32 [n, K]: what a calibration needs beside the verdicts.
    """
    tensors = {"index": verdicts.index, "label": verdicts.label} | ({} if logits is None else {"logits": logits})
    tensors |= {} if verdicts.known is None else {"known": verdicts.known.contiguous()}
    for kind in KINDS:
        tensors |= {f"{kind}.{name}": getattr(getattr(verdicts, kind), name).contiguous() for name in READINGS}
    content = json.dumps({"name": verdicts.name, "eps": verdicts.eps, "doubts": verdicts.doubts, "facts": dict(facts)})
    return save(tensors, {"content": content, "sha256": _digest(content, tensors)})


def unpack_verdicts(data: bytes, source: str) -> tuple[Verdicts, dict[str, Any]]:
    """The verdicts and the facts, every byte of them checked; `ValueError` naming `source` if they are damaged."""
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["sha256"] != _digest(header["content"], tensors):
            raise ValueError("not the bytes that were written")
        content = json.loads(header["content"])
        clean, attacked = (Readings(**{name: tensors[f"{kind}.{name}"] for name in READINGS}) for kind in KINDS)
        verdicts = Verdicts(
            content["name"], tuple(content["eps"]), tensors["index"], tensors["label"], clean, attacked,
            tuple(content["doubts"]), tensors.get("known"),
        )  # fmt: skip
        return verdicts, dict(content["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not a file of verdicts ({error})") from error


def packed_logits(data: bytes) -> Tensor:
    """The logits of a file that `unpack_verdicts` has checked, and that was made with them."""
    return load(data)["logits"]


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        digest.update(repr((name, tuple(tensors[name].shape), str(tensors[name].dtype))).encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def join_verdicts(parts: Sequence[Verdicts]) -> Verdicts:
    """Verdicts on disjoint images of one set, in dataset order; needs at least one part."""
    first = parts[0]
    index = torch.cat([part.index for part in parts])
    order = index.argsort()
    if len(order) and not (index[order].diff() > 0).all():
        raise ValueError(f"{first.name}: an image is in two parts")
    known = [part.known for part in parts if part.known is not None]
    return replace(
        first,
        index=index[order],
        label=torch.cat([part.label for part in parts])[order],
        clean=Readings.join([part.clean for part in parts]).at(order),
        attacked=Readings.join([part.attacked for part in parts], 1).each(lambda values: values[:, order]),
        doubts=tuple(sorted({doubt for part in parts for doubt in part.doubts})),
        known=torch.cat(known, 1)[:, order] if known else None,
    )
