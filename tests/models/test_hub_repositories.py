"""What the Hub refuses is said in a line, by the errors of its own client over its own answers."""

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status

from tpas.models.hub_repositories import refusal_of

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (
            403,
            "GatedRepo",
            f"it is gated: accept its terms at {HUB}/a/b, then `hf auth login`",
        ),
        (
            401,
            "GatedRepo",
            f"it is gated: accept its terms at {HUB}/a/b, then `hf auth login`",
        ),
        (
            404,
            "RepoNotFound",
            f"{HUB} has no such model, or it is private: then `hf auth login`",
        ),
        (
            404,
            "RevisionNotFound",
            f"it has no such --revision: {HUB}/a/b/commits/main lists them",
        ),
        (503, "", f"{HUB} answered: Server error '503 Service Unavailable'"),
        (404, "EntryNotFound", None),  # the repository is there, and only lacks a file
    ],
)
def test_a_refusal_is_said_with_the_way_out(status, code, message):
    request = httpx2.Request("HEAD", f"{HUB}/a/b/resolve/main/config.json")
    answer = httpx2.Response(status, headers={"X-Error-Code": code}, request=request)
    with pytest.raises(HfHubHTTPError) as refused:
        hf_raise_for_status(answer)
    said = refusal_of(refused.value, "a/b")
    assert said == message or (message is not None and said is not None and said.startswith(message))
