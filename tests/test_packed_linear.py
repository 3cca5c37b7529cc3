"""Layers with packed weights against the library's."""

from __future__ import annotations

import pytest
import torch

from minillm import packed_linear
from minillm.packed_linear import MklLinear, OneDnnLinear, PackedLinear, PlainLinear, kind_for

KINDS = [PlainLinear, OneDnnLinear, MklLinear]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[PackedLinear]:
    chosen: type[PackedLinear] = request.param
    if chosen is MklLinear and not torch.backends.mkl.is_available():
        pytest.skip("torch is built without MKL")
    if chosen is OneDnnLinear and not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(packed_linear, "kind_for", lambda weight: chosen)
    return chosen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(4, 8), (40,)])
def test_every_layout_gives_the_same_layer(kind: type[PackedLinear], sizes: tuple[int, ...], bias: bool) -> None:
    layers = [torch.nn.Linear(6, size, bias=bias) for size in sizes]
    generator, num_outputs = torch.Generator().manual_seed(1), sum(sizes)
    states, other = (torch.randn(3, size, generator=generator) for size in (6, num_outputs))
    order = torch.randperm(num_outputs, generator=generator)
    plain = torch.cat([layer(states) for layer in layers], dim=-1)
    with torch.inference_mode():
        for packed, expected in ((PackedLinear.of(layers), plain), (PackedLinear.of(layers, order), plain[:, order])):
            assert isinstance(packed, kind)
            assert torch.allclose(packed(states), expected, atol=1e-6)
            assert torch.allclose(packed.silu(states), expected * expected.sigmoid(), atol=1e-6)
            assert torch.allclose(packed.times(states, other), expected * other, atol=1e-6)
            assert torch.allclose(packed.plus(states, other), expected + other, atol=1e-6)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(1, 1), (37, 100), (300, 64), (1536, 576), (5000, 48)])
def test_any_number_of_rows_may_come(kind: type[PackedLinear], num_outputs: int, num_inputs: int) -> None:
    generator = torch.Generator().manual_seed(2)
    layer = torch.nn.Linear(num_inputs, num_outputs).requires_grad_(False)
    packed = PackedLinear.of([layer])
    for num_rows in (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 80, 127, 255, 256, 257, 300, 513, 1100):
        states = torch.randn(num_rows, num_inputs, generator=generator)
        exact = torch.nn.functional.linear(states.double(), layer.weight.double(), layer.bias.double())
        assert torch.allclose(packed(states).double(), exact, atol=2e-5), num_rows


def test_states_may_have_more_dimensions_and_all_may_lie_anyhow(kind: type[PackedLinear]) -> None:
    layer = torch.nn.Linear(6, 5)
    layer.weight = torch.nn.Parameter(layer.weight.detach().t().contiguous().t(), requires_grad=False)
    layer.requires_grad_(False)
    states = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    assert torch.allclose(PackedLinear.of([layer])(states), layer(states), atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch is built without MKL")
def test_what_mkl_would_not_notice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = MklLinear(torch.ones(5, 6), None)
    with pytest.raises(AssertionError):
        packed(torch.ones(2, 4))
    other_rows = 7  # told that the weights were packed for these, the operation does not take them
    unpacked = torch.ops.mkl._mkl_linear(torch.ones(2, 6), packed._packed, packed._stand_in, None, other_rows)
    assert unpacked.isnan().all()
    packed_linear._mkl_takes_any_rows.cache_clear()
    assert kind_for(torch.ones(2, 2)) is MklLinear
    packed_linear._mkl_takes_any_rows.cache_clear()
    monkeypatch.setattr(MklLinear, "__call__", lambda self, states: torch.zeros(len(states), 130))
    assert kind_for(torch.ones(2, 2)) is OneDnnLinear
    packed_linear._mkl_takes_any_rows.cache_clear()


def test_weights_that_no_layout_is_for_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Quantized(torch.Tensor):
        pass

    assert kind_for(torch.ones(2, 2, dtype=torch.float64)) is PlainLinear
    assert kind_for(torch.ones(2, 2, device="meta")) is PlainLinear
    assert kind_for(torch.ones(2, 2).as_subclass(Quantized)) is PlainLinear
    assert kind_for(torch.ones(2, 2).to_sparse()) is PlainLinear
    is_packed = torch.backends.mkldnn.is_available()
    assert (kind_for(torch.ones(2, 2)) is not PlainLinear) == is_packed
    monkeypatch.setattr(packed_linear, "_SMALLEST", 2**16)
    assert kind_for(torch.ones(255, 256)) is PlainLinear
    assert (kind_for(torch.ones(256, 256)) is not PlainLinear) == is_packed
