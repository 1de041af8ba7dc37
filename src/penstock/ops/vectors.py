"""What kernels are written with: the items of a call, and vectors of any width that the compiler keeps in registers.

A vector is a value. `a * x + y` on vectors, or on a number and vectors, is one fused instruction where the machine has it;
a vector wider than the machine's registers takes several of them.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

from penstock.core.threads import HEADER

CACHE_LINE = 16
LINE_BYTES = 64
FLAGS = ("contract", "nsz")
intrinsic: Any = extending.intrinsic  # what it makes is called with one argument less than it is written with


@intrinsic
def arguments(_: Any, call: Any) -> Any:
    """Return the tuple of arguments that a kernel was called with."""
    everything = call.dtype
    wanted = types.Tuple(everything.types[HEADER:])

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        values = [builder.load(cgutils.gep_inbounds(builder, args[0], 0, i)) for i in range(HEADER, len(everything.types))]
        return context.make_tuple(builder, wanted, values)

    return wanted(call), generate


@intrinsic
def _take(_: Any, call: Any) -> Any:
    """Return the next item that no thread has taken."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        counter = cgutils.gep_inbounds(builder, args[0], 0, 0)
        return builder.atomic_rmw("add", counter, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(call), generate


@intrinsic
def _items(_: Any, call: Any) -> Any:
    """Return how many items there are."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.load(cgutils.gep_inbounds(builder, args[0], 0, 1))

    return types.int64(call), generate


@njit
def work(call):  # noqa: ANN001, ANN201 - types are numba's
    """Yield the items that fall to this thread."""
    item = _take(call)
    while item < _items(call):
        yield item
        item = _take(call)


class Vector(types.Type):
    """The numba type of `lanes` numbers of one dtype."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.dtype).get_value_type(), fe_type.lanes))


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Return the address of the first of the numbers that `load` and `store` mean."""
    array, index = signature.args[:2]
    indices = cgutils.unpack_tuple(builder, args[1], len(index.types))
    indices = [context.cast(builder, i, t, types.intp) for i, t in zip(indices, index.types, strict=True)]
    return cgutils.get_item_pointer(context, builder, array, context.make_array(array)(context, builder, args[0]), indices)


@intrinsic
def load(_: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Return the `lanes` numbers of `array` that start at `index`."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_pointer(context, builder, signature, args), context.get_value_type(vector).as_pointer())
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, index, lanes), generate


@intrinsic
def store(_: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to `array`, from `index` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_pointer(context, builder, signature, args), context.get_value_type(vector).as_pointer())
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@intrinsic
def total(_: Any, vector: Any) -> Any:
    """Return the sum of a vector."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        one, many = context.get_value_type(vector.dtype), context.get_value_type(vector)
        name = f"llvm.vector.reduce.fadd.v{vector.lanes}f{vector.dtype.bitwidth}"
        reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(one, [one, many]), name)
        return builder.call(reduce, [one(-0.0), args[0]], fastmath=("reassoc", "nsz"))

    return vector.dtype(vector), generate


@intrinsic
def peak(_: Any, vector: Any) -> Any:
    """Return the largest number of a vector."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        one, many = context.get_value_type(vector.dtype), context.get_value_type(vector)
        name = f"llvm.vector.reduce.fmax.v{vector.lanes}f{vector.dtype.bitwidth}"
        reduce = cgutils.get_or_insert_function(builder.module, ir.FunctionType(one, [many]), name)
        return builder.call(reduce, [args[0]])

    return vector.dtype(vector), generate


def _spread(context: Any, builder: Any, value: Any, kind: Any, vector: Vector) -> Any:
    """Return a vector as it is and a number as a vector of it."""
    if isinstance(kind, Vector):
        return value
    value = context.cast(builder, value, kind, vector.dtype)
    whole = context.get_value_type(vector)
    first = builder.insert_element(ir.Constant(whole, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, ir.Constant(whole, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), None)
    )


def _arithmetic(operation: Callable[..., Any], instruction: str) -> None:
    """Teach numba an operation on two vectors, or on a number and a vector."""

    @intrinsic
    def apply(_: Any, a: Any, b: Any) -> Any:
        vector = a if isinstance(a, Vector) else b

        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            x, y = (_spread(context, builder, value, kind, vector) for value, kind in zip(args, (a, b), strict=True))
            return getattr(builder, instruction)(x, y, flags=FLAGS)

        return vector(a, b), generate

    @overload(operation)
    def choose(a, b):  # noqa: ANN001, ANN202 - numba compares this signature with that of what it returns
        if isinstance(a, Vector) or isinstance(b, Vector):
            return lambda a, b: apply(a, b)  # noqa: PLW0108 - an intrinsic is not a function of Python
        return None


for _operation, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _arithmetic(_operation, _instruction)


@intrinsic
def zeros(_: Any, array: Any, lanes: Any) -> Any:
    """Return a vector of zeros of the dtype of `array`."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = Vector(array.dtype, lanes.literal_value)
    return vector(array, lanes), lambda context, *_: ir.Constant(context.get_value_type(vector), None)


@intrinsic
def exp(_: Any, vector: Any) -> Any:
    """Return the exponential of each number, none of which may be above 88; 0 for what is below the normal numbers.

    With n the nearest integer to x / log 2, it is 2**n times the series of the exponential of the small rest.
    """
    single = vector.dtype.bitwidth == 32
    mantissa, bias, terms, low = (23, 127, 7, -87.3) if single else (52, 1023, 13, -708.3)
    log2_high = 0.693359375 if single else 0.693147180369123816490
    log2_low = -2.12194440054690583e-4 if single else 1.90821492927058770002e-10

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        whole = context.get_value_type(vector)
        integers = ir.VectorType(ir.IntType(vector.dtype.bitwidth), vector.lanes)

        def number(value: float) -> Any:
            return ir.Constant(whole, [value] * vector.lanes)

        def integer(value: int) -> Any:
            return ir.Constant(integers, [value] * vector.lanes)

        def multiply_add(a: Any, b: Any, c: Any) -> Any:
            return builder.fadd(builder.fmul(a, b, flags=FLAGS), c, flags=FLAGS)

        x = args[0]
        tiny = builder.fcmp_ordered("<", x, number(low))
        rint = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(whole, [whole]), f"llvm.rint.v{vector.lanes}f{vector.dtype.bitwidth}"
        )
        inside = builder.select(tiny, number(low), x)
        n = builder.call(rint, [builder.fmul(inside, number(1 / math.log(2)))])
        rest = multiply_add(n, number(-log2_low), multiply_add(n, number(-log2_high), inside))
        series = number(1 / math.factorial(terms))
        for term in range(terms - 1, -1, -1):
            series = multiply_add(series, rest, number(1 / math.factorial(term)))
        power = builder.shl(builder.add(builder.fptosi(n, integers), integer(bias)), integer(mantissa))
        return builder.select(tiny, number(0.0), builder.fmul(series, builder.bitcast(power, whole)))

    return vector(vector), generate


@intrinsic
def larger(_: Any, vector: Any, other: Any) -> Any:
    """Return the larger of each two numbers."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, other), generate


@njit(inline="always")
def load_rows(array, a, b, row, column, lanes):  # noqa: ANN001, ANN201 - types are numba's
    """Return four rows of the matrix `array[a, b]`, from `row` and `column` on."""
    return (
        load(array, (a, b, row, column), lanes),
        load(array, (a, b, row + 1, column), lanes),
        load(array, (a, b, row + 2, column), lanes),
        load(array, (a, b, row + 3, column), lanes),
    )


@njit(inline="always")
def store_rows(array, a, b, row, column, rows):  # noqa: ANN001, ANN201
    """Write four rows of the matrix `array[a, b]`, from `row` and `column` on."""
    store(array, (a, b, row, column), rows[0])
    store(array, (a, b, row + 1, column), rows[1])
    store(array, (a, b, row + 2, column), rows[2])
    store(array, (a, b, row + 3, column), rows[3])


@njit(inline="always")
def combine(start, factors, t, first, rows):  # noqa: ANN001, ANN201
    """Add four rows to `start`, each times its factor `factors[t, first + row]`."""
    start = start + factors[t, first] * rows[0] + factors[t, first + 1] * rows[1]
    return start + factors[t, first + 2] * rows[2] + factors[t, first + 3] * rows[3]


def _shuffle(lane: Callable[[int], int], doc: str) -> Any:
    """Make a function that fills each lane of a vector from the lane that `lane` says."""

    @intrinsic
    def apply(_: Any, vector: Any) -> Any:
        def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [lane(i) for i in range(vector.lanes)])
            return builder.shuffle_vector(args[0], ir.Constant(context.get_value_type(vector), ir.Undefined), mask)

        return vector(vector), generate

    apply.__doc__ = doc
    return apply


real = _shuffle(
    lambda i: i - i % 2, "Return a vector of complex numbers with each imaginary part replaced by the real part."
)
imag = _shuffle(
    lambda i: i - i % 2 + 1, "Return a vector of complex numbers with each real part replaced by the imaginary part."
)
swap = _shuffle(lambda i: i ^ 1, "Return a vector of complex numbers with real and imaginary parts changed round.")


@intrinsic
def signs(_: Any, vector: Any) -> Any:
    """Return a vector of -1 and 1 by turns."""
    return vector(vector), lambda context, *_: ir.Constant(context.get_value_type(vector), [-1.0, 1.0] * (vector.lanes // 2))


@njit(inline="always")
def multiply_add(a, x, y, paired):  # noqa: ANN001, ANN201
    """Return `a * x + y`, of complex numbers where lanes are `paired`."""
    if paired:
        return y + real(a) * x + imag(a) * (signs(a) * swap(x))
    return a * x + y


@njit(inline="always")
def conjugate_multiply_add(a, x, y, paired):  # noqa: ANN001, ANN201
    """Return `conj(a) * x + y`, of complex numbers where lanes are `paired`."""
    if paired:
        return y + real(a) * x - imag(a) * (signs(a) * swap(x))
    return a * x + y


@njit
def edge(block, blocks, channels):  # noqa: ANN001, ANN201
    """Return where a block of channels begins: at a whole cache line."""
    return min(channels, -(-channels // (CACHE_LINE * blocks)) * CACHE_LINE * block)


@njit
def room(like, shape):  # noqa: ANN001, ANN201
    """Return an empty array of the dtype of `like` that begins where a line of the cache does.

    Numba's own arrays may begin in the middle of one, and then every load of a full vector takes two.
    """
    size = 1
    for length in shape:
        size *= length
    flat = np.empty(size + LINE_BYTES // like.itemsize, like.dtype)
    first = -flat.ctypes.data % LINE_BYTES // like.itemsize
    return flat[first : first + size].reshape(shape)
