"""An extension of griffe that documents option fields by their help and shows their defaults."""

import ast
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class OptionFields(Extension):
    """Reads the fields that `option`, or a function that several settings share, has made."""

    def on_attribute_instance(self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any) -> None:
        """Takes the help and the default from the field itself; the source has only an expression for them."""
        field = _field_of(attr) if isinstance(getattr(node, "value", None), ast.Call) else None
        if field is None or "help" not in field.metadata:
            return
        attr.value = None if field.default is MISSING else repr(field.default)
        if attr.docstring is None:
            attr.docstring = Docstring(field.metadata["help"], parent=attr)


def _field_of(attr: Attribute) -> Field | None:
    """Returns the dataclass field that an attribute is, `None` if it is something else."""
    if attr.parent is None or not attr.parent.is_class:
        return None
    owner = getattr(import_module(attr.parent.module.path), attr.parent.name, None)
    if not is_dataclass(owner):
        return None
    return next((field for field in fields(owner) if field.name == attr.name), None)
