"""Variables as what dictionaries can be keyed by, and back."""

from __future__ import annotations

from typing import Any


def vars_to_refs(vars: Any) -> Any:
    """The reference of a ``tf.Variable``; of a list of them, nested or not, a tuple."""
    return tuple(map(vars_to_refs, vars)) if isinstance(vars, list) else vars.ref()


def refs_to_vars(refs: Any) -> Any:
    """What ``vars_to_refs`` was given."""
    return list(map(refs_to_vars, refs)) if isinstance(refs, tuple) else refs.deref()
