"""For all tests."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores it for what it starts in the background, and so would every process that the tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)
