"""What the Hub says of a repository before anything of it is fetched; nothing heavy is imported for it."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
SECONDS_FOR_THE_HUB = 10.0  # to say that a file is there


def is_fetched(name: str, file: str, revision: str | None = None) -> bool:
    """Whether a repository's file is in the cache, and whole: what is partly there has another name."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def check_hub(
    name: str, revision: str | None = None, files: tuple[str, ...] = ("config.json",)
) -> str | None:
    """The first of the files that the cache or the Hub has of a repository; None where it has none of them.

    Raises:
        OSError: the Hub cannot give the model; with the way out, and not after a minute.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    for file in files:
        if is_fetched(name, file, revision):
            return file
    if constants.HF_HUB_OFFLINE:
        raise not_to_be_had(
            name, "it is not on this machine, and HF_HUB_OFFLINE is set: unset it to fetch it"
        )
    for file in files:
        try:
            get_hf_file_metadata(hf_hub_url(name, file, revision=revision), timeout=SECONDS_FOR_THE_HUB)
            return file
        except HfHubHTTPError as error:
            if (reason := refusal_of(error, name)) is not None:
                raise not_to_be_had(name, reason) from error
        except Exception as error:  # of whichever library the Hub's client speaks HTTP by
            reason = f"no folder has this name, and {constants.ENDPOINT} cannot be reached ({error})"
            raise not_to_be_had(name, reason) from error
    return None


@contextmanager
def hub_or_cache(name: str, revision: str | None = None) -> Iterator[None]:
    """Within it the Hub is not asked for what the cache has of a repository, if it does not answer.

    Libraries ask for each file, and again and again: minutes, where there is no network.

    Raises:
        OSError: as what is done within it does; says why the Hub was not asked, if it was not.
    """
    from huggingface_hub import constants

    before, reason = constants.HF_HUB_OFFLINE, None
    if is_hub_name(name) and is_fetched(name, "config.json", revision):
        reason = "HF_HUB_OFFLINE is set" if before else _why_unreachable(name)
    if reason is not None:
        constants.HF_HUB_OFFLINE = True  # both libraries look here for each file
    try:
        yield
    except OSError as error:
        if reason is None:
            raise
        raise OSError(
            f"{error}; what this machine has of {name} may not be all of it, and {reason}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def _why_unreachable(name: str) -> str | None:
    """Why the Hub does not answer; None where it does. Asked once a process."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=SECONDS_FOR_THE_HUB)
    except HfHubHTTPError:
        return None
    except Exception as error:  # of whichever library the Hub's client speaks HTTP by
        reason = f"{constants.ENDPOINT} cannot be reached ({error})"
        logger.info("%s: %s as the cache has it", reason, name)
        return reason
    return None


def file_of(name: str, file: str, revision: str | None = None, fetch: bool = True) -> Path | None:
    """A file that a repository may have, of the cache or fetched; None where none is to be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with hub_or_cache(name, revision):
            return Path(hf_hub_download(name, file, revision=revision, local_files_only=not fetch))
    except (OSError, ValueError, EntryNotFoundError):
        return None  # what is wrong with the repository the loading of its model says


def not_to_be_had(name: str, reason: str) -> OSError:
    return OSError(
        f"the model {name} cannot be loaded: {reason}; or run `hf download {name} --local-dir FOLDER` "
        "on a machine with a network, bring the folder, and give it in place of the name"
    )


def refusal_of(error: Exception, name: str) -> str | None:
    """Why the Hub does not give a repository, with the way out; None where it only lacks a file of it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):  # a kind of the next
        return f"it is gated: accept its terms at {constants.ENDPOINT}/{name}, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has no such model, or it is private: then `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no such --revision: {constants.ENDPOINT}/{name}/commits/main lists them"
    if isinstance(error, EntryNotFoundError):
        return None
    return f"{constants.ENDPOINT} answered: {str(error).strip().splitlines()[0]}"


def is_hub_name(name: str) -> bool:
    """Whether it can only be a repository: neither a folder that is here, nor one beside others that are."""
    place = Path(name)
    return not place.exists() and HUB_NAME.fullmatch(name) is not None and not place.parent.is_dir()
