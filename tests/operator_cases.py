"""Small graphs, at least one for each rule of the mirror and each form of its operator."""

from dataclasses import dataclass

import onnx
import onnx.parser

from proact_onnx.mirror.ops_reduce import REDUCTIONS
from proact_onnx.mirror.ops_resize import COORDINATES, ROUNDINGS


@dataclass(frozen=True)
class Case:
    """A small graph at one operator set, in ONNX's text form; the output is ``y``.

    ``settings`` are constants; every case that has some also runs with them as graph inputs.
    """

    opset: int
    body: str
    settings: str = ""
    inputs: str = "float[2,3,5,6] x"
    result: str = "float"

    def model(self) -> onnx.ModelProto:
        ir_version = 8 if self.opset < 19 else 10
        return onnx.parser.parse_model(
            f'<ir_version: {ir_version}, opset_import: ["": {self.opset}, "com.microsoft": 1]> '
            f"graph ({self.inputs}) => ({self.result}[] y) <{self.settings}> {{ {self.body} }}"
        )


IMAGE = "float[2,4,7,8] x"
FILTER = "float[2,4,7,8] x, float[6,4,3,2] w"
BIASED = "float[2,4,7,8] x, float[6,4,3,2] w, float[6] b"
PLANES = "float[2,4,7,8] x, float[4,3,3,2] w"
LINE = "float[2,4,9] x"
CUBE = "float[2,4,5,6,7] x"
PAIR = "float[2,3,5,6] x, float[3,1,6] z"
FLAGS = "bool[2,3] x, bool[3] z"
INTEGERS = "int64[2,3] x, int64[3] z"
STATISTICS = "float[2,3,5,6] x, float[3] s, float[3] b, float[3] m, float[3] v"

# A scale and a zero point a channel of the default input.
CHANNELS = "float[3] s = {0.03, 0.2, 0.007}"
# Codes of an input and of weights, and what their sums are scaled to.
CODES = "float a = {0.031}, uint8 z = {117}, float b = {0.57}, int8 v = {-3}"
SECOND = "float c = {0.017}, uint8 u = {9}"
ENCODED = "q = QuantizeLinear(x, a, z)"

CASES = {
    # Convolutions and matrix products.
    "conv": Case(7, "y = Conv(x, w, b)", inputs=BIASED),
    "conv pads": Case(11, "y = Conv<pads=[1,2,1,2], strides=[2,1]>(x, w, b)", inputs=BIASED),
    "conv asymmetric": Case(22, "y = Conv<pads=[0,1,2,3]>(x, w)", inputs=FILTER),
    "conv dilated": Case(11, "y = Conv<dilations=[2,3]>(x, w)", inputs=FILTER),
    "conv upper": Case(11, 'y = Conv<auto_pad="SAME_UPPER", strides=[2,3]>(x, w)', inputs=FILTER),
    "conv lower": Case(11, 'y = Conv<auto_pad="SAME_LOWER", strides=[2,1]>(x, w)', inputs=FILTER),
    "conv valid": Case(11, 'y = Conv<auto_pad="VALID">(x, w)', inputs=FILTER),
    "conv groups": Case(11, "y = Conv<group=2>(x, w)", inputs="float[2,4,7,8] x, float[6,2,3,2] w"),
    "conv depthwise": Case(
        11, "y = Conv<group=4>(x, w)", inputs="float[2,4,7,8] x, float[4,1,3,2] w"
    ),
    "conv line": Case(11, "y = Conv<pads=[1,1]>(x, w)", inputs=f"{LINE}, float[3,4,3] w"),
    "conv cube": Case(
        11, "y = Conv<pads=[1,0,1,1,0,1]>(x, w)", inputs=f"{CUBE}, float[3,4,3,2,3] w"
    ),
    "conv weight fed by a node": Case(
        11,
        "t = Transpose<perm=[1,0,2,3]>(w) y = Conv(x, t)",
        inputs="float[2,4,7,8] x, float[4,6,3,2] w",
    ),
    "transposed": Case(11, "y = ConvTranspose(x, w, b)", inputs=f"{PLANES}, float[3] b"),
    "transposed pads": Case(
        11,
        "y = ConvTranspose<pads=[0,1,1,0], strides=[2,2]>(x, w, b)",
        inputs=f"{PLANES}, float[3] b",
    ),
    "transposed output padding": Case(
        11,
        "y = ConvTranspose<pads=[1,1,1,1], strides=[2,3], output_padding=[1,2]>(x, w)",
        inputs=PLANES,
    ),
    "transposed dilated groups": Case(
        11, "y = ConvTranspose<dilations=[2,1], group=2>(x, w)", inputs=PLANES
    ),
    "transposed line": Case(
        11, "y = ConvTranspose<strides=[2]>(x, w)", inputs=f"{LINE}, float[4,2,3] w"
    ),
    "transposed cube": Case(
        11, "y = ConvTranspose<strides=[2,1,1]>(x, w)", inputs=f"{CUBE}, float[4,2,3,2,2] w"
    ),
    **{
        f"transposed shape {shape} {auto_pad}": Case(
            11,
            f'y = ConvTranspose<output_shape={shape}, strides=[3,2], auto_pad="{auto_pad}">(x, w)',
            inputs=PLANES,
        )
        for shape in ("[20,15]", "[19,14]", "[23,17]")
        for auto_pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER")
    },
    "transposed same upper": Case(
        11, 'y = ConvTranspose<strides=[2,1], auto_pad="SAME_UPPER">(x, w)', inputs=PLANES
    ),
    "transposed same lower": Case(
        11, 'y = ConvTranspose<strides=[2,1], auto_pad="SAME_LOWER">(x, w)', inputs=PLANES
    ),
    "gemm": Case(7, "y = Gemm(x, z, c)", inputs="float[2,3] x, float[3,4] z, float[4] c"),
    "gemm turned": Case(
        9,
        "y = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(x, z, c)",
        inputs="float[3,2] x, float[4,3] z, float[2,1] c",
    ),
    "gemm scalar": Case(11, "y = Gemm(x, z, c)", inputs="float[2,3] x, float[3,4] z, float c"),
    "gemm without c": Case(13, "y = Gemm<alpha=2.0>(x, z)", inputs="float[2,3] x, float[3,4] z"),
    "matmul": Case(9, "y = MatMul(x, z)", inputs="float[2,1,3,4] x, float[5,4,2] z"),
    "matmul vector": Case(13, "y = MatMul(x, z)", inputs="float[2,3,4] x, float[4] z"),
    "einsum": Case(
        12, 'y = Einsum<equation="bij, bjk -> bk">(x, z)', inputs="float[2,3,4] x, float[2,4,5] z"
    ),
    # Pools.
    "max pool": Case(8, "y = MaxPool<kernel_shape=[3,2], strides=[2,2]>(x)", inputs=IMAGE),
    "max pool pads": Case(11, "y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", inputs=IMAGE),
    "max pool wide pads": Case(
        11, "y = MaxPool<kernel_shape=[3,3], pads=[2,0,2,0], strides=[2,1]>(x)", inputs=IMAGE
    ),
    "max pool asymmetric": Case(
        12, "y = MaxPool<kernel_shape=[3,3], pads=[0,1,2,0], strides=[2,2]>(x)", inputs=IMAGE
    ),
    "max pool ceil": Case(
        10, "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", inputs=IMAGE
    ),
    "max pool ceil asymmetric": Case(
        12,
        "y = MaxPool<kernel_shape=[3,3], strides=[3,2], pads=[0,1,1,0], ceil_mode=1>(x)",
        inputs=IMAGE,
    ),
    "max pool upper": Case(
        11,
        'y = MaxPool<kernel_shape=[3,2], strides=[2,1], auto_pad="SAME_UPPER">(x)',
        inputs=IMAGE,
    ),
    "max pool lower": Case(
        11,
        'y = MaxPool<kernel_shape=[2,2], strides=[2,1], auto_pad="SAME_LOWER">(x)',
        inputs=IMAGE,
    ),
    "max pool dilated": Case(
        10, "y = MaxPool<kernel_shape=[2,3], dilations=[2,2]>(x)", inputs=IMAGE
    ),
    "max pool line": Case(12, "y = MaxPool<kernel_shape=[2]>(x)", inputs=LINE),
    "max pool cube": Case(12, "y = MaxPool<kernel_shape=[2,2,3]>(x)", inputs=CUBE),
    "average pool": Case(7, "y = AveragePool<kernel_shape=[3,2], strides=[2,2]>(x)", inputs=IMAGE),
    "average pool pads": Case(
        10, "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", inputs=IMAGE
    ),
    "average pool counted pads": Case(
        11,
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        inputs=IMAGE,
    ),
    "average pool asymmetric": Case(
        11, "y = AveragePool<kernel_shape=[3,3], pads=[2,0,1,1]>(x)", inputs=IMAGE
    ),
    "average pool asymmetric counted": Case(
        11,
        "y = AveragePool<kernel_shape=[3,3], pads=[2,0,1,1], count_include_pad=1>(x)",
        inputs=IMAGE,
    ),
    "average pool ceil": Case(
        19, "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", inputs=IMAGE
    ),
    "average pool ceil counted": Case(
        19,
        "y = AveragePool<kernel_shape=[3,3], strides=[3,2], pads=[0,1,1,0], ceil_mode=1, "
        "count_include_pad=1>(x)",
        inputs=IMAGE,
    ),
    "average pool upper": Case(
        11,
        'y = AveragePool<kernel_shape=[3,2], strides=[2,1], auto_pad="SAME_UPPER">(x)',
        inputs=IMAGE,
    ),
    "average pool dilated": Case(
        19,
        "y = AveragePool<kernel_shape=[2,3], dilations=[2,2], pads=[1,1,1,1]>(x)",
        inputs=IMAGE,
    ),
    "average pool line": Case(11, "y = AveragePool<kernel_shape=[2]>(x)", inputs=LINE),
    "average pool cube": Case(11, "y = AveragePool<kernel_shape=[2,2,3]>(x)", inputs=CUBE),
    "global average pool": Case(7, "y = GlobalAveragePool(x)"),
    "global max pool": Case(7, "y = GlobalMaxPool(x)"),
    # Normalizations.
    **{
        f"batch normalization {opset}": Case(
            opset,
            "a = Abs(v) y = BatchNormalization<epsilon=0.01>(x, s, b, m, a)",
            inputs=STATISTICS,
        )
        for opset in (7, 9, 14, 15)
    },
    "instance normalization": Case(
        7, "y = InstanceNormalization(x, s, b)", inputs="float[2,3,5,6] x, float[3] s, float[3] b"
    ),
    "layer normalization": Case(
        17,
        "y = LayerNormalization<axis=2>(x, s, b)",
        inputs="float[2,3,5,6] x, float[5,6] s, float[5,6] b",
    ),
    "layer normalization without bias": Case(
        17, "y = LayerNormalization(x, s)", inputs="float[2,3,5,6] x, float[6] s"
    ),
    "group normalization": Case(
        21,
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        inputs="float[2,4,5] x, float[4] s, float[4] b",
    ),
    "rms normalization": Case(
        23, "y = RMSNormalization(x, s)", inputs="float[2,3,6] x, float[6] s"
    ),
    "lp normalization": Case(11, "y = LpNormalization<axis=1, p=1>(x)"),
    "lrn odd": Case(7, "y = LRN<size=3, alpha=0.5, beta=0.6, bias=2.0>(x)"),
    # Activations.
    "relu": Case(7, "y = Relu(x)"),
    "clip attributes": Case(7, "y = Clip<min=-0.5, max=1.0>(x)"),
    "clip one attribute": Case(10, "y = Clip<max=0.5>(x)"),
    "clip inputs": Case(11, "y = Clip(x, low, high)", "float low = {-0.5}, float high = {1.0}"),
    "clip high only": Case(13, 'y = Clip(x, "", high)', "float high = {1.0}"),
    "clip low only": Case(12, "y = Clip(x, low)", "float low = {0.0}"),
    "clip crossed": Case(13, "y = Clip(x, low, high)", "float low = {1.0}, float high = {-1.0}"),
    "leaky relu": Case(7, "y = LeakyRelu<alpha=0.3>(x)"),
    "prelu": Case(9, "y = PRelu(x, s)", inputs="float[2,3,5,6] x, float[3,1,1] s"),
    "elu": Case(7, "y = Elu<alpha=0.7>(x)"),
    "selu": Case(7, "y = Selu(x)"),
    "selu constants": Case(7, "y = Selu<alpha=1.5, gamma=2.0>(x)"),
    "celu": Case(12, "y = Celu<alpha=2.0>(x)"),
    "thresholded relu": Case(10, "y = ThresholdedRelu<alpha=0.6>(x)"),
    "hard sigmoid": Case(7, "y = HardSigmoid<alpha=0.3, beta=0.4>(x)"),
    "hard swish": Case(14, "y = HardSwish(x)"),
    "gelu": Case(20, "y = Gelu(x)"),
    "gelu tanh": Case(20, 'y = Gelu<approximate="tanh">(x)'),
    "mish": Case(18, "y = Mish(x)"),
    "shrink": Case(9, "y = Shrink<lambd=0.6, bias=0.2>(x)"),
    **{
        f"{op} {opset} {axis}": Case(opset, f"y = {op}<axis={axis}>(x)")
        for op in ("Softmax", "LogSoftmax")
        for opset, axis in ((7, 1), (9, 2), (11, -2), (13, 1), (13, -1))
    },
    # Value by value.
    **{
        op: Case(opset, f"y = {op}(x)")
        for op, opset in (
            ("Abs", 7),
            ("Ceil", 7),
            ("Cos", 7),
            ("Erf", 9),
            ("Exp", 7),
            ("Floor", 7),
            ("Neg", 7),
            ("Reciprocal", 7),
            ("Round", 11),
            ("Sigmoid", 7),
            ("Sign", 9),
            ("Sin", 7),
            ("Softplus", 7),
            ("Softsign", 7),
            ("Tan", 7),
            ("Tanh", 7),
            ("Identity", 7),
        )
    },
    "log": Case(7, "a = Abs(x) y = Log(a)"),
    "sqrt": Case(7, "a = Abs(x) y = Sqrt(a)"),
    **{
        f"{op} floating": Case(7, f"y = {op}(x, z)", inputs=PAIR)
        for op in ("Add", "Sub", "Mul", "Div")
    },
    **{
        f"{op} integers": Case(
            14, f"a = Abs(z) o = Add(a, one) y = {op}(x, o)", "int64 one = {1}", INTEGERS, "int64"
        )
        for op in ("Add", "Sub", "Mul", "Div", "Mod")
    },
    **{
        op: Case(opset, f"y = {op}(x, z)", inputs=PAIR, result="bool")
        for op, opset in (
            ("Equal", 11),
            ("Less", 9),
            ("Greater", 9),
            ("LessOrEqual", 12),
            ("GreaterOrEqual", 16),
        )
    },
    **{op: Case(7, f"y = {op}(x, z)", inputs=FLAGS, result="bool") for op in ("And", "Or", "Xor")},
    "not": Case(7, "y = Not(x)", inputs=FLAGS, result="bool"),
    "fmod": Case(10, "y = Mod<fmod=1>(x, z)", inputs=PAIR),
    "pow": Case(7, "a = Abs(x) y = Pow(a, z)", inputs=PAIR),
    "pow integer exponent": Case(12, "y = Pow(x, e)", "int64 e = {3}"),
    "where": Case(9, "y = Where(c, x, z)", inputs="bool[2,1,1] c, float[2,3,4] x, float[3,4] z"),
    "is nan": Case(9, "a = Log(x) y = IsNaN(a)", result="bool"),
    "is inf": Case(10, "y = IsInf<detect_negative=0>(x)", result="bool"),
    **{
        f"{op} of {count}": Case(
            8,
            f"y = {op}({', '.join('xzu'[:count])})",
            inputs=f"{PAIR}, float[5,1] u",
        )
        for op in ("Min", "Max", "Sum", "Mean")
        for count in (1, 2, 3)
    },
    # Reductions.
    **{
        f"{op} attribute {form}": Case(11, f"a = Abs(x) y = {op}{form}(a)")
        for op in sorted(REDUCTIONS)
        for form in ("<axes=[1,-1]>", "<axes=[2], keepdims=0>", "")
    },
    **{
        f"{op} input {form}": Case(
            18, f"a = Abs(x) y = {op}{form}(a, axes)", "int64[2] axes = {1,-1}"
        )
        for op in sorted(REDUCTIONS)
        for form in ("", "<keepdims=0>")
    },
    "reduce sum input 13": Case(13, "y = ReduceSum(x, axes)", "int64[1] axes = {-2}"),
    "reduce nothing": Case(18, "y = ReduceMean<noop_with_empty_axes=1>(x)"),
    "argmax": Case(7, "y = ArgMax<axis=1>(x)", result="int64"),
    "argmax flat": Case(11, "y = ArgMax<axis=-1, keepdims=0>(x)", result="int64"),
    "argmax last": Case(
        12, "s = Sign(x) y = ArgMax<axis=2, select_last_index=1>(s)", result="int64"
    ),
    "argmin": Case(13, "y = ArgMin<axis=3>(x)", result="int64"),
    "cumulative sum": Case(14, "y = CumSum<exclusive=1, reverse=1>(x, axis)", "int64 axis = {2}"),
    # Shapes.
    "reshape": Case(7, "y = Reshape(x, shape)", "int64[3] shape = {0,-1,6}"),
    "reshape zero": Case(
        14,
        "y = Reshape<allowzero=1>(x, shape)",
        "int64[3] shape = {3,0,2}",
        "float[2,0,3] x",
    ),
    "flatten": Case(7, "y = Flatten<axis=2>(x)"),
    "flatten from the end": Case(11, "y = Flatten<axis=-1>(x)"),
    "flatten all": Case(9, "y = Flatten<axis=0>(x)"),
    "squeeze attribute": Case(11, "y = Squeeze<axes=[1,-1]>(x)", inputs="float[2,1,3,1] x"),
    "squeeze input": Case(13, "y = Squeeze(x, axes)", "int64[2] axes = {1,-1}", "float[2,1,3,1] x"),
    "squeeze all": Case(13, "y = Squeeze(x)", inputs="float[2,1,3,1] x"),
    "unsqueeze attribute": Case(11, "y = Unsqueeze<axes=[4,0]>(x)", inputs="float[2,3,4] x"),
    "unsqueeze input": Case(
        13, "y = Unsqueeze(x, axes)", "int64[2] axes = {-1,1}", "float[2,3,4] x"
    ),
    "transpose": Case(7, "y = Transpose<perm=[0,2,3,1]>(x)"),
    "transpose default": Case(13, "y = Transpose(x)"),
    "concat": Case(7, "y = Concat<axis=1>(x, z)", inputs="float[2,3,4] x, float[2,5,4] z"),
    "concat from the end": Case(
        11, "y = Concat<axis=-2>(x, z)", inputs="float[2,3,4] x, float[2,5,4] z"
    ),
    "split attribute": Case(11, "a, y = Split<axis=3, split=[2,4]>(x)"),
    "split equal": Case(7, "a, b, y = Split<axis=1>(x)"),
    "split input": Case(13, "a, y = Split<axis=-1>(x, sizes)", "int64[2] sizes = {1,5}"),
    "split parts": Case(18, "a, y = Split<axis=2, num_outputs=2>(x)"),
    "expand": Case(8, "y = Expand(x, shape)", "int64[3] shape = {4,1,5}", "float[3,1] x"),
    "tile": Case(7, "y = Tile(x, repeats)", "int64[4] repeats = {1,2,1,3}"),
    "shape": Case(13, "y = Shape(x)", result="int64"),
    "shape part": Case(15, "y = Shape<start=1, end=-1>(x)", result="int64"),
    "size": Case(7, "y = Size(x)", result="int64"),
    "depth to space": Case(7, "y = DepthToSpace<blocksize=2>(x)", inputs="float[2,8,3,4] x"),
    "depth to space crd": Case(
        11, 'y = DepthToSpace<blocksize=2, mode="CRD">(x)', inputs="float[2,8,3,4] x"
    ),
    "space to depth": Case(7, "y = SpaceToDepth<blocksize=2>(x)", inputs="float[2,3,4,6] x"),
    # Positions.
    "slice attributes": Case(9, "y = Slice<starts=[1,-3], ends=[9,-1], axes=[2,3]>(x)"),
    "slice attributes, all axes": Case(7, "y = Slice<starts=[0,1], ends=[1,3]>(x)"),
    "slice inputs": Case(
        10,
        "y = Slice(x, starts, ends, axes, steps)",
        "int64[3] starts = {0,-1,4}, int64[3] ends = {3,-9223372036854775807,0}, "
        "int64[3] axes = {1,-1,2}, int64[3] steps = {2,-2,-1}",
    ),
    "slice inputs without axes": Case(
        13, "y = Slice(x, starts, ends)", "int64[2] starts = {0,1}, int64[2] ends = {1,3}"
    ),
    "gather": Case(11, "y = Gather<axis=2>(x, at)", "int64[2,2] at = {0,-1,3,1}"),
    "gather one": Case(7, "y = Gather<axis=1>(x, at)", "int64 at = {2}"),
    "gather from the end": Case(13, "y = Gather<axis=-1>(x, at)", "int32[2] at = {4,0}"),
    "gather elements": Case(
        11, "y = GatherElements<axis=1>(x, at)", "int64[2,2] at = {0,-1,3,1}", "float[2,5] x"
    ),
    "pad attribute": Case(7, "y = Pad<pads=[0,0,1,2,0,1,0,3], value=0.5>(x)"),
    "pad negative": Case(10, "y = Pad<pads=[0,0,1,-2,0,0,-1,3]>(x)"),
    **{
        f"pad {mode}": Case(
            11, f'y = Pad<mode="{mode}">(x, pads)', "int64[8] pads = {0,1,2,3,0,0,1,4}"
        )
        for mode in ("constant", "reflect", "edge")
    },
    "pad value": Case(
        13, "y = Pad(x, pads, value)", "int64[8] pads = {0,0,2,3,0,0,1,4}, float value = {-2.0}"
    ),
    "pad axes": Case(
        18, 'y = Pad(x, pads, "", axes)', "int64[4] pads = {1,2,0,3}, int64[2] axes = {-1,1}"
    ),
    "pad wrap": Case(19, 'y = Pad<mode="wrap">(x, pads)', "int64[8] pads = {0,0,2,3,0,0,1,4}"),
    # New tensors, types, and what inference leaves alone.
    "cast to integer": Case(9, "y = Cast<to=7>(x)", result="int64"),
    "cast to boolean": Case(13, "y = Cast<to=9>(x)", result="bool"),
    "cast to double": Case(13, "y = Cast<to=11>(x)", result="double"),
    "cast like": Case(15, "y = CastLike(x, z)", inputs="float[2,3] x, int64[1] z", result="int64"),
    "constant number": Case(12, "c = Constant<value_float=1.5>() y = Add(x, c)"),
    "constant list": Case(13, "c = Constant<value_ints=[1,2]>() y = ReduceSum(x, c)"),
    "constant tensor": Case(
        9, "c = Constant<value=float[2]{1.0,2.0}>() y = Mul(x, c)", inputs="float[3,2] x"
    ),
    "constant of shape": Case(
        9,
        "s = Shape(x) y = ConstantOfShape<value=int64[1]{7}>(s)",
        result="int64",
    ),
    "constant of shape, zeros": Case(20, "s = Shape(x) y = ConstantOfShape(s)"),
    "range": Case(
        11,
        "y = Range(start, limit, delta)",
        "float start = {1.0}, float limit = {7.5}, float delta = {2.0}",
        "",
    ),
    "dropout attribute": Case(7, "y = Dropout<ratio=0.4>(x)"),
    "dropout input": Case(13, "y = Dropout(x, ratio)", "float ratio = {0.4}"),
    "dropout mask": Case(12, "z, y = Dropout(x)", result="bool"),
    "trilu": Case(14, "y = Trilu<upper=0>(x, k)", "int64 k = {1}"),
    # Interpolation.
    "upsample attribute": Case(7, "y = Upsample<scales=[1.0,1.0,2.0,3.0]>(x)"),
    "upsample input": Case(
        9, 'y = Upsample<mode="linear">(x, scales)', "float[4] scales = {1,1,2,2.5}"
    ),
    **{
        f"resize 10 {mode}": Case(
            10, f'y = Resize<mode="{mode}">(x, scales)', "float[4] scales = {1,1,1.7,0.6}"
        )
        for mode in ("nearest", "linear")
    },
    **{
        f"resize {mode} {coordinate} {scales}": Case(
            19,
            f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinate}">'
            '(x, "", scales)',
            f"float[4] scales = {{1,1,{scales}}}",
        )
        for mode in ("nearest", "linear")
        for coordinate in sorted(COORDINATES)
        for scales in ("2,3", "0.5,1.7", "0.7,0.4")
    },
    **{
        f"resize to size {mode} {coordinate}": Case(
            13,
            f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinate}">'
            '(x, "", "", sizes)',
            "int64[4] sizes = {2,3,8,4}",
        )
        for mode in ("nearest", "linear")
        for coordinate in ("align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel")
    },
    **{
        f"resize {rounding}": Case(
            11,
            f'y = Resize<nearest_mode="{rounding}">(x, roi, scales)',
            "float[0] roi = {}, float[4] scales = {1,1,1.5,0.8}",
        )
        for rounding in sorted(ROUNDINGS)
    },
    **{
        f"resize {policy}": Case(
            18,
            f'y = Resize<axes=[3,2], keep_aspect_ratio_policy="{policy}">(x, "", "", sizes)',
            "int64[2] sizes = {9,11}",
        )
        for policy in ("stretch", "not_larger", "not_smaller")
    },
    # Quantisers.
    **{
        f"quantise {opset} {dtype}": Case(
            opset,
            "y = QuantizeLinear(x, s, z)",
            f"float s = {{0.013}}, {dtype} z = {{7}}",
            result=dtype,
        )
        for opset, dtypes in (
            (10, ("int8", "uint8")),
            (13, ("int8", "uint8")),
            (19, ("int8", "uint8")),
            (21, ("int8", "uint8", "int16", "uint16")),
            (23, ("int8",)),
        )
        for dtype in dtypes
    },
    "quantise without a zero point": Case(
        13, "y = QuantizeLinear(x, s)", "float s = {0.013}", result="uint8"
    ),
    "quantise to a type": Case(
        21, "y = QuantizeLinear<output_dtype=5>(x, s)", "float s = {0.0001}", result="int16"
    ),
    "quantise channels": Case(
        13, "y = QuantizeLinear(x, s, z)", f"{CHANNELS}, int8[3] z = {{0, -9, 4}}", result="int8"
    ),
    "quantise an axis": Case(
        19,
        "y = QuantizeLinear<axis=-1>(x, s, z)",
        "float[6] s = {0.01,0.02,0.03,0.2,0.3,2}, uint8[6] z = {0,1,255,128,7,9}",
        result="uint8",
    ),
    "quantise blocks": Case(
        21,
        "y = QuantizeLinear<axis=1, block_size=2>(x, s, z)",
        "float[2,2] s = {0.01,0.02,0.03,0.2}, int8[2,2] z = {0,1,-7,9}",
        "float[2,3] x",
        "int8",
    ),
    "quantise halves": Case(
        19,
        "h = Cast<to=10>(s) y = QuantizeLinear(x, h, z)",
        "float s = {0.013}, int8 z = {7}",
        "float16[2,3,5,6] x",
        "int8",
    ),
    **{
        f"dequantise {opset} {dtype}": Case(
            opset,
            "y = DequantizeLinear(x, s, z)",
            f"float s = {{0.013}}, {dtype} z = {{7}}",
            f"{dtype}[2,3,5,6] x",
        )
        for opset, dtypes in (
            (10, ("int8", "uint8")),
            (13, ("int8", "uint8")),
            (19, ("int8", "uint8")),
            (21, ("int8", "uint8", "int16", "uint16")),
        )
        for dtype in dtypes
    },
    "dequantise a bias": Case(
        13, "y = DequantizeLinear<axis=0>(x, s)", CHANNELS, inputs="int32[3] x"
    ),
    "dequantise channels": Case(
        13,
        "y = DequantizeLinear(x, s, z)",
        f"{CHANNELS}, uint8[3] z = {{0, 200, 4}}",
        inputs="uint8[2,3,5,6] x",
    ),
    "dequantise blocks": Case(
        21,
        "y = DequantizeLinear<axis=0, block_size=3>(x, s)",
        "float[2,2] s = {0.01,0.02,0.03,0.2}",
        "int8[5,2] x",
    ),
    "dequantise to halves": Case(
        19,
        "h = Cast<to=10>(s) y = DequantizeLinear(x, h, z)",
        "float s = {0.013}, int8 z = {7}",
        "int8[2,3,5,6] x",
        "float16",
    ),
    "codes between quantisers": Case(
        13,
        f"{ENCODED} m = MaxPool<kernel_shape=[2,2]>(q) t = Transpose<perm=[0,2,3,1]>(m) "
        "y = DequantizeLinear(t, a, z)",
        CODES,
    ),
    # Operators from codes to codes.
    **{
        f"quantised conv {name}": Case(
            13,
            f"{ENCODED} y = QLinearConv<{attributes}>(q, a, z, w, b, v, c, u{bias})",
            f"{CODES}, {SECOND}, int8[4,2,1,2] w = {{1,-2,3,4,-5,6,7,-8,9,10,11,-12,0,14,15,-16}}, "
            "int32[4] k = {100, -250, 3, 0}",
            "float[2,2,5,6] x",
            "uint8",
        )
        for name, attributes, bias in (
            ("plain", "group=1", ""),
            ("bias", "pads=[1,0,1,2]", ", k"),
            ("strides", 'strides=[2,1], auto_pad="SAME_UPPER"', ", k"),
        )
    },
    "quantised conv channels": Case(
        10,
        f"{ENCODED} y = QLinearConv<group=3>(q, a, z, w, s, v, c, u)",
        "float a = {0.031}, uint8 z = {117}, float[3] s = {0.57, 0.1, 2.3}, "
        "int8[3] v = {0, 0, 0}, float c = {0.37}, uint8 u = {9}, "
        "int8[3,1,1,2] w = {1,-2,3,4,-5,6}",
        result="uint8",
    ),
    "quantised matmul": Case(
        13,
        f"{ENCODED} y = QLinearMatMul(q, a, z, w, b, v, c, u)",
        f"{CODES}, {SECOND}, int8[3,2] w = {{1,-20,3,4,-50,60}}",
        "float[2,4,3] x",
        "uint8",
    ),
    "quantised matmul columns": Case(
        21,
        f"{ENCODED} y = QLinearMatMul(q, a, z, w, s, v, c, u)",
        "float a = {0.031}, uint8 z = {117}, float[2] s = {0.57, 0.1}, int8[2] v = {0, 0}, "
        f"{SECOND}, int8[3,2] w = {{1,-20,3,4,-50,60}}",
        "float[2,4,3] x",
        "uint8",
    ),
    **{
        f"quantised gemm {name}": Case(
            13,
            f"{ENCODED} y = com.microsoft.QGemm<{attributes}>(q, a, z, w, b, v{rest})",
            f"{CODES}, {SECOND}, int8[{shape}] w = {{1,-20,3,4,-50,60}}, int32[2] k = {{90, -40}}",
            "float[4,3] x",
            result,
        )
        for name, attributes, shape, rest, result in (
            ("plain", "transA=0", "3,2", ', "", c, u', "uint8"),
            ("turned", "transB=1, alpha=0.7", "2,3", ", k, c, u", "uint8"),
            ("to numbers", "transB=1", "2,3", ", k", "float"),
        )
    },
    **{
        f"quantised {op}": Case(
            13,
            f"{ENCODED} p = QuantizeLinear(w, b, v) "
            f"y = com.microsoft.QLinear{op}(q, a, z, p, b, v, c, u)",
            "float a = {0.031}, uint8 z = {117}, float b = {0.057}, uint8 v = {3}, "
            "float c = {0.077}, uint8 u = {99}",
            "float[2,3,5,6] x, float[3,1,6] w",
            "uint8",
        )
        for op in ("Add", "Mul")
    },
    **{
        f"quantised {op}": Case(
            13,
            f"{ENCODED} y = com.microsoft.QLinear{op}(q, a, z, c, u)",
            f"{CODES}, {SECOND}",
            result="uint8",
        )
        for op in (
            "GlobalAveragePool",
            "AveragePool<kernel_shape=[3,2], strides=[2,2]>",
            "LeakyRelu<alpha=0.2>",
            "Sigmoid",
        )
    },
    "quantised concat": Case(
        13,
        f"{ENCODED} p = QuantizeLinear(w, b, v) "
        "y = com.microsoft.QLinearConcat<axis=1>(c, u, q, a, z, p, b, v)",
        "float a = {0.031}, uint8 z = {117}, float b = {0.057}, uint8 v = {3}, "
        "float c = {0.077}, uint8 u = {99}",
        "float[2,3,5,6] x, float[2,1,5,6] w",
        "uint8",
    ),
    **{
        f"quantise as ONNX Runtime: {dtype}": Case(
            13,
            "q = com.microsoft.QuantizeLinear(x, s, z) y = com.microsoft.DequantizeLinear(q, s, z)",
            f"float s = {{0.013}}, {dtype} z = {{7}}",
        )
        for dtype in ("int8", "uint16")
    },
}
