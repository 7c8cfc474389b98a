"""The suite file: what its keys are, and how each is checked.

    title = "Quick look"                  # required
    description = "..."
    profile = "quick"                     # or "report": how long to warm up and to sample
    processes = 5                         # in which each case is measured; default: 1, of the profile "report" 5
    timer = "auto"                        # or host, and on a GPU event, device-span, graph (docs/measuring.md)
    cache = "cold"                        # or warm, both; a CPU is always warm
    implementations = ["full@sdpa-flash", "bsa@gather"]             # required
    passes = ["forward", "backward", "forward+backward"]            # default: all three
    time_limit_s = 600                    # of one case
    budget_s = 540                        # of the whole run; none by default
    order = "informative"                 # or "listed": what comes first under a budget

    [workload]     # model, (frames, height, width) or grid or tokens, vae, patch, batch, heads, head_dim, dtype
    [input]        # kind, clip, path, seed
    [bsa]          # options of the method bsa: block, query_keep, kv_density, ...; a table for each method
    [axes]         # any of those keys: a list or a range; axes are crossed
    [[zip]]        # any of those keys, lists of one length that advance together; crossed with the axes
    [[variant]]    # name, options of methods, paper, implementations, when: named settings
    [limit."full@sdpa-math"]    # max_tokens, passes, reason: what is left out, and why
    [cpu]          # every key above again (cpu.axes, cpu.workload, ...): laid over the file on a CPU
    [cuda]         # the same on a CUDA device

Every key of `[workload]` and `[input]` has one name in the whole file, so an axis needs no prefix. An option without
one, `kv_density`, reaches every method that has it; with one, `vsa.topk`, that method alone. How layers replace each
other is told in `bsa_bench.suite.layers`; the guide is docs/suites.md.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic import model_validator as after
from pydantic.fields import FieldInfo

from bsa_bench.catalog import options_by_method
from bsa_bench.errors import SuiteError
from bsa_bench.result import CacheChoice, Case, PaperClaim, PassName, TimerChoice
from bsa_bench.suite.suggest import explain
from bsa_bench.units import MAX_SECONDS
from bsa_bench.workload import PRESETS, DType, InputSpec, Tokens, Workload

DeviceKind = Literal["cpu", "cuda"]
Value = bool | int | float | str | tuple[int, ...] | None
ImplementationName = Annotated[str, *Case.model_fields["implementation"].metadata]
ModelT = TypeVar("ModelT", bound=BaseModel)
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
MAX_PROCESSES = 1000

VIDEO_KEYS = frozenset({"frames", "height", "width"})
LENGTH_KEYS = VIDEO_KEYS | {"grid", "tokens"}
MODEL_KEYS = frozenset({"heads", "head_dim", "vae", "patch"})
INPUT_NEEDS = {"clip": frozenset({"video"}), "path": frozenset({"video", "captured"})}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Table):
    """What an implementation is not asked to do in this suite; each case left out keeps `reason`."""

    max_tokens: Tokens | None = None
    passes: tuple[PassName, ...] | None = None
    reason: str | None = None

    @after(mode="after")
    def _limits(self) -> Limit:
        if self.max_tokens is None and self.passes is None:
            raise ValueError("expected max_tokens, passes or both")
        return self


class VariantTable(_Table):
    """A `[[variant]]` as read; a subclass has the options, beside these keys or in a table of their method's name."""

    name: Annotated[str, Field(min_length=1)]
    paper: PaperClaim | None = None
    implementations: tuple[ImplementationName, ...] | None = None
    when: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A named setting: the options that it gives replace the suite's, for every method that has them.

    `options` are by key, `kv_density` for every method that has it, `vsa.topk` for one. `implementations` restricts it
    to some of the suite's, `when` to workloads with one of the values given for a key (`tokens` is the computed number,
    however the length was given). `paper` goes to the forward+backward cases of the methods that its options reach.
    `keys` are the options that its file gives, which say whom it is about, whatever an override takes out of `options`.
    """

    name: str
    options: Mapping[str, Value]
    paper: PaperClaim | None
    implementations: tuple[str, ...] | None
    when: Mapping[str, Any]
    keys: frozenset[str]

    @classmethod
    def of(cls, table: VariantTable) -> Variant:
        """From a checked table."""
        options: dict[str, Value] = {}
        for key in sorted(table.model_fields_set - VariantTable.model_fields.keys()):
            value = getattr(table, key)
            if isinstance(value, BaseModel):
                options |= {f"{key}.{name}": inner for name, inner in given(value).items()}
            else:
                options[key] = value
        return cls(table.name, options, table.paper, table.implementations, table.when, frozenset(options))

    def reaches(self, method: str) -> bool:
        """Whether it is about a method: by one of its options, or because it gives none."""
        return not self.keys or any(
            name in vocabulary().sections[method].model_fields and owner in {"", method}
            for owner, name in map(split_option, self.keys)
        )


class Part(_Table):
    """The keys of a file, and again those of its `[cpu]` and `[cuda]` tables. Null: not given.

    What is read is a subclass with a table for each method, see `Vocabulary.part`.
    """

    TABLES: ClassVar[frozenset[str]] = frozenset()

    title: Annotated[str, Field(min_length=1)] | None = None
    description: str | None = None
    profile: Literal["quick", "report"] | None = None
    processes: Annotated[int, Field(gt=0, le=MAX_PROCESSES)] | None = None
    timer: TimerChoice | None = None
    cache: CacheChoice | None = None
    time_limit_s: Seconds | None = None
    budget_s: Seconds | None = None
    order: Literal["informative", "listed"] | None = None
    implementations: Annotated[tuple[ImplementationName, ...], Field(min_length=1)] | None = None
    passes: Annotated[tuple[PassName, ...], Field(min_length=1)] | None = None
    variant: tuple[Any, ...] | None = None
    limit: dict[str, Limit] = {}
    workload: dict[str, Any] = {}
    input: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    zip: tuple[dict[str, Any], ...] = ()


def _types(model: type[BaseModel]) -> dict[str, Any]:
    """The keys that a suite may give: all fields but the input, a table of its own, and what is read from its file."""
    fields = model.model_fields.items()
    return {key: field.rebuild_annotation() for key, field in fields if key not in {"input", "sha256"}}


def _table(name: str, fields: dict[str, Any], base: type[BaseModel] = _Table) -> type[BaseModel]:
    """A checked table whose keys are all optional."""
    return create_model(name, __base__=base, **_optional(fields))


def _optional(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of these types that need not be given."""
    return {key: (kind, None) for key, kind in fields.items()}


@dataclass(frozen=True)
class Vocabulary:
    """Every key that a suite may use: fixed ones, and the options of all methods.

    Args:
        types: the type of each key. An option is there as `bsa.kv_density`, and once more without its method unless a
            key of the workload or the input has that name.
        sections: the checked table of `[workload]`, of `[input]` and of each method that has options.
        methods: names of those methods.
        axes: the keys of `[axes]` and of a `[[zip]]`, as lists.
        when: the keys of a variant's condition, as lists.
        variant: a `[[variant]]`.
        part, file: a part of a file, and the whole, with a table for each method.
    """

    types: Mapping[str, Any]
    sections: Mapping[str, type[BaseModel]]
    methods: tuple[str, ...]
    axes: type[BaseModel]
    when: type[BaseModel]
    variant: type[VariantTable]
    part: type[Part]
    file: type[Part]

    @cached_property
    def options(self) -> frozenset[str]:
        """The names of options, with and without their method."""
        return frozenset(self.types) - _types(Workload).keys() - _types(InputSpec).keys()

    def is_whole(self, key: str) -> bool:
        """Whether a key holds an integer."""
        return int in _plain_kinds(self.types[key]) and not self.is_tuple(key)

    def is_real(self, key: str) -> bool:
        """Whether a key holds any number."""
        return float in _plain_kinds(self.types[key])

    def is_flag(self, key: str) -> bool:
        """Whether a key is true or false."""
        return bool in _plain_kinds(self.types[key])

    def is_tuple(self, key: str) -> bool:
        """Whether a key holds several integers, written `16x32x32` on a command line."""
        return tuple in _plain_kinds(self.types[key])

    def may_be_none(self, key: str) -> bool:
        """Whether an option can be "none"."""
        return key in self.options and type(None) in _plain_kinds(self.types[key])


def split_option(key: str) -> tuple[str, str]:
    """The method of an option and its name; an empty method for one that stands by itself."""
    method, _, name = key.rpartition(".")
    return method, name


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """Make the vocabulary of all methods that are installed; once for the process."""
    fixed = {"workload": _types(Workload), "input": _types(InputSpec)}
    plain = fixed["workload"] | fixed["input"]
    plain["model"] = Literal[tuple(PRESETS)]
    plain["dtype"] = Literal[("auto", *get_args(DType))]
    by_method = {method: _types(options) for method, options in options_by_method().items()}
    shared: dict[str, list[Any]] = {}
    for kinds in by_method.values():
        for key, kind in kinds.items():
            if key not in plain:
                found = shared.setdefault(key, [])
                found += [kind] if kind not in found else []
    bare = {key: _joined(kinds) for key, kinds in shared.items()}
    qualified = {f"{m}.{key}": kind for m, kinds in by_method.items() for key, kind in kinds.items()}
    types_ = plain | bare | qualified
    sections = {
        name: _table(name, {key: plain.get(key, kind) if name in fixed else kind for key, kind in kinds.items()})
        for name, kinds in (fixed | by_method).items()
    }
    lists = {key: Annotated[GenericAlias(tuple, (kind, ...)), Field(min_length=1)] for key, kind in types_.items()}
    tables: dict[str, Any] = {method: (dict[str, Any], {}) for method in by_method}
    part = create_model("Part", __base__=Part, **tables)
    part.TABLES = frozenset({*fixed, *by_method, "axes", "zip"})
    file = create_model("SuiteFile", __base__=part, **_optional({"cpu": part | None, "cuda": part | None}))
    return Vocabulary(
        types=types_,
        sections=sections,
        methods=tuple(by_method),
        axes=_table("axes", lists),
        when=_table("when", {key: lists[key] for key in plain}),
        variant=create_model(
            "Variant",
            __base__=VariantTable,
            **_optional(bare),
            **_optional({method: sections[method] | None for method in by_method}),
        ),
        part=part,
        file=file,
    )


def _joined(kinds: Sequence[Any]) -> Any:
    """The type of an option that several methods have: theirs, or null too where one of them may be that."""
    parts: list[Any] = []
    for kind in kinds:
        is_union = get_origin(kind) in {Union, types.UnionType}
        parts += [part for part in map(_plainly, get_args(kind) if is_union else (kind,)) if part not in parts]
    return parts[0] if len(parts) == 1 else Union[tuple(parts)]  # noqa: UP007


def _plainly(kind: Any) -> Any:
    """`Annotated[float, Field(gt=0)]` as `Annotated[float, Gt(0)]`, as pydantic writes it outside of a union."""
    if get_origin(kind) is not Annotated:
        return kind
    inner, *notes = get_args(kind)
    flat = [each for note in notes for each in (note.metadata if isinstance(note, FieldInfo) else [note])]
    return Annotated[(inner, *flat)] if flat else inner


def _plain_kinds(annotation: Any) -> set[Any]:
    """The classes that an annotation comes to: `Annotated[int, ...] | None` to int and NoneType."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain_kinds(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return {kind for inner in get_args(annotation) for kind in _plain_kinds(inner)}
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    return {origin or annotation}


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
    """Read `"none"` as null, which TOML lacks, for an option that may be that, wherever it stands."""
    if isinstance(raw, Mapping):
        return {name: nulls(value, name) for name, value in raw.items()}
    if isinstance(raw, list):
        return [nulls(value, key) for value in raw]
    return None if raw == "none" and key in _nullable() else raw


@lru_cache(maxsize=1)
def _nullable() -> frozenset[str]:
    words = vocabulary()
    return frozenset(key for key in words.types if words.may_be_none(key))


def flat_axes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `[axes]` or a `[[zip]]`, where `vsa.topk` without quotes is a table of the method's name in TOML."""
    methods = vocabulary().methods
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if key in methods and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def reach(keys: Iterable[str]) -> set[str]:
    """The keys, and of options among them those of single methods that they reach: `bsa.kv_density` of `kv_density`."""
    words = vocabulary()
    return {*keys} | {
        own for key in keys for method in words.methods if "." not in key and (own := f"{method}.{key}") in words.types
    }
