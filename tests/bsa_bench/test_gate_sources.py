import pytest

from bsa_bench.run.sources import sources_digest

CODE = '''
"""A kernel."""
import math

LIMIT = 4  # blocks


def attend(x, *, scale=1.0):
    """Attend."""
    # [M, D]
    return math.exp(x * scale)


class Plan:
    """A plan."""

    def size(self):
        """How many."""
        return LIMIT
'''
TABLE = "[attend]\ntile = 64  # measured\n"


@pytest.fixture
def package(tmp_path):
    """Write a package's files anew; returns the digest."""

    def write(code=CODE, table=TABLE, **files):
        (tmp_path / "block").mkdir(exist_ok=True)
        (tmp_path / "block" / "kernel.py").write_text(code)
        (tmp_path / "tiles.toml").write_text(table)
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return sources_digest(tmp_path)

    return write


@pytest.mark.parametrize(
    "code",
    [
        CODE.replace("# [M, D]", "# rows of a block: [M, D]"),
        CODE.replace("  # blocks", ""),
        CODE.replace('"""Attend."""', '"""Attend to the kept blocks.\n\n    Source: equation 3.\n    """'),
        CODE.replace('    """How many."""\n', ""),
        CODE.replace('"""A kernel."""', "") + "\n\n\n# the end\n",
        CODE.replace("x * scale", "(\n        x\n        * scale\n    )"),
        CODE.replace("return LIMIT", "return (LIMIT)"),
        CODE.replace("\n", "\r\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_move_the_digest(package, code):
    assert code != CODE
    assert package(code) == package()


@pytest.mark.parametrize(
    "code",
    [
        CODE.replace("LIMIT = 4", "LIMIT = 5"),
        CODE.replace("scale=1.0", "scale=2.0"),
        CODE.replace("x * scale", "scale * x"),
        CODE.replace("def attend", "def attended"),
        CODE.replace("return LIMIT", 'return "LIMIT"'),
        CODE.replace("import math\n", "import math\nimport torch\n"),
    ],
)
def test_code_moves_the_digest(package, code):
    assert package(code) != package()


def test_what_is_no_python_counts_byte_by_byte(package):
    digest = package()
    assert package(table=TABLE.replace("64", "128")) != digest
    assert package(table=TABLE.replace("  # measured", "")) != digest
    assert package() == digest


def test_a_file_more_a_file_less_and_another_name_move_the_digest(package, tmp_path):
    digest = package()
    assert package(other="") != digest
    (tmp_path / "other.py").unlink()
    assert package() == digest
    (tmp_path / "block" / "kernel.py").rename(tmp_path / "block" / "kernels.py")
    assert sources_digest(tmp_path) != digest


def test_what_an_interpreter_compiled_is_left_out(package, tmp_path):
    digest = package()
    for name in ("__pycache__/kernel.cpython-311.pyc", "block/__pycache__/x.py", "old.pyc"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0compiled")
    assert sources_digest(tmp_path) == digest


def test_another_extension_module_is_other_code(package, tmp_path):
    package()
    digests = []
    for content in (b"\0one", b"\0two"):
        (tmp_path / "fast.cpython-311.so").write_bytes(content)
        digests.append(sources_digest(tmp_path))
    assert digests[0] != digests[1]


def test_a_single_file_has_a_digest_too(tmp_path):
    path = tmp_path / "engine.py"
    digests = []
    for text in ("x = 1\n", "x = 1  # one\n", "x = 2\n"):
        path.write_text(text)
        digests.append(sources_digest(path))
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_of_that_name_above_the_package_leaves_nothing_out(tmp_path):
    digests = []
    for number in (1, 2):
        folder = tmp_path / "__pycache__" / "bsa_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.py").write_text(f"x = {number}\n")
        digests.append(sources_digest(folder))
    assert digests[0] != digests[1]


def test_sources_that_do_not_parse_are_an_error_that_names_the_file(package):
    with pytest.raises(SyntaxError) as error:
        package("def attend(:\n")
    assert error.value.filename.endswith("kernel.py")


def test_a_body_of_nothing_but_a_docstring_is_no_error(package):
    assert package('class Empty(Exception):\n    """Nothing."""\n') == package(
        'class Empty(Exception):\n    """No."""\n'
    )
    assert package('class Empty(Exception):\n    """Nothing."""\n') != package()
