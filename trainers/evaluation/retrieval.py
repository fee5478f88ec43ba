"""Zero-shot retrieval: recall at 1, 5 and 10 from pictures to captions and back, clean and with attacked pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.attacks import Case, run_attack
from trainers.data.pairs import Pairs
from trainers.data.prepared.decode import SIDE, decode
from trainers.evaluation.scorer import Scorer, exact, fitting_batch
from trainers.evaluation.verdicts import stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

KS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """Shares of queries whose own is among the first 1, 5 and 10; `queries` in the direction image to text."""

    images: int
    texts: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "images": self.images, "texts": self.texts,
            "image_to_text": {f"R@{k}": share for k, share in self.image_to_text.items()},
            "text_to_image": {f"R@{k}": share for k, share in self.text_to_image.items()},
        }  # fmt: skip


def recalls(image: Tensor, text: Tensor, owner: Tensor) -> Recall:
    """Of unit embeddings fp32 [N, D] and [M, D]; `owner` int64 [M], the picture of each text.

    A rank is the number of strictly more similar candidates: of a picture, to its most similar own caption.
    """
    similar = image @ text.T
    mine = owner[None] == torch.arange(len(image), device=owner.device)[:, None]
    best = similar.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
    ranks = (similar > best).sum(1)
    own = similar.gather(0, owner[None]).squeeze(0)
    text_ranks = (similar > own).sum(0)
    return Recall(
        len(image), len(text), *({k: float((r < k).double().mean()) for k in KS} for r in (ranks, text_ranks))
    )


class PairScorer(Scorer):
    """Scores pictures against pictures: the logit of each is that of its most similar caption.

    Its arg max is right where the first caption found is the picture's own: an attack on this classifier is one on R@1.
    """

    def __init__(self, model: RobustCLIP, texts: Tensor, owner: Tensor) -> None:
        super().__init__(model, texts)
        self.owner = owner.to(self.device)
        self.pictures = int(owner.max()) + 1

    @property
    def num_classes(self) -> int:
        return self.pictures

    def __call__(self, images: Tensor, done: Tensor | None = None) -> Tensor:
        logits = super().__call__(images, done)
        empty = logits.new_full((len(logits), self.pictures), -torch.inf)
        return empty.scatter_reduce(1, self.owner.expand(len(logits), -1), logits, "amax", include_self=False)


def retrieve(
    clip: nn.Module, pairs: Pairs, entry: AttackAt | None, *, samples: int | None = None, seed: int = 0,
    device: torch.device | str = "cpu", say: Callable[[str], None] = lambda text: None,
) -> dict[str, Recall]:  # fmt: skip
    """Recall by radius, the clean pictures' first, as `clean`, then `4/255`.

    Pictures are resized and cropped as datasets are. `entry`: an attack of EVAL_ATTACKS with its radii, on every
    picture, against its being matched with its own captions (`PairScorer`); texts are never changed. From texts, the
    attacked pictures are the gallery. `samples`: so many pictures, with their captions alone, chosen by `seed`.
    """
    chosen = stratified_sample(torch.zeros(len(pairs.images), dtype=torch.int64), samples, seed=seed).tolist()
    captions = [pairs.captions[row] for row in chosen]
    owner = torch.tensor([row for row, texts in enumerate(captions) for _ in texts])
    model, tokenizer = RobustCLIP(clip.to(device)), tokenizer_for(clip)
    texts = _texts(clip, [text for group in captions for text in group], tokenizer)
    scorer = PairScorer(model, texts, owner)
    images = torch.stack([torch.from_numpy(decode(pairs.images[row], "224", SIDE)) for row in chosen])
    batch = fitting_batch(scorer, tuple(images.shape[1:]))
    found: dict[str, list[Tensor]] = {}
    radii = [] if entry is None else [eps for eps in entry.eps if eps > 0]
    with exact(model):
        for start in range(0, len(images), batch):
            rows = torch.arange(start, min(start + batch, len(images)))
            pixels = scorer.pixels(images[rows])
            found.setdefault("clean", []).append(_embed(model, pixels))
            for eps in radii:
                assert entry is not None, "there are radii"
                case = Case(scorer, pixels, rows.to(scorer.device), torch.tensor(chosen)[rows].to(scorer.device), eps,
                            scorer.num_classes, norm=entry.norm, seed=seed)  # fmt: skip
                found.setdefault(eps_label(eps), []).append(_embed(model, run_attack(case, entry.attack).worst.images))
            say(f"{int(rows[-1]) + 1:,} of {len(images):,} pictures")
    return {name: recalls(torch.cat(parts), texts, owner.to(scorer.device)) for name, parts in found.items()}


def _embed(model: RobustCLIP, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.unit(model.embed(pixels))


def _texts(clip: nn.Module, texts: Sequence[str], tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
    """Unit embeddings [M, D]."""
    device = next(clip.parameters()).device
    with torch.no_grad():
        parts = [clip.encode_text(tokenizer(list(texts[i : i + 256])).to(device), normalize=True).float()  # type: ignore[operator]
                 for i in range(0, len(texts), 256)]  # fmt: skip
    return torch.cat(parts)
