"""What Triton's interpreter computes again and again, computed once: a third of the time of the tests that it runs."""

import functools
import inspect


def remember():
    """Have the interpreter keep two answers that never change.

    Each call of a function from a kernel looks through all of `triton.language` for what it has to replace, which the
    launch has replaced already, and each operation builds the table of number formats.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    @functools.cache
    def builtins_of(package):
        return [(name, member) for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_builtin(package, *more):
        for name, member in builtins_of(package):
            if getattr(package, name) is member:  # else it is replaced
                interpreter._patch_attr(package, name, member, *more)

    look_up = interpreter._get_np_dtype
    of_number = functools.cache(look_up)

    def numpy_format(kind):
        scalar = kind.scalar
        return look_up(scalar) if scalar.is_ptr() else of_number(scalar)

    interpreter._patch_builtin = patch_builtin
    interpreter._get_np_dtype = numpy_format
