from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pevl_cli.cache import atomic_write
from pevl_cli.errors import PevlError


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX's")
def test_a_pipe_is_written_to_and_not_replaced_by_a_file(tmp_path: Path) -> None:
    """`-o >(program)`, and `-o /dev/null` as root."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    with atomic_write(pipe) as path:
        path.write_text("result")
    reader.join(10)
    assert received == ["result"] and pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic_write(file) as path:
        path.write_text("half")
        raise ZeroDivisionError
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]
    with atomic_write(file) as path:
        path.write_text("after")
    assert file.read_text() == "after"
    with pytest.raises(PevlError, match="cannot be written"), atomic_write(file / "b") as path:
        path.write_text("x")
