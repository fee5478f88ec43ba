"""Accumulation, workers, averages, precision, trainable parts, checkpointing and compiling keep their promises."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, multiprocessing

from tests.support.small import pgd_suite, small_clip, small_resnet_clip, small_sets, trial
from trainers.errors import UserError
from trainers.evaluation.measure import evaluate, evaluate_sets
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP
from trainers.model.weights import load_weights, read_metadata, save_weights
from trainers.objectives import METHODS, Losses
from trainers.schema.records import Decision, Progress
from trainers.schema.training import Trainable
from trainers.training import run as run_module
from trainers.training.compiled import compile_encoder
from trainers.training.loop import train
from trainers.training.trainable import select_trainable
from trainers.training.update import NonFinite, Updater
from trainers.trial_config import TrialConfig

Steps = dict[int, dict[str, float]]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("start") / "resnet.safetensors", small_resnet_clip())


def ok(_: Progress) -> Decision:
    return Decision.CONTINUE


def with_train(weights: Path, **changes: Any) -> TrialConfig:
    fields = {"epochs": 2, "batch_size": 40, "threads": 1, "optimizer": {"lr": 3e-3}, **changes}
    arch = "small-resnet" if "resnet" in weights.name else "small-clip"
    return trial(weights, train=fields, model={"arch": arch, "pretrained": str(weights)})


def losses(config: TrialConfig, workdir: Path, **options: Any) -> Steps:
    """Loss, parts and gradient norm of every update."""
    seen: Steps = {}
    train(config, report=ok, workdir=workdir, observe=seen.__setitem__, **options)
    return seen


def assert_close(left: Steps, right: Steps, rel: float) -> None:
    assert left.keys() == right.keys()
    for step, values in left.items():
        assert right[step] == pytest.approx(values, rel=rel), step


def twenty_steps(weights: Path, **changes: Any) -> TrialConfig:
    """20 updates of batch 64."""
    fields = {"epochs": 2, "batch_size": 64, "samples_per_epoch": 640, "threads": 1, **changes}
    return trial(
        weights,
        train=fields,
        data={"train": "small-large"},
        evaluate=pgd_suite("small-other", eps=("2/255", "8/255"), steps=2),
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_from_its_name_alone(method: str, weights: Path, tmp_path: Path) -> None:
    config = trial(weights, method={"name": method}, train=with_train(weights, epochs=1).train)
    seen = losses(config, tmp_path)
    assert len(seen) == 3
    before, after = load_file(weights), load_file(tmp_path / "best.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("visual.")
    }


def test_the_complementary_maps_have_their_prompts(weights: Path, tmp_path: Path) -> None:
    config = trial(
        weights, method={"name": "tga-zsr", "complementary": True}, train=with_train(weights, epochs=1).train
    )
    assert {"attention", "clean"} < losses(config, tmp_path)[1].keys()


@small_sets()
def _worker(rank: int, folder: str, weights: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        torch.save(losses(twenty_steps(Path(weights)), Path(folder, "two")), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_one_worker_with_batch_64_and_two_with_32_each_agree_over_20_updates(weights: Path, tmp_path: Path) -> None:
    multiprocessing.spawn(_worker, args=(str(tmp_path), str(weights)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    one = losses(twenty_steps(weights), tmp_path / "one")
    assert len(one) == 20
    assert_close(one, first, rel=2e-2)  # the attack takes signs: a last bit can turn a pixel's step around


def test_a_batch_in_parts_gives_the_update_of_the_whole_batch(weights: Path, tmp_path: Path) -> None:
    whole = losses(with_train(weights), tmp_path / "whole")
    parts = losses(with_train(weights, accumulation=3), tmp_path / "parts")
    assert_close(whole, parts, rel=1e-3)


EVERYTHING = {"epochs": 4, "accumulation": 2, "ema": 0.9, "clip_grad_norm": 5.0}


@small_sets()
def _until_killed(folder: str, config: dict[str, Any]) -> None:
    """Killed without warning in the middle of the third epoch."""

    def observe(step: int, _: dict[str, float]) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    train(TrialConfig.model_validate(config), report=ok, workdir=Path(folder), observe=observe)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_four_epochs_equal_two_and_a_kill_and_two_loss_by_loss(optimizer: str, weights: Path, tmp_path: Path) -> None:
    config = with_train(weights, optimizer={"name": optimizer, "lr": 1e-3}, **EVERYTHING)
    whole = losses(config, tmp_path / "whole")
    killed = multiprocessing.get_context("spawn").Process(
        target=_until_killed, args=(str(tmp_path / "killed"), config.model_dump(mode="json"))
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    rest = losses(config, tmp_path / "killed", resume_from=tmp_path / "killed")
    assert sorted(rest) == list(range(7, 13))  # three updates an epoch, two epochs were finished
    assert rest == {step: values for step, values in whole.items() if step > 6}
    for name in ("latest.safetensors", "best.safetensors"):
        left, right = load_file(tmp_path / "whole" / name), load_file(tmp_path / "killed" / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_the_average_of_the_weights_is_measured_and_kept(weights: Path, tmp_path: Path) -> None:
    config = with_train(weights, epochs=1, ema=0.5)
    result = train(config, report=ok, workdir=tmp_path)
    state = load_file(tmp_path / "latest.safetensors")
    kept = load_file(tmp_path / "best.safetensors")
    learning = [name for name, _ in load_clip(config.model).named_parameters() if name.startswith("visual.")]
    for number, name in enumerate(learning):
        assert torch.equal(kept[name], state[f"update/average/{number}"])
        assert not torch.equal(kept[name], state[f"model/{name}"])
    assert result.best is not None
    found = evaluate_sets(load_weights(tmp_path / "best.safetensors"), config.evaluate)
    assert {name: counts.scores() for name, counts in found.items()} == result.best.datasets


def test_the_average_forgets_its_start_as_stated(weights: Path, tmp_path: Path) -> None:
    one = with_train(weights, epochs=1, samples_per_epoch=40, ema=0.999)
    train(one, report=ok, workdir=tmp_path)
    state, start = load_file(tmp_path / "latest.safetensors"), load_file(weights)
    name = "visual.conv1.weight"
    expected = 0.1 * start[name] + 0.9 * state[f"model/{name}"]  # d = (1 + 0) / (10 + 0) after the first update
    number = [n for n, _ in small_clip().named_parameters() if n.startswith("visual.")].index(name)
    torch.testing.assert_close(state[f"update/average/{number}"], expected)


PARTS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "all": ({"part": "all"}, lambda name: True),
    "first": (
        {"part": "first_blocks", "blocks": 1},
        lambda name: "resblocks.0" in name or ("transformer" not in name and not name.endswith(("proj", "post.weight"))
        and "ln_post" not in name),
    ),
    "last": (
        {"part": "last_blocks", "blocks": 1},
        lambda name: "resblocks.1" in name or name == "visual.proj" or "ln_post" in name,
    ),
    "norms": ({"part": "layer_norms"}, lambda name: "ln_" in name),
}  # fmt: skip


@pytest.mark.parametrize("part", list(PARTS))
def test_only_the_chosen_part_learns(part: str, weights: Path, tmp_path: Path) -> None:
    config, learns = PARTS[part]
    train(with_train(weights, epochs=1, trainable=config), report=ok, workdir=tmp_path)
    before, after = load_file(weights), load_file(tmp_path / "best.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("visual.") and learns(name)}


def test_the_parts_of_a_resnet_are_its_stages() -> None:
    model = RobustCLIP(small_resnet_clip())

    def learning(**config: Any) -> set[str]:
        select_trainable(model, Trainable(**config))
        return {name.split(".")[0] for name, p in model.visual.named_parameters() if p.requires_grad}

    stem = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3"}
    assert learning(part="first_blocks", blocks=2) == stem | {"layer1", "layer2"}
    assert learning(part="last_blocks", blocks=1) == {"layer4", "attnpool"}
    select_trainable(model, Trainable(part="layer_norms"))
    norms = {name for name, p in model.visual.named_parameters() if p.requires_grad}
    assert norms
    assert all(".bn" in f".{name}" or "downsample.1" in name for name in norms)


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.trainable\.blocks: 3: this image encoder has 2 blocks"):
        select_trainable(RobustCLIP(small_clip()), Trainable(part="last_blocks", blocks=3))


def test_a_visual_prompt_learns_a_border_and_ships_as_a_position_embedding(weights: Path, tmp_path: Path) -> None:
    prompt = {"part": "visual_prompt", "prompt_width": 3}
    config = with_train(weights, trainable=prompt, optimizer={"name": "adamw", "lr": 0.05})
    train(config, report=ok, workdir=tmp_path)
    before, after = load_file(weights), load_file(tmp_path / "best.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"visual.positional_embedding"}

    state = load_file(tmp_path / "latest.safetensors")
    model = RobustCLIP(load_clip(config.model))
    select_trainable(model, config.train.trainable)
    learned = state["model/prompt"]
    assert learned[..., 3:-3, 3:-3].eq(0).all()
    assert learned[..., :3, :].ne(0).all()
    model.prompt.data.copy_(learned)  # type: ignore[union-attr]
    images = torch.rand(4, 3, 16, 16)
    plain = load_clip(config.model)
    plain.visual.load_state_dict(model.plain_visual())  # type: ignore[union-attr]
    torch.testing.assert_close(RobustCLIP(plain).embed(images), model.embed(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(RobustCLIP(load_clip(config.model)).embed(images), model.embed(images), rtol=1e-2)


def test_recomputed_activations_change_no_bit(weights: Path, resnet: Path, tmp_path: Path) -> None:
    for start in (weights, resnet):
        usual = losses(with_train(start, epochs=1), tmp_path / "usual")
        less_memory = losses(with_train(start, epochs=1, activation_checkpointing=True), tmp_path / "less")
        assert usual == less_memory


def test_activations_are_not_recomputed_while_the_model_is_measured(
    weights: Path, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def watched(model: RobustCLIP, *more: Any, **how: Any) -> Any:
        resnet = hasattr(model.visual, "layer1")
        seen.append(model.checkpointing if resnet else model.visual.transformer.grad_checkpointing)  # type: ignore[union-attr, arg-type]
        return evaluate(model, *more, **how)

    monkeypatch.setattr(run_module, "evaluate", watched)
    for start in (weights, resnet):
        config = with_train(start, epochs=1, activation_checkpointing=True)
        run = run_module.Run(config, tmp_path, torch.device("cpu"), None)
        run.epoch()
        assert seen == [False] * len(config.evaluate.datasets)
        assert run.model.checkpointing
        seen.clear()


def test_activation_checkpointing_keeps_fewer_tensors() -> None:
    def kept(checkpointing: bool, clip: Any) -> int:
        model, numbers = RobustCLIP(clip), []
        if checkpointing:
            model.use_activation_checkpointing()

        def pack(tensor: Tensor) -> Tensor:
            numbers.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.embed(torch.rand(8, 3, model.image_size, model.image_size))
        return sum(numbers)

    for make in (small_clip, small_resnet_clip):
        assert kept(True, make()) < 0.7 * kept(False, make())


def test_a_resnet_trains_with_its_statistics_and_its_teacher_at_rest(resnet: Path, tmp_path: Path) -> None:
    config = with_train(resnet, optimizer={"lr": 1e-4})
    seen = losses(config, tmp_path)
    assert seen[max(seen)]["loss"] < seen[1]["loss"]
    before, after = load_file(resnet), load_file(tmp_path / "best.safetensors")
    for name in before:
        resting = "running_" in name or "num_batches" in name or not name.startswith("visual.")
        # A bias that softmax does not see (keys of the attention pool) has no gradient but rounding.
        assert torch.equal(before[name], after[name]) == resting or "k_proj.bias" in name, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_close_to_single_and_is_not_single(precision: str, weights: Path, tmp_path: Path) -> None:
    exact = losses(with_train(weights, epochs=1, ema=0.9), tmp_path / "exact")
    rough = losses(with_train(weights, epochs=1, ema=0.9, precision=precision), tmp_path / "rough")
    assert rough[1]["loss"] == pytest.approx(exact[1]["loss"], rel=0.05)
    assert rough[1]["loss"] != pytest.approx(exact[1]["loss"], rel=1e-7)
    assert rough.keys() == exact.keys()
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "rough" / "best.safetensors").values())


def test_an_overflow_in_fp16_skips_update_and_average_and_lowers_the_loss_scale(weights: Path, tmp_path: Path) -> None:
    def wild(**changes: Any) -> TrialConfig:
        config = with_train(weights, precision="fp16", **changes)
        return config.model_copy(update={"method": config.method.model_copy(update={"logit_scale": 3000.0})})

    result = train(wild(epochs=1, batch_size=96, ema=0.5), report=ok, workdir=tmp_path)
    assert (result.history[-1].steps, result.history[-1].skipped_updates) == (1, 1)
    start, state = load_file(weights), load_file(tmp_path / "latest.safetensors")
    learning = [name for name, _ in small_clip().named_parameters() if name.startswith("visual.")]
    for number, name in enumerate(learning):
        assert torch.equal(state[f"model/{name}"], start[name])
        assert torch.equal(state[f"update/average/{number}"], start[name])
    scaler = read_metadata(tmp_path / "latest.safetensors")["numbers"]["scaler"]
    assert scaler["scale"] == 2.0**15  # halved once

    record = train(wild(epochs=2, batch_size=8), report=ok, workdir=tmp_path / "more").history[-1]
    assert 0 < record.skipped_updates < record.steps
    assert record.grad_norm > 0


def test_a_loss_that_stays_infinite_names_step_parts_and_device_whatever_the_precision(
    weights: Path, tmp_path: Path
) -> None:
    for precision in ("fp32", "fp16"):
        config = with_train(weights, precision=precision, optimizer={"lr": 10}, warmup=0.0)
        wild = config.model_copy(update={"method": config.method.model_copy(update={"logit_scale": 1e38})})
        with pytest.raises(NonFinite, match=r"update \d+: the (loss|gradient) is not finite \(loss .*target .* on cpu"):
            train(wild, report=ok, workdir=tmp_path)


def test_the_gradient_is_clipped_to_the_norm_of_the_whole_unscaled_gradient(weights: Path) -> None:
    norms = {}
    for precision in ("fp32", "fp16"):
        model = RobustCLIP(small_clip(), precision=precision)
        options = {"precision": precision, "clip_grad_norm": 1e-3, "optimizer": {"lr": 1.0, "momentum": 0}}
        train_config = with_train(weights, warmup=0.0, **options).train
        updater = Updater(train_config, list(model.visual.parameters()), 10, torch.device("cpu"))
        before = [parameter.detach().clone() for parameter in model.visual.parameters()]
        updater.begin()
        for images in torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)):
            updater.add(Losses(1e-3 * model.embed(images).square().sum()))
        norms[precision] = updater.finish()["grad_norm"]
        moved = torch.cat([(a.detach() - b).flatten() for a, b in zip(model.visual.parameters(), before, strict=True)])
        assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert norms["fp32"] > 1e-2  # before clipping
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)


IMAGES = [torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(size)) for size in (4, 3)]


@pytest.fixture
def compiler() -> Iterator[None]:
    """A fresh torch.compile: it gives up, without a word, on code that it has compiled eight times."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_a_compiler_that_fails_is_named_and_the_encoder_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    model = RobustCLIP(small_clip())
    before = model.embed(IMAGES[0])
    with caplog.at_level(logging.WARNING):
        compile_encoder(model, IMAGES[0], backend="no-such-backend")
    assert model.compile_note is not None
    assert "no-such-backend" in model.compile_note
    assert "eager" in model.compile_note
    assert model.compile_note in caplog.text
    assert torch.equal(model.embed(IMAGES[0]), before)


@pytest.mark.usefixtures("compiler")
def test_a_backend_that_is_right_is_used() -> None:
    model = RobustCLIP(small_clip())
    compile_encoder(model, IMAGES[0], backend=lambda graph, _: graph)  # type: ignore[arg-type]
    assert model.compile_note is None
    assert "compiled" in model.__dict__


@pytest.mark.usefixtures("compiler")
def test_a_compiled_encoder_that_computes_something_else_is_not_trusted() -> None:
    def wrong(graph: Any, _: Any) -> Callable[..., Any]:
        return lambda *inputs: tuple(1.01 * out for out in graph(*inputs))

    model = RobustCLIP(small_clip())
    compile_encoder(model, IMAGES[0], backend=wrong)  # type: ignore[arg-type]
    assert "embeddings differ from eager" in str(model.compile_note)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return 100 * gradient


@pytest.mark.usefixtures("compiler")
def test_compiled_weight_gradients_are_compared_too() -> None:
    def wrong(graph: Any, _: Any) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            weights = (isinstance(each, torch.nn.Parameter) for each in inputs)
            return graph(*(WrongGradient.apply(x) if is_one else x for x, is_one in zip(inputs, weights, strict=True)))

        return call

    model = RobustCLIP(small_clip())
    compile_encoder(model, IMAGES[0], backend=wrong)  # type: ignore[arg-type]
    assert "weight gradients differ from eager" in str(model.compile_note)


@pytest.mark.usefixtures("compiler")
def test_what_fails_to_compile_later_makes_the_model_eager(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def at_first(graph: Any, _: Any) -> Any:
        seen.append(graph)
        if len(seen) > 3:  # without gradients, to the images, to the weights
            raise RuntimeError("no more graphs here")
        return graph

    model = RobustCLIP(small_clip())
    compile_encoder(model, IMAGES[0], backend=at_first)  # type: ignore[arg-type]
    assert model.compile_note is None
    model.visual.double()  # what is new is compiled anew
    expected = RobustCLIP(small_clip())
    expected.visual.double()
    assert torch.equal(model._encoder(IMAGES[0].double()), expected._encoder(IMAGES[0].double()))
    assert "no more graphs here" in str(model.compile_note)
    assert "no more graphs here" in caplog.text


@pytest.mark.usefixtures("compiler")
def test_code_that_is_compiled_too_often_is_named_and_never_runs_eagerly_without_a_word() -> None:
    model = RobustCLIP(small_clip())
    with torch._dynamo.config.patch(recompile_limit=1):
        compile_encoder(model, IMAGES[0], backend=lambda graph, _: graph)  # type: ignore[arg-type]
    assert "recompile" in str(model.compile_note)
    assert "compiled" not in model.__dict__


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_two_sizes_leave_the_usual_one_a_graph_of_its_own_and_the_other_eager() -> None:
    from torch._inductor.compile_fx import compile_fx

    sizes: list[Any] = []

    def watched(graph: Any, examples: Any) -> Any:
        sizes.extend(each.shape[0] for each in examples if isinstance(each, Tensor) and each.shape[1:] == (3, 16, 16))
        assert not any(isinstance(each, torch.SymInt) for each in examples)
        return compile_fx(graph, examples)

    model, eager = RobustCLIP(small_clip()), RobustCLIP(small_clip())
    compile_encoder(model, IMAGES[0], backend=watched)  # type: ignore[arg-type]
    assert model.compile_note is None
    usual = len(IMAGES[0])
    for images in (IMAGES[0], IMAGES[1], IMAGES[1][:1], IMAGES[0]):
        candidates = images.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(model.embed(candidates).square().sum(), candidates)
        (expected,) = torch.autograd.grad(eager.embed(candidates).square().sum(), candidates)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert len(images) == usual or torch.equal(found, expected)
    assert sizes
    assert all(type(size) is int and size == usual for size in sizes)
    assert model.compile_note is None


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_an_eager_one(weights: Path, tmp_path: Path) -> None:
    eager = losses(with_train(weights, epochs=1), tmp_path / "eager")
    compiled_config = with_train(weights, epochs=1, compile=True)
    seen: Steps = {}
    result = train(compiled_config, report=ok, workdir=tmp_path / "compiled", observe=seen.__setitem__)
    assert result.history[-1].notes == ()
    assert_close(eager, seen, rel=2e-2)
