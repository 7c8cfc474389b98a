"""What Triton's interpreter computes again and again, computed once or not at all: half of the time of its tests."""

import functools
import inspect


def remember():
    """Have the interpreter give the answers that it gave, sooner.

    Raises:
        AttributeError: this release of Triton has no longer what is replaced.
    """
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    _replace_builtins_once(interpreter, tl)
    _know_number_formats(interpreter)
    _know_shapes(tl.core)
    _skip_unread_checks(TritonSemantic)


def _replace_builtins_once(interpreter, tl):
    """A launch replaces functions of `triton.language`; a function that its kernel calls finds them replaced.

    Each call would look for them again in the whole package, and replace them by the same.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced = set()  # in what this launch has replaced them

    @functools.cache
    def seen_by(function):
        return frozenset(id(part) for part in (tl, tl.core) if any(part is x for x in function.__globals__.values()))

    @functools.cache
    def builtins_of(package):
        return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_lang(function):
        seen = seen_by(function)
        if seen and seen <= replaced:
            return None
        scope = patch(function)
        replaced.update(seen)
        return scope

    def patch_builtin(package, *more):
        for name, member in builtins_of(package):
            if getattr(package, name) is member:  # else it is replaced
                interpreter._patch_attr(package, name, member, *more)

    def call(self, *arguments, **options):
        try:
            return launch(self, *arguments, **options)
        finally:
            replaced.clear()

    interpreter._patch_lang, interpreter._patch_builtin = patch_lang, patch_builtin
    interpreter.GridExecutor.__call__ = call


def _know_number_formats(interpreter):
    """Each operation would build the table of number formats."""
    look_up = interpreter._get_np_dtype
    of_number = functools.cache(look_up)

    def numpy_format(kind):
        scalar = kind.scalar
        return look_up(scalar) if scalar.is_ptr() else of_number(scalar)

    interpreter._get_np_dtype = numpy_format


def _know_shapes(core):
    """Each result would check its shape, and wrap and name it anew."""
    known = {}  # sides of a block -> its shape and its number of elements, as Triton makes them
    check = core.block_type.__init__

    def init_block(self, element_ty, shape):
        sides = tuple([side.value if type(side) is core.constexpr else side for side in shape])
        if type(shape) not in {list, core.tuple} or any(type(side) is not int for side in sides):
            check(self, element_ty, shape)
        elif sides in known:
            self.element_ty = element_ty
            self.shape, self.numel = known[sides]
        else:
            check(self, element_ty, shape)
            known[sides] = self.shape, self.numel

    name = functools.cached_property(lambda self: f"<{self.shape}, {self.element_ty}>")
    name.__set_name__(core.block_type, "name")

    @functools.cache
    def wrapped(sides):
        shape = core.tuple([core.constexpr(side) for side in sides])
        return shape, core.constexpr(functools.reduce(int.__mul__, sides, 1))

    def init_tensor(self, handle, type):  # noqa: A002  Triton's name
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = wrapped(tuple(type.shape) if type.is_block() else ())

    core.block_type.__init__, core.block_type.name = init_block, name
    core.tensor.__init__ = init_tensor


def _skip_unread_checks(semantic):
    """Each sum, difference and product of integers would be made again, in 64 bits, for an assertion of debug mode."""
    check = semantic.binary_op_sanitize_overflow_impl

    def check_in_debug_mode(self, *arguments):
        if self.builder.options.debug:
            check(self, *arguments)

    semantic.binary_op_sanitize_overflow_impl = check_in_debug_mode
