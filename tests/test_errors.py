"""What the scripts say on the terminal."""

import io

from utils.errors import say


def test_names_that_the_terminal_cannot_show_are_escaped():
    for encoding, shown in (("utf-8", "caf\\udce9 \u00e9"), ("ascii", "caf\\udce9 \\xe9")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding)
        say("caf\udce9 \u00e9", stream)
        assert raw.getvalue().decode(encoding) == shown + "\n"
