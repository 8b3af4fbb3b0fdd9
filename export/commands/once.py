"""An option that takes one value is given once: click would keep the last and drop the others without a word. And `-` is no place."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class OnceCommand(TyperCommand):
    """Refuses options that are given twice, unless they are repeatable or flags, and outputs that would be files or folders called `-`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        if given.get("output") == "-":
            ctx.fail("'--output -': results that are files don't go to stdout; give a name (or ./- for a file called so)")
        for parameter in dict.fromkeys(order):
            count = order.count(parameter)
            if count > 1 and parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag):  # type: ignore[attr-defined]
                ctx.fail(
                    f"'{parameter.opts[-1]}' is given {count} times, and only the last would count; give it once, several values separated by commas where it takes them"
                )
        return super().parse_args(ctx, args)
