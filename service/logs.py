"""Logs for machines: a line of JSON each."""

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """What a record says, and the fields that it was given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        said |= getattr(record, "fields", {})
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


def show_as_json() -> None:
    """Lets what this package and its server log go where the package's log goes, as JSON and without bars."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    handlers = logging.getLogger("tpas").handlers
    for handler in handlers:
        handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name in ("uvicorn", "asyncio", "py.warnings"):
        logging.getLogger(name).handlers = list(handlers)
        logging.getLogger(name).propagate = False
