"""What other tools call an axis, a pass and a dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bsa_bench.imports.reading import clean
from bsa_bench.imports.record import PublishedAxes
from bsa_bench.result import PassName

PASS_WORDS: dict[str, PassName] = {
    "fwd": "forward",
    "forward": "forward",
    "fwdnograd": "forward",
    "bwd": "backward",
    "backward": "backward",
    "fwdbwd": "forward+backward",
    "forwardbackward": "forward+backward",
}
MASK_WORDS = {"nomask": "none", "none": "none", "noop": "none", "full": "none", "causal": "causal"}
DTYPE_WORDS = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
#: Letters of the names that people give their axes, without case, `_` and `-`.
AXIS_WORDS: dict[str, tuple[str, ...]] = {
    "length": ("length", "tokens", "numtokens", "seqlen", "seqlenq", "qseqlen", "sequencelength", "nctx"),
    "length_kv": ("lengthkv", "tokenskv", "seqlenkv", "kvseqlen", "nctxkv"),
    "batch": ("batch", "batchsize"),
    "heads": ("heads", "numheads", "nheads", "numqheads", "numqoheads", "headsq"),
    "heads_kv": ("headskv", "kvheads", "numkvheads", "numheadskv"),
    "head_dim": ("headdim", "headsize", "dhead", "headdimqk"),
    "dtype": ("dtype", "datatype"),
    "passes": ("pass", "passes", "mode", "direction"),
    "density": ("density",),
    "mask": ("mask", "attnmask", "masktype"),
}
_FIELDS = {word: name for name, words in AXIS_WORDS.items() for word in words}


def letters(text: str) -> str:
    """`Seq_Len-Q` as `seqlenq`."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def dtype_name(text: str) -> str:
    """`bf16` and `torch.bfloat16` as `bfloat16`; a name that torch lacks as it is."""
    bare = text.strip().removeprefix("torch.")
    return DTYPE_WORDS.get(bare, bare)


def free_axes(values: Mapping[str, Any], **known: Any) -> PublishedAxes:
    """Sort axes that people named themselves; one that means nothing here, or has no such value, goes to `other`.

    Args:
        values: by name; a number may be its text.
        known: fields that are known otherwise; they are not overwritten.
    """
    fields: dict[str, Any] = dict(known)
    other: dict[str, str] = dict(fields.pop("other", {}))
    for name, value in values.items():
        place = _FIELDS.get(letters(name))
        understood = _understood(place, value) if place else None
        if letters(name) in {"causal", "iscausal"} and str(value).lower() in {"true", "1"}:
            place, understood = "mask", "causal"
        if place is None or understood is None or place in fields:
            text = clean(str(value))
            if value is not None and text:
                other[clean(name)] = text
        else:
            fields[place] = understood
    return PublishedAxes(**fields, other=other)


def _understood(place: str, value: Any) -> str | int | float | None:
    """The value as its field has it; None where it is nothing that the field can hold."""
    text = clean(str(value))
    if isinstance(value, bool) or not text:
        return None
    match place:
        case "passes":
            return PASS_WORDS.get(letters(text))
        case "mask":
            return MASK_WORDS.get(letters(text), text)
        case "dtype":
            return dtype_name(text)
    try:
        number = float(text)
    except ValueError:
        return None
    if place == "density":
        return number if 0 < number <= 1 else None
    return int(number) if number > 0 and number.is_integer() else None
