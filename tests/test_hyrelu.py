"""The gates in PyTorch against the formulas in numpy."""

import numpy as np
import pytest
import torch

from proact_onnx.mirror.hyrelu import hard_gate, smooth_gate

VALUES = np.array([0.0, 1e-6, 0.4, 0.999, 1.0, 1.001, 1.5, 30.0])


def sigmoid(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("threshold", [0.3, 1.0, 12.0])
@pytest.mark.parametrize("slope", [1.0, 20.0])
def test_smooth_gate_is_the_formula(threshold: float, slope: float) -> None:
    bound = torch.tensor(threshold, dtype=torch.float64)
    values = torch.from_numpy(VALUES)
    absolute = smooth_gate(values, bound, slope, relative=False)
    relative = smooth_gate(values, bound, slope, relative=True)
    distance = threshold - VALUES
    np.testing.assert_allclose(absolute, VALUES * sigmoid(slope * distance), rtol=1e-12)
    np.testing.assert_allclose(relative, VALUES * sigmoid(slope * distance / threshold), rtol=1e-12)


def test_smooth_gate_is_eq_5_with_its_sign_put_right() -> None:
    """The printed formula with a negative k, which is how its authors run it."""
    threshold, k = 1.0, -20.0
    printed = np.maximum(0, VALUES * (1 - sigmoid(k * (threshold - VALUES))))
    ours = smooth_gate(torch.from_numpy(VALUES), torch.tensor(threshold), -k, relative=False)
    np.testing.assert_allclose(ours, printed, rtol=1e-6, atol=1e-15)
    assert ours[2] == pytest.approx(0.4, rel=1e-4), "what lies below the threshold passes"
    assert ours[-1] < 1e-100, "what lies above does not"


def test_a_relative_slope_does_not_depend_on_the_magnitude() -> None:
    values = torch.rand(100, dtype=torch.float64) * 2
    one = smooth_gate(values, torch.tensor(1.0), 20.0, relative=True)
    small = smooth_gate(values * 1e-3, torch.tensor(1e-3), 20.0, relative=True)
    torch.testing.assert_close(small, one * 1e-3, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(), (1, 3, 1, 1), (1, 3, 4, 4)])
@pytest.mark.parametrize("relative", [True, False])
def test_gradients_by_finite_differences(shape: tuple[int, ...], relative: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator)
    threshold = 0.3 + torch.rand(shape, dtype=torch.float64, generator=generator) / 2

    def gate(rectified: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        return smooth_gate(rectified, bound, 7.0, relative=relative)

    arguments = (values.requires_grad_(), threshold.requires_grad_())
    assert torch.autograd.gradcheck(gate, arguments)


@pytest.mark.parametrize("relative", [True, False])
def test_smooth_gate_of_a_neuron_that_never_fired(relative: bool) -> None:
    threshold = torch.zeros(1, 2, requires_grad=True)
    bounded = smooth_gate(torch.tensor([[0.0, 3.0]]), threshold, 20.0, relative=relative)
    bounded.sum().backward()
    assert bounded[0, 0] == 0
    assert bounded[0, 1] < 1e-20
    assert torch.isfinite(threshold.grad).all()


def test_smooth_gate_keeps_the_type_and_works_in_the_finer_one() -> None:
    values = torch.tensor([0.5, 2.001, 2.1], dtype=torch.float16)
    for threshold in (torch.tensor(2.0), torch.full((3,), 2.0)):
        bounded = smooth_gate(values, threshold, 20.0, relative=True)
        assert bounded.dtype == torch.float16
        exact = values.double() * torch.sigmoid(20.0 * (2.0 - values.double()) / 2.0)
        torch.testing.assert_close(bounded.double(), exact, rtol=1e-3, atol=0)


def test_hard_gate_is_eq_2() -> None:
    special = np.array([0.0, 1.0, 1 + 2**-23, np.inf, -np.inf, np.nan, 3.4e38], np.float32)
    bounded = hard_gate(torch.from_numpy(special), torch.tensor(1.0))
    np.testing.assert_array_equal(bounded, np.where(special <= 1, special, np.float32(0)))
    assert bounded[1] == 1
    assert (bounded[[2, 3, 5, 6]] == 0).all()
    zero = hard_gate(torch.tensor([0.0, 1e-30, np.nan]), torch.tensor(0.0))
    assert (zero == 0).all()


@pytest.mark.parametrize("shape", [(), (1, 3, 1, 1), (1, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_hard_gate_broadcasts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 4, 4, generator=generator).to(dtype)
    threshold = torch.rand(shape, generator=generator)
    bounded = hard_gate(values, threshold)
    assert bounded.dtype == dtype
    numbers = values.numpy()
    # A single threshold is compared in the activation's type, as in the deployed graph.
    limit = threshold.numpy() if shape else threshold.to(dtype).numpy()
    np.testing.assert_array_equal(bounded, np.where(numbers <= limit, numbers, 0))


def test_hard_gate_passes_gradients_only_below_the_threshold() -> None:
    values = torch.tensor([0.5, 1.0, 1.5, np.nan], requires_grad=True)
    (hard_gate(values, torch.tensor(1.0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("slope", [200.0, 2000.0])
def test_the_smooth_gate_tends_to_the_hard_one(slope: float) -> None:
    values = torch.from_numpy(np.delete(VALUES, 4))
    away = torch.abs(values - 1) > 30 / slope
    bound = torch.tensor(1.0, dtype=torch.float64)
    smooth = smooth_gate(values, bound, slope, relative=True)
    torch.testing.assert_close(smooth[away], hard_gate(values, bound)[away], rtol=1e-10, atol=1e-10)
