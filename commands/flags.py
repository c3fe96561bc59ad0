"""How a command reads its flags: more leniently than typer, and from the fields of a dataclass as well.

A field of a dataclass becomes a flag by its type and default, its help being in its metadata, and there as
"envvar" the variable of the environment that may give it. In `--help` the fields stand under the first
sentence of the dataclass's docstring, or from one field on under what its HEADINGS say:

    @dataclass
    class Settings:
        steps: int = field(default=10, metadata={"help": "how many"})
        top_k: Annotated[int, Option("--top_k", "-k", help="as typer has it")] = 10

transformers' `HfArgumentParser` would read the same dataclass, but its import alone takes three times as long
as `tpas train --help`.
"""

import dataclasses
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption


@dataclasses.dataclass(frozen=True)
class IfBare:
    """Annotates an option that may be given without a value; then it has this one."""

    value: str


def flags_of(function: Callable) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """What typer has to know of a function whose parameters may be dataclasses.

    Returns:
        its parameters, each dataclass replaced by its fields; and the dataclasses by the parameter's name.
    """
    parameters, groups = [], {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        groups[parameter.name] = kind
        heading, headings = (kind.__doc__ or "").partition(".")[0], getattr(kind, "HEADINGS", {})
        for field in dataclasses.fields(kind):
            option: Any = field.type
            said = field.metadata
            heading = headings.get(field.name, heading)
            if not hasattr(option, "__metadata__"):  # which typer's own annotation has
                option = Annotated[option, typer.Option(help=said.get("help"), envvar=said.get("envvar"))]
            option.__metadata__[0].rich_help_panel = heading
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(parameter.replace(name=field.name, annotation=option, default=default))
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters], groups


def values_if_bare(parameters: Sequence[inspect.Parameter]) -> dict[str, str]:
    """What the options that `IfBare` marks are worth without a value, by the names of the parameters."""
    marks = ((p.name, mark) for p in parameters for mark in getattr(p.annotation, "__metadata__", ()))
    return {name: mark.value for name, mark in marks if isinstance(mark, IfBare)}


class LenientCommand(TyperCommand):
    """A command whose flags are spelt with underscores, and read more leniently than typer does.

    `--data-root` is `--data_root`; `--weights 0.7 0.3` gives several values; a flag may be followed by True
    or False, and has a `--no_` only if it is on by default; an option that `IfBare` marks needs no value.
    """

    def __init__(self, name: str | None, **settings: Any):
        super().__init__(name, **settings)
        self.bare: dict[str, str] = getattr(self.callback, "bare", {})
        self.options: dict[str, TyperOption] = {}
        for option in self.params:
            if isinstance(option, TyperOption):
                option.opts = [underscored(flag) for flag in option.opts]
                option.secondary_opts = [
                    underscored(flag) for flag in option.secondary_opts if option.default
                ]
                self.options |= dict.fromkeys((*option.opts, *option.secondary_opts), option)

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:
        """Arguments, and the options under the headings of their dataclasses."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None) or f"{parameter.param_type_name.title()}s"
            if (lines := parameter.get_help_record(ctx)) is not None:
                sections.setdefault(heading, []).append(lines)
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._plain_words(args)))

    def _plain_words(self, words: Sequence[str]) -> Iterator[str]:
        """The words as typer reads them."""
        waiting = deque(words)
        while waiting:
            word = waiting.popleft()
            if word == "--":
                yield from (word, *waiting)
                return
            flag, equals, value = word.partition("=")
            option = self.options.get(underscored(flag))
            if option is None:
                yield word
                continue
            if equals:
                waiting.appendleft(value)
            if option.is_flag:
                on = underscored(flag) in option.opts
                if waiting and waiting[0].lower() in ("true", "false"):
                    on = on == (waiting.popleft().lower() == "true")
                if on or option.secondary_opts:
                    yield option.opts[0] if on else option.secondary_opts[0]
                continue
            bare, choices = self.bare.get(option.name), option.type_descriptor.choices or ()
            if bare is not None and not (waiting and waiting[0] in choices):
                waiting.appendleft(bare)
            yield from (option.opts[0], *([waiting.popleft()] if waiting else []))
            while option.multiple and not equals and waiting and not re.match(r"-\D", waiting[0]):
                yield from (option.opts[0], waiting.popleft())


def underscored(flag: str) -> str:
    """`--data_root` of `--data-root`; short flags as they are."""
    return flag[:2] + flag[2:].replace("-", "_")
