"""Write Swift's three rings for one device each: make_rings.py FOLDER NAME=PORT...

Runs in the S3 server's own environment.
"""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder

PART_POWER = 4
REPLICAS = 1


def main() -> None:
    folder = Path(sys.argv[1])
    for name, port in (argument.split("=") for argument in sys.argv[2:]):
        address = {"ip": "127.0.0.1", "port": int(port)}
        address |= {f"replication_{key}": value for key, value in address.items()}
        builder = RingBuilder(PART_POWER, REPLICAS, min_part_hours=0)
        builder.add_dev(
            {"region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "", **address}
        )
        builder.rebalance()
        builder.get_ring().save(str(folder / f"{name}.ring.gz"))


if __name__ == "__main__":
    main()
