"""A container's health check: `python -m infra.deploy.health URL` ends with 0 when URL answers 200."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 4.0


def answer(url: str) -> str:
    """Empty when `url` answers 200 in 4 s, else what is wrong, in one line."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as reply:
            return "" if reply.status == 200 else f"{url}: HTTP {reply.status}"
    except urllib.error.HTTPError as error:
        return f"{url}: HTTP {error.code}"
    except OSError as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    wrong = answer(sys.argv[1])
    print(wrong or "ok")
    sys.exit(1 if wrong else 0)
