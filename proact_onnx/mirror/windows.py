"""Arithmetic of sliding windows: the padding and extent of convolutions and pools."""

from collections.abc import Sequence
from dataclasses import dataclass

from proact_onnx.mirror.rule import Node

Sizes = tuple[int, ...]


def padding_list(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Order padding per axis as ``torch.nn.functional.pad`` takes it: the last axis first."""
    return [
        pad
        for begin, end in zip(reversed(begins), reversed(ends), strict=True)
        for pad in (begin, end)
    ]


def share(totals: Sequence[int], *, odd_first: bool) -> tuple[Sizes, Sizes]:
    """Share padding between begin and end; a negative total goes to the end."""
    begins = tuple((max(total, 0) + odd_first) // 2 for total in totals)
    return begins, tuple(total - begin for total, begin in zip(totals, begins, strict=True))


@dataclass(frozen=True)
class Window:
    """The attributes that convolutions and pools share; an absent list is ``None``.

    Attributes:
        auto_pad: ``NOTSET``, ``VALID``, ``SAME_UPPER`` or ``SAME_LOWER``.
        pads: Explicit padding, all begins before all ends.
        strides: Step of the window along each axis.
        dilations: Distance between the taps of the window along each axis.
    """

    auto_pad: str
    pads: Sizes | None
    strides: Sizes | None
    dilations: Sizes | None

    @classmethod
    def of(cls, node: Node) -> "Window":
        """Read the attributes of a node."""
        return cls(
            node.text("auto_pad", "NOTSET") or "NOTSET",
            node.sizes("pads"),
            node.sizes("strides"),
            node.sizes("dilations"),
        )

    @property
    def symmetric(self) -> int | Sizes | None:
        """Padding that is the same at both ends and whatever the input's size; else ``None``."""
        if self.auto_pad == "VALID" or (self.auto_pad == "NOTSET" and self.pads is None):
            return 0
        if self.auto_pad != "NOTSET" or self.pads is None:
            return None
        half = len(self.pads) // 2
        return self.pads[:half] if self.pads[:half] == self.pads[half:] else None

    def steps(self, rank: int) -> Sizes:
        """Stride along each of ``rank`` axes."""
        return self.strides or (1,) * rank

    def reach(self, kernel: Sequence[int]) -> Sizes:
        """Extent of the dilated kernel along each axis."""
        dilations = self.dilations or (1,) * len(kernel)
        return tuple(
            (size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)
        )

    def padding(self, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[Sizes, Sizes]:
        """Padding before and after each axis of an input of the given spatial sizes."""
        rank = len(sizes)
        if self.auto_pad.startswith("SAME"):
            totals = [
                max((-(-size // stride) - 1) * stride + reach - size, 0)
                for size, stride, reach in zip(
                    sizes, self.steps(rank), self.reach(kernel), strict=True
                )
            ]
            return share(totals, odd_first=self.auto_pad == "SAME_LOWER")
        if self.auto_pad == "VALID" or self.pads is None:
            return (0,) * rank, (0,) * rank
        return self.pads[:rank], self.pads[rank:]

    def overhang(
        self, sizes: Sequence[int], kernel: Sequence[int], begins: Sizes, ends: Sizes
    ) -> Sizes:
        """How far the last window of a pool in ceil mode reaches beyond the padded input.

        A window that would start beyond the input and its leading padding is left out.
        """
        extra = []
        steps, reaches = self.steps(len(sizes)), self.reach(kernel)
        for size, begin, end, step, reach in zip(sizes, begins, ends, steps, reaches, strict=True):
            padded = begin + size + end
            last = -(-(padded - reach) // step) * step
            if last >= begin + size:
                last -= step
            extra.append(max(last + reach - padded, 0))
        return tuple(extra)
