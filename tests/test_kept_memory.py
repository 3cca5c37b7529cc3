"""Memory that is kept for the next gradient, or the next chunk of logits, and never shared by two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minillm import spare_memory
from minillm.gradients import accumulate, accumulate_product, accumulate_rows, put_away
from minillm.heads import LinearHead, Readout, logit_blocks
from minillm.optimization import make_optimizer, optimizer_step
from minillm.spare_memory import lent

OUTER, STATES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([[1.0, -1.0], [2.0, 0.5]])
CPU, HEADS = torch.device("cpu"), (torch.ones(1000, 2), -torch.ones(1000, 2))
PRODUCT = torch.tensor([[9.0, 1.0], [12.0, 0.5], [15.0, 0.0]])  # OUTER^T STATES


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.zeros(3, 2))


WAYS: dict[str, Any] = {
    "a product": lambda found: accumulate_product([found], OUTER, STATES),
    "a product in another type": lambda found: accumulate_product([found], OUTER.double(), STATES.double()),
    "a product in an order": lambda found: accumulate_product([found], OUTER, STATES, torch.arange(3)),
    "a gradient": lambda found: accumulate(found, PRODUCT.clone()),
    "rows": lambda found: accumulate_rows(found, torch.arange(3), PRODUCT),
}


@pytest.mark.parametrize("add", WAYS.values(), ids=WAYS.keys())
def test_a_gradient_in_kept_memory_holds_nothing_of_the_one_before(add: Any) -> None:
    weight = parameter()
    add(weight)
    first = weight.grad
    assert first is not None and torch.equal(first, PRODUCT)
    put_away([weight])
    assert weight.grad is None
    first.fill_(float("nan"))
    add(weight)
    add(weight)
    assert weight.grad is first and torch.equal(first, 2 * PRODUCT)


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_gradient_that_someone_else_took_off_is_theirs(num_before: int) -> None:
    weight = parameter()
    for _ in range(num_before):
        accumulate(weight, PRODUCT)
        put_away([weight])
    accumulate(weight, PRODUCT.clone())
    theirs, weight.grad = weight.grad, None
    accumulate(weight, -PRODUCT)
    assert theirs is not None and torch.equal(theirs, PRODUCT)


@pytest.mark.parametrize("change", [lambda values: values.double(), lambda values: values[:2]])
def test_a_parameter_that_has_changed_takes_new_memory(change: Any) -> None:
    weight = parameter()
    accumulate(weight, PRODUCT.clone())
    put_away([weight])
    weight.data = change(weight.data)
    accumulate(weight, change(PRODUCT))
    assert weight.grad is not None and torch.equal(weight.grad, change(PRODUCT))


def test_gradients_that_autograd_made_are_not_kept() -> None:
    weight = parameter()
    (weight * PRODUCT).sum().backward()
    put_away([weight])
    assert weight.grad is None and not [value for value in vars(weight).values() if isinstance(value, Tensor)]


def test_an_optimizer_step_puts_gradients_away() -> None:
    layer = nn.Linear(2, 3, bias=False)
    optimizer = make_optimizer(layer, beta1=0.9, beta2=0.95, weight_decay=0.0)
    memory = []
    for _ in range(2):
        accumulate_product([layer.weight], OUTER, STATES)
        memory.append(layer.weight.grad)
        optimizer_step(layer, optimizer, learning_rate=0.1, gradient_clip=1.0, step=1, loss=0.0)
        assert layer.weight.grad is None
    assert memory[0] is memory[1] and memory[0] is not None


def test_a_gradient_that_someone_put_there_is_not_kept() -> None:
    weight, theirs = parameter(), PRODUCT.clone()
    accumulate(weight, PRODUCT)
    weight.grad = theirs
    put_away([weight])
    accumulate(weight, -PRODUCT)
    assert torch.equal(theirs, PRODUCT)


@pytest.fixture
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_memory, "_spare", [])


@pytest.mark.usefixtures("no_spare")
def test_memory_is_lent_to_one_at_a_time_and_again() -> None:
    with lent(24, CPU) as first, lent(40, CPU) as second:
        first.fill_(1)
        second.fill_(2)
        assert len(first) == 24 and len(second) == 40 and bool((first == 1).all())
        place = second.data_ptr()
    with lent(8, CPU) as small:
        assert small.data_ptr() == place  # the larger of the two
    with lent(50, CPU) as large:
        assert len(large) == 50
    assert [len(kept) for kept in spare_memory._spare] == [50]
    spare_memory.give_back()
    assert not spare_memory._spare


@pytest.mark.usefixtures("no_spare")
def test_memory_of_a_failed_use_and_of_another_mode_serves_the_next() -> None:
    with pytest.raises(ValueError, match="broken"), torch.inference_mode(), lent(24, CPU) as first:
        raise ValueError("broken")
    with lent(24, CPU) as again:
        assert again.data_ptr() == first.data_ptr()
        (parameter() * again.view(torch.float32).view(3, 2).fill_(2)).sum().backward()  # saved for the backward pass


@pytest.mark.usefixtures("no_spare")
@pytest.mark.parametrize("num_readouts", [1, 2])
def test_all_that_is_kept_of_logits_is_within_the_budget(num_readouts: int) -> None:
    readouts = [Readout(LinearHead(weight, None, None, (weight, None)), STATES.repeat(200, 1)) for weight in HEADS]
    for count in (num_readouts, 3 - num_readouts):
        for _ in logit_blocks(readouts[:count], memory_mib=1):
            pass
    assert 0 < sum(len(kept) for kept in spare_memory._spare) <= 2**20
