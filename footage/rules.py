"""How people are found in films, as flags."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class FootageRules:
    """How people are found in films. Each field is a flag."""

    detector: str = field(
        default="motion",
        metadata={
            "help": "what finds people in films: motion; boxes:FILE (MOT or JSON Lines); an object detector "
            "of transformers by its name; a file .onnx; none: whole frames"
        },
    )
    detect_every: float = field(
        default=0.5, metadata={"help": "seconds between two looks of a detector with weights"}
    )
    frames_per_second: float = field(
        default=10.0, metadata={"help": "frames of a film looked at in each second, at most"}
    )
    views: int = field(default=4, metadata={"help": "different views kept of each visit, at most"})
    margin: float = field(
        default=0.25, metadata={"help": "of the scene around a person, in shares of the person's height"}
    )
    started_at: str | None = field(
        default=None,
        metadata={"help": "when the film began, such as 2026-11-26T08:00; otherwise as its metadata say"},
    )

    def __post_init__(self) -> None:
        for name in ("detect_every", "frames_per_second", "views"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.margin <= 5:
            raise ValueError(f"margin must be between 0 and 5, got {self.margin}")
        _ = self.start

    @property
    def start(self) -> datetime | None:
        """With its zone, this machine's where none is named; ValueError where it is no time."""
        if self.started_at is None:
            return None
        try:
            start = datetime.fromisoformat(self.started_at)
        except ValueError:
            raise ValueError(
                f"started_at must be a time such as 2026-11-26T08:00, got {self.started_at!r}"
            ) from None
        return start if start.tzinfo else start.astimezone()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is found."""
        names = ("detector", "detect_every", "frames_per_second", "views", "margin")
        return {name: getattr(self, name) for name in names}
