"""What a server gives one request and holds at one time.

Bounds on the number and length of texts are the handler's (`MAX_TEXTS`, `MAX_CHARACTERS`) and stand in `bodies`.
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each is a setting of `serve_hf.py`.

    Args:
        max_batch (int): Texts that one call of the model may join.
        max_wait (float): Seconds that a text may wait for others to join it, if the model is free.
        max_queue (int): Texts that may wait for the model; what would exceed it is refused (429).
        max_requests (int): Requests that may be under way, bodies and answers included; more are refused (429).
        max_body (int): Bytes of a request's body (413).
        deadline (float): Seconds from a request's first byte to its answer (503).
        drain (float): Seconds after SIGTERM in which new requests are answered with 503, for those who route them to
            learn from `/ready`. Requests under way finish in any case.

    Raises:
        ValueError: for a bound that lets nothing through.
    """

    max_batch: int = 32
    max_wait: float = 0.002
    max_queue: int = 2048
    max_requests: int = 512
    max_body: int = 4 * 2**20
    deadline: float = 30.0
    drain: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, may_be_zero = getattr(self, field.name), field.name in ("max_wait", "drain")
            if value < 0 or (value == 0 and not may_be_zero):
                raise ValueError(f"{field.name} must be {'0 or more' if may_be_zero else 'above 0'}; got {value}.")
