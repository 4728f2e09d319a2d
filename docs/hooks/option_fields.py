"""An extension of griffe: a field that is an option is documented by its help, and shown with its default."""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class OptionFields(Extension):
    """Reads the calls of `option` in the classes of settings."""

    def on_attribute_instance(self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any) -> None:
        """Takes help and default from `name: type = option(default, help="...")`."""
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Call):
            return
        if ast.unparse(value.func).endswith("_option"):
            # A function that several settings share: its name is no default.
            attr.value = None
        if ast.unparse(value.func) != "option":
            return
        given = {word.arg: word.value for word in value.keywords}
        attr.value = ast.unparse(value.args[0]) if value.args else None
        text = given.get("help")
        if isinstance(text, ast.Constant) and attr.docstring is None:
            attr.docstring = Docstring(str(text.value), parent=attr)
