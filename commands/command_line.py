"""What all commands share: how flags are read, how results and errors are shown, and with which exit code.

    app = CommandLine("tpas double", __doc__)

    @app.command()
    def double(number: Annotated[int, typer.Argument(help="to double")]) -> CommandResult:
        return CommandResult({"doubled": 2 * number}, f"twice {number} is {2 * number}")

    def main(argv: Sequence[str] | None = None) -> None:
        app.run(argv)

A command prints nothing itself. It returns its result, which goes to the standard output as text, or with
`--json` as one JSON document; whatever libraries print meanwhile goes to the standard error. One that stays
open returns an iterator of results, or asks for a `printer`: each is printed as it comes, as JSON on a line
of its own. Its heavy imports stand inside the function, so that help and shell completion answer at once.

What a terminal cannot show is written as `\\u4eba`, never given up. An error that the package raises is for
the user: one line. Any other is a mistake, of ours or of a library: it is called unforeseen, and its trace is
kept.
"""

import inspect
import io
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from tqdm import tqdm
from typer.core import TyperGroup

from ..data.whole_files import denial, is_denied
from .flags import LenientCommand, flags_of, values_if_bare

DONE, WRONG_USAGE, CHECK_FAILED, INTERRUPTED, OUTPUT_CLOSED = 0, 2, 3, 130, 141
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found mistakes, 130 interrupted, "
    "141 nobody read the output, 143 ended by SIGTERM, 129 by SIGHUP. Errors are one line; `--debug` or "
    "TPAS_DEBUG=1 shows their trace."
)
DEBUG_VARIABLE = "TPAS_DEBUG"
PACKAGE = Path(__file__).resolve().parents[1]
IN_A_REPORT = ("torch", "transformers", "numpy", "typer")  # whose versions it names, where they are loaded
_CALLS: list[tuple[TextIO, bool]] = []  # of commands that run: where to, and whether in JSON
IN_A_WORKER = "Original Traceback"  # what torch writes into the message of an error there
# What `accelerate launch` and torch's launcher tell the processes that they start.
LAUNCHERS_VARIABLES = ("ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID")
HEAD_START = 10.0  # seconds, in which a launcher notices that a process has ended


@dataclass(frozen=True)
class CommandResult:
    """The result of a command.

    Attributes:
        content: for `--json`, or a function that makes it where that takes a while.
        text: the same for people.
        exit_code: `CHECK_FAILED` where a check was asked for and found mistakes.
    """

    content: Any
    text: str
    exit_code: int = DONE

    def json(self, indent: int | None = 1) -> str:
        content = self.content() if callable(self.content) else self.content
        return json.dumps(content, indent=indent, default=str)


class WrongUsage(typer.TyperException):
    """Flags that do not go together."""

    exit_code = WRONG_USAGE
    ctx: typer.Context | None = None


class CommandLine(typer.Typer):
    """A command, or with several functions a group of them, as `typer` makes them.

    A parameter annotated with a dataclass stands for its fields, each of them a flag: see `flags.py`.
    """

    def __init__(
        self,
        program: str,
        about: str | None,
        log_format: str = "%(message)s",
        cls: type[TyperGroup] | None = None,
        add_completion: bool = False,
        epilog: str | None = None,
    ):
        super().__init__(
            cls=cls,
            help=_examples_unwrapped(about),
            epilog=epilog,
            rich_markup_mode=None,  # rich cuts long flags short on usual terminals
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["--help", "-h"]},
            add_completion=add_completion,
        )
        self.program = program
        self.about = about
        self.log_format = log_format

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Callable], Callable]:
        def register(function: Callable) -> Callable:
            about = _examples_unwrapped(function.__doc__ or self.about)
            own = {"cls": LenientCommand, "help": about} | settings
            super(CommandLine, self).command(name, **own)(self._with_flags(function))
            return function

        return register

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Does what the words of `argv` say, or those that the program was started with.

        Raises:
            SystemExit: it failed, or a check found mistakes.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        if any(name in os.environ for name in LAUNCHERS_VARIABLES):
            _end_with_the_launcher()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        command = typer.main.get_command(self)
        if isinstance(command, TyperGroup) and not words:
            words = ["--help"]
        try:
            with _one_line_errors(self.program, "--debug" in words or _debug_by_environment()):
                code = command.main(words, prog_name=self.program, standalone_mode=False)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)
            path = self.program if context is None else context.command_path
            _let_the_main_process_report_first()
            said = one_line(error.format_message()).removesuffix(".")
            said = re.sub(r"path '(.*)' is not readable", lambda match: denial(match[1]), said)
            message = f"{path}: {said} ({path} --help)"
            typer.echo(message, err=True)
            ending = SystemExit(message)  # for callers in Python
            ending.code = error.exit_code
            raise ending from None
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # by typer, where nobody reads the help
                _write_no_more()
                raise SystemExit(OUTPUT_CLOSED) from None
            raise
        if code:
            raise SystemExit(code)

    def _with_flags(self, function: Callable) -> Callable:
        """`function` as typer can call it: with a parameter for each flag, and its result is printed."""
        parameters, groups = flags_of(function)

        def call(
            context: typer.Context,
            as_json: Annotated[
                bool, typer.Option("--json", help="print the result as one JSON document")
            ] = False,
            debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
            **values: Any,
        ) -> None:
            debug = debug or _debug_by_environment() or context.find_root().params.get("debug", False)
            with _one_line_errors(context.command_path, debug, context):
                for name, kind in groups.items():
                    given = {field.name: values.pop(field.name) for field in fields(kind)}
                    try:
                        values[name] = kind(**given)
                    except ValueError as error:
                        raise WrongUsage(str(error)) from error
                _CALLS.append((sys.stdout, as_json))
                try:
                    with redirect_stdout(sys.stderr):
                        _show_log(self.log_format)
                        result = function(**values)
                finally:
                    _CALLS.pop()
                if isinstance(result, Iterator):
                    _print_as_they_come(result, as_json)
                    return
                if result is not None and is_main_process():
                    typer.echo(result.json() if as_json else result.text, file=sys.stdout)
            if result is not None and result.exit_code:
                raise typer.Exit(result.exit_code)

        # What typer reads of a function.
        parameters += [flag for flag in flags_of(call)[0] if flag.name != "values"]
        call.__name__ = function.__name__
        call.__signature__ = inspect.Signature(parameters)
        call.__annotations__ = {flag.name: flag.annotation for flag in parameters}
        call.bare = values_if_bare(parameters)
        return call


def _print_as_they_come(results: Iterator[CommandResult], as_json: bool) -> None:
    while True:
        with redirect_stdout(sys.stderr):
            result = next(results, None)
        if result is None:
            return
        shown = result.json(indent=None) if as_json else result.text
        if shown:
            typer.echo(shown, file=sys.stdout)


def printer() -> Callable[[CommandResult], None]:
    """For a command that goes on until it is stopped: prints results as those of an iterator are, at any time
    and from any thread. To be asked for within the command."""
    stream, as_json = _CALLS[-1]

    def show(result: CommandResult) -> None:
        typer.echo(result.json(indent=None) if as_json else result.text, file=stream)

    return show


class _AboveProgressBars(logging.Handler):
    """Writes to what is the standard error by then, without tearing a bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _show_log(log_format: str) -> None:
    """Shows what this package logs; libraries show their own."""
    handler = _AboveProgressBars()
    handler.setFormatter(logging.Formatter(log_format))
    log = logging.getLogger("tpas")
    log.setLevel(logging.INFO if is_main_process() else logging.ERROR)
    log.handlers = [handler]


def is_main_process() -> bool:
    """Whether this is the only process, or of those that `accelerate launch` started the one that reports."""
    accelerate = sys.modules.get("accelerate")  # not imported for this
    if accelerate is not None and accelerate.PartialState._shared_state:
        return accelerate.PartialState().is_main_process
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def shown_warnings(program: str, **flags: str) -> Iterator[None]:
    """Logs what libraries warn of, a line each, and the flag that is the way out by a word that names it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            for message in dict.fromkeys(one_line(str(warning.message)) for warning in caught):
                ways_out = "".join(f" ({flag})" for word, flag in flags.items() if word in message)
                logging.getLogger(__name__).warning("%s: warning: %s%s", program, message, ways_out)


def one_line(message: str) -> str:
    return " ".join(message.split())


def _examples_unwrapped(text: str | None) -> str:
    """With a backspace before each indented paragraph, a command: click then leaves it as it is."""
    text = inspect.cleandoc(text or "")
    text = re.sub(r"\n\n(?=tpas )", "\n\n    ", text)  # cleaned too well, where nothing else follows
    return re.sub(r"\n\n(?= {4})", "\n\n\b\n", text)


def _debug_by_environment() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


@contextmanager
def _one_line_errors(path: str, debug: bool, context: typer.Context | None = None) -> Iterator[None]:
    try:
        yield
    except (typer.TyperException, typer.Exit) as error:
        if isinstance(error, WrongUsage) and error.ctx is None:
            error.ctx = context
        raise
    except BrokenPipeError:
        _write_no_more()
        raise SystemExit(OUTPUT_CLOSED) from None
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        typer.echo(f"{path}: {str(interrupt) or 'interrupted'}", err=True)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            raise
        _let_the_main_process_report_first()
        raise SystemExit(f"{path}: {_explained(error)}") from error


def _end_with_the_launcher() -> None:
    """Sends this process a SIGTERM when its parent has ended.

    `accelerate launch` waits for one process without passing signals on: a SIGTERM ends the launcher alone.
    """

    def watch(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(os.getppid(),), name="launcher", daemon=True).start()


def _write_no_more() -> None:
    """What is buffered goes nowhere, rather than into a second error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or no file
            os.dup2(nowhere, stream.fileno())


def _explained(error: Exception) -> str:
    message = one_line(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"out of memory: {message or 'no more can be had'}"
    if isinstance(error, PermissionError) and error.filename and is_denied(Path(error.filename)):
        return one_line(denial(error.filename))
    if isinstance(error, OSError | ImportError) and message:
        return message
    file, statement = _raised_at(error)
    ours = PACKAGE in Path(file).parents and "site-packages" not in Path(file).relative_to(PACKAGE).parts
    never_meant = isinstance(error, AssertionError | AttributeError | NotImplementedError)
    if ours and statement.startswith("raise ") and message and not never_meant:
        if isinstance(error, KeyError):  # which would quote it
            return one_line(str(error.args[0]))
        return str(error).strip().splitlines()[-1].partition(": ")[2] if IN_A_WORKER in message else message
    return f"unforeseen {type(error).__name__}: {message} ({_kept_trace(error)}; {_where_to_report()})"


def _raised_at(error: Exception) -> tuple[str, str]:
    """File and line of code where an error was raised first; of one in a worker of torch's, as it says."""
    if IN_A_WORKER in str(error):
        frames = re.findall(r'File "([^"]+)", line \d+, in .*\n\s*(.*)', str(error))
        return frames[-1] if frames else ("", "")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return frame.filename, frame.line or ""


def _kept_trace(error: Exception) -> str:
    """Writes the trace into a new file that only its owner reads, and says where."""
    loaded = [name for name in IN_A_REPORT if name in sys.modules]
    about = [f"tpas {_metadata().get('Version')}, Python {platform.python_version()}, {platform.platform()}"]
    about += [f"{name} {getattr(sys.modules[name], '__version__', '')}" for name in loaded]
    try:
        handle, path = tempfile.mkstemp(prefix="tpas-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join([*about, "", *traceback.format_exception(error)]))
    except OSError:
        return "--debug shows its trace"
    return f"its trace is in {path}"


def _where_to_report() -> str:
    """The address under `Issues` in pyproject.toml, where there is one."""
    addresses = dict(line.split(", ", 1) for line in _metadata().get_all("Project-URL") or ())
    return f"please report it at {addresses['Issues']}" if "Issues" in addresses else "please report it"


def _metadata() -> Any:
    """What pyproject.toml says of the package."""
    try:
        return metadata("tpas")
    except PackageNotFoundError:
        return Message()


def _let_the_main_process_report_first() -> None:
    """Where that has failed as well, its launcher ends this one meanwhile: one message, not many."""
    if not is_main_process():
        time.sleep(HEAD_START)
