"""One description laid over another: ``extends``, and ``--set``, which is an overlay of a single value.

Mappings are merged key by key, everything else replaces, and null takes an inherited key away. Every node
keeps the place that wrote it, so a mistake is told where it was made, whichever file was opened first.
"""

from __future__ import annotations

from collections.abc import Sequence

from polymmu.description.fields import fields_of
from polymmu.description.mistakes import Place, Problems, did_you_mean, shown
from polymmu.description.model import MachineDescription
from polymmu.description.yaml_source import MAX_DEPTH, Mapping, Scalar, parse_yaml

__all__ = ["apply_set", "merge", "spelt_out"]


def spelt_out(tree: Mapping) -> Mapping:
    """A machine's ``tree`` with each word that is short for a mapping (``kernel: "3.0"``) written as that mapping."""
    items = dict(tree.items)
    for name, field in fields_of(MachineDescription).items():
        place, node = items.get(name, (tree.place, None))
        if "short_for" in field.metadata and isinstance(node, Scalar) and not node.is_null:
            items[name] = (place, Mapping(node.place, {field.metadata["short_for"]: (node.place, node)}))
    return Mapping(tree.place, items)


def merge(base: Mapping, over: Mapping, problems: Problems, path: str = "") -> Mapping:
    """``base`` with ``over`` laid over it."""
    items = dict(base.items)
    for key, (place, value) in over.items.items():
        below = items[key][1] if key in items else None
        if isinstance(value, Mapping):
            inherited = below if isinstance(below, Mapping) else Mapping(value.place, {})
            items[key] = (place, merge(inherited, value, problems, f"{path}{key}."))
        elif not (isinstance(value, Scalar) and value.is_null):
            items[key] = (place, value)
        elif below is not None:
            del items[key]
        else:
            hint = did_you_mean(key, items)
            problems.add(
                place, f"{path}{key}: no value, and nothing inherited that null could take away{hint}"
            )
    return Mapping(over.place, items)


def apply_set(tree: Mapping, sets: Sequence[str], problems: Problems) -> Mapping:
    """``tree`` with each ``key.path=value`` laid over it, in order; the values are YAML."""
    for text in sets:
        place = Place(f"--set {text if text.isprintable() else shown(text)}")
        path, equals, written = text.partition("=")
        keys = path.split(".")
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            problems.add(place, "expected key.path=value, such as tlbs.L2.entries=1024")
            continue
        value = parse_yaml(written, place.source, problems, whole=True)
        if value is None:
            problems.add(place, f"no value after '='; to take the key away write {path}=null")
            continue
        for key in reversed(keys):
            value = Mapping(place, {key: (place, value)})
        if isinstance(value, Mapping):
            tree = merge(tree, spelt_out(value), problems)
    return tree
