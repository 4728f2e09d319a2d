"""An extension of griffe that documents option fields by their help and shows their defaults."""

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode


class OptionFields(Extension):
    """Reads calls of `option` in settings classes."""

    def on_attribute_instance(self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any) -> None:
        """Takes the help and the default from `name: type = option(default, help="...")`."""
        value = getattr(node, "value", None)
        if not isinstance(value, ast.Call):
            return
        if ast.unparse(value.func).endswith("_option"):
            # The call of a function that several settings share is not a default to show.
            attr.value = None
        if ast.unparse(value.func) != "option":
            return
        given = {word.arg: word.value for word in value.keywords}
        attr.value = ast.unparse(value.args[0]) if value.args else None
        text = given.get("help")
        if isinstance(text, ast.Constant) and attr.docstring is None:
            attr.docstring = Docstring(str(text.value), parent=attr)
