"""The first signal asks for a clean stop, the second stops at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP asks for a clean stop, the next raises KeyboardInterrupt.

    A SIGHUP that is ignored, as under nohup, stays ignored when the terminal closes.
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

    with keeping_handlers():
        for signum in _STOP:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
                signal.signal(signum, handle)
        yield


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Have signals handled as before afterwards, whatever is set meanwhile, as by Ray when it starts."""
    before = {signum: signal.getsignal(signum) for signum in _STOP}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                if handler is not None:  # one that Python has not set
                    signal.signal(signum, handler)
