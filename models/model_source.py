"""What a model was loaded from, by which it can be loaded again, from any folder."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSource:
    """What `load_model` was given; nothing heavy is imported to read or compare it.

    Attributes:
        name: as `load_model` takes it, a folder's path absolute.
        revision: the commit of the Hub repository; None of a folder.
        base_model: of an adapter: where its base lay, if not where it was trained.
    """

    name: str
    revision: str | None = None
    base_model: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} at {self.revision}"

    def to_json(self) -> dict[str, str | None]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "ModelSource | None":
        """What `to_json` made, or None of None.

        Raises:
            TypeError, ValueError: it is something else.
        """
        if content is None:
            return None
        source = cls(**content)
        if not isinstance(source.name, str) or not source.name:
            raise ValueError(f"{source.name!r} is no name of a model")
        for value in (source.revision, source.base_model):
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{value!r} is no revision or name of a model")
        return source
