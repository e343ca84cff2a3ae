"""The student runs any number of images, whatever batch the graph was exported with."""

import numpy as np
import onnx
import pytest
import torch

from proact_onnx.errors import ModelError
from proact_onnx.mirror.student import Student, batches
from proact_onnx.mirror.train import hyrelu_gate, train_thresholds
from proact_onnx.settings import HardenSettings
from tests.numerics import parse, run

IMAGES = 11


def net(batch: str, rows: int, flat: int = 36) -> onnx.ModelProto:
    """A skip past an activation; ``rows`` is what the exporter wrote into the Reshape."""
    generator = np.random.default_rng(0)
    return parse(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[{batch}, 1, 3, 3] x) => (float[{batch}, 5] y)
        {{
          c = Conv<pads = [1, 1, 1, 1]>(x, w)
          a = Relu(c)
          d = Conv<pads = [1, 1, 1, 1]>(a, z)
          e = Relu(d)
          s = Add(a, e)
          f = Reshape(s, rows)
          b = Gemm<transB = 1>(f, v)
          r = Relu(b)
          y = Gemm<transB = 1>(r, u)
        }}
        """,
        w=generator.normal(size=(4, 1, 3, 3)).astype(np.float32),
        z=generator.normal(size=(4, 4, 3, 3)).astype(np.float32),
        rows=np.array([rows, flat], np.int64),
        v=generator.normal(size=(6, 36)).astype(np.float32),
        u=generator.normal(size=(5, 6)).astype(np.float32),
    )


FREE = net("N", -1)
# Graph, and the chunk it needs: only the declared batch is fixed, or the constant is as well.
FIXED = {
    "declared 1": (net("1", -1), None),
    "declared 4": (net("4", -1), None),
    "hard-wired 1": (net("1", 1, -1), 1),
    "hard-wired 4": (net("4", 4), 4),
    "hard-wired 4, more than there are": (net("16", 16), 16),
}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(1).normal(size=(IMAGES, 1, 3, 3)).astype(np.float32)
    )


@pytest.mark.parametrize("name", FIXED)
def test_scores_equal_those_of_the_free_graph(name: str, images: torch.Tensor) -> None:
    model, chunk = FIXED[name]
    student = Student(model, images)
    assert student.chunk == chunk
    [expected] = run(FREE, {"x": images.numpy()})
    np.testing.assert_allclose(student.predict(images), expected, rtol=1e-5, atol=1e-5)
    assert student.predict(images[:1]).shape == (1, 5)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_predict_does_not_depend_on_the_batch(batch: int, images: torch.Tensor) -> None:
    [expected] = run(FREE, {"x": images.numpy()})
    scores = Student(FREE, images, batch).predict(images)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert not scores.requires_grad


@pytest.mark.parametrize("tensor", ["a", "e", "r"])
@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("name", ["free", *FIXED])
def test_the_suffix_equals_the_full_graph(
    name: str, limit: int, tensor: str, images: torch.Tensor
) -> None:
    """Kept, or computed again for every batch."""
    model = FREE if name == "free" else FIXED[name][0]
    student = Student(model, images, batch=4)
    for other in ("a", "e", "r"):
        student.bound(other, np.float32(1.0 if other == tensor else 4.0))
    layer = student.inputs_from(tensor, images, limit)
    assert len(layer) == IMAGES
    chosen = torch.tensor([7, 0, 3, 10])
    for pick in (chosen, slice(2, 9)):
        feeds = layer.take(pick)
        assert feeds[tensor].max() > 1, "the values before the bound"
        feeds[tensor] = feeds[tensor] * (feeds[tensor] <= 1)
        torch.testing.assert_close(student.logits(feeds), student.predict(images[pick]))
    scores = student.predict_from(layer, np.float32(1.0))
    torch.testing.assert_close(scores, student.predict(images))
    looser = student.predict_from(layer, np.float32(1.5))
    student.bound(tensor, np.float32(1.5))
    torch.testing.assert_close(looser, student.predict(images))
    assert (looser != scores).any()


def test_what_does_not_fit_is_not_kept(images: torch.Tensor) -> None:
    student = Student(FREE, images, batch=4)
    runs = []
    evaluate = student.mirror.evaluate
    student.mirror.evaluate = lambda *given: runs.append(1) or evaluate(*given)
    # 4 channels of 9 float32 values for each image.
    for limit, needed in ((IMAGES * 36 * 4, 0), (IMAGES * 36 * 4 - 1, 1)):
        layer = student.inputs_from("a", images, limit)
        runs.clear()
        layer.take(slice(0, 4))
        assert len(runs) == needed


@pytest.mark.parametrize("tensor", ["a", "r"])
@pytest.mark.parametrize("name", FIXED)
def test_training_gives_what_the_free_graph_gives(
    name: str, tensor: str, images: torch.Tensor
) -> None:
    initial = np.float32(3.0) if tensor == "a" else np.full((1, 6), 2.0, np.float32)
    labels = torch.arange(IMAGES) % 5

    def train(model: onnx.ModelProto) -> np.ndarray:
        student = Student(model, images)
        student.bound("e", np.float32(1.0))
        settings = HardenSettings(train_batch=6)
        return train_thresholds(
            student, student.inputs_from(tensor, images), {tensor: initial},
            student.predict(images), labels, settings,
            gate=hyrelu_gate(settings), epochs=5, seed=(0, 0),
        ).values[tensor]  # fmt: skip

    trained = train(FIXED[name][0])
    assert (trained < initial).any()
    np.testing.assert_allclose(trained, train(FREE), rtol=1e-3)


def test_a_tensor_without_batch_axis_is_refused(images: torch.Tensor) -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 1, 3, 3] x) => (float[N, 1, 3, 3] y)
    { m = ReduceSum<keepdims = 0>(x)  a = Relu(x)  y = Mul(a, m) }
    """)
    with pytest.raises(ModelError, match=r"tensor 'm' of shape \[\] does not have the batch as"):
        Student(model, images).inputs_from("a", images)


def test_scores_of_a_float16_graph_are_float32(images: torch.Tensor) -> None:
    model = parse("""
    <ir_version: 8, opset_import: ["": 17]>
    net (float16[N, 1, 3, 3] x) => (float16[N, 9] y) { a = Relu(x)  y = Flatten(a) }
    """)
    student = Student(model, images.half())
    student.bound("a", np.float32(0.5))
    scores = student.predict(images.half())
    assert scores.dtype == torch.float32
    assert 0 < scores.max() <= 0.5


def test_a_graph_that_makes_one_row_of_all_images_runs_in_chunks(images: torch.Tensor) -> None:
    model = parse(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[1, 1, 3, 3] x) => (float[1, 9] y) { a = Relu(x)  y = Reshape(a, row) }
        """,
        row=np.array([1, -1], np.int64),
    )
    student = Student(model, images)
    assert student.chunk == 1
    torch.testing.assert_close(student.predict(images), images.flatten(1).relu())


def test_batches_cover_the_range_once() -> None:
    assert [range(10)[part] for part in batches(10, 4)] == [range(4), range(4, 8), range(8, 10)]
    assert list(batches(0, 4)) == []


@pytest.mark.parametrize("name", FIXED)
def test_parameters_that_change_are_read_behind_what_is_kept(
    name: str, images: torch.Tensor
) -> None:
    """From the input of a layer on, with another weight, as a graph that stores that weight."""
    model, _ = FIXED[name]
    student = Student(model, images, batch=4)
    changed = np.random.default_rng(5).normal(size=(4, 4, 3, 3)).astype(np.float32)
    layer = student.inputs_from("e", images, parameters=["z"])
    found = student.logits(layer.take(slice(0, IMAGES)), {"z": torch.from_numpy(changed)})
    other = onnx.ModelProto()
    other.CopyFrom(FREE)
    [weight] = [tensor for tensor in other.graph.initializer if tensor.name == "z"]
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, "z"))
    [expected] = run(other, {"x": images.numpy()})
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert set(layer.take(slice(0, 2))) == {"a"}
