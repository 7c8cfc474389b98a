"""Made-up runs and tables for tests of the named tables."""

from __future__ import annotations

import report_factory as made

from bsa_bench.methods.bsa import BsaOptions
from bsa_bench.report.named_tables import make_table
from bsa_bench.result import DeviceState, PaperClaim, Status

BSA, DENSE = "bsa@gather", "full@sdpa-flash"
SPREAD = (0.99, 0.995, 1.0, 1.005, 1.01)


def processes(of, median, *, spread=SPREAD, **fields):
    """An OK result for each of five processes around a median in seconds."""
    return made.repeated(of, medians=[median * each for each in spread], **fields)


def one_length(tokens=1024, passes="forward", *, dense=10.0, bsa=2.0, **fields):
    """Dense attention and BSA, in milliseconds."""
    of = made.case(BSA, tokens, passes, options=BsaOptions(), **fields)
    return [*processes(made.case(DENSE, tokens, passes, **fields), dense / 1e3), *processes(of, bsa / 1e3)]


def both_passes(tokens=1024, **fields):
    return [result for passes in ("forward", "forward+backward") for result in one_length(tokens, passes, **fields)]


def disturbed(results):
    return [result.model_copy(update={"state": DeviceState(other_cpu_share=0.4)}) for result in results]


def throttled(results):
    return [result.model_copy(update={"state": DeviceState(throttle_ns={"power": 5})}) for result in results]


def unverified(results):
    return [result.model_copy(update={"correctness": None}) for result in results]


def with_work(results, **counts):
    return [result.model_copy(update={"work": result.work.model_copy(update=counts)}) for result in results]


def on_gpu(name="NVIDIA H100 80GB HBM3", digest="h" * 12):
    """The run line's environment of a GPU; results need the same digest."""
    return made.run_line(0).environment.model_copy(update={"device_kind": "cuda", "device_name": name, "hash": digest})


def in_environment(results, digest):
    return [result.model_copy(update={"env_hash": digest}) for result in results]


def ablation_results(tokens=1024, passes="forward"):
    """Query only, KV only and both, five processes each, with the shares that the plans came to."""
    claim = PaperClaim(speedup=12.85, standing="N", source="a table at 23K")
    rows = {
        "both": (BsaOptions(kv_density=0.1, query_keep=0.5), 1.0, claim),
        "kv": (BsaOptions(kv_density=0.1, query_keep=1.0), 2.0, None),
        "query": (BsaOptions(kv_density=1.0, query_keep=0.5), 6.0, None),
    }
    results = processes(made.case(DENSE, tokens, passes), 0.010)
    for options, median, paper in rows.values():
        of = made.case(BSA, tokens, passes, options=options, paper=paper)
        counts = {"kv_density_realised": options.kv_density, "query_keep_realised": options.query_keep}
        results += with_work(processes(of, median / 1e3), **counts)
    return results


def table(tmp_path, name, *runs, **run_fields):
    """A table of runs, each a list of results or a pair of them and the fields of its run line."""
    folders = []
    for place, run in enumerate(runs):
        results, fields = run if isinstance(run, tuple) else (run, {})
        fields = {"run_id": f"run-{place}"} | run_fields | fields
        folders.append(made.write_run(tmp_path / f"run-{place}", made.renumber(results), **fields))
    return make_table(name, folders)


def cells(table_, *, group=0):
    """The printed cells of a group, a dictionary by column key for each row."""
    return [
        {column.key: cell.text(column) for column, cell in zip(table_.columns, row, strict=True)}
        for row in table_.groups[group].rows
    ]


def marks(table_, key, *, group=0):
    """The marks of a column by the first cell of each row."""
    place = [column.key for column in table_.columns].index(key)
    return {row[0].words: row[place].mark.value for row in table_.groups[group].rows}


def failed(of, status=Status.OOM, reason="out of memory at 7.9 GiB"):
    return made.result(of, status, reason=reason)
