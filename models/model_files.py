"""What the files of a model say of themselves before anything is built, and which of them is damaged.

A configuration of a few hundred bytes can describe a model of a terabyte. What is missing in the weights
would be drawn at random, in memory, before anybody could say that it is missing.
"""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..configuration_tpas import check_sizes
from ..data.json_records import read_json
from ..modeling_tpas import COMPUTED_BUFFERS

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PACKAGE = Path(__file__).resolve().parents[1]
# Of numbers that a network multiplies; what is packed into integers has a `quantization_config`.
FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
COUNTERS = re.compile(rf"{COMPUTED_BUFFERS}|(^|\.)num_batches_tracked$")
# A fine-tuning may start from a checkpoint without some of a model's parts.
SETTINGS = (
    *("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("adapter_config.json", "base_model.json"),
)
SHOWN_LETTERS = 200  # of a library's message
TIMES_LARGER, NUMBERS_MORE = 2, 2**24


@contextmanager
def explained_damage(name: str | Path, files: str) -> Iterator[None]:
    """Says of what a library raises over damaged files which of them these are, and the way out.

    Args:
        name: of the model.
        files: that are read, for the message.

    Raises:
        ValueError: for anything but what this package raises itself, a model that is not there, a package
            that is not installed, and too little memory.
    """
    check_settings(Path(name))
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = where.is_relative_to(PACKAGE) and "site-packages" not in where.relative_to(PACKAGE).parts
        not_there = isinstance(error, OSError) and str(name) in str(error)
        if not_there or "OutOfMemory" in type(error).__name__:
            raise
        if ours and isinstance(error, ValueError | OSError):
            if str(name) in str(error) or isinstance(error, OSError):
                raise
            raise ValueError(f"{name}: {error}") from error
        said = " ".join(str(error).split())
        said = said if len(said) <= SHOWN_LETTERS else f"{said[:SHOWN_LETTERS]}..."
        raise ValueError(
            f"{name} cannot be loaded ({type(error).__name__}: {said}): of its {files} one is damaged, or of "
            "a version that this one does not read; get them again"
        ) from error


def check_settings(folder: Path) -> None:
    """Raises ValueError for a file of settings in a model's folder that is no JSON object."""
    for path in (folder / name for name in SETTINGS):
        if not path.is_file():
            continue
        try:
            content = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; get the file again") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: damaged, no JSON object; get the file again")


def check_before_building(network_class: Any, name: str | Path, **source: Any) -> None:
    """Compares a folder's configuration with its weights, without building or reading either.

    Of a name on the Hub, whose files are not here yet, the configuration alone is looked at.

    Args:
        network_class: of transformers, or one of its automatic ones.
        source: `revision`, `trust_remote_code`.

    Raises:
        OSError: there is no configuration.
        ValueError: a number in the configuration, a type of the weights or the size of the model is none that
            can be; or a weights file is damaged.
    """
    from transformers import AutoConfig, PretrainedConfig

    source = {key: value for key, value in source.items() if key in ("revision", "trust_remote_code")}
    settings = PretrainedConfig.get_config_dict(str(name), **source)[0]
    check_sizes(settings, f"{name}, config.json")
    folder = Path(name)
    if not folder.is_dir() or "quantization_config" in settings:
        return
    numbers = numbers_in(folder)
    if source.get("trust_remote_code"):
        return  # whose code builds what it likes
    of_its_own = getattr(network_class, "config_class", None)
    with torch.device("meta"):
        if of_its_own is not None:
            network = network_class(of_its_own.from_pretrained(name))
        else:
            network = network_class.from_config(AutoConfig.from_pretrained(name, trust_remote_code=False))
    check_numbers(network, numbers, f"{name}: its config.json", "its weights are")


def check_numbers(network: torch.nn.Module, numbers: int, whose: str, weights: str) -> None:
    """Raises ValueError for a network, on the meta device, of many more numbers than its weights have."""
    described = sum(parameter.numel() for parameter in network.parameters())
    if described > TIMES_LARGER * numbers + NUMBERS_MORE:
        raise ValueError(
            f"{whose} describes a model of {described:,} numbers, and {weights} {numbers:,}: one of the two "
            "is of another model"
        )


def weights_files(folder: Path) -> list[str]:
    """The names of the files that transformers takes a model's weights from, index and all; of none, none.

    Raises:
        ValueError: an index of shards is none, or names what is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        return sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    try:
        content = read_json(folder / WEIGHTS_INDEX)
        shards = sorted(set(content["weight_map"].values()))
        strange = next((name for name in shards if Path(name).name != name), None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS_INDEX}: no index of weights ({error!r}); get it again"
        ) from error
    if strange is not None:
        raise ValueError(f"{folder / WEIGHTS_INDEX}: names {strange!r}, which is no file beside it")
    if absent := next((name for name in shards if not (folder / name).is_file()), None):
        raise ValueError(f"{folder / WEIGHTS_INDEX}: names {absent}, which is not there; get it again")
    return [WEIGHTS_INDEX, *shards]


def numbers_in(folder: Path) -> int:
    """How many numbers the weights of a folder are, by their headers; of pickled ones at most so many.

    Raises:
        ValueError: a file is damaged, or holds what are no floating-point numbers; names it.
    """
    numbers = 0
    for path in (folder / name for name in weights_files(folder)):
        if path.suffix == ".safetensors":
            numbers += _numbers_in_file(path)
        elif path.suffix == ".bin":
            numbers += path.stat().st_size
    return numbers


def _numbers_in_file(path: Path) -> int:
    numbers = 0
    try:
        with safe_open(path, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping, only its method)
                entry = tensors.get_slice(key)
                check_type(str(entry.get_dtype()), key, path)
                numbers += torch.Size(entry.get_shape()).numel()
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); get the file again") from error
    return numbers


def check_type(kind: str, key: str, path: str | Path) -> None:
    """Raises ValueError for a weight whose type is none of [`FLOATING`], or of torch's floating ones."""
    if (
        kind not in FLOATING
        and not kind.startswith(("torch.float", "torch.bfloat"))
        and not COUNTERS.search(key)
    ):
        raise ValueError(
            f"{path}: the weight {key} is of type {kind}, and weights are floating-point numbers: save the "
            "model as it was before it was quantised"
        )
