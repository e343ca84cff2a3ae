"""Faults that training sees: the bits that are flipped, and where they come from."""

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from proact_onnx.activations import find_activations
from proact_onnx.faults import FaultModel, Rate, fault_space
from proact_onnx.methods.layer_faults import ParameterFaults
from tests.numerics import parse

BER = 0.02
# Bits of a word, and those behind the binary point.
FIXED = {"Q15.16": (32, 16), "Q7.8": (16, 8)}


def net() -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    return parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3] x) => (float[N, 2] y)
        {
          h = Gemm(x, w, c)
          a = Relu(h)
          g = MatMul(a, v)
          b = Relu(g)
          y = MatMul(b, u)
        }
        """,
        w=generator.normal(size=(3, 8)).astype(np.float32),
        c=generator.normal(size=8).astype(np.float32),
        v=generator.normal(size=(8, 16)).astype(np.float32),
        u=generator.normal(size=(16, 2)).astype(np.float32),
    )


def faults(memory_format: str = "Q15.16", ber: float = BER, seed: int = 3) -> ParameterFaults:
    model = net()
    return ParameterFaults(model, find_activations(model), memory_format, ber, seed)


def stored(name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in net().graph.initializer if t.name == name)


def bits_of(value: float, memory_format: str) -> int:
    """The stored word of a value, by integers alone."""
    if memory_format in FIXED:
        width, fraction_bits = FIXED[memory_format]
        return round(float(value) * 2**fraction_bits) % 2**width
    return int(np.array(value, ml_dtypes.bfloat16).view(np.uint16))


def value_of(word: int, memory_format: str) -> float:
    if memory_format in FIXED:
        width, fraction_bits = FIXED[memory_format]
        return (word - 2**width if word >> (width - 1) else word) / 2**fraction_bits
    return float(np.array(word, np.uint16).view(ml_dtypes.bfloat16))


@pytest.mark.parametrize("memory_format", ["Q7.8", "bfloat16"])
def test_parameters_are_encoded_flipped_and_decoded(memory_format: str) -> None:
    drawn = faults(memory_format).draw(["a", "b"], 7)
    assert set(drawn) == {"w", "c", "v"}, "no threshold stands behind u"
    flipped = 0
    for name, values in drawn.items():
        for value, found in zip(stored(name).flat, values.flatten().tolist(), strict=True):
            word = bits_of(found, memory_format)
            assert np.float32(value_of(word, memory_format)) == found or np.isnan(found)
            flipped += (word ^ bits_of(value, memory_format)).bit_count()
    total = 16 * sum(stored(name).size for name in drawn)
    assert flipped == pytest.approx(total * BER, abs=4 * (total * BER) ** 0.5)


def test_the_very_flips_of_the_fault_model() -> None:
    """Word by word, with the sites that the sampler gives for this trial."""
    space = fault_space(net(), 32).restrict(layers=["v"])
    drawn = FaultModel(Rate(BER)).draw(space, 3, (1 << 32) + 7)
    expected = [bits_of(value, "Q15.16") for value in stored("v").flat]
    elements, masks = drawn.words["v"]
    for element, mask in zip(elements.tolist(), masks.tolist(), strict=True):
        expected[element] ^= mask
    found = faults().draw(["b"], 7)["v"]
    assert found.flatten().tolist() == [np.float32(value_of(w, "Q15.16")) for w in expected]


def test_a_number_is_a_fault_map() -> None:
    first, again, other = (faults().draw(["b"], number)["v"] for number in (7, 7, 8))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first != other).any()
    assert (first != faults(seed=4).draw(["b"], 7)["v"]).any()


def test_no_campaign_meets_the_same_map() -> None:
    space = fault_space(net(), 32).restrict(layers=["v"])
    model = FaultModel(Rate(BER))
    elements, masks = model.draw(space, 3, 7).words["v"]
    trained, masks_trained = model.draw(space, 3, (1 << 32) + 7).words["v"]
    assert elements.tolist() != trained.tolist() or masks.tolist() != masks_trained.tolist()


def test_without_a_flip_parameters_are_those_of_the_golden_run() -> None:
    source = faults(ber=1e-12)
    for name, values in source.draw(["a"], 0).items():
        rounded = [value_of(bits_of(value, "Q15.16"), "Q15.16") for value in stored(name).flat]
        assert values.flatten().tolist() == [np.float32(value) for value in rounded]
        assert values is source.draw(["a"], 1)[name]
        assert not values.requires_grad


def test_parameters_belong_to_the_first_activation_they_reach() -> None:
    assert faults().names(["a"]) == ("w", "c")
    assert faults().names(["b"]) == ("v",)
