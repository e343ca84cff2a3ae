"""Arithmetic of quantised values, with a gradient that looks through the rounding.

Codes travel through the mirror as floating-point tensors that hold whole numbers, for PyTorch
passes no gradient on through integers. Those of at most 16 bits are exact in float32. Stored codes
are constants and keep their integers.
"""

from typing import Any

import torch
from torch import Tensor


def encode(scaled: Tensor, zero_point: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Round to codes: ``saturate(round(v) + zero point)``, halves to even.

    Straight through: the gradient is 1 where the code does not saturate and 0 where it does.

    Args:
        scaled: Values v in units of the scale, float32 or wider.
        zero_point: Broadcasts against them; none is 0.
        dtype: The integers that hold the codes, of at most 16 bits.

    Returns:
        The codes, of the type of ``scaled``.
    """
    limits = torch.iinfo(dtype)
    offset = 0 if zero_point is None else zero_point.to(scaled.dtype)
    codes: Tensor = _Encode.apply(scaled, offset, limits.min, limits.max)  # type: ignore[no-untyped-call]
    return codes


class _Encode(torch.autograd.Function):
    """Rounding and saturation in place, in as few passes over the values as it takes."""

    @staticmethod
    def forward(
        context: Any, scaled: Tensor, offset: Tensor | float, lowest: int, highest: int
    ) -> Tensor:
        codes = scaled.round().add_(offset)
        if context.needs_input_grad[0]:
            context.save_for_backward((codes >= lowest) & (codes <= highest))
        return codes.clamp_(lowest, highest)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (within,) = context.saved_tensors
        return gradient * within, None, None, None


def centre(codes: Tensor, zero_point: Tensor | None) -> Tensor:
    """Subtract the zero point, exactly: ``q - zero point`` as float32 or wider.

    Args:
        codes: Integers, or codes that travel as floating point.
        zero_point: Broadcasts against them; none is 0.
    """
    whole = codes if codes.is_floating_point() else codes.to(torch.int32)
    if zero_point is not None:
        whole = whole - zero_point.to(whole.dtype)
    return whole.to(wide(whole))


def wide(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: float32, or a wider one that one of the tensors has."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def align(parameter: Tensor, values: Tensor, axis: int, block: int = 0) -> Tensor:
    """Shape scales or zero points so that they broadcast against the values they belong to.

    Args:
        parameter: One number, one for each index of an axis, or with ``block`` one for so many
            neighbours along it.
        values: The values.
        axis: The axis, negative from the last one on.
        block: Neighbours that share a number; 0 where none do.
    """
    if block:
        repeated = parameter.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, values.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape(-1, *[1] * (values.dim() - 1 - axis % values.dim()))
