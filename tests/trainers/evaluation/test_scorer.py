"""Logits that depend on the image alone, and images that are left out."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support.small import image_set, small_clip, small_resnet_clip
from trainers.evaluation import scorer as module
from trainers.evaluation.scorer import (
    Scorer,
    embed_images,
    exact,
    fitting,
    fitting_batch,
    graph_bytes,
    graph_room,
    padded,
    usual_batch,
)  # fmt: skip
from trainers.model.robust import RobustCLIP


def scored(clip: torch.nn.Module) -> tuple[Scorer, Tensor]:
    """A scorer over four classes and 70 images in [0, 1]: two micro-batches and a part of one."""
    model = RobustCLIP(clip)
    images = image_set("set", 70, size=model.image_size).images[:].float() / 255
    with torch.no_grad():
        return Scorer(model, model.unit(model.embed(images[:4]))), images


def gradient(scorer: Scorer, images: Tensor, done: Tensor | None = None) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_(True)
    logits = scorer(images, done)
    (found,) = torch.autograd.grad((logits * torch.arange(4.0)).sum(), images)
    return logits.detach(), found


@pytest.mark.parametrize("clip", [small_clip, small_resnet_clip])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_has_one_result_wherever_it_stands_and_whoever_stands_beside_it(clip, threads) -> None:
    scorer, images = scored(clip())
    before = torch.get_num_threads()
    with exact(scorer.model):
        logits, gradients = gradient(scorer, images)
        try:
            torch.set_num_threads(threads)
            for rows in (torch.arange(69, -1, -1), torch.tensor([5]), torch.randperm(70)[:33]):
                again, slopes = gradient(scorer, images[rows])
                assert torch.equal(again, logits[rows])
                assert torch.equal(slopes, gradients[rows])
        finally:
            torch.set_num_threads(before)


def test_images_that_are_done_get_zeros_and_cost_nothing() -> None:
    scorer, images = scored(small_clip())
    with exact(scorer.model):
        logits, gradients = gradient(scorer, images)
        for done in (torch.arange(70) % 3 == 0, torch.zeros(70, dtype=torch.bool), torch.ones(70, dtype=torch.bool)):
            scorer.rows = 0
            some, slopes = gradient(scorer, images, done)
            assert scorer.rows == int((~done).sum())
            assert torch.equal(some, torch.where(done[:, None], 0.0, logits))
            assert torch.equal(slopes, torch.where(done[:, None, None, None], 0.0, gradients))


def test_padding_repeats_the_last_row_and_carries_no_gradient() -> None:
    rows = torch.tensor([[1.0], [2.0]], requires_grad=True)
    whole = padded(rows, 5)
    assert whole.flatten().tolist() == [1.0, 2.0, 2.0, 2.0, 2.0]
    assert padded(rows, 2) is rows
    (found,) = torch.autograd.grad(whole.sum(), rows)
    assert found.flatten().tolist() == [1.0, 1.0]


def test_embeddings_of_no_image_have_the_models_width() -> None:
    scorer, _ = scored(small_clip())
    empty = torch.zeros(0, dtype=torch.int64)
    assert embed_images(scorer.model, image_set("set", 5).images, empty, scorer.device).shape == (0, 16)


def test_leaving_exact_restores_precision_and_flags_also_after_an_error() -> None:
    model = RobustCLIP(small_clip(), precision="bf16")
    first = next(model.parameters()).requires_grad_(False)

    def work() -> None:
        with exact(model):
            assert model.precision == "fp32"
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert model.precision == "bf16"
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert not first.requires_grad


def test_the_batch_fits_the_memory_and_is_made_of_whole_micro_batches(monkeypatch) -> None:
    scorer, images = scored(small_clip())
    shape = tuple(images.shape[1:])
    assert fitting_batch(scorer, shape) == 1024
    kept: list[Tensor] = []
    inputs = torch.zeros(32, *shape, requires_grad=True)
    with (
        exact(scorer.model),
        torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t),
    ):
        scorer(inputs)
    weights = {parameter.data_ptr() for parameter in scorer.model.parameters()}
    each = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept
                if t.untyped_storage().data_ptr() not in weights}.values()) // 32  # fmt: skip
    assert each > 16 * 16 * 3 * 4  # at least the image itself
    for images_that_fit, batch in ((1, 32), (70, 64), (99, 96)):
        monkeypatch.setattr(module, "CPU_BYTES", each * images_that_fit)
        assert fitting_batch(scorer, shape) == batch


def test_finding_the_batch_keeps_no_graph_alive() -> None:
    scorer, _ = scored(small_clip())

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    fitting_batch(scorer, (3, 16, 16))
    before = tensors()
    for _ in range(3):
        fitting_batch(scorer, (3, 16, 16))
    assert tensors() <= before


@pytest.mark.parametrize("factor", [1.0, 0.9])
def test_the_micro_batch_is_halved_until_its_graph_fits(factor: float, monkeypatch) -> None:
    clip = small_clip()
    model = RobustCLIP(clip)
    one = torch.zeros(1, 3, 16, 16, requires_grad=True)
    with exact(model):
        each = graph_bytes(model, lambda: model.embed(one))
    seen: list[int] = []
    clip.visual.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert Scorer(model, torch.eye(4, 16)).size == 32
    for size in (1, 4, 8, 32):
        monkeypatch.setattr(module, "CPU_BYTES", int(size * each * factor))
        expected = size if factor == 1 else max(1, size // 2)
        scorer = Scorer(model, torch.eye(4, 16))
        seen.clear()  # of the image that was counted
        assert scorer.size == expected
        with torch.no_grad():
            scorer(torch.rand(5, 3, 16, 16))
        assert set(seen) == {expected}
    assert usual_batch(torch.device("cuda")) == 128


def test_on_a_gpu_the_graph_may_take_half_of_what_the_process_may_have(monkeypatch) -> None:
    gpu = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 0.5)
    assert graph_room(torch.device("cuda")) == 20_000_000_000


def test_what_a_library_could_not_allocate_is_tried_with_half_as_many_images() -> None:
    asked: list[int] = []

    def compute(batch: int) -> str:
        asked.append(batch)
        if batch > 40:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return "done"

    assert fitting(128, 32, compute) == "done"
    assert asked == [128, 64, 32]
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        fitting(128, 64, compute)
    with pytest.raises(RuntimeError, match="another"):
        fitting(128, 1, lambda _: (_ for _ in ()).throw(RuntimeError("another")))
