"""The first signal asks for a clean stop, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for a clean stop, the second raises KeyboardInterrupt.

    Within another such context it takes over from that one, which has the handlers again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        request_stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
