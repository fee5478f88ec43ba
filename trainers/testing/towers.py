"""Small random CLIPs, and one batch for them in double precision, where no gradient's sign is a matter of rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainers.model.build import Description, build_clip
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_clip(seed: int = 0) -> nn.Module:
    """A random open_clip model of 30 k visual parameters, 16 x 16 pixels, logit scale 100."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip(Description("small-clip", MODEL_CFG, {}))
        with torch.no_grad():
            for parameter in clip.parameters():  # open_clip starts near 0, where all prompts look alike
                if parameter.ndim > 1:
                    parameter.mul_(3)
            clip.get_parameter("logit_scale").fill_(torch.log(torch.tensor(100.0)))
    return clip


RESNET_CFG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 64},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_resnet_clip(seed: int = 0) -> nn.Module:
    """A random CLIP with open_clip's ResNet, 32 x 32 pixels, running statistics unlike a fresh BatchNorm's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip(Description("small-resnet", RESNET_CFG, {}))
        with torch.no_grad():
            visual: Any = clip.visual
            for name, value in visual.state_dict().items():
                if name.endswith("running_mean"):
                    value.normal_(0, 0.1)
                elif name.endswith(("running_var", "bn3.weight")):  # open_clip starts bn3 at 0: no block does anything
                    value.uniform_(0.5, 1.5)
            for parameter in clip.parameters():  # else all images look alike
                if parameter.ndim > 1:
                    parameter.mul_(2)
            clip.get_parameter("logit_scale").fill_(torch.log(torch.tensor(100.0)))
    return clip


TOWERS = {"vit": small_clip, "resnet": small_resnet_clip}
GLOBAL_BATCH = 9


class ExactCLIP(RobustCLIP):
    """RobustCLIP in double precision: the same functions, written once more without its fp32 checks and casts."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.double()

    def embed(self, images: Tensor) -> Tensor:
        out: Tensor = self.visual((images - self.mean) / self.std)
        return out

    def embed_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual: Any = self.visual
        patches = visual.conv1((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(len(images), 1, -1)
        tokens = visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)
        out = visual.ln_post(visual.transformer(tokens)) @ visual.proj
        return out[:, 0], out[:, 1:]

    @staticmethod
    def unit(embeddings: Tensor) -> Tensor:
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def logits(self, embeddings: Tensor, class_embeddings: Tensor, scale: float) -> Tensor:
        return scale * self.unit(embeddings) @ class_embeddings.T


@dataclass(frozen=True)
class Setting:
    """The last 5 samples of a global batch of 9, a random student, another random encoder as its teacher."""

    model: RobustCLIP
    teacher: RobustCLIP
    batch: Batch
    context: Context

    def cosines(self, model: RobustCLIP, images: Tensor) -> Tensor:
        """[B, K]"""
        embeddings = model.embed(images)
        return embeddings / embeddings.norm(dim=1, keepdim=True) @ self.context.class_embeddings.T

    def of_label(self, scores: Tensor) -> Tensor:
        """[B], each sample's own class."""
        return scores[torch.arange(len(scores)), self.batch.labels]

    def mean(self, losses: Tensor) -> Tensor:
        """A sum over these samples by the size of the global batch."""
        return losses.sum() / GLOBAL_BATCH


def setting(tower: str, dtype: torch.dtype = torch.float64) -> Setting:
    make = RobustCLIP if dtype == torch.float32 else ExactCLIP
    model, teacher = make(TOWERS[tower](0)), make(TOWERS[tower](1)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, model.image_size, model.image_size, generator=generator).to(dtype)
    texts = torch.nn.functional.normalize(torch.randn(2, 7, 16, generator=generator), dim=2).to(dtype)
    embeddings = teacher.embed(images)
    batch = Batch(images, torch.tensor([0, 6, 2, 3, 3]), torch.arange(4, 9), embeddings)
    return Setting(model, teacher, batch, Context(texts[0], 2, 1, GLOBAL_BATCH, teacher, texts[1]))
