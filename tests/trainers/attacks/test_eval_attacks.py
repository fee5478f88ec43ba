"""Parts and targets of the evaluation attacks, and the models and numbers of classes that trip attacks up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.attacked import case, network
from trainers.attacks import EVAL_ATTACKS, Case, run_attack
from trainers.attacks.losses import dlr
from trainers.errors import UserError
from trainers.schema.attacks import (  # fmt: skip
    APGD,
    APGDCE,
    APGDDLR,
    APGDT,
    DIFGSM,
    FGSM,
    MIFGSM,
    PGD,
    TIFGSM,
    AAAgft,
    AutoAttack,
    Ensemble,
    Square,
    Transfer,
    legal_attacks,
    legal_losses,
)

ZERO, TWO = torch.tensor([0]), torch.tensor([2])


def test_too_few_classes_are_refused_by_one_message_that_names_what_is_legal() -> None:
    assert legal_losses(2) == ("ce", "margin")
    assert legal_losses(3) == ("ce", "margin", "dlr")
    assert legal_losses(4) == ("ce", "margin", "dlr", "dlr-targeted")
    assert {"apgd-dlr", "apgd-t"}.isdisjoint(legal_attacks(2))
    assert "apgd-dlr" in legal_attacks(3)
    assert "apgd-t" not in legal_attacks(3)
    assert set(legal_attacks(4)) == set(EVAL_ATTACKS)
    with pytest.raises(UserError, match=r"^evaluate\.attack\.name: 'apgd-dlr' needs at least 3 .* losses: ce, mar"):
        APGDDLR().check(norm="linf", num_classes=2, path="evaluate.attack")
    with pytest.raises(UserError, match=r"'apgd-t' needs at least 4 classes.* there are 3; .*ce, margin, dlr;"):
        run_attack(case(classes=3), APGDT())
    with pytest.raises(UserError, match=r"attack\.attack\.name: 'apgd-t' needs at least 4"):
        run_attack(case(classes=3), Transfer(attack="apgd-t"))
    with pytest.raises(UserError, match="at least 2"):
        FGSM().check(norm="linf", num_classes=1)
    with pytest.raises(UserError, match=r"legal: ce, margin$"):
        dlr(torch.zeros(1, 2), ZERO)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_every_legal_attack_attacks_a_model_of_few_classes(number: int) -> None:
    given = case(classes=number, strength=0.3)
    for name in legal_attacks(number):
        if name != "autoattack":
            settings = {"queries": 200} if name in ("square", "ensemble") else {}
            outcome = run_attack(given, EVAL_ATTACKS[name].model_validate(settings))
            assert outcome.worst.fooled.any(), name


def test_ensembles_say_which_parts_ran() -> None:
    expected = {
        2: (("apgd-ce",), ("apgd-ce",), ("apgd-ce", "fab-t", "square")),
        3: (("apgd-ce", "apgd-dlr"), ("apgd-ce", "apgd-dlr"), ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        4: (("apgd-ce", "apgd-t"), ("apgd-ce", "apgd-dlr"), ("apgd-ce", "apgd-t", "fab-t", "square")),
    }
    for number, (ours, official, package) in expected.items():
        given = case(classes=number)
        assert run_attack(given, APGD(steps=2)).parts == ours
        assert run_attack(given, Ensemble(steps=2, queries=2)).parts == (*ours, "square")
        assert run_attack(given, AAAgft(steps=2)).parts == official
        assert AutoAttack().parts(number) == package
    assert run_attack(case("l2"), Ensemble(steps=2)).parts == ("apgd-ce", "apgd-t")


def test_an_ensemble_gives_the_verdicts_of_its_parts_on_the_survivors() -> None:
    given = case(number=48)
    whole = run_attack(given, Ensemble(steps=3, queries=20))
    alive, fooled = torch.arange(48), torch.zeros(48, dtype=torch.bool)
    margin = torch.full((48,), torch.inf)
    for component in Ensemble(steps=3, queries=20).components(norm="linf", num_classes=5):
        rest = replace(given, images=given.images[alive], labels=given.labels[alive], index=given.index[alive])
        worst = run_attack(rest, component).worst
        margin[alive] = torch.minimum(margin[alive], worst.margin)
        fooled[alive] = worst.fooled
        alive = (~fooled).nonzero().squeeze(1)
    assert torch.equal(whole.worst.fooled, fooled)
    torch.testing.assert_close(whole.worst.margin, margin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["random", "least-likely"])
@pytest.mark.parametrize("attack", [FGSM, PGD, MIFGSM, DIFGSM, TIFGSM])
def test_a_targeted_attack_reaches_its_target_on_a_linear_model(attack: Any, kind: str) -> None:
    weight = torch.repeat_interleave(torch.randn(5, 3, generator=torch.Generator().manual_seed(3)), 64, dim=1) / 4
    images = 0.3 + 0.4 * torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    model = lambda x: (x - 0.5).flatten(1) @ weight.T  # noqa: E731
    labels = model(images).argmax(1)
    given = Case(model, images, labels, torch.arange(40), 0.3, 5)
    targets = given.targets(kind)
    assert targets is not None
    assert (targets != labels).all()
    found = run_attack(replace(given, eps=0.005) if attack is FGSM else given, attack(target=kind))
    if attack is FGSM:  # one step, and a small one, leads the right way
        gain = model(found.adversarial).log_softmax(1) - model(images).log_softmax(1)
        assert (gain.gather(1, targets[:, None]) > 0).all()
    else:  # every target that any point of the ball reaches, or nearly
        signs = (weight[targets] * 5 - weight.sum(0)).sign().view(40, 3, 8, 8)
        reachable = model((images + 0.3 * signs).clamp(0, 1)).argmax(1) == targets
        hits = model(found.adversarial).argmax(1) == targets
        assert reachable.sum() >= 10
        assert hits[reachable].float().mean() > 0.9


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise AssertionError("a gradient was asked for")


def test_square_asks_for_no_gradient() -> None:
    def model(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return _NoBackward.apply(network()(x))

    given = replace(case(number=16), logits=model)
    assert run_attack(given, Square(queries=40)).worst.fooled.any()
    with pytest.raises(AssertionError, match="gradient"):
        run_attack(replace(given, logits=lambda x: _NoBackward.apply(network()(x))), PGD())


class Quantised(nn.Module):
    """The network with its logits rounded to steps: accuracy as before, gradients 0 everywhere."""

    def __init__(self, net: nn.Module, step: float = 0.05) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(self.net(x) / self.step) * self.step


def test_where_gradients_are_masked_square_and_transfer_see_what_gradients_do_not() -> None:
    given = case(number=64, model=Quantised(network()))
    fooled = {
        parameters.name: int(run_attack(given, parameters).worst.fooled.sum())
        for parameters in (PGD(), APGDCE(steps=20), Square(queries=300), Transfer(settings={"steps": 20}))
    }
    unmasked = int(run_attack(replace(given, logits=network()), PGD()).worst.fooled.sum())
    assert fooled["pgd"] < unmasked / 4
    assert fooled["apgd-ce"] < unmasked / 4
    assert fooled["square"] > 2 * max(fooled["pgd"], fooled["apgd-ce"])
    assert fooled["transfer"] > 0.9 * unmasked


def test_transfer_shows_the_model_what_the_surrogate_was_fooled_by() -> None:
    given, other = case(number=32), lambda x: -network()(x)
    inner = run_attack(replace(given, logits=other), MIFGSM(steps=3))
    found = run_attack(replace(given, surrogate=other), Transfer(attack="mi-fgsm", settings={"steps": 3}))
    assert torch.equal(found.adversarial, inner.adversarial)
    assert found.parts == ("mi-fgsm",)
    with pytest.raises(UserError, match="needs a surrogate"):
        run_attack(replace(given, surrogate=None), Transfer())
    with pytest.raises(UserError, match=r"attack\.attack: 'transfer' cannot run on a surrogate; known: fgsm, pgd"):
        Transfer(attack="transfer").check(norm="linf", num_classes=5)


def test_what_cannot_be_attacked_is_refused() -> None:
    given = case()
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]; got -0.5 to"):
        run_attack(replace(given, images=given.images - 0.5), PGD())
    with pytest.raises(ValueError, match="float32"):
        run_attack(replace(given, images=given.images.double()), PGD())
    with pytest.raises(ValueError, match="radius"):
        run_attack(replace(given, eps=-0.1), PGD())
    with pytest.raises(UserError, match="'square' is defined in linf, not in l2; in l2: fgsm, pgd, apgd-ce"):
        run_attack(case("l2"), Square())
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="'pgd': the model's logits are not finite"):
            run_attack(replace(given, logits=lambda x, bad=bad: network()(x) * bad), PGD(steps=1))
