"""Files that are something else than expected: the error says what they are and what to do, in a length to be read."""

import codecs
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bsa_bench.errors import InputError, SuiteError
from bsa_bench.files import decode_text, why_no_file
from bsa_bench.inputs.captured import check_captured
from bsa_bench.inputs.clip import check_clip
from bsa_bench.limits.file import read_limits
from bsa_bench.store import read_run
from bsa_bench.suite import load_suite
from bsa_bench.workload import Workload

SHAPE = (1, 2, 8, 16)
HERE = Workload(tokens=8, heads=2, head_dim=16)
SUITE = 'title = "T"\nimplementations = ["bsa@gather"]\n[workload]\ntokens = 64\nheads = 1\nhead_dim = 16\n'


def refused(path):
    with pytest.raises(InputError) as caught:
        check_captured(path, HERE)
    assert len(str(caught.value)) < 1500 + 3 * len(str(path))
    return str(caught.value)


def old_torch(path):
    torch.save({"q": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("a.pt", lambda path: torch.save({"q": torch.zeros(1)}, path), "it is a file of torch.save (.pt)"),
        ("old.pt", old_torch, "it is a pickle, of an old torch.save perhaps (.pt)"),
        ("a.npz", lambda path: np.savez(path, q=np.zeros(1)), "it is an archive of NumPy (.npz)"),
        ("a.npy", lambda path: np.save(path, np.zeros(1)), "it is an array of NumPy (.npy)"),
        ("a.pkl", lambda path: path.write_bytes(pickle.dumps([1], protocol=4)), "it is a pickle"),
        ("a.gguf", lambda path: path.write_bytes(b"GGUF" + bytes(100)), "it is a GGUF file"),
        ("a.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "it is an HDF5 file"),
        ("lfs", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
        ("empty", lambda path: path.touch(), "it is an empty file"),
        ("a.json", lambda path: path.write_text('{"a": 1}'), "it is a JSON document"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_tensors_in_another_format_is_named_with_how_to_save_it(tmp_path, name, write, said):
    write(tmp_path / name)
    text = refused(tmp_path / name)
    assert said in text
    assert text.endswith('safetensors.torch.save_file({"q": q, "k": k, "v": v}, "qkv.safetensors")')


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_an_index_of_a_checkpoint_names_the_parts_that_hold_the_tensors(tmp_path, mark):
    parts = {f"layers.{i}.q": f"model-{i:05}-of-09000.safetensors" for i in range(9000)}
    file = tmp_path / "model.safetensors.index.json"
    file.write_bytes(mark + json.dumps({"weight_map": parts}).encode())
    text = refused(file)
    assert "it is the JSON index of a checkpoint in parts; the tensors are in model-00000-of-09000.safetensors" in text
    assert "and 8,997 more" in text


@pytest.mark.parametrize("layered", ["blocks.{i}.attn.{n}", "{n}_{i}", "layer{i}/to_{n}", "{i}.self_attn.{n}.out"])
def test_names_of_layers_are_answered_with_what_to_write(tmp_path, monkeypatch, layered):
    monkeypatch.chdir(tmp_path)
    tensors = {layered.format(i=i, n=n): torch.randn(SHAPE) for i in range(40) for n in "qkv"}
    save_file(tensors | {"lm_head.weight": torch.zeros(1)}, "model.safetensors")
    text = refused(tmp_path / "model.safetensors")
    assert "missing q, k, v" in text
    assert "there are q, k and v of 40 layers" in text
    code = text.partition("Write one of them: ")[2].replace("safetensors.torch.", "")
    exec(code, {"load_file": load_file, "save_file": save_file})
    check_captured(tmp_path / "layer.safetensors", HERE)


def test_a_file_of_thousands_of_other_tensors_lists_a_few(tmp_path):
    save_file({f"model.layers.{i}.mlp.{'x' * 300}": torch.zeros(1) for i in range(3000)}, tmp_path / "m.safetensors")
    assert "and 2,994 more" in refused(tmp_path / "m.safetensors")


def test_a_folder_is_called_a_folder_and_a_device_a_device(tmp_path):
    folder = tmp_path / "clips.toml"
    folder.mkdir()
    assert refused(folder) == f"captured: {folder} is a folder, expected a file"
    with pytest.raises(InputError, match=r"video: .*clips\.toml is a folder, expected a file"):
        check_clip(folder)
    with pytest.raises(SuiteError, match=r"suite: .*clips\.toml is a folder, expected a file"):
        load_suite(str(folder), device_kind="cpu")
    assert why_no_file(tmp_path / "gone") == f"no such file: {tmp_path / 'gone'}"
    assert why_no_file(tmp_path / ("n" * 300)).endswith("cannot be read: File name too long")
    assert why_no_file(folder.joinpath("/dev/null")) == "/dev/null is a device or a pipe, expected a file"


def test_a_mark_of_the_byte_order_is_read_and_utf_16_is_named(tmp_path):
    suite = tmp_path / "s.toml"
    suite.write_bytes(codecs.BOM_UTF8 + SUITE.replace("\n", "\r\n").encode())
    assert load_suite(str(suite), device_kind="cpu").title == "T"
    suite.write_text(SUITE, encoding="utf-16")
    with pytest.raises(SuiteError, match=r"s\.toml: not valid TOML: it is text in UTF-16 or UTF-32; save it as UTF-8"):
        load_suite(str(suite), device_kind="cpu")
    suite.write_bytes(b'title = "caf\xe9"\n')
    with pytest.raises(SuiteError, match=r"it is no text in UTF-8: byte 0xe9 at 12"):
        load_suite(str(suite), device_kind="cpu")
    assert decode_text(codecs.BOM_UTF8 + "ü".encode()) == "ü"


def test_a_mark_of_the_byte_order_is_read_in_results_and_limits(tmp_path):
    import report_factory as made

    run = made.write_run(tmp_path / "run", [made.measured()])
    lines = run / "results.jsonl"
    lines.write_bytes(codecs.BOM_UTF8 + lines.read_bytes())
    assert len(read_run(run).results) == 1
    limits = {"device_name": "NVIDIA H100", "date": "2026-01-01", "packages": {}, "limits": []}
    file = tmp_path / "limits.json"
    file.write_bytes(codecs.BOM_UTF8 + json.dumps(limits).encode())
    assert read_limits(file).device_name == "NVIDIA H100"
