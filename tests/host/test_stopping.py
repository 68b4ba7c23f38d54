from __future__ import annotations

import os
import signal

import pytest

from bayes_bench.host.stopping import Stop, on_signals


def test_a_request_is_an_interrupt_where_nobody_defers_it() -> None:
    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        stop.request()
    assert stop.requested


def test_the_first_request_is_deferred_and_the_second_is_not() -> None:
    stop = Stop()
    with stop.deferred():
        assert not stop.requested
        assert stop.request()
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            stop.request()


def test_a_request_may_come_from_elsewhere() -> None:
    asked: list[bool] = []
    stop = Stop(lambda: bool(asked))
    assert not stop.requested
    asked.append(True)
    assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_requests(number: signal.Signals) -> None:
    stop, said = Stop(), []
    usual = signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with on_signals(stop, lambda: said.append("stopping")):
            with stop.deferred():
                os.kill(os.getpid(), number)
                assert stop.requested
                assert said == ["stopping"]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, usual)


def test_a_terminal_that_may_be_closed_is_no_request() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_signals(Stop()):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
