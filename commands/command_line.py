"""What all commands share: how flags are read, how results and errors are told, and with which exit code.

    app = CommandLine("tpas double", __doc__)

    @app.command()
    def double(number: Annotated[int, typer.Argument(help="to double")]) -> CommandResult:
        return CommandResult({"doubled": 2 * number}, f"twice {number} is {2 * number}")

    def main(argv: Sequence[str] | None = None) -> None:
        app.run(argv)

A command prints nothing itself. It returns what it has to tell, which goes to the standard output as text, or
with `--json` as one JSON document; whatever libraries print meanwhile goes to the standard error. Its heavy
imports stand inside the function, so that help and shell completion answer at once.
"""

import dataclasses
import gc
import inspect
import json
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from tqdm import tqdm
from typer.core import TyperCommand, TyperGroup, TyperOption

DONE, FAILED, WRONG_USAGE, FOUND_WANTING, INTERRUPTED, NOBODY_READS = 0, 1, 2, 3, 130, 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found mistakes, 130 interrupted, "
    "141 nobody read the output, 143 ended by SIGTERM. Errors are one line; `--debug` or TPAS_DEBUG=1 shows "
    "their trace."
)
DEBUG_VARIABLE = "TPAS_DEBUG"
HEAD_START = 10.0  # seconds, in which a launcher notices that a process has ended


@dataclass(frozen=True)
class CommandResult:
    """What a command has to tell.

    Attributes:
        content: for `--json`, or a function that makes it where that takes a while.
        text: the same for people.
        exit_code: `FOUND_WANTING` where a check was asked for and failed.
    """

    content: Any
    text: str
    exit_code: int = DONE

    def json(self) -> str:
        content = self.content() if callable(self.content) else self.content
        return json.dumps(content, indent=1, default=str)


@dataclass(frozen=True)
class IfBare:
    """Annotates an option that may be given without a value; then it has this one."""

    value: str


class WrongUsage(typer.TyperException):
    """Flags that do not go together."""

    exit_code = WRONG_USAGE


class CommandLine(typer.Typer):
    """A command, or with several functions a group of them, as `typer` makes them.

    A parameter annotated with a dataclass stands for its fields, each one a flag as the field's metadata
    say ("help", "choices"). Every flag is spelt with underscores; hyphens are understood as well.
    """

    def __init__(self, program: str, about: str, log_format: str = "%(message)s", **settings: Any):
        super().__init__(
            help=_examples_unwrapped(about),
            epilog=EXIT_CODES,
            rich_markup_mode=None,  # rich cuts long flags short on usual terminals
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["--help", "-h"]},
            **{"add_completion": False} | settings,
        )
        self.program = program
        self.about = about
        self.log_format = log_format

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Callable], Callable]:
        def register(function: Callable) -> Callable:
            about = _examples_unwrapped(function.__doc__ or self.about)
            own = {"cls": Command, "help": about, "epilog": EXIT_CODES} | settings
            super(CommandLine, self).command(name, **own)(self._with_flags(function))
            return function

        return register

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Does what the words of `argv` say, or those that the program was started with.

        Raises:
            SystemExit: it failed, or found something wanting.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        command = typer.main.get_command(self)
        if isinstance(command, TyperGroup) and not words:
            words = ["--help"]
        try:
            code = command.main(words, prog_name=self.program, standalone_mode=False)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            path = self.program if context is None else context.command_path
            _let_the_main_process_speak_first()
            message = f"{path}: {one_line(error.format_message()).removesuffix('.')} ({path} --help)"
            typer.echo(message, err=True)
            ending = SystemExit(message)  # for callers in Python
            ending.code = error.exit_code
            raise ending from None
        if code:
            raise SystemExit(code)

    def _with_flags(self, function: Callable) -> Callable:
        """`function` as typer can call it: flat, with `--json` and `--debug`, reporting what it returns."""
        parameters, groups, bare = [], {}, {}
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if dataclasses.is_dataclass(parameter.annotation):
                groups[parameter.name] = parameter.annotation
                parameters += map(_parameter_of_field, dataclasses.fields(parameter.annotation))
            else:
                parameters.append(_underscored(parameter))
                metadata = getattr(parameter.annotation, "__metadata__", ())
                bare |= {f"--{parameter.name}": mark.value for mark in metadata if isinstance(mark, IfBare)}

        def call(context: typer.Context, as_json: bool, debug: bool, **values: Any) -> None:
            debug = debug or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
            debug = debug or context.find_root().params.get("debug", False)
            for name, kind in groups.items():
                fields = {field.name: values.pop(field.name) for field in dataclasses.fields(kind)}
                try:
                    values[name] = kind(**fields)
                except ValueError as error:
                    raise _wrong_usage(error, context) from error
            with _one_line_errors(context, debug):
                with redirect_stdout(sys.stderr):
                    _show_log(self.log_format)
                    result = function(**values)
                if result is not None and is_main_process():
                    typer.echo(result.json() if as_json else result.text)
            if result is not None and result.exit_code:
                raise typer.Exit(result.exit_code)

        own = (
            (
                "as_json",
                Annotated[bool, typer.Option("--json", help="print the result as one JSON document")],
            ),
            ("debug", Annotated[bool, typer.Option("--debug", help="show the trace of an error")]),
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [parameter.replace(kind=keyword) for parameter in parameters]
        parameters += [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in own]
        parameters.append(inspect.Parameter("context", keyword, annotation=typer.Context))
        call.__signature__ = inspect.Signature(parameters)
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        call.__name__ = function.__name__
        call.bare = bare
        return call


class Command(TyperCommand):
    """Reads flags more leniently than click.

    `--data-root` is `--data_root`; `--weights 0.7 0.3` gives several values; a flag may be followed by True
    or False; and an option that `IfBare` marks may be given without a value.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._plain_words(args)))

    def _plain_words(self, words: Sequence[str]) -> Iterator[str]:
        options = {
            flag: option
            for option in self.params
            if isinstance(option, TyperOption)
            for flag in (*option.opts, *option.secondary_opts)
        }
        waiting = deque(words)
        while waiting:
            word = waiting.popleft()
            if word == "--":
                yield from (word, *waiting)
                return
            flag, equals, value = word.partition("=")
            flag = flag[:2] + flag[2:].replace("-", "_")
            option = options.get(flag)
            if option is None:
                yield word
                continue
            if equals:
                waiting.appendleft(value)
            if option.is_flag:
                on = flag in option.opts
                if waiting and waiting[0].lower() in ("true", "false"):
                    on = on == (waiting.popleft().lower() == "true")
                if on or option.secondary_opts:
                    yield option.opts[0] if on else option.secondary_opts[0]
            elif option.multiple and waiting and not equals:
                while True:
                    yield from (flag, waiting.popleft())
                    if not waiting or re.match(r"-\D", waiting[0]):
                        break
            elif flag in self.callback.bare and (
                not waiting or waiting[0] not in option.type_descriptor.choices
            ):
                yield from (flag, self.callback.bare[flag])
            else:
                yield flag
                if waiting:
                    yield waiting.popleft()


class _AboveProgressBars(logging.Handler):
    """Writes to what is the standard error by then, without tearing a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _show_log(log_format: str) -> None:
    """Shows what this package logs; libraries show their own."""
    log = logging.getLogger("tpas")
    log.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    for handler in list(log.handlers):
        log.removeHandler(handler)
    handler = _AboveProgressBars()
    handler.setFormatter(logging.Formatter(log_format))
    log.addHandler(handler)


def is_main_process() -> bool:
    """Whether this is the only process, or of those that `accelerate launch` started the one that reports."""
    accelerate = sys.modules.get("accelerate")  # not imported for this
    if accelerate is not None and accelerate.PartialState._shared_state:
        return accelerate.PartialState().is_main_process
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def quick_imports() -> Iterator[None]:
    """For the first imports of torch and transformers, all of whose objects stay to the end.

    Looking through them for garbage, meanwhile and once more at the exit, takes a third of a short command.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def one_line(message: str) -> str:
    return " ".join(message.split())


def _examples_unwrapped(text: str) -> str:
    """Tells click by a backspace character to leave indented paragraphs, which are commands, as they are."""
    text = inspect.cleandoc(text)
    text = re.sub(r"\n\n(?=tpas )", "\n\n    ", text)  # cleaned too well, where nothing else follows
    return re.sub(r"\n\n(?= {4})", "\n\n\b\n", text)


def _parameter_of_field(field: dataclasses.Field) -> inspect.Parameter:
    kind = field.type
    if "choices" in field.metadata:
        kind = Literal[tuple(field.metadata["choices"])]
        kind = kind if field.default is not None else kind | None
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    flags = f"--{field.name}/--no_{field.name}" if default is True else f"--{field.name}"
    option = typer.Option(flags, help=field.metadata.get("help"))
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _underscored(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter with its own name as its flag, where typer would write hyphens."""
    if get_origin(parameter.annotation) is Annotated:
        for mark in get_args(parameter.annotation)[1:]:
            if isinstance(mark, typer.models.OptionInfo) and mark.default is ... and not mark.param_decls:
                mark.param_decls = (f"--{parameter.name}",)
    return parameter


def _wrong_usage(error: Exception, context: typer.Context) -> WrongUsage:
    usage = WrongUsage(str(error))
    usage.ctx = context
    return usage


@contextmanager
def _one_line_errors(context: typer.Context, debug: bool) -> Iterator[None]:
    try:
        yield
    except WrongUsage as error:
        raise _wrong_usage(error, context) from None
    except BrokenPipeError:
        # The rest of what is buffered goes nowhere, rather than into a second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(NOBODY_READS) from None
    except KeyboardInterrupt as interrupt:
        typer.echo(f"{context.command_path}: {str(interrupt) or 'interrupted'}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        _let_the_main_process_speak_first()
        raise SystemExit(f"{context.command_path}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    if isinstance(error, KeyError) and len(error.args) == 1:  # which would quote it
        return one_line(str(error.args[0]))
    expected = isinstance(error, OSError | ValueError | ImportError | RuntimeError | ArithmeticError)
    if expected and str(error):
        return one_line(str(error))
    return one_line(f"{type(error).__name__}: {error} (--debug shows where)")


def _let_the_main_process_speak_first() -> None:
    """Where that has failed as well, its launcher ends this one meanwhile: one message, not many."""
    if not is_main_process():
        time.sleep(HEAD_START)
