"""What Prometheus reads of a running service: counts and times, nothing of what was asked."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..search_page.requests import SearchRequests
from .batches import Batches

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Of one service; `text` is in Prometheus's own format."""

    def __init__(self, galleries: Mapping[str, SearchRequests]):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "tpas_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "tpas_request_seconds",
            "From request to answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.texts = Histogram(
            "tpas_pass_texts", "Texts in a pass of the model.", buckets=TEXTS, registry=self.registry
        )
        images = Gauge("tpas_gallery_images", "Images searched.", ["gallery"], registry=self.registry)
        for name, requests in galleries.items():
            images.labels(name).set_function(lambda requests=requests: len(requests.gallery))

    def watch(self, batches: Mapping[str, Batches]) -> None:
        """Counts the questions that wait for a pass."""
        waiting = Gauge("tpas_waiting_questions", "Not in a pass yet.", registry=self.registry)
        waiting.set_function(lambda: sum(len(each.waiting) for each in batches.values()))

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
