"""The model that photographs are searched with where none is named."""

from dataclasses import dataclass

from .hub_repositories import is_fetched


@dataclass(frozen=True)
class HubModel:
    """A model of the Hub, and what is to be known before it is fetched.

    Attributes:
        gigabytes: of all that is fetched.
        files: without which it cannot be loaded; the largest last.
    """

    name: str
    licence: str
    gigabytes: float
    files: tuple[str, ...] = (
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    )

    def __str__(self) -> str:
        return f"{self.name} ({self.licence}, {self.gigabytes:.1f} GB)"

    @property
    def is_here(self) -> bool:
        """Whether nothing has to be fetched any more."""
        return all(is_fetched(self.name, file) for file in self.files)


# SigLIP 2: its licence allows commercial use, its texts may be in many languages, and its tokenizer needs no
# other library. 375,187,970 numbers in fp32, and 34 MB of tokenizer.
FOR_PHOTOGRAPHS = HubModel(
    "google/siglip2-base-patch16-224",
    "Apache-2.0",
    1.5,
    ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"),
)
