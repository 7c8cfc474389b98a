"""Pages of made-up runs, and what is read back from one without a browser."""

import base64
import gzip
import json
import re
from pathlib import Path

import report_factory as made

from bsa_bench.report import write_reports
from bsa_bench.result import DeviceState, Status

HOSTILE = (
    "<img src=x onerror=window.hit=1>",
    "</script><script>window.hit=1</script>",
    "</style><svg onload=window.hit=1>",
    "\"' onmouseover='window.hit=1' <b>bold</b> &lt;i&gt;",
    "![x](http://hostile.example/x.png) [x](javascript:window.hit=1) <http://hostile.example>",
    "{{ 7 * 191 }} {% raw %}",
    "`</code><img src=x onerror=window.hit=1>`",
)
EVIL = " ".join(HOSTILE)


def page_of(tmp_path, *runs, name="page"):
    """Write the page of some run folders; return its path."""
    return write_reports(runs, tmp_path / name, formats=["html"]).page


def run_of(tmp_path, results, name="run", **fields):
    return made.write_run(tmp_path / name, results, **fields)


def data_of(page):
    """What the page's scripts work on."""
    (packed,) = re.findall(r'<script type="text/plain" id="data">([^<]*)</script>', Path(page).read_text())
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def shell_of(page):
    """The page without its libraries, its data and its scripts: what a run could have written into."""
    text = Path(page).read_text(encoding="utf-8")
    return re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", text, flags=re.DOTALL)


def hostile_run(tmp_path):
    """A run whose every free text tries to become markup."""
    good = made.measured(made.case(variant=EVIL, options=made.BsaOptions(kv_density=0.3)))
    work = good.work.model_copy(update={"counters": {EVIL: 1.0}, "plan_digest": EVIL})
    timing = good.timing.model_copy(update={"phases": {**good.timing.phases, EVIL: [0.1]}})
    good = good.model_copy(update={"work": work, "timing": timing, "case_id": EVIL, "backend": EVIL})
    path = made.InputSpec(kind="video", path=f"/{EVIL}")
    results = [
        made.measured(made.case("full@sdpa-flash")),
        good,
        made.measured(made.case("bsa@flex", input=path)),
        made.result(made.case("bsa@triton"), Status.CRASHED, reason=EVIL, traceback=EVIL),
    ]
    line = made.run_line(1).environment
    environment = line.model_copy(
        update={
            "device_name": EVIL,
            "packages": {EVIL: EVIL},
            "variables": {EVIL: EVIL},
            "device_details": {EVIL: EVIL},
        }
    )
    return run_of(
        tmp_path,
        made.renumber(results),
        name="hostile",
        run_id=EVIL,
        suite_title=EVIL,
        suite=EVIL,
        environment=environment,
        command=["bsa-bench", "run", "--suite", EVIL],
        unavailable={EVIL: EVIL},
    )


def five_processes():
    """Three implementations at two lengths, each in five processes."""
    results = []
    for name, median in (("full@sdpa-flash", 0.4), ("bsa@gather", 0.1), ("bsa@flex", 0.2)):
        for tokens in (1024, 4096):
            medians = [median * tokens / 1024 * (1 + 0.01 * i) for i in range(5)]
            results += made.repeated(made.case(name, tokens), medians=medians)
    return made.renumber(results)


def disturbed(results):
    state = DeviceState(other_cpu_share=0.4)
    return [r.model_copy(update={"state": state}) if r.status is Status.OK else r for r in results]
