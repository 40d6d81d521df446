import io
import os
import pty
import re
import time

import pytest

from rfdetr_edge.progress import Progress, waiting

END = "\0"


@pytest.fixture
def terminal():
    """A real terminal to write to, and a function that says what has been written so far."""
    reading, writing = pty.openpty()
    with os.fdopen(writing, "w") as stream:

        def shown():
            stream.write(END)
            stream.flush()
            text = ""
            while not text.endswith(END):  # what is written comes out later, and in pieces
                text += os.read(reading, 100_000).decode()
            return text.removesuffix(END)

        yield stream, shown
    os.close(reading)


def test_long_work_on_a_terminal_shows_a_line_and_clears_it(terminal):
    stream, shown = terminal
    with Progress("frames", 4, stream=stream) as progress:
        progress.advance()
        time.sleep(1.05)
        progress.advance()
    text = shown()
    assert re.search(r"frames \[#{15} {15}\] 2/4 \d\.\d/s \d s left", text)
    assert text.endswith("\r\x1b[K")


def test_work_of_unknown_length_only_counts(terminal):
    stream, shown = terminal
    with Progress("frames", None, stream=stream) as progress:
        time.sleep(1.05)
        progress.advance()
        assert re.search(r"frames 1 \d\.\d/s$", shown())


def test_short_work_shows_nothing_but_what_is_said(terminal):
    stream, shown = terminal
    with Progress("frames", 2, stream=stream) as progress:
        progress.advance()
        progress.say("one photo is broken")
    assert shown().replace("\r\x1b[K", "") == "one photo is broken\r\n"


def test_nothing_but_what_is_said_goes_to_a_file():
    stream = io.StringIO()
    with Progress("frames", 2, stream=stream) as progress:
        time.sleep(1.05)
        progress.advance()
        progress.say("one photo is broken")
    assert stream.getvalue() == "one photo is broken\n"


def test_work_without_steps_shows_how_long_it_lasts(terminal):
    stream, shown = terminal
    with waiting("converting", stream=stream):
        time.sleep(1.3)
        assert shown().endswith("converting 1 s")
    assert shown() == "\r\x1b[K"


def test_work_without_steps_says_nothing_to_a_file():
    stream = io.StringIO()
    with waiting("converting", stream=stream):
        time.sleep(1.3)
    assert stream.getvalue() == ""
