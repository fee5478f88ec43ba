"""The model under training: open_clip's CLIP, of which only the image encoder learns."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.arithmetic import exact_math
from trainers.device import out_of_memory
from trainers.draws import noise
from trainers.errors import UserError
from trainers.model.build import describe

logger = logging.getLogger(__name__)
FINGERPRINT_IMAGES, FINGERPRINT_TEXTS = 2, 3
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RobustCLIP(nn.Module):
    """CLIP's image encoder with everything inside: pixels in [0, 1] go in, embeddings come out.

    Shares `clip.visual`, which becomes trainable. Always keep it in eval mode: CLIP's encoders have no dropout, and
    ResNets then keep their running statistics, so that attack, update and evaluation see one and the same function.
    (The official code attacks in eval and updates in train mode, and its frozen ResNet teacher drifts.)
    """

    mean: Tensor
    std: Tensor
    prompt: nn.Parameter | None
    prompt_mask: Tensor

    def __init__(self, clip: nn.Module, *, precision: str = "fp32") -> None:
        super().__init__()
        preprocess = describe(clip).preprocess
        visual = clip.visual
        assert isinstance(visual, nn.Module)
        self.visual = visual.requires_grad_(True)
        self.image_size = _image_size(clip)
        self.precision = precision
        self.checkpointing = False
        self.compile_note: str | None = None
        self.register_parameter("prompt", None)
        self.logit_scale = float(clip.logit_scale.detach().exp())  # type: ignore[operator]
        device = next(visual.parameters()).device
        self.register_buffer("mean", torch.tensor(preprocess["mean"], device=device).view(1, 3, 1, 1), False)
        self.register_buffer("std", torch.tensor(preprocess["std"], device=device).view(1, 3, 1, 1), False)
        self.eval()

    def embed(self, images: Tensor) -> Tensor:
        """fp32 [B, 3, H, W] in [0, 1] -> raw embeddings, fp32 [B, D].

        Another size than the model's is resized here (bicubic, antialiased, differentiable), so that an attack lives
        at the images' own resolution, as in the official code. `precision` bf16 or fp16 runs the encoder in autocast.
        """
        pixels = self._normalised(images)
        with self._autocast(pixels):
            return self._encoder(pixels).float()

    def embed_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `embed`, with the patch tokens: fp32 [B, D] and fp32 [B, P, D], P patches in row-major order.

        Final LayerNorm and projection are applied to every token, as TGA-ZSR does. ViTs with a class token only.
        """
        visual = self.visual
        plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
        if not plain or visual.final_ln_after_pool:
            raise UserError("method.name: needs the patch tokens of a ViT with a class token, which this model is not")
        pixels = self._normalised(images)
        with self._autocast(pixels):
            tokens: Tensor = visual.ln_post(visual.transformer(visual._embeds(pixels))) @ visual.proj  # type: ignore[operator]
        return tokens[:, 0].float(), tokens[:, 1:].float()

    def add_prompt(self, width: int) -> nn.Parameter:
        """A trainable border of `width` pixels, added to the normalised input; zero at first. ViTs only."""
        if not isinstance(self.visual, VisionTransformer) or getattr(self.visual.conv1, "bias", None) is not None:
            raise UserError("train.trainable.part: 'visual_prompt' needs a ViT with open_clip's patch embedding")
        size = self.image_size
        if not 0 < 2 * width <= size:
            raise UserError(
                f"train.trainable.prompt_width: {width}: the input is {size} pixels wide; at most {size // 2}"
            )
        mask = torch.ones(1, 1, size, size, device=self.mean.device)
        mask[..., width : size - width, width : size - width] = 0
        self.register_buffer("prompt_mask", mask, False)
        self.prompt = nn.Parameter(torch.zeros(1, 3, size, size, device=self.mean.device))
        return self.prompt

    def plain_visual(self) -> dict[str, Tensor]:
        """The encoder's weights as open_clip knows them, the prompt folded in: what is shipped.

        The patch embedding is linear and has no bias, and the position embedding is added right behind it, so a prompt
        is the same function as a shift of the position embedding, up to rounding.
        """
        state = dict(self.visual.state_dict())
        if self.prompt is not None:
            with torch.no_grad(), exact_math():
                shift = self.visual.conv1(self.prompt * self.prompt_mask)  # type: ignore[operator]
                position = state["positional_embedding"].clone()
                position[1:] += shift.flatten(2)[0].T
                state["positional_embedding"] = position
        return state

    def use_activation_checkpointing(self, on: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        self.checkpointing = on
        if not isinstance(self.visual, ModifiedResNet):
            self.visual.set_grad_checkpointing(on)  # type: ignore[operator]

    def _encoder(self, pixels: Tensor) -> Tensor:
        """`visual`, compiled or checkpointed where that is switched on."""
        size, compiled = self.__dict__.get("compiled", (None, None))
        if compiled is not None and len(pixels) == size:
            try:
                found: Tensor = compiled(pixels)
                return found
            except Exception as error:  # what is new compiles anew, and a compiler may fail in any way
                if out_of_memory(error):
                    raise
                self.stop_compiled(error)
        if not (self.checkpointing and torch.is_grad_enabled() and isinstance(self.visual, ModifiedResNet)):
            out: Tensor = self.visual(pixels)
            return out
        out = self.visual.stem(pixels)
        for number in range(1, 5):
            out = checkpoint(getattr(self.visual, f"layer{number}"), out, use_reentrant=False)
        pooled: Tensor = self.visual.attnpool(out)
        return pooled

    def stop_compiled(self, error: Exception) -> None:
        """Eager from here on, said in the log and kept in `compile_note`."""
        reason = f"torch.compile: {type(error).__name__}: {' '.join(str(error).split())[:300]}; training runs eagerly"
        logger.warning("%s", reason)
        self.__dict__.pop("compiled", None)
        self.compile_note = reason

    def _normalised(self, images: Tensor) -> Tensor:
        """Checked, resized to the model's input, normalised with CLIP's mean and deviation, prompted."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be square RGB, [B, 3, S, S]; got {tuple(images.shape)}")
        if images.dtype != torch.float32:
            raise ValueError(f"images must be float32 in [0, 1]; got {images.dtype}")
        if images.shape[-1] != self.image_size:
            resizing = resizing_matrix(images.shape[-1], self.image_size, images.device)
            images = resizing @ (images @ resizing.T)
        pixels = (images - self.mean) / self.std
        return pixels if self.prompt is None else pixels + self.prompt * self.prompt_mask

    def _autocast(self, images: Tensor) -> torch.autocast:
        return torch.autocast(images.device.type, AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST)

    @staticmethod
    def unit(embeddings: Tensor) -> Tensor:
        """Embeddings [B, D] divided by their L2 norm."""
        return nn.functional.normalize(embeddings.float(), dim=-1)

    def logits(self, embeddings: Tensor, class_embeddings: Tensor, scale: float) -> Tensor:
        """scale * cosines, fp32 [B, K], of raw embeddings [B, D] and unit class embeddings [K, D].

        Without the model's logit bias (SigLIP), a constant that neither softmax nor arg max sees.
        """
        return scale * (self.unit(embeddings) @ class_embeddings.float().T)

    def frozen_copy(self) -> RobustCLIP:
        """A teacher: the same function, sharing nothing, in eval mode and without gradients."""
        return copy.deepcopy(self).eval().requires_grad_(False)


@functools.lru_cache(maxsize=32)
def resizing_matrix(size: int, wanted: int, device: torch.device) -> Tensor:
    """R, fp32 [wanted, size]: R X R^T is what bicubic antialiased interpolation makes of X, up to rounding.

    Two products: their gradient adds in one order on a GPU too, which that of `interpolate` does not.
    """
    with torch.no_grad():
        rows = nn.functional.interpolate(
            torch.eye(size)[None, None], (wanted, size), mode="bicubic", antialias=True, align_corners=False
        )
    return rows[0, 0].to(device)


def class_embeddings(clip: nn.Module, prompts: list[list[str]], tokenizer: Callable[[list[str]], Tensor]) -> Tensor:
    """Unit class embeddings, fp32 [K, D]: for each class the normalised mean of its prompts' unit embeddings."""
    device = next(clip.parameters()).device
    texts = [text for group in prompts for text in group]
    with torch.no_grad(), exact_math():
        parts = [
            clip.encode_text(tokenizer(texts[i : i + 256]).to(device), normalize=True).float()  # type: ignore[operator]
            for i in range(0, len(texts), 256)
        ]
        groups = torch.cat(parts).split([len(group) for group in prompts])
        return nn.functional.normalize(torch.stack([group.mean(0) for group in groups]), dim=-1)


def fingerprint(clip: nn.Module) -> list[float]:
    """Logits of two fixed noise images and three fixed token sequences: what a re-loaded model must reproduce.

    Needs no tokenizer. Computed in fp32 on the CPU, whatever device the model is on.
    """
    if next(clip.parameters()).device.type != "cpu":
        clip = copy.deepcopy(clip).cpu()
    images, tokens = fingerprint_inputs(clip)
    was_training = clip.training
    clip.eval()
    with torch.no_grad(), exact_math():
        image = clip.encode_image(images, normalize=True)  # type: ignore[operator]
        text = clip.encode_text(tokens, normalize=True)  # type: ignore[operator]
        logits = clip.logit_scale.exp() * image.float() @ text.float().T  # type: ignore[operator]
    clip.train(was_training)
    return [float(value) for value in logits.flatten()]


def fingerprint_inputs(clip: nn.Module) -> tuple[Tensor, Tensor]:
    """What a fingerprint is computed of: normalised images fp32 [2, 3, S, S], tokens int64 [3, context length]."""
    size, index = _image_size(clip), torch.arange(FINGERPRINT_IMAGES)
    vocabulary, length = int(clip.vocab_size), int(clip.context_length)  # type: ignore[arg-type]
    tokens = torch.zeros(FINGERPRINT_TEXTS, length, dtype=torch.int64)
    for row in range(FINGERPRINT_TEXTS):
        words = [(97 * (row + 1) * (k + 1)) % max(vocabulary - 2, 1) for k in range(min(3 + row, length - 2))]
        tokens[row, : len(words) + 2] = torch.tensor([vocabulary - 2, *words, vocabulary - 1])
    return noise(0, 0, 0, index, (3, size, size)), tokens


def _image_size(clip: nn.Module) -> int:
    """Side of the square that the image encoder takes."""
    size = clip.visual.image_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    if height != width:
        raise UserError(f"model.arch: only square inputs are supported, this model takes {height}x{width}")
    return int(height)
