"""One file of a package, from the Python package index: its address, without running anything.

pip would run an archive's setup program to learn its name; here its page is read.
"""

from __future__ import annotations

import os
import urllib.request
from html.parser import HTMLParser
from http.client import HTTPException
from urllib.parse import urljoin, urlsplit

PUBLIC_INDEX = "https://pypi.org/simple/"
INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_INDEX_URL")  # as pip and uv name another index
TIMEOUT_S = 20.0


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name == "href" and value]


def find_file(package: str, file: str) -> str:
    """The address of ``file`` of a package, by the index's simple interface (PEP 503).

    OSError, HTTPException or ValueError when the index cannot be read; LookupError when it does
    not list the file.
    """
    named = (os.environ.get(variable) for variable in INDEX_VARIABLES)
    index = next((address for address in named if address), PUBLIC_INDEX)
    page = f"{index.rstrip('/')}/{package}/"
    try:
        with urllib.request.urlopen(page, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode("utf-8", "replace")
            page = answer.geturl()
    except HTTPException as error:
        raise OSError(str(error)) from error
    links = _Links()
    links.feed(text)
    for address in links.addresses:
        whole = urljoin(page, address)
        if urlsplit(whole).path.rpartition("/")[2] == file:
            return whole.partition("#")[0]
    raise LookupError(f"{package}: the index does not list {file}")
