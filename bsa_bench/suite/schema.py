"""The suite file: what its keys are, and how each is checked.

    title = "Quick look"                  # required
    description = "..."
    profile = "quick"                     # or "report": how long to warm up and to sample
    implementations = ["full@sdpa-flash", "bsa@gather"]             # required
    passes = ["forward", "backward", "forward+backward"]            # default: all three
    time_limit_s = 600                    # of one case
    budget_s = 540                        # of the whole run; none by default
    order = "informative"                 # or "listed": what comes first under a budget

    [workload]     # model, (frames, height, width) or grid or tokens, vae, patch, batch, heads, head_dim, dtype
    [input]        # kind, clip, path, seed
    [bsa]          # block, query_block, query_keep, kv_density, query_rule, kv_rule, fill
    [axes]         # any of those keys: a list or a range; axes are crossed
    [[zip]]        # any of those keys, lists of one length that advance together; crossed with the axes
    [[variant]]    # name, options of [bsa], paper, implementations, when: named settings of the sparse method
    [limit."full@sdpa-math"]    # max_tokens, passes, reason: what is left out, and why
    [cpu]          # every key above again (cpu.axes, cpu.workload, ...): laid over the file on a CPU
    [cuda]         # the same on a CUDA device

Every key of `[workload]`, `[input]` and `[bsa]` has one name in the whole file, so an axis needs no prefix. How layers
replace each other is told in `bsa_bench.suite.layers`; the guide is docs/suites.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, create_model
from pydantic import model_validator as after

from bsa_bench.errors import SuiteError
from bsa_bench.result import BsaOptions, Case, PaperClaim, PassName
from bsa_bench.suite.suggest import explain
from bsa_bench.workload import PRESETS, DType, InputSpec, Workload

DeviceKind = Literal["cpu", "cuda"]
Value = int | float | str | tuple[int, int, int] | None
ImplementationName = Annotated[str, *Case.model_fields["implementation"].metadata]
ModelT = TypeVar("ModelT", bound=BaseModel)

VIDEO_KEYS = frozenset({"frames", "height", "width"})
LENGTH_KEYS = VIDEO_KEYS | {"grid", "tokens"}
MODEL_KEYS = frozenset({"heads", "head_dim", "vae", "patch"})
WHOLE_KEYS = VIDEO_KEYS | {"tokens", "batch", "heads", "head_dim", "seed"}
REAL_KEYS = frozenset({"query_keep", "kv_density"})
TRIPLE_KEYS = frozenset({"grid", "vae", "patch", "block", "query_block"})
INPUT_NEEDS = {"clip": frozenset({"video"}), "path": frozenset({"video", "captured"})}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Table):
    """What an implementation is not asked to do in this suite; each case left out keeps `reason`."""

    max_tokens: PositiveInt | None = None
    passes: tuple[PassName, ...] | None = None
    reason: str | None = None

    @after(mode="after")
    def _limits(self) -> Limit:
        if self.max_tokens is None and self.passes is None:
            raise ValueError("expected max_tokens, passes or both")
        return self


class Variant(BsaOptions):
    """A named setting of the sparse method: those options that it gives replace the suite's.

    `implementations` restricts it to some of the suite's, `when` to workloads with one of the values given for a key
    (`tokens` is the computed number, however the length was given). `paper` goes to its forward+backward cases.
    """

    name: Annotated[str, Field(min_length=1)]
    paper: PaperClaim | None = None
    implementations: tuple[ImplementationName, ...] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @property
    def options(self) -> dict[str, Value]:
        """The options that it gives."""
        return {key: getattr(self, key) for key in SECTIONS["bsa"].model_fields if key in self.model_fields_set}


class Part(_Table):
    """The keys of a file, and again those of its `[cpu]` and `[cuda]` tables. Null: not given."""

    title: Annotated[str, Field(min_length=1)] | None = None
    description: str | None = None
    profile: Literal["quick", "report"] | None = None
    time_limit_s: PositiveFloat | None = None
    budget_s: PositiveFloat | None = None
    order: Literal["informative", "listed"] | None = None
    implementations: Annotated[tuple[ImplementationName, ...], Field(min_length=1)] | None = None
    passes: Annotated[tuple[PassName, ...], Field(min_length=1)] | None = None
    variant: tuple[Variant, ...] | None = None
    limit: dict[str, Limit] = {}
    workload: dict[str, Any] = {}
    input: dict[str, Any] = {}
    bsa: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    zip: tuple[dict[str, Any], ...] = ()


class SuiteFile(Part):
    """A whole file."""

    cpu: Part | None = None
    cuda: Part | None = None


def _types(model: type[BaseModel]) -> dict[str, Any]:
    return {key: field.rebuild_annotation() for key, field in model.model_fields.items() if key != "input"}


TYPES: dict[str, Any] = _types(Workload) | _types(InputSpec) | _types(BsaOptions)
TYPES["model"] = Literal[tuple(PRESETS)]
TYPES["dtype"] = Literal[("auto", *get_args(DType))]


def _table(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    """A checked table whose keys are all optional."""
    return create_model(name, __base__=_Table, **fields)


SECTIONS: dict[str, type[BaseModel]] = {
    section: _table(section, {key: (TYPES[key], None) for key in _types(model)})
    for section, model in (("workload", Workload), ("input", InputSpec), ("bsa", BsaOptions))
}
_LISTS: dict[str, Any] = {
    key: (Annotated[GenericAlias(tuple, (kind, ...)), Field(min_length=1)], None) for key, kind in TYPES.items()
}
# The keys of [axes] and of a [[zip]]; those of a variant's `when`.
AXES = _table("axes", _LISTS)
WHEN = _table("when", {key: _LISTS[key] for key in TYPES if key not in _types(BsaOptions)})


def validate(model: type[ModelT], raw: object, *, source: str, prefix: str = "") -> ModelT:
    """Check strictly (no bool for an int, no text for a number) what a TOML file or the command line gave.

    Raises:
        SuiteError: with `source`, the key path from `prefix` on, the value and what was expected.
    """
    try:
        return model.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        raise SuiteError(explain(error, model, source=source, prefix=prefix)) from None


def given(model: BaseModel) -> dict[str, Any]:
    """The keys of a validated table that the file has, in its order of fields, with their values."""
    return {key: getattr(model, key) for key in type(model).model_fields if key in model.model_fields_set}


def nulls(raw: Any, key: str = "") -> Any:
    """Read `query_block = "none"` (the block itself) as null, which TOML lacks, wherever it stands."""
    if isinstance(raw, Mapping):
        return {name: nulls(value, name) for name, value in raw.items()}
    if isinstance(raw, list):
        return [nulls(value, key) for value in raw]
    return None if key == "query_block" and raw == "none" else raw
