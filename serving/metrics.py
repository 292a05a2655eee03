"""What Prometheus reads of a server. Labels are endpoints and statuses, never anything of a request's body."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "multitask_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "multitask_request_seconds",
            "From a request's first byte to its answer.",
            ["endpoint"],
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.batches = Histogram(
            "multitask_batch_texts", "Texts of a call of the model.", buckets=BATCH_SIZES, registry=self.registry
        )

    def gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Show a number that is read whenever it is asked for."""
        Gauge(name, description, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
