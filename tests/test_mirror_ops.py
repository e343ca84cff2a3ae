"""Every rule of the mirror against ONNX Runtime and against ONNX's own operator tests."""

import fnmatch
import functools
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnx.defs
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from proact_onnx.errors import UnsupportedOperatorError
from proact_onnx.mirror import Mirror, ops
from proact_onnx.mirror.rule import MICROSOFT, RuleTable
from proact_onnx.mirror.tensors import to_tensor
from tests.mirror_reference import assert_agrees, open_session, random_feeds
from tests.operator_cases import CASES, STATISTICS, Case


@pytest.mark.parametrize("name", CASES)
def test_rule_agrees_with_onnx_runtime(name: str) -> None:
    model = CASES[name].model()
    assert_agrees(model, random_feeds(open_session(model)))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.settings])
def test_rule_reads_settings_computed_at_run_time(name: str) -> None:
    model = CASES[name].model()
    settings = {proto.name: numpy_helper.to_array(proto) for proto in model.graph.initializer}
    for proto in model.graph.initializer:
        shape = list(proto.dims)
        value = onnx.helper.make_tensor_value_info(proto.name, proto.data_type, shape)
        model.graph.input.append(value)
    del model.graph.initializer[:]
    assert_agrees(model, random_feeds(open_session(model)) | settings)


# ONNX's own operator tests that the mirror is not meant to pass, by the reason.
OUT_OF_SCOPE = {
    "PyTorch computes nothing in these unsigned integers": [
        "test_[!dq]*_uint16",
        "test_div_uint16",
        "test_*_uint32",
        "test_*_uint64",
    ],
    "PyTorch lacks the element type, or only stores values in it": [
        "test_*quantizelinear*_e?m*",
        "test_*quantizelinear*int4",
        "test_*quantizelinear*int2",
        "test_*quantizelinear*_float4e2m1",
        "test_cast*FLOAT8*",
        "test_cast*FLOAT4*",
        "test_cast*INT4*",
        "test_cast*INT2*",
        "test_equal_string*",
    ],
    "training": ["test_batchnorm_*_training_mode", "test_training_dropout*"],
    "the positions of maxima are no value to train through": ["test_maxpool_with_argmax_*"],
    "the extreme of no value at all": ["test_reduce_max_empty_set*", "test_reduce_min_empty_set"],
    "interpolation beyond nearest and linear": [
        "test_resize_*cubic*",
        "test_resize_*antialias",
        "test_resize_tf_crop_and_resize*",
    ],
    "ONNX Runtime takes the rounded extent where the definition takes the exact one": [
        "test_resize_downsample_scales_linear_align_corners"
    ],
}


def _is_out_of_scope(name: str) -> bool:
    patterns = [pattern for group in OUT_OF_SCOPE.values() for pattern in group]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def _definition_cases() -> dict[str, list[Any]]:
    """ONNX's own tests of single operators with a rule, by operator."""
    known = {op for _, op, _ in ops.TABLE}
    cases = defaultdict(list)
    with warnings.catch_warnings():
        # The expected results hold infinities on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            if len(nodes) == 1 and nodes[0].op_type in known:
                cases[nodes[0].op_type].append(case)
    return cases


def _as_tensor(value: Any) -> torch.Tensor:
    is_proto = isinstance(value, TensorProto)
    return to_tensor(value if is_proto else numpy_helper.from_array(np.asarray(value)))


def _assert_passes(case: Any) -> None:
    mirror = Mirror(case.model)
    for inputs, outputs in case.data_sets:
        results = mirror(*map(_as_tensor, inputs))
        results = results if isinstance(results, tuple) else (results,)
        for result, array in zip(results, outputs, strict=True):
            expected = _as_tensor(array)
            torch.testing.assert_close(
                result, expected, rtol=case.rtol, atol=max(case.atol, 1e-5), equal_nan=True
            )


@pytest.mark.parametrize(
    "op", sorted({op for domain, op, _ in ops.TABLE if not domain} - {"Upsample"})
)
def test_rule_passes_the_tests_of_its_definition(op: str) -> None:
    cases = [case for case in _definition_cases()[op] if not _is_out_of_scope(case.name)]
    assert cases, f"onnx holds no test of {op} within scope"
    for case in cases:
        try:
            _assert_passes(case)
        except Exception as error:
            error.add_note(f"in {case.name}")
            raise


@pytest.mark.parametrize("pattern", [name for names in OUT_OF_SCOPE.values() for name in names])
def test_what_is_called_out_of_scope_fails(pattern: str) -> None:
    cases = [case for group in _definition_cases().values() for case in group]
    named = [case for case in cases if fnmatch.fnmatchcase(case.name, pattern)]
    # An older onnx holds fewer tests.
    if named:
        assert not all(_passes(case) for case in named)


def _passes(case: Any) -> bool:
    try:
        _assert_passes(case)
    except Exception:
        return False
    return True


def test_every_entry_of_the_table_is_a_version_that_is_defined() -> None:
    contributed = {
        (schema.domain, schema.name): schema.since_version
        for schema in get_all_operator_schema()
        if schema.domain == MICROSOFT
    }
    for domain, op, version in ops.TABLE:
        if domain:
            assert contributed[domain, op] == version, op
        else:
            assert onnx.defs.get_schema(op, version, domain).since_version == version, op


def test_no_rule_stands_in_two_files() -> None:
    families = [module for name, module in vars(ops).items() if name.startswith("ops_")]
    assert sum(len(family.RULES) for family in families) == len(ops.TABLE)


def test_a_rule_entered_twice_is_refused() -> None:
    table = RuleTable()
    table.plain({("Relu", 6): torch.relu})
    with pytest.raises(AssertionError, match="Relu of version 6 is entered twice"):
        table.plain({("Relu", 6): torch.relu})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            Case(13, 'y = Resize<mode="cubic">(x, "", s)', "float[4] s = {1,1,2,2}"),
            r"Resize with mode 'cubic' at node 'y' \(domain 'ai.onnx', opset 13\)",
        ),
        (
            Case(
                11,
                'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, s)',
                "float[8] r = {0,0,0,0,1,1,1,1}, float[4] s = {1,1,2,2}",
            ),
            "Resize with coordinate_transformation_mode 'tf_crop_and_resize'",
        ),
        (
            Case(18, 'y = Resize<mode="linear", antialias=1>(x, "", s)', "float[4] s = {1,1,2,2}"),
            "Resize with antialias = 1",
        ),
        (
            Case(7, "y = BatchNormalization<spatial=0>(x, s, b, m, v)", inputs=STATISTICS),
            "BatchNormalization with spatial = 0",
        ),
        (
            Case(8, "p, y = MaxPool<kernel_shape=[2,2]>(x)", result="int64"),
            "MaxPool with its extra output 'y'",
        ),
        (Case(11, "y = MaxPool<kernel_shape=[1,1,1,1]>(x)"), "MaxPool with 4 spatial axes"),
        (Case(13, "y = LRN<size=2>(x)"), "LRN with even size 2"),
        (Case(19, "y = Cast<to=17>(x)", result="float8e4m3fn"), "Cast to element type 17"),
        (Case(13, 'y = Constant<value_string="a">()', result="string"), "Constant of strings"),
        (Case(6, "y = Add<broadcast=1>(x, x)"), "Add of version 6 at node 'y' .*opset 6"),
        (Case(13, "y = NonZero(x)", result="int64"), "NonZero of version 13"),
        (
            Case(25, "y = QuantizeLinear<output_dtype=22>(x, s)", "float s = {0.1}", result="int4"),
            "QuantizeLinear to element type 22",
        ),
        (
            Case(23, "y = QuantizeLinear<precision=10>(x, s)", "float s = {0.1}", result="uint8"),
            "QuantizeLinear with precision 10",
        ),
        (
            Case(
                13,
                "y = com.microsoft.QLinearSigmoid(q, s, z, s)",
                "float s = {0.1}, uint8 z = {0}",
                "uint8[2] q",
                "uint8",
            ),
            "QLinearSigmoid without a zero point of its result at node 'y' .*'com.microsoft'",
        ),
        (
            Case(
                13,
                "y = com.microsoft.QGemm(q, s, z, q, s, z, k, s)",
                "float s = {0.1}, uint8 z = {0}, int32[2] k = {0, 0}",
                "uint8[2,2] q",
                "uint8",
            ),
            "QGemm without a zero point of its result",
        ),
        (
            Case(
                13,
                "y = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(q, s, z, s, z)",
                "float s = {0.1}, uint8 z = {0}",
                "uint8[2,3,3,4] q",
                "uint8",
            ),
            "QLinearGlobalAveragePool with its channels last",
        ),
        (
            Case(13, "y = com.microsoft.QLinearSoftmax(x, x)"),
            "QLinearSoftmax that ONNX does not define",
        ),
    ],
)
def test_what_has_no_rule_is_refused_by_name(case: Case, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message) as caught:
        Mirror(case.model())
    assert str(caught.value).endswith("use a training-free method such as ranger")


def test_an_operator_changed_after_the_rules_were_written_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "NEWEST_OPSET", 12)
    with pytest.raises(UnsupportedOperatorError, match="Relu as changed in operator set 13"):
        Mirror(Case(13, "y = Relu(x)").model())
