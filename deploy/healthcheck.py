"""Health of a container: exits 0 when the process in it turns, else 1 and says why.

Asks the process's own /health; what it cannot reach is told by /ready, and starting it anew would
not help there. ``python healthcheck.py [PATH]``: /health or /ready.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 5.0


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "/health"
    port = os.environ.get("SOUNDMILL_METRICS_PORT") or os.environ.get("SOUNDMILL_PORT", "8420")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # not by a proxy
    try:
        opener.open(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        sys.exit(f"{path} answers {error.code}: {error.read(2000).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"no answer from port {port}: {error}")


if __name__ == "__main__":
    main()
